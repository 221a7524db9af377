"""Coverage of the package's intervals and false-alarm rates of its tests, by simulation.

    python recipes/studies/coverage.py --out runs/coverage.jsonl   # all tables of docs/reference/statistics.md
    python recipes/studies/coverage.py --runs 100 --only slope

Rewards are simulated with a known truth: prompts with 1 or 8 pairs, where the 8 are independent, of an ability that
varies between prompts, or copies of one pair; calibrated models, and models that are over- or underconfident by a
factor of two. Each number is computed by the package's own function. An interval should cover the truth in 95% of runs,
and a test at the 5% level should reject a true null hypothesis in at most 5%. Monte-Carlo standard errors are
sqrt(p (1 - p) / runs). "too few" means that the package gives no interval or verdict because there are too few prompts.
Cells that `--out` has are not computed again, so a run can be interrupted.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from coverage_audit import AUDIT
from coverage_calibration import CALIBRATION
from coverage_rates import RATES
from coverage_setting import CLUSTERS, KINDS, Number, Setting, Tally

NUMBERS: dict[str, Number] = RATES | CALIBRATION | AUDIT
RUNS = 400
Cell = dict[str, Any]


def measure(name: str, setting: Setting, runs: int, seed: int) -> Tally:
    """Run one simulation.

    Args:
        name: One of `NUMBERS`.
        setting: Prompts and rows.
        runs: Number of runs.
        seed: Random seed.

    Returns:
        The counts.
    """
    random = np.random.default_rng([seed, *name.encode(), setting.clusters, KINDS.index(setting.kind)])
    tally = Tally()
    for _ in range(runs):
        NUMBERS[name].simulate(setting, random, tally)
    tally.settle()
    return tally


def cell_of(name: str, kind: str, clusters: int, runs: int, seed: int) -> Cell:
    """Return one cell of the table as JSON: coverage, false alarms, the share of runs without a result, and a ratio."""
    start = time.process_time()
    tally = measure(name, Setting(clusters, kind), runs, seed)
    enough = [found if len(found) >= runs / 10 else [] for found in (tally.held, tally.alarms)]
    held, alarms = (float(np.mean(found)) if found else None for found in enough)
    ratio = float(np.divide(*np.mean(tally.ratios, axis=0))) if tally.ratios else None
    about = {"number": name, "kind": kind, "clusters": clusters, "runs": runs, "seed": seed}
    spent = round(time.process_time() - start, 2)
    return about | {"held": held, "alarms": alarms, "withheld": tally.withheld / runs, "ratio": ratio, "cpu_s": spent}


def cells(names: Sequence[str], runs: int, seed: int, out: Path | None) -> list[Cell]:
    """Return all cells of some numbers; cells missing in `out` are computed by two processes, the longest first."""
    lines = out.read_text(encoding="utf-8").splitlines() if out is not None and out.is_file() else []
    known = {key_of(cell): cell for cell in map(json.loads, lines)}
    jobs = [
        (name, kind, count, runs, seed) for count in CLUSTERS[::-1] for name in names for kind in NUMBERS[name].kinds
    ]
    with ProcessPoolExecutor(2) as pool:
        for done in as_completed([pool.submit(cell_of, *job) for job in jobs if job not in known]):
            known[key_of(done.result())] = done.result()
            if out is not None:
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(done.result()) + "\n")
    return [known[job] for job in jobs]


def key_of(cell: Cell) -> tuple[str, str, int, int, int]:
    """Return the key of a cell."""
    return cell["number"], cell["kind"], cell["clusters"], cell["runs"], cell["seed"]


# --- tables ----------------------------------------------------------------------------------------------------------


def complete_table(found: Sequence[Cell]) -> Iterator[str]:
    """Yield a row per number and kind of prompt: coverage / false alarms by number of prompts."""
    yield "| number | rows of a prompt | " + " | ".join(f"{count} prompts" for count in CLUSTERS) + " |"
    yield "|---|---|" + "---|" * len(CLUSTERS)
    for name in dict.fromkeys(cell["number"] for cell in found):
        for kind in NUMBERS[name].kinds:
            row = {cell["clusters"]: cell for cell in found if (cell["number"], cell["kind"]) == (name, kind)}
            yield f"| {name} | {kind} | " + " | ".join(_shown([row[count]]) for count in CLUSTERS) + " |"


def short_table(found: Sequence[Cell]) -> Iterator[str]:
    """Yield a row per number: lowest to highest coverage / highest rate of false alarms over the kinds of prompts."""
    yield "| number | " + " | ".join(f"{count} prompts" for count in CLUSTERS) + " |"
    yield "|---|" + "---|" * len(CLUSTERS)
    for name in dict.fromkeys(cell["number"] for cell in found):
        columns = [
            [cell for cell in found if (cell["number"], cell["clusters"]) == (name, count)] for count in CLUSTERS
        ]
        yield f"| {name} | " + " | ".join(map(_shown, columns)) + " |"


def _shown(some: Sequence[Cell]) -> str:
    ratios, held, alarms = (
        [cell[key] for cell in some if cell[key] is not None] for key in ("ratio", "held", "alarms")
    )
    if ratios:
        return _between(ratios, ".2f")
    if not held and (not alarms or not any(alarms)) and any(cell["withheld"] for cell in some):
        return "too few"
    return f"{_between(held, '.3f')} / {_between([max(alarms)], '.3f')}" if alarms else f"{_between(held, '.3f')} / -"


def _between(values: Sequence[float], form: str) -> str:
    ends = [format(each, form).removeprefix("0") for each in (min(values), max(values))] if values else ["-"]
    return ends[0] if ends[0] == ends[-1] else " to ".join(ends)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--only", default="", help="only numbers whose name contains this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file of finished cells; new ones are appended")
    args = parser.parse_args()
    names = [name for name in NUMBERS if args.only in name]
    start = time.perf_counter()
    found = cells(names, args.runs, args.seed, args.out)
    for table in (short_table, complete_table):
        print("\n".join(table(found)), end="\n\n", flush=True)
    error = np.sqrt(0.05 * 0.95 / args.runs)
    print(f"Coverage / false alarms at 5%; {args.runs} runs per cell, Monte-Carlo standard error {error:.3f}.")
    spent = sum(cell["cpu_s"] for cell in found)
    print(f"{spent:.0f} CPU seconds, {time.perf_counter() - start:.0f} s now", file=sys.stderr)


if __name__ == "__main__":
    main()
