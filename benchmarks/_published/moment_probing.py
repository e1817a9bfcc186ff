# SPDX-License-Identifier: BSD-3-Clause
"""Moment probing: `Moment_Probing_ViT` and `Moment_Probing_CNN` with the weights of our head."""

import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from _measure import DATA
from torch import nn

from _published.clones import load
from _published.tasks import Outcome, apart
from skpool.pooling._moment_kernels import pool_cross_covariance
from skpool.probing._moment_modules import MomentHead, MomentSpec, make_moment_head

CLONE = "Moment-Probing"
# Hard-wired in the published classes.
WIDTH, N_HEADS = 512, 4
STEPS, MINIBATCH, RATE = 40, 64, 1e-3
SIDE = 14


@contextmanager
def _small_timm():
    """Two names that the code takes from timm, one of them a decorator that does nothing."""
    layers, tracing = ModuleType("timm.models.layers"), ModuleType("timm.models.fx_features")
    layers.SelectAdaptivePool2d = lambda pool_type: nn.AdaptiveAvgPool2d(1)
    tracing.register_notrace_module = lambda module: module
    names = {"timm": ModuleType("timm"), "timm.models": ModuleType("timm.models")}
    names |= {layers.__name__: layers, tracing.__name__: tracing}
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)
    try:
        yield
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


def published(code: Path) -> ModuleType:
    """The module of the repository."""
    with _small_timm():
        return load(code / CLONE, "models.representation.MP")


def tokens(seed: int, n_train: int = 640, n_test: int = 360) -> tuple[torch.Tensor, ...]:
    """Real tokens, the class token first, and labels: to learn from, and others."""
    parts = [np.load(DATA / "features" / f"clothing_deit_tiny_tokens_{i}.npz") for i in (0, 1)]
    y = np.concatenate([part["y"] for part in parts])
    chosen = np.random.default_rng(seed).permutation(len(y))[: n_train + n_test]
    files, rows = np.divmod(chosen, len(parts[0]["y"]))
    X = np.empty((len(chosen), *parts[0]["q"].shape[1:]), dtype=np.float32)
    for number, part in enumerate(parts):
        here = files == number
        X[here] = part["q"][rows[here]] * part["step"] + part["mean"]
    labels = torch.from_numpy(y[chosen].astype(np.int64))
    values = torch.from_numpy(X)
    return values[:n_train], labels[:n_train], values[n_train:], labels[n_train:]


def ours_of(n_features: int, n_outputs: int, form: str, center: str) -> MomentHead:
    """Our head in the released configuration."""
    convolutional = form == "CNN"
    spec = MomentSpec(
        n_features,
        n_outputs,
        center=center,
        first="mean_norm" if convolutional else "cls",
        head_layout="interleaved" if convolutional else "contiguous",
    )
    head = make_moment_head(spec, torch.Generator().manual_seed(0)).float()
    with torch.no_grad():
        for linear in (head.first, head.second):
            linear.weight.normal_(std=0.1)
    return head


def theirs_of(module: ModuleType, form: str, ours: MomentHead) -> nn.Module:
    """Theirs with our weights."""
    d, n_outputs = ours.spec.n_features, ours.spec.n_outputs
    theirs = getattr(module, f"Moment_Probing_{form}")(in_dim=d, num_classes=n_outputs)
    pairs = [(theirs.proj, ours.projection), (theirs.ln, ours.head_norm)]
    pairs += zip(theirs.downblocks[0][::2], ours.convolutions, strict=True)
    if form == "CNN":
        pairs += [(theirs.cls_head.norm, ours.mean_norm), (theirs.cls_head.fc, ours.first)]
    else:
        pairs += [(theirs.classifier1, ours.first)]
    pairs += [(theirs.classifier2, ours.second)]
    for there, here in pairs:
        there.load_state_dict(
            {name: value.reshape(getattr(there, name).shape) for name, value in _weights(here)}
        )
    return theirs


def _weights(layer: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(name, value.detach().clone()) for name, value in layer.named_parameters()]


def called(model: nn.Module, form: str, values: torch.Tensor) -> torch.Tensor:
    """Logits, of tokens for both; the published convolutional form wants maps."""
    if isinstance(model, MomentHead):
        return model(values)
    if form == "CNN":
        patches = values[:, 1:].transpose(1, 2)
        return model(patches.unflatten(2, (SIDE, SIDE)).contiguous())
    return model(values[:, 0], values)


def trained(model: nn.Module, form: str, values: torch.Tensor, y: torch.Tensor, seed: int):
    """Some steps of AdamW on the same minibatches for everyone."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    rng = np.random.default_rng(seed)
    for _ in range(STEPS):
        index = torch.from_numpy(rng.permutation(len(y))[:MINIBATCH])
        optimizer.zero_grad()
        nn.functional.cross_entropy(called(model, form, values[index]), y[index]).backward()
        optimizer.step()
    return model


@torch.no_grad()
def block_distance(module: ModuleType, values: torch.Tensor) -> float:
    """Of the covariance block of two heads of the tokens as they are, by one scalar per head."""
    width = values.shape[2] // 2
    theirs = module.Covariance()(values[..., :width].contiguous(), values[..., width:].contiguous())
    ours = pool_cross_covariance(
        values, n_heads=2, cross="near", center="scalar", head_norm=None, normalize=None
    )
    return apart(ours.numpy(), theirs.flatten(1).numpy())


def compare(code: Path, seed: int, *, form: str) -> Outcome:
    """The same weights, then the same training."""
    module = published(code)
    values, y, unseen, truth = tokens(seed)
    n_outputs = int(max(y.max(), truth.max())) + 1
    ours = ours_of(values.shape[2], n_outputs, form, "scalar")
    theirs = theirs_of(module, form, ours)
    centred = ours_of(values.shape[2], n_outputs, form, "token")
    centred.load_state_dict(ours.state_dict())
    with torch.no_grad():
        found, expected = called(ours, form, unseen), called(theirs, form, unseen)
        exact = called(ours.double(), form, unseen[:64].double())
        double = called(theirs.double(), form, unseen[:64].double())
        ours, theirs = ours.float(), theirs.float()
    facts = {
        "identity: distance of the covariance block": block_distance(module, unseen[:, 1:]),
        "identity: distance of the logits, float32": apart(found.numpy(), expected.numpy()),
        "identity: distance of the logits, float64": apart(exact.numpy(), double.numpy()),
        "weights, theirs": float(sum(p.numel() for p in theirs.parameters())),
        "weights, ours": float(sum(p.numel() for p in ours.parameters())),
    }
    decisions = {}
    named = {"theirs": theirs, "ours": ours, "ours, tokens centred": centred}
    for name, model in named.items():
        trained(model, form, values, y, seed)
        with torch.no_grad():
            decisions[name] = called(model, form, unseen).argmax(dim=1).numpy()
    centred_right = decisions["ours, tokens centred"] == truth.numpy()
    facts["accuracy, ours, tokens centred"] = float(centred_right.mean())
    return Outcome(decisions["theirs"], decisions["ours"], truth.numpy(), facts)


RUNS = {
    "ViT form, 10 kinds of clothes, 40 steps": partial(compare, form="ViT"),
    "CNN form, 10 kinds of clothes, 40 steps": partial(compare, form="CNN"),
}
