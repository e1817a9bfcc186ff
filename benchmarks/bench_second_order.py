# SPDX-License-Identifier: BSD-3-Clause
"""What do second-order poolings cost, beside a bare product of the tokens and a published root?

Tokens in memory to vectors. The product of the tokens of every sample with themselves is what any
covariance takes at least: by torch.bmm, by np.matmul (a symmetric product per sample) and by
scipy's symmetric product per sample. The peer of the matrix square root is iSQRT: five
Newton-Schulz steps on batches of matrices in float32, which only come near the root.

    python benchmarks/bench_second_order.py [--samples 2000] [--tokens 197] [--features 384]
        [--root-samples 128] [--root-features 384 768]

Everyone goes batch by batch and gives new arrays, as poolings do: peers all entries of the matrix,
ours its weighted upper triangle, of centred tokens. The last line of the products keeps one matrix
in the cache and gives nothing back.
"""

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from _measure import header, rounds, spread
from scipy.linalg.blas import ssyrk

from skpool.pooling import CompactBilinearPooling, CovariancePooling, MomentPooling
from skpool.pooling._second_order_kernels import inverse_vectorize, pool_covariance
from skpool.pooling._sketch_kernels import draw_count_sketch, pool_compact_bilinear, tensor_sketch

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--samples", type=int, default=2000)
parser.add_argument("--tokens", type=int, default=197)
parser.add_argument("--features", type=int, default=384)
parser.add_argument("--root-samples", type=int, default=128)
parser.add_argument("--root-features", type=int, nargs="*", default=[384, 768])
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--threads", type=int, default=2)
options = parser.parse_args()
torch.set_num_threads(options.threads)

BATCH = 256


def make_tokens(n_samples: int, n_features: int) -> torch.Tensor:
    """Tokens whose features vary together, with eigenvalues over two orders of magnitude."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.empty(n_samples, options.tokens, n_features)
    axes = torch.linalg.qr(torch.randn(n_features, n_features, generator=generator))[0]
    mixing = torch.logspace(0, -1, n_features)[:, None] * axes
    for part in tokens.split(BATCH):
        torch.matmul(torch.randn(part.shape, generator=generator), mixing, out=part)
    return tokens.add_(0.1)


def in_batches(kernel: Callable, tokens: torch.Tensor, size: int = BATCH) -> None:
    """Call a kernel as the estimators do; what it gives is let go of."""
    for batch in tokens.split(size):
        kernel(batch)


# Products.


def by_bmm(tokens: torch.Tensor) -> torch.Tensor:
    """General products."""
    return torch.bmm(tokens.transpose(1, 2), tokens)


def by_matmul(tokens: torch.Tensor) -> np.ndarray:
    """Symmetric products, both triangles."""
    x = tokens.numpy()
    return np.matmul(x.transpose(0, 2, 1), x)


def by_ssyrk(tokens: torch.Tensor) -> np.ndarray:
    """Symmetric products, one triangle."""
    products = np.empty((len(tokens), tokens.shape[2], tokens.shape[2]), dtype=np.float32)
    for x, product in zip(tokens.numpy(), products, strict=True):
        ssyrk(1.0, x.T, c=product.T, lower=1, overwrite_c=1)
    return products


def by_ssyrk_in_place(tokens: torch.Tensor) -> None:
    """Symmetric products, each over the one before."""
    product = np.empty((tokens.shape[2], tokens.shape[2]), dtype=np.float32)
    for x in tokens.numpy():
        ssyrk(1.0, x.T, c=product.T, lower=1, overwrite_c=1)


def projected_product(tokens: torch.Tensor, axes: torch.Tensor) -> tuple:
    """The products inside a moment pooling: mean, projection, second moment."""
    z = tokens @ axes
    return tokens.mean(dim=1), torch.bmm(z.transpose(1, 2), z)


# Roots.


def isqrt(tokens: torch.Tensor, n_iter: int = 5) -> torch.Tensor:
    """Covariance and its root by the published iteration, from the formulas of the paper."""
    centred = tokens - tokens.mean(dim=1, keepdim=True)
    C = torch.bmm(centred.transpose(1, 2), centred) / tokens.shape[1]
    trace = C.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None]
    A, three = C / trace, 3 * torch.eye(C.shape[1])
    Z = (three - A) / 2
    Y = torch.bmm(A, Z)
    for _ in range(n_iter - 2):
        T = (three - torch.bmm(Z, Y)) / 2
        Y, Z = torch.bmm(Y, T), torch.bmm(T, Z)
    Y = torch.bmm(Y, three - torch.bmm(Z, Y)) / 2
    rows, columns = torch.triu_indices(*C.shape[1:])
    return (Y * trace.sqrt())[:, rows, columns]


def error_of_root(triangles: torch.Tensor, tokens: torch.Tensor, weight: float) -> float:
    """Relative distance of S S to the covariance, in float64."""
    k = tokens.shape[2]
    rows, columns = torch.triu_indices(k, k)
    weights = torch.where(rows == columns, 1.0, 2**0.5 / weight)
    S = inverse_vectorize((triangles * weights).double())
    centred = tokens.double() - tokens.double().mean(dim=1, keepdim=True)
    C = centred.transpose(1, 2) @ centred / tokens.shape[1]
    return float(((S @ S - C).norm(dim=(1, 2)) / C.norm(dim=(1, 2))).max())


# Sketches.


def sketch_by_tokens(tokens: torch.Tensor) -> torch.Tensor:
    """Compact bilinear pooling as published: a Fourier transform for every token."""
    d = tokens.shape[2]
    return tensor_sketch(tokens, tokens, sketch=draw_count_sketch((d, d), 4096, seed=0)).mean(dim=1)


def table(title: str, seconds: dict[str, np.ndarray], base: str) -> None:
    """Print seconds, and ratios to a row within each round."""
    print(f"\n| {title} | seconds | of {base} |")
    print("| --- | --- | --- |")
    for name, values in seconds.items():
        print(f"| {name} | {spread(values)} | {spread(values / seconds[base])} |", flush=True)


def products() -> None:
    """Covariance and moment pooling beside bare products."""
    tokens = make_tokens(options.samples, options.features)
    moment = MomentPooling().fit(tokens[:200])
    axes = torch.from_numpy(moment.components_).float().T.contiguous()
    covariance = partial(pool_covariance, function=None)
    competitors = {
        "torch.bmm": lambda: in_batches(by_bmm, tokens),
        "np.matmul per sample": lambda: in_batches(by_matmul, tokens),
        "ssyrk per sample": lambda: in_batches(by_ssyrk, tokens),
        "ssyrk in place": lambda: in_batches(by_ssyrk_in_place, tokens),
        "covariance": lambda: in_batches(partial(covariance, l2=False), tokens),
        "covariance, unit length": lambda: in_batches(covariance, tokens),
        "mean, projection to 64, product": lambda: in_batches(
            partial(projected_product, axes=axes), tokens
        ),
        "moments, 64 components": lambda: in_batches(
            partial(moment._moments, mask=None, first=0), tokens
        ),
        "CovariancePooling(function=None).transform": CovariancePooling(function=None).transform,
        "MomentPooling().transform": moment.transform,
    }
    calls = {
        name: partial(run, tokens) if name.endswith("transform") else run
        for name, run in competitors.items()
    }
    seconds = rounds(calls, options.rounds)
    fastest = min(list(seconds)[:3], key=lambda name: np.median(seconds[name]))
    shape = tuple(tokens.shape)
    table(f"products of tokens {shape}", seconds, fastest)


def roots(n_features: int) -> None:
    """Exact roots beside the published approximation."""
    tokens = make_tokens(options.root_samples, n_features)
    exact = partial(pool_covariance, l2=False)
    seconds = rounds(
        {
            "published iSQRT": lambda: in_batches(isqrt, tokens, 32),
            "exact root": lambda: in_batches(exact, tokens),
            "isqrt of ours": lambda: in_batches(partial(exact, function="isqrt"), tokens),
            "CovariancePooling().transform": lambda: CovariancePooling().transform(tokens),
        },
        options.rounds,
    )
    table(f"roots of tokens {tuple(tokens.shape)}", seconds, "exact root")
    few = tokens[:16]
    print(
        f"\nrelative error of S S: published {error_of_root(isqrt(few), few, 1.0):.2g}, "
        f"exact {error_of_root(exact(few), few, 2**0.5):.2g}"
    )


def sketches() -> None:
    """A sketch of the second moment beside a sketch of every token."""
    tokens = make_tokens(options.root_samples, options.features)
    d = options.features
    pool = partial(pool_compact_bilinear, sketch=draw_count_sketch((d, d), 4096, seed=0))
    seconds = rounds(
        {
            "a transform for every token": lambda: in_batches(sketch_by_tokens, tokens, 16),
            "by second moments": lambda: in_batches(pool, tokens),
            "CompactBilinearPooling().transform": lambda: CompactBilinearPooling().transform(
                tokens
            ),
        },
        options.rounds,
    )
    table(f"sketches of tokens {tuple(tokens.shape)}", seconds, "by second moments")


def main() -> None:
    """Measure and print."""
    print(header(options.threads))
    products()
    for n_features in options.root_features:
        roots(n_features)
    sketches()


if __name__ == "__main__":
    main()
