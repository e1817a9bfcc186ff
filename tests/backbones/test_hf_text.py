# SPDX-License-Identifier: BSD-3-Clause
import json
import pickle

import numpy as np
import pytest
import torch
from text_nets import DECODERS, ENCODERS, TEXTS, make_model, make_tokenizer, save_text_model

from skpool.backbones import Backbone, ImageRecipe, TextRecipe, check_frozen
from skpool.exceptions import BackboneError

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Directory, model and tokenizer by architecture, made when first asked for."""
    made = {}

    def get(kind):
        if kind not in made:
            directory = tmp_path_factory.mktemp(kind)
            made[kind] = (directory, *save_text_model(kind, directory))
        return made[kind]

    return get


def _own_pass(model, tokenizer, texts, side="right"):
    """Hidden states, last output and mask, by the libraries themselves."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
    options = {}
    if side == "left":
        options["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        own = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            output_hidden_states=True,
            **options,
        )
    return own.hidden_states, own.last_hidden_state, batch["attention_mask"].bool()


def _texts_for(kind):
    # Where the tokenizer makes nothing of an empty text, the libraries cannot run it.
    return [text for text in TEXTS if text or kind != "gpt2"]


@pytest.mark.parametrize("kind", [*ENCODERS, *DECODERS])
def test_tokens_of_every_layer_equal_the_models_own(kind, models):
    directory, model, tokenizer = models(kind)
    texts = _texts_for(kind)
    hidden, last, real = _own_pass(model, tokenizer, texts)
    backbone = Backbone(f"hf:{directory}")
    assert backbone.modality == "text"
    assert backbone.layers == range(4)
    batch = backbone.prepare(texts)
    tokens, mask = backbone.forward(batch, [0, 1, 2, -1])
    torch.testing.assert_close(mask, real)
    for got, expected in zip(tokens, [*hidden[:3], last], strict=True):
        torch.testing.assert_close(got[mask], expected[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", DECODERS)
def test_right_padding_equals_left_padding_of_a_decoder(kind, models):
    directory, model, tokenizer = models(kind)
    texts = _texts_for(kind)
    _, last, real = _own_pass(model, tokenizer, texts, side="left")
    assert not real[:, 0].all()
    backbone = Backbone(f"hf:{directory}")
    (tokens,), mask = backbone.forward(backbone.prepare(texts))
    torch.testing.assert_close(tokens[mask], last[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "has_norm"),
    [("bert", False), ("roberta", False), ("llama", True), ("gpt2", True), ("t5", True)],
)
def test_final_norm_is_found_where_there_is_one(kind, has_norm, models):
    directory, *_ = models(kind)
    network = Backbone(f"hf:{directory}").network()
    assert (network.final_norm is not None) == has_norm
    batch = network.prepare(["frozen features"])
    (raw,) = network.forward(batch, [-1], norm="none")
    (last,) = network.forward(batch, [-1])
    if has_norm:
        assert (raw - last).abs().max() > 1e-3
        torch.testing.assert_close(network.final_norm(raw), last, rtol=1e-5, atol=1e-5)
    else:
        torch.testing.assert_close(raw, last)


def test_norm_of_every_layer_is_the_final_norm_of_it(models):
    directory, model, tokenizer = models("llama")
    hidden, _, real = _own_pass(model, tokenizer, TEXTS)
    backbone = Backbone(f"hf:{directory}")
    (tokens,), mask = backbone.forward(backbone.prepare(TEXTS), [1], norm="all")
    with torch.no_grad():
        expected = model.norm(hidden[1])
    torch.testing.assert_close(tokens[mask], expected[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama", "t5"])
def test_ids_equal_the_tokenizers_own(kind, models):
    directory, _, tokenizer = models(kind)
    backbone = Backbone(f"hf:{directory}")
    batch = backbone.prepare(TEXTS)
    for row, text in zip(batch, TEXTS, strict=True):
        assert row[row >= 0].tolist() == tokenizer(text)["input_ids"]


def test_long_text_keeps_its_special_tokens(models):
    directory, _, tokenizer = models("bert")
    batch = Backbone(f"hf:{directory}").prepare(["a " * 100], size=10)
    expected = tokenizer("a " * 100, truncation=True, max_length=10)["input_ids"]
    assert batch.tolist() == [expected]


@pytest.mark.parametrize(
    ("kind", "limit"), [("bert", 128), ("roberta", 126), ("llama", 128), ("t5", None)]
)
def test_most_tokens_are_those_with_a_position(kind, limit, models):
    directory, *_ = models(kind)
    network = Backbone(f"hf:{directory}").network()
    if limit is None:
        assert network.max_length > 10**5
        return
    assert network.max_length == limit
    tokens = network.forward(network.prepare(["a " * 200]), [-1])[0]
    assert tokens.shape[1] == limit


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_texts_are_frozen_functions(kind, models):
    directory, *_ = models(kind)
    report = check_frozen(Backbone(f"hf:{directory}"), TEXTS)
    assert max(report.values()) < 1e-4


class _LooksAtPadding(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(256, 4)

    def forward(self, ids):
        return self.embed(ids) + ids.shape[1]


def test_network_that_depends_on_padding_is_not_frozen():
    backbone = Backbone.from_module(_LooksAtPadding(), recipe=TextRecipe(), tokenizer=str.encode)
    with pytest.raises(BackboneError, match="alone differs"):
        check_frozen(backbone, ["short", "somewhat longer"])


def test_decoder_inside_a_pair_of_encoder_and_decoder_is_left_out(tmp_path):
    config = transformers.BartConfig(
        vocab_size=200,
        d_model=16,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=32,
    )
    tokenizer = make_tokenizer("bert")
    config.vocab_size = len(tokenizer)
    model = transformers.BartModel(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    backbone = Backbone(f"hf:{tmp_path}")
    batch = tokenizer(["a network"], return_tensors="pt")
    with torch.no_grad():
        expected = model.get_encoder()(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).last_hidden_state
    got = backbone.forward(backbone.prepare(["a network"]))[0][0]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_blocks_that_serve_several_layers_leave_the_output_alone(tmp_path):
    config = transformers.AlbertConfig(
        hidden_size=16,
        embedding_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
    )
    tokenizer = make_tokenizer("bert")
    config.vocab_size = len(tokenizer)
    model = transformers.AlbertModel(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    backbone = Backbone(f"hf:{tmp_path}")
    assert backbone.layers == range(1)
    with torch.no_grad():
        expected = model(**tokenizer(["a network"], return_tensors="pt")).last_hidden_state
    got = backbone.forward(backbone.prepare(["a network"]))[0][0]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_pickle_holds_the_name_and_fingerprints_agree(models, tmp_path):
    directory, *_ = models("bert")
    backbone = Backbone(f"hf:{directory}", recipe=TextRecipe("cls"))
    assert len(pickle.dumps(backbone)) < 1000
    back = pickle.loads(pickle.dumps(backbone))
    assert back == backbone
    assert back.recipe.pooling == "cls"
    save_text_model("bert", tmp_path)
    assert Backbone(f"hf:{tmp_path}").fingerprint == backbone.fingerprint


def test_another_tokenizer_is_another_fingerprint(models, tmp_path):
    directory, model, _ = models("bert")
    model.save_pretrained(tmp_path)
    tokenizer = make_tokenizer("bert")
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["normalizer"]["lowercase"] = False
    other = transformers.PreTrainedTokenizerFast(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(json.dumps(content)),
        **{n: getattr(tokenizer, n) for n in ("cls_token", "sep_token", "pad_token", "unk_token")},
    )
    other.save_pretrained(tmp_path)
    one, two = Backbone(f"hf:{directory}"), Backbone(f"hf:{tmp_path}")
    assert one.network().tokenizer.ids(["Network"]) != two.network().tokenizer.ids(["Network"])
    assert one.fingerprint != two.fingerprint


# Bad files.


def test_model_without_tokenizer_says_so(tmp_path):
    make_model("bert", 40).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="tokenizer"):
        Backbone(f"hf:{tmp_path}").network()


def test_directory_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(BackboneError, match=r"holds no config.json"):
        Backbone(f"hf:{tmp_path}", recipe=TextRecipe()).network()


def test_missing_weights_are_refused_and_not_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    save_text_model("bert", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if "output.dense.weight" in name)
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match="do not fill the model"):
        Backbone(f"hf:{tmp_path}").network()


class _Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_code_in_a_file_of_weights_is_never_run(tmp_path):
    save_text_model("bert", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    trap = tmp_path / "trap"
    torch.save({"x": _Bomb(str(trap))}, tmp_path / "pytorch_model.bin")
    with pytest.raises(BackboneError, match=r"code beside weights|could not be loaded"):
        Backbone(f"hf:{tmp_path}").network()
    assert not trap.exists()


def test_code_beside_a_model_is_never_run(tmp_path):
    save_text_model("bert", tmp_path)
    trap = tmp_path / "trap"
    (tmp_path / "own.py").write_text(
        f"open({str(trap)!r}, 'w').close()\n"
        "from transformers import BertModel as Own, BertConfig as OwnConfig\n"
    )
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "own.Own", "AutoConfig": "own.OwnConfig"}
    config["model_type"] = "own"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BackboneError, match="never run"):
        Backbone(f"hf:{tmp_path}").network()
    assert not trap.exists()


@pytest.mark.parametrize(
    ("spec", "recipe"),
    [("glyph", TextRecipe()), ("st:some/model", ImageRecipe())],
)
def test_recipe_of_the_other_kind_is_refused(spec, recipe):
    with pytest.raises(BackboneError, match="does not fit"):
        Backbone(spec, recipe=recipe)


def test_padding_token_without_a_row_of_its_own_is_replaced(tmp_path):
    tokenizer = make_tokenizer("llama")
    model = make_model("llama", len(tokenizer))
    tokenizer.add_special_tokens({"pad_token": "<extra>"})
    assert tokenizer.pad_token_id >= model.config.vocab_size
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    backbone = Backbone(f"hf:{tmp_path}")
    (together,), mask = backbone.forward(backbone.prepare(TEXTS))
    alone = backbone.forward(backbone.prepare(TEXTS[:1]))[0][0]
    np.testing.assert_allclose(together[0][mask[0]], alone[0], atol=1e-5)
