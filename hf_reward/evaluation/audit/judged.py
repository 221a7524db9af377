"""Audit of a judge that compares pairs: the probes of reward models, with win rates over both orders.

Each probe compares responses to the same prompt, so the log-odds of a win rate take the place of a difference of
rewards. The analysis of each family is run once on made-up values, to record which pairs it compares; only these are
asked.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from hf_reward.evaluation.audit.cases import Case, ScoredCase, Text
from hf_reward.evaluation.audit.family import AuditReport, Family, FamilyResult
from hf_reward.evaluation.audit.inference import Inference
from hf_reward.evaluation.audit.inputs.probe_data import ProbeData
from hf_reward.evaluation.audit.position import POSITION, position_result
from hf_reward.evaluation.audit.rule import AuditRule
from hf_reward.evaluation.audit.steps import (
    MeasuredAudit,
    PreparedAudit,
    measured_by_rewards,
    prepare_audit,
    report_audit,
)
from hf_reward.metrics.bootstrap import Bootstrap, Unit
from hf_reward.scoring.judging.judge import Judge, Judgement
from hf_reward.scoring.judging.opening import OpenedJudge
from hf_reward.scoring.judging.pairs import JudgedPair
from hf_reward.scoring.judging.rewards import RewardJudge
from hf_reward.scoring.judging.win_rates import log_odds, rewards_of_wins

REQUESTS_FILE = "requests.jsonl"
"""Answers of judges in the folder of an audit."""
_PLANNING_RESAMPLES = 200

Key = tuple[str, str]
"""Keys of the two texts of a comparison, in order."""
Plan = dict[Family, list[set[Key]]]
"""Family -> comparisons of each of its cases."""


def audit_judge(
    opened: OpenedJudge,
    rows: Any,
    *,
    rule: AuditRule | None = None,
    probe_data: Sequence[ProbeData] = (),
    announce: Callable[[int, int], None] = lambda comparisons, requests: None,
    **source_defaults: Any,
) -> AuditReport:
    """Audit a judge with the probes of `run_audit`.

    Effects are log-odds of win rates over both orders, limited to those of 1% and 99%, in units of the typical margin.
    Judges of pairs also get a verdict on their position bias. A judge that scores single responses is audited as a
    reward model.

    Args:
        opened: The judge, opened with a cache file to resume an interrupted audit.
        rows: As for `run_audit`.
        rule: As for `run_audit`.
        probe_data: As for `run_audit`.
        announce: Called with the number of comparisons (or texts) and of requests before the first request.
        **source_defaults: As for `run_audit`.

    Returns:
        The report. A case with a failed request is left out and counted.

    Raises:
        BudgetError: If the requests exceed the budget; there is then no report.
        JudgeError: If the judge cannot be used.
        ValueError: If the rows have no usable pair, or no pair was judged.
    """
    prepared = prepare_audit(rows, rule, probe_data, takes_images=False, **source_defaults)
    judge = opened.judge
    if isinstance(judge, RewardJudge):
        measured, extend = _score(prepared, judge, announce), _no_more
    else:
        measured, extend = _compare(prepared, judge, announce)
    measured.model, measured.fingerprint = judge.name, judge.fingerprint
    measured.counts["requests"] = opened.ledger.sent
    return report_audit(prepared, measured, extend)


def _no_more(inference: Inference) -> dict[Family, FamilyResult]:
    return {}


# --- a judge of single responses --------------------------------------------------------------------------------------


def _score(prepared: PreparedAudit, judge: RewardJudge, announce: Callable[[int, int], None]) -> MeasuredAudit:
    texts = prepared.texts()
    requests = [each.request() for each in texts]
    announce(len(texts), judge.rewards_needed(requests))
    rewards = judge.rewards(requests)
    return measured_by_rewards(prepared, {text.key: reward for text, reward in zip(texts, rewards, strict=True)})


# --- a judge of pairs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class JudgedCase(ScoredCase):
    """A case whose texts were compared instead of scored."""

    odds: Mapping[Key, float]
    """Log-odds of the win rate of the first text of a comparison."""

    def gap(self, one: str, other: str) -> float:
        """Return the log-odds of the win rate of one role against another; 0 for equal texts."""
        key, sign = _ordered(self.case.texts[one], self.case.texts[other])
        return sign * self.odds[key] if sign else 0.0

    @property
    def compares_prompts(self) -> bool:
        """See `ScoredCase.compares_prompts`."""
        return False


def _compare(
    prepared: PreparedAudit, judge: Judge, announce: Callable[[int, int], None]
) -> tuple[MeasuredAudit, Callable[[Inference], dict[Family, FamilyResult]]]:
    plan = plan_comparisons(prepared)
    texts = {text.key: (text, case.cluster) for case in _every_case(prepared) for text in case.texts.values()}
    keys = sorted({key for cases in plan.values() for asked in cases for key in asked} | _pair_keys(prepared.pairs))
    pairs = [_judged_pair(texts[one], texts[other]) for one, other in keys]
    announce(len(pairs), judge.requests_needed(pairs))
    judged = dict(zip(keys, judge.compare(pairs), strict=True))
    odds = {key: log_odds(each.probability) for key, each in judged.items() if each.probability is not None}
    measured = MeasuredAudit(
        pairs=_judged_cases(prepared.pairs, [_keys_of(case) for case in prepared.pairs], odds),
        families={family: _judged_cases(prepared.cases[family], asked, odds) for family, asked in plan.items()},
        counts={
            "texts": len(texts),
            "from_cache": 0,
            "without_reward": 0,
            "comparisons": len(keys),
            "comparisons_failed": len(keys) - len(odds),
        },
    )
    own = [(judged[key], case.cluster) for case in prepared.pairs for key in _keys_of(case)]
    return measured, lambda inference: {POSITION: position_result(*_in_both_orders(own), inference)}


def _every_case(prepared: PreparedAudit) -> Iterator[Case]:
    yield from prepared.pairs
    for cases in prepared.cases.values():
        yield from cases


def _judged_pair(one: tuple[Text, str], other: tuple[Text, str]) -> JudgedPair:
    (first, cluster), (second, _) = one, other
    return JudgedPair(first.prompt, first.response, second.response, cluster, first.template)


def _ordered(one: Text, other: Text) -> tuple[Key, int]:
    """Return the key of a comparison, and 1, or -1 if the texts are in the other order; 0 for equal texts."""
    if one.key == other.key:
        return (one.key, other.key), 0
    if one.prompt != other.prompt:
        raise ValueError("A judge of pairs compares two responses to one prompt, but the prompts differ.")
    return ((one.key, other.key), 1) if one.key < other.key else ((other.key, one.key), -1)


def _keys_of(case: Case) -> set[Key]:
    """Return all comparisons within a case."""
    found = [_ordered(one, other) for one, other in combinations(case.texts.values(), 2) if one.prompt == other.prompt]
    return {key for key, sign in found if sign}


def _pair_keys(pairs: Sequence[Case]) -> set[Key]:
    return {key for case in pairs for key in _keys_of(case)}


def _judged_cases(cases: Sequence[Case], asked: Sequence[set[Key]], odds: Mapping[Key, float]) -> list[ScoredCase]:
    """Return the cases whose comparisons were all judged."""
    return [
        JudgedCase(case=case, rewards=_rewards(case, keys, odds), odds=odds)
        for case, keys in zip(cases, asked, strict=True)
        if keys <= odds.keys()
    ]


def _rewards(case: Case, keys: set[Key], odds: Mapping[Key, float]) -> dict[str, float]:
    """Return rewards of the roles that fit the comparisons of the case, for examples and for lists of responses."""
    distinct = list({text.key: None for text in case.texts.values()})
    place = {key: number for number, key in enumerate(distinct)}
    order = sorted(keys)
    fitted = rewards_of_wins(len(distinct), [(place[a], place[b]) for a, b in order], [odds[key] for key in order])
    return {role: float(fitted[place[text.key]]) for role, text in case.texts.items()}


def _in_both_orders(own: Sequence[tuple[Judgement, str]]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return the shares of the response shown first in both orders, shape `(N,)` each, and the clusters."""
    known = [(each, cluster) for each, cluster in own if each.probability is not None]
    one = np.array([each.shown_first for each, _ in known], dtype=np.float64)
    other = 1 - np.array([each.shown_second for each, _ in known], dtype=np.float64)
    return one, other, [cluster for _, cluster in known]


# --- the comparisons of each probe ------------------------------------------------------------------------------------


def plan_comparisons(prepared: PreparedAudit) -> Plan:
    """Record which pairs of texts the analysis of each family compares.

    Args:
        prepared: The cases.

    Returns:
        The comparisons of each case.
    """
    bootstrap = Bootstrap(_PLANNING_RESAMPLES, prepared.rule.seed)
    inference = Inference(bootstrap, Unit(1.0, np.ones(_PLANNING_RESAMPLES)))
    plan: Plan = {}
    for family, cases in prepared.cases.items():
        recorders = [_Recorder(case=case, rewards=_Recorded(case), asked=set()) for case in cases]
        family.analyse(list(recorders), prepared.inputs, inference)
        plan[family] = [each.comparisons() for each in recorders]
    return plan


class _Recorded(dict[str, float]):
    """Made-up rewards that record whether all of them are compared with each other."""

    def __init__(self, case: Case) -> None:
        super().__init__({role: _made_up(text) for role, text in case.texts.items()})
        self.all_compared = False

    def values(self) -> Any:
        self.all_compared = True
        return super().values()


@dataclass(frozen=True, kw_only=True)
class _Recorder(ScoredCase):
    """A case that records its comparisons."""

    rewards: _Recorded
    asked: set[Key]

    def gap(self, one: str, other: str) -> float:
        key, sign = _ordered(self.case.texts[one], self.case.texts[other])
        if sign:
            self.asked.add(key)
        return 1.0 + 0.1 * (self.rewards[one] - self.rewards[other])  # above 0, so that chained comparisons continue

    @property
    def compares_prompts(self) -> bool:
        return False

    def comparisons(self) -> set[Key]:
        return _keys_of(self.case) if self.rewards.all_compared else self.asked


def _made_up(text: Text) -> float:
    return int(text.key[:8], 16) / 2**32


def cache_path(out: str | Path) -> Path:
    """Return the path of the answers in the folder of an audit or of a benchmark."""
    return Path(out) / REQUESTS_FILE
