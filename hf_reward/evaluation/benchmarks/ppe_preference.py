"""PPE, human preference: pairs of answers with preferences from the Chatbot Arena.

Source: Frick et al. (2025), "How to evaluate reward models for RLHF". Rows that people judged as ties are left
out. Of the paper's twelve metrics only accuracy is implemented; metrics on rankings of models need model ratings.
"""

from collections.abc import Mapping
from typing import Any

from hf_reward.evaluation.benchmarks.base import (
    Benchmark,
    Comparison,
    HubSource,
    LeftOut,
    Means,
    Outcome,
    RowCredits,
    pair_credit,
    present,
)
from hf_reward.evaluation.benchmarks.row_fields import one_of, text
from hf_reward.metrics.arrays import FloatArray

_WINNERS = {"model_a": [0, 1], "model_b": [1, 0], "tie": None, "tie (bothbad)": None}
SLICES = ("English", "other languages", "hard_prompt", "math_prompt", "is_code")


class PPEPreference(Benchmark):
    """PPE, human preference."""

    name = "ppe_preference"
    title = "PPE human preference"
    checked = "built from the published description"
    not_verified = "data and arithmetic (not compared with outputs of the original code)"
    order = "response_1, response_2; id is `question_id`; rows that annotators called a tie are not scored"
    hub = (HubSource("lmarena-ai/PPE-Human-Preference-V1", split="test"),)
    local = "the rows of lmarena-ai/PPE-Human-Preference-V1 (split test) as jsonl or parquet"
    columns = ("question_id", "prompt", "response_1", "response_2", "winner")

    def read(self, row: Mapping[str, Any], file: str, place: int) -> Comparison | LeftOut:
        """See `Benchmark.read`."""
        ranks = _WINNERS[one_of(row["winner"], "winner", tuple(_WINNERS))]
        if ranks is None:
            return LeftOut(str(row["question_id"]))
        prompt, language = text(row, "prompt"), row.get("language")
        slices = [] if language is None else ["English" if str(language).lower() == "english" else "other languages"]
        return Comparison(
            id=str(row["question_id"]),
            prompt=prompt,
            responses=[text(row, "response_1"), text(row, "response_2")],
            ranks=ranks,
            subset=slices[0] if slices else "",
            facts={"slices": slices + [name for name in SLICES[2:] if row.get(name) is True]},
        )

    def credit(self, comparison: Comparison, rewards: FloatArray, tie: float) -> RowCredits:
        """See `Benchmark.credit`."""
        better = comparison.ranks.index(0)
        earned = pair_credit(rewards[better], rewards[1 - better], tie)
        return {"all": earned, **dict.fromkeys(comparison.facts["slices"], earned)}

    def combine(self, means: Means) -> Outcome:
        """Overall is pooled over all rows; the sections overlap."""
        return Outcome(means["all"], present(means, SLICES))
