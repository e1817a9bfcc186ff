# SPDX-License-Identifier: BSD-3-Clause
"""What the authors of a family of networks do, where the files of a model do not say it.

One table for all sources: how the authors pool frozen tokens, which module is the final norm and
whether the network's own output has passed it, and how images are prepared where every model of
the family agrees on it. Each line names where it was read; what is not known is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import MappingProxyType

from skpool.backbones._recipe import ImageRecipe

__all__ = ["BACKBONE_RECIPES", "FamilyRecipe", "family_of", "usual_pooling"]

_OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
_OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class FamilyRecipe:
    """Facts about a family of networks.

    Parameters
    ----------
    pooling : str, tuple of str or None
        How the authors turn frozen tokens of the last layer into one vector, as `TokenPooling`
        names it; None where that is not known, or is a trained part of the network.
    final_norm : str or None
        Attribute of the transformers module that holds the norm after the last block.
    ends_normed : bool
        Whether the tokens that the transformers module returns have passed it.
    same_width : bool
        Whether all layers are as wide as the final norm.
    head_convolution : bool
        Whether a convolution follows the last block, so that the module's own output is a layer
        after the last block's.
    has_cls : bool
        Whether the first of the prefix tokens is a class token.
    images : ImageRecipe or None
        Preprocessing, where all models of the family share it; its size is replaced by the
        model's own where `sized_by_model`.
    sized_by_model : bool
        Whether models of the family differ in the size of their images.
    timm : tuple of str
        Patterns of timm's names for its architectures.

    Examples
    --------
    >>> from skpool.backbones import BACKBONE_RECIPES
    >>> BACKBONE_RECIPES["dinov2"].pooling
    ('cls', 'mean')
    """

    pooling: str | tuple[str, ...] | None = None
    final_norm: str | None = None
    ends_normed: bool = True
    same_width: bool = True
    head_convolution: bool = False
    has_cls: bool = True
    images: ImageRecipe | None = None
    sized_by_model: bool = False
    timm: tuple[str, ...] = ()

    def recipe(self, model_size: int | None) -> ImageRecipe | None:
        """Return the preprocessing of a model whose own files say only its size.

        Parameters
        ----------
        model_size : int or None
            Side of its images.

        Returns
        -------
        recipe : ImageRecipe or None
            None where models of the family differ in more than that.
        """
        if self.images is None or not self.sized_by_model:
            return self.images
        return replace(self.images, input_size=model_size) if model_size else None


_DINO_IMAGES = ImageRecipe(224, crop_pct=224 / 256, interpolation="bicubic", crop_rounding="even")
_PLAIN = FamilyRecipe(pooling="cls", final_norm="layernorm")
_CNN = FamilyRecipe(pooling="mean")

_DINOV2 = FamilyRecipe(
    # facebookresearch/dinov2, dinov2/hub/classifiers.py: the linear classifiers of one layer read
    # the class token beside the mean of the patches, both after the norm.
    pooling=("cls", "mean"),
    final_norm="layernorm",
    # The same, dinov2/data/transforms.py, make_classification_eval_transform.
    images=_DINO_IMAGES,
    timm=("vit_*_dinov2*",),
)
_CLIP = FamilyRecipe(
    # openai/CLIP, clip/model.py, VisionTransformer.forward: ln_post of the class token.
    pooling="cls",
    # transformers, modeling_clip.py: post_layernorm is applied to the class token alone, on its
    # way into pooler_output.
    final_norm="post_layernorm",
    ends_normed=False,
    # openai/CLIP, clip/clip.py, _transform: bicubic resize, centre crop, these numbers.
    images=ImageRecipe(224, _OPENAI_MEAN, _OPENAI_STD, 1.0, "bicubic", crop_rounding="even"),
    sized_by_model=True,
)
_SIGLIP = FamilyRecipe(
    # transformers, modeling_siglip.py: a trained attention head pools, there is no class token.
    final_norm="post_layernorm",
    has_cls=False,
    # transformers, image_processing_siglip.py.
    images=ImageRecipe(224, (0.5,) * 3, (0.5,) * 3, interpolation="bicubic", fit="squash"),
    sized_by_model=True,
)
_SWIN = FamilyRecipe(
    # transformers, modeling_swin.py: norm, then the average of all tokens.
    pooling="mean",
    final_norm="layernorm",
    same_width=False,
)

#: Families by the `model_type` of transformers; `FamilyRecipe.timm` has timm's names for them.
BACKBONE_RECIPES: Mapping[str, FamilyRecipe] = MappingProxyType(
    {
        # transformers, modeling_vit.py, modeling_deit.py, modeling_vit_msn.py: the classifiers
        # read the class token after the norm.
        "vit": _PLAIN,
        "deit": _PLAIN,
        "vit_msn": _PLAIN,
        # facebookresearch/mae, main_linprobe.py: global_pool=False by default, the class token
        # (fine-tuning, main_finetune.py, takes the mean instead); the transform of its validation.
        "vit_mae": FamilyRecipe("cls", "layernorm", images=_DINO_IMAGES),
        # transformers, modeling_ijepa.py: the classifier reads the mean; there is no class token.
        "ijepa": FamilyRecipe("mean", "layernorm", has_cls=False),
        # transformers, modeling_beit.py, BeitPooler: the mean of the patches under
        # use_mean_pooling, where the norm follows the mean, so that tokens have none.
        "beit": FamilyRecipe("mean", "layernorm"),
        "data2vec-vision": FamilyRecipe("mean", "layernorm"),
        "dinov2": _DINOV2,
        "dinov2_with_registers": _DINOV2,
        # facebookresearch/dinov3, dinov3/hub/classifiers.py: as in DINOv2. Its preprocessing
        # differs between weights and is in their files.
        "dinov3_vit": FamilyRecipe(("cls", "mean"), "norm", timm=("vit_*_dinov3*",)),
        "clip_vision_model": _CLIP,
        "siglip_vision_model": _SIGLIP,
        "swin": _SWIN,
        "swinv2": _SWIN,
        # transformers, modeling_<name>.py: average pooling before the classifier.
        "resnet": _CNN,
        "convnext": _CNN,
        "convnextv2": _CNN,
        "regnet": _CNN,
        "mobilenet_v1": _CNN,
        "mobilenet_v2": FamilyRecipe("mean", head_convolution=True),
        "efficientnet": FamilyRecipe("mean", head_convolution=True),
    }
)


def family_of(model_type: str) -> FamilyRecipe:
    """Facts about a `model_type` of transformers; an empty recipe where nothing is known."""
    return BACKBONE_RECIPES.get(model_type, FamilyRecipe())


def usual_pooling(architecture: str, global_pool: str | None) -> str | tuple[str, ...] | None:
    """How frozen tokens of one of timm's architectures are pooled.

    Parameters
    ----------
    architecture : str
        timm's name without the tag.
    global_pool : str or None
        What timm's own classifier uses; asked where the table does not know the family.

    Returns
    -------
    pooling : str, tuple of str or None
        As `TokenPooling` names it.
    """
    for family in BACKBONE_RECIPES.values():
        if any(fnmatchcase(architecture, pattern) for pattern in family.timm):
            return family.pooling
    names = {"token": "cls", "avg": "mean", "fast": "mean", "avgmax": "avgmax", "max": "max"}
    return names.get(global_pool or "")
