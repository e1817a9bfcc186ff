# SPDX-License-Identifier: BSD-3-Clause
"""MomentProbingClassifier: what it learns, what it refuses, and the probes that it contains."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.utils._param_validation import InvalidParameterError
from torch import nn

from skpool.probing import MomentProbingClassifier
from skpool.probing._base import TorchHeadMixin
from skpool.stores import TokenArray
from skpool.training import HeadTrainer, VectorRows, get_loss

N, L, D = 40, 12, 6
# Learns in a moment.
QUICK = {"proj_dim": 16, "n_heads": 2, "conv_layers": 1, "lr": 0.02, "batch_size": 16}


def probe_of(**options):
    return MomentProbingClassifier(**{**QUICK, **options})


def with_cls(X):
    return TokenArray.from_array(X, n_prefix_tokens=1)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    y = np.array(["a", "b", "c"])[np.arange(N) % 3]
    X = rng.normal(size=(N, L, D))
    X[:, 0, 0] += 2 * (y == "a")
    X[y == "b", :, 1] += X[y == "b", :, 2]
    return X, y


def equal_means(n=240, n_tokens=60, seed=0):
    """Samples whose means tell nothing; two features of the second class vary together."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    X = rng.normal(size=(n, n_tokens, D))
    X[y == 1, :, 1] = 0.6 * X[y == 1, :, 0] + 0.8 * X[y == 1, :, 1]
    X -= X.mean(1, keepdims=True)
    return X + rng.normal(size=(n, 1, D)), y


# What it learns.


@pytest.mark.parametrize("center", ["token", "scalar", None])
def test_covariances_tell_classes_of_equal_means_apart(center):
    X, y = equal_means()
    # Without centring, the means are in the maps; tokens as wide apart as these drown nothing.
    X = X if center == "token" else X - X.mean(1, keepdims=True)
    probe = probe_of(center=center).fit(X[:160], y[:160])
    assert probe.score(X[160:], y[160:]) > 0.95


def test_means_alone_are_at_chance_where_means_are_equal():
    X, y = equal_means()
    probe = probe_of(combine=(1, 0)).fit(X[:160], y[:160])
    assert abs(probe.score(X[160:], y[160:]) - 0.5) < 0.15


def test_same_seed_gives_the_same_bits(data):
    X, y = data
    one, two, other = (probe_of(random_state=seed).fit(X, y).class_scores(X) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()


def test_generator_of_torch_is_left_alone(data):
    before = torch.get_rng_state()
    probe_of(epochs=6).fit(*data).predict(data[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_loss_falls(data):
    history = probe_of().fit(*data).history_
    assert history.shape == (30, 2)
    assert history[0, 0] > 0.9 and history[-1, 0] < 0.1


# The probes that it contains.


class LinearHead(TorchHeadMixin, ClassifierMixin, BaseEstimator):
    """A linear layer on vectors, trained by the settings of a moment probe."""

    _parameter_constraints: dict = {}

    def __init__(self, settings=None, device="auto", random_state=0):
        self.settings = settings
        self.device = device
        self.random_state = random_state

    def _rows(self, X, *, reset):
        self.n_features_in_ = X.shape[1]
        return VectorRows(X)

    def _make_module(self, n_features, n_outputs, generator, rows):
        class Linear(nn.Linear):
            def forward(self, values, mask):
                return super().forward(values)

        module = Linear(n_features, n_outputs).double()
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
        return module

    def _loss(self):
        return get_loss("cross_entropy")

    def _trainer(self):
        return HeadTrainer(**self.settings)


@pytest.mark.parametrize("first", ["cls", "mean"])
def test_without_the_second_branch_it_is_the_linear_probe_to_the_bit(data, first):
    X, y = data
    settings = {"lr": 0.02, "weight_decay": 0.05, "epochs": 8, "warmup_epochs": 2, "batch_size": 16}
    probe = MomentProbingClassifier(
        combine=(1, 0), first=first, standardize=False, min_lr=0.0, random_state=3, **settings
    ).fit(with_cls(X), y)
    # The mean of numpy rounds otherwise.
    vectors = X[:, 0] if first == "cls" else torch.from_numpy(X[:, 1:]).mean(1).numpy()
    linear = LinearHead(settings, random_state=3).fit(vectors, y)
    np.testing.assert_array_equal(probe.class_scores(with_cls(X)), linear.class_scores(vectors))
    np.testing.assert_array_equal(probe.history_, linear.history_)


def test_without_the_second_branch_lbfgs_is_logistic_regression(data):
    X, y = data
    probe = MomentProbingClassifier(
        combine=(1, 0), standardize=False, optimizer="lbfgs", weight_decay=0.1, epochs=20
    ).fit(with_cls(X), y)
    theirs = LogisticRegression(C=1 / (0.1 * N), tol=1e-10, max_iter=1000).fit(X[:, 0], y)
    np.testing.assert_allclose(
        probe.predict_proba(with_cls(X)), theirs.predict_proba(X[:, 0]), atol=1e-5
    )


def test_bare_moments_are_the_mean_and_the_cross_block_of_the_covariance(data):
    X, y = data
    probe = MomentProbingClassifier(
        None,
        n_heads=2,
        head_norm=None,
        normalize=None,
        conv_layers=0,
        standardize=False,
        epochs=2,
        warmup_epochs=0,
    ).fit(X, y)
    blocks = [np.cov(x.T, bias=True)[: D // 2, D // 2 :].ravel() for x in X]
    expected = np.hstack([X.mean(1), blocks])
    np.testing.assert_allclose(probe.transform(X), expected, rtol=1e-9, atol=1e-12)


# Moments.


@pytest.mark.parametrize(
    ("combine", "width"), [((0.5, 0.5), D + 9), ((1, 0), D), ((0, 1), 9), ((0.2, 0.9), D + 9)]
)
def test_transform_gives_what_the_linear_heads_see(data, combine, width):
    X, y = data
    probe = probe_of(combine=combine).fit(X, y)
    moments, w = probe.transform(X), probe.weights_
    assert moments.shape == (N, width) == (N, len(probe.get_feature_names_out()))
    first, second = np.split(moments, [D if combine[0] else 0], axis=1)
    scores = np.zeros((N, 3))
    if combine[0]:
        scores += combine[0] * (first @ w["first.weight"].T + w["first.bias"])
    if combine[1]:
        scores += combine[1] * (second @ w["second.weight"].T + w["second.bias"])
    np.testing.assert_allclose(scores, probe.class_scores(X), rtol=1e-9, atol=1e-11)


def test_standardised_first_moments_have_mean_0_and_variance_1(data):
    X, y = data
    first = probe_of(combine=(1, 0)).fit(X, y).transform(X)
    np.testing.assert_allclose(first.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(first.std(0), 1, rtol=1e-12)


def test_module_gives_the_scores(data):
    X, y = data
    probe = probe_of(epochs=6).fit(X, y)
    with torch.no_grad():
        scores = probe.module_(torch.from_numpy(X), None).numpy()
    np.testing.assert_allclose(scores, probe.class_scores(X), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("n_prefix", "first"), [(0, "mean"), (1, "cls"), (3, "cls")], ids=["none", "cls", "registers"]
)
def test_first_moment_is_chosen_by_what_there_is(data, n_prefix, first):
    X, y = data
    tokens = TokenArray.from_array(X, n_prefix_tokens=n_prefix)
    probe = probe_of(epochs=5, standardize=False).fit(tokens, y)
    assert probe.first_ == first and probe.n_prefix_tokens_ == n_prefix
    expected = X[:, 0] if first == "cls" else X.mean(1)
    np.testing.assert_allclose(probe.transform(tokens)[:, :D], expected, rtol=1e-12)


def test_order_and_repetition_of_tokens_do_not_matter(data):
    X, y = data
    probe = probe_of(epochs=8).fit(X, y)
    expected = probe.class_scores(X)
    order = np.random.default_rng(1).permutation(L)
    for again in (X[:, order], np.repeat(X, 3, axis=1)):
        np.testing.assert_allclose(probe.class_scores(again), expected, rtol=1e-7, atol=1e-9)


# Containers, masks and scales.


def test_masked_garbage_and_ragged_lists_are_one(data):
    X, y = data
    lengths = np.random.default_rng(1).integers(2, L + 1, size=N)
    mask = np.arange(L) < lengths[:, None]
    expected = None
    for filler in (np.nan, np.inf, -1e30):
        masked = TokenArray.from_array(np.where(mask[..., None], X, filler), mask=mask)
        scores = probe_of(epochs=8).fit(masked, y).class_scores(masked)
        expected = scores if expected is None else expected
        np.testing.assert_array_equal(scores, expected)
    ragged = [x[:k] for x, k in zip(X, lengths, strict=True)]
    scores = probe_of(epochs=8).fit(ragged, y).class_scores(ragged)
    np.testing.assert_allclose(scores, expected, rtol=1e-7, atol=1e-9)


def test_memory_maps_and_tensors_are_arrays(data, tmp_path):
    X, y = data
    expected = probe_of(epochs=6).fit(X, y).class_scores(X)
    np.save(tmp_path / "X.npy", X)
    for same in (np.load(tmp_path / "X.npy", mmap_mode="r"), torch.from_numpy(X)):
        np.testing.assert_array_equal(probe_of(epochs=6).fit(same, y).class_scores(same), expected)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("first", ["mean", "mean_norm"])
def test_half_precision_of_any_scale_is_learned(scale, first):
    X, y = equal_means()
    X = (scale * X).astype(np.float16)
    probe = probe_of(first=first).fit(X[:160], y[:160])
    assert np.isfinite(probe.class_scores(X)).all() and np.isfinite(probe.transform(X)).all()
    assert probe.transform(X).dtype == np.float32
    assert probe.score(X[160:], y[160:]) > 0.95


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
def test_scale_of_tokens_does_not_matter(data, scale):
    X, y = data
    expected = probe_of(epochs=8).fit(X, y).class_scores(X)
    scores = probe_of(epochs=8).fit(scale * X, y).class_scores(scale * X)
    np.testing.assert_allclose(scores, expected, rtol=1e-7, atol=1e-9)


# Few samples, few tokens, small maps.


def test_one_class_is_always_predicted(data):
    X, _ = data
    probe = probe_of(epochs=5).fit(X, np.full(N, "only"))
    assert (probe.predict(X) == "only").all()
    np.testing.assert_array_equal(probe.predict_proba(X), np.ones((N, 1)))


def test_classes_of_one_sample_are_learned(data):
    X, _ = data
    probe = probe_of(epochs=60).fit(X[:5], np.arange(5))
    np.testing.assert_array_equal(probe.predict(X[:5]), np.arange(5))


def test_single_tokens_give_zero_maps_and_one_warning(data):
    X, y = data
    with pytest.warns(UserWarning, match="Every sample has one token") as record:
        probe = probe_of(epochs=5).fit(X[:, :1], y)
        scores = probe.class_scores(X[:, :1])
    assert len(record) == 1
    assert np.isfinite(scores).all()
    assert not probe.transform(X[:, :1])[:, D:].any()


@pytest.mark.parametrize("options", [{"center": None}, {"center": "scalar"}, {"combine": (1, 0)}])
def test_single_tokens_need_no_warning_where_no_mean_of_them_is_taken(data, options):
    X, y = data
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe = probe_of(epochs=5, **options).fit(X[:, 0], y)
    assert np.isfinite(probe.class_scores(X[:, 0])).all()


@pytest.mark.parametrize(
    ("proj_dim", "passed", "n_second"), [(4, 0, 4), (6, 1, 1), (12, 1, 4), (14, 2, 1)]
)
def test_small_maps_pass_fewer_convolutions_with_a_warning(data, proj_dim, passed, n_second):
    probe = probe_of(proj_dim=proj_dim, conv_layers=2, epochs=5)
    if passed == 2:
        probe.fit(*data)
    else:
        with pytest.warns(UserWarning, match=f"pass {passed} of conv_layers=2"):
            probe.fit(*data)
    assert len(probe.module_.convolutions) == passed
    assert probe.transform(data[0]).shape[1] == D + n_second


# Refusals.


def test_bad_token_names_its_sample(data):
    X, y = data
    X[7, 3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity in the tokens of sample 7"):
        probe_of().fit(X, y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proj_dim": 15}, "n_heads=2 does not divide proj_dim, which is 15"),
        ({"proj_dim": None, "n_heads": 4}, "does not divide the number of features, which is 6"),
        ({"n_heads": 3, "proj_dim": 15, "cross": "half"}, "cross='half' needs an even number"),
        ({"first": "cls"}, "needs a class token"),
        ({"combine": (0, 0)}, r"combine=\(0, 0\) is not valid"),
        ({"combine": (1, -1)}, "combine="),
        ({"combine": (1, 1, 1)}, "combine="),
        ({"combine": (1, np.nan)}, "combine="),
    ],
    ids=str,
)
def test_parameters_that_do_not_fit_are_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        probe_of(**options).fit(*data)


@pytest.mark.parametrize(
    "options", [{"n_heads": 1}, {"cross": "full"}, {"normalize": "power"}, {"conv_layers": -1}]
)
def test_other_options_are_refused(data, options):
    with pytest.raises(InvalidParameterError):
        probe_of(**options).fit(*data)


def test_tokens_of_another_layout_are_refused(data):
    X, y = data
    probe = probe_of(epochs=5).fit(with_cls(X), y)
    with pytest.raises(ValueError, match="0 prefix token"):
        probe.predict(X)
    with pytest.raises(ValueError, match="expecting 6 features"):
        probe.predict(with_cls(X[..., :5]))


def test_samples_without_patches_are_refused(data):
    X, y = data
    mask = np.ones((N, L), dtype=bool)
    mask[4, 1:] = False
    with pytest.raises(ValueError, match="Sample 4 has no real token"):
        probe_of().fit(TokenArray.from_array(X, mask=mask, n_prefix_tokens=1), y)
    with pytest.raises(ValueError, match="All 12 tokens of a sample are prefix tokens"):
        probe_of().fit(TokenArray.from_array(X, n_prefix_tokens=L), y)


def test_refused_fit_changes_nothing(data):
    X, y = data
    probe = probe_of(epochs=5).fit(X, y)
    expected = probe.class_scores(X)
    with pytest.raises(ValueError):
        probe.set_params(n_heads=3).fit(with_cls(X), y)
    # Parameters set since have no part in what was learned.
    np.testing.assert_array_equal(probe.class_scores(X), expected)


# Going on, and going elsewhere.


def test_new_classes_may_arrive(data):
    X, y = data
    old = y != "c"
    probe = probe_of(epochs=20, epochs_partial=40).fit(X[old], y[old])
    before = probe.predict(X[old])
    assert set(before) == {"a", "b"}
    probe.partial_fit(X, y)
    assert probe.classes_.tolist() == ["a", "b", "c"]
    assert probe.score(X, y) > 0.9


def test_classes_that_arrive_start_below_the_old_ones(data):
    X, y = data
    probe = probe_of(epochs=10, lr=1e-12).fit(X[y != "c"], y[y != "c"])
    head = probe.module_
    probe._grow(head, 1)
    with torch.no_grad():
        scores = head(torch.from_numpy(X), None).numpy()
    np.testing.assert_array_equal(scores[:, :2], probe.class_scores(X))
    assert scores.shape == (N, 3) and (scores[:, 2] <= scores[:, :2].max(axis=1)).all()


def test_parts_go_on_from_where_they_were(data):
    X, y = data
    probe = probe_of().partial_fit(X, y)
    first = probe.history_[-1, 0]
    for _ in range(20):
        probe.partial_fit(X, y)
    assert probe.n_iter_ == 21 and probe.history_[-1, 0] < first / 2


def test_pickles_and_clones_decide_alike(data):
    X, y = data
    probe = probe_of(epochs=6).fit(X, y)
    expected = probe.class_scores(X)
    again = pickle.loads(pickle.dumps(probe))
    np.testing.assert_array_equal(again.class_scores(X), expected)
    np.testing.assert_array_equal(again.transform(X), probe.transform(X))
    np.testing.assert_array_equal(clone(probe).fit(X, y).class_scores(X), expected)
    assert all(isinstance(value, np.ndarray) for value in probe.weights_.values())


def test_folds_side_by_side_are_folds_in_turn(data):
    X, y = data
    one, two = (cross_val_score(probe_of(epochs=6), X, y, cv=3, n_jobs=n) for n in (None, 2))
    np.testing.assert_array_equal(one, two)
