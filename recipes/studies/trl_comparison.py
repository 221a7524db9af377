"""Are the trained models as good as those of TRL's `RewardTrainer`?

    python recipes/studies/trl_comparison.py --base models/SmolLM2-135M-Instruct --data train.jsonl \
        --test_data test.jsonl --kind full --rates 1e-4 1e-5 --out runs/trl/mix.jsonl

Both sides start from the same weights, train on the same rows in batches of 8 with their own default settings, and are
evaluated by the same code on held-out pairs, and on those of `--transfer`, which come from another data set. Finished
runs are not repeated. The first table has the means over seeds and the training times. The second has the paired
differences (ours - TRL) with 95% intervals clustered by prompt, for equal learning rates: at equal epochs, and at equal
time if TRL was also trained for fewer epochs (`--epochs 0.5 --sides TRL`). The differences are also written next to
`--out`, for `trl_figure.py`. Requires the extra `peers`.
"""

import json
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from study_runs import (
    PAIR_VALUES,
    add_data_options,
    as_text,
    base_model,
    held_out_rewards,
    keep_layers,
    lora,
    mean_cells,
    paired_differences,
    read_pairs,
    run_missing,
    stored,
    study_config,
    training_and_held_out_pairs,
)
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from hf_reward import RewardTrainer

SIDES = ("TRL", "hf_reward")
Run = dict[str, Any]
Cells = dict[tuple[str, float, float, str], dict[int, dict[str, Any]]]
"""(kind, rate, epochs, side) -> seed -> rewards and seconds."""

console = Console(width=160)


def main(words: Sequence[str] | None = None) -> None:
    """Train the missing runs and print the table."""
    options = read_options(sys.argv[1:] if words is None else words)
    training, held_out = training_and_held_out_pairs(options)
    wanted = [
        {"kind": options.kind, "rate": rate, "epochs": epochs, "seed": seed, "side": side}
        for seed, rate, epochs, side in product(options.seeds, options.rates, options.epochs, options.sides)
    ]
    transfer = read_transfer(options)
    run_missing(
        options.out, wanted, lambda run: train(run, training, {"held out": held_out, "transfer": transfer}, options)
    )
    results = {}
    for name, rows in {"held out": held_out, "transfer": transfer}.items():
        if rows:
            prompts = [str(row["prompt"]) for row in rows]
            cells = cells_of(stored(options.out), name)
            console.print(table_of_means(cells, f"{name}: {len(rows)} pairs of {len(set(prompts))} prompts"))
            results[name] = differences(cells, prompts)
            console.print(table_of_differences(results[name]))
    options.out.with_suffix(".differences.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    console.print(f"{len(training)} training pairs")


def read_options(words: Sequence[str]) -> Namespace:
    """Read the command-line options."""
    parser = ArgumentParser(description="Compare the quality of trained models with TRL.")
    parser.add_argument("--base", required=True, help="folder or Hub id of the model to start from")
    parser.add_argument("--out", type=Path, required=True, help="JSONL file for the runs")
    parser.add_argument("--kind", choices=("full", "lora"), default="full")
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-4], help="1e-4 is the default of both sides")
    parser.add_argument("--epochs", nargs="+", type=float, default=[1.0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--layers", type=int, help="keep only the first layers of the base")
    parser.add_argument("--transfer", nargs="+", help="pairs of another data set, on which each model is evaluated too")
    add_data_options(parser)
    return parser.parse_args(list(words))


def read_transfer(options: Namespace) -> list[Any]:
    """Return the pairs of `--transfer`, at most as many as held-out pairs."""
    has_template = AutoTokenizer.from_pretrained(options.base).chat_template is not None
    return read_pairs(options.transfer or [], has_template, options.max_words)[: options.held_out]


def train(run: Run, training: list[Any], evaluation: dict[str, list[Any]], options: Namespace) -> dict[str, Any]:
    """Train one model; return its reward gaps on the pairs for evaluation and the training time in seconds."""
    set_seed(run["seed"])
    trainer = (trl_trainer if run["side"] == "TRL" else our_trainer)(run, training, options)
    seconds = trainer.train().metrics["train_runtime"]
    model = trainer.model
    model = model.merge_and_unload() if isinstance(model, PeftModel) else model
    rewards = {name: held_out_rewards(model, rows, options.base) for name, rows in evaluation.items() if rows}
    return rewards | {"seconds": seconds}


def our_trainer(run: Run, training: list[Any], options: Namespace) -> Any:
    """Return our trainer with its defaults."""
    return RewardTrainer(
        model=base_model(options.base, options.layers),
        args=study_config(learning_rate=run["rate"], num_train_epochs=run["epochs"], seed=run["seed"]),
        train_dataset=training,
        processing_class=AutoTokenizer.from_pretrained(options.base),
        peft_config=lora() if run["kind"] == "lora" else None,
    )


def trl_trainer(run: Run, training: list[Any], options: Namespace) -> Any:
    """Return TRL's trainer with its defaults, in float32 and without activation checkpointing, which is slower."""
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer as PeerTrainer

    args = RewardConfig(
        output_dir=tempfile.mkdtemp(),
        learning_rate=run["rate"],
        max_length=None,  # its default drops rows above 1024 tokens; ours truncates their prompts
        num_train_epochs=run["epochs"],
        per_device_train_batch_size=8,
        seed=run["seed"],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    model = AutoModelForSequenceClassification.from_pretrained(options.base, num_labels=1, dtype="float32")
    return PeerTrainer(
        model=keep_layers(model, options.layers),
        args=args,
        train_dataset=Dataset.from_list(training),
        processing_class=AutoTokenizer.from_pretrained(options.base),
        peft_config=lora(task_type="SEQ_CLS") if run["kind"] == "lora" else None,
    )


def cells_of(entries: list[dict[str, Any]], evaluation: str) -> Cells:
    """Return the runs with the rewards of one set of pairs, by setting and seed."""
    cells: Cells = {}
    for entry in entries:
        run = entry["run"]
        found = cells.setdefault((run["kind"], run["rate"], run["epochs"], run["side"]), {})
        found[run["seed"]] = entry[evaluation] | {"seconds": entry["seconds"]}
    return cells


def seconds_of(cell: dict[int, dict[str, Any]]) -> float:
    """Return the mean training time."""
    return float(np.mean([entry["seconds"] for entry in cell.values()]))


def differences(cells: Cells, prompts: Sequence[str]) -> list[dict[str, Any]]:
    """Return the differences (ours - TRL) for each pair of settings with the same kind and learning rate."""
    found = []
    for (kind, rate, epochs, side), ours in sorted(cells.items()):
        for (*setting, other_epochs, other), theirs in sorted(cells.items()):
            if (side, other) != ("hf_reward", "TRL") or setting != [kind, rate]:
                continue
            measured = paired_differences(ours, theirs, prompts)
            if measured:
                settings = {"kind": kind, "rate": rate, "epochs": epochs, "TRL epochs": other_epochs}
                counts = {"seeds": len(ours.keys() & theirs.keys()), "TRL time": seconds_of(theirs) / seconds_of(ours)}
                found.append(settings | counts | measured)
    return found


def table_of_means(cells: Cells, title: str) -> Table:
    """Return the means over seeds."""
    table = Table("kind", "rate", "epochs", "side", "seeds", "seconds", title=title, title_justify="left")
    for column in ("accuracy", "log loss", "slope", "std"):
        table.add_column(column)
    for (kind, rate, epochs, side), found in sorted(cells.items()):
        setting = (kind, f"{rate:.0e}", f"{epochs:g}", side, str(len(found)), f"{seconds_of(found):.0f}")
        table.add_row(*setting, *mean_cells(found))
    return table


def table_of_differences(found: list[dict[str, Any]]) -> Table:
    """Return the differences (ours - TRL), with the training time of TRL divided by ours."""
    table = Table("kind", "rate", "epochs", "TRL epochs", "seeds", "TRL time / ours", "accuracy", "log loss")
    for each in found:
        setting = (each["kind"], f"{each['rate']:.0e}", f"{each['epochs']:g}", f"{each['TRL epochs']:g}", each["seeds"])
        intervals = [as_text(each[name]) for name in PAIR_VALUES]
        table.add_row(*map(str, setting), f"{each['TRL time']:.2f}", *intervals)
    return table


if __name__ == "__main__":
    main()
