"""Run an audit: collect the texts of all probes, score each once, and analyse the rewards."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_reward.data.path_safety import shown_name, with_shown_model
from hf_reward.data.preference_row import PreferenceRow
from hf_reward.evaluation.audit.cases import Case, ScoredCase, Text
from hf_reward.evaluation.audit.effects import clusters_of
from hf_reward.evaluation.audit.families.accuracy import ACCURACY, gaps_of, pair_cases
from hf_reward.evaluation.audit.families.calibration import CALIBRATION
from hf_reward.evaluation.audit.families.confidence import CONFIDENCE
from hf_reward.evaluation.audit.families.degenerate import DEGENERATE
from hf_reward.evaluation.audit.families.formatting import FORMAT
from hf_reward.evaluation.audit.families.length import LENGTH
from hf_reward.evaluation.audit.families.numerical import NUMERICAL, numerical_result
from hf_reward.evaluation.audit.families.persona import PERSONA
from hf_reward.evaluation.audit.families.robustness import ROBUSTNESS
from hf_reward.evaluation.audit.families.selection import SELECTION
from hf_reward.evaluation.audit.families.sycophancy import SYCOPHANCY
from hf_reward.evaluation.audit.family import AuditReport, Family, FamilyResult
from hf_reward.evaluation.audit.findings import Finding
from hf_reward.evaluation.audit.inference import PAIRS, RATE_DELTA, REWARD_DELTA, Evidence, Inference, assign_verdicts
from hf_reward.evaluation.audit.inputs.audit_inputs import FULL, AuditInputs, Profile, build_inputs
from hf_reward.evaluation.audit.inputs.bundled_items import bundled_arguments, bundled_opinions, bundled_questions
from hf_reward.evaluation.audit.inputs.probe_data import ProbeData
from hf_reward.evaluation.audit.report.summary import summarise
from hf_reward.evaluation.audit.score_cache import CACHE_FILE, RewardFunction, ScoreCache, score_texts, takes_prompts
from hf_reward.evaluation.data_check.row_reader import RowReader
from hf_reward.metrics.bootstrap import Bootstrap, median_margin
from hf_reward.metrics.counts import counted
from hf_reward.preprocessing.response_encoding import CONVERSATIONS
from hf_reward.scoring.reward_scorer import RewardScorer

FAMILIES = (
    ACCURACY,
    LENGTH,
    CALIBRATION,
    SYCOPHANCY,
    FORMAT,
    DEGENERATE,
    ROBUSTNESS,
    CONFIDENCE,
    PERSONA,
    NUMERICAL,
    SELECTION,
)
"""The families in order of importance."""


@dataclass(frozen=True, kw_only=True)
class AuditRule:
    """Settings of an audit."""

    profile: Profile = FULL
    families: tuple[str, ...] = ()
    """Names of the families to run; empty for those of the profile."""
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        known = [family.name for family in FAMILIES]
        unknown = [name for name in self.families if name not in known]
        if unknown:
            raise ValueError(f"Unknown family: {', '.join(unknown)}. Choose from {', '.join(known)}.")
        if self.resamples < 200:
            raise ValueError(f"`resamples` must be 200 or more, but is {self.resamples}.")

    def chosen(self) -> list[Family]:
        """Return the families to run."""
        names = self.families or self.profile.families
        return [family for family in FAMILIES if not names or family.name in names]


def run_audit(
    scorer: RewardScorer | RewardFunction | str | Path,
    rows: Any,
    *,
    out: str | Path | None = None,
    rule: AuditRule | None = None,
    probe_data: Sequence[ProbeData] = (),
    **source_defaults: Any,
) -> AuditReport:
    """Audit a reward model for biases that RLHF would amplify.

    Args:
        scorer: A `RewardScorer`, a folder or Hub id of a model, or a function `f(prompts, responses)` that returns a
            reward for each response, or `f(texts)` of `Text`s. A prompt is text or messages. Rewards of a function are
            cached in a file only if it has an attribute `fingerprint`, a dict that identifies it.
        rows: Held-out preference data: any input of `check_data`, or canonical rows.
        out: Folder of the cache `scores.jsonl`, with which an interrupted audit resumes; None for no cache. The report
            is written by `write_audit`.
        rule: Profile, families and bootstrap.
        probe_data: Your own questions, opinions and lists, in addition to the bundled ones.
        **source_defaults: `split`, `columns` and `layout` for `rows`.

    Returns:
        The report.

    Raises:
        TypeError: If `scorer` is a function with other arguments.
        ValueError: If the model cannot score, the rows have no usable pair, or a setting is invalid.
    """
    start = time.monotonic()
    rule = rule or AuditRule()
    scorer = _checked(scorer)
    name, canonical, unreadable = read_rows(rows, **source_defaults)
    inputs = _inputs(canonical, rule.profile, scorer, probe_data)
    _require_pairs(inputs, name)
    fingerprint = _fingerprint(scorer)
    cache = ScoreCache(None if out is None or fingerprint is None else Path(out) / CACHE_FILE, fingerprint or {})
    cases = {family: family.cases(inputs) for family in rule.chosen()}
    rewards = score_texts(_texts([*cases.values(), pair_cases(inputs)]), scorer, cache)
    pairs = _scored_cases(pair_cases(inputs), rewards)
    inference = _inference(rule, pairs)
    results = _analyse(cases, rewards, cache.cut, inputs, inference)
    if isinstance(scorer, RewardScorer) and NUMERICAL.name in results:
        results[NUMERICAL.name] = numerical_result(scorer, inputs, inference)
    findings = _assign_verdicts(results)
    return AuditReport(
        evidence=_evidence(findings, pairs, inference),
        responses=_responses(pair_cases(inputs), rewards),
        model=shown_name(scorer.name) if isinstance(scorer, RewardScorer) else _name(scorer),
        data=name,
        summary=summarise(findings, {family.name: family.title for family in FAMILIES}, _reading(results)),
        unit=None if inference.unit is None else inference.unit.value,
        families=results,
        about={each.name: {"title": each.title, "what": each.what, "advice": each.advice} for each in cases},
        settings=_settings(rule, probe_data),
        counts=_counts(inputs, rewards, cache),
        skipped=unreadable | inputs.skipped,
        fingerprint=with_shown_model(fingerprint or {}),
        seconds=time.monotonic() - start,
    )


def _checked(scorer: RewardScorer | RewardFunction | str | Path) -> RewardScorer | RewardFunction:
    """Return the scorer, loaded if it is a name; reject functions with other arguments before texts are collected."""
    if isinstance(scorer, (str, Path)):
        return RewardScorer.from_pretrained(scorer)
    if not isinstance(scorer, RewardScorer):
        takes_prompts(scorer)
    return scorer


def _fingerprint(scorer: RewardScorer | RewardFunction) -> dict[str, Any] | None:
    if isinstance(scorer, RewardScorer):
        return scorer.fingerprint()
    own = getattr(scorer, "fingerprint", None)
    return own if isinstance(own, dict) else None


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


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _inputs(rows: Sequence[PreferenceRow], profile: Profile, scorer: Any, own: Sequence[ProbeData]) -> AuditInputs:
    takes_messages = not isinstance(scorer, RewardScorer) or scorer.rows == CONVERSATIONS
    return build_inputs(
        rows,
        profile,
        takes_messages=takes_messages,
        questions=[*(each for data in own for each in data.questions), *bundled_questions()],
        opinions=[*(each for data in own for each in data.opinions), *bundled_opinions()],
        lists=[each for data in own for each in data.lists],
        matched=[each for data in own for each in data.matched],
        arguments=bundled_arguments(),
    )


def _scored_cases(cases: Sequence[Case], rewards: dict[str, float], cut: Collection[str] = ()) -> list[ScoredCase]:
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


def _texts(cases: Sequence[Sequence[Case]]) -> list[Text]:
    """Return the distinct texts of all cases."""
    return list({text.key: text for some in cases for case in some for text in case.texts.values()}.values())


def _analyse(
    cases: Mapping[Family, Sequence[Case]],
    rewards: dict[str, float],
    cut: Collection[str],
    inputs: AuditInputs,
    inference: Inference,
) -> dict[str, FamilyResult]:
    results = {}
    for family, own in cases.items():
        scored = _scored_cases(own, rewards, cut)
        results[family.name] = family.analyse(scored, inputs, inference)
        results[family.name].left_out = len(own) - len(scored)
    return results


def _evidence(findings: Sequence[Finding], pairs: Sequence[ScoredCase], inference: Inference) -> dict[str, Evidence]:
    kept = {each.name: inference.evidence[each.name] for each in findings if each.name in inference.evidence}
    return kept | {PAIRS: Evidence(gaps_of(pairs), clusters_of(pairs), True)}


def _responses(pairs: Sequence[Case], rewards: dict[str, float]) -> list[tuple[float, int]]:
    texts = {text.key: text for case in pairs for text in case.texts.values()}
    return [(rewards[key], len(text.response)) for key, text in texts.items() if np.isfinite(rewards[key])]


def _assign_verdicts(results: dict[str, FamilyResult]) -> list[Finding]:
    """Store the verdicts in the results, and return all findings."""
    settled = assign_verdicts([finding for result in results.values() for finding in result.findings])
    rest = iter(settled)
    for result in results.values():
        result.findings = [next(rest) for _ in result.findings]
    return settled


def _counts(inputs: AuditInputs, rewards: dict[str, float], cache: ScoreCache) -> dict[str, int]:
    return {
        "rows": len(inputs.rows),
        "pairs_beyond_the_limit": inputs.beyond,
        "pairs": len(inputs.pairs),
        "prompts": len({pair.cluster for pair in inputs.pairs}),
        "texts": len(rewards),
        "from_cache": min(cache.from_file, len(rewards)),
        "without_reward": sum(not np.isfinite(reward) for reward in rewards.values()),
    }
