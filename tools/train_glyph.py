# SPDX-License-Identifier: BSD-3-Clause
"""Train the backbone that ships with the package, from the Omniglot pictures.

Flow: zip files -> ink maps of 64 x 64 -> random views of 32 x 32 -> classification of every
character in each of its four quarter turns -> ``glyph.safetensors`` in half precision.

The class token, the mean and the maximum of the patch tokens each have a cosine softmax head of
their own, so that each of them is a useful descriptor afterwards; the heads are thrown away.
The alphabets in ``ALPHABETS_LEFT_OUT`` and the official one-shot runs are never read.

Run from the repository root::

    PYTHONPATH=. python tools/train_glyph.py --threads 1
"""

import argparse
import io
import math
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from skpool.backbones import _glyph

ARCHIVES = ("images_background_small1.zip", "images_background_small2.zip")
WORKING_SIZE = 64
LOW_RESOLUTIONS = (8, 8, 8, 10, 12, 16)
POOLINGS = {
    "cls": lambda tokens: tokens[:, 0],
    "mean": lambda tokens: tokens[:, 1:].mean(dim=1),
    "max": lambda tokens: tokens[:, 1:].amax(dim=1),
}


def read_ink(data: Path, left_out: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Read every drawing as an ink map, one label per character.

    Returns
    -------
    ink : torch.Tensor of shape (n_samples, 1, 64, 64), dtype uint8
        255 where the pen was, 0 on the paper.
    labels : torch.Tensor of shape (n_samples,)
        Number of the character.
    """
    drawings: dict[str, np.ndarray] = {}
    for name in ARCHIVES:
        with zipfile.ZipFile(data / name) as archive:
            for member in archive.namelist():
                # Greek and Latin are in both archives: the key drops the archive's folder.
                key = member.partition("/")[2]
                if key.endswith(".png") and key.split("/")[0] not in left_out:
                    picture = Image.open(io.BytesIO(archive.read(member))).convert("L")
                    small = picture.resize((WORKING_SIZE, WORKING_SIZE), Image.Resampling.BOX)
                    drawings[key] = 255 - np.asarray(small)
    characters = sorted({key.rpartition("/")[0] for key in drawings})
    number = {character: i for i, character in enumerate(characters)}
    keys = sorted(drawings)
    ink = torch.from_numpy(np.stack([drawings[key] for key in keys])).unsqueeze(1)
    return ink, torch.tensor([number[key.rpartition("/")[0]] for key in keys])


def ink_boxes(ink: torch.Tensor) -> torch.Tensor:
    """Centre and half side of the square around the ink, in the frame's [-1, 1] coordinates.

    Returns
    -------
    boxes : torch.Tensor of shape (n_samples, 3)
        Horizontal centre, vertical centre, half side.
    """
    present = ink[:, 0] > 127
    position = torch.arange(WORKING_SIZE, dtype=torch.float32)
    ends = []
    for other_axis in (1, 2):
        seen = present.any(dim=other_axis)
        first = position.expand_as(seen).masked_fill(~seen, WORKING_SIZE).amin(dim=1)
        last = position.expand_as(seen).masked_fill(~seen, -1).amax(dim=1) + 1
        ends.append(torch.stack([first, last]) * 2 / WORKING_SIZE - 1)
    (left, right), (top, bottom) = ends
    half_side = torch.maximum(right - left, bottom - top) / 2
    return torch.stack([(left + right) / 2, (top + bottom) / 2, half_side], dim=1)


class Views:
    """Random views of ink maps, as the normalised images that the network takes.

    Parameters
    ----------
    generator : torch.Generator
        Source of every random number.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def __call__(self, ink: torch.Tensor, boxes: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        """Ink maps (n, 1, 64, 64) in [0, 1] to images (n, 3, 32, 32).

        The first quarter of a batch becomes tight, thick and coarse: what an 8 x 8 picture of a
        digit looks like when it is blown up. Batches are shuffled, so the place means nothing.
        """
        n_coarse = len(ink) // 4
        coarse = (torch.arange(len(ink)) < n_coarse).float()
        ink = self.place(ink, boxes, turns, coarse)
        ink = self.thicken(ink, coarse)
        fine = functional.avg_pool2d(ink[n_coarse:], WORKING_SIZE // _glyph.INPUT_SIZE)
        ink = torch.cat([self.coarsen(ink[:n_coarse]), fine])
        images = (self.expose(ink) - _glyph.MEAN[0]) / _glyph.STD[0]
        return images.expand(-1, 3, -1, -1)

    def uniform(self, n: int, low: float, high: float) -> torch.Tensor:
        """n numbers, uniform between two limits."""
        return torch.rand(n, generator=self.generator) * (high - low) + low

    def place(
        self, ink: torch.Tensor, boxes: torch.Tensor, turns: torch.Tensor, coarse: torch.Tensor
    ) -> torch.Tensor:
        """Turn, crop, shear, stretch, shift and bend the drawing."""
        n = len(ink)
        angle = turns * (math.pi / 2) + self.uniform(n, -0.21, 0.21)
        shear = self.uniform(n, -0.2, 0.2)
        stretch = self.uniform(n, -0.15, 0.15).exp()
        # A third of the views keep the whole frame, the others close in on the ink.
        tightness = torch.maximum(self.uniform(n, -0.5, 1.0).clamp(min=0), coarse)
        side = torch.lerp(torch.ones(n), boxes[:, 2] * 1.05, tightness)
        side = side * self.uniform(n, -0.15, 0.15).exp()
        shift = torch.stack([self.uniform(n, -0.1, 0.1) for _ in range(2)], dim=1)
        centre = boxes[:, :2] * tightness[:, None] + shift * side[:, None]
        cos, sin = angle.cos() * side, angle.sin() * side
        rows = [
            torch.stack([cos * stretch, (cos * shear - sin) / stretch, centre[:, 0]], dim=1),
            torch.stack([sin * stretch, (sin * shear + cos) / stretch, centre[:, 1]], dim=1),
        ]
        grid = functional.affine_grid(
            torch.stack(rows, dim=1), list(ink.shape), align_corners=False
        )
        return functional.grid_sample(ink, grid + self.bend(n), align_corners=False)

    def bend(self, n: int) -> torch.Tensor:
        """Smooth random displacements (n, 64, 64, 2): no two hands draw alike."""
        coarse = torch.randn(n, 2, 4, 4, generator=self.generator) * 0.05
        size = (WORKING_SIZE, WORKING_SIZE)
        smooth = functional.interpolate(coarse, size=size, mode="bicubic", align_corners=False)
        return smooth.permute(0, 2, 3, 1)

    def thicken(self, ink: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        """Widen the strokes by 0 to 3 pixels on each side, coarse views more."""
        n = len(ink)
        width = 3 * torch.maximum(self.uniform(n, 0, 1) ** 2, coarse * self.uniform(n, 0.3, 1))
        for step in range(3):
            wider = functional.max_pool2d(ink, 3, stride=1, padding=1)
            ink = torch.lerp(ink, wider, (width - step).clamp(0, 1).view(-1, 1, 1, 1))
        return ink

    def coarsen(self, ink: torch.Tensor) -> torch.Tensor:
        """Reduce to a few pixels and blow up to the input size."""
        drawn = torch.randint(len(LOW_RESOLUTIONS), (1,), generator=self.generator).item()
        small = functional.adaptive_avg_pool2d(ink, LOW_RESOLUTIONS[drawn])
        size = (_glyph.INPUT_SIZE, _glyph.INPUT_SIZE)
        large = functional.interpolate(small, size=size, mode="bicubic", align_corners=False)
        return large.clamp(0, 1)

    def expose(self, ink: torch.Tensor) -> torch.Tensor:
        """Contrast, brightness, noise, and dark on bright as often as bright on dark."""
        n = len(ink)
        contrast = 1 - 0.5 * self.uniform(n, -1, 1).clamp(min=0)
        offset = (1 - contrast) * self.uniform(n, 0, 1)
        noise = torch.randn(ink.shape, generator=self.generator)
        pixels = offset.view(-1, 1, 1, 1) + contrast.view(-1, 1, 1, 1) * ink
        pixels = (pixels + noise * self.uniform(n, 0, 0.05).view(-1, 1, 1, 1)).clamp(0, 1)
        inverted = (self.uniform(n, 0, 1) < 0.5).view(-1, 1, 1, 1)
        return torch.where(inverted, 1 - pixels, pixels)


class CosineHeads(nn.Module):
    """One cosine softmax classifier for each pooling of the tokens.

    Parameters
    ----------
    n_features, n_classes : int
        Length of a token and number of classes.
    scale : float, default=20.0
        Factor of the cosines before the softmax.
    """

    def __init__(self, n_features: int, n_classes: int, *, scale: float = 20.0) -> None:
        super().__init__()
        self.scale = scale
        self.prototypes = nn.ParameterDict(
            {name: nn.Parameter(0.1 * torch.randn(n_classes, n_features)) for name in POOLINGS}
        )

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy, averaged over the poolings."""
        losses = []
        for name, pool in POOLINGS.items():
            prototypes = functional.normalize(self.prototypes[name], dim=1)
            cosines = functional.normalize(pool(tokens), dim=1) @ prototypes.T
            logits = self.scale * cosines
            losses.append(functional.cross_entropy(logits, labels, label_smoothing=0.1))
        return torch.stack(losses).mean()


def initialised_model() -> _glyph.GlyphTransformer:
    """New model with the small random weights usual for vision transformers."""
    model = _glyph.GlyphTransformer()
    for module in model.blocks.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.04)
            nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(model.cls_token, std=0.02)
    nn.init.trunc_normal_(model.pos_embed, std=0.02)
    return model


def make_optimizer(modules: list[nn.Module], n_steps: int, learning_rate: float):
    """AdamW without decay on vectors; linear warm-up over 5 %, then half a cosine."""
    parameters = [p for module in modules for p in module.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim == 2 or p.ndim == 4], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim not in (2, 4)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.99))
    n_warm = max(1, n_steps // 20)

    def factor(step: int) -> float:
        if step < n_warm:
            return (step + 1) / n_warm
        return 0.5 * (1 + math.cos(math.pi * (step - n_warm) / (n_steps - n_warm)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def train(ink: torch.Tensor, labels: torch.Tensor, options: argparse.Namespace) -> nn.Module:
    """Train a new model; an epoch shows every drawing once in each quarter turn."""
    generator = torch.Generator().manual_seed(options.seed)
    torch.manual_seed(options.seed)
    boxes, views = ink_boxes(ink), Views(generator)
    model = initialised_model()
    heads = CosineHeads(_glyph.N_FEATURES, 4 * (int(labels.max()) + 1))
    n_batches = 4 * len(ink) // options.batch_size
    n_steps = n_batches * options.epochs
    optimizer, schedule = make_optimizer([model, heads], n_steps, options.learning_rate)
    started = time.perf_counter()
    for epoch in range(options.epochs):
        total = 0.0
        order = torch.randperm(4 * len(ink), generator=generator)
        for batch in order[: n_batches * options.batch_size].view(n_batches, -1):
            index, turns = batch // 4, batch % 4
            images = views(ink[index].float() / 255, boxes[index], turns)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                tokens = model(images)
            loss = heads(tokens.float(), 4 * labels[index] + turns)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.perf_counter() - started
        print(f"epoch {epoch + 1:3d}  loss {total / n_batches:.3f}  {seconds:.0f} s", flush=True)
    return model


def parse_options() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/omniglot_small"))
    parser.add_argument("--out", type=Path, default=_glyph.WEIGHTS_PATH)
    parser.add_argument("--epochs", type=int, default=44)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument(
        "--leave-out-also",
        nargs="*",
        default=[],
        help="alphabets kept for comparing recipes, so that the test alphabets decide nothing",
    )
    return parser.parse_args()


def main() -> None:
    """Read, train, store."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    left_out = (*_glyph.ALPHABETS_LEFT_OUT, *options.leave_out_also)
    ink, labels = read_ink(options.data, left_out)
    print(
        f"{len(ink)} drawings, {int(labels.max()) + 1} characters, without {left_out}", flush=True
    )
    model = train(ink, labels, options)
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    facts = {"data": "Omniglot (MIT)", "left_out": " ".join(left_out), "format": "pt"}
    save_file(weights, options.out, metadata=facts)


if __name__ == "__main__":
    main()
