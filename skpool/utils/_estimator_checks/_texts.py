# SPDX-License-Identifier: BSD-3-Clause
"""Checks of steps that take raw texts and give tokens or vectors of a frozen network.

As for images, the in-process cache is off unless a check is about it.
"""

import pickle
import tempfile
from pathlib import Path
from unittest import SkipTest

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from torch import nn

from skpool._config import config_context
from skpool.backbones import Backbone, TextRecipe
from skpool.inputs import TextSequence
from skpool.stores import TokenArray
from skpool.utils._estimator_checks._tools import (
    expect,
    expect_close,
    fresh,
    has_parameter,
    host,
    refused,
    unchanged,
)

__all__ = ["TEXT_CHECKS"]

_TEXTS = (
    "a text",
    "another one, which is somewhat longer than the first",
    "",
    "Größe \N{SNOWMAN}",
    "five",
    "the longest of them all has words enough to fill a line by itself, and then some more",
    "seven",
)
# Of float32 networks that see other batches.
_TOL = 1e-5


def _features(estimator: BaseEstimator, X: object, **params: object) -> np.ndarray:
    """The features of X, computed anew."""
    with config_context(cache_bytes=0):
        return host(fresh(estimator, **({"store": None} | params)).fit(X).transform(X))


class _Letters(nn.Embedding):
    """A vector per byte of a text, and a count of the texts that it has seen."""

    seen = 0

    def __init__(self, seed: int):
        super().__init__(256, 5)
        self.weight.data.normal_(generator=torch.Generator().manual_seed(seed))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        # The letter by which the width is found is not a text of the user's.
        probe = ids.shape[1] == 1 and bool((ids == ord("a")).all())
        _Letters.seen += 0 if probe else len(ids)
        return super().forward(ids)


def _backbone(seed: int) -> Backbone:
    return Backbone.from_module(_Letters(seed), recipe=TextRecipe(), tokenizer=str.encode)


def _counted(estimator: BaseEstimator, seed: int, **params: object) -> BaseEstimator:
    """A clone on a network that counts; each check takes its own seed, hence its own keys."""
    if not has_parameter(estimator, "backbone"):
        raise SkipTest("no parameter backbone")
    pooling = estimator.get_params(deep=False).get("pooling")
    # The network that counts has no class token.
    params = {"pooling": pooling and "mean", "chunk": None, "layers": -1, "store": None} | params
    return fresh(estimator, backbone=_backbone(seed), **params)


def check_containers_of_texts_agree(estimator: BaseEstimator) -> None:
    """A list, a tuple, arrays and a TextSequence of the same texts give the same."""
    desired = _features(estimator, list(_TEXTS))
    forms = {
        "a tuple": _TEXTS,
        "an array of objects": np.array(_TEXTS, dtype=object),
        "an array of text": np.array(_TEXTS),
        "a TextSequence": TextSequence(list(_TEXTS)),
    }
    for name, texts in forms.items():
        expect_close(_features(estimator, texts), desired, name, tol=_TOL)


def check_series_of_texts_is_accepted(estimator: BaseEstimator) -> None:
    """A column of a table, whatever its index, gives what the list gives."""
    try:
        import pandas as pd
    except ImportError:
        raise SkipTest("pandas is not installed") from None
    column = pd.DataFrame({"text": _TEXTS}, index=range(100, 100 + len(_TEXTS)))["text"]
    desired = _features(estimator, list(_TEXTS))
    expect_close(_features(estimator, column), desired, "Series", tol=_TOL)


def check_result_is_vectors_or_tokens(estimator: BaseEstimator) -> None:
    """transform gives finite vectors (n, ..., d) or a TokenArray whose shape and mask agree."""
    out = fresh(estimator, store=None).fit(_TEXTS).transform(_TEXTS)
    expect(len(out) == len(_TEXTS), f"{len(out)} rows for {len(_TEXTS)} texts.")
    values = host(out)
    expect(values.shape == out.shape, f"shape is {out.shape}, the array's is {values.shape}.")
    expect(np.isfinite(values).all(), "Features are NaN or infinite.")
    if isinstance(out, TokenArray) and out.mask is not None:
        expect(out.mask.any(axis=1).all(), "A text has no token.")


def check_batch_of_texts_does_not_matter(estimator: BaseEstimator) -> None:
    """Batches of 1, 3 or all texts give the same."""
    if not has_parameter(estimator, "batch_size"):
        raise SkipTest("no parameter batch_size")
    desired = _features(estimator, _TEXTS, batch_size=len(_TEXTS))
    for size in (1, 3):
        actual = _features(estimator, _TEXTS, batch_size=size)
        expect_close(actual, desired, f"batch_size={size}", tol=_TOL)


def check_texts_are_independent(estimator: BaseEstimator) -> None:
    """Features of some texts, in any order and repeated, are these rows of all features."""
    rows = [5, 0, 3, 0]
    actual = _features(estimator, [_TEXTS[i] for i in rows])
    expect_close(actual, _features(estimator, _TEXTS)[rows], "subset", tol=_TOL)


def check_view_of_result_equals_result_of_view(estimator: BaseEstimator) -> None:
    """Indexing the result gives the features of these texts."""
    rows = [5, 2]
    with config_context(cache_bytes=0):
        out = fresh(estimator, store=None).fit(_TEXTS).transform(_TEXTS)
        desired = _features(estimator, [_TEXTS[i] for i in rows])
        expect_close(host(out[rows]), desired, "view", tol=_TOL)


def check_texts_need_no_fit(estimator: BaseEstimator) -> None:
    """Nothing is learned, so transform works before fit."""
    with config_context(cache_bytes=0):
        actual = host(fresh(estimator, store=None).transform(_TEXTS))
    expect_close(actual, _features(estimator, _TEXTS), "without fit", tol=_TOL)


def check_each_text_is_computed_once(estimator: BaseEstimator) -> None:
    """Equal texts, other subsets and later transforms cost nothing; neither do clones."""
    extractor = _counted(estimator, seed=21)
    before = _Letters.seen
    np.asarray(extractor.fit_transform([*_TEXTS[:3], *_TEXTS[:2]]))
    np.asarray(extractor.transform(_TEXTS[1:3]))
    np.asarray(clone(extractor).fit_transform(_TEXTS[::2]))
    seen, distinct = _Letters.seen - before, len({*_TEXTS[:3], *_TEXTS[::2]})
    expect(seen == distinct, f"{distinct} distinct texts were computed {seen} times.")


def check_store_serves_later_sessions_of_texts(estimator: BaseEstimator) -> None:
    """Another extractor over the same store computes nothing and gives the same."""
    if not has_parameter(estimator, "store"):
        raise SkipTest("no parameter store")
    with tempfile.TemporaryDirectory() as folder, config_context(cache_bytes=0):
        store = str(Path(folder) / "store")
        desired = np.asarray(_counted(estimator, seed=22, store=store).transform(_TEXTS))
        before = _Letters.seen
        actual = np.asarray(_counted(estimator, seed=22, store=store).transform(_TEXTS))
        seen = _Letters.seen - before
    expect(seen == 0, f"{seen} texts that lie in the store were computed again.")
    expect_close(actual, desired, "stored features")


def check_clone_keeps_the_backbone_of_texts(estimator: BaseEstimator) -> None:
    """Cloning copies no weights."""
    extractor = _counted(estimator, seed=23)
    expect(clone(extractor).backbone is extractor.backbone, "clone copied the backbone.")


def check_pickle_of_texts_carries_no_weights(estimator: BaseEstimator) -> None:
    """A used extractor of a named backbone pickles to less than 20 kB."""
    backbone = estimator.get_params(deep=False).get("backbone")
    if not isinstance(backbone, str) and getattr(backbone, "spec", "module:").startswith("module:"):
        raise SkipTest("the backbone has no name, so its module travels with it")
    extractor = fresh(estimator, store=None).fit(_TEXTS)
    host(extractor.transform(_TEXTS))
    n_bytes = len(pickle.dumps(extractor))
    expect(n_bytes < 20_000, f"The pickle has {n_bytes:,} bytes.")


def check_pickle_of_texts_gives_the_same(estimator: BaseEstimator) -> None:
    """An extractor comes back from pickle as it was."""
    back = pickle.loads(pickle.dumps(fresh(estimator, store=None).fit(_TEXTS)))
    expect_close(_features(back, _TEXTS), _features(estimator, _TEXTS), "pickle", tol=_TOL)


def check_set_params_of_texts_takes_effect(estimator: BaseEstimator) -> None:
    """Another backbone, set after use, gives its own features."""
    extractor = _counted(estimator, seed=24)
    first = np.asarray(extractor.fit_transform(_TEXTS))
    second = np.asarray(extractor.set_params(backbone=_backbone(25)).fit_transform(_TEXTS))
    expect(np.abs(second - first).max() > 1e-3, "set_params(backbone=...) had no effect.")
    desired = np.asarray(_counted(estimator, seed=25).fit_transform(_TEXTS))
    expect_close(second, desired, "set_params")


def check_bad_texts_are_refused(estimator: BaseEstimator) -> None:
    """No text, tables, other types, missing entries and a single text are refused."""
    cases = {
        "an empty list": [],
        "an empty array": np.array([], dtype=str),
        "an array of rank 2": np.array([["a", "b"]]),
        "numbers": [1, 2],
        "bytes": [b"a"],
        "a single text": "a text",
        "a missing entry": ["a text", None],
        "NaN": ["a text", float("nan")],
        "None": None,
    }
    for name, values in cases.items():
        with refused(name):
            host(fresh(estimator, store=None).fit(values).transform(values))


def check_set_output_is_accepted_for_texts(estimator: BaseEstimator) -> None:
    """set_output, which pipelines call on all their steps, changes nothing."""
    with config_context(cache_bytes=0):
        extractor = fresh(estimator, store=None).set_output(transform="pandas").fit(_TEXTS)
        out = host(extractor.transform(_TEXTS))
    expect_close(out, _features(estimator, _TEXTS), "after set_output", tol=_TOL)


def check_texts_are_not_changed(estimator: BaseEstimator) -> None:
    """Lists and arrays are as they were."""
    given, array = list(_TEXTS), np.array(_TEXTS, dtype=object)
    _features(estimator, given)
    _features(estimator, array)
    expect(given == list(_TEXTS), "The list was changed.")
    expect(array.tolist() == list(_TEXTS), "The array was written to.")


def check_refused_parameters_of_texts_change_nothing(estimator: BaseEstimator) -> None:
    """A layer that the network does not have is refused before anything is computed."""
    if not has_parameter(estimator, "layers"):
        raise SkipTest("no parameter layers")
    extractor = _counted(estimator, seed=26, layers=99)
    before = _Letters.seen
    for verb in (extractor.fit, extractor.transform):
        with unchanged(extractor, "A refused layer"), refused("layers=99", match="99"):
            verb(_TEXTS)
    expect(_Letters.seen == before, "Texts were computed before the refusal.")


TEXT_CHECKS = (
    check_containers_of_texts_agree,
    check_series_of_texts_is_accepted,
    check_result_is_vectors_or_tokens,
    check_batch_of_texts_does_not_matter,
    check_texts_are_independent,
    check_view_of_result_equals_result_of_view,
    check_texts_need_no_fit,
    check_each_text_is_computed_once,
    check_store_serves_later_sessions_of_texts,
    check_clone_keeps_the_backbone_of_texts,
    check_pickle_of_texts_carries_no_weights,
    check_pickle_of_texts_gives_the_same,
    check_set_params_of_texts_takes_effect,
    check_bad_texts_are_refused,
    check_set_output_is_accepted_for_texts,
    check_texts_are_not_changed,
    check_refused_parameters_of_texts_change_nothing,
)
