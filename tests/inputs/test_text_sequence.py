# SPDX-License-Identifier: BSD-3-Clause
import hashlib
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import KFold, train_test_split

from skpool.inputs import TextSequence, text_key

TEXTS = ["one", "two", "", "Größe \N{SNOWMAN}", "two", "six"]


def _forms():
    yield "list", TEXTS
    yield "tuple", tuple(TEXTS)
    yield "objects", np.array(TEXTS, dtype=object)
    yield "unicode", np.array(TEXTS)
    yield "sequence", TextSequence(TEXTS)
    yield "view", TextSequence([*TEXTS, "more"])[:6]


@pytest.mark.parametrize("form", dict(_forms()))
def test_every_container_holds_the_same_texts(form):
    texts = TextSequence(dict(_forms())[form])
    assert list(texts) == TEXTS
    assert (len(texts), texts.shape, texts.ndim) == (6, (6,), 1)
    assert {type(text) for text in texts} == {str}


@pytest.mark.parametrize("dtype", ["object", "string", "category"])
def test_series_of_any_text_type_is_read_in_its_order(dtype):
    pandas = pytest.importorskip("pandas")
    column = pandas.Series(TEXTS, index=range(5, -1, -1), dtype=dtype)
    assert list(TextSequence(column)) == TEXTS


@given(st.lists(st.text(), min_size=1), st.data())
def test_index_is_that_of_an_array(texts, data):
    n = len(texts)
    array = np.empty(n, dtype=object)
    array[:] = texts
    index = data.draw(
        st.one_of(
            st.slices(n),
            st.lists(st.integers(-n, n - 1)).map(lambda x: np.array(x, dtype=int)),
            st.lists(st.booleans(), min_size=n, max_size=n).map(np.array),
        )
    )
    assert list(TextSequence(texts)[index]) == array[index].tolist()
    assert list(TextSequence(texts)[(index, ...)]) == array[index].tolist()


def test_one_number_gives_one_text():
    texts = TextSequence(TEXTS)
    assert texts[1] == texts[np.int64(-5)] == texts[(1, ...)] == "two"
    assert isinstance(texts[1], str)


def test_index_of_a_view_composes():
    assert list(TextSequence(TEXTS)[[4, 3, 0]][1:][::-1]) == ["one", "Größe \N{SNOWMAN}"]


def test_two_dimensional_index_is_refused():
    with pytest.raises(IndexError, match="one dimension"):
        TextSequence(TEXTS)[np.zeros((2, 2), dtype=int)]


def test_splitters_keep_it_a_sequence():
    texts = TextSequence(TEXTS)
    train, test = train_test_split(texts, test_size=2, random_state=0)
    assert isinstance(train, TextSequence)
    assert sorted([*train, *test]) == sorted(TEXTS)
    for fold, _ in KFold(3).split(texts):
        assert list(texts[fold]) == [TEXTS[i] for i in fold]


def test_key_is_the_hash_of_the_text():
    expected = hashlib.sha256(b"text\0" + "Größe".encode()).digest()[:16]
    assert text_key("Größe") == expected
    assert TextSequence(["x", "Größe"]).keys()[1].tobytes() == expected


@given(st.text(), st.text())
def test_keys_are_equal_exactly_for_equal_texts(a, b):
    assert (text_key(a) == text_key(b)) == (a == b)


def test_keys_of_a_view_and_a_pickle_are_those_of_the_base():
    texts = TextSequence(TEXTS)
    view = texts[[5, 1, 1]]
    back = pickle.loads(pickle.dumps(view))
    assert list(back) == ["six", "two", "two"]
    for keys in (view.keys(), back.keys()):
        np.testing.assert_array_equal(keys, texts.keys()[[5, 1, 1]])
    assert keys[1] == texts.keys()[4]


def test_pickle_of_a_view_carries_no_other_text():
    view = TextSequence(["x" * 10**6, "y"])[1:]
    assert len(pickle.dumps(view)) < 2000
    assert pickle.loads(pickle.dumps(view)).name(0) == "X[1]"


def test_names_are_positions_in_what_the_user_gave():
    assert TextSequence(TEXTS)[[4, 2]].name(1) == "X[2]"


@pytest.mark.parametrize("missing", [None, float("nan"), np.float64("nan")])
def test_missing_text_is_named(missing):
    with pytest.raises(ValueError, match=r"samples\[1\] is missing .*fillna"):
        TextSequence(["a", missing])


def test_missing_entry_of_a_series_is_named():
    pandas = pytest.importorskip("pandas")
    for column in (pandas.Series(["a", None]), pandas.Series(["a", None], dtype="string")):
        with pytest.raises(ValueError, match=r"samples\[1\] is missing"):
            TextSequence(column)


@pytest.mark.parametrize("item", [3, 2.5, b"bytes", ["a"], True])
def test_other_types_are_refused_by_position(item):
    with pytest.raises(TypeError, match=r"samples\[2\]=.* is of type"):
        TextSequence(["a", "b", item])


@pytest.mark.parametrize(
    ("samples", "error", "match"),
    [
        ("one text", TypeError, "a single text; pass a list"),
        (b"one text", TypeError, "a single text"),
        ([], ValueError, r"0 sample\(s\)"),
        (np.array([], dtype=str), ValueError, r"0 sample\(s\)"),
        (np.array([["a", "b"]]), TypeError, r"shape \(1, 2\)"),
        (np.array("a"), TypeError, r"shape \(\)"),
        (None, TypeError, "of type NoneType"),
        ({"a": 1}, TypeError, "of type dict"),
        (iter(["a"]), TypeError, "pass a list"),
        (np.arange(3), TypeError, r"samples\[0\]=0"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(samples, error, match):
    with pytest.raises(error, match=match):
        TextSequence(samples)


def test_table_asks_for_a_column():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(TypeError, match=r"one column"):
        TextSequence(pandas.DataFrame({"text": ["a"]}))


def test_half_of_a_surrogate_pair_is_named():
    with pytest.raises(ValueError, match=r"X\[1\]: .*surrogate"):
        TextSequence(["a", "\ud800"]).keys()


def test_repr_shows_the_first_texts():
    assert repr(TextSequence(TEXTS)) == "TextSequence of 6 texts: 'one', 'two', '', ..."
