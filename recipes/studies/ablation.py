"""Ablation of training methods: the same rows and seeds for every variant, and one table of paired differences.

    python recipes/studies/ablation.py --base models/SmolLM2-135M-Instruct --data train.jsonl test.jsonl \
        --group_ends_at _ --out runs/ablation.jsonl

Rows are pairs with `prompt`, `chosen`, `rejected`, a `group` (by default the prompt), and `votes_chosen` and
`votes_rejected` or a `gap` (how much better the chosen response is). Groups that agree up to `--group_ends_at` stay
together. They are assigned to three folds; for each fold, every variant is trained with the same seed on the same
`--train_rows` pairs of the other folds and scores the same `--eval_rows` pairs of this fold. Finished runs are read
from `--out`, so the command can be repeated and run in several processes with different `--variants`.

Variants are in `ablation_variants`. The table has accuracy, log loss, calibration slope,
length-balanced accuracy (the mean over pairs whose preferred response is longer and pairs whose it is shorter), and two
further numbers: `off-topic` is the accuracy against responses to other prompts, and `edit effect` is the mean change of
the reward under edits that keep the meaning and that no variant is trained on, as a share of the median reward
difference of the pairs. Intervals of the difference to `--reference` are 95% jackknife intervals over groups.
"""

import json
import re
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ablation_variants import HELD_OUT_EDITS, VARIANTS, ConsistencyLoss, Variant
from rich.console import Console
from rich.table import Table
from study_runs import Row, base_model
from uncertainty import assign_folds, group_of

from hf_reward import RewardConfig, RewardScorer, RewardTrainer
from hf_reward.data.off_prompt import off_prompt_rows
from hf_reward.data.sources import as_sources, load_source
from hf_reward.metrics.calibration import fit_slope
from hf_reward.metrics.intervals import t_interval
from hf_reward.metrics.preference import log_loss
from hf_reward.metrics.spread import jackknife

FOLDS = 3
console = Console(width=170)


# --- runs -------------------------------------------------------------------------------------------------------------


def main(words: Sequence[str] | None = None) -> None:
    """Make the missing runs and print the table."""
    options = read_options(sys.argv[1:] if words is None else words)
    rows = [dict(row) for path in options.data for source in as_sources([path]) for row in load_source(source)]
    folds = assign_folds(np.array([group_of(row, options) for row in rows]), FOLDS, 0)
    done = read_runs(options)
    for name in options.variants:
        for fold in options.folds:
            if (name, fold) not in done:
                record = run(name, fold, rows, folds, options)
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
                console.print(f"{name}, fold {fold}: {record['seconds']:.0f} s")
    show(read_runs(options), options.variants, options.reference)


def read_options(words: Sequence[str]) -> Namespace:
    """Read the command-line options."""
    parser = ArgumentParser(description="Ablation of training methods.")
    parser.add_argument("--base", required=True, help="folder or Hub id of the language model to start from")
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON Lines file with a line per run")
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--reference", choices=list(VARIANTS), default="plain", help="variant to compare with")
    parser.add_argument("--folds", type=int, nargs="*", default=list(range(FOLDS)))
    parser.add_argument("--group_ends_at", help="pairs whose groups agree up to this text stay in one fold")
    parser.add_argument("--layers", type=int, default=8, help="layers of the base model that are kept; 0 for all")
    parser.add_argument("--train_rows", type=int, default=960)
    parser.add_argument("--eval_rows", type=int, default=400)
    parser.add_argument("--edited_rows", type=int, default=120, help="held-out rows for the two further numbers")
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--head_learning_rate", type=float, default=1e-3)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--max_length", type=int, default=256)
    return parser.parse_args(list(words))


_OF_THE_TABLE = ("out", "variants", "reference", "folds")


def settings_of(options: Namespace) -> dict[str, str]:
    """Return the options that must be the same for all runs of a file."""
    return {name: str(value) for name, value in vars(options).items() if name not in _OF_THE_TABLE}


def read_runs(options: Namespace) -> dict[tuple[str, int], Row]:
    """Return the finished runs, by variant and fold."""
    if not options.out.is_file():
        options.out.parent.mkdir(parents=True, exist_ok=True)
        return {}
    found = [json.loads(line) for line in options.out.read_text(encoding="utf-8").splitlines()]
    if any(each["settings"] != settings_of(options) for each in found):
        raise SystemExit(f"{options.out} has runs with other settings. Name another `--out`.")
    return {(each["variant"], each["fold"]): each for each in found}


def run(name: str, fold: int, rows: list[Row], folds: np.ndarray, options: Namespace) -> Row:
    """Train one variant and score the held-out pairs."""
    start, random = time.monotonic(), np.random.default_rng(fold)
    chosen = random.permutation(np.flatnonzero(folds != fold))[: options.train_rows]
    held = [rows[int(place)] for place in random.permutation(np.flatnonzero(folds == fold))[: options.eval_rows]]
    variant = VARIANTS[name]
    training = variant.rows([rows[int(place)] for place in chosen], fold)
    folder = options.out.parent / f"{re.sub(r'[^a-z0-9]+', '-', name)}-{fold}"
    scorer = train(variant, training, fold, folder, options)
    return {
        "variant": name,
        "fold": fold,
        "settings": settings_of(options),
        "train_rows": len(training),
        **measure(scorer, held, options),
        "seconds": time.monotonic() - start,
    }


_KEPT = {"prompt": "", "chosen": "", "rejected": "", "probability": None, "margin": None, "weight": None}


def train(variant: Variant, rows: list[Row], seed: int, folder: Path, options: Namespace) -> RewardScorer:
    """Train a model on the rows of a variant; several processes need different folders."""
    settings: dict[str, Any] = {"num_train_epochs": 1, **dict(variant.settings)}
    args = RewardConfig(
        output_dir=str(folder),
        learning_rate=options.learning_rate,
        head_learning_rate=options.head_learning_rate,
        per_device_train_batch_size=options.batch_size,
        max_length=options.max_length,
        warmup_steps=10,
        seed=seed,
        save_strategy="no",
        report_to="none",
        plot_curves=False,
        logging_steps=50,
        **settings,
    )
    model = base_model(options.base, options.layers or None)
    used = [name for name in _KEPT if any(row.get(name) is not None for row in rows)]
    trainer = RewardTrainer(model=model, args=args, train_dataset=[{n: row.get(n) for n in used} for row in rows])
    if variant.consistency is not None:
        trainer.loss_function = ConsistencyLoss(consistency=variant.consistency)
    trainer.train()
    return RewardScorer(trainer.model, trainer.processing_tokenizer, trainer.record())  # type: ignore[arg-type]


def measure(scorer: RewardScorer, rows: list[Row], options: Namespace) -> Row:
    """Return the reward differences of held-out pairs, and of the first of them to off-topic and edited responses."""
    prompts = [row["prompt"] for row in rows]
    best, worst = (scorer.score(prompts, [row[side] for row in rows]).astype(float) for side in ("chosen", "rejected"))
    part = rows[: options.edited_rows]
    others = off_prompt_rows(part, rejected_share=1, tie_share=0)
    off_topic = scorer.score([row["prompt"] for row in others], [row["rejected"] for row in others])
    own = scorer.score([row["prompt"] for row in others], [row["chosen"] for row in others])
    changes = []
    for edit in HELD_OUT_EDITS:
        edited = [(place, edit(row["chosen"])) for place, row in enumerate(part)]
        edited = [(place, text) for place, text in edited if text is not None and text != part[place]["chosen"]]
        if edited:
            rewards = scorer.score([prompts[place] for place, _ in edited], [text for _, text in edited])
            changes += [
                [place, float(reward - best[place])] for (place, _), reward in zip(edited, rewards, strict=True)
            ]
    return {
        "groups": [str(row.get("group") or row["prompt"]) for row in rows],
        "length_gaps": [len(row["chosen"].split()) - len(row["rejected"].split()) for row in rows],
        "gaps": (best - worst).tolist(),
        "off_topic_gaps": (own.astype(float) - off_topic).tolist(),
        "changes": changes,
    }


# --- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pooled:
    """The measurements of all folds of a variant."""

    gaps: np.ndarray
    """Reward differences, shape `(M,)`."""
    longer: np.ndarray
    """Sign of the length difference, shape `(M,)`."""
    groups: np.ndarray
    """Group of each pair, shape `(M,)`."""
    off_topic: np.ndarray
    """Reward differences to off-topic responses, shape `(S,)`."""
    off_topic_groups: np.ndarray
    changes: np.ndarray
    """|r(edit(x)) - r(x)| / median |gap| of the run, shape `(E,)`."""
    change_groups: np.ndarray

    def without(self, group: str) -> "Pooled":
        """Leave out a group."""
        kept, off_topic, changes = (
            labels != group for labels in (self.groups, self.off_topic_groups, self.change_groups)
        )
        return Pooled(
            *(each[kept] for each in (self.gaps, self.longer, self.groups)),
            *(each[off_topic] for each in (self.off_topic, self.off_topic_groups)),
            *(each[changes] for each in (self.changes, self.change_groups)),
        )


def pool(runs: Sequence[Row]) -> Pooled:
    """Join the folds of a variant."""
    parts: dict[str, list[Any]] = {name: [] for name in Pooled.__dataclass_fields__}
    for each in runs:
        gaps, groups = np.array(each["gaps"]), np.array(each["groups"])
        changes = np.array(each["changes"]).reshape(-1, 2)
        places, sizes = changes[:, 0].astype(int), np.abs(changes[:, 1]) / np.median(np.abs(gaps))
        off_topic = np.array(each["off_topic_gaps"])
        found = (gaps, np.sign(each["length_gaps"]), groups, off_topic, groups[: len(off_topic)])
        found = (*found, sizes, groups[places])
        for name, values in zip(parts, found, strict=True):
            parts[name].append(values)
    return Pooled(**{name: np.concatenate(values) for name, values in parts.items()})


def _balanced(each: Pooled) -> float:
    return float(np.mean([np.mean(each.gaps[each.longer == side] > 0) for side in (1, -1)]))


MEASURES: dict[str, Callable[[Pooled], float]] = {
    "accuracy": lambda each: float(np.mean(each.gaps > 0)),
    "log loss": lambda each: log_loss(each.gaps),
    "slope": lambda each: fit_slope(each.gaps).value,
    "length-balanced": _balanced,
    "off-topic": lambda each: float(np.mean(each.off_topic > 0)),
    "edit effect": lambda each: float(np.mean(each.changes)),
}


def show(runs: dict[tuple[str, int], Row], names: Sequence[str], reference: str) -> None:
    """Print a row for each variant: its value, and its difference to the reference on the same folds."""
    table = Table(title=f"Value, and difference to {reference} (95% interval)", title_justify="left")
    for column in ("variant", "rows", "s", *MEASURES):
        table.add_column(column)
    for name in names:
        folds = [fold for variant, fold in runs if variant == name]
        if not folds:
            continue
        own = [runs[name, fold] for fold in folds]
        cells = [str(round(np.mean([each[key] for each in own]))) for key in ("train_rows", "seconds")]
        other = [] if name == reference else [runs[reference, fold] for fold in folds if (reference, fold) in runs]
        table.add_row(name, *cells, *compared(pool(own), pool(other) if len(other) == len(own) else None))
    console.print(table)


def compared(own: Pooled, reference: Pooled | None, measures: Sequence[str] = tuple(MEASURES)) -> list[str]:
    """Return the cells of a row: values, and their differences to a reference on the same pairs."""
    cells = []
    groups, counts = np.unique(own.groups, return_counts=True)
    sizes = counts.astype(float)
    for measure_of in (MEASURES[each] for each in measures):
        cell = f"{measure_of(own):.3f}"
        if reference is not None:
            found = measure_of(own) - measure_of(reference)
            without = [(own.without(group), reference.without(group)) for group in groups.tolist()]
            left_out = [measure_of(first) - measure_of(second) for first, second in without]
            with np.errstate(invalid="ignore"):  # the slope is infinite if no pair is wrong
                interval = t_interval(jackknife(found, np.array(left_out), sizes / sizes.sum(), sizes))
            cell += f"\n{found:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"
        cells.append(cell)
    return cells


if __name__ == "__main__":
    main()
