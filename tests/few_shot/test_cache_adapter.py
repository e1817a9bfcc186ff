# SPDX-License-Identifier: BSD-3-Clause
"""CacheAdapterClassifier: its formula in loops, its limits, and choices by real refits."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.neighbors import KNeighborsClassifier

from skpool.few_shot import CacheAdapterClassifier
from skpool.few_shot._cache_adapter import _ALPHAS, _BETAS

TEXTS = np.random.default_rng(1).normal(size=(4, 10))


def shots(seed=0, counts=(3, 3, 3, 3), d=10):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    X = TEXTS[y] + 1.5 * rng.normal(size=(len(y), d))
    queries = TEXTS[rng.integers(0, 4, 25)] + 1.5 * rng.normal(size=(25, d))
    return X, y, queries


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def tip_adapter(queries, X, y, texts, *, alpha, beta, scale):
    """The formula of the paper, query by query and row by row."""
    scores = np.zeros((len(queries), len(texts)))
    for i, query in enumerate(unit(queries)):
        for c, text in enumerate(unit(texts)):
            scores[i, c] = scale * query @ text
            for key, label in zip(unit(X), y, strict=True):
                if label == c:
                    scores[i, c] += alpha * np.exp(-beta * (1 - query @ key))
    return scores


@pytest.mark.parametrize("normalize", [True, False])
def test_scores_equal_the_formula(normalize):
    X, y, queries = shots()
    clf = CacheAdapterClassifier(
        TEXTS, alpha=1.3, beta=5.5, logit_scale=20.0, normalize_cache=normalize
    )
    desired = tip_adapter(queries, X, y, TEXTS, alpha=1.3, beta=5.5, scale=20.0)
    np.testing.assert_allclose(clf.fit(X, y).class_scores(queries), desired, rtol=1e-10)


def test_normalized_cache_does_not_prefer_the_class_of_more_rows():
    X, y, queries = shots()
    clf = CacheAdapterClassifier(TEXTS, alpha=3.0, beta=2.0, logit_scale=1.0)
    more = np.concatenate([np.arange(len(y)), np.flatnonzero(y == 2), np.flatnonzero(y == 2)])
    fair = clone(clf).fit(X, y).class_scores(queries)
    given = clone(clf).fit(X[more], y[more]).class_scores(queries)
    zero = clone(clf).set_params(alpha=0.0).fit(X, y).class_scores(queries)
    # All classes have 12 rows in 4; with the copies 18, which is one factor for all.
    np.testing.assert_allclose((given - zero) / (fair - zero), 18 / 12)


def test_without_cache_weight_it_is_zero_shot():
    X, y, queries = shots()
    clf = CacheAdapterClassifier(TEXTS, alpha=0.0, logit_scale=100.0).fit(X, y)
    np.testing.assert_allclose(clf.class_scores(queries), 100 * unit(queries) @ unit(TEXTS).T)


def test_without_texts_it_is_a_soft_vote_of_all_rows():
    X, y, queries = shots(counts=(5, 2, 3, 4))
    clf = CacheAdapterClassifier(beta=4.0, normalize_cache=False).fit(X, y)
    votes = KNeighborsClassifier(
        len(y), algorithm="brute", weights=lambda apart: np.exp(-4.0 * apart**2 / 2)
    ).fit(unit(X), y)
    scores = clf.class_scores(queries)
    shares = scores / scores.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares, votes.predict_proba(unit(queries)), rtol=1e-8)


def test_class_without_rows_is_scored_by_its_text():
    X, y, _ = shots()
    kept = y != 3
    clf = CacheAdapterClassifier(TEXTS).fit(X[kept], y[kept])
    assert clf.classes_.tolist() == [0, 1, 2, 3]
    assert clf.predict(TEXTS[3:]).tolist() == [3]


def test_mapping_gives_what_the_array_gives():
    X, y, queries = shots()
    names = np.array(["d", "a", "c", "b"])
    mapping = CacheAdapterClassifier(dict(zip(names.tolist(), TEXTS, strict=True))).fit(X, names[y])
    array = CacheAdapterClassifier(TEXTS).fit(X, y)
    np.testing.assert_array_equal(mapping.predict(queries), names[array.predict(queries)])


@pytest.mark.parametrize("normalize", [True, False])
def test_choice_is_the_best_of_refits_that_leave_one_out(normalize):
    X, y, _ = shots(seed=3, counts=(2, 4, 3, 1))
    options = {"logit_scale": 3.0, "normalize_cache": normalize}
    chosen = CacheAdapterClassifier(TEXTS, alpha="cv", beta="cv", **options).fit(X, y)

    def accuracy(alpha, beta):
        right = 0
        for i in np.flatnonzero(y != 3):
            left = np.arange(len(y)) != i
            clf = CacheAdapterClassifier(TEXTS, alpha=alpha, beta=beta, **options)
            right += clf.fit(X[left], y[left]).predict(X[i : i + 1])[0] == y[i]
        return right

    best = accuracy(chosen.alpha_, chosen.beta_)
    some = [(a, b) for a in _ALPHAS[::5] for b in _BETAS[::50]]
    found = {pair: accuracy(*pair) for pair in some}
    assert len(set(found.values())) > 1
    assert best >= max(found.values())
    # The first of those as good, by alpha and then by beta.
    assert all(pair >= (chosen.alpha_, chosen.beta_) for pair in some if found[pair] == best)


def test_choice_keeps_a_number_that_is_given():
    X, y, _ = shots()
    clf = CacheAdapterClassifier(TEXTS, alpha="cv", beta=2.5).fit(X, y)
    assert clf.beta_ == 2.5
    assert clf.alpha_ in _ALPHAS


def test_choice_without_two_rows_of_a_class_is_refused():
    X, y, _ = shots(counts=(1, 1, 1, 1))
    with pytest.raises(ValueError, match="no two rows of one class"):
        CacheAdapterClassifier(TEXTS, alpha="cv").fit(X, y)


def test_no_epochs_of_training_leave_the_keys():
    X, y, queries = shots()
    trained = CacheAdapterClassifier(TEXTS, train_keys=True, epochs=0).fit(X, y)
    np.testing.assert_array_equal(
        trained.class_scores(queries), CacheAdapterClassifier(TEXTS).fit(X, y).class_scores(queries)
    )


def test_full_batch_training_equals_torch_with_the_epsilon_of_the_release():
    X, y, _ = shots()
    options = {"alpha": 2.0, "beta": 3.0, "logit_scale": 2.0}
    clf = CacheAdapterClassifier(TEXTS, train_keys=True, lr=0.01, epochs=6, **options).fit(X, y)
    keys = torch.nn.Parameter(torch.tensor(unit(X)))
    rows, texts, target = torch.tensor(unit(X)), torch.tensor(unit(TEXTS)), torch.tensor(y)
    optimizer = torch.optim.AdamW([keys], lr=0.01, eps=1e-4)
    for step in range(6):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 + np.cos(np.pi * step / 6)) / 2
        votes = torch.nn.functional.one_hot(target).double()
        cache = torch.exp(-3.0 * (1 - rows @ keys.T)) @ votes
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(2.0 * rows @ texts.T + 2.0 * cache, target).backward()
        optimizer.step()
    assert (keys.detach() - torch.tensor(unit(X))).abs().max() > 0.01
    np.testing.assert_allclose(clf.keys_, keys.detach(), atol=1e-7)


@pytest.mark.parametrize("train_keys", [False, True])
def test_appended_rows_equal_a_refit(train_keys):
    X, y, queries = shots()
    clf = CacheAdapterClassifier(TEXTS, train_keys=train_keys, lr=0.01, epochs=3, batch_size=5)
    parts = clone(clf).partial_fit(X[7:], y[7:])
    _ = parts.keys_
    parts.partial_fit(X[:7], y[:7])
    whole = clone(clf).fit(X, y)
    np.testing.assert_allclose(parts.class_scores(queries), whole.class_scores(queries))
    np.testing.assert_allclose(
        parts.forget(X[:7], y[:7]).class_scores(queries),
        clone(clf).fit(X[7:], y[7:]).class_scores(queries),
    )


def test_forgetting_a_copy_leaves_the_other():
    X, y, _ = shots()
    clf = CacheAdapterClassifier(TEXTS).fit(np.tile(X, (2, 1)), np.tile(y, 2)).forget(X, y)
    np.testing.assert_array_equal(clf.cache_rows_, X)
    with pytest.raises(ValueError, match="Row 1 of X with label"):
        clf.forget(X[[0, 0]], y[[0, 0]])


def test_label_without_text_is_refused_and_changes_nothing():
    X, y, _ = shots()
    clf = CacheAdapterClassifier(TEXTS).fit(X, y)
    for call in (clf.partial_fit, clf.fit):
        with pytest.raises(ValueError, match="label 9 has no embedding among the 4"):
            call(X[:1], [9])
    np.testing.assert_array_equal(clf.cache_rows_, X)


def test_texts_of_another_width_are_refused():
    X, y, _ = shots()
    with pytest.raises(ValueError, match="class_embeddings have 10 features and X has 9"):
        CacheAdapterClassifier(TEXTS).fit(X[:, :9], y)
