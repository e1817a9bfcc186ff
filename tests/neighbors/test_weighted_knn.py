# SPDX-License-Identifier: BSD-3-Clause
"""WeightedKNNClassifier against scikit-learn, brute force, and refits."""

import pickle
from itertools import pairwise

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize
from sklearn.utils.estimator_checks import parametrize_with_checks

from skpool.neighbors import NeighborIndex, WeightedKNNClassifier


@parametrize_with_checks(
    [
        WeightedKNNClassifier(),
        WeightedKNNClassifier(metric="euclidean", weights="uniform", backend="torch"),
        WeightedKNNClassifier(metric="dot", weights="rank", class_weight="balanced"),
    ]
)
def test_sklearn_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:700], y[:700], X[700:900], y[700:900]


@pytest.fixture(scope="module")
def small():
    rng = np.random.default_rng(3)
    return rng.standard_normal((40, 6)), rng.integers(0, 3, 40)


def exp_of_cosine(temperature):
    # On unit rows the squared distance is 2 - 2 cos.
    return lambda distances: np.exp((1 - distances**2 / 2) / temperature)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("k", [1, 20])
def test_proba_equals_scikit_learn_on_unit_rows(digits, k, temperature):
    X, y, Q, _ = digits
    peer = KNeighborsClassifier(k, weights=exp_of_cosine(temperature), algorithm="brute")
    expected = peer.fit(normalize(X), y).predict_proba(normalize(Q))
    knn = WeightedKNNClassifier(k, temperature=temperature).fit(X, y)
    np.testing.assert_allclose(knn.predict_proba(Q), expected, atol=1e-10)


@pytest.mark.parametrize("weights", ["uniform", "distance"])
def test_euclidean_weights_equal_scikit_learn(digits, weights):
    X, y, Q, _ = digits
    peer = KNeighborsClassifier(11, weights=weights, algorithm="brute").fit(X, y)
    knn = WeightedKNNClassifier(11, weights=weights, metric="euclidean").fit(X, y)
    # Digits are whole numbers: the peer may choose among exact ties at the border.
    distances, _ = knn.kneighbors(Q, 12)
    clear = distances[:, 10] < distances[:, 11]
    assert clear.mean() > 0.5
    np.testing.assert_allclose(
        knn.predict_proba(Q)[clear], peer.predict_proba(Q)[clear], atol=1e-10
    )


def test_one_neighbor_is_the_nearest_for_every_temperature(digits):
    X, y, Q, _ = digits
    expected = KNeighborsClassifier(1, metric="cosine").fit(X, y).predict(Q)
    for temperature in (1e-6, 0.07, 1e6):
        knn = WeightedKNNClassifier(1, temperature=temperature).fit(X, y)
        assert (knn.predict(Q) == expected).all()


def test_class_without_a_vote_has_probability_zero(small):
    X, y = small
    proba = WeightedKNNClassifier(1, temperature=1e-300).fit(X, y).predict_proba(X)
    assert (proba == np.eye(3)[y]).all()


def test_tiny_temperature_is_the_nearest_neighbor(digits):
    X, y, Q, _ = digits
    nearest = WeightedKNNClassifier(1).fit(X, y).predict_proba(Q)
    cold = WeightedKNNClassifier(20, temperature=1e-300).fit(X, y).predict_proba(Q)
    assert (nearest == cold).all()


def test_high_temperature_is_the_majority(digits):
    X, y, Q, _ = digits
    hot = WeightedKNNClassifier(20, temperature=1e9).fit(X, y)
    uniform = WeightedKNNClassifier(20, weights="uniform").fit(X, y)
    np.testing.assert_allclose(hot.predict_proba(Q), uniform.predict_proba(Q), atol=1e-8)


def test_euclidean_of_unit_rows_is_cosine_at_half_the_temperature(digits):
    X, y, Q, _ = digits
    euclidean = WeightedKNNClassifier(metric="euclidean", temperature=0.14).fit(normalize(X), y)
    cosine = WeightedKNNClassifier(temperature=0.07).fit(X, y)
    np.testing.assert_allclose(
        euclidean.predict_proba(normalize(Q)), cosine.predict_proba(Q), atol=1e-10
    )


def test_large_norms_do_not_overflow_the_votes():
    X = np.array([[1e4, 0.0], [0.0, 1e4], [-1e4, 0.0]])
    knn = WeightedKNNClassifier(metric="dot").fit(X, [0, 1, 2])
    assert knn.predict_proba(X).tolist() == np.eye(3).tolist()


def test_ties_are_voted_by_the_samples_stored_first():
    X = np.zeros((60, 2)) + [1.0, 2.0]
    y = np.repeat([0, 1, 2], 20)[::-1]
    for backend in ("faiss", "torch"):
        knn = WeightedKNNClassifier(20, backend=backend).fit(X, y)
        assert knn.predict_proba(X[:1]).tolist() == [[0.0, 0.0, 1.0]]


def test_ten_rows_work_with_the_default_number_of_neighbors():
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(1, 0.1, (5, 3)), rng.normal([1, -1, 0], 0.1, (5, 3))])
    knn = WeightedKNNClassifier().fit(X, ["a"] * 5 + ["b"] * 5)
    assert knn.score(X, ["a"] * 5 + ["b"] * 5) == 1.0
    assert knn.kneighbors(X)[1].shape == (10, 10)


def test_asking_for_more_neighbors_than_stored_names_both_numbers(small):
    knn = WeightedKNNClassifier().fit(*small)
    with pytest.raises(ValueError, match=r"n_neighbors=41 were asked for, but 40 stored"):
        knn.kneighbors(small[0], 41)
    with pytest.raises(ValueError, match=r"n_neighbors=200 were asked for, but 40 stored"):
        knn.sweep(small[0])


def test_sweep_equals_separate_calls(digits):
    X, y, Q, _ = digits
    result = WeightedKNNClassifier().fit(X, y).sweep(Q, (1, 5, 20), (0.03, 1.0))
    assert list(result) == [(1, 0.03), (1, 1.0), (5, 0.03), (5, 1.0), (20, 0.03), (20, 1.0)]
    for (k, temperature), proba in result.items():
        single = WeightedKNNClassifier(k, temperature=temperature).fit(X, y)
        assert (single.predict_proba(Q) == proba).all()


def test_sweep_without_temperature_is_refused(small):
    knn = WeightedKNNClassifier(weights="rank").fit(*small)
    with pytest.raises(ValueError, match="weights='rank' does not have"):
        knn.sweep(small[0], (5,))


@pytest.mark.parametrize(("ks", "temperatures"), [((), (0.1,)), ((0,), (0.1,)), ((5,), (0.0,))])
def test_sweep_over_nonsense_is_refused(small, ks, temperatures):
    with pytest.raises(ValueError, match="must hold whole numbers"):
        WeightedKNNClassifier().fit(*small).sweep(small[0], ks, temperatures)


@pytest.mark.parametrize("class_weight", [None, "balanced", 0.5, {0: 3.0}])
@pytest.mark.parametrize("k", [1, 7, 100])
def test_loo_equals_refits(small, k, class_weight):
    X, y = small
    knn = WeightedKNNClassifier(k, temperature=0.3, class_weight=class_weight)
    expected = cross_val_predict(knn, X, y, cv=LeaveOneOut(), method="predict_proba")
    np.testing.assert_allclose(knn.fit(X, y).loo_predict_proba(), expected, atol=1e-12)


def test_loo_of_equal_rows_leaves_out_the_row_and_not_its_copy():
    X = np.array([[1.0, 0.0]] * 30 + [[0.0, 1.0]])
    y = np.arange(31)
    proba = WeightedKNNClassifier(1).fit(X, y).loo_predict_proba()
    assert (proba[np.arange(31), y] == 0).all()
    assert proba.argmax(axis=1).tolist() == [1] + [0] * 30


def test_loo_of_a_single_row_is_refused():
    with pytest.raises(ValueError, match="n_samples = 1 is stored, which has no"):
        WeightedKNNClassifier().fit([[1.0, 2.0]], [0]).loo_predict_proba()


def test_kneighbors_without_queries_leaves_out_the_sample_itself(small):
    X, y = small
    distances, positions = WeightedKNNClassifier(metric="euclidean").fit(X, y).kneighbors(None, 3)
    peer = KNeighborsClassifier(3).fit(X, y).kneighbors(None, 3)
    assert (positions == peer[1]).all()
    np.testing.assert_allclose(distances, peer[0], atol=1e-12)


@pytest.mark.parametrize("weights", ["exp", "uniform"])
def test_class_weight_divides_votes_by_class_sizes(small, weights):
    X, y = small
    sizes = np.bincount(y)
    plain = WeightedKNNClassifier(9, weights=weights, temperature=0.5).fit(X, y).predict_proba(X)
    for class_weight, power in (("balanced", 1.0), (0.5, 0.5)):
        knn = WeightedKNNClassifier(
            9, weights=weights, temperature=0.5, class_weight=class_weight
        ).fit(X, y)
        expected = plain / sizes**power
        expected /= expected.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(knn.predict_proba(X), expected, atol=1e-12)


def test_class_weight_dict_multiplies_votes(small):
    X, y = small
    plain = WeightedKNNClassifier(9, temperature=0.5).fit(X, y).predict_proba(X)
    expected = plain * [1.0, 5.0, 1.0]
    expected /= expected.sum(axis=1, keepdims=True)
    knn = WeightedKNNClassifier(9, temperature=0.5, class_weight={1: 5.0}).fit(X, y)
    np.testing.assert_allclose(knn.predict_proba(X), expected, atol=1e-12)


def test_class_weight_dict_with_zero_is_refused(small):
    knn = WeightedKNNClassifier(class_weight={1: 0.0}).fit(*small)
    with pytest.raises(ValueError, match="not above 0"):
        knn.predict_proba(small[0])


def test_balanced_votes_of_balanced_data_are_plain_votes(digits):
    X, y, Q, _ = digits
    rows = np.concatenate([np.flatnonzero(y == c)[:60] for c in range(10)])
    plain = WeightedKNNClassifier().fit(X[rows], y[rows]).predict_proba(Q)
    balanced = WeightedKNNClassifier(class_weight="balanced").fit(X[rows], y[rows])
    np.testing.assert_allclose(balanced.predict_proba(Q), plain, atol=1e-12)


@settings(deadline=None, max_examples=25)
@given(cuts=st.lists(st.integers(1, 39), max_size=6))
def test_learning_in_pieces_equals_fit(small, cuts):
    X, y = small
    pieces = WeightedKNNClassifier(7)
    bounds = [0, *sorted(set(cuts)), 40]
    for start, stop in pairwise(bounds):
        pieces.partial_fit(X[start:stop], y[start:stop])
    whole = WeightedKNNClassifier(7).fit(X, y)
    assert (pieces.classes_ == whole.classes_).all()
    assert (pieces.train_labels_ == whole.train_labels_).all()
    assert (pieces.predict_proba(X) == whole.predict_proba(X)).all()


def test_order_of_the_samples_does_not_matter_without_ties(small):
    X, y = small
    order = np.random.default_rng(0).permutation(40)
    a = WeightedKNNClassifier(7).fit(X, y).predict_proba(X)
    b = WeightedKNNClassifier(7).fit(X[order], y[order]).predict_proba(X)
    np.testing.assert_allclose(a, b, atol=1e-12)


@settings(deadline=None, max_examples=25)
@given(gone=st.sets(st.integers(0, 39), min_size=1, max_size=39))
def test_forget_equals_refit(small, gone):
    X, y = small
    gone = sorted(gone)
    knn = WeightedKNNClassifier(7).fit(X, y).forget(X[gone], y[gone])
    kept = np.setdiff1d(np.arange(40), gone)
    refit = WeightedKNNClassifier(7).fit(X[kept], y[kept])
    assert (knn.classes_ == refit.classes_).all()
    assert (knn.train_features_ == X[kept]).all()
    assert (knn.predict_proba(X) == refit.predict_proba(X)).all()
    assert (knn.kneighbors(X)[1] == refit.kneighbors(X)[1]).all()


def test_forget_takes_as_many_copies_as_are_given():
    X, y = np.array([[1.0, 0.0]] * 3 + [[0.0, 1.0]]), ["a", "a", "b", "b"]
    knn = WeightedKNNClassifier().fit(X, y).forget(X[:1], ["a"])
    assert knn.train_labels_.tolist() == ["a", "b", "b"]
    with pytest.raises(ValueError, match=r"Row 1 of X with label 'a' is not stored"):
        knn.forget(X[:2], ["a", "a"])
    assert knn.train_labels_.tolist() == ["a", "b", "b"]


def test_forget_removes_the_copy_stored_last():
    X = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    knn = WeightedKNNClassifier().fit(X, [0, 1, 0]).forget(X[:1], [0])
    assert knn.train_features_.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert knn.train_labels_.tolist() == [0, 1]


def test_forget_of_a_row_under_another_label_is_refused(small):
    X, y = small
    knn = WeightedKNNClassifier().fit(X, y)
    before = joblib.hash(vars(knn))
    with pytest.raises(ValueError, match="Row 0 of X with label"):
        knn.forget(X[:1], [(y[0] + 1) % 3])
    assert joblib.hash(vars(knn)) == before


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_forget_finds_rows_of_every_float_type(small, kind):
    X, y = small[0].astype(kind), small[1]
    knn = WeightedKNNClassifier().fit(X, y).forget(torch.from_numpy(X[5:]), y[5:])
    assert (knn.train_features_ == X[:5]).all()


def test_forget_class_equals_fit_without_it(small):
    X, y = small
    knn = WeightedKNNClassifier(7).fit(X, y).forget_class(1)
    refit = WeightedKNNClassifier(7).fit(X[y != 1], y[y != 1])
    assert knn.classes_.tolist() == [0, 2]
    assert (knn.predict_proba(X) == refit.predict_proba(X)).all()


def test_merge_equals_fit_on_both(small):
    X, y = small
    a, b = (WeightedKNNClassifier(7).fit(X[part], y[part]) for part in (slice(25), slice(25, 40)))
    whole = WeightedKNNClassifier(7).fit(X, y)
    assert (a.merge(b).predict_proba(X) == whole.predict_proba(X)).all()
    assert len(b.train_labels_) == 15


def test_announced_class_has_probability_zero_until_a_sample_arrives(small):
    X, y = small
    knn = WeightedKNNClassifier(1).partial_fit(X, y, classes=[0, 1, 2, 9])
    assert (knn.predict_proba(X)[:, 3] == 0).all()
    assert knn.partial_fit(-9 * X[:1], [9]).predict(-9 * X[:1]).tolist() == [9]


@pytest.mark.parametrize(
    "call",
    [
        lambda knn, X, y: knn.partial_fit(X[:, :2], y),
        lambda knn, X, y: knn.partial_fit(X, ["a"] * len(y)),
        lambda knn, X, y: knn.partial_fit(X, y[:5]),
        lambda knn, X, y: knn.partial_fit(X + np.nan, y),
        lambda knn, X, y: knn.fit(X + np.nan, y),
        lambda knn, X, y: knn.forget(X + 1, y),
    ],
    ids=["width", "kind of label", "lengths", "nan", "nan in fit", "forget unknown"],
)
def test_failed_call_changes_nothing(small, call):
    X, y = small
    knn = WeightedKNNClassifier().fit(X, y)
    before = joblib.hash(vars(knn))
    with pytest.raises(ValueError):
        call(knn, X, y)
    assert joblib.hash(vars(knn)) == before


def test_failure_while_storing_changes_nothing(small, monkeypatch):
    X, y = small
    knn = WeightedKNNClassifier().fit(X, y)
    before = joblib.hash(vars(knn))

    def fail(self, X):
        raise MemoryError("no room")

    monkeypatch.setattr("skpool.neighbors.NeighborIndex.add", fail)
    with pytest.raises(MemoryError):
        knn.partial_fit(X, y)
    assert joblib.hash(vars(knn)) == before


@pytest.mark.parametrize(
    "labels", [["x", "yy", "x"], [-1, 3, -1], [True, False, True]], ids=["text", "int", "bool"]
)
def test_labels_come_back_in_their_kind(labels):
    X = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]])
    knn = WeightedKNNClassifier(1).fit(X, labels)
    assert knn.predict(X).tolist() == labels
    assert knn.predict(X).dtype == np.asarray(labels).dtype


def test_longer_text_label_may_arrive_later():
    knn = WeightedKNNClassifier(1).fit([[1.0, 0.0]], ["a"]).partial_fit([[0.0, 1.0]], ["longer"])
    assert knn.predict([[0.0, 2.0]]).tolist() == ["longer"]


@pytest.mark.parametrize("backend", ["auto", "torch", "faiss"])
def test_tensors_give_what_arrays_give(digits, backend):
    X, y, Q, _ = digits
    expected = WeightedKNNClassifier().fit(X, y).predict_proba(Q)
    knn = WeightedKNNClassifier(backend=backend).fit(torch.from_numpy(X), torch.from_numpy(y))
    proba = knn.predict_proba(torch.from_numpy(Q))
    assert isinstance(proba, np.ndarray) and (proba == expected).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_gpu_gives_what_the_host_gives(digits):
    X, y, Q, _ = digits
    expected = WeightedKNNClassifier().fit(X, y).predict_proba(Q)
    knn = WeightedKNNClassifier().fit(torch.from_numpy(X).cuda(), torch.from_numpy(y).cuda())
    assert knn.index_.device.type == "cuda"
    np.testing.assert_allclose(knn.predict_proba(torch.from_numpy(Q).cuda()), expected, atol=1e-10)


def test_pickle_predicts_the_same(digits):
    X, y, Q, _ = digits
    knn = WeightedKNNClassifier().fit(X, y)
    loaded = pickle.loads(pickle.dumps(knn))
    assert (loaded.predict_proba(Q) == knn.predict_proba(Q)).all()


def test_changing_the_metric_after_fit_does_not_mix_two_metrics(small):
    X, y = small
    knn = WeightedKNNClassifier(metric="euclidean", temperature=5).fit(X, y)
    expected = knn.predict_proba(X)
    assert (knn.set_params(metric="cosine").predict_proba(X) == expected).all()


def test_grid_search_over_neighbors_and_temperature(digits):
    X, y, Q, z = digits
    grid = {"n_neighbors": [1, 5], "temperature": [0.05, 1.0]}
    search = GridSearchCV(clone(WeightedKNNClassifier()), grid, cv=3, scoring="neg_log_loss")
    assert search.fit(X, y).score(Q, z) < 0
    assert search.best_estimator_.score(Q, z) > 0.9


def test_real_features_reach_the_recorded_accuracy(data_dir):
    # 0.788 was measured with a public script on these features (20 votes, exp(cos / 0.07)).
    data = np.load(data_dir / "features" / "clothing_deit_tiny.npz")
    train, test = data["split"] == "train", data["split"] == "test"
    knn = WeightedKNNClassifier().fit(data["cls"][train], data["labels"][train])
    assert knn.score(data["cls"][test], data["labels"][test]) == pytest.approx(0.788, abs=0.006)


@given(gone=st.sets(st.integers(0, 39), min_size=1, max_size=39))
def test_forget_by_id_equals_refit(small, gone):
    X, y = small
    gone = sorted(gone)
    kept = np.setdiff1d(np.arange(40), gone)
    knn = WeightedKNNClassifier(7).fit(X, y).forget_ids(gone)
    refit = WeightedKNNClassifier(7).fit(X[kept], y[kept])
    assert (knn.classes_ == refit.classes_).all()
    assert (knn.predict_proba(X) == refit.predict_proba(X)).all()


def test_forget_of_an_unknown_id_changes_nothing(small):
    knn = WeightedKNNClassifier().fit(*small).forget_ids([3])
    before = joblib.hash(vars(knn))
    with pytest.raises(ValueError, match="id 3 is not held"):
        knn.forget_ids([2, 3])
    assert joblib.hash(vars(knn)) == before


def test_exact_search_has_recall_one(small):
    assert WeightedKNNClassifier().fit(*small).recall_ == 1.0
    assert not hasattr(WeightedKNNClassifier(), "recall_")


def test_approximate_search_reports_its_recall(digits):
    X, y, _, _ = digits
    params = {"n_lists": 30, "n_probes": 1}
    knn = WeightedKNNClassifier(10, method="ivf", params=params).fit(X, y)
    exact = WeightedKNNClassifier(10).fit(X, y)
    rows = np.linspace(0, 699, 256).astype(int)
    found, wanted = (
        [set(line) for line in np.asarray(model.kneighbors()[1])[rows]] for model in (knn, exact)
    )
    overlap = np.mean([len(a & b) / 10 for a, b in zip(found, wanted, strict=True)])
    # Rows that tie with the last neighbour count as found.
    assert knn.recall_ == pytest.approx(overlap, abs=0.01) and 0.3 < knn.recall_ < 0.99


def test_approximate_search_of_everything_predicts_what_exact_search_does(digits):
    X, y, Q, _ = digits
    params = {"n_lists": 10, "n_probes": 10}
    knn = WeightedKNNClassifier(method="ivf", params=params).fit(X[:500], y[:500])
    knn.predict(Q[:1])
    knn.partial_fit(X[500:], y[500:]).forget(X[:9], y[:9])
    exact = WeightedKNNClassifier().fit(X[9:], y[9:])
    assert (knn.predict_proba(Q) == exact.predict_proba(Q)).all()
    assert knn.recall_ == 1.0


def test_recall_is_measured_anew_after_learning(digits):
    X, y, _, _ = digits
    knn = WeightedKNNClassifier(10, method="ivf", params={"n_lists": 30, "n_probes": 1})
    first = knn.fit(X[:100], y[:100]).recall_
    assert knn.partial_fit(X[100:], y[100:]).recall_ != first


def test_sweep_searches_once(digits, monkeypatch):
    X, y, Q, _ = digits
    knn, calls = WeightedKNNClassifier().fit(X, y), []
    search = NeighborIndex._nearest

    def counted(self, *args, **options):
        calls.append(args)
        return search(self, *args, **options)

    monkeypatch.setattr(NeighborIndex, "_nearest", counted)
    knn.sweep(Q, (1, 5, 50), (0.03, 0.07))
    assert len(calls) == 1
