# SPDX-License-Identifier: BSD-3-Clause
"""A frozen network of texts: token ids in, one vector per token out.

A batch is one tensor of ids, padded on the right with -1, so that it moves, splits and flips like a
batch of pixels and says itself which tokens are real. Real tokens never see the padding: encoders
are told by the attention mask, decoders look to the left only.
"""

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import nn

from skpool.backbones._network import Layout, Network, first_tensor
from skpool.backbones._text_recipe import TextRecipe
from skpool.exceptions import BackboneError

__all__ = ["TextNetwork", "Tokenizer"]

_PADDING = -1
# Where neither the tokenizer nor the network knows a limit.
_NO_LIMIT = 10**6


class Tokenizer:
    """Text to numbers, without what a library puts around them.

    Parameters
    ----------
    encode : callable
        Ids of one text; None where a subclass encodes lists of texts.
    lead, trail : sequence of int
        Special tokens before and after every text.
    fallback : int
        Stands for a text that has no token at all.
    eos : int or None
        End token.
    padding : int
        What the network is given where there is no token.
    has_cls : bool
        Whether the first of `lead` is a class token.
    max_length : int or None
        Most tokens, special ones included.
    name : str
        Fingerprint of the vocabulary and the rules.
    """

    def __init__(
        self,
        encode: Callable[[str], Sequence[int]] | None,
        *,
        lead: Sequence[int] = (),
        trail: Sequence[int] = (),
        fallback: int = 0,
        eos: int | None = None,
        padding: int = 0,
        has_cls: bool = False,
        max_length: int | None = None,
        name: str,
    ):
        self._encode = encode
        self.lead = list(lead)
        self.trail = list(trail)
        self.fallback = fallback
        self.eos = eos
        self.padding = padding
        self.has_cls = has_cls
        self.max_length = max_length
        self.name = name

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of the texts, without special tokens."""
        return [list(self._encode(text)) for text in texts]

    def after(
        self, parts: Sequence[str], texts: Sequence[str]
    ) -> list[tuple[list[int], list[int]]]:
        """Ids of the parts and a text in one, and where each of them ends in it, in characters.

        Without a map from tokens to characters all parts are encoded one by one.
        """
        first: list[int] = []
        ends: list[int] = []
        length = 0
        for part in parts:
            length += len(part)
            found = self.ids([part])[0]
            first, ends = first + found, ends + [length] * len(found)
        # Any place after the parts would do.
        return [(first + ids, ends + [length + 1] * len(ids)) for ids in self.ids(texts)]

    def trailing(self, add_eos: bool) -> list[int]:
        """What stands after a text; an end token only where nothing stands there yet."""
        if add_eos and not self.trail:
            if self.eos is None:
                raise BackboneError("add_eos=True needs an end token; this tokenizer has none.")
            return [self.eos]
        return self.trail


def _takes_mask(module: nn.Module) -> bool:
    """Whether a module is called with ids and mask rather than with ids alone."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(module.forward).parameters.values()
    return sum(p.kind in positional for p in parameters) > 1 or any(
        p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters
    )


class TextNetwork(Network):
    """A network of texts.

    Parameters
    ----------
    module : torch.nn.Module
        Gives tokens (n, L, d). It is frozen in place.
    recipe : TextRecipe
        How the authors use it.
    tokenizer : Tokenizer
    positions : int or None
        Most tokens that the network has positions for.
    call : callable or None
        Called as ``call(module, ids, mask)``; None calls ``module(ids, mask)``, or ``module(ids)``
        where it takes one argument.
    **options
        As in `Network`.
    """

    modality = "text"

    def __init__(
        self,
        module: nn.Module,
        recipe: TextRecipe,
        *,
        tokenizer: Tokenizer,
        positions: int | None = None,
        call: Callable[[nn.Module, torch.Tensor, torch.Tensor], object] | None = None,
        settings: str = "",
        **options: object,
    ):
        super().__init__(
            module, settings=f"{settings}\0{tokenizer.name}", pooling=recipe.pooling, **options
        )
        self.recipe = recipe
        self.tokenizer = tokenizer
        self._call = call
        limits = (recipe.max_length, tokenizer.max_length, positions)
        self.max_length = min([n for n in limits if n is not None], default=_NO_LIMIT)
        self._with_mask = call is not None or _takes_mask(module)
        self._widths: dict[int, int] = {}

    @property
    def has_cls(self) -> bool:
        """Whether the first token of every text is a class token."""
        t = self.tokenizer
        return bool(t.lead) and (t.has_cls or self.recipe.pooling == "cls")

    def prepare(self, samples: Sequence[str], size: int | None = None) -> torch.Tensor:
        """Tokenise texts into one batch (n, longest) of ids, -1 where there is no token."""
        t = self.tokenizer
        trail = t.trailing(self.recipe.add_eos)
        room = min(size or self.max_length, self.max_length) - len(t.lead) - len(trail)
        rows = [[*t.lead, *ids[:room], *trail] for ids in t.ids(samples)]
        return self.batch([row or [t.fallback] for row in rows])

    def batch(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Rows of ids as one batch (n, longest), on the host."""
        longest = max(map(len, rows))
        return torch.tensor([[*row, *[_PADDING] * (longest - len(row))] for row in rows])

    def mask(self, batch: torch.Tensor) -> torch.Tensor:
        """Real tokens of a batch."""
        return batch != _PADDING

    def forward(
        self, batch: torch.Tensor, layers: Sequence[int], norm: str = "final"
    ) -> list[torch.Tensor]:
        """Tokens (n, L, d) of the layers asked for, in one pass.

        Parameters
        ----------
        batch : tensor of shape (n, L), int64
            Ids, -1 where there is no token; on the device of the weights.
        layers : sequence of int
        norm : {"final", "all", "none"}, default="final"
            Which layers pass the final norm.

        Returns
        -------
        tokens : list of tensors, one per layer
            What stands where there is no token means nothing.
        """
        mask = self.mask(batch)
        ids = batch.where(mask, self.tokenizer.padding)

        def call() -> object:
            if self._call is not None:
                return self._call(self.module, ids, mask.long())
            return self.module(ids, mask) if self._with_mask else self.module(ids)

        tokens = [first_tensor(output) for output in self.outputs(call, layers, norm)]
        for values in tokens:
            if values.ndim != 3 or values.shape[:2] != batch.shape:
                raise BackboneError(
                    f"A layer returned a tensor of shape {tuple(values.shape)} for "
                    f"{tuple(batch.shape)} tokens; (n, L, d) is understood."
                )
        return tokens

    def layout(self, layer: int = -1, size: int | None = None) -> Layout:
        """Most tokens and number of features of a layer, found by one pass of a short text."""
        index = self.layer_index(layer)
        if index not in self._widths:
            tokens = self.forward(self.prepare(["a"]).to(self.device), [index])[0]
            self._widths[index] = tokens.shape[2]
        n_tokens = min(size or self.max_length, self.max_length)
        return Layout(n_tokens, self._widths[index], 0, None, 0 if self.has_cls else None)
