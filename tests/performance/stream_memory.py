"""Measure the memory of training by the number of rows, on synthetic pairs with a tiny random model.

    python tests/performance/stream_memory.py      # 10,000 and 500,000 pairs, streamed or not
    python tests/performance/stream_memory.py --rows 250000 1000000 --rows_per_file 25000 \
        --form streamed --json memory.json

Writes pairs into files and trains on each pair once, in a separate process, from a stream (with a shuffle buffer of
1,000) or from a memory-mapped table. `own` is the peak of anonymous memory (RssAnon). `mapped` is the peak of mapped
files in memory (RssFile), which the system can reclaim.

A shuffled stream reads ten files at a time, with one Parquet row group of each in memory. So runs are comparable only
with ten or more files and row groups of the same size.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from bulk_check import WORDS, make_model
from rich.console import Console
from rich.table import Table


def main() -> None:
    """Parse the command line, measure each case in a separate process and print a table."""
    parser = ArgumentParser(description="Peak memory of training by number of rows.")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 500_000])
    parser.add_argument("--rows_per_file", type=int, default=1000, help="also the size of a Parquet row group")
    parser.add_argument("--kind", choices=["parquet", "jsonl"], default="parquet")
    parser.add_argument("--form", choices=["streamed", "mapped"], nargs="+", default=["streamed", "mapped"])
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument(
        "--work", nargs=4, metavar=("MODEL", "DATA", "ROWS", "FORM"), help="a single run; for internal use"
    )
    options = parser.parse_args()
    if options.work:
        print(json.dumps(work(*options.work)))
        return
    table = Table("pairs", "form", "own, MiB", "mapped, MiB", "s until the first step", "s in all", "steps")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder) / "model")
        for rows in options.rows:
            data = write_pairs(Path(folder) / f"{rows}", rows, options.kind, options.rows_per_file)
            for form in options.form:
                found = measured(model, data, rows, form, Path(folder) / "cache")
                results.append(
                    {"rows": rows, "rows_per_file": options.rows_per_file, "kind": options.kind, "form": form, **found}
                )
                cells = (found["own"], found["mapped"], found["first_step"], found["seconds"], found["steps"])
                table.add_row(f"{rows:,}", form, *(f"{cell:,.0f}" for cell in cells))
    Console(width=110).print(table)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def write_pairs(folder: Path, count: int, kind: str, rows_per_file: int) -> Path:
    """Write synthetic pairs into the files of a training split."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = random.Random(0)
    folder.mkdir(parents=True)
    parts = -(-count // rows_per_file)
    for part in range(parts):
        rows = [
            {side: " ".join(draw.choices(WORDS, k=draw.randint(4, 20))) for side in ("prompt", "chosen", "rejected")}
            for _ in range(min(rows_per_file, count - part * rows_per_file))
        ]
        path = folder / f"train-{part:05}-of-{parts:05}.{kind}"
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def measured(model: Path, data: Path, rows: int, form: str, cache: Path) -> dict[str, float]:
    """Train in a separate process and return its measurements."""
    command = [sys.executable, __file__, "--work", str(model), str(data), str(rows), form]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def work(model: str, data: str, rows: str, form: str) -> dict[str, float]:
    """Train on every pair once and return memory and times."""
    from transformers import PrinterCallback, TrainerCallback

    from hf_reward import AutoModelForRewardScoring, RewardConfig, RewardTrainer
    from hf_reward.data.sources import Source, load_source

    peak, began = {"RssAnon": 0, "RssFile": 0}, time.monotonic()
    first: list[float] = []
    threading.Thread(target=watch, args=(peak,), daemon=True).start()

    class FirstStep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            first[:] = first or [time.monotonic() - began]

    size = 100
    trainer = RewardTrainer(
        model=AutoModelForRewardScoring.from_pretrained(model),
        args=RewardConfig(
            output_dir=f"{data}-{form}", use_cpu=True, report_to="none", disable_tqdm=True, plot_curves=False,
            per_device_train_batch_size=size, max_steps=int(rows) // size, save_strategy="no", logging_steps=200,
        ),
        train_dataset=load_source(Source(data=data), streaming=form == "streamed"),
        callbacks=[FirstStep()],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    seconds = time.monotonic() - began
    return {
        "own": peak["RssAnon"] / 2**10, "mapped": peak["RssFile"] / 2**10, "first_step": first[0], "seconds": seconds,
        "steps": trainer.state.global_step,
    }  # fmt: skip


def watch(peak: dict[str, int]) -> None:
    """Record the peaks of this process's memory in KiB, ten times a second."""
    while True:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name in peak:
                peak[name] = max(peak[name], int(value.split()[0]))
        time.sleep(0.1)


if __name__ == "__main__":
    main()
