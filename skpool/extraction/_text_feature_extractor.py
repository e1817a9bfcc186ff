# SPDX-License-Identifier: BSD-3-Clause
"""The first step of a pipeline over texts: from strings to vectors or tokens of a network."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions

from skpool import __version__
from skpool.backbones import TEXT_POOLINGS, Backbone, TextNetwork
from skpool.extraction._base import BaseExtractor
from skpool.extraction._progress import Progress
from skpool.extraction._text_source import TextSettings, TextSource, WindowSource
from skpool.extraction._text_tokens import TextReader, TextRules
from skpool.inputs import TextSequence
from skpool.pooling import POOLINGS
from skpool.stores import FeatureStore, TokenArray
from skpool.utils import ArrayLike, all_finite, as_tensor, fingerprint, unit_rows, widened

__all__ = ["TextFeatureExtractor"]

# Tokens of a batch, padding included: as many as keep the device busy, and small enough that a
# batch of short texts is not longer than it must be.
_TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 2**16}
# Tokens of a usual text, by which the callbacks are told how many batches to expect.
_USUAL_LENGTH = 32


def _pool(
    kernel: Callable[..., torch.Tensor], tokens: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Vectors of one layer (n, d), or of several (n, k, d)."""
    layers = [tokens] if tokens.ndim == 3 else tokens.unbind(dim=1)
    vectors = [kernel(layer, mask) for layer in layers]
    if not all(map(all_finite, vectors)):
        raise ValueError(
            "The network gave NaN or infinity for some texts; let it compute in dtype='float32'."
        )
    return vectors[0] if tokens.ndim == 3 else torch.stack(vectors, dim=1)


def _combined(
    vectors: torch.Tensor, text_of_row: np.ndarray, lengths: np.ndarray, how: str
) -> torch.Tensor:
    """One vector per text from those of its windows, which stand in turn."""
    counts = np.bincount(text_of_row).tolist()
    parts = vectors.split(counts)
    if how == "max":
        return torch.stack([part.amax(dim=0) for part in parts])
    if how == "mean":
        return torch.stack([part.mean(dim=0) for part in parts])
    weights = torch.from_numpy(lengths).to(vectors).split(counts)
    return torch.stack(
        [torch.tensordot(w / w.sum(), part, 1) for w, part in zip(weights, parts, strict=True)]
    )


class TextFeatureExtractor(BaseExtractor, auto_wrap_output_keys=None):
    """Vectors or tokens of texts by a frozen pretrained network, computed once per text.

    Every text's result is looked up first, in a store on disk or in a bounded cache in memory, so
    that folds, searches and later sessions run the network once per distinct text. Poolings of
    published networks are known by name ("recipe").

    Parameters
    ----------
    backbone : str or Backbone
        The network: ``"st:<name or directory>"`` (the format of sentence-transformers),
        ``"hf:<name or directory>"`` (transformers), or a `Backbone`.
    layers : int or sequence of int, default=-1
        The layer whose tokens are taken: 0 is the embedding, k the output of block k, -1 the
        network's own output. Several layers have an axis of their own.
    pooling : {"recipe", "mean", "cls", "last", "weighted_mean", "max", "mean_sqrt_len"} or None, \
default="recipe"
        From the tokens of a text to its vector: as the authors of the network do, or by this
        kernel of `skpool.pooling`. None gives the tokens, to be computed when they are used.
    prefix : str, default=""
        Put before every text and counted as part of it, for example ``"query: "``; what a network
        was trained with is ``Backbone(...).recipe.prompts``.
    instruction : str, default=None
        Put between prefix and text.
    exclude_instruction : bool, default=True
        Whether the tokens of the instruction are read by the network and left out of the result.
    add_eos : bool or "recipe", default="recipe"
        Whether an end token follows a text, where the tokenizer puts no token there by itself.
    max_length : int, default=512
        Tokens of a text, of all kinds, that are read; less where the network takes less. What is
        longer is cut off with one warning for all texts.
    chunk : int, default=None
        Reads long texts in windows of this many tokens of all kinds, instead of cutting them off,
        each with prefix, instruction and special tokens; needs a pooling.
    chunk_overlap : int, default=0
        Tokens of the text that two neighbouring windows share.
    chunk_pool : {"mean", "length_weighted", "max", "first"}, default="mean"
        How the vectors of the windows make that of the text; "length_weighted" weighs them by the
        tokens that they count.
    echo : bool, default=False
        Whether the network reads every text twice and its second copy alone is pooled, so that a
        network that looks to the left only has seen the whole text.
    normalize : bool or "recipe", default="recipe"
        Whether vectors are divided by their Euclidean norm at the end.
    token_norm : {"final", "all", "none"}, default="final"
        Which layers pass the final norm of a transformer, as in `FeatureExtractor`.
    batch_size : int or "auto", default="auto"
        Texts per pass; "auto" bounds the tokens of a pass instead. Halved by itself when the
        device is out of memory.
    device : str or "auto", default="auto"
        Where the network runs; "auto" takes a CUDA device where there is one.
    dtype : {"auto", "float32", "float16", "bfloat16"}, default="auto"
        Float type of the pass, as in `FeatureExtractor`; vectors are float32.
    compile : bool, default=False
        Whether the blocks of the network go through `torch.compile`.
    store : path or FeatureStore, default=None
        Where results are kept on disk, for this and later sessions and for several processes.
        None keeps them in the memory of this process, up to
        ``skpool.get_config()["cache_bytes"]``.
    keep_tokens : bool or "auto", default="auto"
        Whether tokens are kept beside vectors. "auto" keeps them in memory when the network runs
        on the host, so that a search over poolings runs it once, and in a store where tokens are
        what was asked for.
    output : {"numpy", "torch"}, default="numpy"
        Container of vectors; "torch" leaves them on the device.

    See Also
    --------
    FeatureExtractor : The same for images.
    skpool.pooling.TokenPooling : Pools the tokens that `pooling=None` gives.
    skpool.backbones.TextRecipe : What "recipe" reads.

    Notes
    -----
    Nothing is learned, so `fit` only checks. Features depend on the text alone: not on the other
    texts, their order, or the batch size (to rounding). Special tokens of the tokenizer count in
    the pooling, as in sentence-transformers; where an instruction or a first copy is left out,
    the special tokens before it are too, but for a class token. An empty text stands for its
    special tokens.

    Cost: texts are sorted by length, some thousand at a time, so that little is computed for
    padding. Memory is one batch, plus the cache. The warning about texts that were cut off counts
    those that this call computed.

    References
    ----------
    .. [1] N. Reimers, I. Gurevych, Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks,
       EMNLP 2019. <https://arxiv.org/abs/1908.10084>
    .. [2] J. M. Springer et al., Repetition Improves Language Model Embeddings, 2024.
       <https://arxiv.org/abs/2402.15449>

    Examples
    --------
    >>> import torch
    >>> from skpool.backbones import Backbone, TextRecipe
    >>> from skpool.extraction import TextFeatureExtractor
    >>> letters = Backbone.from_module(
    ...     torch.nn.Embedding(256, 4), recipe=TextRecipe(), tokenizer=str.encode
    ... )
    >>> TextFeatureExtractor(letters).fit_transform(["frozen", "features"]).shape
    (2, 4)
    >>> TextFeatureExtractor(letters, pooling=None).fit_transform(["frozen", "features"]).shape
    (2, 8, 4)
    """

    _parameter_constraints: dict = {
        **BaseExtractor._parameter_constraints,
        "pooling": [StrOptions({"recipe", *TEXT_POOLINGS}), None],
        "prefix": [str],
        "instruction": [str, None],
        "exclude_instruction": ["boolean"],
        "add_eos": ["boolean", StrOptions({"recipe"})],
        "max_length": [Interval(Integral, 1, None, closed="left")],
        "chunk": [Interval(Integral, 1, None, closed="left"), None],
        "chunk_overlap": [Interval(Integral, 0, None, closed="left")],
        "chunk_pool": [StrOptions({"mean", "length_weighted", "max", "first"})],
        "echo": ["boolean"],
        "normalize": ["boolean", StrOptions({"recipe"})],
    }

    def __init__(
        self,
        backbone: str | Backbone,
        *,
        layers: int | Sequence[int] = -1,
        pooling: str | None = "recipe",
        prefix: str = "",
        instruction: str | None = None,
        exclude_instruction: bool = True,
        add_eos: bool | str = "recipe",
        max_length: int = 512,
        chunk: int | None = None,
        chunk_overlap: int = 0,
        chunk_pool: str = "mean",
        echo: bool = False,
        normalize: bool | str = "recipe",
        token_norm: str = "final",
        batch_size: int | str = "auto",
        device: str = "auto",
        dtype: str = "auto",
        compile: bool = False,
        store: str | os.PathLike | FeatureStore | None = None,
        keep_tokens: bool | str = "auto",
        output: str = "numpy",
    ):
        self.backbone = backbone
        self.layers = layers
        self.pooling = pooling
        self.prefix = prefix
        self.instruction = instruction
        self.exclude_instruction = exclude_instruction
        self.add_eos = add_eos
        self.max_length = max_length
        self.chunk = chunk
        self.chunk_overlap = chunk_overlap
        self.chunk_pool = chunk_pool
        self.echo = echo
        self.normalize = normalize
        self.token_norm = token_norm
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype
        self.compile = compile
        self.store = store
        self.keep_tokens = keep_tokens
        self.output = output

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Check the parameters and the kind of X; nothing is learned or computed.

        Parameters
        ----------
        X : list, tuple, array or Series of str, or TextSequence
        y : ignored
            Present for the API.

        Returns
        -------
        self : estimator
        """
        TextSequence(X)
        self._settings()
        return self

    def transform(self, X) -> ArrayLike | TokenArray:
        """Return the vectors of texts, or their tokens to be computed when they are used.

        Parameters
        ----------
        X : list, tuple, array or Series of str, or TextSequence

        Returns
        -------
        vectors : ndarray (or tensor, by `output`) of shape (n_samples, n_features)
            Of several layers (n_samples, n_layers, n_features). With `pooling=None` a TokenArray
            of shape (n_samples, n_tokens, n_features) with a mask, or (n_samples, n_layers,
            n_tokens, n_features).
        """
        self._validate_params()
        texts = TextSequence(X)
        settings = self._settings()
        if self.pooling is None:
            return TokenArray(TextSource(texts, settings, self._open_store(), Progress(self)))
        vectors = as_tensor(self._vectors(texts, settings))
        normalize = self.normalize
        if normalize == "recipe":
            normalize = settings.backbone.recipe.normalize
        vectors = unit_rows(widened(vectors)) if normalize else vectors
        return vectors if self.output == "torch" else vectors.cpu().numpy()

    def _vectors(self, texts: TextSequence, settings: TextSettings) -> ArrayLike:
        """Pooled vectors of the texts."""
        pooling = settings.backbone.recipe.pooling if self.pooling == "recipe" else self.pooling
        function = partial(_pool, POOLINGS[pooling])
        name = fingerprint("pooled texts", pooling, __version__)
        kind = TextSource if self.chunk is None else WindowSource
        source = kind(texts, settings, self._open_store(), Progress(self))
        if self.chunk is None:
            return TokenArray(source).reduce(function, fingerprint=name)
        rows = None
        if self.chunk_pool == "first":
            rows = np.flatnonzero(source.number_of_row == 0)
        vectors = TokenArray(source, rows).reduce(function, fingerprint=name)
        if self.chunk_pool == "first":
            return vectors
        return _combined(as_tensor(vectors), source.text_of_row, source.lengths, self.chunk_pool)

    def _settings(self) -> TextSettings:
        backbone, device = self._backbone(), self._device()
        network = self._network(backbone, device, "text", "FeatureExtractor")
        layers, several = self._layers()
        self._check_widths(backbone, layers)
        self._check_pooling(backbone, network)
        on_cuda = device.startswith("cuda")
        budget = _TOKENS_PER_BATCH["cuda" if on_cuda else "cpu"]
        by_count = self.batch_size != "auto"
        return TextSettings(
            backbone=backbone,
            layers=tuple(layers),
            several=several,
            token_norm=self.token_norm,
            batch_size=self.batch_size if by_count else budget // _USUAL_LENGTH,
            tokens_per_batch=None if by_count else budget,
            device=device,
            dtype=self._dtype(),
            compiled=self.compile,
            keep_tokens=self._keeps_tokens(device),
            raise_errors=True,
            output=self.output,
            rules=self._rules(backbone, network),
            # On the host the tokenizer would only take the network's cores.
            n_threads=1 if on_cuda else 0,
        )

    def _rules(self, backbone: Backbone, network: TextNetwork) -> TextRules:
        max_length = min(self.max_length, network.max_length)
        if self.chunk is not None and self.chunk > max_length:
            raise ValueError(
                f"chunk={self.chunk} is more than the {max_length} tokens that are read at a time "
                f"(max_length={self.max_length}, the network takes {network.max_length}); lower it."
            )
        add_eos = backbone.recipe.add_eos if self.add_eos == "recipe" else self.add_eos
        rules = TextRules(
            prefix=self.prefix,
            instruction=self.instruction or "",
            exclude_instruction=self.exclude_instruction,
            add_eos=add_eos,
            echo=self.echo,
            max_length=max_length,
            chunk=self.chunk,
            overlap=self.chunk_overlap if self.chunk is not None else 0,
        )
        # Refuses what leaves no room for a text.
        TextReader(network.tokenizer, rules).room()
        return rules

    def _check_widths(self, backbone: Backbone, layers: list[int]) -> None:
        """Refuse layers that cannot stand side by side."""
        widths = [backbone.layout(layer).n_features for layer in layers]
        if len(set(widths)) > 1:
            raise ValueError(
                f"layers={self.layers} of {backbone!r} have {widths} features; use one extractor "
                "per layer in a FeatureUnion."
            )

    def _check_pooling(self, backbone: Backbone, network: TextNetwork) -> None:
        if self.pooling == "cls" and not network.has_cls:
            raise ValueError(
                f"pooling='cls' needs a class token, and the tokenizer of {backbone!r} puts none "
                "before a text; use pooling='mean' or 'last'."
            )
        if self.pooling is None and self.chunk is not None:
            raise ValueError(
                f"chunk={self.chunk} makes one vector of those of several windows, which needs a "
                "pooling; give one, or raise max_length."
            )

    def _keeps_tokens(self, device: str) -> bool:
        if self.keep_tokens != "auto":
            return self.keep_tokens
        if self.store is not None:
            return self.pooling is None
        return device == "cpu"

    def get_feature_names_out(self, input_features=None) -> np.ndarray:
        """Names of the features of a text or token.

        Parameters
        ----------
        input_features : ignored
            Present for the API.

        Returns
        -------
        names : ndarray of str
        """
        width = self._backbone().layout(self._layers()[0][-1]).n_features
        return np.array([f"textfeatureextractor{i}" for i in range(width)], dtype=object)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        return tags
