"""RewardBench 2: one correct response of four; in Ties, several correct responses against all others.

Source: Malik et al. (2025); github.com/allenai/reward-bench, `scripts/run_v2.py` and `rewardbench/utils.py`
(`reroll_and_score_dataset`, `process_single_model`). If k of the four responses tie for the highest reward, the row
counts 1/k. In the subset Ties, a tie between correct and wrong responses is wrong.
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
    best_of_credit,
    pair_credit,
    present,
)
from hf_reward.evaluation.benchmarks.row_fields import one_of, text, texts
from hf_reward.metrics.arrays import FloatArray
from hf_reward.metrics.counts import counted

TIES = "Ties"
COUNTS = {"Factuality": 475, "Precise IF": 160, "Math": 183, "Safety": 450, "Focus": 495, TIES: 102}
TIES_WEIGHTS = {
    "Ties accuracy tied": 0.30,
    "Ties accuracy ref": 0.30,
    "Ties gap above spread": 0.20,
    "Ties smaller gap above spread": 0.20,
    "Ties margin": 0.01,
}
"""Credit -> weight in the score of the subset Ties; the last weight only breaks ties between models."""


class RewardBench2(Benchmark):
    """RewardBench 2."""

    name = "rewardbench2"
    chance = None
    title = "RewardBench 2"
    checked = "best of four and Ties: equal to the original code's outputs, ties and zero spread included"
    order = "chosen responses, then rejected ones; id is `subset/id`"
    hub = (HubSource("allenai/reward-bench-2", split="test"),)
    local = "the 1,865 rows of allenai/reward-bench-2 (split test) as jsonl or parquet"
    columns = ("id", "prompt", "chosen", "rejected", "subset")
    counts = COUNTS

    def read(self, row: Mapping[str, Any], file: str, place: int) -> Comparison:
        """See `Benchmark.read`."""
        subset = one_of(row["subset"], "subset", tuple(COUNTS))
        chosen, rejected = texts(row, "chosen"), texts(row, "rejected")
        if row.get("num_correct", len(chosen)) != len(chosen):
            raise ValueError(
                f"`num_correct` is {row['num_correct']}, but `chosen` holds {len(chosen)}. Use the official file."
            )
        if subset != TIES and len(chosen) != 1:
            raise ValueError(f"`chosen` must hold one response in {subset}, but holds {len(chosen)}.")
        facts = _ties_facts(str(row["id"]), len(chosen)) if subset == TIES else {}
        return Comparison(
            id=f"{subset}/{row['id']}",
            prompt=text(row, "prompt"),
            responses=[*chosen, *rejected],
            ranks=[0] * len(chosen) + [1] * len(rejected),
            subset=subset,
            # The two prompts of a number are scored together, so they form one cluster.
            cluster=f"ties {facts['number']}" if facts else "",
            facts=facts,
        )

    def credits(self, comparisons: Sequence[Comparison], rewards: Sequence[FloatArray], tie: float) -> list[RowCredits]:
        """See `Benchmark.credits`: rows of Ties are combined by number."""
        earned: list[RowCredits] = []
        margins: dict[tuple[str, int], tuple[int, float, float]] = {}
        for place, (comparison, found) in enumerate(zip(comparisons, rewards, strict=True)):
            if comparison.subset != TIES:
                earned.append({comparison.subset: best_of_credit(found)})
                continue
            gap, spread = _gap_and_spread(comparison, found)
            kind = comparison.facts["kind"]
            earned.append({f"Ties accuracy {kind}": pair_credit(gap, 0, tie)})
            margins[kind, comparison.facts["number"]] = (place, gap, spread)
        for (kind, number), (place, gap, spread) in margins.items():
            if kind == "tied" and ("ref", number) in margins:
                earned[place] |= _margin_credits(gap, margins["ref", number][1], spread, tie)
        return earned

    def is_right(self, comparison: Comparison, rewards: FloatArray) -> bool:
        """See `Benchmark.is_right`."""
        return _gap_and_spread(comparison, rewards)[0] > 0

    def combine(self, means: Means) -> Outcome:
        """Unweighted mean of the six subsets."""
        sections = present(means, [name for name in COUNTS if name != TIES])
        parts = present(means, TIES_WEIGHTS)
        if parts:
            # A missing part adds nothing, as in the original code.
            sections[TIES] = sum((TIES_WEIGHTS[name] * parts[name] for name in parts), start=np.array(0.0))
        return Outcome(average(sections.values()), sections, parts)


def _ties_facts(name: str, correct: int) -> dict[str, Any]:
    kind, _, number = name.partition(":")
    if kind not in ("ref", "tied") or not number.isdigit():
        raise ValueError(f"`id` must be 'ref:<number>' or 'tied:<number>' in Ties, but is {name!r}.")
    if (kind == "ref") != (correct == 1):
        raise ValueError(
            f"`chosen` of {name!r} holds {counted(correct, 'response')}; 'ref' rows hold one, 'tied' rows several."
        )
    return {"kind": kind, "number": int(number)}


def _gap_and_spread(comparison: Comparison, rewards: FloatArray) -> tuple[float, float]:
    """Return lowest correct minus highest wrong reward, and highest minus lowest correct reward."""
    correct = np.asarray(comparison.ranks) == 0
    worst = rewards[correct].min()
    return float(worst - rewards[~correct].max()), float(rewards[correct].max() - worst)


def _margin_credits(gap: float, ref_gap: float, spread: float, tie: float) -> RowCredits:
    smaller = min(gap, ref_gap)
    with np.errstate(divide="ignore", invalid="ignore"):
        margin = np.nan_to_num(np.tanh(np.float64(smaller) / spread - 1), nan=0.0)
    return {
        "Ties gap above spread": pair_credit(gap, spread, tie),
        "Ties smaller gap above spread": pair_credit(smaller, spread, tie),
        "Ties margin": float(margin),
    }
