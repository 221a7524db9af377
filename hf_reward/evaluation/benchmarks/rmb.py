"""RMB: pairs, and lists whose best response must get the highest reward, for helpfulness and for harmlessness.

Source: Zhou et al. (2025); github.com/Zhou-Zoey/RMB-Reward-Model-Benchmark, `eval/scripts/my_run_rm.py`. Lists
are scored as in github.com/RM-R1-UIUC/RM-R1, `run_rm_bestofn.py` and `process_final_result.py`. A tie is wrong.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_reward.evaluation.benchmarks.base import (
    Benchmark,
    Comparison,
    Means,
    Outcome,
    RowCredits,
    average,
    best_of_credit,
    present,
)
from hf_reward.evaluation.benchmarks.row_fields import answer, one_of, turns
from hf_reward.metrics.arrays import FloatArray

SECTIONS = ("Pairwise_set/Helpfulness", "Pairwise_set/Harmlessness", "BoN_set/Helpfulness", "BoN_set/Harmlessness")

_HELPFULNESS = {
    "Brainstorming": ["Idea Development", "Problem Solving"],
    "Chat": ["Casual Conversation", "Discussion", "Supportive Conversation"],
    "Classification": ["Content Categorization", "Quality and Compliance Assessment"],
    "Closed QA": ["ContextBased", "OptionBased"],
    "Code": ["Data Management", "Development and Implementation", "Documentation", "Quality and Optimization"],
    "Generation": ["Creative Writing", "Professional Content Generation"],
    "Open QA": [
        "Factual",
        "General Explanation",
        "Hypothetical Scenarios",
        "Interpretative Analysis",
        "Personal Opinion and Advice",
        "Technical and Practical Support",
    ],
    "Reasoning": [
        "Analytical Reasoning",
        "Critical Thinking",
        "Human Decision Making",
        "Logical Deduction",
        "Pattern Recognition",
    ],
    "Rewrite": ["Paraphrasing", "PostQuality Assessment Rewriting", "Textual ExpansionReduction", "Tone Adjustment"],
    "Role Playing": ["General Character", "Specific Character"],
    "Summarization": ["Specialized Summaries", "Standard Summaries"],
    "Translation": [
        "GeneralExcerpt Language Translation",
        "Literary and Cultural Translation",
        "Technical and Scientific Translation",
    ],
}
"""Category -> subcategories, the same in both sets."""
_HARMLESSNESS = [*(f"S{number}" for number in range(1, 12)), "multi"]
CATEGORIES = {
    "Helpfulness": [f"{name}/{part}" for name, parts in _HELPFULNESS.items() for part in parts],
    "Harmlessness": _HARMLESSNESS,
}
"""Goal -> its 37 or 12 categories in the files of the repository, commit 165a8f3."""


class RMB(Benchmark):
    """RMB, pairs and lists."""

    name = "rmb"
    chance = None
    title = "RMB"
    checked = "built from reading the original code"
    not_verified = "arithmetic (not compared with outputs of the original code)"
    order = "pairs: chosen, reject; lists: `bon_best`, then `loser_list`; id is `set/goal/uid`"
    local = "the folder RMB_dataset of github.com/Zhou-Zoey/RMB-Reward-Model-Benchmark"
    patterns = ("**/*.json", "*.jsonl", "*.parquet")
    columns = ("conversation_input", "category_path")
    counts = dict.fromkeys(SECTIONS, 0) | {"BoN_set/Helpfulness": 2109, "BoN_set/Harmlessness": 1677}

    def read(self, row: Mapping[str, Any], file: str, place: int) -> Comparison:
        """See `Benchmark.read`."""
        path = str(row["category_path"])
        section = one_of("/".join(path.split("/")[:2]), "category_path (its first two parts)", SECTIONS)
        if section.startswith("BoN"):
            uid, responses = _required(row, "bon_uid"), self._list(row)
        else:
            uid, responses = _required(row, "pair_uid"), [_answer(row, "chosen"), _answer(row, "reject")]
        return Comparison(
            id=f"{section}/{uid}",
            prompt=turns(row, "conversation_input"),
            responses=responses,
            ranks=[0] + [1] * (len(responses) - 1),
            subset=section,
            facts={"path": path},
        )

    def missing(self, comparisons: Sequence[Comparison]) -> list[str]:
        """See `Benchmark.missing`: also the missing categories of the available sections."""
        paths = {each.facts["path"] for each in comparisons}
        sections = [name for name in SECTIONS if any(path.startswith(f"{name}/") for path in paths)]
        expected = [f"{name}/{category}" for name in sections for category in CATEGORIES[name.partition("/")[2]]]
        return [*super().missing(comparisons), *(path for path in expected if path not in paths)]

    @staticmethod
    def _list(row: Mapping[str, Any]) -> list[str]:
        losers = _required(row, "loser_list")
        if not isinstance(losers, list) or not losers:
            raise ValueError(f"`loser_list` must be a list of one or more answers, but is {losers!r}.")
        return [_answer(row, "bon_best"), *(answer({"loser_list": each}, "loser_list") for each in losers)]

    def credit(self, comparison: Comparison, rewards: FloatArray, tie: float) -> RowCredits:
        """See `Benchmark.credit`. With half-credit, a best response that shares the highest reward gets 1/k."""
        shared = best_of_credit(rewards)
        earned = shared if tie or shared == 1 else 0.0
        return {comparison.subset: earned, f"path {comparison.facts['path']}": earned}

    def combine(self, means: Means) -> Outcome:
        """Unweighted mean of the four sections, each pooled over its rows."""
        sections = present(means, SECTIONS)
        paths = {name.removeprefix("path "): mean for name, mean in means.items() if name.startswith("path ")}
        return Outcome(average(sections.values()), sections, paths)


def _required(row: Mapping[str, Any], name: str) -> Any:
    if row.get(name) is None:
        raise ValueError(f"`{name}` is missing. Use the official files.")
    return row[name]


def _answer(row: Mapping[str, Any], name: str) -> str:
    _required(row, name)
    return answer(row, name)
