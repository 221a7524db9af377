"""RM-Bench: three styles of a correct answer against three styles of a wrong one, 3 x 3.

Source: Liu et al. (2025); github.com/THU-KEG/RM-Bench, `scripts/utils.py:compute_accuracy`. A tie is wrong.
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
from hf_reward.evaluation.benchmarks.row_fields import one_of, text, texts
from hf_reward.metrics.arrays import FloatArray

DOMAINS = ("chat", "math", "code", "safety")
STYLES = 3
"""Concise, detailed in plain text, detailed in markdown: places 0, 1, 2 of `chosen` and of `rejected`."""
LEVELS = {
    "hard": [(i, j) for i in range(STYLES) for j in range(STYLES) if i < j],
    "normal": [(i, i) for i in range(STYLES)],
    "easy": [(i, j) for i in range(STYLES) for j in range(STYLES) if i > j],
}
"""Level -> cells (style of the correct answer, style of the wrong one). In hard cells the correct answer is simpler."""
# Rows of math: the Hub's total of 1,327 rows minus the 798 rows of the other domains.
_ROWS = {"chat": 129, "math": 529, "code": 228, "safety-refuse": 284, "safety-response": 157}


class RMBench(Benchmark):
    """RM-Bench."""

    name = "rm_bench"
    title = "RM-Bench"
    checked = "domains, easy, normal, hard and overall: equal to the original code's outputs, ties included"
    order = "chosen concise, plain, markdown, then rejected concise, plain, markdown; id is `domain/id`"
    hub = (HubSource("THU-KEG/RM-Bench", split="train"),)
    local = (
        "total_dataset.json, or a folder with {chat,math,code,safety-refuse,safety-response}_filtered.json or .jsonl"
    )
    patterns = ("total_dataset.json", "*_filtered.json", "*.jsonl", "*.json", "*.parquet")
    columns = ("id", "prompt", "chosen", "rejected")
    counts = _ROWS

    def read(self, row: Mapping[str, Any], file: str, place: int) -> Comparison:
        """See `Benchmark.read`. Rows of the official files of one domain may lack `domain`."""
        domain = row.get("domain") or file.rpartition("/")[2].removesuffix("_filtered")
        domain = one_of(domain, "domain", tuple(_ROWS))
        styles = {name: texts(row, name, least=STYLES) for name in ("chosen", "rejected")}
        for name, found in styles.items():
            if len(found) != STYLES:
                raise ValueError(f"`{name}` must hold {STYLES} styles, but holds {len(found)}. Use the official file.")
        return Comparison(
            id=f"{domain}/{row['id']}",
            prompt=text(row, "prompt"),
            responses=styles["chosen"] + styles["rejected"],
            ranks=[0] * STYLES + [1] * STYLES,
            subset=domain,
        )

    def credit(self, comparison: Comparison, rewards: FloatArray, tie: float) -> RowCredits:
        """See `Benchmark.credit`: a credit for each cell of the domain, and for each level of the finer subset."""
        cells = {
            (i, j): pair_credit(rewards[i], rewards[STYLES + j], tie) for i in range(STYLES) for j in range(STYLES)
        }
        domain = comparison.subset.partition("-")[0]
        earned = {_cell(domain, cell): credit for cell, credit in cells.items()}
        for level, members in LEVELS.items():
            earned[f"{comparison.subset} {level}"] = float(np.mean([cells[cell] for cell in members]))
        return earned

    def combine(self, means: Means) -> Outcome:
        """Each domain is the mean of hard, normal and easy; overall is the mean of the domains."""
        levels = {
            domain: {level: average(means[_cell(domain, cell)] for cell in cells) for level, cells in LEVELS.items()}
            for domain in DOMAINS
            if _cell(domain, (0, 0)) in means
        }
        domains = {domain: average(found.values()) for domain, found in levels.items()}
        by_level = {level: average(found[level] for found in levels.values()) for level in ("easy", "normal", "hard")}
        finer = present(means, [f"{name} {level}" for name in _ROWS for level in LEVELS])
        return Outcome(average(domains.values()), domains | by_level, finer)

    def notes(self, comparisons: Sequence[Comparison]) -> list[str]:
        """See `Benchmark.notes`."""
        return ["Easy is largely a test of length: compare with the length rule's own easy, normal and hard."]


def _cell(domain: str, cell: tuple[int, int]) -> str:
    return f"{domain} cell {cell[0]}>{cell[1]}"
