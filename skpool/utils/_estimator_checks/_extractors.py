# SPDX-License-Identifier: BSD-3-Clause
"""Checks of steps that take raw images and give tokens of a frozen network.

They switch the in-process cache off unless they are about it: a cache would make "the same for
every batch size" true by never computing twice.
"""

import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import SkipTest

import numpy as np
import torch
from PIL import Image
from sklearn.base import BaseEstimator, clone
from sklearn.utils import get_tags
from torch import nn

from skpool._config import config_context
from skpool.backbones import Backbone, ImageRecipe
from skpool.exceptions import UnreadableInputError
from skpool.inputs import ImageSequence
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

__all__ = ["EXTRACTOR_CHECKS"]

N_IMAGES, SIDE = 7, 20
# Of float32 networks that see other batches.
_TOL = 1e-5


def _images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (N_IMAGES, SIDE, SIDE, 3), dtype=np.uint8)


@contextmanager
def _paths() -> Iterator[list[str]]:
    """The images as lossless files."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{i}.png") for i in range(N_IMAGES)]
        for path, image in zip(paths, _images(), strict=True):
            Image.fromarray(image).save(path)
        yield paths


def _features(estimator: BaseEstimator, X: object, **params: object) -> np.ndarray:
    """The features of X, computed anew."""
    with config_context(cache_bytes=0):
        return host(fresh(estimator, **({"store": None} | params)).fit(X).transform(X))


class _SmallNet(nn.Module):
    """Sixteen patches of width 5, and a count of the images that it has seen."""

    seen = 0

    def __init__(self, seed: int):
        super().__init__()
        self.patches = nn.Conv2d(3, 5, 4, 4)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # A blank image, by which a layout is found, is not an image of the user's.
        flat = images.flatten(1)
        _SmallNet.seen += int((flat != flat[:, :1]).any(1).sum())
        return self.patches(images)


def _backbone(seed: int) -> Backbone:
    recipe = ImageRecipe(input_size=16, mean=(0.5,) * 3, std=(0.5,) * 3, fit="squash")
    return Backbone.from_module(_SmallNet(seed), recipe=recipe)


def _counted(estimator: BaseEstimator, seed: int, **params: object) -> BaseEstimator:
    """A clone on a network that counts; each check takes its own seed, hence its own keys."""
    if not has_parameter(estimator, "backbone"):
        raise SkipTest("no parameter backbone")
    params = {"store": None, "tokens": "all", "layers": -1} | params
    return fresh(estimator, backbone=_backbone(seed), **params)


def check_containers_agree(estimator: BaseEstimator) -> None:
    """An array, PIL images, a list of arrays, paths and an ImageSequence give the same."""
    X = _images()
    desired = _features(estimator, X)
    pictures = [Image.fromarray(image) for image in X]
    with _paths() as paths:
        forms = {
            "PIL images": pictures,
            "a list of arrays": list(X),
            "paths": paths,
            "path objects": [Path(path) for path in paths],
            "an array of paths": np.array(paths),
            "an ImageSequence": ImageSequence(paths),
            "a mixed list": [*paths[:3], *pictures[3:]],
        }
        for name, samples in forms.items():
            expect_close(_features(estimator, samples), desired, name, tol=_TOL)


def check_series_of_paths_is_accepted(estimator: BaseEstimator) -> None:
    """A column of a table, whatever its index, gives what the list gives."""
    try:
        import pandas as pd
    except ImportError:
        raise SkipTest("pandas is not installed") from None
    with _paths() as paths:
        column = pd.DataFrame({"path": paths}, index=range(100, 100 + N_IMAGES))["path"]
        expect_close(_features(estimator, column), _features(estimator, paths), "Series", tol=_TOL)


def check_result_is_tokens(estimator: BaseEstimator) -> None:
    """transform gives a TokenArray whose shape, prefix and grid agree, or an array of vectors.

    Arrays of higher rank (layers, views, maps) come from steps that do not hand on tokens.
    """
    out = fresh(estimator, store=None).fit(_images()).transform(_images())
    expect(len(out) == N_IMAGES, f"{len(out)} rows for {N_IMAGES} images.")
    if not isinstance(out, TokenArray):
        gives_vectors = getattr(estimator, "tokens", "cls") == "cls"
        message = f"The result has shape {tuple(out.shape)}; give a TokenArray."
        expect(out.ndim == 2 or (out.ndim > 2 and gives_vectors), message)
        return
    values = np.asarray(out)
    expect(values.shape == out.shape, f"shape is {out.shape}, the array's is {values.shape}.")
    expect(values.dtype == out.dtype, f"dtype is {out.dtype}, the array's is {values.dtype}.")
    expect(np.isfinite(values).all(), "Tokens are NaN or infinite.")
    if out.grid is not None:
        n_patches = out.shape[1] - out.n_prefix_tokens
        expect(out.grid[0] * out.grid[1] == n_patches, f"grid {out.grid} of {n_patches} patches.")


def check_batch_size_does_not_matter(estimator: BaseEstimator) -> None:
    """Batches of 1, 3 or all images give the same."""
    if not has_parameter(estimator, "batch_size"):
        raise SkipTest("no parameter batch_size")
    desired = _features(estimator, _images(), batch_size=N_IMAGES)
    for size in (1, 3):
        actual = _features(estimator, _images(), batch_size=size)
        expect_close(actual, desired, f"batch_size={size}", tol=_TOL)


def check_images_are_independent(estimator: BaseEstimator) -> None:
    """Features of some images, in any order and repeated, are these rows of all features."""
    X, rows = _images(), np.array([5, 0, 3, 0])
    with config_context(cache_bytes=0):
        model = fresh(estimator, store=None).fit(X)
        some, all_rows = host(model.transform(X[rows])), host(model.transform(X))
    expect_close(some, all_rows[rows], "subset", tol=_TOL)


def check_subset_of_result_equals_result_of_subset(estimator: BaseEstimator) -> None:
    """Indexing the lazy result gives the features of these images."""
    X, rows = _images(), np.array([6, 2])
    with config_context(cache_bytes=0):
        model = fresh(estimator, store=None).fit(X)
        out = model.transform(X)
        expect_close(host(out[rows]), host(model.transform(X[rows])), "view", tol=_TOL)


def check_needs_no_fit(estimator: BaseEstimator) -> None:
    """A step whose tag says requires_fit=False transforms before fit, to the same values."""
    if get_tags(estimator).requires_fit:
        raise SkipTest("it learns")
    with config_context(cache_bytes=0):
        actual = host(fresh(estimator, store=None).transform(_images()))
    expect_close(actual, _features(estimator, _images()), "without fit", tol=_TOL)


def check_transform_computes_nothing(estimator: BaseEstimator) -> None:
    """fit and transform run no image through the network; using the result does."""
    extractor = _counted(estimator, seed=11)
    before = _SmallNet.seen
    out = extractor.fit(_images()).transform(_images())
    expect(_SmallNet.seen == before, f"{_SmallNet.seen - before} images were computed.")
    np.asarray(out)
    expect(_SmallNet.seen == before + N_IMAGES, "Using the result did not compute it once.")


def check_each_image_is_computed_once(estimator: BaseEstimator) -> None:
    """Equal images, other subsets and later transforms cost nothing; neither do clones."""
    extractor, X = _counted(estimator, seed=12), _images()
    before = _SmallNet.seen
    np.asarray(extractor.fit_transform(X[[0, 1, 0, 1, 2]]))
    np.asarray(extractor.transform(X[1:3]))
    np.asarray(clone(extractor).fit_transform(X[::2]))
    seen = _SmallNet.seen - before
    expect(seen == 5, f"5 distinct images of 10 were computed {seen} times.")


def check_store_serves_later_sessions(estimator: BaseEstimator) -> None:
    """Another extractor over the same store computes nothing and gives the same."""
    if not has_parameter(estimator, "store"):
        raise SkipTest("no parameter store")
    with tempfile.TemporaryDirectory() as folder, config_context(cache_bytes=0):
        store = str(Path(folder) / "store")
        desired = np.asarray(_counted(estimator, seed=13, store=store).transform(_images()))
        before = _SmallNet.seen
        actual = np.asarray(_counted(estimator, seed=13, store=store).transform(_images()))
        seen = _SmallNet.seen - before
    expect(seen == 0, f"{seen} images that lie in the store were computed again.")
    expect_close(actual, desired, "stored features")


def check_clone_keeps_the_backbone(estimator: BaseEstimator) -> None:
    """Cloning copies no weights."""
    extractor = _counted(estimator, seed=14)
    expect(clone(extractor).backbone is extractor.backbone, "clone copied the backbone.")


def check_pickle_carries_no_weights(estimator: BaseEstimator) -> None:
    """A used extractor of a named backbone pickles to less than 20 kB."""
    backbone = estimator.get_params(deep=False).get("backbone")
    if not isinstance(backbone, str) and getattr(backbone, "spec", "module:").startswith("module:"):
        raise SkipTest("the backbone has no name, so its module travels with it")
    extractor = fresh(estimator, store=None).fit(_images())
    host(extractor.transform(_images()))
    n_bytes = len(pickle.dumps(extractor))
    expect(n_bytes < 20_000, f"The pickle has {n_bytes:,} bytes.")


def check_pickle_gives_the_same(estimator: BaseEstimator) -> None:
    """An extractor comes back from pickle as it was."""
    back = pickle.loads(pickle.dumps(fresh(estimator, store=None).fit(_images())))
    expect_close(_features(back, _images()), _features(estimator, _images()), "pickle", tol=_TOL)


def check_set_params_takes_effect(estimator: BaseEstimator) -> None:
    """Another backbone, set after use, gives its own features."""
    extractor, X = _counted(estimator, seed=15), _images()
    first = np.asarray(extractor.fit_transform(X))
    second = np.asarray(extractor.set_params(backbone=_backbone(16)).fit_transform(X))
    expect(np.abs(second - first).max() > 1e-3, "set_params(backbone=...) had no effect.")
    expect_close(second, np.asarray(_counted(estimator, seed=16).fit_transform(X)), "set_params")


@contextmanager
def _one_unreadable() -> Iterator[list[str]]:
    with _paths() as paths:
        Path(paths[2]).write_bytes(b"no image")
        yield paths


def check_unreadable_image_is_named(estimator: BaseEstimator) -> None:
    """on_error="raise" names the unreadable image in one UnreadableInputError."""
    with _one_unreadable() as paths, config_context(cache_bytes=0):
        extractor = fresh(estimator, store=None, on_error="raise")
        try:
            host(extractor.fit(paths).transform(paths))
        except UnreadableInputError as error:
            expect([f[0] for f in error.failures] == [2], f"failures is {error.failures}.")
            expect(paths[2] in str(error), f"The path is not in the message: {error}")
            return
    raise AssertionError("An unreadable image was accepted.")


def check_unreadable_image_loses_no_other(estimator: BaseEstimator) -> None:
    """After an unreadable image all others are kept: nothing is computed twice."""
    with _one_unreadable() as paths:
        extractor = _counted(estimator, seed=17, on_error="raise")
        before = _SmallNet.seen
        try:
            np.asarray(extractor.transform(paths))
        except UnreadableInputError:
            np.asarray(extractor.transform([*paths[:2], *paths[3:]]))
    seen = _SmallNet.seen - before
    expect(seen == N_IMAGES - 1, f"{N_IMAGES - 1} readable images were computed {seen} times.")


def check_unreadable_image_gives_nan(estimator: BaseEstimator) -> None:
    """on_error="nan" gives a NaN row, lists it in failed_, and keeps the others."""
    if not has_parameter(estimator, "on_error"):
        raise SkipTest("no parameter on_error")
    desired = _features(estimator, _images())
    with _one_unreadable() as paths, config_context(cache_bytes=0):
        extractor = fresh(estimator, store=None, on_error="nan").fit(_images())
        out = host(extractor.transform(paths))
        failed = [(row, name) for row, name, _ in extractor.failed_]
        expect(failed == [(2, paths[2])], f"failed_ is {extractor.failed_}.")
    expect(np.isnan(out[2]).all(), "The row of an unreadable image is not NaN.")
    readable = np.delete(np.arange(N_IMAGES), 2)
    expect_close(out[readable], desired[readable], "readable images", tol=_TOL)


def check_bad_images_are_refused(estimator: BaseEstimator) -> None:
    """No image, arrays of another rank or type, and a single path are refused."""
    X = _images()
    cases = {
        "an empty list": [],
        "an empty array": X[:0],
        "an array of rank 2": X[:, :, 0, 0],
        "an array of rank 3": X[:, :, :, 0],
        "floats": X / 255.0,
        "int64": X.astype(np.int64),
        "two channels": X[..., :2],
        "a single path": "image.png",
        "a missing entry": ["image.png", None],
        "numbers": [1, 2],
        "None": None,
    }
    for name, values in cases.items():
        with refused(name):
            host(fresh(estimator, store=None).fit(values).transform(values))


def check_set_output_is_accepted(estimator: BaseEstimator) -> None:
    """set_output, which pipelines call on all their steps, does not change tokens."""
    with config_context(cache_bytes=0):
        extractor = fresh(estimator, store=None).set_output(transform="pandas").fit(_images())
        out = host(extractor.transform(_images()))
    expect_close(out, _features(estimator, _images()), "after set_output", tol=_TOL)


def check_images_are_not_changed(estimator: BaseEstimator) -> None:
    """Arrays, PIL images and lists are as they were."""
    X, values = _images(), _images()
    pictures = [Image.fromarray(image) for image in X]
    given = list(pictures)
    _features(estimator, X)
    _features(estimator, given)
    expect((X == values).all(), "The array was written to.")
    same = len(given) == N_IMAGES and all(a is b for a, b in zip(given, pictures, strict=True))
    expect(same, "The list was changed.")
    for picture, pixels in zip(pictures, values, strict=True):
        expect((np.asarray(picture) == pixels).all(), "An image was written to.")


def check_refused_parameters_change_nothing(estimator: BaseEstimator) -> None:
    """A layer that the network does not have is refused before anything is computed."""
    if not has_parameter(estimator, "layers"):
        raise SkipTest("no parameter layers")
    extractor = _counted(estimator, seed=18, layers=99)
    before = _SmallNet.seen
    for verb in (extractor.fit, extractor.transform):
        with unchanged(extractor, "A refused layer"), refused("layers=99", match="99"):
            verb(_images())
    expect(_SmallNet.seen == before, "Images were computed before the refusal.")


EXTRACTOR_CHECKS = (
    check_containers_agree,
    check_series_of_paths_is_accepted,
    check_result_is_tokens,
    check_batch_size_does_not_matter,
    check_images_are_independent,
    check_subset_of_result_equals_result_of_subset,
    check_needs_no_fit,
    check_transform_computes_nothing,
    check_each_image_is_computed_once,
    check_store_serves_later_sessions,
    check_clone_keeps_the_backbone,
    check_pickle_carries_no_weights,
    check_pickle_gives_the_same,
    check_set_params_takes_effect,
    check_unreadable_image_is_named,
    check_unreadable_image_loses_no_other,
    check_unreadable_image_gives_nan,
    check_bad_images_are_refused,
    check_set_output_is_accepted,
    check_images_are_not_changed,
    check_refused_parameters_change_nothing,
)
