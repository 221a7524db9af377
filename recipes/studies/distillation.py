"""Distil a judge of known accuracy: probabilities as labels compared with the verdicts of the same judge.

    python recipes/studies/distillation.py --base BASE --data train.jsonl test.jsonl --group_ends_at _ \
        --out runs/distillation

Rows are pairs with `prompt`, `chosen`, `rejected` and a `group` (by default the prompt). The judge is scripted: its
log-odds for the preferred response are drawn from a normal distribution with mean m and variance 2 m, so its
probabilities are calibrated, and its verdicts are right with probability `--accuracy` (m = 2 z^2, where z is the
normal quantile of the accuracy). Students are linear heads on a frozen backbone, trained on the same rows in the same
order with the labels of the judge: its probabilities, its verdicts, or its verdicts with `label_smoothing` at the
judge's true error rate. A student of the human labels is the reference. `--folds` folds of groups are held out in turn.

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
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from scipy.special import expit, log_expit, ndtri
from transformers import AutoTokenizer, set_seed
from uncertainty import assign_folds, group_of

from hf_reward import AutoModelForRewardScoring, RewardConfig, RewardTrainer
from hf_reward.data.sources import as_sources, load_source
from hf_reward.metrics.intervals import t_interval
from hf_reward.metrics.preference import pairwise_credit
from hf_reward.metrics.spread import mean_spread

PROBABILITIES, VERDICTS, SMOOTHED, HUMAN = "probabilities", "verdicts", "verdicts, smoothed", "human labels"
STUDENTS = (PROBABILITIES, VERDICTS, SMOOTHED, HUMAN)
console = Console(width=150)


def main(words: Sequence[str] | None = None) -> None:
    """Train the students of each fold and seed, and print the table."""
    options = read_options(sys.argv[1:] if words is None else words)
    rows = [dict(row) for path in options.data for source in as_sources([path]) for row in load_source(source)]
    rows = [row for row, fits in zip(rows, fitting(rows, options), strict=True) if fits]
    folds = assign_folds(np.array([group_of(row, options) for row in rows]), options.folds, 0)
    gaps: dict[str, list[np.ndarray]] = {name: [] for name in STUDENTS}
    prompts: list[str] = []
    for fold in range(options.folds):
        order = np.random.default_rng(fold).permutation(len(rows))
        train, test = (
            [rows[int(place)] for place in order if (folds[place] == fold) == held][:count]
            for held, count in ((False, options.train_rows), (True, options.test_rows))
        )
        prompts += [row.get("group") or row["prompt"] for row in test]
        for name in STUDENTS:
            found = [gaps_of_student(name, train, test, seed, options) for seed in range(options.seeds)]
            gaps[name].append(np.stack(found, axis=1))
            console.print(f"fold {fold}, {name}: log loss {-log_expit(gaps[name][-1]).mean():.3f}")
    results = evaluate({name: np.concatenate(found) for name, found in gaps.items()}, prompts)
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
    parser.add_argument("--test_rows", type=int, default=400, help="of each fold")
    parser.add_argument("--layers", type=int, help="use only the first layers of the backbone")
    parser.add_argument("--max_length", type=int, default=256)
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--learning_rate", type=float, default=1e-2)
    options = parser.parse_args(list(words))
    if not 0.5 < options.accuracy < 1:
        parser.error("--accuracy must be between 0.5 and 1")
    return options


def fitting(rows: Sequence[dict[str, Any]], options: Namespace) -> list[bool]:
    """Return whether both texts of each pair fit the model, with room for the chat template."""
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    sides = [tokenizer([row["prompt"] + row[side] for row in rows])["input_ids"] for side in ("chosen", "rejected")]
    return [max(map(len, both)) <= options.max_length - 50 for both in zip(*sides, strict=True)]


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


def labelled(rows: Sequence[dict[str, Any]], name: str, accuracy: float, seed: int) -> Dataset:
    """Return the rows with the labels of one student; the order of the responses is that of the data for all."""
    shares = judge_probabilities(len(rows), accuracy, seed)
    found = []
    for row, share in zip(rows, shares.tolist(), strict=True):
        label: dict[str, Any] = {"ranks": [0, 1] if name == HUMAN or share > 0.5 else [1, 0]}
        label |= {"probability": share} if name == PROBABILITIES else {}
        found.append({"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"]], **label})
    return Dataset.from_list(found)


# --- students ---------------------------------------------------------------------------------------------------------


def gaps_of_student(
    name: str, train: Sequence[dict[str, Any]], test: Sequence[dict[str, Any]], seed: int, options: Namespace
) -> np.ndarray:
    """Train a student and return its reward gaps (preferred minus other) on the held-out pairs, shape `(P,)`."""
    args = RewardConfig(
        output_dir=str(options.out / "run"),
        learning_rate=options.learning_rate,
        label_smoothing=1 - options.accuracy if name == SMOOTHED else 0.0,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=16,
        max_length=options.max_length,
        warmup_steps=10,
        weight_decay=0.01,
        seed=seed,
        save_strategy="no",
        report_to="none",
        plot_curves=False,
        logging_strategy="no",
        disable_tqdm=True,
        cache_features="true",  # of all students of a fold, because their rows differ only in their labels
    )
    set_seed(seed)
    model: Any = AutoModelForRewardScoring.from_pretrained(options.base, freeze_backbone=True)
    if options.layers is not None:
        model.base_model.layers = model.base_model.layers[: options.layers]
        model.config.num_hidden_layers = options.layers
    trainer = RewardTrainer(
        model=model,
        args=args,
        train_dataset=labelled(train, name, options.accuracy, seed),
        eval_dataset=labelled(test, HUMAN, options.accuracy, seed),
        processing_class=AutoTokenizer.from_pretrained(options.base),
    )
    trainer.train()
    rewards: Any = trainer.predict(trainer.eval_dataset).predictions  # type: ignore[arg-type]
    rewards = np.asarray(rewards[0] if isinstance(rewards, tuple) else rewards, dtype=float)
    return rewards[:, 0] - rewards[:, 1]


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
