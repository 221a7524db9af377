"""Judges of pairs: judgements in both orders, averages of several judges, and their reports."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from hf_reward.scoring.judging.pairs import JudgedPair, pair_text
from hf_reward.scoring.judging.position_bias import PositionBias, measure_position_bias
from hf_reward.scoring.judging.protocols import Answer
from hf_reward.scoring.judging.requests import Ledger, Requests

_MILLION = 1_000_000


@dataclass(frozen=True)
class Judgement:
    """The judgement of a pair, in both orders."""

    shown_first: float | None
    """P(the first response is better) when it is shown first; None if a request failed."""
    shown_second: float | None
    """P(the first response is better) when it is shown second."""
    problem: str = ""
    """Reason of a failure."""

    @property
    def probability(self) -> float | None:
        """P(the first response is better), the mean of both orders; None if one of them failed."""
        if self.shown_first is None or self.shown_second is None:
            return None
        return (self.shown_first + self.shown_second) / 2


@dataclass(frozen=True, kw_only=True)
class JudgeReport:
    """Counts of one judge."""

    name: str
    requests: int
    """Requests that were answered in this run."""
    from_cache: int
    """Requests that an earlier run or an earlier call had answered."""
    failed: int
    """Requests without an answer."""
    reasons: Mapping[str, int]
    """Reason of failures -> number of requests."""
    input_tokens: int
    """Tokens of all answers in use, with those of earlier runs."""
    output_tokens: int
    cost: float | None
    """Price of these tokens, None if it is unknown."""
    position_bias: PositionBias | None
    """None for judges that score each response on its own, and without judgements."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        bias = None if self.position_bias is None else self.position_bias.to_dict()
        return {**asdict(self), "reasons": dict(self.reasons), "position_bias": bias}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "JudgeReport":
        """Return the report from its JSON values."""
        bias = values["position_bias"]
        return cls(**{**values, "position_bias": None if bias is None else PositionBias(**bias)})


class Judge(Protocol):
    """Compares pairs of responses."""

    name: str
    fingerprint: dict[str, Any]

    def requests_needed(self, pairs: Sequence[JudgedPair]) -> int:
        """Return the number of requests that pairs still need."""
        ...

    def compare(self, pairs: Sequence[JudgedPair]) -> list[Judgement]:
        """Judge pairs in both orders.

        Args:
            pairs: The pairs.

        Returns:
            A judgement for each.

        Raises:
            BudgetError: If the requests exceed the budget.
            JudgeError: If the judge cannot be used.
        """
        ...

    def reports(self) -> list[JudgeReport]:
        """Return the counts of each judge."""
        ...

    def close(self) -> None:
        """Close files and connections."""
        ...


@dataclass
class _Seen:
    """Judgements for the position bias: pair -> shares of the response shown first in both orders, and cluster."""

    shares: dict[str, tuple[float, float, str]] = field(default_factory=dict)

    def add(self, pair: JudgedPair, judgement: Judgement) -> None:
        if judgement.shown_first is not None and judgement.shown_second is not None:
            self.shares[pair_text(pair)] = (judgement.shown_first, 1 - judgement.shown_second, pair.group)

    def bias(self) -> PositionBias | None:
        if not self.shares:
            return None
        one, other, clusters = zip(*self.shares.values(), strict=True)
        return measure_position_bias(np.array(one), np.array(other), clusters)


class RequestJudge:
    """A judge that answers requests. With votes, a judgement needs all of them."""

    def __init__(self, requests: Requests, prices: tuple[float, float] | None = None) -> None:
        self.name, self.fingerprint = requests.endpoint.name, requests.endpoint.fingerprint
        self._requests, self._prices = requests, prices
        self._used: dict[str, Answer] = {}
        self._seen = _Seen()

    def requests_needed(self, pairs: Sequence[JudgedPair]) -> int:
        """See `Judge.requests_needed`."""
        return len(self._requests.missing([body for pair in pairs for body in self._both(pair)]))

    def compare(self, pairs: Sequence[JudgedPair]) -> list[Judgement]:
        """See `Judge.compare`."""
        answers = self._requests.answers([body for pair in pairs for body in self._both(pair)])
        self._used |= {key: each for key, each in answers.items() if isinstance(each, Answer)}
        judged = [self._judgement(pair, answers) for pair in pairs]
        for pair, judgement in zip(pairs, judged, strict=True):
            self._seen.add(pair, judgement)
        return judged

    def reports(self) -> list[JudgeReport]:
        """See `Judge.reports`."""
        given = sum(each.input_tokens for each in self._used.values())
        written = sum(each.output_tokens for each in self._used.values())
        prices = self._prices
        return [
            JudgeReport(
                name=self.name,
                requests=self._requests.answered,
                from_cache=self._requests.from_cache,
                failed=sum(self._requests.failures.values()),
                reasons=dict(self._requests.failures.most_common()),
                input_tokens=given,
                output_tokens=written,
                cost=None if prices is None else (given * prices[0] + written * prices[1]) / _MILLION,
                position_bias=self._seen.bias(),
            )
        ]

    def close(self) -> None:
        """See `Judge.close`."""
        close = getattr(self._requests.endpoint, "close", None)
        if close is not None:
            close()

    def _both(self, pair: JudgedPair) -> list[dict[str, Any]]:
        return [body for each in (pair, pair.swapped()) for body in self._requests.endpoint.bodies(each)]

    def _judgement(self, pair: JudgedPair, answers: Mapping[str, Answer | str]) -> Judgement:
        shares: list[float | None] = []
        problem = ""
        for each in (pair, pair.swapped()):
            found = [answers[self._requests.key(body)] for body in self._requests.endpoint.bodies(each)]
            known = [answer.value for answer in found if isinstance(answer, Answer)]
            problem = problem or next((answer for answer in found if isinstance(answer, str)), "")
            shares.append(float(np.mean(known)) if len(known) == len(found) else None)
        second = None if shares[1] is None else 1 - shares[1]
        return Judgement(shares[0], second, problem)


class AverageJudge:
    """The mean probability of several judges. A pair that one of them could not judge has no probability."""

    def __init__(self, judges: Sequence[Judge], ledger: Ledger) -> None:
        self.judges, self._ledger = list(judges), ledger
        self.name = "mean of " + ", ".join(each.name for each in self.judges)
        self.fingerprint = {"mean of": [each.fingerprint for each in self.judges]}

    def requests_needed(self, pairs: Sequence[JudgedPair]) -> int:
        """See `Judge.requests_needed`."""
        return sum(each.requests_needed(pairs) for each in self.judges)

    def compare(self, pairs: Sequence[JudgedPair]) -> list[Judgement]:
        """See `Judge.compare`."""
        self._ledger.require(self.requests_needed(pairs))  # before the first judge is asked
        return [_mean(found) for found in zip(*(each.compare(pairs) for each in self.judges), strict=True)]

    def reports(self) -> list[JudgeReport]:
        """See `Judge.reports`."""
        return [report for each in self.judges for report in each.reports()]

    def close(self) -> None:
        """See `Judge.close`."""
        for each in self.judges:
            each.close()


def _mean(judged: Sequence[Judgement]) -> Judgement:
    failed = next((each for each in judged if each.probability is None), None)
    if failed is not None:
        return Judgement(None, None, failed.problem)
    first, second = ([getattr(each, side) for each in judged] for side in ("shown_first", "shown_second"))
    return Judgement(float(np.mean(first)), float(np.mean(second)))


def problem_counts(judged: Sequence[Judgement]) -> dict[str, int]:
    """Return the reasons why pairs have no probability, and the number of pairs of each."""
    return dict(Counter(each.problem for each in judged if each.probability is None).most_common())
