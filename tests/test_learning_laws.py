# SPDX-License-Identifier: BSD-3-Clause
"""Laws of learning: what every incremental classifier of the package keeps.

Whatever the order, the sizes of the batches and the machines that saw them, a learner equals one
that learned at once what is left; forgetting, merging and blocks change none of that. The suite of
estimator checks puts one small array through single calls; here are histories of calls, both float
types to the last digits that they can hold, containers, files and processes.
"""

import re
import weakref
from inspect import signature
from itertools import pairwise

import numpy as np
import pytest
import torch
from _instances import name_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joblib.externals.loky import get_reusable_executor
from learners import (
    LEARNERS,
    difference,
    joint,
    learned_in,
    made,
    order_matters,
    scores,
    takes_weights,
)
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline

from skpool.utils.discovery import all_estimators

FREE = [learner for learner in LEARNERS if order_matters(learner) is None]
FLOATS = ("float64", "float32")
DATA = {dtype: made(dtype) for dtype in FLOATS}


def all_with(*methods: str) -> pytest.MarkDecorator:
    """Parametrize with the learners, of those whose order does not matter, that have methods."""
    chosen = [one for one in FREE if all(hasattr(one, method) for method in methods)]
    return pytest.mark.parametrize("learner", chosen, ids=name_of)


def projects(learner: BaseEstimator) -> bool:
    """Whether rows become random features, which are bounded or round far from the origin."""
    model = joint(learner, DATA["float64"].X, DATA["float64"].y)
    return hasattr(model, "projection_")


def assert_alike(model: BaseEstimator, desired: BaseEstimator, dtype: str) -> None:
    data = DATA[dtype]
    np.testing.assert_array_equal(model.classes_, desired.classes_)
    found = difference(scores(model, data.unseen), scores(desired, data.unseen))
    assert found <= data.tol, f"scores differ by {found:.2g} of the largest"


def test_every_incremental_classifier_is_under_the_laws():
    public = {cls for _, cls in all_estimators("classifier") if hasattr(cls, "partial_fit")}
    assert public <= {type(learner) for learner in LEARNERS}
    assert len(FREE) > len(LEARNERS) / 2


# Any order, any batches, any machines.


def shares(n: int, seed: int, cuts: list[int], n_machines: int) -> list[list[np.ndarray]]:
    """Samples in random order, cut into batches that are dealt out to machines."""
    order = np.random.default_rng(seed).permutation(n)
    batches = np.split(order, sorted(cuts))
    batches = [batch for batch in batches if len(batch)]
    dealt = [batches[i::n_machines] for i in range(n_machines)]
    return [share for share in dealt if share]


PLANS = st.tuples(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(2, len(DATA["float64"].y)), max_size=12),
    st.integers(1, 4),
)


@all_with("partial_fit")
@given(plan=PLANS)
@settings(max_examples=12, suppress_health_check=[HealthCheck.differing_executors])
def test_parts_in_any_order_equal_one_fit(learner, plan):
    data = DATA["float64"]
    seed, cuts, _ = plan
    (batches,) = shares(len(data.y), seed, cuts, 1)
    assert_alike(learned_in(learner, data, batches), joint(learner, data.X, data.y), "float64")


@all_with("merge")
@given(plan=PLANS)
@settings(max_examples=12, suppress_health_check=[HealthCheck.differing_executors])
def test_machines_that_are_merged_equal_one_fit(learner, plan):
    data = DATA["float64"]
    machines = [learned_in(learner, data, share) for share in shares(len(data.y), *plan)]
    order = np.random.default_rng(plan[0]).permutation(len(machines))
    first, *others = [machines[i] for i in order]
    for other in others:
        first.merge(other)
    assert_alike(first, joint(learner, data.X, data.y), "float64")


@all_with("merge")
def test_wide_float32_rows_in_parts_on_machines_equal_one_fit(learner):
    data = DATA["float32"]
    desired = joint(learner, data.X, data.y)
    one, two, three = (
        learned_in(learner, data, share)
        for share in shares(len(data.y), 0, [3, 10, 11, 300, 301, 500], 3)
    )
    # As a tree, and in another order than the rows came.
    assert_alike(three.merge(two.merge(one)), desired, "float32")


@all_with("partial_fit")
@pytest.mark.parametrize("dtype", FLOATS)
def test_classes_that_come_one_by_one_equal_one_fit(learner, dtype):
    data = DATA[dtype]
    parts = [np.flatnonzero(data.y == label) for label in (2, 0, 3, 1)]
    model = learned_in(learner, data, parts)
    assert_alike(model, joint(learner, data.X, data.y), dtype)


@pytest.mark.parametrize("learner", [one for one in FREE if takes_weights(one)], ids=name_of)
@given(plan=PLANS)
@settings(max_examples=6, suppress_health_check=[HealthCheck.differing_executors])
def test_weighted_parts_equal_one_weighted_fit(learner, plan):
    data = DATA["float64"]
    model = clone(learner)
    for share in shares(len(data.y), *plan):
        for rows in share:
            model.partial_fit(*data.part(rows), sample_weight=data.weights[rows])
    desired = joint(learner, data.X, data.y, sample_weight=data.weights)
    assert_alike(model, desired, "float64")


# Histories: learn, forget, merge, fail, in any sequence.

# Samples that stay, of all classes but the rare one, which comes and goes.
STAYS = np.flatnonzero(DATA["float64"].y != 3)[:40]
RARE = 3
METHODS = {"learn": "partial_fit", "merge": "merge", "forget": "forget", "forget class": "forget"}
STEPS = st.lists(
    st.tuples(st.sampled_from([*METHODS, "fail", "ask"]), st.integers(0, 2**32 - 1)),
    min_size=3,
    max_size=12,
)


def forget_class(model: BaseEstimator, label: int, X: np.ndarray, y: np.ndarray) -> None:
    """Forget a class by its label, or by its rows where only they tell its share."""
    try:
        model.forget_class(label)
    except (AttributeError, ValueError) as refusal:
        if isinstance(refusal, ValueError):
            assert re.search(r"(forget|downdate)\(X, y\)", str(refusal))
        model.forget(X, y)


def fail(model: BaseEstimator, X: np.ndarray, y: np.ndarray) -> None:
    """A call that is refused."""
    bad = X.copy()
    bad[-1, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        model.partial_fit(bad, y)


def take_step(
    model: BaseEstimator, learner: BaseEstimator, held: np.ndarray, kind: str, seed: int
) -> None:
    """Do one thing to the model, and to the mask of the samples that it holds."""
    data, rng = DATA["float64"], np.random.default_rng(seed)
    adds = kind in ("learn", "merge")
    open_to = ~held if adds else held & ~np.isin(np.arange(len(held)), STAYS)
    if kind == "forget class":
        open_to &= data.y == RARE
    rows = rng.permutation(np.flatnonzero(open_to))
    rows = rows if kind == "forget class" else rows[: rng.integers(1, 20)]
    if kind == "fail":
        fail(model, *data.part(STAYS[:3]))
    elif kind == "ask":
        scores(model, data.unseen)
    elif len(rows) and hasattr(model, METHODS[kind]):
        X, y = data.part(rows)
        if kind == "learn":
            model.partial_fit(X, y)
        elif kind == "merge":
            model.merge(learned_in(learner, data, [rows]))
        elif kind == "forget":
            model.forget(X, y)
        else:
            forget_class(model, RARE, X, y)
        held[rows] = adds


@all_with("forget")
@given(steps=STEPS)
@settings(max_examples=20, suppress_health_check=[HealthCheck.differing_executors])
def test_any_history_equals_one_fit_on_what_is_left(learner, steps):
    data = DATA["float64"]
    model, held = learned_in(learner, data, [STAYS]), np.isin(np.arange(len(data.y)), STAYS)
    for kind, seed in steps:
        take_step(model, learner, held, kind, seed)
    assert_alike(model, joint(learner, *data.part(held)), "float64")


@all_with("forget")
@pytest.mark.parametrize("dtype", FLOATS)
def test_forgotten_samples_leave_one_fit_on_the_others(learner, dtype):
    data = DATA[dtype]
    a, b = np.split(np.random.default_rng(3).permutation(len(data.y)), [len(data.y) * 2 // 3])
    model = joint(learner, data.X, data.y)
    for part in np.array_split(b, 3):
        model.forget(*data.part(part))
    assert_alike(model, joint(learner, *data.part(a)), dtype)


@pytest.mark.parametrize(
    "learner", [one for one in FREE if takes_weights(one) and hasattr(one, "forget")], ids=name_of
)
def test_forgotten_weighted_samples_leave_one_fit_on_the_others(learner):
    data = DATA["float64"]
    a, b, w = np.arange(48), np.arange(48, 72), data.weights
    model = joint(learner, data.X, data.y, sample_weight=w)
    model.forget(*data.part(b), sample_weight=w[b])
    desired = joint(learner, *data.part(a), sample_weight=w[a])
    assert_alike(model, desired, "float64")


@all_with("forget")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("label", [0, RARE])
def test_forgotten_class_leaves_one_fit_without_it(learner, dtype, label):
    data = DATA[dtype]
    model = joint(learner, data.X, data.y)
    forget_class(model, label, *data.part(data.y == label))
    assert_alike(model, joint(learner, *data.part(data.y != label)), dtype)


def needs_rows(model: BaseEstimator) -> bool:
    """Whether a step before the classifier moves, which nothing but rows can place."""
    return isinstance(model, Pipeline) and hasattr(model[0], "partial_fit")


@pytest.mark.parametrize(
    "learner",
    [
        one
        for one in FREE
        if hasattr(one, "forget") and hasattr(one, "forget_class") and not needs_rows(one)
    ],
    ids=name_of,
)
def test_forgetting_everything_leaves_an_empty_learner(learner):
    data = DATA["float64"]
    model = joint(learner, data.X, data.y)
    for part in np.array_split(np.arange(len(data.y)), 4):
        model.forget(*data.part(part))
    with pytest.raises(NotFittedError):
        scores(model, data.unseen)
    model.partial_fit(data.X, data.y)
    assert_alike(model, joint(learner, data.X, data.y), "float64")


@all_with("certify")
def test_certificate_tells_right_from_wrong(learner):
    for dtype, tol in {"float64": 1e-12, "float32": 1e-6}.items():
        data = DATA[dtype]
        a, b = np.split(np.arange(len(data.y)), [len(data.y) // 2])
        model = joint(learner, data.X, data.y).forget(*data.part(b))
        assert model.certify(*data.part(a)) <= tol
        # A sample too few, and one in place of another of its class.
        assert model.certify(*data.part(a[1:])) > 1e-4
        swapped = a.copy()
        swapped[0] = b[data.y[b] == data.y[0]][0]
        assert model.certify(*data.part(swapped)) > 1e-5


def remembers_rows(learner: BaseEstimator) -> bool:
    """Whether the state tells rows apart that have the label and the number of learned ones."""
    model = joint(learner, DATA["float64"].X, DATA["float64"].y)
    moments = getattr(model, "moments_", None)
    scattered = getattr(moments, "scatter", "none") != "none" and not projects(model)
    return hasattr(model, "index_") or scattered


@pytest.mark.parametrize(
    "learner",
    [one for one in FREE if hasattr(one, "forget_class") and remembers_rows(one)],
    ids=name_of,
)
@pytest.mark.parametrize("label", [0, RARE])
@pytest.mark.parametrize("share", ["one", "half", "all"])
def test_forgetting_what_was_never_learned_is_refused(learner, label, share):
    data = DATA["float64"]
    model = joint(learner, data.X, data.y)
    X, y = data.part(data.y == label)
    never = {"one": 1, "half": len(y) // 2, "all": len(y)}[share]
    before = scores(model, data.unseen)
    with pytest.raises(ValueError, match=r"never been|not stored|that were added"):
        model.forget(1000.0 + X[::-1][:never] / 2, y[:never])
    np.testing.assert_array_equal(scores(model, data.unseen), before)


@all_with("fit_moments", "merge")
def test_moments_of_machines_give_one_fit(learner):
    data = DATA["float64"]
    one, two = (learned_in(learner, data, share) for share in shares(72, 5, [20, 50], 2))
    known = {}
    if "n_features" in signature(learner.fit_moments).parameters:
        # The moments are of rows after a projection, whose width says nothing of theirs.
        known["n_features"] = one.n_features_in_
    model = clone(learner).fit_moments(one.moments_ + two.moments_, **known)
    assert_alike(model, joint(learner, data.X, data.y), "float64")


# Blocks, files and containers.


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The rows of both types as memory-mapped files."""
    folder = tmp_path_factory.mktemp("rows")
    mapped = {}
    for dtype, data in DATA.items():
        np.save(folder / f"{dtype}.npy", data.X)
        mapped[dtype] = np.load(folder / f"{dtype}.npy", mmap_mode="r")
    yield mapped


@pytest.fixture(scope="module", autouse=True)
def workers_end():
    """Ends the processes that a test started."""
    yield
    get_reusable_executor().shutdown(wait=True)


def blocks_of(X, y, *weights):
    """Unequal blocks of rows that are read when they are asked for."""
    for start, stop in pairwise([0, 2, 30, 31, len(X)]):
        yield tuple(values[start:stop] for values in (X, y, *weights))


@all_with("fit_blocks")
@pytest.mark.parametrize("dtype", FLOATS)
def test_blocks_of_a_file_equal_one_fit(learner, dtype, files):
    data = DATA[dtype]
    model = clone(learner).fit_blocks(blocks_of(files[dtype], data.y))
    assert_alike(model, joint(learner, data.X, data.y), dtype)


@all_with("fit_blocks")
def test_blocks_learned_in_two_processes_equal_one_fit(learner, files):
    data = DATA["float32"]
    model = clone(learner).fit_blocks(blocks_of(files["float32"], data.y), n_jobs=2)
    assert_alike(model, joint(learner, data.X, data.y), "float32")


@pytest.mark.parametrize(
    "learner", [one for one in FREE if takes_weights(one) and hasattr(one, "merge")], ids=name_of
)
def test_weighted_blocks_equal_one_weighted_fit(learner):
    data = DATA["float64"]
    model = clone(learner).fit_blocks(blocks_of(data.X, data.y, data.weights))
    desired = joint(learner, data.X, data.y, sample_weight=data.weights)
    assert_alike(model, desired, "float64")


class Block(np.ndarray):
    """An array whose end can be watched, which that of a plain one cannot."""


@all_with("fit_blocks")
def test_blocks_are_read_one_after_the_other(learner):
    data, given, most = DATA["float64"], [], 0

    def blocks():
        nonlocal most
        for part in np.array_split(np.arange(len(data.y)), 6):
            X = data.X[part].view(Block)
            given.append(weakref.ref(X))
            most = max(most, sum(one() is not None for one in given))
            yield X, data.y[part]

    clone(learner).fit_blocks(blocks())
    assert 1 <= most <= 3


@all_with("partial_fit")
@pytest.mark.parametrize("dtype", FLOATS)
def test_file_equals_array(learner, dtype, files):
    data = DATA[dtype]
    model = clone(learner)
    for part in np.array_split(np.arange(len(data.y)), 3):
        rows = slice(part[0], part[-1] + 1)
        model.partial_fit(files[dtype][rows], data.y[rows])
    desired = joint(learner, data.X, data.y)
    assert_alike(model, desired, dtype)
    assert_alike(joint(learner, files[dtype], data.y), desired, dtype)


@all_with("partial_fit")
@pytest.mark.parametrize("dtype", FLOATS)
def test_tensors_equal_arrays(learner, dtype):
    data = DATA[dtype]
    X, y = torch.from_numpy(data.X), torch.from_numpy(data.y)
    model = clone(learner).partial_fit(X[:20], y[:20]).partial_fit(X[20:], y[20:])
    desired = joint(learner, data.X, data.y)
    assert_alike(model, desired, dtype)
    given = scores(model, torch.from_numpy(data.unseen))
    assert difference(given, scores(desired, data.unseen)) <= data.tol


# Far from the origin.


def by_angle(learner: BaseEstimator) -> bool:
    """Whether only the directions of rows count, which tell nothing apart so far away."""
    data = DATA["float64"]
    model = joint(learner, data.X, data.y)
    return difference(scores(model, 2 * data.unseen), scores(model, data.unseen)) < 1e-6


# Rows count as they are, not around their mean: what is far away is badly conditioned.
NOT_CENTRED = {"PredictionErrorClassifier"}
FAR = [one for one in FREE if not (by_angle(one) or projects(one))]
FAR = [one for one in FAR if type(one).__name__ not in NOT_CENTRED]


@pytest.mark.parametrize("learner", FAR, ids=name_of)
def test_float32_rows_far_from_the_origin_equal_their_float64_copy(learner):
    data = DATA["float32"]
    X, unseen = ((rows.astype(np.float64) + 1000).astype("f4") for rows in (data.X, data.unseen))
    given = scores(joint(learner, X, data.y), unseen)
    wide = scores(joint(learner, X.astype(np.float64), data.y), unseen.astype(np.float64))
    given, wide = (each - each.mean(axis=1, keepdims=True) for each in (given, wide))
    assert difference(given, wide) <= 1e-5
