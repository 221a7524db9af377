"""Multimodal RewardBench: two responses to a question on an image, in six categories.

Source: Yasunaga et al. (2025), arXiv 2502.14191; github.com/facebookresearch/multimodal_rewardbench,
`scripts/2_get_accuracy.py` and `scripts/1_run_model_as_judge_gpt4o.py`. The original code counts the verdicts of a
judge and draws one at random if there is none. Equal rewards count as wrong.
"""

from collections.abc import Mapping
from typing import Any

from hf_reward.evaluation.benchmarks.base import (
    Benchmark,
    Comparison,
    Means,
    Outcome,
    RowCredits,
    pair_credit,
)
from hf_reward.evaluation.benchmarks.row_fields import image_prompt, one_of, text
from hf_reward.metrics.arrays import FloatArray

_PARTS = {"safety": ("pairs", "bias", "toxicity"), "reasoning": ("math", "math", "coding")}
"""Category -> start of an id, the part of the rows with it, and the part of the others."""


ROWS = {
    "open_generation/correctness_task": 623,
    "open_generation/preference_task": 654,
    "knowledge": 630,
    "reasoning": 1098,
    "safety": 0,
    "vqa": 0,
}
"""Category -> rows in the paper; 0 where the published file has fewer, or the number is unknown."""


class MultimodalRewardBench(Benchmark):
    """Multimodal RewardBench."""

    name = "multimodal_rewardbench"
    title = "Multimodal RewardBench"
    checked = "overall number, categories and their parts: equal to the original code's outputs"
    not_verified = "data (not at hand; names and sizes of the categories are from other sources), ties"
    overall_is = "accuracy over all rows"
    order = "Output1, Output2; id is `ID/row number from 0`"
    local = (
        "data/all_data.json of facebookresearch/multimodal_rewardbench, with the images of its folder data/images "
        "(scripts/0_download_data.py of that repository downloads them and completes the questions)"
    )
    patterns = ("all_data.json", "*.jsonl", "*.parquet")
    columns = ("ID", "Text", "Image", "Output1", "Output2", "Better", "Category")
    image = "Image"
    counts = ROWS

    def read(self, row: Mapping[str, Any], file: str, place: int) -> Comparison:
        """See `Benchmark.read`. Every category is accepted, as in the original code."""
        name, category = text(row, "ID"), text(row, "Category")
        first, part, other = _PARTS.get(category, ("", "", ""))
        part = part if name.lower().startswith(first) else other
        return Comparison(
            id=f"{name}/{place}",
            prompt=image_prompt(text(row, "Text"), row["Image"]),
            responses=[text(row, "Output1"), text(row, "Output2")],
            ranks=[1, 0] if one_of(row["Better"], "Better", ("Output1", "Output2")) == "Output2" else [0, 1],
            subset=category,
            facts={"part": f"{category}/{part}" if part else ""},
        )

    def credit(self, comparison: Comparison, rewards: FloatArray, tie: float) -> RowCredits:
        """See `Benchmark.credit`."""
        better, part = comparison.ranks.index(0), comparison.facts["part"]
        earned = pair_credit(rewards[better], rewards[1 - better], tie)
        return {"all": earned, f"section {comparison.subset}": earned} | ({part: earned} if part else {})

    def combine(self, means: Means) -> Outcome:
        """Overall is pooled over all rows."""
        sections = {name.removeprefix("section "): mean for name, mean in means.items() if name.startswith("section ")}
        parts = {name: mean for name, mean in means.items() if name != "all" and not name.startswith("section ")}
        return Outcome(means["all"], sections, parts)
