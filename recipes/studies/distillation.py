"""Distil a scripted judge: its probabilities as labels compared with its verdicts.

    python recipes/studies/distillation.py --base BASE --data train.jsonl test.jsonl --group_ends_at _ \
        --out runs/distillation

Rows are pairs with `prompt`, two responses (`chosen`, `rejected`) and a `group` (by default the prompt). The true
probability that the first response is better is the sigmoid of the difference of a scripted reward. The judge knows it
with noise: its log-odds are the true ones plus a normal error with standard deviation `--noise`. Students are linear
heads on the features of a frozen backbone, which are computed once. They are trained on the same rows in the same order
with the probabilities of the judge, with one vote drawn from each probability, or with the more probable response.
`--folds` folds of groups are held out in turn.

The table has the expected log loss on held-out pairs under the true probabilities, its excess over the lowest possible
one, and the share of pairs whose more probable response gets the higher reward, averaged over `--seeds` draws of the
judge. Differences from the probabilities are paired, with 95% intervals clustered by prompt.
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
from scipy.special import entr, expit, log_expit
from study_runs import base_model
from transformers import AutoTokenizer
from uncertainty import assign_folds, group_of

from hf_reward import RewardScorer
from hf_reward.data.score_request import ScoreRequest
from hf_reward.data.sources import as_sources, load_source
from hf_reward.losses.functions import bradley_terry_loss
from hf_reward.metrics.intervals import t_interval
from hf_reward.metrics.spread import mean_spread
from hf_reward.modeling.rewards import compute_features

PROBABILITIES, VOTES, VERDICTS = "probabilities", "one vote", "more probable response"
STUDENTS = (PROBABILITIES, VOTES, VERDICTS)
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
    held_out = [row for _, test in parts for row in test]
    prompts = [row.get("group") or row["prompt"] for row in held_out]
    results = evaluate(
        {name: torch.cat(found).double().numpy() for name, found in gaps.items()}, log_odds(held_out, options), prompts
    )
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
    parser.add_argument(
        "--scale", type=float, default=2.0, help="true log-odds of pairs whose scripted rewards differ by 1"
    )
    parser.add_argument(
        "--noise", type=float, default=1.0, help="standard deviation of the error of the judge's log-odds"
    )
    parser.add_argument("--group_ends_at", help="pairs whose groups agree up to this text stay in one fold")
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train_rows", type=int, default=960, help="of each fold")
    parser.add_argument("--test_rows", type=int, default=480, help="of each fold")
    parser.add_argument("--layers", type=int, help="use only the first layers of the backbone")
    parser.add_argument("--max_length", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--learning_rate", type=float, default=0.1)
    return parser.parse_args(list(words))


# --- labels -----------------------------------------------------------------------------------------------------------


def scripted_reward(text: str) -> float:
    """Return log2(number of words) minus twice the share of words that occurred earlier in the text."""
    words = text.lower().split()
    return float(np.log2(max(len(words), 1)) - 2 * (1 - len(set(words)) / max(len(words), 1)))


def log_odds(rows: Sequence[dict[str, Any]], options: Namespace) -> np.ndarray:
    """Return the true log-odds that the first response is better, shape `(N,)`."""
    gaps = [scripted_reward(row["chosen"]) - scripted_reward(row["rejected"]) for row in rows]
    return options.scale * np.array(gaps)


def judge_labels(name: str, truth: np.ndarray, noise: float, seed: int) -> np.ndarray:
    """Return the label P(first response is better) of each pair, from one draw of the judge.

    Args:
        name: One of `STUDENTS`.
        truth: True log-odds, shape `(N,)`.
        noise: Standard deviation of the judge's error in log-odds.
        seed: Random seed. All kinds of labels of a seed come from the same answers of the judge.

    Returns:
        Labels between 0 and 1, shape `(N,)`.
    """
    draws = np.random.default_rng(seed)
    shares = expit(truth + draws.normal(0, noise, len(truth)))
    votes = draws.random(len(truth)) < shares
    return {PROBABILITIES: shares, VOTES: votes.astype(float), VERDICTS: (shares > 0.5).astype(float)}[name]


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
    """Train a student and return its reward gaps (first minus second) on the held-out pairs, shape `(P,)`."""
    labels = torch.from_numpy(judge_labels(name, log_odds(train, options), options.noise, seed)).float()
    ranks = torch.tensor([0, 1]).expand(len(train), 2)  # the label is the probability of this order
    inputs = torch.stack([torch.stack([features[row["prompt"], row[side]] for side in SIDES]) for row in train])
    head = torch.zeros(inputs.shape[-1], requires_grad=True)
    optimizer = torch.optim.AdamW([head], lr=options.learning_rate, weight_decay=0.01)
    draws = torch.Generator().manual_seed(seed)
    for _ in range(options.epochs):
        for places in torch.randperm(len(train), generator=draws).split(16):
            losses = bradley_terry_loss(inputs[places] @ head, ranks[places], probabilities=labels[places])
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
    held_out = torch.stack(
        [features[row["prompt"], row["chosen"]] - features[row["prompt"], row["rejected"]] for row in test]
    )
    return (held_out @ head).detach()


# --- results ----------------------------------------------------------------------------------------------------------


def evaluate(gaps: dict[str, np.ndarray], truth: np.ndarray, prompts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Compute the expected log loss of each student, and the differences from the student of the probabilities.

    Args:
        gaps: Student -> reward gaps, shape `(P, S)` for P pairs and S seeds.
        truth: True log-odds, shape `(P,)`.
        prompts: Prompt of each pair.

    Returns:
        Student -> numbers. The loss of a pair is averaged over the seeds before the interval is computed.
    """
    share = expit(truth)[:, None]
    losses = {name: -(share * log_expit(found) + (1 - share) * log_expit(-found)) for name, found in gaps.items()}
    lowest = float((entr(share) + entr(1 - share)).mean())
    results: dict[str, dict[str, Any]] = {}
    for name, found in gaps.items():
        change = losses[name] - losses[PROBABILITIES]
        spread = mean_spread(change.mean(axis=1), prompts)
        results[name] = {
            "agreement": float(np.mean(np.sign(found) == np.sign(truth)[:, None])),
            "log_loss": float(losses[name].mean()),
            "excess": float(losses[name].mean()) - lowest,
            "difference": spread.estimate,
            "ci": t_interval(spread).bounds,
            "by_seed": change.mean(axis=0).tolist(),
        }
    return results


def as_table(results: dict[str, dict[str, Any]], title: str) -> Table:
    """Return a table with a row per student."""
    table = Table(title=title, title_justify="left")
    for name in ("labels", "agreement", "log loss", "excess", "log loss minus that of probabilities", "by seed"):
        table.add_column(name)
    for name, found in results.items():
        bounds = "" if found["ci"] is None else " ({:+.3f} to {:+.3f})".format(*found["ci"])
        seeds = ", ".join(f"{value:+.3f}" for value in found["by_seed"])
        difference = "-" if name == PROBABILITIES else f"{found['difference']:+.3f}{bounds}"
        numbers = (f"{found[key]:.3f}" for key in ("agreement", "log_loss", "excess"))
        table.add_row(name, *numbers, difference, seeds)
    return table


if __name__ == "__main__":
    main()
