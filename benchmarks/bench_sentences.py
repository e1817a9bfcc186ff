# SPDX-License-Identifier: BSD-3-Clause
"""Sentence similarity by pooling, layers and whitening: where does whitening help, and where hurt?

all-MiniLM-L6-v2 on the STS benchmark in English: Spearman's correlation of cosines with people's
scores on the 1379 pairs of the test set. Whitening is learned from the sentences of the training
set, which are not those that are judged; the table also gives the transductive habit of the
sentence-embedding papers, which learn it from the test sentences themselves.

    python benchmarks/bench_sentences.py DIRECTORY [--store PATH]

DIRECTORY holds the model in the format of sentence-transformers.
"""

import argparse
import csv
import gzip
import warnings

import numpy as np
from _measure import DATA, header
from scipy.stats import spearmanr
from sklearn.utils import check_random_state

from skpool.extraction import TextFeatureExtractor
from skpool.layers import LayerAggregator
from skpool.pooling import TokenPooling
from skpool.preprocessing import AllButTheTop, CenteredL2Normalizer, Whitening

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("directory")
parser.add_argument("--store", default=None)
parser.add_argument("--bootstraps", type=int, default=1000)
options = parser.parse_args()

STRATEGIES = ("mean", "cls", "max", "mean_sqrt_len", "last", "weighted_mean")
LAYERS = {"last": -1, "first": 0, "third": 3, "mean of first and last": (0, -1)}
STEPS = {
    "as it is": None,
    "centred": CenteredL2Normalizer(),
    "all but the top 4": AllButTheTop(4),
    "half whitened": Whitening(power=0.5),
    "whitened": Whitening(),
    "whitened to 256": Whitening(256),
    "whitened to 128": Whitening(128),
}


def pairs(part: str) -> tuple[list[str], list[str], np.ndarray]:
    """The two sentences of every pair, and people's scores."""
    path = DATA / "text_stsb_en" / f"stsb-en-{part}.csv.gz"
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        first, second, score = zip(*csv.reader(file), strict=True)
    return list(first), list(second), np.array(score, dtype=float)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of every pair."""
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def correlation(a: np.ndarray, b: np.ndarray, score: np.ndarray) -> tuple[float, np.ndarray]:
    """Spearman's correlation, and of bootstrap samples of the pairs, the same for all rows."""
    similarity, rng = cosines(a, b), check_random_state(0)
    draws = rng.randint(len(score), size=(options.bootstraps, len(score)))
    samples = [spearmanr(similarity[d], score[d]).statistic for d in draws]
    return spearmanr(similarity, score).statistic, np.array(samples)


def vectors(sentences: list[str], layers: object, strategy: str) -> np.ndarray:
    """Vectors of the sentences; every layer's tokens are computed once and kept."""
    extractor = TextFeatureExtractor(
        f"st:{options.directory}", layers=layers, pooling=None, store=options.store
    )
    tokens = extractor.transform(sentences)
    if isinstance(layers, tuple):
        tokens = LayerAggregator(layer_pool="mean").fit_transform(tokens)
    return TokenPooling(strategy, scope="all").fit_transform(tokens)


def main() -> None:
    """Measure and print."""
    # The network has directions without variance; whitening leaves them out, as it should here.
    warnings.filterwarnings("ignore", message="The covariance of", category=UserWarning)
    print(header(2), "\n")
    first, second, score = pairs("test")
    learning = sorted({sentence for side in pairs("train")[:2] for sentence in side})
    print(f"{len(score)} pairs; whitening learned from {len(learning)} others; one standard")
    print("error by the bootstrap; the difference is to the mean of the last layer as it is\n")
    print("| layers | pooling | step | Spearman | difference | learned from the test itself |")
    print("| --- | --- | --- | --- | --- | --- |")
    base = None
    for name, layers in LAYERS.items():
        for strategy in STRATEGIES if name == "last" else ("mean",):
            train = vectors(learning, layers, strategy)
            a, b = vectors(first, layers, strategy), vectors(second, layers, strategy)
            both = np.concatenate([a, b])
            for title, step in STEPS.items():
                if title != "as it is" and strategy not in ("mean", "cls"):
                    continue
                mapped, own = [a, b], "-"
                if step is not None:
                    mapped = [step.fit(train).transform(side) for side in (a, b)]
                    themselves = step.fit(both)
                    sides = [themselves.transform(side) for side in (a, b)]
                    own = f"{spearmanr(cosines(*sides), score).statistic:.3f}"
                value, samples = correlation(*mapped, score)
                base = samples if base is None else base
                paired = samples - base
                print(
                    f"| {name} | {strategy} | {title} | {value:.3f} ± {samples.std(ddof=1):.3f} | "
                    f"{paired.mean():+.3f} ± {paired.std(ddof=1):.3f} | {own} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
