"""LLMBar: pairs of outputs, one of which follows the instruction. In the adversarial sets the other one looks better.

Source: Zeng et al. (2024); github.com/princeton-nlp/LLMBar. The original code supports judges only. For a reward
model the order of the outputs does not matter, and a tie counts as wrong.
"""

from collections.abc import Mapping
from typing import Any

from hf_reward.evaluation.benchmarks.base import (
    Benchmark,
    Comparison,
    Means,
    Outcome,
    RowCredits,
    average,
    pair_credit,
    present,
)
from hf_reward.evaluation.benchmarks.row_fields import one_of, text
from hf_reward.metrics.arrays import FloatArray

COUNTS = {"Natural": 100, "Neighbor": 134, "GPTInst": 92, "GPTOut": 47, "Manual": 46}
ADVERSARIAL = ("Neighbor", "GPTInst", "GPTOut", "Manual")
_ALL = "all"


class LLMBar(Benchmark):
    """LLMBar."""

    name = "llmbar"
    title = "LLMBar"
    checked = "built from the published description; the mean of the four adversarial sets is the paper's"
    not_verified = "arithmetic (not compared with outputs of the original code)"
    order = "output_1, output_2; id is `subset/number`, with `idx` or the row's index in its file as number"
    # princeton-nlp/LLMBar on the Hub is a loading script, which `datasets` no longer runs.
    local = "the folder Dataset/LLMBar of github.com/princeton-nlp/LLMBar, or a jsonl file with the column `subset` too"
    patterns = ("**/dataset.json", "llmbar*.jsonl", "*.jsonl", "*.json", "*.parquet")
    columns = ("input", "output_1", "output_2", "label")
    counts = COUNTS

    def read(self, row: Mapping[str, Any], file: str, place: int) -> Comparison:
        """See `Benchmark.read`. The subset is the column's last part, else the name of the file's folder."""
        given = str(row.get("subset") or file.rpartition("/")[0])
        subset = one_of(given.rpartition("/")[2], "subset", tuple(COUNTS))
        label = one_of(row["label"], "label", (1, 2))
        return Comparison(
            id=f"{subset}/{row['idx'] if row.get('idx') is not None else place}",
            prompt=text(row, "input"),
            responses=[text(row, "output_1"), text(row, "output_2")],
            ranks=[0, 1] if label == 1 else [1, 0],
            subset=subset,
        )

    def credit(self, comparison: Comparison, rewards: FloatArray, tie: float) -> RowCredits:
        """See `Benchmark.credit`."""
        better = comparison.ranks.index(0)
        earned = pair_credit(rewards[better], rewards[1 - better], tie)
        return {_ALL: earned, comparison.subset: earned}

    def combine(self, means: Means) -> Outcome:
        """Overall is pooled over all rows; Adversarial is the unweighted mean of its four subsets."""
        subsets, sections = present(means, COUNTS), present(means, ["Natural"])
        hard = present(means, ADVERSARIAL)
        if hard:
            sections["Adversarial"] = average(hard.values())
        return Outcome(means[_ALL], sections, subsets)
