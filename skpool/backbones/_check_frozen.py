# SPDX-License-Identifier: BSD-3-Clause
"""Is this network really a fixed function of one sample?

Everything downstream (features looked up per sample, folds that share them, moments that do not
depend on order) stands on it, and a network left in training mode breaks it without an error.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional

from skpool.backbones._backbone import Backbone
from skpool.exceptions import BackboneError

__all__ = ["check_frozen"]


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference relative to the size of the values."""
    scale = a.abs().max().clamp_min(torch.finfo(a.dtype).tiny)
    return float((a - b).abs().max() / scale)


def check_frozen(
    backbone: Backbone, X: Sequence, *, rtol: float = 1e-4, device: str = "cpu"
) -> dict[str, float]:
    """Check that a backbone's output depends on one sample alone and leaves the network as it was.

    Parameters
    ----------
    backbone : Backbone
    X : sequence of at least 2 PIL images, mode RGB, or texts
    rtol : float, default=1e-4
        Largest difference allowed, relative to the largest feature; in half precision on a GPU
        about 1e-2 is usual.
    device : str, default="cpu"
        Where to run.

    Returns
    -------
    report : dict of str to float
        Largest relative difference between two equal calls (`repeated`), between samples in a
        batch and in the reversed batch (`permuted`), and between alone and in a batch (`alone`).

    Raises
    ------
    BackboneError
        A difference is above `rtol`, a weight or buffer changed, a parameter wants gradients, or
        a submodule is in training mode.

    Examples
    --------
    >>> from PIL import Image
    >>> from skpool.backbones import Backbone, check_frozen
    >>> images = [Image.new("RGB", (32, 32), color) for color in ("red", "white")]
    >>> sorted(check_frozen(Backbone("glyph"), images))
    ['alone', 'permuted', 'repeated']
    """
    if len(X) < 2:
        raise ValueError(f"X holds {len(X)} sample(s); give at least 2 different ones.")
    network = backbone.network(device)
    state = {k: v.clone() for k, v in network.module.state_dict().items()}
    batch = backbone.prepare(X).to(device)

    def run(batch: torch.Tensor) -> torch.Tensor:
        (tokens,), mask = backbone.forward(batch)
        return (tokens if mask is None else tokens.where(mask[..., None], 0.0)).double()

    def run_alone(sample: object) -> torch.Tensor:
        tokens = run(backbone.prepare([sample]).to(device))
        # A text alone has no padding.
        return functional.pad(tokens, (0, 0, 0, together.shape[1] - tokens.shape[1]))

    together = run(batch)
    report = {
        "repeated": _difference(together, run(batch)),
        "permuted": _difference(together, run(batch.flip(0)).flip(0)),
        "alone": _difference(together, torch.cat([run_alone(x) for x in X])),
    }
    faults = [f"{name} differs by {value:.1e}" for name, value in report.items() if value > rtol]
    for name, value in network.module.state_dict().items():
        if not torch.equal(value, state[name]):
            faults.append(f"{name} changed during the passes")
    faults += [
        f"{n} wants gradients" for n, p in network.module.named_parameters() if p.requires_grad
    ]
    faults += [
        f"{n or 'the module'} is in training mode"
        for n, m in network.module.named_modules()
        if m.training
    ]
    if faults:
        raise BackboneError(
            f"{backbone!r} is not frozen: {'; '.join(faults[:5])}; call eval() and remove whatever "
            "keeps state between calls."
        )
    return report
