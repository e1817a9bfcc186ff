# SPDX-License-Identifier: BSD-3-Clause
"""What do mean, maximum and generalized mean cost, beside one read of the tokens?

Tokens in memory to vectors. One read is their plain sum. The peer of GeM is the module of
retrieval codes: clamp, power, average, root, each over all of the tokens.

    python benchmarks/bench_pooling.py [--samples 2000] [--tokens 197] [--features 384]

The estimators are timed on tokens that were checked before, through the functions that they call
batch by batch, and as a user calls them (`transform`, which reads the tokens once more to refuse
NaN).
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from _measure import header, rounds, spread

from skpool.pooling import POOLINGS, GeMPooling, TokenPooling

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--samples", type=int, default=2000)
parser.add_argument("--tokens", type=int, default=197)
parser.add_argument("--features", type=int, default=384)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--threads", type=int, default=2)
options = parser.parse_args()
torch.set_num_threads(options.threads)


def usual_gem(tokens: torch.Tensor, p: float = 3.0, eps: float = 1e-6) -> torch.Tensor:
    """The usual module, on maps (n, d, L, 1)."""
    maps = tokens.transpose(1, 2)[..., None]
    return torch.nn.functional.avg_pool2d(maps.clamp(min=eps).pow(p), maps.shape[-2:]).pow(1 / p)


def usual_gem_on_tokens(tokens: torch.Tensor, p: float = 3.0, eps: float = 1e-6) -> torch.Tensor:
    """The same for tokens, which average_pool2d would take in an unfavourable order."""
    return tokens.clamp(min=eps).pow(p).mean(dim=1).pow(1 / p)


def in_batches(kernel: Callable, tokens: torch.Tensor, **how: object) -> torch.Tensor:
    """As the estimators call a kernel."""
    return torch.cat([kernel(batch, **how) for batch in tokens.split(256)])


def main() -> None:
    """Measure and print."""
    rng = np.random.default_rng(0)
    shape = (options.samples, options.tokens, options.features)
    X = rng.standard_normal(shape, dtype=np.float32)
    tokens = torch.from_numpy(X)
    seconds = rounds(
        {
            "one read (sum of all)": lambda: tokens.sum(),
            "mean": lambda: in_batches(POOLINGS["mean"], tokens),
            "max": lambda: in_batches(POOLINGS["max"], tokens),
            "GeM, p = 3": lambda: in_batches(POOLINGS["gem"], tokens, p=3.0),
            "GeM, p = 4.6": lambda: in_batches(POOLINGS["gem"], tokens, p=4.6),
            "usual GeM module, p = 3": lambda: usual_gem(tokens),
            "usual GeM on tokens, p = 3": lambda: usual_gem_on_tokens(tokens),
            "usual GeM on tokens, p = 4.6": lambda: usual_gem_on_tokens(tokens, 4.6),
            "TokenPooling('mean').transform": lambda: TokenPooling("mean").transform(X),
            "TokenPooling('max').transform": lambda: TokenPooling("max").transform(X),
            "GeMPooling(3).transform": lambda: GeMPooling(3.0).transform(X),
        },
        options.rounds,
    )
    read = seconds["one read (sum of all)"]
    print(header(options.threads))
    print(f"tokens {shape}, float32, {X.nbytes / 2**20:.0f} MiB; reads are taken within a round\n")
    print("| what | seconds | reads of the tokens |")
    print("| --- | --- | --- |")
    for name, values in seconds.items():
        print(f"| {name} | {spread(values)} | {spread(values / read)} |")
    print()
    for ours, usual in (
        ("GeM, p = 3", "usual GeM module, p = 3"),
        ("GeM, p = 3", "usual GeM on tokens, p = 3"),
        ("GeM, p = 4.6", "usual GeM on tokens, p = 4.6"),
    ):
        print(f"{ours}: {spread(seconds[usual] / seconds[ours])} times as fast as {usual}")


if __name__ == "__main__":
    main()
