"""Two runs of a benchmark on the same rows -> their paired difference, with interval and p-value by prompt."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from hf_reward.evaluation.benchmarks.base import Outcome
from hf_reward.evaluation.benchmarks.registry import benchmark_named
from hf_reward.evaluation.benchmarks.spreads import OVERALL, Compared, Number, compared, mean_credits
from hf_reward.metrics.counts import counted
from hf_reward.metrics.intervals import FEW_CLUSTERS


def compare(a: str | Path, b: str | Path) -> dict[str, Any]:
    """Compare two runs.

    Interval and p-value come from the same jackknife over prompts. McNemar's exact test uses only the rows on which the
    two disagree and assumes independent rows, so it is computed only if every prompt has one row.

    Args:
        a: Folder of a run, with `results.json` and `credits.jsonl`.
        b: Folder of the other run.

    Returns:
        `difference` is A's overall minus B's, with `ci` and `p_value`; the same for each section; `mcnemar`, None if
        prompts repeat; and `too_few_prompts`.

    Raises:
        FileNotFoundError: If a folder has no finished run.
        ValueError: If the runs are of different benchmarks or rows.
    """
    first, second = _read(Path(a)), _read(Path(b))
    _require_same_rows(first, second, Path(a), Path(b))
    benchmark = benchmark_named(first.results["benchmark"])
    clusters = [row["cluster"] for row in first.rows]
    points = [benchmark.combine(mean_credits(run.credits)) for run in (first, second)]
    found = compared(benchmark, first.credits, second.credits, clusters)
    num_clusters = len(set(clusters))
    return {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "a": _summary(first, points[0]),
        "b": _summary(second, points[1]),
        **_difference(found[OVERALL]),
        "sections": {
            name: {"a": float(points[0].sections[name]), "b": float(points[1].sections[name])}
            | _difference(found[Number("sections", name)])
            for name in points[0].sections
        },
        "mcnemar": _mcnemar(first, second) if num_clusters == len(first.rows) else None,
        "n": len(first.rows),
        "prompts": num_clusters,
        "too_few_prompts": num_clusters < FEW_CLUSTERS,
        "partial": first.results["partial"],
        "ci_method": f"Newcombe, paired, with a jackknife over {counted(num_clusters, 'prompt')} and t",
    }


def mcnemar(a_right: Sequence[bool], b_right: Sequence[bool]) -> dict[str, Any]:
    """Run McNemar's exact test: among rows on which two models disagree, is each equally often right?

    Args:
        a_right: Whether A is right, for each row.
        b_right: Whether B is right, for each row.

    Returns:
        Number of rows on which only A and only B is right, and the two-sided `p_value` (1 without disagreement).

    Raises:
        ValueError: If the numbers of rows differ.

    Source:
        McNemar (1947); the exact form is the sign test on the rows with disagreement.
    """
    if len(a_right) != len(b_right):
        raise ValueError(
            f"Both models need results for the same rows, but have {len(a_right)} and {len(b_right)} results."
        )
    only_a = sum(first and not second for first, second in zip(a_right, b_right, strict=True))
    only_b = sum(second and not first for first, second in zip(a_right, b_right, strict=True))
    value = stats.binomtest(only_a, only_a + only_b, 0.5).pvalue if only_a + only_b else 1.0
    return {"only_a_right": only_a, "only_b_right": only_b, "p_value": float(value)}


@dataclass(frozen=True)
class _Run:
    results: Mapping[str, Any]
    rows: list[dict[str, Any]]

    @property
    def credits(self) -> list[dict[str, float]]:
        return [row["credits"] for row in self.rows]


def _read(folder: Path) -> _Run:
    files = [folder / name for name in ("results.json", "credits.jsonl")]
    absent = [str(file) for file in files if not file.is_file()]
    if absent:
        raise FileNotFoundError(f"There is no {' and no '.join(absent)}. Pass the folder of a finished run (`--out`).")
    try:
        results = json.loads(files[0].read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in files[1].read_text(encoding="utf-8").split("\n") if line]
    except json.JSONDecodeError as error:
        raise ValueError(
            f"A file of {folder} is not JSON ({error}). Run the benchmark again with `--scores`."
        ) from None
    return _Run(results, sorted(rows, key=lambda row: row["id"]))


def _require_same_rows(first: _Run, second: _Run, a: Path, b: Path) -> None:
    names = [run.results["benchmark"] for run in (first, second)]
    if names[0] != names[1]:
        raise ValueError(f"{a} is a run of {names[0]} and {b} one of {names[1]}. Compare two runs of one benchmark.")
    ids = [{row["id"] for row in run.rows} for run in (first, second)]
    if ids[0] != ids[1]:
        raise ValueError(
            f"The runs count different rows: {len(ids[0] - ids[1])} are only in {a}, {len(ids[1] - ids[0])} only in "
            f"{b}. Choose the same subsets, and the same rule for rows that could not be scored (`--unscored wrong`)."
        )
    if first.results["data_hash"] != second.results["data_hash"]:
        raise ValueError(f"{a} and {b} have the same ids but different texts or labels. Run both on the same data.")


def _summary(run: _Run, point: Outcome) -> dict[str, Any]:
    return {"model": run.results.get("model"), "overall": float(point.overall)}


def _difference(found: Compared) -> dict[str, Any]:
    return {"difference": found.difference, "ci": found.interval.bounds, "p_value": found.p_value}


def _mcnemar(first: _Run, second: _Run) -> dict[str, Any]:
    return mcnemar([row["right"] for row in first.rows], [row["right"] for row in second.rows])
