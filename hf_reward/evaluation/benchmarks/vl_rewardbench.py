"""VL-RewardBench: two responses to a question on an image, in three groups.

Source: Li et al. (2024), arXiv 2411.17451; github.com/vl-rewardbench/VL_RewardBench, `cal.py`
(`get_dataset_from_id`, `distribution_dataset`) and `inference_hf.py`. The original code counts the verdicts of a judge,
which has no ties. Equal rewards count as wrong.
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
    average,
    pair_credit,
    present,
)
from hf_reward.evaluation.benchmarks.row_fields import image_prompt, one_of, text, texts
from hf_reward.metrics.arrays import FloatArray
from hf_reward.metrics.counts import counted

GROUPS = ("general", "hallucination", "reasoning")
_GROUP_OF = {
    **dict.fromkeys(("mathverse", "mmmu"), "reasoning"),
    **dict.fromkeys(("RLAIF", "RLHF", "hallucination"), "hallucination"),
}
"""Part of the id before the first `_` or `-` -> group; all others are general."""
ROWS = 1247
"""Rows of the published set. The first version had 1,250."""


class VLRewardBench(Benchmark):
    """VL-RewardBench."""

    name = "vl_rewardbench"
    title = "VL-RewardBench"
    checked = "overall number, groups and macro average: equal to the original code's outputs for one verdict per row"
    not_verified = "data (not at hand), ties (the original code has none)"
    overall_is = "accuracy over all rows"
    order = "the two responses of `response`; id is `id/row number from 0`, because ids may be repeated"
    hub = (HubSource("MMInstruction/VL-RewardBench", split="test"),)
    local = (
        f"the {ROWS:,} rows of MMInstruction/VL-RewardBench (split test) as parquet, or as jsonl with paths of images"
    )
    columns = ("id", "query", "response", "image", "human_ranking")
    image = "image"
    counts = dict.fromkeys(GROUPS, 0)

    def read(self, row: Mapping[str, Any], file: str, place: int) -> Comparison:
        """See `Benchmark.read`."""
        name, responses = text(row, "id"), texts(row, "response", least=2)
        if len(responses) != 2:
            raise ValueError(f"`response` must have two texts, but has {len(responses)}. Use the official file.")
        return Comparison(
            id=f"{name}/{place}",
            # The original code removes this placeholder.
            prompt=image_prompt(text(row, "query").replace("<image>\n", ""), row["image"]),
            responses=responses,
            ranks=one_of(row["human_ranking"], "human_ranking", ([0, 1], [1, 0])),
            subset=_GROUP_OF.get(name.replace("-", "_").partition("_")[0], "general"),
        )

    def missing(self, comparisons: Sequence[Comparison]) -> list[str]:
        """See `Benchmark.missing`; the number of rows is known for all groups together."""
        missing = super().missing(comparisons)
        if len(comparisons) != ROWS:
            missing.append(f"{counted(len(comparisons), 'row')}, published {ROWS}")
        return missing

    def credit(self, comparison: Comparison, rewards: FloatArray, tie: float) -> RowCredits:
        """See `Benchmark.credit`."""
        better = comparison.ranks.index(0)
        earned = pair_credit(rewards[better], rewards[1 - better], tie)
        return {"all": earned, comparison.subset: earned}

    def combine(self, means: Means) -> Outcome:
        """Overall is pooled over all rows; the macro average is the mean of the three groups."""
        groups = present(means, GROUPS)
        return Outcome(means["all"], groups, measures={"macro_average": average(groups.values())})
