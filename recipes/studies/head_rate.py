"""Which learning rate of the reward head suits a learning rate of the backbone?

    python recipes/studies/head_rate.py --base models/SmolLM2-135M-Instruct --data train.jsonl test.jsonl \
        --kind full --rates 1e-6 1e-5 1e-4 --heads zero random default --layers 8 --out runs/head_rate/full.jsonl

One model is trained for each kind, learning rate, head and seed, on the same rows, and evaluated on held-out prompts.
Heads: `zero` (zero weights at the backbone's rate), `random` (N(0, 0.02) at the backbone's rate, as in TRL), a number
(zero weights at this rate), `default` (the library's default). Finished runs are not repeated. The table has the mean
over seeds, and the paired difference from `random` with a 95% interval clustered by prompt.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from study_runs import (
    add_data_options,
    base_model,
    difference_cells,
    held_out_rewards,
    lora,
    mean_cells,
    run_missing,
    stored,
    study_config,
    training_and_held_out_pairs,
)
from torch import nn
from transformers import AutoTokenizer, set_seed

from hf_reward import RewardTrainer
from hf_reward.modeling.reward_head import output_layers

console = Console(width=150)


def main(words: Sequence[str] | None = None) -> None:
    """Train the missing runs and print the table."""
    options = read_options(sys.argv[1:] if words is None else words)
    training, held_out = training_and_held_out_pairs(options)
    wanted = [
        {"kind": options.kind, "rate": rate, "head": head, "seed": seed}
        for seed, rate, head in product(options.seeds, options.rates, options.heads)
    ]
    run_missing(options.out, wanted, lambda run: train(run, training, held_out, options))
    prompts = [str(row["prompt"]) for row in held_out]
    console.print(as_table([entry for entry in stored(options.out) if entry["run"] in wanted], prompts))
    console.print(f"{len(training)} training pairs, {len(held_out)} held-out pairs of {len(set(prompts))} prompts")


def read_options(words: Sequence[str]) -> Namespace:
    """Read the command-line options."""
    parser = ArgumentParser(description="Learning rates of the reward head.")
    parser.add_argument("--base", required=True, help="folder or Hub id of the model to start from")
    parser.add_argument("--out", type=Path, required=True, help="JSONL file for the runs")
    parser.add_argument("--kind", choices=("full", "lora", "frozen"), default="full")
    parser.add_argument("--rates", nargs="+", type=float, required=True)
    parser.add_argument("--heads", nargs="+", required=True, help="zero, random, default, or a learning rate")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--layers", type=int, help="keep only the first layers of the base")
    add_data_options(parser)
    return parser.parse_args(list(words))


def train(run: dict[str, Any], training: list[Any], held_out: list[Any], options: Namespace) -> dict[str, Any]:
    """Train one model and return its reward gaps on the held-out pairs."""
    set_seed(run["seed"])
    model = base_model(options.base, options.layers, frozen=run["kind"] == "frozen")
    if run["head"] == "random":
        for _, layer in output_layers(model):
            nn.init.normal_(layer.weight, std=0.02)
    rate = {"zero": run["rate"], "random": run["rate"], "default": None}.get(run["head"], run["head"])
    args = study_config(
        learning_rate=run["rate"], head_learning_rate=None if rate is None else float(rate), seed=run["seed"]
    )
    trainer = RewardTrainer(
        model=model,
        args=args,
        train_dataset=training,
        processing_class=AutoTokenizer.from_pretrained(options.base),
        peft_config=lora() if run["kind"] == "lora" else None,
    )
    trainer.train()
    return held_out_rewards(trainer.model, held_out, options.base)


def as_table(entries: list[dict[str, Any]], prompts: Sequence[str]) -> Table:
    """Return the means over seeds, and the paired differences from the random head."""
    table = Table("kind", "rate", "head", "seeds", "accuracy", "log loss", "slope", "std", "Δ accuracy", "Δ log loss")
    cells: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for entry in entries:
        run = entry["run"]
        cells.setdefault((run["kind"], run["rate"], run["head"]), {})[run["seed"]] = entry
    for (kind, rate, head), found in sorted(cells.items(), key=str):
        numbers = [*mean_cells(found), *difference_cells(found, cells.get((kind, rate, "random"), {}), prompts)]
        table.add_row(kind, f"{rate:.0e}", head, str(len(found)), *numbers)
    return table


if __name__ == "__main__":
    main()
