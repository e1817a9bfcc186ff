# SPDX-License-Identifier: BSD-3-Clause
import re

import pytest

from skpool.backbones import TextRecipe
from skpool.backbones._text_recipe import TEXT_POOLINGS
from skpool.backbones._text_recipes import TEXT_RECIPES, recipe_for
from skpool.pooling import POOLINGS


def test_every_pooling_of_a_recipe_is_a_kernel():
    assert set(TEXT_POOLINGS) <= set(POOLINGS)


# What the model cards of the publishers say.
@pytest.mark.parametrize(
    ("name", "pooling", "normalize", "add_eos", "query"),
    [
        ("intfloat/e5-base-v2", "mean", True, False, "query: "),
        ("intfloat/multilingual-e5-small", "mean", True, False, "query: "),
        ("intfloat/e5-mistral-7b-instruct", "last", True, True, "Instruct: "),
        ("intfloat/multilingual-e5-large-instruct", "mean", True, False, "Instruct: "),
        ("BAAI/bge-small-en-v1.5", "cls", True, False, "Represent this sentence"),
        ("BAAI/bge-large-zh-v1.5", "cls", True, False, "为这个句子"),
        ("BAAI/bge-m3", "cls", True, False, None),
        ("thenlper/gte-base", "mean", True, False, None),
        ("Alibaba-NLP/gte-modernbert-base", "cls", True, False, None),
        ("Alibaba-NLP/gte-Qwen2-7B-instruct", "last", True, True, "Instruct: "),
        ("Qwen/Qwen3-Embedding-0.6B", "last", True, True, "Instruct: "),
        ("jinaai/jina-embeddings-v2-base-en", "mean", True, False, None),
        ("ibm-granite/granite-embedding-125m-english", "cls", True, False, None),
        ("sentence-transformers/all-MiniLM-L6-v2", "mean", True, False, None),
        ("sentence-transformers/paraphrase-MiniLM-L3-v2", "mean", False, False, None),
        ("Muennighoff/SGPT-125M-weightedmean-nli-bitfit", "weighted_mean", False, False, None),
        ("somebody/unheard-of", "mean", False, False, None),
    ],
)
def test_published_models_are_known_by_name(name, pooling, normalize, add_eos, query):
    recipe = recipe_for(name)
    assert (recipe.pooling, recipe.normalize, recipe.add_eos) == (pooling, normalize, add_eos)
    if query is None:
        assert "query" not in dict(recipe.prompts)
    else:
        assert recipe.prompt("query").startswith(query)


def test_last_part_of_a_directory_counts():
    assert recipe_for("/data/models/bge-small-en/") == recipe_for("BAAI/bge-small-en")
    assert recipe_for("C:\\models\\e5-small") == recipe_for("intfloat/e5-small")
    # A folder further up is no name of a model.
    assert recipe_for("/bge-small-en/a/b/c") == TextRecipe()


def test_patterns_are_lower_case_as_the_names_they_search():
    for pattern, _ in TEXT_RECIPES:
        assert re.sub(r"\\.", "", pattern) == re.sub(r"\\.", "", pattern).lower()


@pytest.mark.parametrize("options", [{"pooling": "gem"}, {"max_length": 0}])
def test_bad_values_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        TextRecipe(**options)


def test_unknown_prompt_lists_those_there_are():
    with pytest.raises(ValueError, match=r"'passage', 'query'"):
        recipe_for("intfloat/e5-base").prompt("document")
    with pytest.raises(ValueError, match="none"):
        TextRecipe().prompt("query")
