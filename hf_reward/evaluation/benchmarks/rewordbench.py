"""reWordBench: pairs of RewardBench before and after transformations that keep their ranking.

Source: Wu et al. (2025), arXiv 2503.11751, which reports the accuracy before and after each of 28 transformations. No
public rows or code were found, so the layout and the averages are this project's own: `transformation` is `original` or
the name of a transformation, and accuracies are averaged as in RewardBench. A tie is wrong.
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
    pair_credit,
    present,
)
from hf_reward.evaluation.benchmarks.rewardbench import WEIGHTS, section_scores
from hf_reward.evaluation.benchmarks.row_fields import one_of, text, turns
from hf_reward.metrics.arrays import FloatArray
from hf_reward.metrics.counts import counted

ORIGINAL = "original"
TRANSFORMATIONS = 28
"""Transformations in the paper."""
_SUBSETS = tuple(name for section in WEIGHTS.values() for name in section)
_AFTER, _DROP = "after", "drop"
_Table = dict[str, FloatArray]
"""Section -> number."""


class ReWordBench(Benchmark):
    """reWordBench, on rows that the user transformed."""

    name = "rewordbench"
    title = "reWordBench"
    checked = "built from the published description"
    not_verified = "data and arithmetic (no public rows, code or scores of single pairs were found)"
    overall_is = "accuracy after the transformation, mean over transformations"
    order = "chosen, rejected; id is `transformation/subset/id`, with the transformation `original` for unchanged rows"
    local = (
        "rows of RewardBench with the column `transformation`: `original`, or the name of a transformation in a "
        "transformed copy with the same `subset` and `id`"
    )
    columns = ("id", "prompt", "chosen", "rejected", "subset", "transformation")

    def read(self, row: Mapping[str, Any], file: str, place: int) -> Comparison:
        """See `Benchmark.read`."""
        source, name = one_of(row["subset"], "subset", _SUBSETS), text(row, "transformation").strip()
        if not name:
            raise ValueError(f"`transformation` must be {ORIGINAL!r} or the name of a transformation, but is empty.")
        return Comparison(
            id=f"{name}/{source}/{row['id']}",
            prompt=turns(row, "prompt"),
            responses=[text(row, "chosen"), text(row, "rejected")],
            ranks=[0, 1],
            subset=name,
            # The versions of a pair are not independent.
            cluster=f"{source}/{row['id']}",
            facts={"source": source},
        )

    def missing(self, comparisons: Sequence[Comparison]) -> list[str]:
        """See `Benchmark.missing`: originals, and transformations below the paper's number."""
        originals = {each.cluster for each in comparisons if each.subset == ORIGINAL}
        alone = sum(each.cluster not in originals for each in comparisons)
        names = {each.subset for each in comparisons} - {ORIGINAL}
        found = [f"the original of {counted(alone, 'row')}"] if alone else []
        few = f"transformations ({len(names)}, published {TRANSFORMATIONS})"
        return [*found, few] if len(names) < TRANSFORMATIONS else found

    def credits(self, comparisons: Sequence[Comparison], rewards: Sequence[FloatArray], tie: float) -> list[RowCredits]:
        """See `Benchmark.credits`: transformed rows are compared with their originals."""
        right = [pair_credit(found[0], found[1], tie) for found in rewards]
        rows = list(zip(comparisons, right, strict=True))
        before = {row.cluster: credit for row, credit in rows if row.subset == ORIGINAL}
        earned: list[RowCredits] = []
        for row, credit in rows:
            source = row.facts["source"]
            own = {_key(_AFTER, row.subset, source): credit}
            if row.subset != ORIGINAL and row.cluster in before:
                own[_key(_DROP, row.subset, source)] = before[row.cluster] - credit
            earned.append(own)
        return earned

    def combine(self, means: Means) -> Outcome:
        """Overall is the mean over transformations; each is the mean of the sections of RewardBench that it covers."""
        after, drops = _by_transformation(means, _AFTER), _by_transformation(means, _DROP)
        original = after.pop(ORIGINAL, {})
        accuracies = {name: average(found.values()) for name, found in after.items()}
        differences = {_DROP: average(map(_mean, drops.values()))} if drops else {}
        differences |= {f"{_DROP} {name}": _mean(found) for name, found in drops.items()}
        differences |= {
            f"{_DROP} in {section}": average(found[section] for found in drops.values() if section in found)
            for section in WEIGHTS
            if any(section in found for found in drops.values())
        }
        measures = {ORIGINAL: _mean(original)} if original else {}
        return Outcome(
            average(accuracies.values()),
            accuracies,
            measures=measures | differences,
            differences=frozenset(differences),
        )


def _key(kind: str, transformation: str, source: str) -> str:
    return f"{kind}/{source}/{transformation}"


def _by_transformation(means: Means, kind: str) -> dict[str, _Table]:
    """Return transformation -> section -> number."""
    parts: dict[str, dict[str, FloatArray]] = {}
    for name, mean in means.items():
        found, source, transformation = name.split("/", 2)
        if found == kind:
            parts.setdefault(transformation, {})[source] = mean
    tables = {}
    for transformation, subsets in parts.items():
        scores = section_scores(subsets)
        tables[transformation] = {name: scores[name] for name, weights in WEIGHTS.items() if present(subsets, weights)}
    return tables


def _mean(table: _Table) -> FloatArray:
    return average(table.values())
