"""JudgeBench-Pro: pairs of JudgeBench whose wrong answer was rewritten to exploit a bias of judges.

Source: Lai et al. (2026), "BiasScope", arXiv 2602.09383; github.com/sustech-nlp/BiasScope,
`synthesis_bias_verification.py:_compute_domain_error_rates`. The authors report error rates, which are 1 minus the
accuracies here. Their code supports judges only: a decision is 1 or 2, and an unreadable decision is left out. For a
reward model the order of the responses does not matter, and a tie counts as wrong.
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
)
from hf_reward.evaluation.benchmarks.row_fields import one_of, text
from hf_reward.metrics.arrays import FloatArray

ROWS = 1178
_ALL, _DOMAIN = "all", "domain "


class JudgeBenchPro(Benchmark):
    """JudgeBench-Pro."""

    name = "judgebench_pro"
    title = "JudgeBench-Pro"
    checked = "accuracy overall and by domain: 1 minus the error rates of the original code for the same decisions"
    not_verified = "data and published scores (neither rows nor decisions of a judge were available)"
    order = "response_A, response_B; id is the row number from 0"
    hub = (HubSource("SUSTech-NLP/JudgeBench-Pro", split="test"),)
    local = "the 1,178 rows of SUSTech-NLP/JudgeBench-Pro (split test) as jsonl or parquet"
    columns = ("question", "response_A", "response_B", "label", "domain")

    def read(self, row: Mapping[str, Any], file: str, place: int) -> Comparison:
        """See `Benchmark.read`."""
        label = one_of(row["label"], "label", (1, 2))
        return Comparison(
            id=str(place),
            prompt=text(row, "question"),
            responses=[text(row, "response_A"), text(row, "response_B")],
            ranks=[0, 1] if label == 1 else [1, 0],
            subset=text(row, "domain"),
        )

    def missing(self, comparisons: Sequence[Comparison]) -> list[str]:
        """See `Benchmark.missing`: the sizes of the domains are not published."""
        return [] if len(comparisons) == ROWS else [f"rows ({len(comparisons)}, published {ROWS})"]

    def credit(self, comparison: Comparison, rewards: FloatArray, tie: float) -> RowCredits:
        """See `Benchmark.credit`."""
        better = comparison.ranks.index(0)
        earned = pair_credit(rewards[better], rewards[1 - better], tie)
        return {_ALL: earned, f"{_DOMAIN}{comparison.subset}": earned}

    def combine(self, means: Means) -> Outcome:
        """Overall and each domain are pooled over their pairs."""
        domains = {name.removeprefix(_DOMAIN): mean for name, mean in means.items() if name.startswith(_DOMAIN)}
        return Outcome(means[_ALL], domains)
