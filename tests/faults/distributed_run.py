"""Program of each process of `distributed_check.py`, started by `accelerate launch` once or several times.

It trains a tiny model with a random head for four optimizer steps, evaluates a split that two processes cannot share
evenly and another one of a single row, and saves. Then it resumes from the checkpoint in the middle.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from parity import with_random_head
from peft import LoraConfig

from hf_reward import AutoModelForRewardScoring, RewardConfig, RewardTrainer
from hf_reward.modeling.reward_head import output_layers
from hf_reward.modeling.sharding import gathered_parameters
from hf_reward.training.collators import packs

STEPS = 4
ROWS_PER_STEP = 8
EVALUATED = 11
"""Not a multiple of the four rows that two processes evaluate at a time, so some rows are evaluated twice."""


def main(argv: list[str] | None = None) -> None:
    """Train, save, resume from the checkpoint in the middle, and write a report."""
    torch.set_num_threads(1)  # a second thread does not help with such small matrices
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--packing", choices=("true", "false"), required=True)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--dtype", default="float32", help="precision of the backbone's weights")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations")
    options = parser.parse_args(argv)

    written = files_written_below(options.out)
    complete = make_trainer(options, options.out / "run")
    complete.train()
    report = measure(complete)
    complete.save_model(str(options.out / "saved"))
    checkpoint = options.out / "run" / f"checkpoint-{STEPS // 2}"
    complete.accelerator.free_memory()

    resumed = make_trainer(options, options.out / "resumed")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    resumed.save_model(str(options.out / "resumed" / "saved"))
    report["written"] = sorted(written)
    (options.out / f"report-{resumed.args.process_index}.json").write_text(json.dumps(report))
    resumed.accelerator.wait_for_everyone()
    resumed.accelerator.end_training()


def files_written_below(folder: Path) -> set[str]:
    """Return a set to which every file below a folder is added that this process opens for writing from now on.

    Only Python's `open` is observed, not safetensors, which writes from Rust.
    """
    found: set[str] = set()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | os.PathLike) and writes(*arguments[1:]):
            path = Path(os.path.abspath(arguments[0]))
            if path.is_relative_to(folder.absolute()):
                found.add(str(path.relative_to(folder.absolute())))

    sys.addaudithook(hook)
    return found


def writes(mode: str | None, flags: int) -> bool:
    """Whether a file is opened for writing, from the arguments of Python's `open` audit event."""
    return any(letter in mode for letter in "wax+") if mode else bool(flags & (os.O_WRONLY | os.O_RDWR))


def make_trainer(options: argparse.Namespace, folder: Path) -> RewardTrainer:
    """Make a trainer with the same rows in the same global batches for any number of processes."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"  # DeepSpeed uses another variable
    args = RewardConfig(
        output_dir=str(folder), max_steps=STEPS, save_steps=STEPS // 2, logging_steps=1, report_to="none",
        disable_tqdm=True, plot_curves=False, packing=options.packing, learning_rate=1e-3,
        gradient_accumulation_steps=2, per_device_train_batch_size=ROWS_PER_STEP // 2 // processes,
        per_device_eval_batch_size=2, save_strategy="steps", bf16=options.bf16, use_cpu=on_cpu,
        activation_checkpointing=options.checkpointing, ddp_backend="gloo" if processes > 1 else None,
    )  # fmt: skip
    let_fsdp_shard_on_a_cpu(args)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False) if options.lora else None
    model = AutoModelForRewardScoring.from_pretrained(options.model, dtype=options.dtype)
    torch.manual_seed(0)  # the number of random numbers used for loading depends on the kind of sharding
    with gathered_parameters(model.parameters()):
        if any(not layer.weight.is_meta and layer.weight.any() for _, layer in output_layers(model)):
            raise SystemExit("A new head must be zero, but is not.")
        with_random_head(model)
    train, evaluation = ranked_lists(STEPS * ROWS_PER_STEP), ranked_lists(EVALUATED, start=100)
    return RewardTrainer(model, args, train_dataset=train, eval_dataset=evaluation, peft_config=lora)


def let_fsdp_shard_on_a_cpu(args: RewardConfig) -> None:
    """Declare the processes as GPUs: accelerate shards only on accelerators and keeps complete models on CPUs."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and args.device.type == "cpu":
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def ranked_lists(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Return lists of two to four responses of different lengths, with different weights."""
    words = ["brief", "rather longer words", "the longest answer of all of them, by far", "middling text"]
    rows = []
    for number in range(start, start + count):
        size = 2 + number % 3
        rows.append(
            {
                "prompt": f"Say {'once more ' * (number % 4)}{number}: ",
                "responses": [f"{words[place]} {number * place}" for place in range(size)],
                "ranks": [(place + number) % size for place in range(size)],
                "weight": 0.5 + number % 3,
            }
        )
    return rows


def measure(trainer: RewardTrainer) -> dict[str, Any]:
    """Return the results of training and evaluation on this process."""
    one_row: Any = ranked_lists(1, start=200)
    rows: Any = trainer.eval_dataset
    metrics = trainer.evaluate() | trainer.evaluate(one_row, metric_key_prefix="single")
    output: Any = trainer.predict(rows)
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    return {
        "setup": {
            "processes": trainer.args.world_size,
            "kind": str(trainer.accelerator.distributed_type.value),
            "fsdp_version": plugin.fsdp_version if plugin else None,
            "sharded": trainer.is_sharded(),
            "packed": packs(trainer.data_collator),
            "device": str(trainer.accelerator.device),
        },
        "losses": of_steps(trainer, "loss"),
        "norms": of_steps(trainer, "grad_norm"),
        "accuracy": of_steps(trainer, "accuracy"),
        "rows": output.label_ids[-1].tolist(),
        "rewards": output.predictions.tolist(),
        "metrics": without_times(metrics),
    }


def of_steps(trainer: RewardTrainer, name: str) -> list[float]:
    """Return a logged number for each optimizer step."""
    return [float(entry[name]) for entry in trainer.state.log_history if "loss" in entry and name in entry]


def without_times(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics that do not depend on the clock."""
    return {name: value for name, value in metrics.items() if "second" not in name and "time" not in name}


if __name__ == "__main__":
    main()
