# SPDX-License-Identifier: BSD-3-Clause
"""What stays in a buffer, what is drawn from it, and learning with it."""

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Perceptron, SGDClassifier
from sklearn.naive_bayes import GaussianNB

from skpool.continual import ExemplarMemory, ReplayBuffer, ReplayClassifier
from skpool.continual._growing import _grow as grow
from skpool.prototypes import NearestClassMeanClassifier

POLICIES = ("reservoir", "class_balanced", "fifo", "herding")


def numbered(n):
    """Rows that tell their place in the stream."""
    return np.c_[np.arange(n), np.ones(n)]


def made(n=300, n_classes=3, d=5, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    return 3 * rng.normal(size=(n_classes, d))[y] + rng.normal(size=(n, d)), y


def batches(n, size=10):
    return [slice(start, start + size) for start in range(0, n, size)]


def inclusion(policy, y, capacity, runs, parts):
    """How often every row of a stream is held at its end."""
    counts = np.zeros(len(y))
    for seed in range(runs):
        buffer = ReplayBuffer(capacity, policy=policy, random_state=seed)
        for part in parts:
            buffer.update(numbered(len(y))[part], y[part])
        counts[buffer.X_[:, 0].astype(int)] += 1
    return counts


def chi_square(counts, p, runs):
    """Of draws without replacement, each with probability p."""
    return ((counts - runs * p) ** 2 / (runs * p * (1 - p))).sum()


def test_reservoir_holds_every_row_with_the_same_chance():
    runs, y = 600, np.zeros(30, dtype=int)
    counts = inclusion("reservoir", y, 6, runs, [slice(0, 4), slice(4, 5), slice(5, 30)])
    # The 99.9 % point of chi-square with 29 degrees of freedom.
    assert chi_square(counts, 6 / 30, runs) < 58.3


def test_balanced_buffer_holds_every_row_of_a_class_with_the_same_chance():
    runs, y = 600, np.repeat([0, 1], [20, 10])
    counts = inclusion("class_balanced", y, 8, runs, batches(30, 7))
    assert counts.sum() == 8 * runs
    for label, n in ((0, 20), (1, 10)):
        assert abs(counts[y == label].sum() - 4 * runs) < 1e-9
        assert chi_square(counts[y == label], 4 / n, runs) < 45.4


@pytest.mark.parametrize("order", ["blocks", "mixed"])
def test_balanced_labels_differ_by_one_at_most(order):
    y = np.repeat(np.arange(7), [90, 30, 15, 200, 10, 60, 11])
    if order == "mixed":
        y = np.random.default_rng(0).permutation(y)
    buffer = ReplayBuffer(50, policy="class_balanced", random_state=0)
    for part in batches(len(y), 13):
        buffer.update(numbered(len(y))[part], y[part])
    counts = np.bincount(buffer.y_)
    assert len(buffer.y_) == 50
    assert counts.max() - counts.min() <= 1


def test_small_class_stays_whole_in_a_balanced_buffer():
    y = np.repeat([0, 1, 0], [100, 3, 400])
    buffer = ReplayBuffer(20, policy="class_balanced", random_state=0)
    for part in batches(len(y)):
        buffer.update(numbered(len(y))[part], y[part])
    assert sorted(buffer.X_[buffer.y_ == 1, 0]) == [100, 101, 102]


def test_first_in_is_first_out():
    buffer = ReplayBuffer(7, policy="fifo")
    for part in batches(33, 5):
        buffer.update(numbered(33)[part], np.zeros(33)[part])
    assert buffer.X_[:, 0].tolist() == list(range(26, 33))


def test_herding_is_a_memory_of_exemplars():
    X, y = made()
    buffer, memory = ReplayBuffer(12, policy="herding"), ExemplarMemory(12, store_dtype="float32")
    for part in (slice(0, 100), slice(100, 300)):
        buffer.update(X[part], y[part])
        memory.add(X[part], y[part])
    np.testing.assert_array_equal(buffer.X_, memory.X_)
    buffer.remove(buffer.y_ == 1)
    assert set(buffer.update(X[y == 0], y[y == 0]).y_.tolist()) == {0, 2}


@pytest.mark.parametrize("policy", POLICIES)
def test_without_a_capacity_every_row_is_held(policy):
    X, y = made(60)
    buffer = ReplayBuffer(None, policy=policy)
    for part in batches(60):
        buffer.update(X[part], y[part])
    held = buffer.X_[np.lexsort(buffer.X_.T)]
    np.testing.assert_allclose(held, X[np.lexsort(X.T)], rtol=1e-6)
    assert buffer.n_seen_ == 60
    assert buffer.counts_seen_.tolist() == [20, 20, 20]


def test_bonus_lets_rare_classes_in():
    y = np.r_[np.zeros(2000, dtype=int), np.ones(30, dtype=int)]
    shares = []
    for bonus in (0.0, 1.0):
        buffer = ReplayBuffer(20, new_class_bonus=bonus, random_state=0)
        for part in batches(len(y)):
            buffer.update(numbered(len(y))[part], y[part])
        shares.append((buffer.y_ == 1).sum())
    assert shares[0] <= 3
    assert shares[1] == 10


@pytest.mark.parametrize("policy", POLICIES)
def test_longer_labels_and_wider_floats_may_follow(policy):
    buffer = ReplayBuffer(4, policy=policy, random_state=0)
    buffer.update(np.ones((2, 3), dtype="f4"), ["a", "b"])
    buffer.update(np.ones((2, 3)), ["a longer one", "b"])
    assert "a longer one" in buffer.y_.tolist()


def test_plain_draws_have_no_row_twice():
    buffer = ReplayBuffer(20, random_state=0).update(numbered(20), np.zeros(20))
    X, _ = buffer.sample(12)
    assert len(np.unique(X[:, 0])) == 12
    assert len(buffer.sample(50)[0]) == 20
    assert (buffer.sample(12)[0] != X).any()


@pytest.mark.parametrize("n", [0, 2, 7, 40])
def test_balanced_draws_differ_by_one_at_most(n):
    y = np.repeat([0, 1, 2], [30, 3, 10])
    _, drawn = ReplayBuffer(random_state=0).update(numbered(43), y).sample(n, balanced=True)
    counts = np.bincount(drawn, minlength=3)
    assert counts.sum() == n
    assert counts.max() - counts.min() <= 1


def test_removed_rows_leave_room():
    buffer = ReplayBuffer(10, random_state=0).update(numbered(50), np.zeros(50))
    buffer.remove(np.arange(10) < 4)
    assert len(buffer.X_) == 6
    assert len(buffer.update(numbered(3), np.ones(3)).X_) == 9


def test_seed_decides_what_stays_and_what_is_drawn():
    def held(seed):
        buffer = ReplayBuffer(10, random_state=seed)
        for part in batches(60):
            buffer.update(numbered(60)[part], np.zeros(60)[part])
        return buffer.X_[:, 0].tolist() + buffer.sample(5)[0][:, 0].tolist()

    assert held(0) == held(0)
    assert held(0) != held(1)


@pytest.mark.parametrize(
    ("act", "match"),
    [
        (lambda b: b.update([[np.nan, 1]], [0]), "NaN"),
        (lambda b: b.update([[1.0, 1.0]], ["a"]), "text"),
        (lambda b: b.update([[1.0]], [0]), "1 feature"),
        (lambda b: b.sample(-1), "n=-1"),
        (lambda b: b.remove([True]), "mask"),
        (lambda b: b.set_params(policy="fifo", new_class_bonus=0.5).update([[1, 1]], [0]), "bonus"),
    ],
)
def test_refused_call_leaves_the_buffer(act, match):
    buffer = ReplayBuffer(10, random_state=0).update(numbered(30), np.zeros(30))
    before = buffer.X_.copy()
    with pytest.raises(ValueError, match=match):
        act(buffer)
    np.testing.assert_array_equal(buffer.X_, before)
    assert buffer.n_seen_ == 30


def test_buffer_without_rows_says_so():
    with pytest.raises(NotFittedError, match="update"):
        ReplayBuffer().sample(3)


# The classifier.


class Spy(NearestClassMeanClassifier):
    """Remembers the labels of every batch that it is given."""

    def partial_fit(self, X, y, classes=None, sample_weight=None):
        given = [*getattr(self, "given", []), np.asarray(y).tolist()]
        super().partial_fit(X, y, classes, sample_weight)
        self.given = given
        return self


def test_batch_is_learned_with_as_many_rows_of_every_class():
    X, y = made(60)
    order = np.argsort(y, kind="stable")
    model = ReplayClassifier(Spy(), buffer=ReplayBuffer(random_state=0), replay_batch=6, n_passes=2)
    for part in batches(60, 20):
        model.partial_fit(X[order][part], y[order][part])
    first, again, *_, last = model.estimator_.given
    assert len(first) == len(again) == 20
    assert last[:20] == [2] * 20
    assert np.bincount(last[20:]).tolist() == [3, 3]


def test_without_passes_only_the_buffer_learns():
    X, y = made(60)
    model = ReplayClassifier(n_passes=0, buffer=ReplayBuffer(None)).partial_fit(X, y)
    np.testing.assert_array_equal(model.buffer_.X_, X)
    with pytest.raises(NotFittedError):
        model.predict(X)


def test_without_replay_it_is_the_estimator():
    X, y = made()
    model = ReplayClassifier(NearestClassMeanClassifier(), replay_batch=0)
    for part in batches(300):
        model.partial_fit(X[part], y[part])
    ncm = NearestClassMeanClassifier().fit(X, y)
    np.testing.assert_allclose(model.class_scores(X), ncm.class_scores(X), atol=1e-12)
    np.testing.assert_allclose(model.predict_proba(X), ncm.predict_proba(X), atol=1e-12)


@pytest.mark.parametrize(
    "estimator",
    [
        SGDClassifier(loss="log_loss", random_state=0),
        Perceptron(random_state=0),
    ],
    ids=lambda e: type(e).__name__,
)
def test_memory_keeps_what_a_stream_of_classes_would_undo(estimator):
    X, y = made(600, 5, 3)
    order = np.argsort(y, kind="stable")
    scores = {}
    for replay in (0, 20):
        model = ReplayClassifier(
            estimator, buffer=ReplayBuffer(100, random_state=0), replay_batch=replay
        )
        for part in batches(600, 20):
            model.partial_fit(X[order][part], y[order][part])
        scores[replay] = model.score(X, y)
    assert model.classes_.tolist() == list(range(5))
    assert scores[20] > scores[0] + 0.2


@pytest.mark.parametrize("n_old", [2, 3])
def test_new_class_changes_no_decision_among_the_old_ones(n_old):
    X, y = made(300, n_old)
    names = np.array(["m", "b", "x"])[y]
    sgd = SGDClassifier(loss="log_loss", random_state=0, eta0=0.0001, learning_rate="constant")
    model = ReplayClassifier(sgd, buffer=ReplayBuffer(5, random_state=0), replay_batch=0)
    model.partial_fit(X, names)
    old = model.class_scores(X)
    # A step that is too small to matter.
    model.estimator_.set_params(eta0=1e-12)
    model.partial_fit(X[:1], ["c"])
    new = model.class_scores(X)[:, model.classes_ != "c"]
    gaps = [scores - scores[:, :1] for scores in (old, new)]
    np.testing.assert_allclose(gaps[1], (2 if n_old == 2 else 1) * gaps[0], atol=1e-8)
    assert model.estimator_.coef_.shape == (n_old + 1, X.shape[1])
    np.testing.assert_allclose(model.estimator_.coef_[1], 0, atol=1e-8)


@pytest.mark.parametrize("n_old", [2, 3])
@pytest.mark.parametrize("average", [False, True])
def test_grown_classifier_scores_old_classes_as_before_and_learns_on(n_old, average):
    X, y = made(300, n_old)
    sgd = SGDClassifier(loss="log_loss", average=average, random_state=0)
    sgd.partial_fit(X, y, classes=np.arange(n_old))
    before = sgd.decision_function(X)
    before = np.stack([-before, before], axis=1) if n_old == 2 else before
    grow(sgd, np.arange(-1, n_old))
    after = sgd.decision_function(X)
    np.testing.assert_allclose(after[:, 1:], before, atol=1e-9)
    assert not after[:, 0].any()
    # From where it was: a few rows more move what was learned of all by little.
    sgd.partial_fit(X[:6], np.r_[y[:5], -1])
    assert (sgd.predict(X) == y).mean() > 0.7


def test_stream_may_begin_with_one_class():
    X, y = made(200, 2)
    order = np.argsort(y, kind="stable")
    model = ReplayClassifier(SGDClassifier(loss="log_loss", random_state=0))
    model.partial_fit(X[order][:100], y[order][:100])
    assert model.predict(X).tolist() == [0] * 200
    assert model.predict_proba(X).tolist() == [[1.0]] * 200
    assert model.partial_fit(X[order][100:], y[order][100:]).score(X, y) > 0.9


def test_estimator_that_cannot_grow_says_so_and_can_be_told():
    X, y = made()
    model = ReplayClassifier(GaussianNB())
    model.partial_fit(X[y < 2], y[y < 2])
    with pytest.raises(ValueError, match="GaussianNB cannot take"):
        model.partial_fit(X, y)
    assert model.classes_.tolist() == [0, 1]
    told = ReplayClassifier(GaussianNB(), buffer=ReplayBuffer(random_state=0))
    told.partial_fit(X[y < 2], y[y < 2], classes=[0, 1, 2])
    assert set(told.predict(X).tolist()) == {0, 1}
    assert told.partial_fit(X[y == 2], y[y == 2]).score(X, y) > 0.9


def test_refused_batch_leaves_estimator_and_buffer():
    X, y = made()
    model = ReplayClassifier(SGDClassifier(random_state=0), buffer=ReplayBuffer(random_state=0))
    model.fit(X, y)
    before = model.estimator_.coef_.copy(), model.buffer_.X_
    with pytest.raises(ValueError, match="NaN"):
        model.partial_fit(np.full((1, 5), np.nan), [0])
    np.testing.assert_array_equal(model.estimator_.coef_, before[0])
    assert model.buffer_.X_ is before[1]
