"""RewardMATH: one correct solution of a problem against nine wrong ones.

Source: Kim et al. (2024), arXiv 2410.01729; github.com/kimsh0507/RewardMATH_official, `src/evaluation/eval.py`
(`RewardMATHEvaluation`). A tie with a wrong solution is wrong. In the reciprocal rank, the correct solution ranks
behind the wrong ones that it ties with. The original code also prints an accuracy in which a tie is right.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hf_reward.evaluation.benchmarks.base import (
    Benchmark,
    Comparison,
    HubSource,
    Means,
    Outcome,
    RowCredits,
    best_of_credit,
)
from hf_reward.evaluation.benchmarks.row_fields import text, texts
from hf_reward.metrics.arrays import FloatArray
from hf_reward.metrics.counts import counted

PROBLEMS, SOLUTIONS = 483, 10
_ACCURACY = "accuracy"
_COLUMNS = ("problem_id", "problem", "eval_solution", "solution_type")


class RewardMATH(Benchmark):
    """RewardMATH."""

    name = "rewardmath"
    title = "RewardMATH"
    checked = (
        "accuracy, accuracy with ties as right, reciprocal rank: equal to the original code's outputs on the authors' "
        "scores of 18 models"
    )
    not_verified = "the Hub's split and columns (taken from the repository's sample file)"
    chance = 1 / SOLUTIONS
    order = "the ten solutions of a problem in the order of their rows; id is `problem_id`"
    hub = (HubSource("RewardMATH/RewardMATH", split="test"),)
    local = "the 4,830 rows of RewardMATH/RewardMATH, or RewardMATH_direct.json, with a row for each solution"
    columns = _COLUMNS

    def gather(self, rows: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """See `Benchmark.gather`: a row for each problem, with the solutions as lists."""
        problems: dict[Any, tuple[int, list[Any]]] = {}
        for place, row in enumerate(rows):
            problems.setdefault(row["problem_id"], (place, []))[1].append(row)
        for place, found in problems.values():
            lists = {name: [each[name] for each in found] for name in ("eval_solution", "solution_type")}
            yield place, {**found[0], **lists}

    def read(self, row: Mapping[str, Any], file: str, place: int) -> Comparison:
        """See `Benchmark.read`. The steps of a solution are joined by line breaks, as the original code does."""
        kinds = list(row["solution_type"])
        count, correct = len(kinds), kinds.count("chosen")
        if count != SOLUTIONS or correct != 1 or kinds.count("rejected") != SOLUTIONS - 1:
            raise ValueError(
                f"A problem needs 1 row with the `solution_type` 'chosen' and {SOLUTIONS - 1} with 'rejected', but "
                f"problem {row['problem_id']!r} has {counted(count, 'row')}, {correct} of them 'chosen'. Use the "
                "official file."
            )
        steps = [texts({"eval_solution": each}, "eval_solution") for each in row["eval_solution"]]
        return Comparison(
            id=str(row["problem_id"]),
            prompt=text(row, "problem"),
            responses=["\n".join(each) for each in steps],
            ranks=[0 if each == "chosen" else 1 for each in kinds],
        )

    def missing(self, comparisons: Sequence[Comparison]) -> list[str]:
        """See `Benchmark.missing`: there are no subsets."""
        return [] if len(comparisons) == PROBLEMS else [f"problems ({len(comparisons)}, published {PROBLEMS})"]

    def credit(self, comparison: Comparison, rewards: FloatArray, tie: float) -> RowCredits:
        """See `Benchmark.credit`. With half-credit, a correct solution that shares the highest reward gets 1/k."""
        place = comparison.ranks.index(0)
        shared = best_of_credit(rewards, place)
        at_least = int(np.sum(rewards >= rewards[place]))
        return {
            _ACCURACY: shared if tie or shared == 1 else 0.0,
            "accuracy_with_ties": float(shared > 0),
            "reciprocal_rank": 1 / at_least,
        }

    def combine(self, means: Means) -> Outcome:
        """Overall is the accuracy; the other numbers of the original code are measures."""
        return Outcome(means[_ACCURACY], {}, measures={n: mean for n, mean in means.items() if n != _ACCURACY})
