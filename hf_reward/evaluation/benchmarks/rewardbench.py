"""RewardBench: chosen against rejected, in four sections. Subsets are weighted as in the version of 2024.

Source: Lambert et al. (2024); github.com/allenai/reward-bench, `rewardbench/constants.py` and
`rewardbench/utils.py:calculate_scores_per_section`. A tie is wrong.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_reward.evaluation.benchmarks.base import (
    Benchmark,
    Comparison,
    HubSource,
    Means,
    Outcome,
    RowCredits,
    average,
    pair_credit,
    present,
)
from hf_reward.evaluation.benchmarks.row_fields import one_of, text, turns
from hf_reward.metrics.arrays import FloatArray

WEIGHTS: dict[str, dict[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,
        **dict.fromkeys(["hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"], 164),
    },
}
"""Section -> subset -> weight: the number of rows, except for math-prm, which has the weight of all code subsets."""

PRIOR_SETS = ("anthropic_helpful", "anthropic_hhh", "shp", "summarize")
_ROWS = {name: weight for section in WEIGHTS.values() for name, weight in section.items()} | {"math-prm": 447}


def section_scores(accuracies: Means, table: Mapping[str, Mapping[str, int]] = WEIGHTS) -> dict[str, FloatArray]:
    """Compute the sections of the original table.

    Args:
        accuracies: Accuracy of each available subset.
        table: Section -> subset -> weight.

    Returns:
        Section -> weighted mean of the accuracies of its available subsets; 0 for a section without any.
    """
    scores = {}
    for section, weights in table.items():
        found = present(accuracies, weights)
        weighted = sum((weights[name] * found[name] for name in found), start=np.array(0.0))
        scores[section] = weighted / max(1, sum(weights[name] for name in found))
    return scores


class RewardBench(Benchmark):
    """RewardBench 1."""

    name = "rewardbench"
    title = "RewardBench"
    checked = "sections and their mean: equal to the original code's outputs; prior sets: built from the published rule"
    order = "chosen, rejected; id is `subset/id`"
    hub = (HubSource("allenai/reward-bench", split="filtered"),)
    extra = tuple(HubSource("allenai/preference-test-sets", split=name, subset=name) for name in PRIOR_SETS)
    local = "the 2,985 rows of allenai/reward-bench (split filtered) as jsonl or parquet"
    columns = ("id", "prompt", "chosen", "rejected", "subset")
    counts = _ROWS
    optional = PRIOR_SETS

    def read(self, row: Mapping[str, Any], file: str, place: int) -> Comparison:
        """See `Benchmark.read`."""
        subset = one_of(row["subset"], "subset", (*_ROWS, *PRIOR_SETS))
        return Comparison(
            id=f"{subset}/{row['id']}",
            prompt=turns(row, "prompt"),
            responses=[text(row, "chosen"), text(row, "rejected")],
            ranks=[0, 1],
            subset=subset,
        )

    def credit(self, comparison: Comparison, rewards: FloatArray, tie: float) -> RowCredits:
        """See `Benchmark.credit`."""
        return {comparison.subset: pair_credit(rewards[0], rewards[1], tie)}

    def combine(self, means: Means) -> Outcome:
        """Mean of the four sections; with all prior sets also (2 * their sum + mean of the prior sets) / 9."""
        scores = section_scores(means)
        sections = {name: scores[name] for name, weights in WEIGHTS.items() if present(means, weights)}
        prior, measures = present(means, PRIOR_SETS), {}
        if prior:
            measures["prior_sets"] = average(prior.values())
        if len(prior) == len(PRIOR_SETS) and len(sections) == len(WEIGHTS):
            measures["overall_with_prior_sets"] = (2 * sum(sections.values()) + measures["prior_sets"]) / 9
        return Outcome(average(sections.values()), sections, dict(means), measures)

    def notes(self, comparisons: Sequence[Comparison]) -> list[str]:
        """See `Benchmark.notes`."""
        there = {each.subset for each in comparisons}
        empty = [section for section, weights in WEIGHTS.items() if not there & weights.keys()]
        return [f"The original code prints 0 for a section without rows ({', '.join(empty)})."] if empty else []
