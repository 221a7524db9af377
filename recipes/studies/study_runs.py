"""Shared by the studies of training settings: rows, base models, stored runs, and paired differences.

A run is a dict of settings. Its reward gaps on the held-out pairs are stored as one line of a JSONL file, so an
interrupted study continues where it stopped, and every table can be computed again from the file.
"""

import json
import random
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer

from hf_reward import AutoModelForRewardScoring, RewardConfig, RewardTrainer
from hf_reward.data.sources import as_sources, load_source
from hf_reward.data.splits import split_by_prompt
from hf_reward.metrics.calibration import fit_slope
from hf_reward.metrics.intervals import t_interval
from hf_reward.metrics.spread import mean_spread

Row = dict[str, Any]
FIELDS = ("prompt", "chosen", "rejected")


def add_data_options(parser: ArgumentParser) -> None:
    """Add the options of `training_and_held_out_pairs`."""
    parser.add_argument("--data", nargs="+", required=True, help="files with prompt, chosen and rejected")
    parser.add_argument("--test_data", nargs="+", help="held-out files; by default 40%% of the prompts of --data")
    parser.add_argument("--max_words", type=int, help="leave out pairs with a longer response")
    parser.add_argument("--pairs", type=int, default=960, help="number of training pairs")
    parser.add_argument("--held_out", type=int, default=400, help="number of held-out pairs")


def training_and_held_out_pairs(options: Namespace) -> tuple[list[Row], list[Row]]:
    """Return random samples of the training pairs and of the held-out pairs, the same in each run of a study."""
    has_template = AutoTokenizer.from_pretrained(options.base).chat_template is not None
    rows = Dataset.from_list(read_pairs(options.data, has_template, options.max_words))
    if options.test_data is None:
        rows, held_out = split_by_prompt(rows, test_size=0.4, seed=0)
    else:
        held_out = Dataset.from_list(read_pairs(options.test_data, has_template, options.max_words))
    return rows.to_list()[: options.pairs], held_out.to_list()[: options.held_out]


def read_pairs(files: Sequence[str], as_messages: bool, max_words: int | None) -> list[Row]:
    """Return the pairs of some files in random order; with `max_words`, only those with short responses."""
    sources = [source for file in files for source in as_sources([file])]  # files of a folder have the same name
    found: list[Row] = [dict(row) for source in sources for row in load_source(source)]
    rows = [{name: row[name] for name in FIELDS} for row in found]
    random.Random(0).shuffle(rows)
    rows = [row for row in rows if max_words is None or longest(row) <= max_words]
    return [as_conversation(row) for row in rows] if as_messages else rows


def longest(row: Row) -> int:
    """Return the number of words in the longer response."""
    texts = [row[side] if isinstance(row[side], str) else row[side][-1]["content"] for side in ("chosen", "rejected")]
    return max(len(text.split()) for text in texts)


def as_conversation(row: Mapping[str, Any]) -> Row:
    """Return prompt, chosen and rejected as messages, so that each trainer renders the same chat template."""
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {
        name: [{"role": roles[name], "content": row[name]}] if isinstance(row[name], str) else row[name]
        for name in FIELDS
    }


def base_model(folder: str, layers: int | None, *, frozen: bool = False) -> Any:
    """Load a base model with a new head."""
    return keep_layers(AutoModelForRewardScoring.from_pretrained(folder, freeze_backbone=frozen), layers)


def keep_layers(model: Any, count: int | None) -> Any:
    """Keep only the first transformer layers of a model, in place."""
    if count is not None:
        inner = getattr(model.base_model, "encoder", model.base_model)
        name = "layer" if hasattr(inner, "layer") else "layers"
        setattr(inner, name, getattr(inner, name)[:count])
        model.config.num_hidden_layers = count
    return model


def lora(**options: Any) -> LoraConfig:
    """Return an adapter for all linear layers."""
    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", **options)


def study_config(**changes: Any) -> RewardConfig:
    """Return settings for one epoch on a CPU, without files."""
    folder = tempfile.mkdtemp()
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 32,
        "num_train_epochs": 1,
    }
    settings |= {"save_strategy": "no", "report_to": "none", "plot_curves": False, "disable_tqdm": True}
    return RewardConfig(output_dir=folder, use_cpu=True, **settings | changes)


def held_out_rewards(model: Any, held_out: list[Row], base: str) -> dict[str, Any]:
    """Return the reward gaps of a model on held-out pairs, and the standard deviation of its rewards."""
    trainer = RewardTrainer(
        model=model,
        args=study_config(),
        eval_dataset=held_out,
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    rewards: Any = trainer.predict(trainer.eval_dataset).predictions  # pyright: ignore[reportArgumentType]
    if len(rewards) != len(held_out):
        raise SystemExit(f"{len(held_out) - len(rewards)} held-out pairs were dropped. Remove equal or long responses.")
    return {"gaps": (rewards[:, 0] - rewards[:, 1]).tolist(), "std": float(rewards.std())}


def stored(file: Path) -> list[dict[str, Any]]:
    """Return the finished runs in a JSONL file."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def run_missing(file: Path, runs: Iterable[dict[str, Any]], train: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Train the runs that the file does not contain, and append each one when it is finished."""
    finished = [entry["run"] for entry in stored(file)]
    file.parent.mkdir(parents=True, exist_ok=True)
    for run in runs:
        if run in finished:
            continue
        print("training", run, flush=True)
        entry = {"run": run, **train(run)}
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(entry) + "\n")
        finished.append(run)


PAIR_VALUES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "accuracy": lambda gaps: (gaps > 0) + 0.5 * (gaps == 0),
    "log loss": lambda gaps: np.logaddexp(0, -gaps),
}


def measures(gaps: np.ndarray) -> dict[str, float]:
    """Return accuracy, log loss in nats and calibration slope of reward gaps (chosen minus rejected), shape `(P,)`."""
    return {
        **{name: float(values(gaps).mean()) for name, values in PAIR_VALUES.items()},
        "slope": fit_slope(gaps).value,
    }


def paired_difference(
    measure: str, ours: np.ndarray, theirs: np.ndarray, prompts: Sequence[str]
) -> tuple[float, float, float]:
    """Return the mean of (ours - theirs) over pairs and seeds, with a 95% interval clustered by prompt.

    Args:
        measure: A key of `PAIR_VALUES`.
        ours: Reward gaps, shape `(seeds, P)`.
        theirs: Reward gaps of the other side, shape `(seeds, P)`.
        prompts: The prompt of each pair.

    Returns:
        Mean and bounds.
    """
    values = (PAIR_VALUES[measure](ours) - PAIR_VALUES[measure](theirs)).mean(0)
    spread = mean_spread(values, list(prompts))
    interval = t_interval(spread)
    return spread.estimate, interval.low, interval.high


def paired_differences(
    ours: Mapping[int, Any], theirs: Mapping[int, Any], prompts: Sequence[str]
) -> dict[str, tuple[float, float, float]]:
    """Return `paired_difference` of each measure over the seeds that both sides have; empty without common seeds."""
    seeds = sorted(ours.keys() & theirs.keys())
    one, other = (np.array([side[seed]["gaps"] for seed in seeds]) for side in (ours, theirs))
    return {measure: paired_difference(measure, one, other, prompts) for measure in PAIR_VALUES} if seeds else {}


def difference_cells(ours: Mapping[int, Any], theirs: Mapping[int, Any], prompts: Sequence[str]) -> list[str]:
    """Return the paired differences in accuracy and log loss over the seeds that both sides have, as text."""
    found = {} if ours is theirs else paired_differences(ours, theirs, prompts)
    return [as_text(found[measure]) if measure in found else "" for measure in PAIR_VALUES]


def as_text(difference: tuple[float, float, float]) -> str:
    """Return a difference with its interval."""
    return "{:+.3f} ({:+.3f} to {:+.3f})".format(*difference)


def mean_cells(found: Mapping[int, Any]) -> list[str]:
    """Return the means of accuracy, log loss, slope and standard deviation of the rewards over the seeds, as text."""
    each = [measures(np.array(entry["gaps"])) | {"std": entry["std"]} for entry in found.values()]
    return [f"{np.mean([one[name] for one in each]):.3f}" for name in ("accuracy", "log loss", "slope", "std")]
