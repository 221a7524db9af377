"""Self-test of the audit: power for planted biases, coverage of intervals, false alarms on unbiased models."""

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
"""Level of the binomial tests that decide whether the self-test passes."""
_TRUTH_PROMPTS = 4000
_TRUTH_SEED = 987_654


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A planted bias, and the finding that must detect it."""

    name: str
    finding: str
    family: str
    settings: dict[str, float]
    """Settings of `SyntheticReward`."""


FAULTS = (
    Fault(name="rewards length", finding="padding_effect", family="length", settings={"length": 0.5}),
    Fault(name="rewards bold text", finding="format_bold", family="format", settings={"bold": 0.5}),
    Fault(name="agrees with the user", finding="sycophancy_factual", family="sycophancy", settings={"sycophancy": 0.8}),
    Fault(
        name="overconfident by a factor of two",
        finding="calibration_slope",
        family="calibration",
        settings={"scale": 2.0},
    ),
)
"""Planted biases; their true sizes follow from the definition of `SyntheticReward`."""


@dataclass(frozen=True, kw_only=True)
class FaultResult:
    """Results for one planted bias."""

    name: str
    finding: str
    truth: float
    mean_estimate: float
    covered: int
    """Number of seeds whose 95% interval covers the truth."""
    flagged: int
    """Number of seeds with the verdict `biased`."""
    seeds: int
    p_too_few_covered: float
    """P(at most this many intervals cover the truth) if each covers it with a probability of 95%."""

    @property
    def passed(self) -> bool:
        """Whether coverage is not significantly below 95%, and the bias is found in 80% of the seeds."""
        return self.p_too_few_covered > ALPHA and self.flagged >= 0.8 * self.seeds


CLEAN = {
    "clean": {},
    "clean, with noise, offsets and dislikes": {"noise": 0.2, "offset": 2.0, "dislikes": 0.5},
}
"""Models without a bias. The second one has random reactions to every edit and offsets by prompt, and it dislikes
double spaces, fences, links, emoji and stock sentences, as a good model may."""


@dataclass(frozen=True, kw_only=True)
class CleanResult:
    """False alarms for an unbiased model."""

    name: str
    seeds: int
    flagged: int
    """Number of seeds with any verdict `biased`."""
    which: dict[str, int]
    """Finding -> number of seeds in which it was `biased`."""
    p_too_many: float
    """P(at least this many flagged seeds) if each is flagged with a probability of 5%."""
    verdicts: dict[str, int]
    """Verdict -> count over all seeds."""

    @property
    def passed(self) -> bool:
        """Whether at most 5% of the seeds are flagged."""
        return self.flagged <= 0.05 * self.seeds


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """Results of the self-test."""

    prompts: int
    faults: list[FaultResult]
    clean: list[CleanResult]

    @property
    def passed(self) -> bool:
        """Whether every part passed."""
        return all(each.passed for each in [*self.clean, *self.faults])

    def to_dict(self) -> dict[str, Any]:
        """Return the results as JSON values."""
        faults = [{**asdict(each), "passed": each.passed} for each in self.faults]
        clean = [{**asdict(each), "passed": each.passed} for each in self.clean]
        return json_value({"passed": self.passed, "prompts": self.prompts, "faults": faults, "clean": clean})


def run_self_test(
    seeds: int = 200, *, clean_seeds: int | None = None, prompts: int = 120, show_progress: bool = False
) -> SelfTest:
    """Audit synthetic reward models with planted biases, and unbiased ones.

    Args:
        seeds: Number of data sets for each bias; the seeds are 0, 1, 2, ...
        clean_seeds: Number of data sets for the unbiased models; by default `seeds`.
        prompts: Pairs in each data set; intervals require 100 or more.
        show_progress: Whether to show progress bars.

    Returns:
        The results.
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
    """Return the true size of a planted bias in the unit of its finding.

    Rewards are divided by the median margin of a very large data set; the length ratio of padding is its mean over such
    a set.

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
