# SPDX-License-Identifier: BSD-3-Clause
"""PT-MAP: `test_standard.py`, from powers to the last plan, all episodes at once.

Its globals are set to our episodes. It takes as many queries of each class as there are on
average; where that is not so, we see what the assumption costs.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from _published.clones import load
from _published.episodes import QUERIES, WAYS, Episodes, make_episodes, share
from _published.tasks import Outcome
from skpool.few_shot import OptimalTransportClassifier

CLONE = "PT-MAP"
ABSENT = ("tqdm", "matplotlib")
PUBLISHED = {"regularization": 10.0, "center": "separate"}


def theirs(code: Path, episodes: Episodes) -> np.ndarray:
    """Its predictions for the queries, (E, n_q)."""
    published = load(code / CLONE, "test_standard", ABSENT)
    n_runs, n_s, d = episodes.Xs.shape
    n_shot = n_s // WAYS
    # One row of each class, then the next, as it has them.
    Xs = episodes.Xs.reshape(n_runs, WAYS, n_shot, d).transpose(1, 2).reshape(n_runs, n_s, d)
    ys = torch.arange(WAYS).repeat(n_runs, n_shot)
    rows = torch.cat([Xs, episodes.Xq], dim=1)
    vars(published).update(
        n_shot=n_shot,
        n_ways=WAYS,
        n_queries=QUERIES,
        n_runs=n_runs,
        n_lsamples=n_s,
        n_usamples=episodes.Xq.shape[1],
        labels=torch.cat([ys, episodes.yq], dim=1),
    )
    rows = published.QRreduction(torch.pow(rows + 1e-6, 0.5))
    rows = published.centerDatas(published.scaleEachUnitaryDatas(rows))
    published.ndatas, published.n_nfeat = rows, rows.shape[2]
    model = published.GaussianModel(WAYS, 10)
    model.initFromLabelledDatas()
    search = published.MAP(0.2)
    search.loop(model, n_epochs=20)
    return model.getProbas()[:, n_s:].argmax(dim=2).numpy()


def losses(code: Path, seed: int, n_shot: int, uneven: Episodes) -> dict[str, float]:
    """What is lost where classes are not equally frequent, in points."""
    even = make_episodes(seed, n_shot, rectified=True)
    ours = {
        "ours, uniform": OptimalTransportClassifier(marginals="uniform", **PUBLISHED),
        "ours, auto, centred as published": OptimalTransportClassifier(**PUBLISHED),
        "ours, auto (the default)": OptimalTransportClassifier(),
    }
    pairs = {"theirs": [share(theirs(code, x), x.yq) for x in (even, uneven)]}
    pairs |= {name: [x.score(model) for x in (even, uneven)] for name, model in ours.items()}
    facts = {}
    for name, (balanced, dirichlet) in pairs.items():
        facts[f"balanced: {name}"] = 100 * balanced
        facts[f"Dirichlet(2): {name}"] = 100 * dirichlet
        facts[f"lost from balanced to Dirichlet(2), points: {name}"] = 100 * (balanced - dirichlet)
    return facts


def compare(code: Path, seed: int, *, n_shot: int, distribution: str) -> Outcome:
    """Equal shares on both sides, or theirs beside shares that are estimated."""
    episodes = make_episodes(seed, n_shot, distribution=distribution, rectified=True)
    uniform = OptimalTransportClassifier(marginals="uniform", **PUBLISHED)
    found, decided = theirs(code, episodes), episodes.decided(uniform)
    facts = {}
    if distribution == "dirichlet":
        facts = losses(code, seed, n_shot, episodes)
        facts["equal predictions of theirs and ours, uniform"] = share(found, decided)
        decided = episodes.decided(OptimalTransportClassifier())
    return Outcome(found.ravel(), decided.ravel(), episodes.yq.numpy().ravel(), facts)


RUNS = {
    f"{title}, {n_shot} shot": partial(compare, n_shot=n_shot, distribution=distribution)
    for distribution, title in {
        "balanced": "balanced queries; ours uniform",
        "dirichlet": "Dirichlet(2) queries; ours auto",
    }.items()
    for n_shot in (1, 5)
}
