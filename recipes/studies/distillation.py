"""Distil a judge of known accuracy: probabilities as labels compared with the verdicts of the same judge.

    python recipes/studies/distillation.py --base BASE --data train.jsonl test.jsonl --group_ends_at _ \
        --out runs/distillation

Rows are pairs with `prompt`, `chosen`, `rejected` and a `group` (by default the prompt). The judge is scripted: its
log-odds for the preferred response are drawn from a normal distribution with mean m and variance 2 m, so its
probabilities are calibrated, and its verdicts are right with probability `--accuracy` (m = 2 z^2, where z is the
normal quantile of the accuracy). Students are linear heads on the features of a frozen backbone, which are computed
once. They are trained on the same rows in the same order with the labels of the judge: its probabilities, its verdicts,
or its verdicts with `label_smoothing` at the judge's true error rate. A student of the human labels is the reference.
`--folds` folds of groups are held out in turn.

The table has the accuracy and the log loss on the held-out human preferences, averaged over `--seeds` draws of the
judge, and the paired differences from the student of the verdicts, with 95% intervals clustered by prompt.
"""

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.special import expit, log_expit, ndtri
from study_runs import base_model
from transformers import AutoTokenizer
from uncertainty import assign_folds, group_of

from hf_reward import RewardScorer
from hf_reward.data.score_request import ScoreRequest
from hf_reward.data.sources import as_sources, load_source
from hf_reward.losses.functions import bradley_terry_loss
from hf_reward.metrics.intervals import t_interval
from hf_reward.metrics.preference import pairwise_credit
from hf_reward.metrics.spread import mean_spread
from hf_reward.modeling.rewards import compute_features

PROBABILITIES, VERDICTS, SMOOTHED, HUMAN = "probabilities", "verdicts", "verdicts, smoothed", "human labels"
STUDENTS = (PROBABILITIES, VERDICTS, SMOOTHED, HUMAN)
SIDES = ("chosen", "rejected")
console = Console(width=150)


def main(words: Sequence[str] | None = None) -> None:
    """Train the students of each fold and seed, and print the table."""
    options = read_options(sys.argv[1:] if words is None else words)
    rows = [dict(row) for path in options.data for source in as_sources([path]) for row in load_source(source)]
    folds = assign_folds(np.array([group_of(row, options) for row in rows]), options.folds, 0)
    parts = [
        [
            [rows[int(place)] for place in order if (folds[place] == fold) == held][:count]
            for held, count in ((False, options.train_rows), (True, options.test_rows))
        ]
        for fold in range(options.folds)
        for order in [np.random.default_rng(fold).permutation(len(rows))]
    ]
    features = features_of([row for part in parts for side in part for row in side], options)
    gaps: dict[str, list[torch.Tensor]] = {name: [] for name in STUDENTS}
    for train, test in parts:
        for name in STUDENTS:
            found = [gaps_of_student(name, train, test, features, seed, options) for seed in range(options.seeds)]
            gaps[name].append(torch.stack(found, dim=1))
    prompts = [row.get("group") or row["prompt"] for _, test in parts for row in test]
    results = evaluate({name: torch.cat(found).double().numpy() for name, found in gaps.items()}, prompts)
    options.out.mkdir(parents=True, exist_ok=True)
    content = {"settings": {name: str(value) for name, value in vars(options).items()}, "students": results}
    (options.out / "results.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    console.print(as_table(results, f"{len(prompts)} held-out pairs of {len(set(prompts))} prompts"))


def read_options(words: Sequence[str]) -> Namespace:
    """Read the command-line options."""
    parser = ArgumentParser(description="Distillation of the probabilities and of the verdicts of a judge.")
    parser.add_argument("--base", required=True, help="folder or Hub id of the language model to start from")
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--accuracy", type=float, default=0.75, help="of the verdicts of the judge")
    parser.add_argument("--group_ends_at", help="pairs whose groups agree up to this text stay in one fold")
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train_rows", type=int, default=960, help="of each fold")
    parser.add_argument("--test_rows", type=int, default=480, help="of each fold")
    parser.add_argument("--layers", type=int, help="use only the first layers of the backbone")
    parser.add_argument("--max_length", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--learning_rate", type=float, default=0.1)
    options = parser.parse_args(list(words))
    if not 0.5 < options.accuracy < 1:
        parser.error("--accuracy must be between 0.5 and 1")
    return options


# --- labels -----------------------------------------------------------------------------------------------------------


def judge_probabilities(count: int, accuracy: float, seed: int) -> np.ndarray:
    """Draw the probabilities of a calibrated judge for the response that people prefer.

    Args:
        count: Number of pairs, N.
        accuracy: Probability that the verdict is right.
        seed: Random seed.

    Returns:
        P(the preferred response is better), shape `(N,)`.

    Source:
        Green and Swets (1966), "Signal detection theory": with two normal distributions of equal variance, the
        log-likelihood ratio is normal with a variance of twice its mean.
    """
    mean = 2 * ndtri(accuracy) ** 2
    return expit(np.random.default_rng(seed).normal(mean, np.sqrt(2 * mean), count))


# --- students ---------------------------------------------------------------------------------------------------------


def features_of(rows: Sequence[dict[str, Any]], options: Namespace) -> dict[tuple[str, str], torch.Tensor]:
    """Return the features of every prompt with every response, shape `(H,)` each, standardised together."""
    model: Any = base_model(options.base, options.layers, frozen=True)
    scorer = RewardScorer(model, AutoTokenizer.from_pretrained(options.base), max_length=options.max_length)
    texts = list(dict.fromkeys((row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")))
    encoded = scorer.encode([ScoreRequest(prompt=prompt, response=response) for prompt, response in texts])
    found = []
    for each in encoded:
        ids = torch.tensor([each.input_ids[-options.max_length :]])
        with torch.inference_mode():
            found.append(compute_features(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})[0])
    stacked = torch.stack(found).float()
    scaled = (stacked - stacked.mean(0)) / stacked.std(0).clamp_min(1e-6) / stacked.shape[1] ** 0.5
    return dict(zip(texts, scaled.clone(), strict=True))


def gaps_of_student(
    name: str,
    train: Sequence[dict[str, Any]],
    test: Sequence[dict[str, Any]],
    features: dict[tuple[str, str], torch.Tensor],
    seed: int,
    options: Namespace,
) -> torch.Tensor:
    """Train a student and return its reward gaps (preferred minus other) on the held-out pairs, shape `(P,)`."""
    shares = torch.from_numpy(judge_probabilities(len(train), options.accuracy, seed)).float()
    right = torch.ones_like(shares) if name == HUMAN else (shares > 0.5).float()
    ranks = torch.stack([1 - right, right], dim=1).long()  # 0 is the better response
    probabilities = shares if name == PROBABILITIES else torch.full_like(shares, torch.nan)
    smoothing = 1 - options.accuracy if name == SMOOTHED else 0.0
    inputs = torch.stack([torch.stack([features[row["prompt"], row[side]] for side in SIDES]) for row in train])
    head = torch.zeros(inputs.shape[-1], requires_grad=True)
    optimizer = torch.optim.AdamW([head], lr=options.learning_rate, weight_decay=0.01)
    draws = torch.Generator().manual_seed(seed)
    for _ in range(options.epochs):
        for places in torch.randperm(len(train), generator=draws).split(16):
            losses = bradley_terry_loss(
                inputs[places] @ head,
                ranks[places],
                probabilities=probabilities[places],
                label_smoothing=smoothing,
            )
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
    held_out = torch.stack(
        [features[row["prompt"], row["chosen"]] - features[row["prompt"], row["rejected"]] for row in test]
    )
    return (held_out @ head).detach()


# --- results ----------------------------------------------------------------------------------------------------------


def evaluate(gaps: dict[str, np.ndarray], prompts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Compute accuracy and log loss of each student, and the differences from the student of the verdicts.

    Args:
        gaps: Student -> reward gaps, shape `(P, S)` for P pairs and S seeds.
        prompts: Prompt of each pair.

    Returns:
        Student -> numbers. The loss of a pair is averaged over the seeds before the interval is computed.
    """
    losses = {name: -log_expit(found).mean(axis=1) for name, found in gaps.items()}
    results: dict[str, dict[str, Any]] = {}
    for name, found in gaps.items():
        spread = mean_spread(losses[name] - losses[VERDICTS], prompts)
        bounds = t_interval(spread).bounds
        results[name] = {
            "accuracy": float(pairwise_credit(found.ravel()).mean()),
            "log_loss": float(losses[name].mean()),
            "difference": spread.estimate,
            "ci": bounds,
            "by_seed": (-log_expit(found) + log_expit(gaps[VERDICTS])).mean(axis=0).tolist(),
        }
    return results


def as_table(results: dict[str, dict[str, Any]], title: str) -> Table:
    """Return a table with a row per student."""
    table = Table(title=title, title_justify="left")
    for name in ("student of", "accuracy", "log loss", "log loss minus that of verdicts (95% interval)", "by seed"):
        table.add_column(name)
    for name, found in results.items():
        bounds = "" if found["ci"] is None else " ({:+.3f} to {:+.3f})".format(*found["ci"])
        seeds = ", ".join(f"{value:+.3f}" for value in found["by_seed"])
        difference = "-" if name == VERDICTS else f"{found['difference']:+.3f}{bounds}"
        table.add_row(name, f"{found['accuracy']:.3f}", f"{found['log_loss']:.3f}", difference, seeds)
    return table


if __name__ == "__main__":
    main()
