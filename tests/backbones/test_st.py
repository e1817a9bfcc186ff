# SPDX-License-Identifier: BSD-3-Clause
import json

import numpy as np
import pytest
from text_nets import TEXTS, make_tokenizer, save_text_model

from skpool.backbones import Backbone, TextRecipe
from skpool.exceptions import BackboneError
from skpool.extraction import TextFeatureExtractor

pytest.importorskip("transformers")


PACKAGE = "sentence_transformers.models."


def write_st(
    directory, kind="bert", pooling=None, *, folder="", modules=(), package=PACKAGE, **transformer
):
    """A model in the format of sentence-transformers, written by hand from its description."""
    (directory / folder).mkdir(exist_ok=True)
    save_text_model(kind, directory / folder)
    names = ["Transformer", "Pooling", *modules]
    listed = [
        {"idx": i, "name": str(i), "path": f"{i}_{name}" if i else folder, "type": package + name}
        for i, name in enumerate(names)
    ]
    (directory / "modules.json").write_text(json.dumps(listed))
    (directory / "1_Pooling").mkdir(exist_ok=True)
    content = pooling or {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(content))
    if transformer:
        (directory / folder / "sentence_bert_config.json").write_text(json.dumps(transformer))
    return f"st:{directory}"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len"),
        ({"pooling_mode_weightedmean_tokens": True}, "weighted_mean"),
        ({"pooling_mode": "max"}, "max"),
        ({"pooling_mode": ["lasttoken"]}, "last"),
        ({}, "mean"),
    ],
)
def test_pooling_is_read_in_both_forms(content, expected, tmp_path):
    pooling = {"embedding_dimension": 16, "include_prompt": True, **content}
    recipe = Backbone(write_st(tmp_path, pooling=pooling)).recipe
    assert recipe == TextRecipe(expected)


def test_normalisation_length_and_prompts_are_read(tmp_path):
    spec = write_st(tmp_path, modules=["Normalize"], max_seq_length=12)
    (tmp_path / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "query: ", "document": ""}})
    )
    backbone = Backbone(spec)
    assert backbone.recipe == TextRecipe(
        normalize=True, max_length=12, prompts=(("query", "query: "),)
    )
    assert backbone.network().max_length == 12
    with pytest.warns(UserWarning, match="not fit into 12 tokens"):
        TextFeatureExtractor(backbone).transform(["a " * 30])


def test_transformer_in_a_folder_is_found(tmp_path):
    spec = write_st(tmp_path, folder="0_Transformer", max_seq_length=20)
    assert Backbone(spec).network().max_length == 20


def test_lower_case_is_read(tmp_path):
    spec = write_st(tmp_path, "llama", do_lower_case=True)
    ids = Backbone(spec).network().tokenizer.ids(["NETWORK", "network", "ÄÖ", "äö"])
    assert ids[0] == ids[1]
    assert ids[2] == ids[3]


def test_own_recipe_goes_before_the_models(tmp_path):
    spec = write_st(tmp_path, max_seq_length=12)
    backbone = Backbone(spec, recipe=TextRecipe("cls"))
    assert backbone.network().recipe == TextRecipe("cls", max_length=12)
    assert Backbone(spec, recipe=TextRecipe(max_length=30)).network().max_length == 30


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"modules": ["Dense"]}, r"modules \['Transformer', 'Pooling', 'Dense'\]"),
        ({"modules": ["Dense", "Normalize"]}, "do the rest yourself"),
        (
            {"pooling": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}},
            r"pools by \['cls', 'mean'\]",
        ),
        ({"pooling": {"pooling_mode": "attention"}}, "pools by"),
        ({"package": "own_code."}, r"modules \['own_code.Transformer'"),
    ],
)
def test_what_is_not_understood_is_refused(change, match, tmp_path):
    with pytest.raises(BackboneError, match=match):
        Backbone(write_st(tmp_path, **change)).network()


def test_directory_of_another_format_points_to_hf(tmp_path):
    save_text_model("bert", tmp_path)
    with pytest.raises(BackboneError, match=r"no modules.json.*write 'hf:"):
        Backbone(f"st:{tmp_path}").network()


def test_damaged_json_is_a_plain_error(tmp_path):
    spec = write_st(tmp_path)
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(BackboneError, match="could not be loaded"):
        Backbone(spec).network()


def test_name_that_nobody_has_is_a_plain_error(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BackboneError, match=r"could not be loaded|no modules\.json"):
        Backbone("st:no-such-model-of-anybody").network()


# The library whose format it is.


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("sentence_transformers")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("bert", "mean"),
        ("bert", "cls"),
        ("bert", "max"),
        ("roberta", "mean_sqrt_len_tokens"),
        ("roberta", "weightedmean"),
        ("roberta", "lasttoken"),
        ("t5", "mean"),
    ],
)
def test_vectors_equal_those_of_sentence_transformers(kind, mode, library, tmp_path):
    spec = write_st(
        tmp_path, kind, {"word_embedding_dimension": 16, "pooling_mode": mode}, max_seq_length=30
    )
    expected = library.SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS)
    got = TextFeatureExtractor(spec).fit_transform(TEXTS)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_model_that_the_library_saved_is_read(library, tmp_path):
    write_st(tmp_path, modules=["Normalize"], max_seq_length=9)
    (tmp_path / "2_Normalize").mkdir()
    model = library.SentenceTransformer(str(tmp_path), device="cpu")
    model.save(str(tmp_path / "again"))
    n_long = sum(len(make_tokenizer("bert")(text)["input_ids"]) > 9 for text in TEXTS)
    with pytest.warns(UserWarning, match=f"{n_long} texts do not fit into 9 tokens"):
        got = TextFeatureExtractor(f"st:{tmp_path / 'again'}").fit_transform(TEXTS)
    np.testing.assert_allclose(got, model.encode(TEXTS), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_excluded_instruction_equals_that_of_sentence_transformers(library, tmp_path):
    # As INSTRUCTOR: a tokenizer with nothing before the text, a mean without the instruction.
    pooling = {"word_embedding_dimension": 16, "pooling_mode": "mean", "include_prompt": False}
    spec = write_st(tmp_path, "t5", pooling)
    model = library.SentenceTransformer(str(tmp_path), device="cpu")
    texts = [text for text in TEXTS if text]
    expected = model.encode(texts, prompt="read the text:")
    got = TextFeatureExtractor(spec, instruction="read the text:").fit_transform(texts)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    whole = model.encode(texts)
    assert np.abs(whole - expected).max() > 1e-3


@pytest.mark.filterwarnings("ignore")
def test_prefix_equals_a_prompt_of_sentence_transformers(library, tmp_path):
    spec = write_st(tmp_path)
    expected = library.SentenceTransformer(str(tmp_path), device="cpu").encode(
        TEXTS, prompt="the text: "
    )
    got = TextFeatureExtractor(spec, prefix="the text: ").fit_transform(TEXTS)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
