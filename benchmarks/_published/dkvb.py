# SPDX-License-Identifier: BSD-3-Clause
"""Discrete key-value bottleneck: the authors' `BottleneckedEncoder`, decoder and training step."""

import contextlib
import io
from argparse import Namespace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from torch import nn

from _published.clones import load
from _published.tasks import Outcome, Tasks, apart, features, learned, make_tasks, share
from skpool.neighbors import DiscreteKeyValueClassifier, KeyQuantizer

CLONE = ("discrete_key_value_bottleneck", "experiments_discrete_key_value_bottleneck")
BOOKS, KEYS, WIDTH, BATCH = 32, 128, 14, 256


class Published:
    """The published model on rows of features, with keys of other rows, values of 0."""

    def __init__(self, code: Path, broad: np.ndarray, n_classes: int):
        core = load(code / CLONE[0], "key_value_bottleneck.core")
        wrapped = load(code / CLONE[1], "kv_bottleneck_experiments.utils.model")
        encoder = core.BottleneckedEncoder(
            encoder=nn.Identity(),
            num_channels=broad.shape[1],
            num_codebooks=BOOKS,
            key_value_pairs_per_codebook=KEYS,
            dim_keys=WIDTH,
            dim_values=n_classes,
            # The threshold of `get_threshold_ema_dead_code` at its published factor.
            threshold_ema_dead_code=0.1 * BATCH / KEYS,
            encoder_is_channel_last=False,
            return_values_only=False,
        )
        batches = torch.from_numpy(broad).split(BATCH)
        with contextlib.redirect_stderr(io.StringIO()):
            encoder.prepare([(batch,) for batch in batches], epochs=10)
        encoder.reset_cluster_size_counter()
        encoder.disable_update_keys()
        encoder.bottleneck.values = nn.Parameter(torch.zeros_like(encoder.bottleneck.values))
        args = Namespace(
            method="ours", topk=1, ff_dropout=0.0, decoder_model="codebook-voting-logits"
        )
        decoder = wrapped.CodebookVotingLogitsDecoder(n_classes, n_classes, args)
        self.encoder, self.model = encoder, wrapped.ModelWrapper(encoder, decoder, args)

    def learn(
        self, X: np.ndarray, y: np.ndarray, epochs: int, smoothing: float = 0.1, clip: float = 1.0
    ) -> None:
        """Train on one task, as `train.py` does."""
        values = self.encoder.bottleneck.values
        optimizer = torch.optim.SGD([values], lr=0.3)
        loss_of = nn.CrossEntropyLoss(label_smoothing=smoothing)
        self.model.train()
        self.encoder.activate_counts()
        rows, labels = torch.from_numpy(X), torch.from_numpy(y)
        for _ in range(epochs):
            for batch, target in zip(rows.split(BATCH), labels.split(BATCH), strict=True):
                optimizer.zero_grad()
                loss_of(self.model(batch), target).backward()
                nn.utils.clip_grad_norm_([values], clip)
                optimizer.step()

    def scores(self, X: np.ndarray, *, only_used_keys: bool = True) -> np.ndarray:
        """Logits as in evaluation, where keys that no training row had are passed over."""
        self.model.eval()
        (self.encoder.deactivate_counts if only_used_keys else self.encoder.activate_counts)()
        with torch.no_grad():
            parts = [self.model(rows) for rows in torch.from_numpy(X).split(BATCH)]
        return torch.cat(parts).numpy()

    def quantizer(self) -> KeyQuantizer:
        """Ours with their projections and keys."""
        projection = self.encoder.splitter.rand_proj.double().numpy()
        ours = KeyQuantizer(BOOKS, n_keys=KEYS, key_dim=WIDTH)
        ours.projection_ = projection.transpose(1, 0, 2).reshape(projection.shape[1], -1)
        ours.keys_ = self.encoder.bottleneck.keys.double().numpy()
        ours.n_features_in_ = projection.shape[1]
        return ours


def compare(code: Path, seed: int, *, epochs: int) -> Outcome:
    """Two kinds of clothes a task; keys from rows of CIFAR-100 without labels."""
    tasks = make_tasks("clothing_deit_tiny", seed, per_task=2, n_train=100, n_test=36)
    broad = np.random.default_rng(seed).permutation(features("cifar100_deit_tiny")[0])[:5000]
    model = Published(code, broad, tasks.n_classes)
    start = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    ours = learned(DiscreteKeyValueClassifier(FrozenEstimator(model.quantizer())), tasks)
    for part in tasks.parts():
        model.learn(tasks.X[part], tasks.y[part], epochs)
    found, decided = model.scores(tasks.X_test).argmax(1), ours.predict(tasks.X_test)
    facts = {"accuracy of ours with keys of its own": _own_keys(tasks, broad, seed)}
    unmasked = model.scores(tasks.X_test, only_used_keys=False).argmax(1)
    facts["accuracy of theirs if unused keys count too"] = share(unmasked, tasks.y_test)
    facts |= _order(model, start, tasks, epochs, found, ours, decided)
    facts |= _identity(model, start, tasks, clone(ours).set_params(solver="sgd", lr=0.3))
    return Outcome(found, decided, tasks.y_test, facts)


def _own_keys(tasks: Tasks, broad: np.ndarray, seed: int) -> float:
    quantizer = KeyQuantizer(BOOKS, n_keys=KEYS, key_dim=WIDTH, random_state=seed)
    own = DiscreteKeyValueClassifier(quantizer).fit_keys(broad)
    return own.partial_fit(tasks.X, tasks.y).score(tasks.X_test, tasks.y_test)


def _order(
    model: Published,
    start: dict,
    tasks: Tasks,
    epochs: int,
    found: np.ndarray,
    ours: DiscreteKeyValueClassifier,
    decided: np.ndarray,
) -> dict[str, float]:
    """The same keys and rows, the last task first."""
    model.encoder.load_state_dict(start)
    again = clone(ours)
    for part in tasks.parts()[::-1]:
        model.learn(tasks.X[part], tasks.y[part], epochs)
        again.partial_fit(tasks.X[part], tasks.y[part])
    other = model.scores(tasks.X_test).argmax(1)
    return {
        "last task first: predictions changed": 1 - share(other, found),
        "last task first: accuracy, theirs": share(other, tasks.y_test),
        "last task first: predictions changed, ours": 1
        - share(again.predict(tasks.X_test), decided),
    }


def _identity(
    model: Published, start: dict, tasks: Tasks, ours: DiscreteKeyValueClassifier
) -> dict[str, float]:
    """One pass without label smoothing and clipping, all keys: our solver of the same name."""
    model.encoder.load_state_dict(start)
    model.learn(tasks.X, tasks.y, 1, smoothing=0.0, clip=np.inf)
    # All labels first, as theirs has a column for each from the start.
    ours.partial_fit(tasks.X, tasks.y)
    theirs = model.scores(tasks.X_test, only_used_keys=False)
    values = model.encoder.bottleneck.values.detach().numpy().reshape(-1, tasks.n_classes)
    return {
        "identity, one plain pass: distance of values": apart(ours.values_, values),
        "identity, one plain pass: equal predictions": share(
            theirs.argmax(1), ours.predict(tasks.X_test)
        ),
    }


RUNS = {
    "clothing, 1 pass a task": partial(compare, epochs=1),
    "clothing, 100 passes a task": partial(compare, epochs=100),
}
