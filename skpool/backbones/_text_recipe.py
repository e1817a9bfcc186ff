# SPDX-License-Identifier: BSD-3-Clause
"""How the authors of a text network use it: pooling, norm, end token, length, prompts.

Nothing here changes the tokens of a text; an extractor whose parameters say "recipe" reads what to
do with them here. The recipes of published models are data (`_text_recipes.py`).
"""

from dataclasses import dataclass

__all__ = ["TEXT_POOLINGS", "TextRecipe"]

# Names of the kernels in `skpool.pooling`, which this room does not know.
TEXT_POOLINGS = ("cls", "last", "max", "mean", "mean_sqrt_len", "weighted_mean")


@dataclass(frozen=True)
class TextRecipe:
    """How one network of texts is meant to be used.

    Parameters
    ----------
    pooling : {"mean", "cls", "last", "max", "mean_sqrt_len", "weighted_mean"}, default="mean"
        From tokens to the vector of a text.
    normalize : bool, default=False
        Whether vectors are divided by their Euclidean norm.
    add_eos : bool, default=False
        Whether an end token is put after the text where the tokenizer does not do so by itself.
    max_length : int, default=None
        Most tokens of a text that the network was trained for; None leaves it to the tokenizer
        and the table of positions.
    prompts : tuple of (str, str), default=()
        Names and texts of the prefixes that the network was trained with. None is ever added by
        itself: pass ``prefix=recipe.prompt("query")`` to the extractor.

    Examples
    --------
    >>> from skpool.backbones import TextRecipe
    >>> recipe = TextRecipe(normalize=True, prompts=(("query", "query: "),))
    >>> recipe.prompt("query")
    'query: '
    """

    pooling: str = "mean"
    normalize: bool = False
    add_eos: bool = False
    max_length: int | None = None
    prompts: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.pooling not in TEXT_POOLINGS:
            raise ValueError(
                f"pooling={self.pooling!r} is unknown; choose one of {list(TEXT_POOLINGS)}."
            )
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length={self.max_length} is not valid; give at least 1.")

    def prompt(self, name: str) -> str:
        """Return the prefix of a name.

        Parameters
        ----------
        name : str
            For example "query" or "passage".

        Returns
        -------
        prefix : str
        """
        prompts = dict(self.prompts)
        if name not in prompts:
            raise ValueError(
                f"name={name!r} is no prompt of this network; it has {sorted(prompts) or 'none'}."
            )
        return prompts[name]
