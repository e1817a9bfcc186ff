# SPDX-License-Identifier: BSD-3-Clause
"""DiscreteKeyValueClassifier against the published formula, naive Bayes counts, and refits."""

import pickle

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator

from skpool.neighbors import DiscreteKeyValueClassifier, KeyQuantizer


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:400], y[:400], X[400:500], y[400:500]


@pytest.fixture(scope="module")
def keys(digits):
    return KeyQuantizer(12, n_keys=10, key_dim=3, random_state=0).fit(digits[0])


def memory(keys, **options):
    return DiscreteKeyValueClassifier(FrozenEstimator(keys), **options)


def naive_counts(keys, X, y, n_classes):
    """Counts of every class under every key, by a loop."""
    counts = np.zeros((*keys.keys_.shape[:2], n_classes))
    for codes, label in zip(keys.transform(X), y, strict=True):
        for h, code in enumerate(codes):
            counts[h, code, label] += 1
    return counts


def fetched(values, codes):
    return np.stack([values[np.arange(codes.shape[1]), row].mean(axis=0) for row in codes])


class DiscreteKeyValueBottleneck(torch.nn.Module):
    """The published model with its parameter-free decoder (Träuble et al., 2023).

    Codebook c projects the frozen features z by a fixed random matrix R_c, snaps R_c z to the
    nearest of its keys, and fetches the value of that key; the fetched values are averaged over
    the codebooks, and their softmax is the prediction. Only values have gradients.
    """

    def __init__(self, projections, keys, n_classes):
        super().__init__()
        self.projections, self.keys = projections, keys
        n_codebooks, n_keys, _ = keys.shape
        self.values = torch.nn.Parameter(torch.zeros(n_codebooks, n_keys, n_classes).double())

    def forward(self, z):
        heads = torch.einsum("nd,dhk->hnk", z, self.projections)
        nearest = torch.cdist(heads, self.keys).argmin(dim=2)
        picked = [value[code] for value, code in zip(self.values, nearest, strict=True)]
        return torch.stack(picked).mean(dim=0)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradient_steps_equal_the_published_model(digits, keys, temperature):
    X, y, Q, _ = digits
    projections = torch.from_numpy(keys.projection_).reshape(X.shape[1], 12, 3)
    model = DiscreteKeyValueBottleneck(projections, torch.from_numpy(keys.keys_), 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=20.0)
    for start in range(0, 400, 64):
        z, target = torch.from_numpy(X[start : start + 64]), torch.from_numpy(y[start : start + 64])
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(temperature * model(z), target).backward()
        optimizer.step()
    expected = torch.softmax(temperature * model(torch.from_numpy(Q)), dim=1).detach().numpy()
    ours = memory(keys, solver="sgd", lr=20.0, batch_size=64, temperature=temperature).fit(X, y)
    np.testing.assert_allclose(ours.predict_proba(Q), expected, atol=1e-10)
    assert np.ptp(expected) > 0.01


def test_one_pass_of_gradient_steps_lowers_the_loss(digits, keys):
    X, y, _, _ = digits
    proba = memory(keys, solver="sgd", lr=30.0, batch_size=50).fit(X, y).predict_proba(X)
    assert -np.log(proba[np.arange(400), y]).mean() < np.log(10) - 0.05


def test_gradient_steps_move_no_value_of_other_keys(digits, keys):
    X, y, _, _ = digits
    model = memory(keys, solver="sgd").fit(X[:300], y[:300])
    before = model.values_.copy()
    model.partial_fit(X[300:310], y[300:310])
    codes = keys.transform(X[300:310])
    touched = np.unique(codes + 10 * np.arange(12))
    others = np.setdiff1d(np.arange(120), touched)
    assert len(others) and (model.values_[others] == before[others]).all()
    assert (model.values_[touched] != before[touched]).any()


@pytest.mark.parametrize(("smoothing", "temperature"), [(1.0, 1.0), (0.3, 2.5)])
def test_counts_equal_a_loop(digits, keys, smoothing, temperature):
    X, y, Q, _ = digits
    model = memory(keys, smoothing=smoothing, temperature=temperature).fit(X, y)
    counts = naive_counts(keys, X, y, 10)
    expected = temperature * fetched(np.log(counts + smoothing), keys.transform(Q))
    np.testing.assert_allclose(model.class_scores(Q), expected, atol=1e-10)
    np.testing.assert_allclose(model.predict_proba(Q), softmax(expected, axis=1), atol=1e-10)


@pytest.mark.parametrize("class_weight", ["balanced", {3: 5.0}])
def test_class_weights_shift_the_averages(digits, keys, class_weight):
    X, y, Q, _ = digits
    plain = memory(keys).fit(X, y).class_scores(Q)
    shift = (
        -np.log(np.bincount(y)) if class_weight == "balanced" else np.log(5) * (np.arange(10) == 3)
    )
    weighted = memory(keys, class_weight=class_weight).fit(X, y).class_scores(Q)
    np.testing.assert_allclose(weighted, plain + shift, atol=1e-10)


def test_class_weight_of_zero_is_refused(digits, keys):
    X, y, Q, _ = digits
    with pytest.raises(ValueError, match="not above 0"):
        memory(keys, class_weight={3: 0.0}).fit(X, y).predict(Q)


def test_one_key_gives_the_smoothed_prior():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((60, 4)), np.repeat([0, 1, 2], [30, 20, 10])
    model = DiscreteKeyValueClassifier(
        KeyQuantizer(5, n_keys=1, key_dim=2, random_state=0), smoothing=0.5
    ).fit(X, y)
    expected = (np.array([30, 20, 10]) + 0.5) / (60 + 3 * 0.5)
    np.testing.assert_allclose(model.predict_proba(X), np.tile(expected, (60, 1)), atol=1e-12)


def test_other_keys_predict_the_same_to_the_last_bit():
    # Two groups so far apart that they share no key.
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.standard_normal((50, 4)), 1000 + rng.standard_normal((50, 4))])
    y = rng.integers(0, 3, 100)
    model = DiscreteKeyValueClassifier(KeyQuantizer(6, n_keys=20, key_dim=2, random_state=0))
    model.fit_keys(X)
    codes = model.quantizer_.transform(X)
    assert not any(set(codes[:50, h]) & set(codes[50:, h]) for h in range(6))
    model.partial_fit(X[:50], y[:50], classes=[0, 1, 2])
    before = model.predict_proba(X[:50])
    model.partial_fit(X[50:], y[50:])
    assert (model.predict_proba(X[:50]) == before).all()


def test_partial_fit_leaves_the_keys(digits, keys):
    X, y, _, _ = digits
    model = DiscreteKeyValueClassifier(KeyQuantizer(3, n_keys=5, random_state=0))
    model.fit_keys(X)
    before = model.quantizer_.keys_.copy()
    model.partial_fit(X[:50], y[:50]).partial_fit(X[50:] + 100, y[50:])
    assert (model.quantizer_.keys_ == before).all()


@given(order=st.permutations(range(80)), cuts=st.sets(st.integers(1, 79), max_size=5))
def test_any_order_and_partition_gives_the_same_to_the_last_bit(digits, keys, order, cuts):
    X, y, Q, _ = digits
    order = np.array(order)
    model = memory(keys)
    for part in np.split(order, sorted(cuts)):
        model.partial_fit(X[part], y[part])
    whole = memory(keys).fit(X[:80], y[:80])
    assert (model.classes_ == whole.classes_).all()
    assert (model.predict_proba(Q) == whole.predict_proba(Q)).all()


@given(gone=st.sets(st.integers(0, 59), min_size=1, max_size=59))
def test_forget_equals_never_seen(digits, keys, gone):
    X, y, Q, _ = digits
    gone = sorted(gone)
    kept = np.setdiff1d(np.arange(60), gone)
    model = memory(keys).fit(X[:60], y[:60]).forget(X[gone], y[gone])
    refit = memory(keys).fit(X[kept], y[kept])
    assert (model.classes_ == refit.classes_).all()
    assert (model.class_count_ == refit.class_count_).all()
    assert (model.values_ != refit.values_).nnz == 0
    assert (model.predict_proba(Q) == refit.predict_proba(Q)).all()


def test_forget_of_what_was_not_learned_changes_nothing(digits, keys):
    X, y, _, _ = digits
    model = memory(keys).fit(X[:60], y[:60])
    before = joblib.hash(vars(model))
    with pytest.raises(ValueError, match="were not learned with their label"):
        model.forget(X[:5] + 500, y[:5])
    assert joblib.hash(vars(model)) == before


def test_forget_class_equals_never_seen(digits, keys):
    X, y, Q, _ = digits
    model = memory(keys).fit(X, y).forget_class(4)
    refit = memory(keys).fit(X[y != 4], y[y != 4])
    assert (model.predict_proba(Q) == refit.predict_proba(Q)).all()


def test_merge_equals_learning_both(digits, keys):
    X, y, Q, _ = digits
    a, b = memory(keys).fit(X[:100], y[:100] % 7), memory(keys).fit(X[100:], y[100:])
    whole = memory(keys).fit(X, np.concatenate([y[:100] % 7, y[100:]]))
    assert (a.merge(b).predict_proba(Q) == whole.predict_proba(Q)).all()


def test_merge_of_other_keys_is_refused(digits, keys):
    X, y, _, _ = digits
    other = KeyQuantizer(12, n_keys=10, key_dim=3, random_state=1).fit(X)
    with pytest.raises(ValueError, match="other has other keys"):
        memory(keys).fit(X, y).merge(memory(other).fit(X, y))


@pytest.mark.parametrize("name", ["forget", "forget_class", "merge"])
def test_gradient_steps_cannot_be_taken_back(keys, name):
    assert not hasattr(memory(keys, solver="sgd"), name)
    assert hasattr(memory(keys), name)


@pytest.mark.parametrize("solver", ["counts", "sgd"])
def test_new_class_is_a_new_column(digits, keys, solver):
    X, y, Q, _ = digits
    model = memory(keys, solver=solver).fit(X[y > 4], y[y > 4])
    model.partial_fit(X[y < 2], y[y < 2])
    assert model.classes_.tolist() == [0, 1, 5, 6, 7, 8, 9]
    assert model.class_count_.tolist() == np.bincount(y)[model.classes_].tolist()
    assert model.values_.shape == (120, 7)
    assert model.predict_proba(Q).shape == (100, 7)


def test_announced_class_is_never_predicted(digits, keys):
    X, y, Q, _ = digits
    model = memory(keys).partial_fit(X, y, classes=[*range(10), 77])
    assert (model.class_scores(Q)[:, 10] == -np.inf).all() and model.class_count_[10] == 0


def test_keys_under_values_are_not_learned_again(digits, keys):
    X, y, _, _ = digits
    model = DiscreteKeyValueClassifier(KeyQuantizer(3, n_keys=5, random_state=0)).fit(X, y)
    with pytest.raises(ValueError, match="freeze=True keeps as they are"):
        model.fit_keys(X)
    model.set_params(quantizer__freeze=False).fit_keys(X[:200])
    assert model.predict(X).shape == (400,)


def test_broad_keys_do_not_lose_to_keys_of_the_first_classes(digits):
    X, y, Q, z = digits
    quantizer = KeyQuantizer(24, n_keys=40, key_dim=4, random_state=0)
    order = np.argsort(y, kind="stable")
    parts = np.array_split(order, 5)
    broad = DiscreteKeyValueClassifier(quantizer).fit_keys(X)
    narrow = DiscreteKeyValueClassifier(quantizer)
    for part in parts:
        broad.partial_fit(X[part], y[part])
        narrow.partial_fit(X[part], y[part])
    assert broad.score(Q, z) > 0.6 and broad.score(Q, z) >= narrow.score(Q, z) - 0.05


def test_pickle_predicts_the_same(digits, keys):
    X, y, Q, _ = digits
    model = memory(keys).fit(X, y)
    loaded = pickle.loads(pickle.dumps(model))
    assert (loaded.predict_proba(Q) == model.predict_proba(Q)).all()
