# SPDX-License-Identifier: BSD-3-Clause
"""The few-shot methods of the package `easyfsl`, around an identity, episode by episode.

Some of its conventions are no options of ours; the facts take them off on its side, so that what
is left can be seen to be the same.
"""

import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import nn
from torch.utils.data import Sampler

from _published.episodes import Episodes, make_episodes, share
from _published.tasks import Outcome
from skpool.few_shot import (
    InformationMaximizationClassifier,
    OptimalTransportClassifier,
    PrototypeRectification,
    TransductivePrototypeClassifier,
    make_laplacian_shot,
)
from skpool.prototypes import NearestClassMeanClassifier

CLONE = ()
PACKAGES = ("easyfsl",)


def _empty_class(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})


def load_easyfsl() -> types.ModuleType:
    """Import easyfsl beside any torch.

    It imports torchvision for images and its backbones, which no feature needs, so an empty one
    serves where there is none; and it gives `Sampler` an argument that newer versions of torch
    refuse.
    """
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in ("", ".models", ".models.resnet", ".transforms", ".utils", ".datasets"):
            module = types.ModuleType(f"torchvision{name}")
            module.__getattr__ = _empty_class
            sys.modules[f"torchvision{name}"] = module
            if name.count(".") == 1:
                setattr(sys.modules["torchvision"], name[1:], module)
    Sampler.__init__ = lambda self, data_source=None: None
    import easyfsl.datasets
    import easyfsl.methods
    import easyfsl.samplers
    import easyfsl.utils

    return easyfsl


def run(method: nn.Module, episodes: Episodes) -> np.ndarray:
    """Its predictions, one episode after the other."""
    found = []
    for Xs, ys, Xq in zip(episodes.Xs, episodes.ys, episodes.Xq, strict=True):
        with torch.no_grad():
            method.process_support_set(Xs, ys)
            found.append(method(Xq).argmax(dim=1).numpy())
    return np.array(found)


def with_softmax(method: nn.Module, scale: float) -> nn.Module:
    """Give it logarithms of a softmax for cosines: the same decisions, other weights."""
    cosines = method.cosine_distance_to_prototypes
    method.cosine_distance_to_prototypes = lambda rows: (scale * cosines(rows)).log_softmax(dim=1)
    return method


class Case(NamedTuple):
    """A method on both sides, on the same rows."""

    theirs: nn.Module
    ours: BaseEstimator
    episodes: Episodes
    facts: dict[str, float]


def prototypical(seed: int, n_shot: int) -> Case:
    """Distances of the rows as they are."""
    theirs = load_easyfsl().methods.PrototypicalNetworks(nn.Identity())
    return Case(theirs, NearestClassMeanClassifier("euclidean"), make_episodes(seed, n_shot), {})


def simple_shot(seed: int, n_shot: int) -> Case:
    """Cosines of centred unit rows."""
    theirs, episodes = (
        load_easyfsl().methods.SimpleShot(nn.Identity()),
        make_episodes(seed, n_shot).normalized(),
    )
    return Case(theirs, NearestClassMeanClassifier("cosine"), episodes, {})


def rectification(seed: int, n_shot: int) -> Case:
    """BD-CSPN: its weights are exp(cos), and it moves queries for the prototypes alone."""
    theirs, episodes = (
        load_easyfsl().methods.BDCSPN(nn.Identity()),
        make_episodes(seed, n_shot).normalized(),
    )
    move = episodes.Xs.mean(dim=1, keepdim=True) - episodes.Xq.mean(dim=1, keepdim=True)
    # Queries that are there already are not moved again.
    moved = episodes._replace(Xq=episodes.Xq + move)
    ours = PrototypeRectification(scale=1.0)
    found = run(with_softmax(load_easyfsl().methods.BDCSPN(nn.Identity()), 1.0), moved)
    facts = {
        "theirs, queries moved for the decision too": share(run(theirs, moved), moved.yq),
        "theirs, weights by softmax as well": share(found, moved.yq),
        "identity: equal predictions then": share(found, episodes.decided(ours)),
        "ours, scale=10": episodes.score(PrototypeRectification()),
        "ours, no query (SimpleShot)": episodes.score(NearestClassMeanClassifier("cosine")),
    }
    return Case(theirs, ours, episodes, facts)


def laplacian_shot(seed: int, n_shot: int) -> Case:
    """LaplacianShot behind its BD-CSPN; a neighbour fewer, for a row counts as its own."""
    episodes = make_episodes(seed, n_shot).normalized()
    published = load_easyfsl().methods.LaplacianShot
    theirs, plain = published(nn.Identity()), published(nn.Identity())
    plain.rectify_prototypes = lambda query_features: None
    conventions = {
        "graph": "query",
        "update_prototypes": False,
        "include_self": True,
        "symmetric": False,
    }
    ours = TransductivePrototypeClassifier(**conventions, rectify=True)
    found = run(plain, episodes)
    decided = episodes.decided(TransductivePrototypeClassifier(**conventions))
    soft = run(with_softmax(published(nn.Identity()), 10.0), episodes)
    facts = {
        "identity: equal predictions with its weights by softmax": share(
            soft, episodes.decided(ours)
        ),
        "identity: equal predictions without rectification": share(found, decided),
        "theirs without rectification": share(found, episodes.yq),
        "ours without rectification": share(decided, episodes.yq),
        "ours, make_laplacian_shot()": episodes.score(make_laplacian_shot()[-1]),
        "ours, make_laplacian_shot(rectify=True)": episodes.score(
            make_laplacian_shot(rectify=True)[-1]
        ),
    }
    return Case(theirs, ours, episodes, facts)


def transport(seed: int, n_shot: int) -> Case:
    """PT-MAP: it takes powers of unit rows, ours makes powers unit rows, as was published."""
    # Fewer episodes, for its iterations seldom end before the thousandth.
    episodes = make_episodes(seed, n_shot, rectified=True).first(40)
    published = load_easyfsl().methods.PTMAP
    theirs = published(nn.Identity(), feature_normalization=2)
    ours = OptimalTransportClassifier(regularization=10.0, n_epochs=10, marginals="uniform")
    Xs, Xq = (nn.functional.normalize((X + 1e-6).sqrt(), dim=2) for X in (episodes.Xs, episodes.Xq))
    found = run(published(nn.Identity(), power_factor=1.0), episodes._replace(Xs=Xs, Xq=Xq))
    # The square of the length of the root of a unit row is the sum of the row.
    square = float(nn.functional.normalize(episodes.Xq, dim=2).sum(dim=2).mean())
    harder = OptimalTransportClassifier(
        regularization=10.0 * square, n_epochs=10, marginals="uniform"
    )
    facts = {
        "squared length of its rows": square,
        "ours, regularization times that": episodes.score(harder),
        "theirs, given unit rows of powers": share(found, episodes.yq),
        "identity: equal predictions then": share(found, episodes.decided(ours)),
        "ours as it is by default": episodes.score(OptimalTransportClassifier()),
    }
    return Case(theirs, ours, episodes, facts)


def information(seed: int, n_shot: int) -> Case:
    """TIM: logits are cosines to the prototypes, in the papers and here distances."""
    episodes = make_episodes(seed, n_shot).normalized()
    theirs, distant = (
        load_easyfsl().methods.TIM(nn.Identity()),
        load_easyfsl().methods.TIM(nn.Identity()),
    )
    distant.cosine_distance_to_prototypes = lambda rows: (
        -(rows[:, None] - distant.prototypes).square().sum(dim=2) / 2
    )
    settings = {"weights": (1.0, 1.0, 0.1), "temperature": 10.0}
    ours = InformationMaximizationClassifier(**settings, max_iter=50)
    found = run(distant, episodes)
    facts = {
        "theirs, distances for cosines": share(found, episodes.yq),
        "identity: equal predictions then": share(found, episodes.decided(ours)),
        "ours, no step (nearest means)": episodes.score(NearestClassMeanClassifier("euclidean")),
    }
    return Case(theirs, ours, episodes, facts)


def compare(code: Path, seed: int, *, case: Callable[[int, int], Case], n_shot: int) -> Outcome:
    """One method on the episodes of one seed; `code` is not needed for a package."""
    theirs, ours, episodes, facts = case(seed, n_shot)
    found, decided = run(theirs, episodes), episodes.decided(ours)
    return Outcome(found.ravel(), decided.ravel(), episodes.yq.numpy().ravel(), facts)


CASES = {
    "PrototypicalNetworks": prototypical,
    "SimpleShot": simple_shot,
    "BDCSPN": rectification,
    "LaplacianShot": laplacian_shot,
    "PTMAP": transport,
    "TIM": information,
}
RUNS = {
    f"{name}, {n_shot} shot": partial(compare, case=case, n_shot=n_shot)
    for name, case in CASES.items()
    for n_shot in (1, 5)
}
