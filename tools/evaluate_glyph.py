# SPDX-License-Identifier: BSD-3-Clause
"""Measure the frozen features of the backbone that ships with the package.

Three questions, each against a floor measured in the same run: characters of alphabets never seen
in training (episodes), the official Omniglot one-shot runs (never read in training), and
scikit-learn's 8 x 8 digits blown up to the input size. What is measured is the stored half
precision file. The output is Markdown; ``docs/glyph.md`` holds a copy.

Run from the repository root::

    PYTHONPATH=. python tools/evaluate_glyph.py
"""

import argparse
import io
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

from skpool.backbones import _glyph

ARCHIVES = ("images_background_small1.zip", "images_background_small2.zip")
EPISODES = ((5, 1), (5, 5), (20, 1), (20, 5))
N_QUERIES = 10
POOLINGS = {
    "CLS": lambda tokens: tokens[:, 0],
    "patch mean": lambda tokens: tokens[:, 1:].mean(dim=1),
    "patch GeM (p=3)": lambda tokens: tokens[:, 1:].clamp(min=1e-6).pow(3).mean(dim=1).pow(1 / 3),
    "patch max": lambda tokens: tokens[:, 1:].amax(dim=1),
}
Features = dict[str, np.ndarray]


def prepare(pictures: Iterable[Image.Image]) -> np.ndarray:
    """RGB pixels (n, 32, 32, 3) at the input size of the model."""
    size = (_glyph.INPUT_SIZE, _glyph.INPUT_SIZE)
    resized = [p.convert("RGB").resize(size, Image.Resampling.BICUBIC) for p in pictures]
    return np.stack([np.asarray(picture) for picture in resized])


def describe(model: torch.nn.Module, pixels: np.ndarray) -> Features:
    """Pooled tokens of every image, one array (n, d) per pooling."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor(_glyph.MEAN), torch.tensor(_glyph.STD)
    images = (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        blocks = [model(block) for block in images.split(100)]
    return {
        name: torch.cat([pool(tokens) for tokens in blocks]).numpy()
        for name, pool in POOLINGS.items()
    }


def ink(pixels: np.ndarray) -> np.ndarray:
    """Raw pixels (n, 1024) of black writing on white paper, 0 where there is none."""
    return 1 - pixels[..., 0].reshape(len(pixels), -1) / 255


def read_characters(data: Path, alphabets: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and character names of whole alphabets."""
    pictures: dict[str, Image.Image] = {}
    for name in ARCHIVES:
        with zipfile.ZipFile(data / name) as archive:
            for member in archive.namelist():
                key = member.partition("/")[2]
                if key.endswith(".png") and key.split("/")[0] in alphabets:
                    pictures[key] = Image.open(io.BytesIO(archive.read(member)))
    keys = sorted(pictures)
    labels = np.array([key.rpartition("/")[0] for key in keys])
    return prepare(pictures[key] for key in keys), labels


def episode_accuracies(
    X: np.ndarray, y: np.ndarray, *, n_way: int, n_shot: int, n_episodes: int
) -> np.ndarray:
    """Accuracy of the nearest class mean by cosine, one number per episode."""
    # The same seed for every feature: all of them meet the same episodes.
    rng = np.random.default_rng(0)
    X = normalize(X)
    members = [np.flatnonzero(y == label) for label in np.unique(y)]
    truth = np.repeat(np.arange(n_way), N_QUERIES)
    accuracies = np.empty(n_episodes)
    for episode in range(n_episodes):
        ways = rng.choice(len(members), n_way, replace=False)
        chosen = [rng.permutation(members[way])[: n_shot + N_QUERIES] for way in ways]
        means = normalize([X[rows[:n_shot]].mean(axis=0) for rows in chosen])
        queries = X[np.concatenate([rows[n_shot:] for rows in chosen])]
        accuracies[episode] = ((queries @ means.T).argmax(axis=1) == truth).mean()
    return accuracies


def interval(values: np.ndarray) -> str:
    """Mean and half width of the 95 % interval."""
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():.3f} ± {half:.3f}"


def episode_rows(features: Features, y: np.ndarray, n_episodes: int) -> list[list[str]]:
    """One row per feature, one column per kind of episode."""
    rows = []
    for name, X in features.items():
        cells = [
            interval(episode_accuracies(X, y, n_way=way, n_shot=shot, n_episodes=n_episodes))
            for way, shot in EPISODES
        ]
        rows.append([name, *cells])
    return rows


def read_runs(data: Path) -> tuple[np.ndarray, list[str], list[list[tuple[str, str]]]]:
    """Pixels, their paths, and for each run the pairs (test item, its class)."""
    with zipfile.ZipFile(data / "all_runs.zip") as archive:
        names = sorted(archive.namelist())
        paths = [name for name in names if name.endswith(".png")]
        pixels = prepare(Image.open(io.BytesIO(archive.read(path))) for path in paths)
        texts = [archive.read(n).decode() for n in names if n.endswith("class_labels.txt")]
    return pixels, paths, [[tuple(line.split()) for line in t.splitlines()] for t in texts]


def run_accuracies(X: np.ndarray, paths: list[str], runs: list) -> np.ndarray:
    """Accuracy of the nearest neighbour by cosine, one number per run."""
    X, row = normalize(X), {path: i for i, path in enumerate(paths)}
    accuracies = []
    for pairs in runs:
        items, truth = zip(*pairs, strict=True)
        classes = sorted(truth)
        similarity = X[[row[item] for item in items]] @ X[[row[name] for name in classes]].T
        found = np.array(classes)[similarity.argmax(axis=1)]
        accuracies.append(np.mean(found == np.array(truth)))
    return np.array(accuracies)


def digit_pixels(images: np.ndarray) -> np.ndarray:
    """8 x 8 arrays of 0 to 16 as RGB pixels at the input size, bright on dark."""
    scaled = np.round(images * 255 / 16).astype(np.uint8)
    return prepare(Image.fromarray(picture) for picture in scaled)


def few_shot_digits(X: np.ndarray, y: np.ndarray, *, n_shot: int, n_draws: int) -> np.ndarray:
    """Accuracy on all other digits from a few of each class, one number per draw."""
    rng = np.random.default_rng(0)
    X = normalize(X)
    accuracies = []
    for _ in range(n_draws):
        order = rng.permutation(len(y))
        shots = [order[y[order] == digit][:n_shot] for digit in range(10)]
        means = normalize([X[rows].mean(axis=0) for rows in shots])
        rest = np.setdiff1d(order, np.concatenate(shots))
        accuracies.append(((X[rest] @ means.T).argmax(axis=1) == y[rest]).mean())
    return np.array(accuracies)


def digit_rows(features: Features, y: np.ndarray) -> list[list[str]]:
    """Logistic regression on half of the digits, and 5 shots of each class."""
    rows = []
    for name, X in features.items():
        parts = train_test_split(X, y, test_size=0.5, stratify=y, random_state=0)
        X_train, X_test, y_train, y_test = parts
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
        accuracy = classifier.fit(X_train, y_train).score(X_test, y_test)
        few = few_shot_digits(X, y, n_shot=5, n_draws=100)
        rows.append([name, f"{accuracy:.3f}", interval(few)])
    return rows


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """One Markdown table under a heading."""
    print(f"\n### {title}\n")
    for cells in (columns, ["---"] * len(columns), *rows):
        print("| " + " | ".join(cells) + " |")


def report_characters(model: torch.nn.Module, options: argparse.Namespace) -> None:
    """Episodes on the alphabets left out."""
    pixels, y = read_characters(options.data, options.alphabets)
    features = {**describe(model, pixels), "raw pixels (32 x 32)": ink(pixels)}
    rows = episode_rows(features, y, options.episodes)
    stored = options.features / "omniglot242_deit_tiny.npz"
    if stored.exists():
        deit = np.load(stored)
        mine = np.isin(deit["alphabet"], options.alphabets)
        other = {"DeiT-tiny CLS (224 x 224)": deit["cls"][mine].astype(np.float32)}
        rows += episode_rows(other, deit["labels"][mine], options.episodes)
    columns = ["features", *(f"{way}-way {shot}-shot" for way, shot in EPISODES)]
    title = f"{len(np.unique(y))} new characters ({', '.join(options.alphabets)})"
    print_table(f"{title}: accuracy over {options.episodes} episodes", columns, rows)


def report_runs(model: torch.nn.Module, options: argparse.Namespace) -> None:
    """The official one-shot runs."""
    pixels, paths, runs = read_runs(options.data)
    features = {**describe(model, pixels), "raw pixels (32 x 32)": ink(pixels)}
    rows = [[name, interval(run_accuracies(X, paths, runs))] for name, X in features.items()]
    stored = options.features / "omniglot_oneshot_runs_deit_tiny.npz"
    if stored.exists():
        deit = np.load(stored)
        accuracies = run_accuracies(deit["cls"].astype(np.float32), list(deit["path"]), runs)
        rows.append(["DeiT-tiny CLS (224 x 224)", interval(accuracies)])
    print_table(f"{len(runs)} official one-shot runs, 20-way", ["features", "accuracy"], rows)


def report_digits(model: torch.nn.Module) -> None:
    """scikit-learn's digits as images."""
    digits = load_digits()
    features = describe(model, digit_pixels(digits.images))
    features["raw pixels (8 x 8)"] = digits.data
    columns = ["features", "logistic regression, half / half", "5 shots, nearest mean, 100 draws"]
    rows = digit_rows(features, digits.target)
    print_table("scikit-learn's 8 x 8 digits: accuracy", columns, rows)


def main() -> None:
    """Load, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/omniglot_small"))
    parser.add_argument("--features", type=Path, default=Path("../shared/data/features"))
    parser.add_argument("--alphabets", nargs="+", default=list(_glyph.ALPHABETS_LEFT_OUT))
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = _glyph.load_glyph()
    n_weights = sum(weight.numel() for weight in model.parameters())
    print(f"{n_weights:,} weights, {_glyph.WEIGHTS_PATH.stat().st_size:,} bytes")
    report_characters(model, options)
    report_runs(model, options)
    report_digits(model)


if __name__ == "__main__":
    main()
