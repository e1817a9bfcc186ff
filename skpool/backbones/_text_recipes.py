# SPDX-License-Identifier: BSD-3-Clause
"""Recipes of published text networks, as data: the first pattern found in a name decides.

They hold for ``hf:`` names, whose repositories do not say how they are pooled. A model directory of
sentence-transformers (``st:``) says it itself, and a `TextRecipe` of the user's goes before both.
"""

import re

from skpool.backbones._text_recipe import TextRecipe

__all__ = ["TEXT_RECIPES", "recipe_for"]

_E5 = (("query", "query: "), ("passage", "passage: "))
_BGE = (("query", "Represent this sentence for searching relevant passages: "),)
_BGE_ZH = (("query", "为这个句子生成表示以用于检索相关文章\uff1a"),)
_NOMIC = tuple(
    (name, f"{name}: ")
    for name in ("search_query", "search_document", "clustering", "classification")
)
_WEB_SEARCH = (
    (
        "query",
        "Instruct: Given a web search query, retrieve relevant passages that answer the query"
        "\nQuery: ",
    ),
)

_MEAN = TextRecipe("mean", normalize=True)
_CLS = TextRecipe("cls", normalize=True)
_LAST = TextRecipe("last", normalize=True, add_eos=True, prompts=_WEB_SEARCH)

# Regular expressions, searched in the lower-case name; the special ones stand first.
TEXT_RECIPES: tuple[tuple[str, TextRecipe], ...] = (
    (r"e5-mistral|sfr-embedding|linq-embed-mistral", _LAST),
    (r"gte-qwen|qwen\d*-embedding", _LAST),
    (r"e5-.*-instruct", TextRecipe("mean", normalize=True, prompts=_WEB_SEARCH)),
    (r"(^|[/-])e5-(small|base|large)", TextRecipe("mean", normalize=True, prompts=_E5)),
    (r"bge-m3", _CLS),
    (r"bge-.*-zh", TextRecipe("cls", normalize=True, prompts=_BGE_ZH)),
    (r"bge-.*-en|mxbai-embed|arctic-embed", TextRecipe("cls", normalize=True, prompts=_BGE)),
    (r"(^|/)bge-", _CLS),
    (r"granite-embedding", _CLS),
    (r"gte-(modernbert|.*-v1\.5|multilingual)", _CLS),
    (r"(^|/)gte-(small|base|large)", _MEAN),
    (r"jina-embeddings-v2", _MEAN),
    (r"kalm-embedding", _MEAN),
    (r"nomic-embed-text", TextRecipe("mean", normalize=True, prompts=_NOMIC)),
    (r"(^|/)all-(minilm|mpnet|distilroberta|roberta)", _MEAN),
    (r"(^|/)paraphrase-", TextRecipe("mean")),
    (r"sgpt-", TextRecipe("weighted_mean")),
)


def recipe_for(name: str) -> TextRecipe:
    """Return the recipe of a model by its name; unknown ones are averaged.

    Parameters
    ----------
    name : str
        On the hub, or a directory, whose last part counts.

    Returns
    -------
    recipe : TextRecipe
    """
    name = "/".join(str(name).replace("\\", "/").rstrip("/").lower().split("/")[-2:])
    found = (recipe for pattern, recipe in TEXT_RECIPES if re.search(pattern, name))
    return next(found, TextRecipe())
