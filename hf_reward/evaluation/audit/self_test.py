"""The audit of the audit: does it find planted faults, do its intervals hold, does it leave clean models alone?"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from huggingface_hub.utils import tqdm
from scipy import stats

from hf_reward.data.python_values import json_value
from hf_reward.evaluation.audit.edits.padding import KINDS, pad
from hf_reward.evaluation.audit.edits.sentences import count_words
from hf_reward.evaluation.audit.family import AuditReport
from hf_reward.evaluation.audit.findings import Finding
from hf_reward.evaluation.audit.inputs.audit_inputs import FULL, Opinion, Profile, Question, build_inputs
from hf_reward.evaluation.audit.inputs.bundled_items import bundled_opinions, bundled_questions
from hf_reward.evaluation.audit.inputs.synthetic import SyntheticData, SyntheticReward, synthetic_data
from hf_reward.evaluation.audit.running import AuditRule, run_audit

ALPHA = 0.01
"""Level of the binomial tests that decide whether the audit passes."""
_TRUTH_PROMPTS = 4000
_TRUTH_SEED = 987_654


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault that is planted, and the finding that has to show it."""

    name: str
    finding: str
    family: str
    settings: dict[str, float]
    """Of `SyntheticReward`."""


FAULTS = (
    Fault(name="pays for length", finding="padding_effect", family="length", settings={"length": 0.5}),
    Fault(name="pays for bold text", finding="format_bold", family="format", settings={"bold": 0.5}),
    Fault(name="sides with the user", finding="sycophancy_factual", family="sycophancy", settings={"sycophancy": 0.8}),
    Fault(name="twice too confident", finding="calibration_slope", family="calibration", settings={"scale": 2.0}),
)
"""The faults; their true sizes follow from the definitions of `SyntheticReward`."""


@dataclass(frozen=True, kw_only=True)
class FaultResult:
    """How well one planted fault was measured."""

    name: str
    finding: str
    truth: float
    mean_estimate: float
    covered: int
    """Seeds whose 95% interval held the truth."""
    flagged: int
    """Seeds with the verdict `biased`."""
    seeds: int
    p_too_few_covered: float
    """P(so few intervals hold the truth or fewer) if each held it with probability 95%."""

    @property
    def passed(self) -> bool:
        """Whether coverage is not shown to be below 95%, and the fault is found in four of five seeds."""
        return self.p_too_few_covered > ALPHA and self.flagged >= 0.8 * self.seeds


CLEAN = {
    "clean": {},
    "clean, but noisy, with offsets and dislikes": {"noise": 0.2, "offset": 2.0, "dislikes": 0.5},
}
"""Models without a bias. The second reacts to every edit at random, prompts add to all their answers, and it marks down
what a sensible model may: double spaces, fences, links, emoji, stock sentences."""


@dataclass(frozen=True, kw_only=True)
class CleanResult:
    """How often a model without fault was flagged."""

    name: str
    seeds: int
    flagged: int
    """Seeds with any verdict `biased`."""
    which: dict[str, int]
    """Finding -> seeds in which it was flagged."""
    p_too_many: float
    """P(so many flagged cards or more) if each were flagged with probability 5%."""
    verdicts: dict[str, int]
    """Verdict -> how often, over all seeds."""

    @property
    def passed(self) -> bool:
        """Whether no more than 5% of the cards hold a flag."""
        return self.flagged <= 0.05 * self.seeds


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """All of it."""

    prompts: int
    faults: list[FaultResult]
    clean: list[CleanResult]

    @property
    def passed(self) -> bool:
        """Whether every part passed."""
        return all(each.passed for each in [*self.clean, *self.faults])

    def to_dict(self) -> dict[str, Any]:
        """The results as JSON values."""
        faults = [{**asdict(each), "passed": each.passed} for each in self.faults]
        clean = [{**asdict(each), "passed": each.passed} for each in self.clean]
        return json_value({"passed": self.passed, "prompts": self.prompts, "faults": faults, "clean": clean})


def run_self_test(
    seeds: int = 200, *, clean_seeds: int | None = None, prompts: int = 120, show_progress: bool = False
) -> SelfTest:
    """Audit synthetic reward models with planted faults, and clean ones.

    Args:
        seeds: Data sets for each fault; the seeds are 0, 1, 2, ...
        clean_seeds: Data sets for the clean model; as many by default.
        prompts: Pairs in each, 100 or more for the intervals to be what they say.
        show_progress: Whether to show bars.

    Returns:
        What was found.
    """
    items = bundled_questions(), bundled_opinions()
    hidden = None if show_progress else True  # None: only in a terminal
    faults = [
        _measure_fault(fault, items, tqdm(range(seeds), desc=fault.name, disable=hidden), prompts) for fault in FAULTS
    ]
    count = seeds if clean_seeds is None else clean_seeds
    clean = [_measure_clean(name, items, tqdm(range(count), desc=name, disable=hidden), prompts) for name in CLEAN]
    return SelfTest(prompts=prompts, faults=faults, clean=clean)


_Items = tuple[Sequence[Question], Sequence[Opinion]]


def _audit(data: SyntheticData, reward: SyntheticReward, families: tuple[str, ...]) -> AuditReport:
    rule = AuditRule(families=families, profile=_profile(len(data.rows)))
    return run_audit(reward, data.rows, rule=rule)


def _profile(prompts: int) -> Profile:
    return Profile(**{**asdict(FULL), "max_pairs": prompts, "answers": prompts})


def _measure_fault(fault: Fault, items: _Items, seeds: Any, prompts: int) -> FaultResult:
    truth = true_size(fault)
    found: list[Finding] = []
    for seed in seeds:
        data = synthetic_data(prompts, seed)
        reward = replace(SyntheticReward(data.quality, *items, seed=seed), **fault.settings)
        found.append(_audit(data, reward, (fault.family,)).finding(fault.finding))
    covered = sum(each.ci_low is not None and each.ci_low <= truth <= (each.ci_high or 0) for each in found)
    return FaultResult(
        name=fault.name,
        finding=fault.finding,
        truth=truth,
        mean_estimate=float(np.mean([each.estimate for each in found if each.estimate is not None])),
        covered=covered,
        flagged=sum(each.verdict == "biased" for each in found),
        seeds=len(found),
        p_too_few_covered=float(stats.binom.cdf(covered, len(found), 0.95)),
    )


def _measure_clean(name: str, items: _Items, seeds: Any, prompts: int) -> CleanResult:
    which: dict[str, int] = {}
    verdicts: dict[str, int] = {}
    flagged = count = 0
    for seed in seeds:
        data = synthetic_data(prompts, 100_000 + seed)
        reward = replace(SyntheticReward(data.quality, *items, seed=seed), **CLEAN[name])
        report = _audit(data, reward, ())
        names = [each.name for each in report.findings if each.verdict == "biased"]
        flagged += bool(names)
        count += 1
        for each in report.findings:
            if not each.screen_only:
                verdicts[each.verdict] = verdicts.get(each.verdict, 0) + 1
        for each in names:
            which[each] = which.get(each, 0) + 1
    p_value = float(stats.binom.sf(flagged - 1, count, 0.05))
    return CleanResult(name=name, seeds=count, flagged=flagged, which=which, p_too_many=p_value, verdicts=verdicts)


def true_size(fault: Fault) -> float:
    """Size of a planted fault in the unit of its finding, from its definition.

    Rewards are divided by the median margin of a very large data set; how much longer padding makes an answer is its
    mean over such a set.

    Args:
        fault: One of `FAULTS`.

    Returns:
        The size.
    """
    return _TRUTHS[fault.finding](fault)


def _true_unit(fault: Fault) -> float:
    """Median absolute margin over a very large data set."""
    data = synthetic_data(_TRUTH_PROMPTS, _TRUTH_SEED)
    reward = replace(SyntheticReward(data.quality), **fault.settings)
    pairs = build_inputs(data.rows, _profile(_TRUTH_PROMPTS)).pairs
    chosen, rejected = ([pair.text(getattr(pair, side)) for pair in pairs] for side in ("chosen", "rejected"))
    return float(np.median(np.abs(np.subtract(reward(chosen), reward(rejected)))))


def _true_padding(fault: Fault) -> float:
    data = synthetic_data(_TRUTH_PROMPTS, _TRUTH_SEED)
    answers = build_inputs(data.rows, _profile(_TRUTH_PROMPTS)).answers()
    ratios = [
        np.mean([np.log2(count_words(pad(answer, kind=kind, dose=2.0)) / count_words(answer)) for kind in KINDS])
        for _, answer in answers
    ]
    return float(fault.settings["length"] * np.mean(ratios)) / _true_unit(fault)


_TRUTHS: dict[str, Callable[[Fault], float]] = {
    "padding_effect": _true_padding,
    "format_bold": lambda fault: fault.settings["bold"] / _true_unit(fault),
    "sycophancy_factual": lambda fault: fault.settings["sycophancy"] / _true_unit(fault),
    "calibration_slope": lambda fault: 1 / fault.settings["scale"] - 1,
}
