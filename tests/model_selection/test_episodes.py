# SPDX-License-Identifier: BSD-3-Clause
"""Episodes against what the definition says of every single one, and uniform draws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from skpool.model_selection import EpisodeSplit, MetaClassSplit

DRAWS = settings(deadline=None, max_examples=40)


def labels(n_classes=8, n_rows=20):
    return np.random.default_rng(0).permutation(np.repeat(np.arange(n_classes), n_rows))


def real(rows):
    return rows[rows >= 0]


@st.composite
def splits(draw):
    """A split, and labels of unequal classes that allow it, as text or numbers."""
    n_way, n_shot = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    pair = draw(st.sampled_from(["fixed", (1, n_shot), (n_shot, n_shot)]))
    sizes = draw(st.lists(st.integers(n_shot + 1, 12), min_size=n_way, max_size=8))
    names = draw(st.permutations([7, -1, 3, 100, 0, 2, 5, 9]))[: len(sizes)]
    y = np.random.default_rng(draw(st.integers(0, 99))).permutation(np.repeat(names, sizes))
    split = EpisodeSplit(
        n_way,
        n_shot,
        draw(st.integers(1, 8)),
        n_episodes=draw(st.integers(1, 30)),
        query_distribution=draw(st.sampled_from(["balanced", "dirichlet", "all"])),
        dirichlet_alpha=draw(st.sampled_from([0.01, 2.0])),
        shot_distribution=pair,
        random_state=draw(st.integers(0, 99)),
    )
    return split, y.astype(str) if draw(st.booleans()) else y


@DRAWS
@given(splits())
def test_no_row_is_drawn_twice_in_an_episode(drawn):
    split, y = drawn
    index = split.episodes(y)
    for support, query in zip(index.support, index.query, strict=True):
        rows = np.concatenate([real(support), real(query)])
        assert len(np.unique(rows)) == len(rows)


@DRAWS
@given(splits())
def test_local_numbers_name_the_labels_of_the_rows(drawn):
    split, y = drawn
    index = split.episodes(y)
    for e in range(len(index)):
        assert index.classes[e].tolist() == sorted(set(index.classes[e].tolist()))
        assert len(index.classes[e]) == split.n_way
        for rows, numbers in (
            (index.support[e], index.support_labels[e]),
            (index.query[e], index.query_labels[e]),
        ):
            np.testing.assert_array_equal(rows < 0, numbers < 0)
            np.testing.assert_array_equal(y[real(rows)], index.classes[e][real(numbers)])


@DRAWS
@given(splits())
def test_every_class_has_its_shots(drawn):
    split, y = drawn
    low, high = (
        (split.n_shot,) * 2 if split.shot_distribution == "fixed" else split.shot_distribution
    )
    for numbers in split.episodes(y).support_labels:
        shots = np.bincount(real(numbers), minlength=split.n_way)
        assert low <= shots.min() and shots.max() <= high


@DRAWS
@given(splits())
def test_queries_are_as_many_as_asked_for_or_as_there_are(drawn):
    split, y = drawn
    index = split.episodes(y)
    for e in range(len(index)):
        held = np.array([(y == label).sum() for label in index.classes[e]])
        free = held - np.bincount(real(index.support_labels[e]), minlength=split.n_way)
        asked = np.bincount(real(index.query_labels[e]), minlength=split.n_way)
        if split.query_distribution == "all":
            np.testing.assert_array_equal(asked, free)
        elif split.query_distribution == "balanced":
            np.testing.assert_array_equal(asked, np.minimum(free, split.n_query))
        else:
            assert (asked <= free).all()
            assert asked.sum() == min(split.n_way * split.n_query, free.sum())


@DRAWS
@given(splits())
def test_padding_stands_last(drawn):
    split, y = drawn
    index = split.episodes(y)
    for rows in (index.support, index.query):
        assert (np.diff((rows < 0).astype(int), axis=1) >= 0).all()


@DRAWS
@given(splits())
def test_split_yields_the_same_episodes(drawn):
    split, y = drawn
    index = split.episodes(y)
    pairs = list(split.split(None, y))
    assert len(pairs) == split.get_n_splits() == len(index)
    for (support, query), rows, asked in zip(pairs, index.support, index.query, strict=True):
        np.testing.assert_array_equal(support, real(rows))
        np.testing.assert_array_equal(query, real(asked))


def test_seed_decides_the_episodes():
    y = labels()
    one, same, other = (
        EpisodeSplit(n_episodes=50, random_state=seed).episodes(y) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(one.query, same.query)
    assert (one.query != other.query).any()


def test_instance_of_random_state_moves_on():
    split = EpisodeSplit(n_episodes=50, random_state=np.random.RandomState(0))
    assert (split.episodes(labels()).query != split.episodes(labels()).query).any()


@pytest.mark.parametrize("size", [12, 400])
def test_every_row_is_support_and_query_equally_often(size):
    # The second size is large beside the draws, the first is not.
    y = labels(4, size)
    index = EpisodeSplit(2, 3, 5, n_episodes=6000, random_state=1).episodes(y)
    assert chisquare(np.bincount(index.support.ravel(), minlength=len(y))).pvalue > 1e-3
    assert chisquare(np.bincount(index.query.ravel(), minlength=len(y))).pvalue > 1e-3


def test_every_pair_of_support_and_query_is_equally_frequent():
    y = np.zeros(6, dtype=int)
    index = EpisodeSplit(1, 1, 1, n_episodes=9000).episodes(y)
    pairs = np.bincount(index.support[:, 0] * 6 + index.query[:, 0], minlength=36).reshape(6, 6)
    assert not np.diagonal(pairs).any()
    assert chisquare(pairs[~np.eye(6, dtype=bool)]).pvalue > 1e-3


def test_many_queries_are_drawn_uniformly_too():
    y = labels(2, 300)
    index = EpisodeSplit(1, 1, 200, n_episodes=300).episodes(y)
    assert chisquare(np.bincount(index.query.ravel(), minlength=len(y))).pvalue > 1e-3


def test_every_set_of_classes_is_equally_frequent():
    index = EpisodeSplit(2, 1, 1, n_episodes=3000).episodes(labels(5))
    sets = np.bincount(index.classes @ [5, 1], minlength=25)
    assert chisquare(sets[sets > 0]).pvalue > 1e-3
    assert (sets > 0).sum() == 10


def test_dirichlet_proportions_have_the_variance_of_the_distribution():
    split = EpisodeSplit(4, 1, 50, n_episodes=4000, query_distribution="dirichlet")
    numbers = split.episodes(labels(4, 300)).query_labels
    shares = np.stack([(numbers == c).mean(axis=1) for c in range(4)], axis=1)
    # Of a component of Dir(2, 2, 2, 2): mean a / A, variance a (A - a) / (A^2 (A + 1)).
    assert shares.mean(axis=0) == pytest.approx(np.full(4, 0.25), abs=0.01)
    assert shares.var(axis=0) == pytest.approx(np.full(4, 2 * 6 / (64 * 9)), rel=0.1)


def test_shots_take_every_number_between_the_two():
    index = EpisodeSplit(3, n_episodes=300, shot_distribution=(2, 4)).episodes(labels())
    shots = [np.bincount(real(numbers)) for numbers in index.support_labels]
    assert chisquare(np.bincount(np.ravel(shots))[2:]).pvalue > 1e-3


def test_classes_restrict_the_draw():
    index = EpisodeSplit(2, n_episodes=50, classes=[6, 1, 4]).episodes(labels())
    assert set(index.classes.ravel()) == {1, 4, 6}


@pytest.mark.parametrize("n_sessions", [2, 5])
def test_groups_across_classes_stay_apart(n_sessions):
    y, groups = labels(6, 30), np.random.default_rng(1).integers(0, n_sessions, 180)
    for support, query in EpisodeSplit(4, 2, 5, n_episodes=60).split(None, y, groups):
        assert not set(groups[support]) & set(groups[query])
        assert set(y[support]) == set(y[query])
        assert len(support) == 8


def test_groups_within_classes_stay_apart():
    y = labels(6, 30)
    groups = np.char.add(y.astype(str), np.random.default_rng(1).choice(["a", "b", "c"], 180))
    index = EpisodeSplit(4, 3, 5, n_episodes=60, query_distribution="all").episodes(y, groups)
    for support, query in zip(index.support, index.query, strict=True):
        used = set(groups[support])
        free = [i for i in np.flatnonzero(np.isin(y, y[support])) if groups[i] not in used]
        assert sorted(real(query)) == free


def test_groups_do_not_matter_where_they_may_meet():
    y, groups = labels(), np.zeros(160, dtype=int)
    split = EpisodeSplit(n_episodes=5, groups_disjoint=False)
    np.testing.assert_array_equal(split.episodes(y, groups).query, split.episodes(y).query)


def test_class_of_one_group_is_named():
    y = np.repeat([3, 4, 5], 10)
    groups = np.where(y == 4, 0, np.arange(30))
    with pytest.raises(ValueError, match=r"\[4\] do not hold 1 rows beside"):
        EpisodeSplit(2).episodes(y, groups)


def test_groups_that_cannot_be_parted_are_refused():
    # Whichever group waits for the one class, its other class has no support left.
    y, groups = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 0])
    EpisodeSplit(2, 1, 1, n_episodes=3).episodes(y, groups)
    y, groups = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 2, 2, 0])
    with pytest.raises(ValueError, match="could not be parted"):
        EpisodeSplit(3, 1, 1, n_episodes=3).episodes(y, groups)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n_way": 9}, "n_way=9, but episodes can be drawn from 8 classes"),
        ({"n_shot": 20}, "hold fewer than 21 rows"),
        ({"shot_distribution": (1, 30)}, "hold fewer than 31 rows"),
        ({"shot_distribution": (3, 2)}, "two whole numbers"),
        ({"classes": [1, 2, 3, 4, 99]}, r"\[99\], of which y holds no row"),
        ({"n_query": 0}, "n_query"),
        ({"query_distribution": "even"}, "query_distribution"),
        ({"dirichlet_alpha": 0.0}, "dirichlet_alpha"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        EpisodeSplit(**options).episodes(labels())


def test_scarce_classes_are_named():
    y = np.array(["a"] * 5 + ["b"] + ["c"] * 5)
    with pytest.raises(ValueError, match=r"\['b'\] hold fewer than 2 rows"):
        EpisodeSplit(2).episodes(y)


def test_chance_features_score_one_in_n_way():
    y = labels(10, 40)
    X = np.random.default_rng(0).normal(size=(400, 3))
    cv = EpisodeSplit(4, 1, 10, n_episodes=150)
    scores = cross_val_score(KNeighborsClassifier(1), X, y, cv=cv)
    assert abs(scores.mean() - 0.25) < 4 * scores.std() / np.sqrt(150)


def test_number_of_jobs_changes_nothing():
    y = labels()
    X = np.random.default_rng(0).normal(size=(160, 3)) + y[:, None]
    cv = EpisodeSplit(4, 2, 5, n_episodes=12)
    one, two = (
        cross_val_score(KNeighborsClassifier(1), X, y, cv=cv, n_jobs=jobs) for jobs in (None, 2)
    )
    np.testing.assert_array_equal(one, two)


def test_search_takes_episodes_as_folds():
    y = labels()
    X = np.random.default_rng(0).normal(size=(160, 3)) + y[:, None]
    cv = EpisodeSplit(3, 5, 5, n_episodes=10)
    search = GridSearchCV(KNeighborsClassifier(), {"n_neighbors": [1, 15]}, cv=cv).fit(X, y)
    # All 15 supports vote alike, so that 15 neighbours know nothing.
    assert search.best_params_ == {"n_neighbors": 1}


def test_one_number_is_no_part_of_an_index():
    index = EpisodeSplit(n_episodes=4).episodes(labels())
    assert len(index[1:3]) == 2
    np.testing.assert_array_equal(index[[3, 0]].query[1], index.query[0])
    with pytest.raises(TypeError, match=r"take \[1:2\]"):
        index[1]


def test_parts_hold_all_rows_and_share_no_class():
    y = labels(50, 3)
    parts = MetaClassSplit().parts(y)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(150))
    held = [set(y[part]) for part in parts]
    assert [len(classes) for classes in held] == [32, 8, 10]
    assert len(set.union(*held)) == 50


def test_seed_decides_the_parts():
    y = labels(50, 3)
    one, other = (MetaClassSplit(random_state=seed).parts(y).novel for seed in (0, 1))
    assert set(y[one]) != set(y[other])


@pytest.mark.parametrize(
    ("fractions", "match"),
    [((0.5, 0.5), "three numbers"), ((0.9, 0.2, 0.1), "add up"), ((0.98, 0.01, 0.01), "without")],
)
def test_bad_fractions_are_refused(fractions, match):
    with pytest.raises(ValueError, match=match):
        MetaClassSplit(fractions).parts(labels())
