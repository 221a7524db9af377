"""Comparisons and rewards -> `results.json`: the benchmark's numbers with baselines, ties and missing parts."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_reward.data.atomic_file import write_atomic
from hf_reward.data.path_safety import with_shown_model
from hf_reward.data.preference_row import Response
from hf_reward.data.row_text import response_characters, response_words
from hf_reward.evaluation.benchmarks.base import Benchmark, Comparison, RowCredits
from hf_reward.evaluation.benchmarks.data import BenchmarkData
from hf_reward.evaluation.benchmarks.response_interval import shared_responses
from hf_reward.evaluation.benchmarks.scores_file import RowScores
from hf_reward.evaluation.benchmarks.spreads import (
    OVERALL,
    Number,
    Outcomes,
    compared,
    leave_out,
    mean_credits,
    outcome_of,
)
from hf_reward.metrics.arrays import FloatArray
from hf_reward.metrics.counts import counted
from hf_reward.metrics.intervals import FEW_CLUSTERS
from hf_reward.metrics.preference import not_shown

LENGTH_RULE = "longer response (characters)"
CARD_FILE = "benchmark_results.json"
"""File in the model folder with a list of results, for the model card."""
_SHOWN_IDS = 10
_CHANCE_DRAWS = 50


@dataclass(frozen=True, kw_only=True)
class ResultRule:
    """Rule for rows that could not be scored."""

    unscored: str = "leave_out"
    """`leave_out`, or `wrong` to count all of their comparisons as wrong."""

    def __post_init__(self) -> None:
        if self.unscored not in ("leave_out", "wrong"):
            raise ValueError(f"`unscored` must be 'leave_out' or 'wrong', but is {self.unscored!r}.")


@dataclass(frozen=True)
class ScoredRows:
    """The rows that count, with their rewards."""

    comparisons: list[Comparison]
    rewards: list[FloatArray]
    unscored: dict[str, str]
    """Id of a row that could not be scored -> why."""
    tokens: list[list[int] | None] = field(default_factory=list)
    """Tokens of each response, None if unknown."""


def rows_that_count(data: BenchmarkData, scores: RowScores, rule: ResultRule) -> ScoredRows:
    """Apply the rule for rows that could not be scored.

    Args:
        data: The rows.
        scores: Their rewards.
        rule: The rule.

    Returns:
        The rows that count.

    Raises:
        ValueError: If no row could be scored.
    """
    comparisons, rewards, unscored, kept = [], [], {}, []
    tokens = scores.tokens or [None] * len(scores.rewards)
    for comparison, found, counts in zip(data.comparisons, scores.rewards, tokens, strict=True):
        if np.isnan(found).any():
            problem = scores.problems.get(comparison.id, "no reward")
            unscored[comparison.id] = f"{problem} ({comparison.place})" if comparison.place else problem
            if rule.unscored == "leave_out":
                continue
            # Better responses get lower rewards, so every comparison is wrong.
            found = np.asarray(comparison.ranks, dtype=np.float64)
        comparisons.append(comparison)
        rewards.append(found)
        kept.append(counts)
    if not comparisons:
        first = next(iter(unscored.values()))
        raise ValueError(
            f"None of the {counted(len(unscored), 'row')} could be scored. The first: {first.removesuffix('.')}."
        )
    return ScoredRows(comparisons, rewards, unscored, kept)


def make_results(
    benchmark: Benchmark, data: BenchmarkData, rows: ScoredRows, rule: ResultRule, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Compute the content of `results.json`.

    Args:
        benchmark: The benchmark.
        data: Its data.
        rows: The rows that count.
        rule: Rule for rows that could not be scored.
        about: Facts about the model: `model`, `fingerprint`, ...

    Returns:
        The results; docs/guides/benchmarks.md describes each key.
    """
    clusters = [each.cluster for each in rows.comparisons]
    num_clusters = len(set(clusters))
    credits = benchmark.credits(rows.comparisons, rows.rewards, 0.0)
    found = leave_out(benchmark, credits, clusters)
    half = outcome_of(benchmark, rows.comparisons, rows.rewards, 0.5)
    ties, comparisons = _count_ties(rows)
    partial = benchmark.missing(data.comparisons)
    if rows.unscored and rule.unscored == "leave_out":
        partial.append(f"{counted(len(rows.unscored), 'row')} that could not be scored")
    overall = float(found.point.overall)
    return {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "dataset_id": data.dataset_id,
        "overall": _plain(overall),
        "overall_is": benchmark.overall_is,
        "ci": found.interval(OVERALL).bounds,
        "ci_method": f"Wilson with a jackknife over {counted(num_clusters, 'prompt')} and t",
        "too_few_prompts": num_clusters < FEW_CLUSTERS,
        "overall_half_credit": _plain(float(half.overall)),
        **_parts(found),
        "sections_half_credit": _numbers(half.sections),
        "n": len(rows.comparisons),
        "comparisons": comparisons,
        "prompts": num_clusters,
        "ties": ties,
        "tie_rate": ties / comparisons if comparisons else None,
        **_length_baseline(benchmark, rows),
        "shared_responses": shared_responses(rows.comparisons, rows.rewards) if benchmark.name == "pairs" else None,
        "over_length": (over := over_length(benchmark, rows, credits, clusters)),
        "chance": (chance := chance_of(benchmark, rows.comparisons)),
        "doubts": _doubts(found, over, chance),
        "partial": partial,
        "unscored": _unscored(rows, rule),
        "rows_left_out": data.left_out,
        "notes": benchmark.notes(rows.comparisons),
        "checked": benchmark.checked,
        "not_verified": benchmark.not_verified,
        "response_order": benchmark.order,
        "data": data.source,
        "data_name": data.name,
        "data_revision": data.revision,
        "data_hash": data.content_hash,
        **with_shown_model(about),
    }


def credit_lines(benchmark: Benchmark, rows: ScoredRows) -> list[str]:
    """Return the lines of `credits.jsonl` for comparisons: credits of each row, and whether it is right."""
    credits = benchmark.credits(rows.comparisons, rows.rewards, 0.0)
    return [
        json.dumps(
            {
                "id": comparison.id,
                "cluster": comparison.cluster,
                "right": benchmark.is_right(comparison, rewards),
                "credits": earned,
            },
            ensure_ascii=False,
        )
        + "\n"
        for comparison, rewards, earned in zip(rows.comparisons, rows.rewards, credits, strict=True)
    ]


def record_for_card(folder: str | Path, results: Sequence[Mapping[str, Any]]) -> Path:
    """Write results into the model folder for its card and replace earlier results of the same benchmark.

    Results on own data with a different name are kept.

    Args:
        folder: The model's folder.
        results: Results of benchmarks.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the existing file is damaged.
    """
    path = Path(folder) / CARD_FILE
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent}. Name the model's own folder.")
    try:
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}). Remove it.") from None
    if not isinstance(earlier, list):
        raise ValueError(f"{path} must hold a list of results. Remove it.")
    new = {_identity(each) for each in results}
    kept = [each for each in earlier if not isinstance(each, dict) or _identity(each) not in new]
    write_json(path, [*kept, *results])
    return path


def _identity(result: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the key of a result in a card: a public benchmark, or own data of one name."""
    return result.get("benchmark"), result.get("data_name") or ""


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _parts(found: Outcomes) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    for name in ("sections", "subsets", "measures"):
        values = getattr(found.point, name)
        parts[name] = _numbers(values)
        parts[f"{name}_ci"] = {key: found.interval(Number(name, key)).bounds for key in values}
    return parts


def _length_baseline(benchmark: Benchmark, rows: ScoredRows) -> dict[str, Any]:
    lengths = _sizes(rows, response_characters)
    outcome = outcome_of(benchmark, rows.comparisons, lengths)
    return {
        "baselines": {LENGTH_RULE: _plain(float(outcome.overall))},
        "baseline_sections": {LENGTH_RULE: _numbers(outcome.sections)},
        "baseline_subsets": {LENGTH_RULE: _numbers(outcome.subsets)},
    }


def over_length(
    benchmark: Benchmark, rows: ScoredRows, credits: Sequence[RowCredits], clusters: Sequence[str]
) -> dict[str, Any]:
    """Compare the overall number with that of the strongest length rule, paired by prompt.

    Equal lengths earn half a point, as in training.

    Args:
        benchmark: The benchmark.
        rows: Its rows.
        credits: Credits of each row.
        clusters: Cluster of each row.

    Returns:
        `rule` (longer or shorter, in words, characters or, if every row has them, tokens), `score`, `difference`, `ci`
        and `p_value`. The difference to this rule has the lowest lower bound, so a model that exceeds this rule exceeds
        all of them (`metrics.compare_with_length`).
    """
    found = []
    units = {"words": _sizes(rows, response_words), "characters": _sizes(rows, response_characters)}
    if rows.tokens and all(each is not None for each in rows.tokens):
        units = {"tokens": [np.array(each, float) for each in rows.tokens], **units}
    for unit, lengths in units.items():
        for rule, sign in (("longer", 1), ("shorter", -1)):
            earned = benchmark.credits(rows.comparisons, [sign * each for each in lengths], 0.5)
            score = _plain(float(benchmark.combine(mean_credits(earned)).overall))
            difference = compared(benchmark, credits, earned, clusters)[OVERALL]
            numbers = {"difference": _plain(difference.difference), "ci": difference.interval.bounds}
            found.append({"rule": f"{rule} in {unit}", "score": score, **numbers, "p_value": difference.p_value})
    return min(found, key=lambda each: each["ci"][0] if each["ci"] else -1.0)


def _sizes(rows: ScoredRows, measure: Callable[[Response], int]) -> list[FloatArray]:
    return [np.array([measure(each) for each in row.responses], float) for row in rows.comparisons]


def _doubts(found: Outcomes, over: Mapping[str, Any], chance: float) -> list[str]:
    """Return a sentence for each baseline that the overall number is not shown to exceed."""
    low = (found.interval(OVERALL).bounds or [math.nan])[0]
    difference = math.nan if over["difference"] is None else over["difference"]
    words = not_shown(low, difference, *(over["ci"] or [math.nan, math.nan]), rule=over["rule"], chance=chance)
    return [f"{each[:1].upper()}{each[1:]}." for each in words]


def chance_of(benchmark: Benchmark, comparisons: Sequence[Comparison]) -> float:
    """Return the overall number of random rewards.

    Args:
        benchmark: The benchmark.
        comparisons: Its rows.

    Returns:
        The benchmark's constant, or the mean of 50 draws if it depends on the rows.
    """
    if benchmark.chance is not None:
        return benchmark.chance
    random, found = np.random.default_rng(0), []
    for _ in range(_CHANCE_DRAWS):
        rewards = [random.normal(size=len(each.responses)) for each in comparisons]
        found.append(outcome_of(benchmark, comparisons, rewards).overall)
    return float(np.mean(found))


def _count_ties(rows: ScoredRows) -> tuple[int, int]:
    """Return the number of (better, worse) pairs with equal rewards, and the number of all pairs."""
    ties = total = 0
    for comparison, rewards in zip(rows.comparisons, rows.rewards, strict=True):
        ranks = np.asarray(comparison.ranks)
        better = ranks[:, None] < ranks[None, :]
        total += int(better.sum())
        ties += int((better & (rewards[:, None] == rewards[None, :])).sum())
    return ties, total


def _unscored(rows: ScoredRows, rule: ResultRule) -> dict[str, Any]:
    shown = dict(list(rows.unscored.items())[:_SHOWN_IDS])
    return {"n": len(rows.unscored), "counted_as": rule.unscored, "first": shown}


def _numbers(values: Mapping[str, FloatArray]) -> dict[str, float | None]:
    return {name: _plain(float(value)) for name, value in values.items()}


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
