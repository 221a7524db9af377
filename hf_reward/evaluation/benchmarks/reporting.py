"""Scores -> the files of a run: `results.json`, and `credits.jsonl` for comparisons. No model is loaded here."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_reward.evaluation.benchmarks.base import Benchmark
from hf_reward.evaluation.benchmarks.data import BenchmarkData, DataChoice, load_benchmark_data
from hf_reward.evaluation.benchmarks.registry import benchmark_named
from hf_reward.evaluation.benchmarks.results import ResultRule, credit_lines, make_results, rows_that_count, write_json
from hf_reward.evaluation.benchmarks.scores_file import RowScores, read_scores

SCORES_FILE, RESULTS_FILE, CREDITS_FILE, RUN_FILE = "scores.jsonl", "results.json", "credits.jsonl", "run.json"


def results_from_scores(
    name: str,
    data: Any,
    scores_file: str | Path,
    *,
    out: str | Path | None = None,
    choice: DataChoice | None = None,
    rule: ResultRule | None = None,
) -> dict[str, Any]:
    """Compute results from stored scores, without a model.

    Args:
        name: One of `registry.NAMES`.
        data: As for `run_benchmark`.
        scores_file: Lines of `{"id": ..., "rewards": [...]}`, one per data row, in the benchmark's response order.
        out: Folder for `results.json` and `credits.jsonl`; None writes no files.
        choice: As for `run_benchmark`.
        rule: Rule for rows that could not be scored.

    Returns:
        The content of `results.json`.

    Raises:
        ValueError: If the scores do not belong to the data's rows, or a reward is not finite.
    """
    benchmark, loaded = load_named(name, data, choice)
    scores = read_scores(scores_file, loaded.comparisons, loaded.not_compared)
    about = _model_of_run(Path(scores_file), loaded)
    return finish_run(benchmark, loaded, scores, None if out is None else Path(out), rule, about)


def load_named(name: str, data: Any, choice: DataChoice | None) -> tuple[Benchmark, BenchmarkData]:
    """Find a benchmark and read its rows.

    Args:
        name: One of `registry.NAMES`.
        data: As for `results_from_scores`; by default the `data` of `choice`.
        choice: Selection of the data.

    Returns:
        The benchmark and its rows.

    Raises:
        ValueError: If there is no such benchmark, or its data is unusable.
    """
    choice = choice or DataChoice()
    choice = choice if data is None else replace(choice, data=data)
    benchmark = benchmark_named(name, choice.layout, choice.columns)
    return benchmark, load_benchmark_data(benchmark, choice)


def finish_run(
    benchmark: Benchmark,
    data: BenchmarkData,
    scores: RowScores,
    folder: Path | None,
    rule: ResultRule | None,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Compute the results and write them.

    Args:
        benchmark: The benchmark.
        data: Its rows.
        scores: Their rewards.
        folder: Folder for the files; None writes no files.
        rule: Rule for rows that could not be scored.
        about: Facts about the model.

    Returns:
        The content of `results.json`.

    Raises:
        ValueError: If no row could be scored.
    """
    rule = rule or ResultRule()
    rows = rows_that_count(data, scores, rule)
    results = make_results(benchmark, data, rows, rule, about)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RESULTS_FILE, results)
        (folder / CREDITS_FILE).write_text("".join(credit_lines(benchmark, rows)), encoding="utf-8")
    return results


def read_run(path: Path) -> dict[str, Any]:
    """Return the content of a `run.json`, empty if there is none or it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _model_of_run(scores_file: Path, data: BenchmarkData) -> dict[str, Any]:
    """Return facts about the model from the run that wrote a scores file, if it used the same rows."""
    run = read_run(scores_file.parent / RUN_FILE) if scores_file.name == SCORES_FILE else {}
    if run.get("data_hash") != data.content_hash or not isinstance(run.get("fingerprint"), dict):
        return {"model": None, "fingerprint": None, "prompts_cut": None}
    fingerprint = run["fingerprint"]
    return {"model": fingerprint.get("model"), "fingerprint": fingerprint, "prompts_cut": run.get("prompts_cut")}
