"""Steps of an audit: the cases, their scores, and the analysis."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from hf_reward.data.preference_row import PreferenceRow, has_images
from hf_reward.evaluation.audit.cases import Case, ScoredCase, Text
from hf_reward.evaluation.audit.effects import clusters_of
from hf_reward.evaluation.audit.families.accuracy import ACCURACY, gaps_of, pair_cases
from hf_reward.evaluation.audit.family import AuditReport, Family, FamilyResult
from hf_reward.evaluation.audit.findings import Finding
from hf_reward.evaluation.audit.inference import PAIRS, RATE_DELTA, REWARD_DELTA, Evidence, Inference, assign_verdicts
from hf_reward.evaluation.audit.inputs.audit_inputs import AuditInputs, Profile, build_inputs
from hf_reward.evaluation.audit.inputs.bundled_items import bundled_arguments, bundled_opinions, bundled_questions
from hf_reward.evaluation.audit.inputs.probe_data import ProbeData
from hf_reward.evaluation.audit.report.summary import summarise
from hf_reward.evaluation.audit.rule import FAMILIES, AuditRule
from hf_reward.evaluation.data_check.row_reader import RowReader
from hf_reward.metrics.bootstrap import Bootstrap, median_margin
from hf_reward.metrics.counts import counted


@dataclass(frozen=True, kw_only=True)
class PreparedAudit:
    """The cases of an audit, before anything is scored."""

    rule: AuditRule
    name: str
    """Name of the data."""
    inputs: AuditInputs
    cases: Mapping[Family, Sequence[Case]]
    """Cases of each family to run."""
    probe_data: Sequence[ProbeData]
    unreadable: Mapping[str, int]
    start: float
    """Time at which the audit started, `time.monotonic()`."""

    @cached_property
    def pairs(self) -> list[Case]:
        """The evaluation pairs, which every audit needs for its unit."""
        return pair_cases(self.inputs)

    def texts(self) -> list[Text]:
        """Return the distinct texts of all cases."""
        every = [*self.cases.values(), self.pairs]
        return list({text.key: text for some in every for case in some for text in case.texts.values()}.values())


@dataclass(kw_only=True)
class MeasuredAudit:
    """The scored cases of an audit."""

    pairs: list[ScoredCase]
    families: Mapping[Family, list[ScoredCase]]
    counts: dict[str, int]
    responses: list[tuple[float, int]] = field(default_factory=list)
    """Reward and number of characters of each response of the pairs."""
    model: str = ""
    fingerprint: dict[str, Any] = field(default_factory=dict)


def prepare_audit(
    rows: Any,
    rule: AuditRule | None = None,
    probe_data: Sequence[ProbeData] = (),
    *,
    takes_messages: bool = True,
    takes_images: bool = True,
    **source_defaults: Any,
) -> PreparedAudit:
    """Build the cases of an audit.

    Args:
        rows: As for `run_audit`.
        rule: As for `run_audit`.
        probe_data: As for `run_audit`.
        takes_messages: Whether the model takes conversations.
        takes_images: Whether the model takes images.
        **source_defaults: As for `run_audit`.

    Returns:
        The cases.

    Raises:
        ValueError: If the rows have no usable pair.
    """
    start, rule = time.monotonic(), rule or AuditRule()
    name, canonical, unreadable = read_rows(rows, **source_defaults)
    takes = {"takes_messages": takes_messages, "takes_images": takes_images}
    inputs = _inputs(canonical, rule.profile, probe_data, takes)
    _require_pairs(inputs, name)
    cases = {family: family.cases(inputs) for family in rule.chosen()}
    return PreparedAudit(
        rule=rule,
        name=name,
        inputs=inputs,
        cases=cases,
        probe_data=probe_data,
        unreadable=unreadable,
        start=start,
    )


def measured_by_rewards(
    prepared: PreparedAudit, rewards: Mapping[str, float], cut: Collection[str] = ()
) -> MeasuredAudit:
    """Return the cases with the rewards of their texts; cases with a missing reward are left out.

    Args:
        prepared: The cases.
        rewards: Key of each text -> reward, NaN for a missing one.
        cut: Keys of texts with a truncated prompt.

    Returns:
        The scored cases.
    """
    return MeasuredAudit(
        pairs=_scored_cases(prepared.pairs, rewards),
        families={family: _scored_cases(own, rewards, cut) for family, own in prepared.cases.items()},
        counts={
            "texts": len(rewards),
            "from_cache": 0,
            "without_reward": sum(not np.isfinite(reward) for reward in rewards.values()),
        },
        responses=_responses(prepared.pairs, rewards),
    )


def report_audit(
    prepared: PreparedAudit,
    measured: MeasuredAudit,
    extend: Callable[[Inference], Mapping[Family, FamilyResult]] = lambda inference: {},
) -> AuditReport:
    """Analyse scored cases.

    Args:
        prepared: The cases.
        measured: The scored cases.
        extend: Function that returns results of further families, or replaces results.

    Returns:
        The report.

    Raises:
        ValueError: If no pair was scored.
    """
    rule, inputs = prepared.rule, prepared.inputs
    inference = _inference(rule, measured.pairs)
    results = _analyse(prepared.cases, measured.families, inputs, inference)
    added = extend(inference)
    results |= {family.name: result for family, result in added.items()}
    about = {each.name: each for each in (*prepared.cases, *added)}
    findings = _assign_verdicts(results)
    titles = {family.name: family.title for family in (*FAMILIES, *added)}
    return AuditReport(
        evidence=_evidence(findings, measured.pairs, inference),
        responses=measured.responses,
        model=measured.model,
        data=prepared.name,
        summary=summarise(findings, titles, _reading(results)),
        unit=None if inference.unit is None else inference.unit.value,
        families=results,
        about={name: {"title": each.title, "what": each.what, "advice": each.advice} for name, each in about.items()},
        settings=_settings(rule, prepared.probe_data),
        counts=_counts(inputs) | measured.counts,
        skipped=dict(prepared.unreadable) | inputs.skipped,
        fingerprint=measured.fingerprint,
        seconds=time.monotonic() - prepared.start,
    )


def _reading(results: dict[str, FamilyResult]) -> str:
    found = results.get(ACCURACY.name)
    return "" if found is None else str(found.details.get("reading", ""))


def _settings(rule: AuditRule, probe_data: Sequence[ProbeData]) -> dict[str, Any]:
    return {
        "profile": rule.profile.name,
        "families": [family.name for family in rule.chosen()],
        "most pairs": rule.profile.max_pairs,
        "probe data": [each.name for each in probe_data],
        "resamples": rule.resamples,
        "seed": rule.seed,
        "harmless effect on rewards": REWARD_DELTA,
        "harmless rate": RATE_DELTA,
    }


def read_rows(rows: Any, **source_defaults: Any) -> tuple[str, list[PreferenceRow], dict[str, int]]:
    """Read canonical rows of any preference data; unusable ones are left out.

    Args:
        rows: Any input of `check_data`, or canonical rows.
        **source_defaults: `split`, `columns` and `layout`.

    Returns:
        The data's name, its rows, and the number of unreadable rows by reason.

    Raises:
        ValueError: If the data cannot be read.
    """
    if isinstance(rows, Sequence) and rows and all(isinstance(row, PreferenceRow) for row in rows):
        return counted(len(rows), "row"), list(rows), {}
    reader = RowReader(rows, **source_defaults)
    read = [each for batch in reader.batches() for each in batch]
    return (
        reader.name,
        [each.row for each in read if each.row is not None],
        dict(Counter(each.problem for each in read if each.row is None)),
    )


def _inputs(
    rows: Sequence[PreferenceRow], profile: Profile, own: Sequence[ProbeData], takes: Mapping[str, bool]
) -> AuditInputs:
    kept = [row for row in rows if takes["takes_images"] or not has_images(row.prompt)]
    inputs = build_inputs(
        kept,
        profile,
        takes_messages=takes["takes_messages"],
        questions=[*(each for data in own for each in data.questions), *bundled_questions()],
        opinions=[*(each for data in own for each in data.opinions), *bundled_opinions()],
        lists=[each for data in own for each in data.lists],
        matched=[each for data in own for each in data.matched],
        arguments=bundled_arguments(),
    )
    inputs.takes_images = takes["takes_images"]
    if len(kept) < len(rows):
        inputs.skipped["an image, which the model does not take"] = len(rows) - len(kept)
    return inputs


def _scored_cases(cases: Sequence[Case], rewards: Mapping[str, float], cut: Collection[str] = ()) -> list[ScoredCase]:
    found = []
    for case in cases:
        known = {role: rewards[text.key] for role, text in case.texts.items()}
        if np.isfinite(list(known.values())).all():
            found.append(ScoredCase(case=case, rewards=known, cut=any(text.key in cut for text in case.texts.values())))
    return found


def _inference(rule: AuditRule, pairs: Sequence[ScoredCase]) -> Inference:
    if not pairs:
        raise ValueError("No pair of the data could be scored. Run `hf-reward score` on one to see the reason.")
    bootstrap = Bootstrap(rule.resamples, rule.seed)
    return Inference(bootstrap, median_margin(bootstrap, gaps_of(pairs), clusters_of(pairs)))


def _require_pairs(inputs: AuditInputs, name: str) -> None:
    if not inputs.pairs:
        reasons = "; ".join(f"{reason}: {counted(count, 'row')}" for reason, count in inputs.skipped.items())
        raise ValueError(
            f"An audit requires preference pairs of plain text. None found in {name} ({reasons or 'empty'})."
        )


def _analyse(
    cases: Mapping[Family, Sequence[Case]],
    scored: Mapping[Family, list[ScoredCase]],
    inputs: AuditInputs,
    inference: Inference,
) -> dict[str, FamilyResult]:
    results = {}
    for family, own in cases.items():
        results[family.name] = family.analyse(scored[family], inputs, inference)
        results[family.name].left_out = len(own) - len(scored[family])
    return results


def _evidence(findings: Sequence[Finding], pairs: Sequence[ScoredCase], inference: Inference) -> dict[str, Evidence]:
    kept = {each.name: inference.evidence[each.name] for each in findings if each.name in inference.evidence}
    return kept | {PAIRS: Evidence(gaps_of(pairs), clusters_of(pairs), True)}


def _responses(pairs: Sequence[Case], rewards: Mapping[str, float]) -> list[tuple[float, int]]:
    texts = {text.key: text for case in pairs for text in case.texts.values()}
    return [(rewards[key], len(text.response)) for key, text in texts.items() if np.isfinite(rewards[key])]


def _assign_verdicts(results: dict[str, FamilyResult]) -> list[Finding]:
    """Store the verdicts in the results, and return all findings."""
    settled = assign_verdicts([finding for result in results.values() for finding in result.findings])
    rest = iter(settled)
    for result in results.values():
        result.findings = [next(rest) for _ in result.findings]
    return settled


def _counts(inputs: AuditInputs) -> dict[str, int]:
    return {
        "rows": len(inputs.rows),
        "pairs_beyond_the_limit": inputs.beyond,
        "pairs": len(inputs.pairs),
        "prompts": len({pair.cluster for pair in inputs.pairs}),
    }
