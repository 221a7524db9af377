"""Ablation of losses and labels on frozen features: every pair of a data set is held out once, at little cost.

    python recipes/studies/loss_ablation.py --base models/SmolLM2-135M-Instruct --data train.jsonl test.jsonl \
        --group_ends_at _ --out runs/loss_ablation

Rows and folds are those of `ablation.py`. The features of every distinct prompt with a response are computed once and
kept in `--out`. For each fold, a linear reward is fitted on all pairs of the other folds with each variant's labels and
loss. Its weight decay is the one with the lowest log loss on a third of the other groups, which are then added to the
training pairs; `smoothing chosen` chooses the label smoothing in the same way. Results refer to the original labels.
The table is that of `ablation.py`, with 95% jackknife intervals over groups. Variants with planted errors are compared
with `20% flipped`, in which the responses of a fifth of the training pairs are exchanged.
"""

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation import FOLDS, compared, pool
from ablation_variants import VARIANTS
from rich.console import Console
from rich.table import Table
from study_runs import base_model
from torch import Tensor
from transformers import AutoTokenizer
from uncertainty import assign_folds, group_of

from hf_reward.data.sources import as_sources, load_source
from hf_reward.losses.preference_loss import PreferenceLoss
from hf_reward.metrics.preference import log_loss
from hf_reward.modeling.packing import packed_model
from hf_reward.modeling.rewards import compute_features
from hf_reward.preprocessing.packed_collator import DataCollatorForPackedPreference
from hf_reward.preprocessing.preparation import PreparationRule, prepare_preferences
from hf_reward.preprocessing.tokenization import FormatRule
from hf_reward.preprocessing.tokenizer import prepare_tokenizer

Row = dict[str, Any]
SMOOTHING = (0.0, 0.05, 0.1, 0.2)
DECAYS = (0.01, 0.03, 0.1, 0.3, 1.0)
FLIPPED = "20% flipped"
CHOSEN = ", smoothing chosen"
NAMES = (
    *("plain", "scaled", "margin", "vote shares", "smoothing 0.1", "smoothing 0.2", f"plain{CHOSEN}"),
    *(FLIPPED, f"{FLIPPED}, smoothing 0.2", f"{FLIPPED}{CHOSEN}"),
)
SHOWN = ("accuracy", "log loss", "slope", "length-balanced")
console = Console(width=150)


def main(words: Sequence[str] | None = None) -> None:
    """Compute the features, fit all variants and print the table."""
    options = read_options(sys.argv[1:] if words is None else words)
    rows = [dict(row) for path in options.data for source in as_sources([path]) for row in load_source(source)]
    groups = np.array([group_of(row, options) for row in rows])
    folds = assign_folds(groups, FOLDS, 0)
    options.out.mkdir(parents=True, exist_ok=True)
    features = Features(rows, options)
    runs: dict[str, list[Row]] = {name: [] for name in options.variants}
    for name, fold in product(options.variants, range(FOLDS)):
        runs[name].append(run(name, fold, rows, features, groups, folds))
        console.print(f"{name}, fold {fold}: {runs[name][-1]['chosen']}")
    (options.out / "results.json").write_text(json.dumps(runs) + "\n", encoding="utf-8")
    table = Table("variant", *SHOWN, title="Value, and difference to plain (95% interval)", title_justify="left")
    for name in options.variants:
        reference = FLIPPED if name.startswith(FLIPPED + ",") else "plain"
        other = None if name == reference else pool(runs[reference])
        table.add_row(name, *compared(pool(runs[name]), other, SHOWN))
    console.print(table)


def read_options(words: Sequence[str]) -> Namespace:
    """Read the command-line options."""
    parser = ArgumentParser(description="Ablation of losses and labels on frozen features.")
    parser.add_argument("--base", required=True, help="folder or Hub id of the model whose features are used")
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--group_ends_at", help="pairs whose groups agree up to this text stay in one fold")
    parser.add_argument("--variants", nargs="*", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--layers", type=int, default=8, help="layers of the base model that are kept; 0 for all")
    parser.add_argument("--max_length", type=int, default=256)
    options = parser.parse_args(list(words))
    if not {"plain", FLIPPED} <= {*options.variants}:
        parser.error(f"--variants must include plain and {FLIPPED}")
    return options


class Features:
    """Standardised features of every distinct prompt with a response, computed once."""

    def __init__(self, rows: list[Row], options: Namespace) -> None:
        texts = list(dict.fromkeys((row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")))
        file = options.out / "features.npz"
        settings = json.dumps([options.base, list(map(str, options.data)), options.layers, options.max_length])
        if file.is_file():
            kept = np.load(file, allow_pickle=False)
            if str(kept["settings"]) != settings:
                raise SystemExit(f"{file} was made with different settings. Use a different --out.")
            found = kept["features"]
        else:
            found = text_features(texts, options)
            np.savez(file, features=found, settings=settings)
        found = (found - found.mean(0)) / (found.std(0) + 1e-6) / np.sqrt(found.shape[1])
        self._values = torch.tensor(found, dtype=torch.float32)
        self._place = {text: number for number, text in enumerate(texts)}

    def gaps(self, rows: list[Row]) -> Tensor:
        """Return the features of the chosen minus those of the rejected response, shape `(R, H)`."""
        better, worse = (
            self._values[[self._place[row["prompt"], row[side]] for row in rows]] for side in ("chosen", "rejected")
        )
        return better - worse


def text_features(texts: list[tuple[str, str]], options: Namespace) -> np.ndarray:
    """Return the features of each prompt with its response, shape `(N, H)`."""
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(options.base))
    model: Any = base_model(options.base, options.layers or None).eval()
    # A row needs two responses, so each text is paired with the same short one.
    pairs = [{"prompt": prompt, "responses": [text, "-"], "ranks": [0, 1]} for prompt, text in texts]
    rule = PreparationRule(format=FormatRule(max_length=options.max_length, over_length="truncate_prompt"))
    prepared: Any = prepare_preferences(pairs, tokenizer, rule)[0]
    if len(prepared) != len(pairs):
        raise SystemExit(f"{len(pairs) - len(prepared)} responses are too long. Raise --max_length.")
    collate, parts = DataCollatorForPackedPreference(), []
    with torch.no_grad(), packed_model(model):
        for start in range(0, len(pairs), 8):
            batch = collate([prepared[place] for place in range(start, min(start + 8, len(pairs)))])
            parts.append(compute_features(model, batch)[::2].float().numpy())
    return np.concatenate(parts)


# --- fits -------------------------------------------------------------------------------------------------------------


def run(name: str, fold: int, rows: list[Row], features: Features, groups: np.ndarray, folds: np.ndarray) -> Row:
    """Fit a variant without a fold and return the reward gaps of the fold."""
    known, held = np.flatnonzero(folds != fold), [rows[int(place)] for place in np.flatnonzero(folds == fold)]
    variant = VARIANTS[name.removesuffix(CHOSEN)]
    training = variant.rows([rows[int(place)] for place in known], fold)
    fixed = dict(variant.settings).get("label_smoothing", 0.0)
    inner = assign_folds(groups[known], 3, fold) == 0
    fitted, judged = (
        [row for row, mine in zip(training, inner, strict=True) if mine == side] for side in (False, True)
    )
    scores = {}
    for decay, smoothing in product(DECAYS, SMOOTHING if name.endswith(CHOSEN) else (fixed,)):
        head = fit(features.gaps(fitted), fitted, decay, smoothing)
        scores[decay, smoothing] = log_loss((features.gaps(judged) @ head).double().numpy())
    decay, smoothing = min(scores, key=lambda pair: scores[pair])
    head = fit(features.gaps(training), training, decay, smoothing)
    return {
        "gaps": (features.gaps(held) @ head).tolist(),
        "groups": [str(row.get("group") or row["prompt"]) for row in held],
        "length_gaps": [len(row["chosen"].split()) - len(row["rejected"].split()) for row in held],
        "off_topic_gaps": [],
        "changes": [],
        "chosen": {"weight decay": decay, "label smoothing": smoothing},
    }


def fit(gaps: Tensor, rows: list[Row], decay: float, smoothing: float) -> Tensor:
    """Fit a linear reward with the loss of the trainer, shape `(H,)`."""
    columns = {
        "margins": _column(rows, "margin", 0.0),
        "probabilities": _column(rows, "probability", float("nan")),
        "weights": _column(rows, "weight", 1.0),
    }
    ranks, loss_function = torch.tensor([[0, 1]]).repeat(len(rows), 1), PreferenceLoss(label_smoothing=smoothing)
    head = torch.zeros(gaps.shape[-1], requires_grad=True)
    optimizer = torch.optim.LBFGS([head], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = gaps @ head
        value = loss_function(torch.stack([found, torch.zeros_like(found)], 1), ranks, **columns)
        value = value + decay * head.square().mean() / 2
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    return head.detach()


def _column(rows: list[Row], name: str, default: float) -> Tensor | None:
    if all(row.get(name) is None for row in rows):
        return None
    return torch.tensor([default if row.get(name) is None else row[name] for row in rows], dtype=torch.float32)


if __name__ == "__main__":
    main()
