# SPDX-License-Identifier: BSD-3-Clause
"""The backbone that ships with the package: a small vision transformer for glyphs.

It stands where a downloaded model stands elsewhere: images go in, tokens come out, nothing is
trained by the user. It is small enough to lie in the package, so that the examples, the
doctests and the tests run a really pretrained network without a network connection.
``tools/train_glyph.py`` made the weights; ``docs/glyph.md`` says what they are good for.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

__all__ = ["GlyphTransformer", "load_glyph"]

INPUT_SIZE = 32
PATCH_SIZE = 4
N_FEATURES = 128
N_BLOCKS = 5
N_HEADS = 4
MLP_RATIO = 3
N_PREFIX_TOKENS = 1
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
INTERPOLATION = "bicubic"
# Never seen in training: what is measured on them is measured on new characters.
ALPHABETS_LEFT_OUT = ("Early_Aramaic", "Tagalog")
WEIGHTS_PATH = Path(__file__).with_name("glyph.safetensors")


class _Attention(nn.Module):
    """Self-attention of all tokens of an image, in several heads."""

    def __init__(self, n_features: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(n_features, 3 * n_features)
        self.projection = nn.Linear(n_features, n_features)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (n, L, d) to tokens of the same shape."""
        n, length, d = tokens.shape
        qkv = self.qkv(tokens).view(n, length, 3, self.n_heads, d // self.n_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        # Written out: for 65 tokens this is faster on a CPU than the fused kernel, whose backward
        # pass in bfloat16 takes more than half of a training step.
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        mixed = scores.softmax(dim=-1) @ value
        return self.projection(mixed.transpose(1, 2).reshape(n, length, d))


class _Block(nn.Module):
    """Pre-norm transformer block: attention, then a two-layer network on each token."""

    def __init__(self, n_features: int, n_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(n_features)
        self.attention = _Attention(n_features, n_heads)
        self.norm2 = nn.LayerNorm(n_features)
        self.mlp = nn.Sequential(
            nn.Linear(n_features, mlp_ratio * n_features),
            nn.GELU(),
            nn.Linear(mlp_ratio * n_features, n_features),
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (n, L, d) to tokens of the same shape."""
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


def _standardise(grey: torch.Tensor) -> torch.Tensor:
    """Grey images with mean 0 and deviation 1, each by itself, and the ink on the bright side.

    Ink is the rarer of the two tones, so the third moment tells which one it is: dark on bright,
    bright on dark, faint or strong, the network sees one and the same drawing.
    """
    grey = grey - grey.mean(dim=(1, 2, 3), keepdim=True)
    variance = grey.square().mean(dim=(1, 2, 3), keepdim=True)
    # The floor keeps a blank image blank.
    grey = grey / (variance + 1e-4).sqrt()
    skewness = grey.pow(3).mean(dim=(1, 2, 3), keepdim=True)
    return torch.where(skewness < 0, -grey, grey)


def _convolutional_stem(n_features: int) -> nn.Sequential:
    """One feature vector per patch of 4 x 4 pixels, by overlapping 3 x 3 convolutions.

    Overlap lets a stroke that crosses a patch border be seen whole, which a plain cut into
    patches learns only from far more data.
    """
    widths, strides = (1, 32, 64, 64), (1, 2, 2)
    layers: list[nn.Module] = []
    for before, after, stride in zip(widths[:-1], widths[1:], strides, strict=True):
        layers.append(nn.Conv2d(before, after, 3, stride=stride, padding=1))
        layers += [nn.GroupNorm(8, after), nn.GELU()]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], n_features, 3, padding=1))


class GlyphTransformer(nn.Module):
    """Vision transformer for images of single characters.

    Images of 32 x 32 pixels become 8 x 8 patch tokens and one class token ahead of them. What a
    glyph is does not depend on its colours, contrast or polarity, so colours are averaged and
    every image is standardised, the ink made bright. The patch embedding is four overlapping
    convolutions with a total stride of 4; the rest is the plain pre-norm transformer [1]_ with a
    learned position embedding.

    Parameters
    ----------
    n_features : int, default=128
        Length of a token.
    n_blocks : int, default=5
        Number of transformer blocks.
    n_heads : int, default=4
        Number of attention heads; divides `n_features`.
    mlp_ratio : int, default=3
        Width of the hidden layer in a block, in multiples of `n_features`.

    Attributes
    ----------
    patch_embed : torch.nn.Sequential
        Grey images (n_samples, 1, 32, 32) to a map (n_samples, n_features, 8, 8).
    cls_token : torch.nn.Parameter of shape (1, 1, n_features)
        The class token before the first block.
    pos_embed : torch.nn.Parameter of shape (1, 65, n_features)
        Position embedding, class token first.
    blocks : torch.nn.ModuleList
        The transformer blocks, each from tokens to tokens.
    norm : torch.nn.LayerNorm
        The normalisation after the last block.

    See Also
    --------
    load_glyph : The pretrained model.

    Notes
    -----
    Cost: about 0.15 GFLOP per image; 65 tokens of `n_features` numbers come out.

    References
    ----------
    .. [1] A. Dosovitskiy et al., "An image is worth 16x16 words: transformers for image
       recognition at scale", ICLR 2021. <https://arxiv.org/abs/2010.11929>

    Examples
    --------
    >>> import torch
    >>> from skpool.backbones._glyph import GlyphTransformer
    >>> GlyphTransformer()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 65, 128])
    """

    def __init__(
        self,
        *,
        n_features: int = N_FEATURES,
        n_blocks: int = N_BLOCKS,
        n_heads: int = N_HEADS,
        mlp_ratio: int = MLP_RATIO,
    ) -> None:
        super().__init__()
        n_tokens = N_PREFIX_TOKENS + (INPUT_SIZE // PATCH_SIZE) ** 2
        self.patch_embed = _convolutional_stem(n_features)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, n_features))
        self.pos_embed = nn.Parameter(torch.zeros(1, n_tokens, n_features))
        self.blocks = nn.ModuleList(_Block(n_features, n_heads, mlp_ratio) for _ in range(n_blocks))
        self.norm = nn.LayerNorm(n_features)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Tokens before the first block.

        Parameters
        ----------
        images : torch.Tensor of shape (n_samples, 3, 32, 32)
            Normalised images.

        Returns
        -------
        tokens : torch.Tensor of shape (n_samples, 65, n_features)
            Class token first, then the patches row by row.
        """
        if images.ndim != 4 or images.shape[1:] != (3, INPUT_SIZE, INPUT_SIZE):
            raise ValueError(
                f"images must have shape (n_samples, 3, {INPUT_SIZE}, {INPUT_SIZE}), got "
                f"{tuple(images.shape)}; resize them to {INPUT_SIZE} x {INPUT_SIZE} pixels first."
            )
        grey = _standardise(images.float().mean(dim=1, keepdim=True)).to(self.cls_token.dtype)
        patches = self.patch_embed(grey).flatten(2).transpose(1, 2)
        cls = self.cls_token.expand(len(images), -1, -1).to(patches.dtype)
        return torch.cat([cls, patches], dim=1) + self.pos_embed

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Tokens after the final normalisation.

        Parameters
        ----------
        images : torch.Tensor of shape (n_samples, 3, 32, 32)
            Normalised images: pixels in [0, 1], less `MEAN`, divided by `STD`.

        Returns
        -------
        tokens : torch.Tensor of shape (n_samples, 65, n_features)
            Class token first, then the patches row by row.
        """
        tokens = self.embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


def load_glyph() -> GlyphTransformer:
    """Load the pretrained model that ships with the package.

    Returns
    -------
    model : GlyphTransformer
        In evaluation mode, float32, on the CPU, without gradients.

    Notes
    -----
    The weights are stored in half precision and computed with in single precision. They are
    read anew at each call: nothing is shared between two models.

    Examples
    --------
    >>> from skpool.backbones._glyph import load_glyph
    >>> model = load_glyph()
    >>> model.training
    False
    """
    weights = {name: tensor.float() for name, tensor in load_file(WEIGHTS_PATH).items()}
    model = GlyphTransformer()
    model.load_state_dict(weights, strict=True)
    return model.eval().requires_grad_(False)
