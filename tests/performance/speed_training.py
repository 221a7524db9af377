"""`speed.py train`: which cases, rounds and rows are measured, and the table of the results."""

import json
import os
import platform
import subprocess
import sys
import tempfile
from argparse import Namespace
from dataclasses import dataclass
from importlib.metadata import version
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from speed_measure import GEOMETRIES
from speed_rows import (
    BATCH_SIZE,
    HH_LIKE,
    LISTS,
    LONG_RESPONSES,
    Group,
    RowLengths,
    describe,
    groups_of_text,
    made_up_groups,
    text_and_tokenizer,
)


@dataclass(frozen=True)
class Case:
    """What is trained; the name's first letter selects it."""

    name: str
    lengths: RowLengths
    mode: str = "full"
    checkpointing: bool = False
    epochs: int = 1

    @property
    def parts(self) -> list[tuple[str, slice]]:
        """Lines of the table, and which of the measured steps or epochs each reports."""
        if self.epochs == 1:
            return [(self.name, slice(None))]
        return [(f"{self.name} epoch 1", slice(1)), (f"{self.name} epochs 2-{self.epochs}", slice(1, None))]


CASES = (
    Case("a", HH_LIKE),
    Case("a+ckpt", HH_LIKE, checkpointing=True),
    Case("b", LONG_RESPONSES),
    Case("c", LISTS),
    Case("d", HH_LIKE, mode="frozen", epochs=5),
    Case("e", HH_LIKE, mode="lora"),
)
SIDES = ("TRL", "hf_reward")
FLOPS_PER_PARAMETER = {"full": 6, "lora": 4, "frozen": 2}
"""Forward, backward to the activations and backward to the weights are 2 each."""


def benchmark_training(options: Namespace) -> None:
    """Train both sides in every case, round after round, and print a table for each geometry."""
    letters = set(options.cases.split(","))
    if unknown := letters - {case.name[0] for case in CASES}:
        raise SystemExit(f"There is no case {', '.join(sorted(unknown))}.")
    cases = [case for case in CASES if case.name[0] in letters]
    options.geometry = options.geometry or default_geometries()
    report: dict[str, Any] = {"machine": machine(), "settings": json.loads(json.dumps(vars(options), default=str))}
    report |= {"operations": {}, "rows": {}, "measurements": []}
    with tempfile.TemporaryDirectory() as folder:
        for geometry in options.geometry:
            print(f"building {geometry}", file=sys.stderr)
            model = str(Path(folder) / geometry)
            report["operations"][geometry] = require(folder, "build", geometry=geometry, folder=model)
            for case in cases:
                measure_case(case, geometry, model, options, report)
    save_json(options.json, report)
    for geometry in options.geometry:
        print_training(geometry, cases, report)


def measure_case(case: Case, geometry: str, model: str, options: Namespace, report: dict[str, Any]) -> None:
    """Add the measurements of one case to the report: TRL, ours, ours, TRL, ..."""
    warm_up, counted = make_groups(case, GEOMETRIES[geometry]["vocab_size"], options)
    report["rows"].setdefault(geometry, {})[case.name] = describe(counted)
    rows = Path(model) / "rows.json"
    ids = {"warm_up": [row.responses for row in warm_up], "counted": [row.responses for row in counted]}
    rows.write_text(json.dumps(ids), encoding="utf-8")
    settings = {"mode": case.mode, "checkpointing": case.checkpointing, "epochs": case.epochs, "model": model}
    settings |= {"max_length": options.max_length, "rows": str(rows)}
    failed = set()
    for turn in range(options.rounds):
        for side in SIDES if turn % 2 == 0 else SIDES[::-1]:
            if side in failed:
                continue
            print(f"{geometry} {case.name}, round {turn + 1} of {options.rounds}: {side}", file=sys.stderr)
            result = in_own_process(model, "train", side=side, **settings)
            failed |= {side} if "error" in result else set()
            labels = {"geometry": geometry, "case": case.name, "round": turn, "side": side}
            report["measurements"].append({**labels, **result})
            save_json(options.json, report)  # a benchmark of hours may be stopped


def make_groups(case: Case, vocabulary: int, options: Namespace) -> tuple[list[Group], list[Group]]:
    """Rows of the warm-up step and counted rows of a case.

    A step of lists is six steps of pairs, so there are a third as many of ours and twice as many of TRL's. Epochs have
    no warm-up: the first one stands for itself.
    """
    counted = BATCH_SIZE * (ceil(options.steps / 3) if case.lengths is LISTS else options.steps)
    warm_up = BATCH_SIZE if case.epochs == 1 else 0
    limits = {"max_length": options.max_length, "vocabulary": vocabulary}
    if options.data is None or case.lengths is not HH_LIKE:
        first, second = (
            made_up_groups(case.lengths, count, seed=seed, **limits) for seed, count in enumerate((warm_up, counted))
        )
        return first, second
    rows, tokenizer = text_and_tokenizer(options, sys.maxsize)
    groups = groups_of_text(rows, warm_up + counted, tokenizer=tokenizer, **limits)
    return groups[:warm_up], groups[warm_up:]


def in_own_process(folder: str, task: str, /, **values: Any) -> dict[str, Any]:
    """What a task of `speed_measure` returns, or the reason why it failed as `error`."""
    specification, result = Path(folder) / "task.json", Path(folder) / "result.json"
    specification.write_text(json.dumps({"task": task, **values}), encoding="utf-8")
    result.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).with_name("speed_measure.py")), str(specification), str(result)]
    with tempfile.TemporaryDirectory() as cache:  # no features or rows that an earlier round left
        changed = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": cache}
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **changed})
    if done.returncode == 0:
        return json.loads(result.read_text(encoding="utf-8"))
    if done.returncode < 0:
        return {"error": f"ended by signal {-done.returncode}{', out of memory?' if done.returncode == -9 else ''}"}
    return {"error": (done.stderr.strip() or "no message").splitlines()[-1][:200]}


def require(folder: str, task: str, /, **values: Any) -> dict[str, Any]:
    """What a task returns, without which there is no benchmark."""
    result = in_own_process(folder, task, **values)
    if "error" in result:
        raise SystemExit(f"{task}: {result['error']}")
    return result


def default_geometries() -> list[str]:
    """Models that suit the device."""
    return ["qwen2.5-0.5b", "qwen2.5-1.5b"] if torch.cuda.is_available() else ["smollm2-135m"]


def machine() -> dict[str, Any]:
    """Processor and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": core_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "hf_reward")},
    }


def core_count() -> int | None:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def save_json(path: Path | None, report: dict[str, Any]) -> None:
    """Write the report if a file was named."""
    if path is not None:
        path.write_text(json.dumps(report, indent=1), encoding="utf-8")


# --- tables of training ----------------------------------------------------------------------------------------------


def print_training(geometry: str, cases: list[Case], report: dict[str, Any]) -> None:
    """Print the table of one geometry, and below it the seconds of epochs."""
    memory = "GPU memory" if report["machine"]["gpu"] else "RSS"
    headings = ("case", "side", "pairs/s", "computed", "useful", f"peak {memory}", "pairs/s", "useful /")
    units = ("", "", "median (min-max)", "tokens / pair", "tokens / pair", "GiB", "x TRL", "matmul rate")
    table = Table(
        title=f"Training {geometry}", caption=escape(training_caption(geometry, cases, report)), caption_justify="left"
    )
    for heading, unit in zip(headings, units, strict=True):
        table.add_column(f"{heading}\n{unit}", justify="right" if unit else "left")
    console, epochs = Console(width=130), []
    for case in cases:
        found = [row for row in report["measurements"] if (row["geometry"], row["case"]) == (geometry, case.name)]
        for label, part in case.parts:
            speed = operations_share(case, geometry, report)
            peer = median_rate([row for row in found if row["side"] == SIDES[0]], part)
            for side in SIDES:
                mine = [row for row in found if row["side"] == side]
                table.add_row(label, side, *training_cells(mine, part, speed, peer))
            epochs += [] if case.epochs == 1 else [epoch_line(label, found, part)]
        table.add_section()
    console.print(table, *epochs, sep="\n", highlight=False)


def training_cells(rows: list[dict[str, Any]], part: slice, speed: float, peer: float | None) -> list[str]:
    """The numbers of one side.

    Args:
        rows: Its measurements, one a round.
        part: Which steps or epochs to report.
        speed: What a useful token a second is as a share of the machine's matmul rate.
        peer: TRL's pairs a second.

    Returns:
        The cells.
    """
    errors = [row["error"] for row in rows if "error" in row]
    if errors or not rows:
        return [escape(f"failed: {errors[0] if errors else 'not run'}"), *["-"] * 5]
    rates = [rate(row, part) for row in rows]
    middle, first = median(rates), rows[0]
    pairs = first["pairs"] * len(first["seconds"][part]) / len(first["seconds"])
    computed, useful = sum(first["tokens_computed"][part]) / pairs, first["useful_tokens"] / first["pairs"]
    return [
        f"{middle:.3g} ({min(rates):.3g}-{max(rates):.3g})",
        f"{computed:,.0f}",
        f"{useful:,.0f}",
        f"{max(row['peak_bytes'] for row in rows) / 2**30:.1f}",
        f"{middle / peer:.2f}" if peer else "-",
        f"{middle * useful * speed:.1%}" if computed else "-",  # cached features: nothing went through the backbone
    ]


def rate(row: dict[str, Any], part: slice) -> float:
    """Pairs a second of one measurement."""
    seconds = row["seconds"][part]
    return row["pairs"] * len(seconds) / len(row["seconds"]) / sum(seconds)


def median_rate(rows: list[dict[str, Any]], part: slice) -> float | None:
    """Pairs a second over the rounds, None where one failed."""
    return median(rate(row, part) for row in rows) if rows and not any("error" in row for row in rows) else None


def operations_share(case: Case, geometry: str, report: dict[str, Any]) -> float:
    """A useful token a second as a share of the matmul rate that was measured around the case."""
    size, attended = report["operations"][geometry], report["rows"][geometry][case.name]["attended_per_token"]
    flops = FLOPS_PER_PARAMETER[case.mode] * size["parameters"]
    flops += (2 if case.mode == "frozen" else 6) * size["attention"] * attended  # it has no weights to save on
    return flops / matmul_rate(report, geometry, case.name)


def matmul_rate(report: dict[str, Any], geometry: str, case: str | None = None) -> float:
    """Median of what was measured beside the training of one case, or of all; NaN if all of them failed."""
    rows = [row for row in report["measurements"] if row["geometry"] == geometry and case in (None, row["case"])]
    rates = [rate for row in rows for rate in row.get("matmul_flops", [])]
    return median(rates) if rates else float("nan")


def epoch_line(label: str, rows: list[dict[str, Any]], part: slice) -> str:
    """Seconds an epoch of both sides, medians over the rounds."""
    sides = {side: [row for row in rows if row["side"] == side] for side in SIDES}
    if any(not found or any("error" in row for row in found) for found in sides.values()):
        return f"{label}: a side failed"
    means = {
        side: median(sum(row["seconds"][part]) / len(row["seconds"][part]) for row in found)
        for side, found in sides.items()
    }
    text = ", ".join(f"{side} {seconds:.3g} s" for side, seconds in means.items())
    return f"{label}: {text} an epoch; ours / TRL {means['hf_reward'] / means['TRL']:.1%}"


def training_caption(geometry: str, cases: list[Case], report: dict[str, Any]) -> str:
    """What the numbers are, on which machine, and how long the rows were."""
    about, settings = report["machine"], report["settings"]
    device = about["gpu"] or f"{about['cpu']}, {about['cores']} cores"
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines = [
        f"{device}; {versions}; {settings['rounds']} rounds of {settings['steps']} counted steps; max_length "
        f"{settings['max_length']}; matmul rate {matmul_rate(report, geometry) / 1e9:,.0f} GFLOP/s",
        "computed: tokens through the backbone, padding included; useful: those that exist, a shared prefix once",
        "useful / matmul rate: FLOP of useful tokens, 6 x parameters without embeddings (LoRA 4, frozen 2) and causal "
        "attention, over the median rate of square matmuls before and after",
    ]
    return "\n".join([*lines, *row_lines(report["rows"][geometry], cases, settings["data"])])


def row_lines(rows: dict[str, dict[str, Any]], cases: list[Case], data: str | None) -> list[str]:
    """How long the rows of each case are; cases with the same rows share a line."""
    lines: dict[str, list[str]] = {}
    for case in cases:
        used = rows[case.name]
        own = ", ".join(f"{mean:.0f}" for mean in used["responses"])
        source = Path(data).name if data and case.lengths is HH_LIKE else str(case.lengths)
        text = (
            f"prefix {used['prefix']:.0f}, responses {own} tokens, padded / existing {used['padded_to_existing']:.1f}"
        )
        lines.setdefault(f"{text}; {source}", []).append(case.name)
    return [f"rows of {', '.join(names)}: {text}" for text, names in lines.items()]
