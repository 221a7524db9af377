"""Compare mitigations of length bias: one model for each, from the same base and rows, and a table.

    python recipes/studies/length_mitigations.py --base models/SmolLM2-135M-Instruct --train_data train.jsonl \
        --eval_data test.jsonl --max_train_rows 2000 --out runs/mitigations -- --use_lora true --learning_rate 5e-4

Variants: `none`; `length_penalty=W` for each `--length_penalty`; `balance_lengths`; and `posthoc`, which is the model
of `none` with a length correction, fitted on the next `--fit_rows` rows of the training data. Arguments after `--` are
passed to recipes/train.py for every variant. A trained variant is not trained again, so the command can be repeated; a
variant that was trained with other settings is an error. The columns of the rows must be detectable.

The table has the accuracy on the held-out rows, for pairs in which the longer and the shorter is preferred, the
correlation of reward and length, and the audit's controlled probes (`measure`). Only the probes are conclusive: the
correlation also falls if a model gets worse.
"""

import json
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from hf_reward import (
    CheckpointRecord,
    RewardScorer,
    fit_length_correction,
    preference_metrics,
    store_length_correction,
)
from hf_reward.data.preference_row import PreferenceRow
from hf_reward.data.preferences import to_preference_row
from hf_reward.data.score_request import ScoreRequest
from hf_reward.data.sources import Source, as_sources, load_source
from hf_reward.evaluation.audit import AuditRule, Finding, run_audit
from hf_reward.losses.functions import PADDING_RANK

TRAIN = Path(__file__).parents[1] / "train.py"
STAMP = "length_mitigations.json"
console = Console(width=160)


@dataclass(frozen=True)
class Variant:
    """A model, with or without a length correction."""

    name: str
    folder: Path
    settings: tuple[str, ...] = ()
    corrected: bool = False
    """Whether the length correction of `folder` is applied."""


def main(words: Sequence[str] | None = None) -> None:
    """Train missing variants, fit the correction, measure all variants and print the table."""
    options, rest = read_options(sys.argv[1:] if words is None else words)
    variants = list_variants(options)
    for variant in variants:
        if not variant.corrected:
            train(variant, training_words(variant, options, rest))
    store_correction(options)
    rows = canonical_rows(as_sources(options.eval_data, split="test"))
    probed = options.audit_data or options.eval_data
    results = {each.name: held_out(each, rows) | measure(each.folder, probed, each.corrected) for each in variants}
    (options.out / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    console.print(as_table(results))


def read_options(words: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Return the options of this recipe and the arguments for train.py."""
    parser = ArgumentParser(description="Compare mitigations of length bias.")
    parser.add_argument("--base", required=True, help="folder or Hub id of the language model to start from")
    parser.add_argument("--train_data", nargs="+", required=True)
    parser.add_argument("--eval_data", nargs="+", required=True)
    parser.add_argument("--audit_data", nargs="+", help="pairs whose answers are padded; by default the held-out pairs")
    parser.add_argument("--max_train_rows", type=int, help="of each source; by default all")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--length_penalty", type=float, nargs="*", default=[0.5, 2.0], help="a model for each weight")
    parser.add_argument("--fit_rows", type=int, default=1000, help="rows of each source to fit the correction on")
    parser.add_argument("--seed", type=int, default=0)
    words = list(words)
    cut = words.index("--") if "--" in words else len(words)
    options, rest = parser.parse_args(words[:cut]), words[cut + 1 :]
    taken = [word for word in rest if word.split("=")[0] in _OWN]
    if taken:
        parser.error(f"{', '.join(taken)} after `--` would make the variants incomparable; remove it")
    return options, rest


_OWN = ("--seed", "--output_dir", "--max_train_rows", "--columns", "--length_penalty", "--balance_lengths")


def list_variants(options: Namespace) -> list[Variant]:
    """Return the rows of the table."""
    out = options.out
    penalties = [
        Variant(f"length_penalty={weight:g}", out / f"length_penalty_{weight:g}", ("--length_penalty", str(weight)))
        for weight in options.length_penalty
    ]
    return [
        Variant("none", out / "none"),
        *penalties,
        Variant("balance_lengths", out / "balance_lengths", ("--balance_lengths", "true")),
        Variant("posthoc", out / "none", corrected=True),
    ]


# --- training ---------------------------------------------------------------------------------------------------------


def training_words(variant: Variant, options: Namespace, rest: Sequence[str]) -> list[str]:
    """Return the arguments of train.py for one variant."""
    data = ["--train_data", *options.train_data, "--eval_data", *options.eval_data]
    rows = [] if options.max_train_rows is None else ["--max_train_rows", str(options.max_train_rows)]
    own = ["--output_dir", str(variant.folder), "--seed", str(options.seed)]
    quiet = ["--report_to", "none", "--save_strategy", "no"]
    return ["--model_name_or_path", options.base, *data, *rows, *own, *quiet, *rest, *variant.settings]


def train(variant: Variant, words: list[str]) -> None:
    """Train one variant, unless it was trained with the same arguments."""
    stamp = variant.folder / STAMP
    if stamp.is_file():
        if json.loads(stamp.read_text(encoding="utf-8")) != words:
            raise SystemExit(f"{variant.folder} was trained with other settings ({stamp}). Name another `--out`.")
        console.print(f"{variant.name}: already trained")
        return
    console.print(f"{variant.name}: training into {variant.folder}")
    run_training([*words, "--overwrite_output_dir", "true"])  # a folder without a stamp was interrupted
    stamp.write_text(json.dumps(words) + "\n", encoding="utf-8")


def run_training(words: list[str]) -> None:
    """Run `recipes/train.py` in a separate process, which releases all memory."""
    subprocess.run([sys.executable, str(TRAIN), *words], check=True)


# --- the correction ---------------------------------------------------------------------------------------------------


def store_correction(options: Namespace) -> None:
    """Fit the length correction of `none` and store it, unless it has one."""
    folder = options.out / "none"
    record = CheckpointRecord.load(folder)
    if record is not None and record.length_correction:
        return
    rows, note = rows_to_fit_on(options)
    scorer = RewardScorer.from_pretrained(folder)
    rewards, lengths = zip(*(pair for row in score_rows(scorer, rows) for pair in row), strict=True)
    store_length_correction(folder, fit_length_correction(rewards, lengths, data=note))
    console.print(f"posthoc: a length correction was fitted on {len(rewards)} responses of {note}")


def rows_to_fit_on(options: Namespace) -> tuple[list[PreferenceRow], str]:
    """Return training data that was not used for training, if there is any, and its description."""
    parts, unseen = [], True
    for source in as_sources(options.train_data):
        data: Any = load_source(source)
        data = data.shuffle(seed=options.seed)  # the row selection of train.py
        used = len(data) if options.max_train_rows is None else min(options.max_train_rows, len(data))
        left = range(used, min(used + options.fit_rows, len(data)))
        if not left:
            unseen, left = False, range(min(options.fit_rows, len(data)))
        parts.append(Source(data=data.select(left), name=source.name, columns=source.columns, layout=source.layout))
    return canonical_rows(parts), "training data" + (" not used for training" if unseen else " used for training")


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(model_folder: Path, audit_data: Any, length_correction: bool) -> dict[str, Any]:
    """Run the audit's controlled length probes on a model.

    Args:
        model_folder: A trained variant.
        audit_data: Preference pairs whose answers are padded.
        length_correction: Whether to apply the length correction.

    Returns:
        Columns of the table.
    """
    scorer = RewardScorer.from_pretrained(model_folder, length_correction=length_correction)
    report = run_audit(scorer, audit_data, rule=AuditRule(families=("length",)), split="test")
    return {name: _with_interval(report.finding(name)) for name in _PROBES}


_PROBES = (
    *("padding_effect", "padding_closers", "padding_restatement", "padding_repetition"),
    *("padding_flip_excess", "padding_flip_rate", "length_inversion"),
)


def _with_interval(found: Finding) -> str | None:
    if found.estimate is None or found.ci_low is None:
        return None
    return f"{found.estimate:+.2f} ({found.ci_low:+.2f} to {found.ci_high:+.2f}) {found.verdict}"


def held_out(variant: Variant, rows: Sequence[PreferenceRow]) -> dict[str, Any]:
    """Return the accuracy on the held-out rows and the correlation of rewards and lengths."""
    scorer = RewardScorer.from_pretrained(variant.folder, length_correction=variant.corrected)
    found = score_rows(scorer, rows)
    rewards = padded([[reward for reward, _ in row] for row in found], 0.0)
    lengths = padded([[length for _, length in row] for row in found], 0.0)
    ranks = padded([row.ranks for row in rows], PADDING_RANK).astype(int)
    _, groups = np.unique([str(row.group) for row in rows], return_inverse=True)
    metrics = preference_metrics(rewards, ranks, lengths.astype(int), groups)
    there = ranks != PADDING_RANK
    correlation = np.corrcoef(rewards[there], np.log1p(lengths[there]))[0, 1]
    found = {name: metrics[name] for name in _SHOWN} | {"correlation": float(correlation)}
    return {name: None if np.isnan(value) else value for name, value in found.items()}


_SHOWN = (
    *("accuracy", "accuracy_ci_low", "accuracy_ci_high", "accuracy_preferred_longer", "accuracy_preferred_shorter"),
    *("length_baseline", "num_pairs"),
)


def canonical_rows(sources: Iterable[Source]) -> list[PreferenceRow]:
    """Return all rows of the sources in canonical form."""
    return [
        to_preference_row(row, layout=source.layout, columns=source.columns, row_index=index)
        for source in sources
        for index, row in enumerate(load_source(source))
    ]


def score_rows(scorer: RewardScorer, rows: Sequence[PreferenceRow]) -> list[list[tuple[float, int]]]:
    """Return the reward and the number of characters of every response."""
    requests = [
        [ScoreRequest(prompt=row.prompt, response=response, template=row.template) for response in row.responses]
        for row in rows
    ]
    flat = [request for row in requests for request in row]
    result = scorer.score_requests(flat)
    if result.problems:
        place, problem = next(iter(result.problems.items()))
        raise SystemExit(f"{len(result.problems)} responses have no reward; the first, {flat[place]}: {problem}")
    rewards = iter(result.rewards.tolist())
    return [[(next(rewards), request.characters or 0) for request in row] for row in requests]


def padded(rows: Sequence[Sequence[float]], value: float) -> np.ndarray:
    """Return rows of numbers as an array, shape `(R, K)`."""
    width = max(map(len, rows))
    return np.array([[*row, *[value] * (width - len(row))] for row in rows], dtype=float)


def as_table(results: dict[str, dict[str, Any]]) -> Table:
    """Return a table with a row per variant and a column per number."""
    table = Table(title="Mitigations of length bias", title_justify="left")
    names = list(dict.fromkeys(name for found in results.values() for name in found))
    for name in ("variant", *names):
        table.add_column(name.replace("_", " "), justify="left" if name == "variant" else "right")
    for variant, found in results.items():
        shown = ["-" if found.get(name) is None else found[name] for name in names]
        table.add_row(variant, *(f"{each:.4g}" if isinstance(each, float) else str(each) for each in shown))
    return table


if __name__ == "__main__":
    main()
