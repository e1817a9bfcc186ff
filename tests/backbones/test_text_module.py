# SPDX-License-Identifier: BSD-3-Clause
import pickle

import numpy as np
import pytest
import torch
from text_nets import TEXTS, LetterNet, letter_backbone, make_tokenizer

from skpool.backbones import Backbone, TextRecipe, check_frozen
from skpool.exceptions import BackboneError


def code_points(text):
    return [ord(letter) % 256 for letter in text]


def other_points(text):
    return [(ord(letter) + 1) % 256 for letter in text]


def _of(tokenizer, module=None, **options):
    return Backbone.from_module(
        module or LetterNet(), recipe=TextRecipe(), tokenizer=tokenizer, **options
    )


def test_tokens_are_those_of_the_module():
    module = LetterNet().eval()
    backbone = letter_backbone()
    (first, last), mask = backbone.forward(backbone.prepare(["abc", "é"]), [1, -1])
    assert mask.tolist() == [[True, True, True], [True, True, False]]
    ids = torch.tensor([[97, 98, 99]])
    with torch.no_grad():
        expected = module(ids, torch.ones_like(ids).bool())
        embedded = module.embed(ids)
        block = module.blocks[0](embedded + embedded.mean(1, keepdim=True))
    torch.testing.assert_close(last[:1], expected)
    torch.testing.assert_close(first[:1], block)
    assert backbone.modality == "text"
    assert (backbone.layers, backbone.n_features) == (range(3), 6)
    assert backbone.recommended_pooling == "mean"
    check_frozen(backbone, [text for text in TEXTS if text])


def test_module_that_takes_ids_alone_is_called_with_them():
    backbone = _of(str.encode, torch.nn.Embedding(256, 3))
    tokens = backbone.forward(backbone.prepare(["ab"]))[0][0]
    torch.testing.assert_close(tokens[0], backbone.network().module.weight[[97, 98]])


def test_empty_text_has_one_token():
    batch = letter_backbone().prepare(["", "abc"])
    assert batch.tolist() == [[0, -1, -1], [97, 98, 99]]


def test_tokenizer_is_part_of_the_fingerprint():
    prints = [_of(tokenizer).fingerprint for tokenizer in (code_points, other_points, str.encode)]
    assert len(set(prints)) == 3
    assert _of(code_points).fingerprint == prints[0]
    assert _of(code_points, LetterNet(seed=1)).fingerprint != prints[0]


def test_value_closed_over_by_a_tokenizer_is_part_of_the_fingerprint():
    def shifted(by):
        return lambda text: [(ord(letter) + by) % 256 for letter in text]

    assert _of(shifted(1)).fingerprint != _of(shifted(2)).fingerprint
    assert _of(shifted(1)).fingerprint == _of(shifted(1)).fingerprint


def test_recipe_is_no_part_of_the_fingerprint_of_tokens():
    # Pooling and prompts change no token, so stored tokens serve any of them.
    assert letter_backbone().fingerprint == letter_backbone(pooling="last").fingerprint


def test_tokenizer_of_transformers_is_accepted():
    pytest.importorskip("transformers")
    raw = make_tokenizer("bert")
    backbone = _of(raw)
    batch = backbone.prepare(TEXTS)
    for row, text in zip(batch, TEXTS, strict=True):
        assert row[row >= 0].tolist() == raw(text)["input_ids"]
    back = pickle.loads(pickle.dumps(backbone))
    assert back.fingerprint == backbone.fingerprint


def test_pickle_brings_module_and_tokenizer_along():
    backbone = _of(code_points)
    back = pickle.loads(pickle.dumps(backbone))
    assert back == backbone
    tokens = [b.forward(b.prepare(["text"]))[0][0] for b in (backbone, back)]
    np.testing.assert_array_equal(*tokens)


@pytest.mark.parametrize("tokenizer", [None, 3, "bert"])
def test_what_is_no_tokenizer_is_refused(tokenizer):
    with pytest.raises(TypeError, match="give a function"):
        _of(tokenizer)


def test_unknown_layer_path_is_refused():
    with pytest.raises(BackboneError, match="give dotted names"):
        _of(str.encode, layer_paths=["no.such"])


def test_recipe_limits_the_length():
    backbone = letter_backbone(max_length=4)
    assert backbone.prepare(["0123456789"]).shape == (1, 4)
    assert backbone.layout().n_tokens == 4
    assert backbone.prepare(["0123456789"], size=2).shape == (1, 2)
