"""RMB: pairs, and lists whose best response must beat every other one, for helpfulness and for harmlessness.

Source: Zhou et al. (2025); github.com/Zhou-Zoey/RMB-Reward-Model-Benchmark, `eval/scripts/my_run_rm.py`; lists as
github.com/RM-R1-UIUC/RM-R1 counts them, in its `run_rm_bestofn.py` and `process_final_result.py`. A tie is wrong.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_reward.benchmarks.base import (
    Benchmark,
    Comparison,
    FloatArray,
    Means,
    Outcome,
    RowCredits,
    average,
    best_of_credit,
    present,
)
from hf_reward.benchmarks.row_fields import answer, one_of, prompt_cluster, turns

_SETS = ("Pairwise_set", "BoN_set")
SECTIONS = ("Pairwise_set/Helpfulness", "Pairwise_set/Harmlessness", "BoN_set/Helpfulness", "BoN_set/Harmlessness")


class RMB(Benchmark):
    """RMB, pairs and lists."""

    name = "rmb"
    title = "RMB"
    checked = "built from reading the original code; not compared with its outputs"
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
        prompt = turns(row, "conversation_input")
        return Comparison(
            id=f"{section}/{uid}",
            prompt=prompt,
            responses=responses,
            ranks=[0] + [1] * (len(responses) - 1),
            subset=section,
            cluster=prompt_cluster(prompt),
            facts={"path": path},
        )

    def missing(self, comparisons: Sequence[Comparison]) -> list[str]:
        """See `Benchmark.missing`. Both sets have the same categories, so one that only one of them has is missing."""
        paths = {each.facts["path"] for each in comparisons}
        halves = [{path.partition("/")[2] for path in paths if path.startswith(each)} for each in _SETS]
        absent = [
            f"{name}/{path}" for name, there in zip(_SETS, halves, strict=True) for path in set.union(*halves) - there
        ]
        return super().missing(comparisons) + (sorted(absent) if all(halves) else [])

    @staticmethod
    def _list(row: Mapping[str, Any]) -> list[str]:
        losers = _required(row, "loser_list")
        if not isinstance(losers, list) or not losers:
            raise ValueError(f"`loser_list` must be a list of one or more answers, but is {losers!r}.")
        return [_answer(row, "bon_best"), *(answer({"loser_list": each}, "loser_list") for each in losers)]

    def credit(self, comparison: Comparison, rewards: FloatArray, tie: float) -> RowCredits:
        """See `Benchmark.credit`. With half-credit a best response that shares the highest reward earns 1/k."""
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
