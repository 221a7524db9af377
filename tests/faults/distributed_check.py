"""Compare distributed training with one process.

    python tests/faults/distributed_check.py [--setups ...] [--forms ...]

Every setup is started by `accelerate launch` with its file in `recipes/accelerate_configs/`, in two CPU processes over
gloo, and compared with one process on the same global batches: lists of different sizes with different weights, two
accumulated batches a step, four steps of AdamW with clipping. Each process runs `distributed_run.py`. Offline, 4
minutes.

Overrides for a CPU, because the files are written for GPUs:

* all: `--num_processes 2`, the backend gloo;
* DDP and FSDP2: `ACCELERATE_USE_CPU=true`. FSDP2 also needs `let_fsdp_shard_on_a_cpu`;
* ZeRO: `ACCELERATE_TORCH_DEVICE=cpu` and `DS_ACCELERATOR=cpu`; skipped if DeepSpeed is not installed.
"""

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from distributed_run import EVALUATED
from parity import GROUPED, SMALL, make_tokenizer
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from hf_reward import verify_checkpoint
from hf_reward.modeling.probes import relative_differences

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "recipes" / "accelerate_configs"
TOLERANCE = 1e-5
ON_CPU = {"ACCELERATE_USE_CPU": "true"}
DEEPSPEED_ON_CPU = {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0"}
OF_EVERY_PROCESS = ("rng_state_", "_states.pt")
"""Names of files that each process writes by design: random states, and DeepSpeed's shards of a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One way of starting the run."""

    config: str
    """File in `accelerate_configs/`."""
    processes: int = 2
    environment: dict[str, str]
    options: tuple[str, ...] = ()
    """Options of `distributed_run.py`."""


SETUPS = {
    "one process": Setup(config="cpu", processes=1, environment={}),
    "one process, LoRA": Setup(config="cpu", processes=1, environment={}, options=("--lora",)),
    "DDP": Setup(config="multi_gpu", environment=ON_CPU),
    "FSDP2": Setup(config="fsdp2", environment=ON_CPU, options=("--checkpointing",)),
    "FSDP2, LoRA": Setup(config="fsdp2", environment=ON_CPU, options=("--checkpointing", "--lora")),
    "ZeRO-2": Setup(config="zero2", environment=DEEPSPEED_ON_CPU),
    "ZeRO-3": Setup(config="zero3", environment=DEEPSPEED_ON_CPU),
    "ZeRO-3, LoRA": Setup(config="zero3", environment=DEEPSPEED_ON_CPU, options=("--lora",)),
}
FORMS = {"packed": "true", "padded": "false"}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Differences between several processes and one."""

    loss: float
    """Largest relative difference over the optimizer steps."""
    gradient_norm: float
    """Largest relative difference over the optimizer steps."""
    weight: float
    """Largest absolute difference of the saved weights."""
    metric: float
    """Largest difference of the metrics and losses of both evaluations, relative to max(1, |metric|)."""
    rows: int
    """Number of evaluated rows, each counted once."""
    resumed: float
    """Largest absolute difference of the saved weights after stopping and resuming."""
    reloaded: float
    """Largest difference of a reward in a fresh process with stock transformers, relative to max(1, |reward|)."""
    problems: tuple[str, ...]
    """Other differences: files missing or written twice, missing rows, another kind of sharding than requested."""

    @property
    def equal(self) -> bool:
        """Whether all differences are within `TOLERANCE` and there are no problems."""
        numbers = (self.loss, self.gradient_norm, self.weight, self.metric, self.resumed, self.reloaded)
        return not self.problems and all(number <= TOLERANCE for number in numbers)


def main(argv: list[str] | None = None) -> None:
    """Run and compare, print a table, and fail if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    several = [name for name, setup in SETUPS.items() if setup.processes > 1]
    parser.add_argument("--setups", nargs="+", choices=several, default=several)
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS))
    options = parser.parse_args(argv)
    names = [name for name in options.setups if can_run(name)]
    for skipped in sorted(set(options.setups) - set(names)):
        print(f"Skipped: {skipped}, because DeepSpeed is not installed.")
    table, found = Table(title="two CPU processes against one"), []
    for heading in (
        "setup", "batches", "loss", "gradient norm", "weights", "metrics", "rows", "resumed", "reloaded", "equal",
    ):  # fmt: skip
        table.add_column(heading, justify="left" if heading in ("setup", "batches") else "right")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        make_model(root / "model")
        for form in options.forms:
            for name in names:
                print(f"{name}, {form} ...", flush=True)
                result = run_and_compare(name, form, root)
                found.append(result)
                numbers = (result.loss, result.gradient_norm, result.weight, result.metric)
                rest = (f"{result.resumed:.1e}", f"{result.reloaded:.1e}", "yes" if result.equal else "NO")
                table.add_row(name, form, *(f"{number:.1e}" for number in numbers), f"{result.rows} + 1", *rest)
                for problem in result.problems:
                    print(f"{name}, {form}: {problem}")
    Console(width=130).print(table)
    if not all(result.equal for result in found):
        raise SystemExit(1)


def can_run(name: str) -> bool:
    """Whether the library of a setup is installed."""
    return not name.startswith("ZeRO") or importlib.util.find_spec("deepspeed") is not None


def make_model(folder: Path) -> None:
    """Write a tiny language model of four layers with random weights, and its tokenizer."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    sizes: dict[str, Any] = {**SMALL, **GROUPED, "num_hidden_layers": 4}
    config = AutoConfig.for_model("llama", vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run_and_compare(name: str, form: str, root: Path) -> Comparison:
    """Run a setup and, unless it exists already, the run of one process, and compare them.

    Args:
        name: One of `SETUPS`.
        form: One of `FORMS`.
        root: Folder with `model/`, for the runs.

    Returns:
        The differences.
    """
    one = "one process, LoRA" if "--lora" in SETUPS[name].options else "one process"
    return compare(launch(one, form, root), launch(name, form, root), SETUPS[name], form)


def launch(name: str, form: str, root: Path, *more: str) -> Path:
    """Start a setup through `accelerate launch` unless its folder exists.

    Args:
        name: One of `SETUPS`.
        form: One of `FORMS`.
        root: Folder with `model/`.
        *more: Further options of `distributed_run.py`.

    Returns:
        The folder with its output.

    Raises:
        RuntimeError: If it failed, with the end of its output.
    """
    setup = SETUPS[name]
    out = root / "-".join([*name.replace(",", "").split(), form, *(word.strip("-") for word in more)])
    if out.exists():
        return out
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(CONFIGS / f"{setup.config}.yaml")),
        *("--num_processes", str(setup.processes), "--main_process_port", "0" if setup.processes > 1 else "29500"),
        *(str(HERE / "distributed_run.py"), "--model", str(root / "model"), "--out", str(out)),
        *("--packing", FORMS[form], *setup.options, *more),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **setup.environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}, {form} failed:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
    return out


def compare(one: Path, several: Path, setup: Setup, form: str) -> Comparison:
    """Compare a run of several processes with a run of one."""
    expected = read(one, 0)
    reports = [read(several, rank) for rank in range(setup.processes)]
    verification = verify_checkpoint(several / "saved")
    problems = list(problems_of(reports, setup, form))
    problems += [] if verification.equal else [f"the saved model differs from the trained one: {verification}"]
    if names_in(one / "saved") != names_in(several / "saved"):
        problems.append(f"files differ: {sorted(names_in(one / 'saved') ^ names_in(several / 'saved'))}")
    return Comparison(
        loss=max(relative(expected["losses"], report["losses"]) for report in reports),
        gradient_norm=max(relative(expected["norms"], report["norms"]) for report in reports),
        weight=weight_difference(one / "saved", several / "saved"),
        metric=max(metric_difference(expected["metrics"], report["metrics"]) for report in reports),
        rows=len(set(reports[0]["rows"])),
        resumed=weight_difference(several / "saved", several / "resumed" / "saved"),
        reloaded=verification.largest_difference(),
        problems=tuple(problems),
    )


def problems_of(reports: list[dict[str, Any]], setup: Setup, form: str) -> Sequence[str]:
    """Return unexpected setups, rows and files of the processes."""
    problems = []
    kinds = {"multi_gpu": ("MULTI_CPU", False), "fsdp2": ("FSDP", True), "zero2": ("DEEPSPEED", False)}
    kind, sharded = kinds.get(setup.config, ("DEEPSPEED", True))
    for rank, report in enumerate(reports):
        found = report["setup"]
        expected = (setup.processes, kind, sharded, form == "packed")
        if (found["processes"], found["kind"], found["sharded"], found["packed"]) != expected:
            problems.append(f"process {rank} ran as {found}")
        if report["rows"] != list(range(EVALUATED)):
            problems.append(f"process {rank} evaluated the rows {report['rows']}")
        twice = [path for path in report["written"] if not any(name in path for name in OF_EVERY_PROCESS)]
        if rank and twice:
            problems.append(f"process {rank} wrote {twice}")
    return problems


def read(folder: Path, rank: int) -> dict[str, Any]:
    """Return the report of a process."""
    return json.loads((folder / f"report-{rank}.json").read_text())


def names_in(folder: Path) -> set[str]:
    """Return the names of the files in a folder."""
    return {path.name for path in folder.iterdir()}


def relative(expected: list[float], found: list[float]) -> float:
    """Return the largest relative difference of two lists of equal length."""
    return max(relative_differences(expected, found, floor=sys.float_info.min))


def metric_difference(expected: dict[str, float], found: dict[str, float]) -> float:
    """Return the largest difference relative to max(1, |metric|); infinite if names differ or a value is not finite."""
    if expected.keys() != found.keys():
        return math.inf
    undefined = {name for name in expected if name.startswith("single_") and name.endswith(("_ci_low", "_ci_high"))}
    names = [name for name in expected if name not in undefined]
    if not all(math.isnan(each[name]) for each in (expected, found) for name in undefined):
        return math.inf  # one prompt has no interval
    return max(relative_differences([expected[name] for name in names], [found[name] for name in names]))


def weight_difference(one: Path, other: Path) -> float:
    """Return the largest absolute difference of saved weights; infinite if names differ or a value is not finite."""
    name = "adapter_model.safetensors" if (one / "adapter_model.safetensors").is_file() else "model.safetensors"
    expected, found = load_file(one / name), load_file(other / name)
    if expected.keys() != found.keys():
        return math.inf
    largest = torch.stack([(found[key].float() - value.float()).abs().max() for key, value in expected.items()]).max()
    return float(largest) if largest.isfinite() else math.inf


if __name__ == "__main__":
    main()
