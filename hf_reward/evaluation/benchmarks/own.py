"""The user's own data as pairs or as lists, in any layout that training accepts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hf_reward.data.preference_row import PreferenceFormatError, PreferenceRow, rename_columns
from hf_reward.data.preferences import to_preference_row
from hf_reward.evaluation.benchmarks.base import Benchmark, Comparison, LeftOut, Means, Outcome, RowCredits, pair_credit
from hf_reward.evaluation.benchmarks.unusable_responses import fill_unusable_responses, without_filling
from hf_reward.metrics.arrays import FloatArray

_ROW_ORDER = "the row's own (`responses`; chosen then rejected; response_a then response_b)"


POOLED = "pairs_pooled"
"""Share of correctly ordered strict pairs of all rows, each pair counted once; `accuracy` in training."""


def _pooled(earned: Sequence[float]) -> RowCredits:
    return {"right pairs": float(sum(earned)), "all pairs": float(len(earned))}


def _pooled_share(means: Means) -> dict[str, FloatArray]:
    if "all pairs" not in means:  # credits of an earlier version
        return {}
    right, pairs = np.asarray(means["right pairs"], float), np.asarray(means["all pairs"], float)
    return {POOLED: np.divide(right, pairs, out=np.full_like(right, np.nan), where=pairs > 0)}


class _OwnData(Benchmark):
    """Rows of `to_preference_row`. Rows without a strict preference are left out and counted."""

    checked = "the definition is this project's own"
    local = "a file, folder or Hub id of preference data"
    columns = ()

    def __init__(self, layout: str = "auto", columns: Mapping[str, str] | None = None) -> None:
        self.layout, self.renamed = layout, columns

    def read(self, row: Mapping[str, Any], file: str, place: int) -> Comparison | LeftOut:
        """See `Benchmark.read`."""
        found, problem = self._read(row, place)
        if found.token_ids is not None:
            raise ValueError("The rows hold token ids, which are valid for only one tokenizer. Pass rows of texts.")
        if len(set(found.ranks)) < 2:
            return LeftOut(str(found.id))
        return Comparison(
            id=str(found.id),
            prompt=found.prompt,
            responses=found.responses,
            ranks=found.ranks,
            subset=str(found.meta.get("subset") or found.source or ""),
            cluster=found.group or "",
            problem=problem,
        )

    def _read(self, row: Mapping[str, Any], place: int) -> tuple[PreferenceRow, str]:
        """Return the row and the reason why it cannot be scored. An empty response does not stop the run."""
        try:
            return to_preference_row(row, layout=self.layout, columns=self.renamed, row_index=place), ""
        except PreferenceFormatError as error:
            filled = fill_unusable_responses(rename_columns(row, self.renamed))
            if filled is None:
                raise
            found = to_preference_row(filled, layout=self.layout, row_index=place)
            return replace(found, responses=[without_filling(each) for each in found.responses]), error.message

    def _named(self, comparison: Comparison, credits: RowCredits) -> RowCredits:
        own = {f"{name} in {comparison.subset}": value for name, value in credits.items() if comparison.subset}
        return credits | own


class Pairs(_OwnData):
    """Preferences: overall is the share of strict pairs in which the preferred response has the higher reward."""

    name = "pairs"
    title = "Own pairs"
    overall_is = "share of a row's pairs in order, mean over rows"
    order = f"{_ROW_ORDER}; id is the column `id`, or the row number from 0"

    def credit(self, comparison: Comparison, rewards: FloatArray, tie: float) -> RowCredits:
        """See `Benchmark.credit`: a row of more than two responses gets the mean over its pairs."""
        earned = [pair_credit(rewards[i], rewards[j], tie) for i, j in comparison.pairs()]
        return self._named(comparison, {"pairs": float(np.mean(earned))}) | _pooled(earned)

    def combine(self, means: Means) -> Outcome:
        """Overall is the mean over rows; a column `subset` or `source` makes sections."""
        prefix = "pairs in "
        sections = {name.removeprefix(prefix): mean for name, mean in means.items() if name.startswith(prefix)}
        return Outcome(means["pairs"], sections, measures=_pooled_share(means))


class Lists(_OwnData):
    """Ranked lists: overall is the chance that the response with the highest reward is one of the best."""

    name = "lists"
    chance = None
    title = "Own lists"
    overall_is = "best response at the top, mean over rows"
    order = Pairs.order

    def credit(self, comparison: Comparison, rewards: FloatArray, tie: float) -> RowCredits:
        """See `Benchmark.credit`: responses that share the highest reward share the credit, with and without `tie`."""
        best = np.asarray(comparison.ranks) == min(comparison.ranks)
        top = rewards == rewards.max()
        pairs = [pair_credit(rewards[i], rewards[j], tie) for i, j in comparison.pairs()]
        chance = float(best.mean())
        earned = {"best": float((top & best).sum() / top.sum()), "pairs": float(np.mean(pairs)), "by chance": chance}
        return self._named(comparison, earned) | _pooled(pairs)

    def is_right(self, comparison: Comparison, rewards: FloatArray) -> bool:
        """See `Benchmark.is_right`: all responses with the highest reward are among the best."""
        return bool((np.asarray(comparison.ranks)[rewards == rewards.max()] == min(comparison.ranks)).all())

    def combine(self, means: Means) -> Outcome:
        """Measures: share of correctly ordered strict pairs, and result of a random choice; each list counts once."""
        prefix = "best in "
        sections = {name.removeprefix(prefix): mean for name, mean in means.items() if name.startswith(prefix)}
        measures = {"pairs": means["pairs"], **_pooled_share(means), "by_chance": means["by chance"]}
        return Outcome(means["best"], sections, measures=measures)
