"""Benchmarks of hf_reward and other libraries, in turn on the same rows.

    python tests/performance/speed.py prepare                                     # synthetic rows as long as HH's
    python tests/performance/speed.py prepare --data harmless_test.jsonl \
        --tokenizer models/SmolLM2-135M-Instruct [--layout hh]
    python tests/performance/speed.py train --json speed.json                     # all cases, hours on a CPU
    python tests/performance/speed.py train --cases a,c --geometry tiny --steps 1 --rounds 1
    python tests/performance/speed.py score                                       # best-of-16, see speed_scoring.py

`prepare` converts raw preferences to token ids. TRL adds EOS, tokenises and filters; ours adds statistics. Both use
max_length 1024 and drop longer rows. The benchmark fails if their ids differ.

`train` trains TRL's RewardTrainer and ours from the same random weights on the same token ids in the same order, with 8
rows per step in a to e, in float32 on a CPU and bfloat16 autocast on CUDA. Each measurement is a separate process:

    a       a long prompt and two short responses, as in HH; `a+ckpt` with activation checkpointing on both sides
    b       a short prompt and two long responses
    c       lists of four ranked responses; TRL gets their six pairs as rows and takes six steps for one of ours
    d       rows as in `a`, five epochs, only the head trains; epoch 1 starts with the call of `train`,
            so it includes the checks before training and the computation of features
    e       the rows of `a`, LoRA (r=16) on all linear layers
    f       all six pairs of four responses as rows, four prompts in a step
    g       eight pairs of five responses as in UKPConvArg1, two prompts in a step
    h       five pairs of four responses to a long prompt as in FineGrained QA, three prompts in a step
    i       a list of 16 responses in a step; TRL gets its 120 pairs as rows

`--sides hf_reward before --before DIR` compares with the code in another checkout, `compiled` with `torch_compile` and
`bf16` with bfloat16 autocast; compilation itself is not measured. Their lines state the ratio of the times of the same
steps, with a 95% interval.

`speed_rows.py` defines the length distributions. `--data` replaces the synthetic rows of a, d and e with text pairs.
`--json` writes `machine`, `settings`, `operations` (by geometry, see `speed_measure.build_model`), `rows` (by geometry
and case, see `speed_rows.describe`) and `measurements` (the result of `speed_measure.measure_training` or `error`, with
`geometry`, `case`, `round` and `side`).
"""

import json
import os
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import datasets
from datasets import Dataset
from geometries import GEOMETRIES
from machine import core_count
from rich.console import Console
from rich.table import Table
from speed_rows import Row, text_and_tokenizer
from speed_scoring import benchmark_scoring
from speed_training import SIDES, VARIANTS, benchmark_training
from transformers import PreTrainedTokenizerBase

from hf_reward.preprocessing.preparation import PreparationRule, prepare_preferences
from hf_reward.preprocessing.tokenization import FormatRule

MAX_LENGTH = 1024

Ids = list[list[int]]


def main() -> None:
    """Parse the command line and run one benchmark."""
    parser = ArgumentParser(description="Benchmarks of hf_reward and other libraries.")
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="raw rows to token ids, compared with TRL's RewardTrainer")
    train = commands.add_parser("train", help="training steps, compared with TRL's RewardTrainer")
    score = commands.add_parser("score", help="best-of-N lists, compared with TRL's loop and transformers' pipeline")
    for command in (prepare, train):
        command.add_argument("--data", type=Path, help="JSONL of `chosen` and `rejected`, with or without `prompt`")
        command.add_argument("--layout", choices=["text", "hh"], default="text", help="hh: transcripts as messages")
        command.add_argument("--tokenizer", help="folder or Hub id; by default a small BPE trained on the rows")
    for command in (prepare, train, score):
        command.add_argument("--rounds", type=int, default=3)
    prepare.add_argument("--rows", type=int, default=2000, help="maximum number of rows")
    train.add_argument("--cases", default="a,b,c,d,e,f,g,h,i", help="comma-separated; by default all")
    train.add_argument("--sides", nargs="+", choices=[*SIDES, *VARIANTS], default=list(SIDES), help="by default both")
    train.add_argument("--before", type=Path, help="checkout of another version, for the side `before`")
    for command in (train, score):
        command.add_argument(
            "--geometry", nargs="+", choices=list(GEOMETRIES), help="model sizes; by default suited to the device"
        )
        command.add_argument("--json", type=Path, help="write the raw results to this file")
    score.add_argument("--prompts", type=int, default=24, help="number of prompts")
    score.add_argument("--answers", type=int, default=16, help="number of answers per prompt")
    train.add_argument("--steps", type=int, default=3, help="measured optimizer steps, after one warm-up step")
    train.add_argument("--max-length", type=int, default=512, help="longer rows are omitted")
    options = parser.parse_args()
    run = {"prepare": benchmark_preparation, "train": benchmark_training, "score": benchmark_scoring}
    run[options.command](options)


# --- preparation -----------------------------------------------------------------------------------------------------


def benchmark_preparation(options: Namespace) -> None:
    """Measure TRL's `RewardTrainer._prepare_dataset` and our `prepare_preferences`."""
    rows, tokenizer = text_and_tokenizer(options, options.rows)
    sides: dict[str, Callable[[Dataset, PreTrainedTokenizerBase], Callable[[], Ids]]]
    sides = {"TRL": prepare_as_trl, "hf_reward": prepare_as_ours}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for turn in range(options.rounds + 1):  # the first round is a warm-up
        ids = {}
        for name in sorted(sides, reverse=bool(turn % 2)):
            with fresh_dataset(rows) as data:
                wall, cpu = time.perf_counter(), time.process_time()
                read_ids = sides[name](data, tokenizer)
                elapsed = time.perf_counter() - wall, time.process_time() - cpu
                ids[name] = read_ids()
            seconds[name] += [elapsed] if turn else []
        if ids["TRL"] != ids["hf_reward"]:
            raise SystemExit("The token ids differ, so the times cannot be compared.")
    report(f"raw rows to token ids, {options.layout}", len(rows), seconds)


def prepare_as_trl(data: Dataset, tokenizer: PreTrainedTokenizerBase) -> Callable[[], Ids]:
    """Prepare as TRL's `RewardTrainer.__init__` does; return a function that reads the ids."""
    from trl.trainer.reward_trainer import RewardTrainer

    limits = Namespace(dataset_num_proc=None, max_length=MAX_LENGTH)
    no_trainer: Any = None  # the method does not use the trainer, so no model is needed
    prepared: Any = RewardTrainer._prepare_dataset(no_trainer, data, tokenizer, limits, "train")  # type: ignore[arg-type]
    return lambda: [ids for pair in zip(prepared["chosen_ids"], prepared["rejected_ids"], strict=True) for ids in pair]


def prepare_as_ours(data: Dataset, tokenizer: PreTrainedTokenizerBase) -> Callable[[], Ids]:
    """Prepare with TRL's policy for long rows, including statistics; return a function that reads the ids."""
    rule = PreparationRule(format=FormatRule(max_length=MAX_LENGTH, over_length="drop"))
    prepared: Any = prepare_preferences(data, tokenizer, rule)[0]
    return lambda: [ids for row in prepared for ids in row["input_ids"]]


@contextmanager
def fresh_dataset(rows: list[Row]) -> Iterator[Dataset]:
    """Yield the rows as a dataset in a new folder, so that nothing is cached."""
    datasets.disable_caching()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        yield Dataset.from_json(str(path), cache_dir=folder)  # type: ignore[misc]


def report(title: str, rows: int, seconds: dict[str, list[tuple[float, float]]]) -> None:
    """Print the rows per second of each side and the ratio of the medians to the first side.

    Also prints the CPU seconds of all threads, which vary less than wall time on a shared machine.
    """
    table = Table(
        title=title, caption=f"{rows} rows, {core_count()} CPU cores (load {os.getloadavg()[0]:.1f}), same ids"
    )
    for heading in ("", "rows/s (median)", "min", "max", "ratio", "CPU s (median)", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    peer_wall, peer_cpu = (median(times) for times in zip(*next(iter(seconds.values())), strict=True))
    for name, times in seconds.items():
        walls, cpus = zip(*times, strict=True)
        rates = [f"{rows / value:,.0f}" for value in (median(walls), max(walls), min(walls))]
        cpu = median(cpus)
        table.add_row(name, *rates, f"{peer_wall / median(walls):.2f}", f"{cpu:.2f}", f"{peer_cpu / cpu:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
