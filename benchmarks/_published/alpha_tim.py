# SPDX-License-Identifier: BSD-3-Clause
"""TIM and alpha-TIM of Realistic_Transductive_Few_Shot, all episodes at once, as published.

Rows are features; they are made unit rows by the code itself. Fewer steps than published, on
both sides.
"""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from _published.clones import load
from _published.episodes import WAYS, Episodes, make_episodes, share
from _published.tasks import Outcome
from skpool.few_shot import InformationMaximizationClassifier

CLONE = "Realistic_Transductive_Few_Shot"
ABSENT = ("tqdm", "yaml")
# Published: 1000.
STEPS = 200
# Published for balanced queries and for others; alpha-TIM has the latter for both.
WEIGHTS = {"balanced": (1.0, 10.0, 1.0), "dirichlet": (1.0, 1.0, 1.0)}
SETTINGS = {
    "temp": 15,
    "iter": STEPS,
    "lr_tim": 1e-4,
    "lr_alpha_tim": 1e-4,
    "entropies": ["Shannon", "Alpha", "Alpha"],
    "alpha_values": [5.0, 5.0, 5.0],
    "use_tuned_alpha_values": True,
}


def theirs(code: Path, episodes: Episodes, name: str, weights: tuple) -> object:
    """The method after its last step."""
    published = load(code / CLONE, "src.methods.tim", ABSENT)
    # What shows progress, writes logs and extracts features is left out.
    quiet = SimpleNamespace(info=lambda text: None, del_logger=lambda: None)
    published.tqdm, published.Logger = iter, lambda *_: quiet
    published.extract_features = lambda model, support, query: (support, query)
    kind = {"TIM": published.TIM_GD, "alpha-TIM": published.ALPHA_TIM}[name]
    args = SimpleNamespace(**SETTINGS, loss_weights=list(weights))
    method = kind(nn.Identity(), "cpu", None, args)
    rows = {"x_s": episodes.Xs, "x_q": episodes.Xq}
    labels = {"y_s": episodes.ys[:, :, None], "y_q": episodes.yq[:, :, None]}
    method.run_task(rows | labels, episodes.Xs.shape[1] // WAYS)
    return method


def compare(code: Path, seed: int, *, name: str, n_shot: int, distribution: str) -> Outcome:
    """The same steps on both sides."""
    episodes = make_episodes(seed, n_shot, distribution=distribution)
    unit = nn.functional.normalize
    ready = episodes._replace(Xs=unit(episodes.Xs, dim=2), Xq=unit(episodes.Xq, dim=2))
    weights = WEIGHTS[distribution if name == "TIM" else "dirichlet"]
    method = theirs(code, episodes, name, weights)
    ours = InformationMaximizationClassifier(
        "shannon" if name == "TIM" else "tsallis", weights=weights, max_iter=STEPS
    )
    with torch.no_grad():
        proba = method.get_logits(ready.Xq).softmax(dim=2)
        found = method.get_preds(ready.Xq).numpy()
    probabilities = ours.predict_proba_episodes(ready.batch())
    start = InformationMaximizationClassifier(max_iter=0)
    facts = {
        "identity: largest difference of a probability": float((proba - probabilities).abs().max()),
        "before the first step": ready.score(start),
    }
    decided = probabilities.argmax(dim=2).numpy()
    facts["predictions changed by the steps, ours"] = 1 - share(decided, ready.decided(start))
    return Outcome(found.ravel(), decided.ravel(), ready.yq.numpy().ravel(), facts)


RUNS = {
    f"{name}, {title}, {n_shot} shot": partial(
        compare, name=name, n_shot=n_shot, distribution=distribution
    )
    for name in ("TIM", "alpha-TIM")
    for distribution, title in {"balanced": "balanced", "dirichlet": "Dirichlet(2)"}.items()
    for n_shot in (1, 5)
}
