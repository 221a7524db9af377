"""`speed.py train`: cases, rounds and rows of the benchmark, and the table of results."""

import json
import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from geometries import FROZEN_IN_HALF, GEOMETRIES
from machine import core_count, cpu_name, installed_version
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy import stats
from speed_measure import dtype_of
from speed_rows import (
    BATCH_SIZE,
    FINE_GRAINED_LIKE,
    HH_LIKE,
    LISTS,
    LONG_LISTS,
    LONG_RESPONSES,
    UKP_LIKE,
    Group,
    RowLengths,
    describe,
    groups_of_text,
    rows_of_pairs,
    synthetic_groups,
    text_and_tokenizer,
)


@dataclass(frozen=True)
class Case:
    """A training case; the first letter of its name selects it."""

    name: str
    lengths: RowLengths
    mode: str = "full"
    checkpointing: bool = False
    epochs: int = 1
    lists: int | None = None
    """Lists in a step; None for `BATCH_SIZE` rows, one per group."""
    pairs: int | None = None
    """Rows made of each list, one per pair; None for a row per list."""
    max_length: int | None = None
    """Length limit of the case instead of `--max-length`."""

    @property
    def batch_size(self) -> dict[str, int]:
        """Rows in a batch of each side: the same rows, but all pairs of the lists of several batches for TRL."""
        lists = self.lists or BATCH_SIZE
        rows = lists * (self.pairs or 1)
        return {"TRL": rows if self.pairs else BATCH_SIZE, "hf_reward": rows}

    @property
    def parts(self) -> list[tuple[str, slice]]:
        """Labels of the table's lines, each with its range of measured steps or epochs."""
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
    Case("f", LISTS, lists=4, pairs=6),
    Case("g", UKP_LIKE, lists=2, pairs=8),
    Case("h", FINE_GRAINED_LIKE, lists=3, pairs=5, max_length=1536),
    Case("i", LONG_LISTS, lists=1),
)
SIDES = ("TRL", "hf_reward")
VARIANTS: dict[str, dict[str, Any]] = {"before": {}, "compiled": {"torch_compile": True}, "bf16": {"bf16": True}}
"""Further sides, each hf_reward with these settings; `before` is the code of another checkout."""
FLOPS_PER_PARAMETER = {"full": 6, "lora": 4, "frozen": 2}
"""The forward pass, the backward pass to the activations and that to the weights cost 2 each."""


def benchmark_training(options: Namespace) -> None:
    """Train both sides in all cases and rounds, and print a table for each geometry."""
    letters = set(options.cases.split(","))
    if unknown := letters - {case.name[0] for case in CASES}:
        raise SystemExit(f"There is no case {', '.join(sorted(unknown))}.")
    cases = [case for case in CASES if case.name[0] in letters]
    options.geometry = options.geometry or default_geometries()
    require_lora(options.geometry, cases)
    if ("before" in options.sides) != (options.before is not None):
        raise SystemExit("`--before DIR` and `--sides ... before` need each other.")
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


def require_lora(geometries: list[str], cases: list[Case]) -> None:
    """Exit if a geometry that trains only with LoRA would run other cases."""
    others = [case.name for case in cases if case.mode != "lora"]
    if others and (large := [name for name in geometries if name in FROZEN_IN_HALF]):
        raise SystemExit(f"{large[0]} trains only with LoRA, not in case {', '.join(others)}. Pass `--cases e`.")


def measure_case(case: Case, geometry: str, model: str, options: Namespace, report: dict[str, Any]) -> None:
    """Add the measurements of one case to the report, in the order TRL, ours, ours, TRL, ..."""
    warm_up, counted = make_groups(case, GEOMETRIES[geometry]["vocab_size"], options)
    report["rows"].setdefault(geometry, {})[case.name] = describe(counted, case.batch_size["TRL"])
    rows = Path(model) / "rows.json"
    ids = {"warm_up": [row.responses for row in warm_up], "counted": [row.responses for row in counted]}
    rows.write_text(json.dumps(ids), encoding="utf-8")
    settings = {"mode": case.mode, "checkpointing": case.checkpointing, "epochs": case.epochs, "model": model}
    settings |= {"max_length": case.max_length or options.max_length, "rows": str(rows), "dtype": dtype_of(geometry)}
    failed = set()
    for turn in range(options.rounds):
        for side in options.sides if turn % 2 == 0 else options.sides[::-1]:
            if side in failed:
                continue
            print(f"{geometry} {case.name}, round {turn + 1} of {options.rounds}: {side}", file=sys.stderr)
            own = {"batch_size": case.batch_size["TRL" if side == "TRL" else "hf_reward"]}
            own |= {"settings": VARIANTS.get(side, {})}
            checkout = options.before if side == "before" else None
            result = in_own_process(model, "train", checkout, is_trl=side == "TRL", **own, **settings)
            failed |= {side} if "error" in result else set()
            labels = {"geometry": geometry, "case": case.name, "round": turn, "side": side}
            report["measurements"].append({**labels, **result})
            save_json(options.json, report)  # keep results if a long benchmark is interrupted


def make_groups(case: Case, vocabulary: int, options: Namespace) -> tuple[list[Group], list[Group]]:
    """Make the rows of the warm-up step and the measured rows of a case.

    A step of lists of four equals six steps of pairs, so we take a third of the steps and TRL twice as many. Epochs
    have no warm-up, because the first one is reported separately.
    """
    lists = case.lists or BATCH_SIZE
    several = case.pairs is None and len(case.lengths.responses) > 2
    counted = lists * (ceil(options.steps / 3) if several else options.steps)
    warm_up = lists if case.epochs == 1 else 0
    limits = {"max_length": case.max_length or options.max_length, "vocabulary": vocabulary}
    if options.data is None or case.lengths is not HH_LIKE:
        first, second = (
            synthetic_groups(case.lengths, count, seed=seed, **limits) for seed, count in enumerate((warm_up, counted))
        )
        return (first, second) if case.pairs is None else (_pairs(first, case), _pairs(second, case))
    rows, tokenizer = text_and_tokenizer(options, sys.maxsize)
    groups = groups_of_text(rows, warm_up + counted, tokenizer=tokenizer, **limits)
    return groups[:warm_up], groups[warm_up:]


def _pairs(lists: list[Group], case: Case) -> list[Group]:
    assert case.pairs is not None
    return rows_of_pairs(lists, case.pairs)


def in_own_process(folder: str, task: str, checkout: Path | None = None, /, **values: Any) -> dict[str, Any]:
    """Run a task of `speed_measure`, with hf_reward from a checkout if one is given.

    Returns:
        The result, or the reason of the failure as `error`.
    """
    specification, result = Path(folder) / "task.json", Path(folder) / "result.json"
    specification.write_text(json.dumps({"task": task, **values}), encoding="utf-8")
    result.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).with_name("speed_measure.py")), str(specification), str(result)]
    with tempfile.TemporaryDirectory() as cache:  # no cached features or rows of an earlier round
        changed = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": cache}
        changed |= {"PYTHONPATH": str(checkout.resolve())} if checkout is not None else {}
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **changed})
    if done.returncode == 0:
        return json.loads(result.read_text(encoding="utf-8"))
    if done.returncode < 0:
        return {"error": f"ended by signal {-done.returncode}{', out of memory?' if done.returncode == -9 else ''}"}
    return {"error": (done.stderr.strip() or "no message").splitlines()[-1][:200]}


def require(folder: str, task: str, /, **values: Any) -> dict[str, Any]:
    """Run a task and exit if it fails."""
    result = in_own_process(folder, task, **values)
    if "error" in result:
        raise SystemExit(f"{task}: {result['error']}")
    return result


def default_geometries() -> list[str]:
    """Return the default models for the device."""
    return ["qwen2.5-0.5b", "qwen2.5-1.5b"] if torch.cuda.is_available() else ["smollm2-135m"]


def machine() -> dict[str, Any]:
    """Return the hardware and library versions."""
    return {
        "cpu": cpu_name(),
        "cores": core_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: installed_version(name) for name in ("torch", "transformers", "trl", "hf_reward")},
    }


def save_json(path: Path | None, report: dict[str, Any]) -> None:
    """Write the report if a file is given."""
    if path is not None:
        path.write_text(json.dumps(report, indent=1), encoding="utf-8")


# --- tables of training ----------------------------------------------------------------------------------------------


def print_training(geometry: str, cases: list[Case], report: dict[str, Any]) -> None:
    """Print the table of one geometry and the seconds per epoch."""
    memory = "GPU memory" if report["machine"]["gpu"] else "RSS"
    headings = ("case", "side", "pairs/s", "computed", "useful", f"peak {memory}", "pairs/s", "CPU time", "useful /")
    units = ("", "", "median (min-max)", "tokens / pair", "tokens / pair", "GiB", "x TRL", "TRL's /", "matmul rate")
    table = Table(
        title=f"Training {geometry}", caption=escape(training_caption(geometry, cases, report)), caption_justify="left"
    )
    for heading, unit in zip(headings, units, strict=True):
        table.add_column(f"{heading}\n{unit}", justify="right" if unit else "left")
    console, lines = Console(width=130), []
    for case in cases:
        found = [row for row in report["measurements"] if (row["geometry"], row["case"]) == (geometry, case.name)]
        for label, part in case.parts:
            speed = operations_share(case, geometry, report)
            theirs = [row for row in found if row["side"] == SIDES[0]]
            peer, peer_cpu = (median_rate(theirs, part, key) for key in ("seconds", "cpu_seconds"))
            for side in report["settings"]["sides"]:
                mine = [row for row in found if row["side"] == side]
                table.add_row(label, side, *training_cells(mine, part, speed, peer, peer_cpu))
            lines += [] if case.epochs == 1 else [epoch_line(label, found, part)]
            lines += [f"{label}: {line}" for line in variant_lines(found, part)]
        lines += start_up_line(case.name, found)
        table.add_section()
    console.print(table, *lines, sep="\n", highlight=False)


def training_cells(
    rows: list[dict[str, Any]], part: slice, speed: float, peer: float | None, peer_cpu: float | None
) -> list[str]:
    """Return the table cells of one side.

    Args:
        rows: Its measurements, one per round.
        part: Range of steps or epochs to report.
        speed: One useful token per second as a share of the machine's matmul rate.
        peer: TRL's pairs per second.
        peer_cpu: TRL's pairs per processor second.

    Returns:
        The cells.
    """
    errors = [row["error"] for row in rows if "error" in row]
    if errors or not rows:
        return [escape(f"failed: {errors[0] if errors else 'not run'}"), *["-"] * 6]
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
        f"{median(rate(row, part, 'cpu_seconds') for row in rows) / peer_cpu:.2f}" if peer_cpu else "-",
        f"{middle * useful * speed:.1%}" if computed else "-",  # cached features: the backbone computes nothing
    ]


def rate(row: dict[str, Any], part: slice, key: str = "seconds") -> float:
    """Return the pairs per second of one measurement, or per processor second."""
    seconds = row[key][part]
    return row["pairs"] * len(seconds) / len(row[key]) / sum(seconds)


def median_rate(rows: list[dict[str, Any]], part: slice, key: str = "seconds") -> float | None:
    """Return the median pairs per second over the rounds, None if one failed."""
    return median(rate(row, part, key) for row in rows) if rows and not any("error" in row for row in rows) else None


def operations_share(case: Case, geometry: str, report: dict[str, Any]) -> float:
    """Return one useful token per second as a share of the matmul rate measured with the case."""
    size, attended = report["operations"][geometry], report["rows"][geometry][case.name]["attended_per_token"]
    flops = FLOPS_PER_PARAMETER[case.mode] * size["parameters"]
    # Attention has no weights, so LoRA saves nothing there.
    flops += (2 if case.mode == "frozen" else 6) * size["attention"] * attended
    return flops / matmul_rate(report, geometry, case.name)


def matmul_rate(report: dict[str, Any], geometry: str, case: str | None = None) -> float:
    """Return the median matmul rate measured with one case or all; NaN if all measurements failed."""
    rows = [row for row in report["measurements"] if row["geometry"] == geometry and case in (None, row["case"])]
    rates = [rate for row in rows for rate in row.get("matmul_flops", [])]
    return median(rates) if rates else float("nan")


def epoch_line(label: str, rows: list[dict[str, Any]], part: slice) -> str:
    """Return a line with the seconds per epoch of both sides, medians over the rounds."""
    sides = {side: [row for row in rows if row["side"] == side] for side in SIDES}
    if any(not found or any("error" in row for row in found) for found in sides.values()):
        return f"{label}: a side failed"
    means = {
        side: median(sum(row["seconds"][part]) / len(row["seconds"][part]) for row in found)
        for side, found in sides.items()
    }
    text = ", ".join(f"{side} {seconds:.3g} s" for side, seconds in means.items())
    return f"{label}: {text} per epoch; ours / TRL {means['hf_reward'] / means['TRL']:.1%}"


def start_up_line(label: str, rows: list[dict[str, Any]]) -> list[str]:
    """Return a line with the median seconds from the construction of each trainer to its first step."""
    seconds: dict[str, list[float]] = {}
    for row in rows:
        if "error" not in row:
            seconds.setdefault(row["side"], []).append(row["start_up_seconds"])
    text = ", ".join(f"{side} {median(times):.1f} s" for side, times in seconds.items())
    return [f"{label}: start-up {text}"] if text else []


def variant_lines(rows: list[dict[str, Any]], part: slice) -> list[str]:
    """Return a line for each variant: its time and processor time divided by those of hf_reward.

    Steps of a round are compared with the same steps of the other side in that round.
    """
    ours = [row for row in rows if row["side"] == "hf_reward" and "error" not in row]
    lines = []
    for side in VARIANTS:
        theirs = [row for row in rows if row["side"] == side and "error" not in row]
        if ours and len(theirs) == len(ours):
            ratios = {
                name: paired_ratio(_flat(theirs, key, part), _flat(ours, key, part))
                for name, key in (("time", "seconds"), ("processor time", "cpu_seconds"))
            }
            text = ", ".join(
                f"{name} {mean:.2f} ({low:.2f} to {high:.2f})" for name, (mean, low, high) in ratios.items()
            )
            lines.append(f"{side} / hf_reward: {text}")
    return lines


def _flat(rows: list[dict[str, Any]], key: str, part: slice) -> list[float]:
    return [seconds for row in rows for seconds in row[key][part]]


def paired_ratio(first: list[float], second: list[float]) -> tuple[float, float, float]:
    """Return the geometric mean of the ratios of paired times, with its 95% t-interval (NaN for one pair)."""
    logs = np.log(first) - np.log(second)
    error = stats.sem(logs) if len(logs) > 1 else float("nan")
    half = error * stats.t.ppf(0.975, len(logs) - 1)
    mean = float(logs.mean())
    return float(np.exp(mean)), float(np.exp(mean - half)), float(np.exp(mean + half))


def training_caption(geometry: str, cases: list[Case], report: dict[str, Any]) -> str:
    """Return the caption: machine, definitions and lengths of rows."""
    about, settings = report["machine"], report["settings"]
    device = about["gpu"] or f"{about['cpu']}, {about['cores']} cores"
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines = [
        f"{device}; {versions}; {settings['rounds']} rounds of {settings['steps']} counted steps; max_length "
        f"{settings['max_length']}; matmul rate {matmul_rate(report, geometry) / 1e9:,.0f} GFLOP/s",
        "CPU time: processor seconds of all threads for a pair, which other programs on the machine affect less",
        "computed: tokens through the backbone, padding included; useful: without padding, a shared prefix once",
        "useful / matmul rate: FLOP of useful tokens, 6 x parameters without embeddings (LoRA 4, frozen 2) and causal "
        "attention, over the median rate of square matmuls before and after",
    ]
    return "\n".join([*lines, *row_lines(report["rows"][geometry], cases, settings["data"])])


def row_lines(rows: dict[str, dict[str, Any]], cases: list[Case], data: str | None) -> list[str]:
    """Return lines with the lengths of rows; cases with the same rows share a line."""
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
