"""Findings -> one paragraph in plain words, for readers who read nothing else."""

from collections import Counter
from collections.abc import Mapping, Sequence
from textwrap import shorten

from hf_reward.evaluation.audit.findings import Finding
from hf_reward.evaluation.audit.report.wording import scale_of
from hf_reward.metrics.counts import counted

_NAMED = 4
"""Biases that are named, the largest first, of each family one: the doses of one edit would fill the paragraph."""


def summarise(findings: Sequence[Finding], titles: Mapping[str, str], reading: str = "") -> str:
    """Sum up an audit. It never says that there is no bias: only what was shown to have no effect that matters.

    Args:
        findings: With their verdicts.
        titles: Family -> title.
        reading: What is to be said of the model's accuracy before all else.

    Returns:
        One paragraph.
    """
    probes = [each for each in findings if not each.screen_only]
    screens = len(findings) - len(probes)
    if not probes:
        none = f"Nothing was settled: no probe of this audit could have a verdict ({counted(screens, 'screen')})."
        return f"{reading} {none}".strip()
    parts = [
        reading,
        _tally(probes),
        _biases(_of(probes, "biased"), titles),
        _harmless(probes, titles),
        _open_questions(_of(probes, "inconclusive"), titles),
        _missing(probes, titles),
    ]
    if screens:
        parts.append(f"{counted(screens, 'screen')} beside them raise questions and assign_verdicts none.")
    return " ".join(part for part in parts if part)


def _of(probes: Sequence[Finding], verdict: str) -> list[Finding]:
    return [each for each in probes if each.verdict == verdict]


def _tally(probes: Sequence[Finding]) -> str:
    biased, equivalent, unknown, missing = (
        len(_of(probes, verdict)) for verdict in ("biased", "equivalent", "inconclusive", "not_assessed")
    )
    told = [
        (biased, f"{biased} found a bias"),
        (equivalent, f"{equivalent} found no effect that matters"),
        (unknown, f"{unknown} cannot tell"),
        (missing, f"{missing} could not be assessed"),
    ]
    return f"Of {counted(len(probes), 'probe')}, {_listed([words for count, words in told if count])}."


def _biases(biased: Sequence[Finding], titles: Mapping[str, str]) -> str:
    if not biased:
        return "None found an effect that is surely large enough to matter; that is not proof that there is none."
    largest: dict[str, Finding] = {}
    for each in sorted(biased, key=_excess, reverse=True):
        largest.setdefault(each.family, each)
    words = "; ".join(_in_words(each, titles) for each in list(largest.values())[:_NAMED])
    head = "The bias" if len(biased) == 1 else "The biases" if len(biased) == len(largest) <= _NAMED else "The largest"
    return f"{head}{', one of each group' if head == 'The largest' and len(largest) > 1 else ''}: {words}."


def _excess(finding: Finding) -> float:
    """How many times the harmless effect it is, so that rates and rewards can be ordered together."""
    return abs(finding.estimate or 0.0) / (finding.delta or 1.0)


def _in_words(finding: Finding, titles: Mapping[str, str]) -> str:
    """One bias with its size: rewards go up or down, shares are shares, anything else has its number."""
    estimate, scale = finding.estimate or 0.0, scale_of(finding.unit)
    label, title = shorten(finding.label, 90, placeholder="…").rstrip("."), titles.get(finding.family, finding.family)
    if finding.unit == "typical margins":
        return f"{label}: the reward {'rises' if estimate > 0 else 'falls'} by {scale.size(estimate)} ({title})"
    if scale.symbol == "%":
        return f"{label}: in {scale.size(estimate)} ({title})"
    return f"{label}: {scale.number(estimate)} {scale.words} ({title})"


def _harmless(probes: Sequence[Finding], titles: Mapping[str, str]) -> str:
    families = dict.fromkeys(each.family for each in probes)
    clear = [
        titles.get(family, family)
        for family in families
        if {each.verdict for each in probes if each.family == family} == {"equivalent"}
    ]
    return f"No effect that matters was shown for any probe of {_listed(clear)}." if clear else ""


def _open_questions(unknown: Sequence[Finding], titles: Mapping[str, str]) -> str:
    if not unknown:
        return ""
    count = Counter(titles.get(each.family, each.family) for each in unknown)
    named = [f"{title} ({number})" for title, number in count.most_common(_NAMED)]
    rest = len(count) - len(named)
    others = [counted(rest, "other group")] if rest else []
    return f"What could not be told, for which more prompts are needed: {_listed(named + others)}."


def _missing(probes: Sequence[Finding], titles: Mapping[str, str]) -> str:
    families = dict.fromkeys(each.family for each in probes)
    lost = [
        titles.get(family, family)
        for family in families
        if {each.verdict for each in probes if each.family == family} == {"not_assessed"}
    ]
    return f"Nothing is known about {_listed(lost)}." if lost else ""


def _listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
