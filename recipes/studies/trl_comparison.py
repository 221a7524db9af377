"""Are the trained models as good as those of TRL's `RewardTrainer`?

    python recipes/studies/trl_comparison.py --base models/SmolLM2-135M-Instruct --data train.jsonl \
        --test_data test.jsonl --kind full --rates 1e-4 1e-5 --out runs/trl/mix.jsonl

Both sides start from the same weights, train on the same rows in batches of 8 with their own default settings, and are
evaluated by the same code on held-out pairs. `--epochs 1 2` trains both sides for one epoch and for two. Finished runs
are not repeated. The table has the mean over seeds with the training time, and the paired difference from TRL with a
95% interval clustered by prompt, for equal learning rates and epochs. Requires the extra `peers`.
"""

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
    add_data_options,
    base_model,
    difference_cells,
    held_out_rewards,
    keep_layers,
    lora,
    mean_cells,
    run_missing,
    stored,
    study_config,
    training_and_held_out_pairs,
)
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from hf_reward import RewardTrainer

SIDES = ("TRL", "hf_reward")
console = Console(width=160)


def main(words: Sequence[str] | None = None) -> None:
    """Train the missing runs and print the table."""
    options = read_options(sys.argv[1:] if words is None else words)
    training, held_out = training_and_held_out_pairs(options)
    wanted = [
        {"kind": options.kind, "rate": rate, "epochs": epochs, "seed": seed, "side": side}
        for seed, rate, epochs, side in product(options.seeds, options.rates, options.epochs, options.sides)
    ]
    run_missing(options.out, wanted, lambda run: train(run, training, held_out, options))
    prompts = [str(row["prompt"]) for row in held_out]
    console.print(as_table(stored(options.out), prompts))
    console.print(f"{len(training)} training pairs, {len(held_out)} held-out pairs of {len(set(prompts))} prompts")


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
    add_data_options(parser)
    return parser.parse_args(list(words))


def train(run: dict[str, Any], training: list[Any], held_out: list[Any], options: Namespace) -> dict[str, Any]:
    """Train one model; return its reward gaps on the held-out pairs and the training time in seconds."""
    set_seed(run["seed"])
    trainer = (trl_trainer if run["side"] == "TRL" else our_trainer)(run, training, options)
    seconds = trainer.train().metrics["train_runtime"]
    model = trainer.model
    model = model.merge_and_unload() if isinstance(model, PeftModel) else model
    return held_out_rewards(model, held_out, options.base) | {"seconds": seconds}


def our_trainer(run: dict[str, Any], training: list[Any], options: Namespace) -> Any:
    """Return our trainer with its defaults."""
    return RewardTrainer(
        model=base_model(options.base, options.layers),
        args=study_config(learning_rate=run["rate"], num_train_epochs=run["epochs"], seed=run["seed"]),
        train_dataset=training,
        processing_class=AutoTokenizer.from_pretrained(options.base),
        peft_config=lora() if run["kind"] == "lora" else None,
    )


def trl_trainer(run: dict[str, Any], training: list[Any], options: Namespace) -> Any:
    """Return TRL's trainer with its defaults, in float32 and without activation checkpointing, which is slower."""
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer as PeerTrainer

    args = RewardConfig(
        output_dir=tempfile.mkdtemp(),
        learning_rate=run["rate"],
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


def as_table(entries: list[dict[str, Any]], prompts: Sequence[str]) -> Table:
    """Return the means over seeds, and the paired differences from TRL."""
    table = Table("kind", "rate", "epochs", "side", "seeds", "seconds")
    for column in ("accuracy", "log loss", "slope", "std", "accuracy - TRL", "log loss - TRL"):
        table.add_column(column)
    cells: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for entry in entries:
        run = entry["run"]
        cells.setdefault((run["kind"], run["rate"], run["epochs"], run["side"]), {})[run["seed"]] = entry
    for (kind, rate, epochs, side), found in sorted(cells.items()):
        seconds = np.mean([entry["seconds"] for entry in found.values()])
        differences = difference_cells(found, cells.get((kind, rate, epochs, "TRL"), {}), prompts)
        table.add_row(
            *(kind, f"{rate:.0e}", f"{epochs:g}", side, str(len(found)), f"{seconds:.0f}"),
            *(mean_cells(found) + differences),
        )
    return table


if __name__ == "__main__":
    main()
