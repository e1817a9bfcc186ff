# SPDX-License-Identifier: BSD-3-Clause
"""What do poolings that know places cost, beside the loops they replace?

Maps of a transformer in float32, all in one run. The loops are written as one finds them: level by
level with torch's adaptive pools, region by region as R-MAC is usually written, and regional means
with torch's `lp_pool2d`; sample by sample, and all samples at once.

    python benchmarks/bench_spatial.py [--maps 2000] [--side 14] [--features 384] [--threads 2]
"""

import argparse
import math
from collections.abc import Callable

import numpy as np
import torch
from _measure import header, rounds, spread
from torch.nn import functional as F

from skpool.pooling import RegionalGeM, RMACPooling, SpatialPyramidPooling, TokenPooling

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--maps", type=int, default=2000)
parser.add_argument("--side", type=int, default=14)
parser.add_argument("--features", type=int, default=384)
parser.add_argument("--boxes", type=int, default=10, help="boxes per map")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--threads", type=int, default=2)
options = parser.parse_args()

LEVELS = (1, 2, 3, 6)
ADAPTIVE = {"max": F.adaptive_max_pool2d, "mean": F.adaptive_avg_pool2d}


def pyramid(maps: torch.Tensor, reduce: str) -> torch.Tensor:
    """Levels of torch's adaptive pools of maps (n, d, H, W), in the order of ours."""
    pool = ADAPTIVE[reduce]
    return torch.cat([pool(maps, n).permute(0, 2, 3, 1).flatten(1) for n in LEVELS], dim=1)


def by_sample(pool: Callable[[torch.Tensor], torch.Tensor], maps: torch.Tensor) -> torch.Tensor:
    """The same, one map at a time."""
    return torch.cat([pool(one[None]) for one in maps])


def boxes_one_by_one(maps: torch.Tensor, boxes: np.ndarray) -> torch.Tensor:
    """Every box cut out and pooled by itself."""
    whole = boxes.astype(int)
    return torch.cat([pyramid(maps[i : i + 1, :, b:d, a:c], "max") for i, a, b, c, d in whole])


def rmac_by_regions(maps: torch.Tensor, levels: int = 3) -> torch.Tensor:
    """R-MAC of square maps, region by region."""
    side = maps.shape[2]
    total = F.normalize(maps.amax(dim=(2, 3)))
    for level in range(1, levels + 1):
        width = 2 * side // (level + 1)
        step = (side - width) / max(level - 1, 1)
        starts = [math.floor(i * step) for i in range(level)]
        for top in starts:
            for left in starts:
                region = maps[:, :, top : top + width, left : left + width]
                total = total + F.normalize(F.max_pool2d(region, width).flatten(1))
    return F.normalize(total)


def regional_module(maps: torch.Tensor, p: float = 2.5, size: int = 5) -> torch.Tensor:
    """Regional means as a module computes them."""
    padded = F.pad(maps / size ** (2 / p), [size // 2] * 4, mode="reflect")
    return 0.5 * F.lp_pool2d(padded, p, size, stride=1) + 0.5 * maps


def compare(title: str, ours: Callable, others: dict[str, Callable]) -> None:
    """Check that all agree, and print seconds and ratios."""
    expected = torch.as_tensor(ours())
    for name, run in others.items():
        error = float((run() - expected).abs().max() / expected.abs().max())
        if error > 1e-4:
            raise SystemExit(f"{title}: {name} differs by {error:.1e}")
    seconds = rounds({"ours": ours, **others}, options.rounds)
    print(f"\n{title}\n{'ours':28} {spread(seconds['ours'])} s")
    for name in others:
        ratio = spread(seconds[name] / seconds["ours"])
        print(f"{name:28} {spread(seconds[name])} s   to ours {ratio}", flush=True)


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(options.threads)
    n, side, d = options.maps, options.side, options.features
    # Not negative, since the module of regional means is defined there only.
    X = torch.randn(n, side, side, d, generator=torch.Generator().manual_seed(0)).abs_()
    maps = X.permute(0, 3, 1, 2)
    rng = np.random.default_rng(0)
    corners = rng.integers(0, side - 6, size=(n * options.boxes, 2))
    sizes = rng.integers(3, 7, size=(n * options.boxes, 2))
    index = np.repeat(np.arange(n), options.boxes)[:, None]
    boxes = np.hstack([index, corners, corners + sizes])
    print(header(options.threads))
    print(f"{n} maps of {side} x {side} x {d}, float32, {options.rounds} rounds")
    compare(
        "for scale: mean of all cells",
        lambda: TokenPooling().transform(X),
        {"torch": lambda: X.mean(dim=(1, 2))},
    )
    for reduce in ADAPTIVE:
        spp = SpatialPyramidPooling(LEVELS, reduce=reduce)
        compare(
            f"spatial pyramid, levels {LEVELS}, {reduce}",
            lambda spp=spp: spp.transform(X),
            {
                "torch, sample by sample": lambda r=reduce: by_sample(
                    lambda x: pyramid(x, r), maps
                ),
                "torch, all at once": lambda r=reduce: pyramid(maps, r),
            },
        )
    spp = SpatialPyramidPooling(LEVELS)
    compare(
        f"regions, {options.boxes} per map",
        lambda: spp.pool_regions(X, boxes),
        {"one by one": lambda: boxes_one_by_one(maps, boxes)},
    )
    compare(
        "R-MAC, levels=3",
        lambda: RMACPooling().transform(X),
        {
            "by regions, sample by sample": lambda: by_sample(rmac_by_regions, maps),
            "by regions, all at once": lambda: rmac_by_regions(maps),
        },
    )
    compare(
        "RegionalGeM",
        lambda: RegionalGeM().transform(X).permute(0, 3, 1, 2),
        {
            "module, sample by sample": lambda: by_sample(regional_module, maps),
            "module, all at once": lambda: regional_module(maps),
        },
    )


if __name__ == "__main__":
    main()
