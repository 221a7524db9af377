"""The Markdown report of `gpu.py`: one section for each recorded stage."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

PEAKS = {"H100 PCIe": 756e12, "H100 NVL": 835e12, "H200 NVL": 835e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}
PEAKS |= {"L4": 121e12}
"""Dense bfloat16 FLOP/s from NVIDIA's data sheets, by part of the device's name; the first that matches counts."""
GIB = 2**30


def write_report(out: Path) -> None:
    """Write report.md from the records in a folder."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*.json"))]
    found = {record["stage"]: record for record in records if "stage" in record}
    (out / "report.md").write_text(report(found), encoding="utf-8")


def report(records: dict[str, dict[str, Any]]) -> str:
    """Return the report.

    Args:
        records: The records of `gpu.run_stage`, by stage.
    """
    about = records.get("machine", {}).get("result") or {}
    sections: dict[str, Callable[[Any, dict[str, Any]], list[str]]] = {
        "kernels": _kernels,
        "cuda_tests": lambda found, _: ["## CUDA tests", "", f"`pytest -m cuda`: {found['summary']}"],
        "parity": _parity,
        "quickstart": _quickstart,
        **{name: _training for name in sorted(records) if name.startswith("training_")},
        "scoring": _scoring,
        "fit": _fit,
    }
    # Stages in their order, and further records after them.
    ordered = {name: records[name] for name in ("machine", *sections, *records) if name in records}
    lines = ["# GPU run", "", _machine_line(about), "", *_status_table(ordered)]
    for name, section in sections.items():
        result = records.get(name, {}).get("result")
        if result:
            lines += ["", *section(result, about)]
    return "\n".join(lines) + "\n"


def peak_of(gpu: str | None) -> float | None:
    """Return the peak FLOP/s of a GPU, or None if it is not in the table."""
    return next((peak for name, peak in PEAKS.items() if re.search(rf"\b{name}\b", gpu or "")), None)


def table(headings: list[str], rows: list[list[Any]]) -> list[str]:
    """Return the lines of a Markdown table."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in [headings, *rows]]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], f"|{'---|' * len(headings)}", *lines[1:]]


def _machine_line(about: dict[str, Any]) -> str:
    if about.get("gpu"):
        device = f"{about['gpu']}, {about['gpu_bytes'] / GIB:.0f} GiB, CUDA {about['cuda']}"
    else:
        device = f"No GPU: {about.get('cpu')}, {about.get('cores')} cores"
    versions = [f"{name} {number or 'not installed'}" for name, number in about.get("versions", {}).items()]
    return f"{'; '.join([device, ', '.join(versions)])}. Command: `python tests/performance/gpu.py`."


def _status_table(records: dict[str, dict[str, Any]]) -> list[str]:
    rows = [[name, record["status"], f"{record['seconds']:.0f}", record["message"]] for name, record in records.items()]
    return table(["stage", "status", "seconds", "message"], rows)


def _kernels(found: list[dict[str, Any]], _: dict[str, Any]) -> list[str]:
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in found:
        windows = "with and without window" if row["way"] != "cascade" else "without window"
        groups.setdefault((row["way"], row["dtype"], str(row["head_size"]), windows), []).append(row)
    rows = []
    for key, members in groups.items():
        errors = [row["error"] for row in members if row["error"] is not None]
        off = {row["off"] for row in members if row["off"]}
        rows.append([*key, len(errors), f"{max(errors):.1e}" if errors else "-", "; ".join(sorted(off)) or "-"])
    text = "Largest |difference| / |value| of output and gradients from SDPA in float32; 8 heads, 8, 2 and 1 of keys."
    headings = ["attention", "dtype", "head size", "windows", "comparisons", "largest error", "not run"]
    return ["## Attention kernels", "", text, "", *table(headings, rows)]


def _parity(found: dict[str, Any], _: dict[str, Any]) -> list[str]:
    rows = [
        [way, kind, f"{packed:.2e}", f"{padded:.2e}", f"{packed / padded:.2f}"]
        for way, errors in found["errors"].items()
        for kind, (packed, padded) in errors.items()
    ]
    text = f"{found['model']}; {found['rows']}. Errors of bfloat16, relative to padded batches in float32."
    headings = ["attention", "value", "packed", "padded", "ratio"]
    return ["## Packed and padded batches", "", text, "", *table(headings, rows)]


def _quickstart(found: dict[str, Any], _: dict[str, Any]) -> list[str]:
    names = ("process_seconds", "train_runtime", "train_loss", "eval_loss", "eval_accuracy")
    rows = [[name, f"{float(found[name]):.4g}"] for name in names if name in found]
    return ["## Quick start", "", *table(["value", ""], rows)]


def _training(found: dict[str, Any], about: dict[str, Any]) -> list[str]:
    geometry = found["settings"]["geometry"][0]
    peak, rows = peak_of(about.get("gpu")), []
    rates = {(row["case"], row["side"]): _pairs_per_second(row) for row in found["measurements"]}
    for row in found["measurements"]:
        label, rate = [row["case"], row["side"]], rates[row["case"], row["side"]]
        if rate is None:
            rows.append([*label, row["error"], *"------"])
            continue
        useful = rate * row["useful_tokens"] / row["pairs"]
        flops = useful * flops_per_useful_token(found, geometry, row["case"])
        computed = sum(row["tokens_computed"]) / sum(row["seconds"])
        other = rates.get((row["case"], "TRL"))
        label += [f"{rate:.3g}", f"{computed:,.0f}", f"{useful:,.0f}", f"{row['peak_bytes'] / GIB:.1f}"]
        label += [
            f"{flops / 1e12:.3g}",
            f"{flops / peak:.1%}" if peak else "-",
            f"{rate / other:.2f}" if other else "-",
        ]
        rows.append(label)
    headings = ["case", "side", "pairs/s", "tokens/s computed", "useful tokens/s", "peak memory, GiB"]
    headings += ["TFLOP/s, useful", "MFU", "x TRL"]
    text = "Useful tokens: without padding, a shared prefix once. MFU: useful FLOP/s over the dense bfloat16 peak"
    text += f" ({peak / 1e12:.0f} TFLOP/s). " if peak else ", which is not known for this device. "
    text += f"One round; {found['settings']['steps']} steps."
    return [f"## Training, {geometry}", "", text, "", *table(headings, rows)]


def flops_per_useful_token(found: dict[str, Any], geometry: str, case: str) -> float:
    """Return the operations of training as in `speed_training.operations_share`; this module does without torch.

    Args:
        found: JSON of `speed.py train`.
        geometry: Key of its `operations`.
        case: a, b, c, or e, which trains with LoRA.
    """
    size, attended = found["operations"][geometry], found["rows"][geometry][case]["attended_per_token"]
    return (4 if case == "e" else 6) * size["parameters"] + 6 * size["attention"] * attended


def _pairs_per_second(row: dict[str, Any]) -> float | None:
    return None if "error" in row else row["pairs"] / sum(row["seconds"])


def _scoring(found: dict[str, Any], _: dict[str, Any]) -> list[str]:
    ours = median(found["seconds"]["hf_reward"])
    rows = [
        [name, f"{found['rows'] / median(times):,.1f}", f"{median(times) / ours:.2f}"]
        for name, times in found["seconds"].items()
    ]
    text = f"{found['geometry']}, {found['dtype']}, best of {found['answers']}, {found['rows']} rows; "
    text += f"largest difference of rewards {max(found['largest_difference'].values()):.1e}."
    return ["## Scoring", "", text, "", *table(["side", "rows/s", "speed-up of hf_reward"], rows)]


def _fit(found: dict[str, Any], _: dict[str, Any]) -> list[str]:
    rows = []
    for method, each in found.items():
        tried = each.get("attempts", {})
        best = tried.get(each.get("largest"), {})
        memory = f"{best['peak_bytes'] / GIB:.1f}" if best else "-"
        parameters = f"{best['parameters'] / 1e9:.2f}" if best else "-"
        outcome = each.get("skipped") or each.get("error") or each.get("largest") or "none"
        does_not = ", ".join(name for name, one in tried.items() if not one["fits"]) or "-"
        rows.append([method, outcome, parameters, memory, does_not])
    text = "One step of 8 rows as in case a, at most 512 tokens, with activation checkpointing and AdamW."
    headings = ["method", "largest model that fits", "parameters, 10^9", "peak memory, GiB", "does not fit"]
    return ["## Largest model that fits", "", text, "", *table(headings, rows)]
