# SPDX-License-Identifier: BSD-3-Clause
"""VLAD, Fisher vectors and bags of features against the loops over samples that people write.

All encode the same tokens with the same fitted vocabulary, and are compared before they are timed:
VLAD with scikit-learn's `KMeans.predict` and a loop over words, and with products in numpy, sample
by sample; Fisher vectors with scikit-image's `fisher_vector` after scikit-learn's `PCA.transform`;
bags with `KMeans.predict` and `bincount`. Random tokens: the work does not depend on their values.

    python benchmarks/bench_vocabularies.py [--samples 2000] [--rounds 5] [--threads 2]
"""

import argparse
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import numpy as np
import torch
from _measure import header, rounds, spread
from skimage.feature import fisher_vector
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from skpool.pooling import BagOfFeaturesPooling, FisherVectorPooling, VLADPooling

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--samples", type=int, default=2000)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--threads", type=int, default=2)
options = parser.parse_args()

N_TOKENS, N_FEATURES = 197, 384


def kmeans_of(words: np.ndarray) -> KMeans:
    """A fitted KMeans with these words."""
    kmeans = KMeans(len(words), init=words, n_init=1, max_iter=1).fit(words)
    kmeans.cluster_centers_ = words
    return kmeans


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of unit length; zero rows stay zero."""
    norms = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(norms > 0, norms, 1)


def vlad_by_words(kmeans: KMeans, X: np.ndarray) -> np.ndarray:
    """The loop over samples and words."""
    words, vectors = kmeans.cluster_centers_, []
    for tokens in X:
        tokens = unit(tokens)
        labels = kmeans.predict(tokens)
        sums = np.zeros_like(words)
        for k in range(len(words)):
            if (labels == k).any():
                sums[k] = (tokens[labels == k] - words[k]).sum(axis=0)
        vectors.append(unit(unit(sums).ravel()))
    return np.array(vectors)


def vlad_by_products(words: np.ndarray, X: np.ndarray) -> np.ndarray:
    """The loop over samples with two products each."""
    squares, rows, vectors = (words**2).sum(axis=1), np.arange(X.shape[1]), []
    for tokens in X:
        tokens = unit(tokens)
        codes = np.zeros((len(tokens), len(words)), dtype=tokens.dtype)
        codes[rows, (squares - 2 * tokens @ words.T).argmin(axis=1)] = 1
        sums = codes.T @ tokens - codes.sum(axis=0)[:, None] * words
        vectors.append(unit(unit(sums).ravel()))
    return np.array(vectors)


def mixture_of(pooling: FisherVectorPooling) -> GaussianMixture:
    """A fitted GaussianMixture with the parameters of the pooling."""
    mixture = GaussianMixture(len(pooling.weights_), covariance_type="diag")
    mixture.weights_ = pooling.weights_.astype(np.float32)
    mixture.means_ = pooling.means_.astype(np.float32)
    mixture.covariances_ = pooling.covariances_.astype(np.float32)
    mixture.precisions_cholesky_ = 1 / np.sqrt(mixture.covariances_)
    return mixture


def pca_of(pooling: FisherVectorPooling) -> PCA:
    """A fitted PCA with the axes of the pooling."""
    pca = PCA(len(pooling.pca_components_))
    pca.components_ = pooling.pca_components_.astype(np.float32)
    pca.mean_ = pooling.pca_mean_.astype(np.float32)
    pca.explained_variance_ = np.ones(len(pca.components_), dtype=np.float32)
    pca.n_features_in_ = len(pca.mean_)
    return pca


def fisher_by_samples(pca: PCA, mixture: GaussianMixture, X: np.ndarray) -> np.ndarray:
    """scikit-image's function for every sample; its vector also has the weights, in front."""
    return np.array([fisher_vector(pca.transform(x), mixture, improved=True) for x in X])


def bags_by_samples(kmeans: KMeans, X: np.ndarray) -> np.ndarray:
    """scikit-learn's labels, counted."""
    n_words = len(kmeans.cluster_centers_)
    return np.array([np.bincount(kmeans.predict(x), minlength=n_words) / len(x) for x in X])


def largest_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Over the samples; a token half-way between two words may go either way."""
    return float(np.median(np.abs(ours - theirs).max(axis=1)))


def compare(name: str, ours: Callable, loops: dict[str, Callable], X: np.ndarray) -> None:
    """Time all in turn and print the seconds, and the ratio to ours within a round."""
    calls = {"skpool": ours, **loops}
    seconds = rounds({key: partial(call, X) for key, call in calls.items()}, options.rounds)
    for key, values in seconds.items():
        ratio = "" if key == "skpool" else f"   {spread(values / seconds['skpool'])} x skpool"
        print(f"{name:18} {key:30} {spread(values)} s{ratio}", flush=True)


def main() -> None:
    """Fit on a few tokens, check that all agree, and time the encoding."""
    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(options.samples, N_TOKENS, N_FEATURES)).astype(np.float32)
    few = X[: min(40, len(X))]
    print(header(options.threads) + f", scikit-image {version('scikit-image')}")
    print(f"tokens {X.shape} float32; median (smallest to largest) of {options.rounds} rounds")
    with threadpool_limits(options.threads):
        vlad = VLADPooling(max_tokens=20_000).fit(few)
        kmeans = kmeans_of(vlad.vocabulary_)
        loops = {
            "predict, loop over words": partial(vlad_by_words, kmeans),
            "products, loop over samples": partial(vlad_by_products, vlad.vocabulary_),
        }
        for loop in loops.values():
            print(f"difference {largest_difference(vlad.transform(few), loop(few)):.1e}")
        compare("VLAD", vlad.transform, loops, X)

        fisher = FisherVectorPooling(max_tokens=20_000).fit(few)
        loop = partial(fisher_by_samples, pca_of(fisher), mixture_of(fisher))
        n_words = len(fisher.weights_)
        means = slice(n_words, n_words + fisher.means_.size)
        theirs = unit(loop(few)[:, means])
        ours = unit(fisher.transform(few)[:, : fisher.means_.size])
        print(f"difference {largest_difference(ours, theirs):.1e} (means)")
        compare("Fisher vector", fisher.transform, {"scikit-image": loop}, X)

        bags = BagOfFeaturesPooling(max_tokens=20_000).fit(few)
        loop = partial(bags_by_samples, kmeans_of(bags.vocabulary_))
        print(f"difference {largest_difference(bags.transform(few), loop(few)):.1e}")
        compare("bag of features", bags.transform, {"predict, bincount": loop}, X)


if __name__ == "__main__":
    main()
