# SPDX-License-Identifier: BSD-3-Clause
"""What all heads share, shown on the smallest one: a linear layer."""

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from lazy_tokens import LazySource
from linear_heads import D, LinearHead, MeanHead, N, classes
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import check_estimator as sklearn_check
from torch.nn import functional as F

from skpool.probing._base import grown_linear
from skpool.stores import TokenArray
from skpool.utils.estimator_checks import check_estimator

NAMES = np.array(["a", "b", "c"])


def same(one, other) -> None:
    """The same weights, to the bit."""
    assert one.weights_.keys() == other.weights_.keys()
    for name, value in one.weights_.items():
        np.testing.assert_array_equal(other.weights_[name], value)


def refused(call, head, *args, match, **options) -> None:
    """A call is refused, and leaves every attribute the object that it was."""
    before = dict(vars(head))
    with pytest.raises((ValueError, KeyboardInterrupt), match=match):
        call(*args, **options)
    assert vars(head).keys() == before.keys()
    assert all(vars(head)[name] is value for name, value in before.items())


# Against others.


def test_head_gives_the_scores_of_logistic_regression():
    X, y = classes(300)
    head = LinearHead(optimizer="lbfgs", weight_decay=0.01).fit(X, NAMES[y])
    reference = LogisticRegression(C=1 / 3, tol=1e-10).fit(X, NAMES[y])
    np.testing.assert_allclose(head.predict_proba(X), reference.predict_proba(X), atol=1e-5)
    np.testing.assert_array_equal(head.predict(X), reference.predict(X))
    assert head.classes_.tolist() == ["a", "b", "c"] and head.n_features_in_ == D


@pytest.mark.parametrize("class_weight", ["balanced", {"a": 3.0, "c": 0.5}])
@pytest.mark.parametrize("weighted", [False, True])
def test_class_weights_are_those_of_scikit_learn(class_weight, weighted):
    X, y = classes(300)
    kept = np.flatnonzero((y != 1) | (np.arange(300) % 4 == 0))
    X, y = X[kept], NAMES[y[kept]]
    weight = (
        np.random.default_rng(0).uniform(0.2, 2.0, size=len(y)) if weighted else np.ones(len(y))
    )
    head = LinearHead(optimizer="lbfgs", weight_decay=0.01, class_weight=class_weight)
    head.fit(X, y, sample_weight=weight)
    if class_weight == "balanced":
        sums = {label: weight[y == label].sum() for label in "abc"}
        factors = np.array([weight.sum() / (3 * sums[label]) for label in y])
    else:
        factors = np.array([class_weight.get(label, 1.0) for label in y])
    reference = LogisticRegression(C=1 / (0.01 * (weight * factors).sum()), tol=1e-10)
    reference.fit(X, y, sample_weight=weight * factors)
    np.testing.assert_allclose(head.predict_proba(X), reference.predict_proba(X), atol=1e-5)


def test_effective_class_weights_follow_their_formula():
    X, y = classes(300)
    kept = np.flatnonzero((y != 1) | (np.arange(300) % 4 == 0))
    X, y = X[kept], y[kept]
    effective = 1 / (1 - 0.9999 ** np.bincount(y))
    given = dict(enumerate(effective / effective.mean()))
    one, other = (LinearHead(class_weight=w).fit(X, y) for w in ("effective", given))
    np.testing.assert_allclose(one.class_scores(X), other.class_scores(X), rtol=1e-6)


def test_loss_sees_how_frequent_the_classes_are():
    X, y = classes(300)
    keep = np.flatnonzero((y != 2) | (np.arange(300) % 5 == 0))
    weight = np.random.default_rng(0).uniform(0.2, 2.0, size=len(keep))
    settings = {"optimizer": "lbfgs", "weight_decay": 0.01}
    fit = {"X": X[keep], "y": y[keep], "sample_weight": weight}
    plain, adjusted = (
        LinearHead(loss=loss, **settings).fit(**fit) for loss in ("cross_entropy", "logit_adjusted")
    )
    # The intercept is free, so that it takes up the log priors and nothing else changes.
    prior = np.log(np.bincount(y[keep], weight))
    difference = plain.class_scores(X) - adjusted.class_scores(X) - prior
    np.testing.assert_allclose(difference - difference[:, :1], 0.0, atol=1e-5)


# scikit-learn's ways.


# Steps of gradient descent depend on their order.
IN_ORDER = (
    "check_parts_equal_whole",
    "check_first_part_may_be_one_row",
    "check_using_does_not_change_what_is_learned",
    "check_partial_fit_continues_fit",
    "check_new_classes_in_any_call",
    "check_announced_class_is_listed_and_never_predicted",
    "check_announcing_is_not_needed",
    "check_parts_may_differ_in_container",
)


def scikit_learn(head, **options):
    return sklearn_check(head, on_skip=None, **options)


@pytest.mark.parametrize("suite", [scikit_learn, check_estimator])
def test_head_passes_the_suite(suite):
    # Minibatches of rows and of their copies differ; all rows at once do not.
    head = LinearHead(epochs=30, batch_size=10_000, lr=0.1)
    expected = dict.fromkeys(IN_ORDER, "earlier samples are not seen again")
    results = suite(head, on_fail=None, expected_failed_checks=expected)
    failed = [(r["check_name"], r["exception"]) for r in results if r["status"] == "failed"]
    assert not failed and Counter(r["status"] for r in results)["passed"] > 20


@pytest.mark.parametrize("again", [lambda head: pickle.loads(pickle.dumps(head)), None])
def test_head_comes_back_from_a_file(again):
    X, y = classes()
    head = LinearHead().fit(X, NAMES[y]).partial_fit(X, NAMES[y])
    if again is None:
        skops = pytest.importorskip("skops.io")

        def again(head):
            data = skops.dumps(head)
            return skops.loads(data, trusted=skops.get_untrusted_types(data=data))

    copy = again(head)
    np.testing.assert_array_equal(copy.class_scores(X), head.class_scores(X))
    # It learns on as the first one does.
    same(head.partial_fit(X, NAMES[y]), copy.partial_fit(X, NAMES[y]))


def test_only_arrays_are_stored():
    X, y = classes()
    head = LinearHead().fit(X, y)
    assert all(type(value) is np.ndarray for value in head.weights_.values())
    assert b"torch" not in pickle.dumps(head)


def test_clone_is_not_fitted_and_fits_alike():
    X, y = classes()
    head = LinearHead().fit(X, y)
    copy = clone(head)
    assert not hasattr(copy, "weights_")
    same(head, copy.fit(X, y))


def test_two_processes_give_the_scores_of_one():
    X, y = classes()
    one, two = (cross_val_score(LinearHead(epochs=3), X, y, cv=2, n_jobs=n) for n in (None, 2))
    np.testing.assert_array_equal(one, two)


def test_module_is_a_copy_in_eval_mode():
    X, y = classes()
    head = LinearHead().fit(X, y)
    before = head.class_scores(X)
    module = head.module_
    assert not module.training
    np.testing.assert_allclose(module(torch.from_numpy(X), None).detach(), before, rtol=1e-12)
    with torch.no_grad():
        module.head.weight.zero_()
    np.testing.assert_array_equal(head.class_scores(X), before)


def test_global_generator_is_left_alone_and_does_not_matter():
    X, y = classes()
    before = torch.get_rng_state()
    head = LinearHead().fit(X, y)
    head.predict(X)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        same(head, LinearHead().fit(X, y))


def test_random_state_decides_the_bits():
    X, y = classes()
    same(LinearHead(random_state=4).fit(X, y), LinearHead(random_state=4).fit(X, y))
    one, other = (LinearHead(random_state=seed).fit(X, y) for seed in (4, 5))
    assert (one.weights_["head.weight"] != other.weights_["head.weight"]).any()


# Data.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_are_of_the_float_type_of_the_rows(dtype):
    X, y = classes()
    head = LinearHead().fit(X.astype(dtype), y)
    assert head.class_scores(X.astype(dtype)).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_the_bits_of_the_widened_rows(dtype):
    X, y = classes()
    half = torch.from_numpy(X).to(dtype)
    one, other = LinearHead().fit(half, y), LinearHead().fit(half.float().numpy(), y)
    same(one, other)
    np.testing.assert_array_equal(one.class_scores(half), other.class_scores(half.float().numpy()))


def test_one_class_is_predicted():
    X, _ = classes()
    head = LinearHead().fit(X, np.full(N, "only"))
    assert set(head.predict(X)) == {"only"}
    np.testing.assert_array_equal(head.predict_proba(X), np.ones((N, 1)))


def test_rows_of_weight_0_count_as_absent():
    X, y = classes()
    X[::5], y = np.array(1e6), NAMES[y]
    y[5] = "z"
    weight = np.where(np.arange(N) % 5, 1.5, 0.0)
    head = LinearHead().fit(X, y, sample_weight=weight)
    kept = weight > 0
    same(head, LinearHead().fit(X[kept], y[kept], sample_weight=weight[kept]))
    assert head.classes_.tolist() == ["a", "b", "c"]


def test_lazy_tokens_give_the_bits_of_their_array():
    X, y = classes()
    tokens = X[:, None] + np.random.default_rng(1).normal(size=(N, 5, D))
    mask = np.arange(5) < np.random.default_rng(2).integers(1, 6, size=N)[:, None]
    array = TokenArray.from_array(tokens, mask=mask)
    lazy = TokenArray(LazySource(tokens, mask))
    one, other = MeanHead().fit(array, y), MeanHead().fit(lazy, y)
    same(one, other)
    np.testing.assert_allclose(one.class_scores(array), other.class_scores(lazy), rtol=1e-12)


def test_predicting_reads_lazy_tokens_once():
    X, y = classes()
    source = LazySource(np.repeat(X[:, None], 3, axis=1))
    MeanHead().fit(X, y).predict(TokenArray(source))
    assert source.n_read == N


def test_samples_without_a_token_are_learned_without_and_not_predicted():
    X, y = classes()
    mask = np.ones((N, 2), dtype=bool)
    mask[4] = False
    tokens = np.stack([X, X], axis=1)
    head = MeanHead().fit(TokenArray.from_array(tokens, mask=mask), y)
    same(head, MeanHead().fit(np.delete(tokens, 4, axis=0), np.delete(y, 4)))
    with pytest.raises(ValueError, match="without a real token"):
        head.predict(TokenArray.from_array(tokens, mask=mask))


# Callbacks, interruptions, checkpoints.


class Recording:
    """A callback of scikit-learn that remembers what it is told."""

    def __init__(self, stop_after=None, interrupt_after=None):
        self.stop_after, self.interrupt_after = stop_after, interrupt_after
        self.n_epochs, self.scores, self.n_setups, self.n_teardowns = 0, [], 0, 0
        self.X = None

    def setup(self, estimator, context):
        self.n_setups += 1

    def teardown(self, estimator, context):
        self.n_teardowns += 1

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        if context.task_name != "epoch":
            return False
        self.n_epochs += 1
        if self.X is not None:
            self.scores.append(fitted_estimator.class_scores(self.X))
        if self.n_epochs == self.interrupt_after:
            raise KeyboardInterrupt("asked for")
        return self.n_epochs == self.stop_after


def test_callbacks_are_told_of_every_epoch():
    X, y = classes()
    told = Recording()
    told.X = X
    head = LinearHead(epochs=5, ema=0.8).set_callbacks(told).fit(X, y)
    assert told.n_epochs == 5 and told.n_setups == told.n_teardowns == 1
    # The estimator that a callback sees after the last epoch is the one that is fitted.
    np.testing.assert_array_equal(told.scores[-1], head.class_scores(X))
    assert (told.scores[0] != told.scores[-1]).any()


def test_callback_can_end_the_training():
    X, y = classes()
    head = LinearHead(epochs=5).set_callbacks(Recording(stop_after=2)).fit(X, y)
    assert head.n_iter_ == len(head.history_) == 2


def test_interrupted_call_changes_nothing_and_takes_leave_of_callbacks():
    X, y = classes()
    head = LinearHead(epochs=5).fit(X, y)
    told = Recording(interrupt_after=2)
    head.set_callbacks(told)
    for call in (head.fit, head.partial_fit):
        told.n_epochs = 1
        refused(call, head, X[:, ::-1].copy(), y, match="asked for")
    assert told.n_setups == told.n_teardowns == 2


def test_interrupted_fit_goes_on_from_its_checkpoint(tmp_path):
    X, y = classes()
    head = LinearHead(epochs=6, ema=0.9, checkpoint=str(tmp_path))
    head.set_callbacks(Recording(interrupt_after=3))
    with pytest.raises(KeyboardInterrupt):
        head.fit(X, y)
    told = Recording()
    head.set_callbacks(told).fit(X, y)
    same(head, LinearHead(epochs=6, ema=0.9).fit(X, y))
    assert told.n_epochs == 3 and head.n_iter_ == 6


# Learning on.


def loop(weight, bias, X, y, optimizer_state=None, *, seeds):
    """Full-batch AdamW at a constant rate, one step for every call."""
    weight, bias = (torch.tensor(v, requires_grad=True) for v in (weight, bias))
    optimizer = torch.optim.AdamW([weight, bias], lr=0.05, weight_decay=0.0)
    for _ in range(seeds):
        optimizer.zero_grad()
        F.cross_entropy(torch.from_numpy(X) @ weight.T + bias, torch.from_numpy(y)).backward()
        optimizer.step()
    return weight.detach().numpy(), bias.detach().numpy()


def test_partial_fit_takes_the_steps_of_one_optimizer():
    X, y = classes()
    head = LinearHead(batch_size=N, epochs_partial=2).fit(X, y)
    fresh = clone(head).set_params(epochs=0).fit(X, y)
    first = [fresh.weights_["head.weight"].astype(np.float64), fresh.weights_["head.bias"]]
    learned = clone(fresh)
    for _ in range(3):
        learned.partial_fit(X, y)
    weight, bias = loop(first[0], first[1].astype(np.float64), X, y, seeds=6)
    np.testing.assert_allclose(learned.weights_["head.weight"], weight, rtol=1e-10)
    np.testing.assert_allclose(learned.weights_["head.bias"], bias, rtol=1e-10)
    assert learned.n_iter_ == 6 and learned.history_.shape == (6, 2)


def test_partial_fit_is_reproducible_and_changes_its_order():
    X, y = classes()
    one, other = (LinearHead(batch_size=8) for _ in range(2))
    for _ in range(3):
        same(one.partial_fit(X, y), other.partial_fit(X, y))
    # The order of the second call is not that of the first: its steps from equal weights differ.
    first, second = LinearHead(batch_size=8).partial_fit(X, y), one
    second.weights_, second._optimizer_state = first.weights_, first._optimizer_state
    first._n_calls = 0
    assert (
        first.partial_fit(X, y).weights_["head.weight"]
        != second.partial_fit(X, y).weights_["head.weight"]
    ).any()


def test_classes_may_arrive_in_any_call():
    X, y = classes(90)
    y = np.array([5, -3, 11])[y]
    head = LinearHead(epochs_partial=30, batch_size=16)
    for known in ([5], [-3, 5], [-3, 5, 11]):
        seen = np.isin(y, known)
        head.partial_fit(X[seen], y[seen])
        assert head.classes_.tolist() == known
    reference = LogisticRegression().fit(X, y)
    assert head.score(X, y) > reference.score(X, y) - 0.05
    # Columns of the scores are in the order of `classes_`, rows of the weights as they arrived.
    scores = X @ head.weights_["head.weight"].T + head.weights_["head.bias"]
    np.testing.assert_allclose(head.class_scores(X), scores[:, [1, 0, 2]], rtol=1e-9)


def test_new_outputs_start_with_zeros_and_the_least_bias():
    layer = torch.nn.Linear(3, 2, dtype=torch.float64)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([0.5, -1.5]))
    grown = grown_linear(layer, 2)
    np.testing.assert_array_equal(grown.weight[:2].detach(), layer.weight.detach())
    assert not grown.weight[2:].any()
    np.testing.assert_array_equal(grown.bias.detach(), [0.5, -1.5, -1.5, -1.5])
    assert grown_linear(torch.nn.Linear(3, 2, bias=False), 1).bias is None


def test_state_of_the_optimizer_grows_with_the_classes():
    X, y = classes()
    head = LinearHead().partial_fit(X[y < 2], y[y < 2])
    before = head._optimizer_state["module.head.weight|exp_avg"]
    head.set_params(lr=1e-12).partial_fit(X[y < 2][:1], [2])
    after = head._optimizer_state["module.head.weight|exp_avg"]
    assert before.shape == (2, D) and after.shape == (3, D)
    # One step of Adam keeps nine tenths of what it remembers, and adds a tenth of the gradient.
    gradient = (after[:2] - 0.9 * before) / 0.1
    assert np.abs(gradient).max() < np.abs(X[y < 2][0]).max()


def test_announced_class_is_listed_and_never_predicted():
    X, y = classes()
    head = LinearHead().partial_fit(X, y, classes=[0, 1, 2, 9, -4])
    assert head.classes_.tolist() == [-4, 0, 1, 2, 9]
    scores = head.class_scores(X)
    assert np.isneginf(scores[:, [0, 4]]).all() and np.isfinite(scores[:, 1:4]).all()
    head.partial_fit(X[:5], np.full(5, 9))
    assert np.isfinite(head.class_scores(X)[:, 4]).all()


def test_longer_text_labels_may_follow():
    X, _ = classes()
    head = LinearHead().partial_fit(X[:3], ["a", "b", "a"])
    head.partial_fit(X[3:5], ["a much longer label", "b"])
    assert head.classes_.tolist() == ["a", "a much longer label", "b"]


def test_partial_fit_is_absent_with_lbfgs():
    assert hasattr(LinearHead(), "partial_fit")
    assert not hasattr(LinearHead(optimizer="lbfgs"), "partial_fit")


def test_partial_fit_writes_no_checkpoint(tmp_path):
    X, y = classes()
    LinearHead(checkpoint=str(tmp_path)).partial_fit(X, y)
    assert not list(tmp_path.iterdir())


# What is refused.


def test_bad_calls_change_nothing():
    X, y = classes()
    head = LinearHead(class_weight={0: 2.0}).fit(X, y)
    refused(head.fit, head, X, y + 10, match="class_weight names 0")
    for call in (head.fit, head.partial_fit):
        refused(call, head, np.where(X > 2, np.nan, X), y, match="NaN")
        refused(call, head, X, y[:-1], match="inconsistent numbers of samples")
        refused(call, head, X, y, sample_weight=np.zeros(N), match="(?i)sample.weight")
        refused(call, head, X, y, sample_weight=-np.ones(N), match="sample_weight")
    refused(head.partial_fit, head, X, NAMES[y], match="text or numbers")
    refused(head.partial_fit, head, X[:, :2], y, match="2 features")
    refused(head.partial_fit, head, X, y, classes=["a"], match="text or numbers")
