# SPDX-License-Identifier: BSD-3-Clause
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_nets import TEXTS, make_tokenizer

from skpool.backbones import Tokenizer
from skpool.extraction._text_tokens import TextReader, TextRules

LEAD, TRAIL, EOS = [1001, 1002], [1003], 1004
NEWLINE = ord("\n")


def letters(*, lead=LEAD, trail=TRAIL, has_cls=True, eos=EOS) -> Tokenizer:
    """Bytes of a text as its tokens, in special ones above a thousand."""
    return Tokenizer(
        str.encode, lead=lead, trail=trail, has_cls=has_cls, eos=eos, fallback=999, name=""
    )


def read(text, tokenizer=None, **rules):
    """The windows of one text: ids, and the ids that are handed on."""
    rules = TextRules(**{"max_length": 10**6, **rules})
    windows, cut = TextReader(tokenizer or letters(), rules).read([text])
    kept = [w.ids if w.keep is None else kept_of(w) for w in windows[0]]
    for window, ids in zip(windows[0], kept, strict=True):
        assert window.n_kept == len(ids) >= 1
    return [w.ids for w in windows[0]], kept, cut[0]


def kept_of(window):
    return [i for i, keep in zip(window.ids, window.keep, strict=True) if keep]


def codes(text):
    return list(text.encode())


def test_plain_text_stands_between_special_tokens():
    ids, kept, cut = read("ab")
    assert ids == kept == [[*LEAD, *codes("ab"), *TRAIL]]
    assert not cut


def test_empty_text_is_its_special_tokens():
    assert read("")[1] == [[*LEAD, *TRAIL]]
    assert read("", letters(lead=[], trail=[]))[1] == [[999]]


def test_prefix_counts_and_instruction_does_not():
    ids, kept, _ = read("text", prefix="p ", instruction="i: ")
    assert ids == [[*LEAD, *codes("p i: text"), *TRAIL]]
    # A class token sees everything; another special token before the instruction does not.
    assert kept == [[LEAD[0], *codes("p text"), *TRAIL]]
    assert read("text", letters(has_cls=False), instruction="i: ")[1] == [[*codes("text"), *TRAIL]]


def test_included_instruction_is_a_prefix():
    included = read("text", prefix="p ", instruction="i: ", exclude_instruction=False)
    assert included == read("text", prefix="p i: ")


def test_empty_instruction_changes_nothing():
    assert read("text", instruction="") == read("text")


def test_instruction_without_text_leaves_something():
    ids, kept, _ = read("", letters(lead=[], trail=[]), instruction="i: ")
    assert ids == [codes("i: ")]
    assert kept == [codes(" ")]


def test_end_token_is_added_only_where_nothing_ends_a_text():
    assert read("a", add_eos=True)[0] == [[*LEAD, *codes("a"), *TRAIL]]
    assert read("a", letters(trail=[]), add_eos=True)[0] == [[*LEAD, *codes("a"), EOS]]
    with pytest.raises(ValueError, match="needs an end token"):
        read("a", letters(trail=[], eos=None), add_eos=True)


def test_echo_hands_on_the_second_copy():
    ids, kept, _ = read("abc", letters(has_cls=False), echo=True)
    assert ids == [[*LEAD, *codes("abc"), NEWLINE, *codes("abc"), *TRAIL]]
    assert kept == [[*codes("abc"), *TRAIL]]


def test_echo_cuts_both_copies_alike():
    ids, kept, cut = read("abcdefgh", letters(lead=[], trail=[]), echo=True, max_length=8)
    assert ids == [[*codes("abc"), NEWLINE, *codes("abc")]]
    assert kept == [codes("abc")]
    assert cut


@given(st.text(max_size=30), st.integers(5, 40))
def test_cut_text_keeps_its_beginning_and_special_tokens(text, max_length):
    ids, _, cut = read(text, max_length=max_length)
    whole = codes(text)
    room = max_length - 3
    assert ids == [[*LEAD, *whole[:room], *TRAIL]]
    assert cut == (len(whole) > room)


@given(st.text(min_size=1, max_size=60), st.integers(5, 30), st.data())
def test_windows_cover_a_text_with_the_overlap_asked_for(text, chunk, data):
    room = chunk - 3
    overlap = data.draw(st.integers(0, room - 1))
    ids, kept, cut = read(text, chunk=chunk, overlap=overlap)
    whole, pieces = codes(text), [row[2:-1] for row in ids]
    assert not cut
    assert ids == kept
    assert all(row[:2] == LEAD and row[-1:] == TRAIL and len(row) <= chunk for row in ids)
    rebuilt = list(pieces[0])
    for before, piece in pairwise(pieces):
        # All but the last are full, and every one brings something new.
        assert len(before) == room
        assert before[len(before) - overlap :] == piece[:overlap]
        assert len(piece) > overlap
        rebuilt += piece[overlap:]
    assert rebuilt == whole


def test_window_that_holds_the_text_is_the_only_one():
    assert read("abcdef", chunk=9) == read("abcdef")
    assert len(read("abcdef", chunk=8)[0]) == 2


def test_every_window_has_the_instruction():
    ids, kept, _ = read("abcd", letters(lead=[], trail=[]), instruction="i:", chunk=4)
    assert ids == [codes("i:ab"), codes("i:cd")]
    assert kept == [codes("ab"), codes("cd")]


@pytest.mark.parametrize(
    ("rules", "match"),
    [
        ({"max_length": 3}, "max_length=3 leaves no token"),
        ({"max_length": 8, "prefix": "12345"}, "beside 5 of prefix"),
        ({"max_length": 5, "echo": True}, "max_length=5 leaves no token"),
        ({"max_length": 50, "chunk": 3}, "chunk=3 leaves no token"),
        ({"max_length": 50, "chunk": 9, "overlap": 6}, "less than the 6 tokens"),
    ],
)
def test_rules_that_leave_no_room_are_refused(rules, match):
    with pytest.raises(ValueError, match=match):
        TextReader(letters(), TextRules(**rules)).room()


def test_room_is_what_fits():
    assert TextReader(letters(), TextRules(max_length=10)).room() == 7


# With tokenizers whose tokens are not letters.


@pytest.fixture(params=["bert", "roberta", "llama", "gpt2", "t5"])
def tokenizer(request):
    pytest.importorskip("transformers")
    from skpool.backbones._hf_text import HFTokenizer

    raw = make_tokenizer(request.param)
    return HFTokenizer(raw), raw


def test_ids_with_prefix_are_those_of_the_joined_text(tokenizer):
    ours, raw = tokenizer
    for text in TEXTS:
        ids, _, _ = read(text, ours, prefix="the key: ", instruction="a fold ")
        assert ids == [raw("the key: a fold " + text)["input_ids"]]


def test_tokens_handed_on_are_those_of_the_text(tokenizer):
    ours, raw = tokenizer
    for text in filter(None, TEXTS):
        ids, kept, _ = read(text, ours, instruction="a key and a fold\n")
        last = kept[0] if not ours.trail else kept[0][: -len(ours.trail)]
        body = last[1:] if ours.has_cls else last
        assert body == raw(text, add_special_tokens=False)["input_ids"]
        assert len(ids[0]) > len(kept[0])


def test_token_that_reaches_into_the_text_counts(tokenizer):
    ours, raw = tokenizer
    # A byte-pair tokenizer joins the blank to the word that follows it.
    kept = read("network", ours, instruction="a ")[1]
    inside = kept[0][int(ours.has_cls) : len(kept[0]) - len(ours.trail)]
    pieces = "".join(raw.convert_ids_to_tokens(inside))
    assert pieces.replace("##", "").lstrip("\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}") == "network"


def test_echo_is_the_text_on_two_lines(tokenizer):
    ours, raw = tokenizer
    text = "every text has a key"
    ids, kept, _ = read(text, ours, echo=True)
    assert ids == [raw(f"{text}\n{text}")["input_ids"]]
    once = raw(text, add_special_tokens=False)["input_ids"]
    assert kept[0][-len(once) - len(ours.trail) :] == [*once, *ours.trail]
