"""JudgeBench: pairs of answers, one of which is correct by an objective label.

Source: Tan et al. (2025); github.com/ScalerLab/JudgeBench, `utils/judges.py` and `utils/metrics.py`. A reward model's
verdict is A>B if A's reward is higher and B>A otherwise, so a tie is right where the label is B>A. The original also
compares each pair in both orders and counts it as correct only if both verdicts agree with the label, so a tie is
wrong. This score is reported as `two_games`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_reward.evaluation.benchmarks.base import (
    Benchmark,
    Comparison,
    HubSource,
    Means,
    Outcome,
    RowCredits,
    pair_credit,
    present,
)
from hf_reward.evaluation.benchmarks.row_fields import one_of, text
from hf_reward.metrics.arrays import FloatArray

SOURCES = ("mmlu-pro", "livebench-reasoning", "livebench-math", "livecodebench")
_COUNTS = {
    "gpt": dict(zip(SOURCES, (154, 98, 56, 42), strict=True)),
    "claude": dict(zip(SOURCES, (154, 51, 34, 31), strict=True)),
}
"""First word of `response_model` -> rows of each source."""


class JudgeBench(Benchmark):
    """JudgeBench, by default the 350 pairs of GPT-4o."""

    name = "judgebench"
    title = "JudgeBench"
    checked = "one game and two games, overall and by source: equal to the original code's outputs, ties included"
    order = "response_A, response_B; id is `pair_id`"
    hub = (HubSource("ScalerLab/JudgeBench", split="gpt"),)
    local = "data/dataset=judgebench,response_model=gpt-4o-2024-05-13.jsonl of github.com/ScalerLab/JudgeBench"
    columns = ("pair_id", "source", "question", "response_A", "response_B", "label")
    counts = _COUNTS["gpt"]

    def read(self, row: Mapping[str, Any], file: str, place: int) -> Comparison:
        """See `Benchmark.read`."""
        source = next((each for each in SOURCES if str(row["source"]).startswith(each)), row["source"])
        label = one_of(row["label"], "label", ("A>B", "B>A"))
        return Comparison(
            id=str(row["pair_id"]),
            prompt=text(row, "question"),
            responses=[text(row, "response_A"), text(row, "response_B")],
            ranks=[0, 1] if label == "A>B" else [1, 0],
            subset=one_of(source, "source", SOURCES),
            facts={"model": str(row.get("response_model") or "gpt").partition("-")[0]},
        )

    def expected(self, comparisons: Sequence[Comparison]) -> Mapping[str, int]:
        """See `Benchmark.expected`: Claude 3.5 has fewer pairs."""
        models = {each.facts["model"] for each in comparisons}
        return _COUNTS.get(models.pop() if len(models) == 1 else "", self.counts)

    def credit(self, comparison: Comparison, rewards: FloatArray, tie: float) -> RowCredits:
        """See `Benchmark.credit`. Half-credit replaces the rule that a tie means B>A."""
        a_is_better = comparison.ranks[0] == 0
        tied = tie if tie else float(not a_is_better)
        gap = rewards[0] - rewards[1] if a_is_better else rewards[1] - rewards[0]
        one = pair_credit(gap, 0, tied)
        return {"one game": one, comparison.subset: one, "two games": pair_credit(gap, 0, tie)}

    def is_right(self, comparison: Comparison, rewards: FloatArray) -> bool:
        """See `Benchmark.is_right`."""
        return self.credit(comparison, rewards, 0.0)["one game"] == 1

    def combine(self, means: Means) -> Outcome:
        """Overall is pooled over the pairs."""
        return Outcome(means["one game"], present(means, SOURCES), measures={"two_games": means["two games"]})
