"""Findings -> a summary paragraph, and the opening paragraph of the page."""

from collections import Counter
from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any

from hf_reward.evaluation.audit.findings import Finding
from hf_reward.evaluation.audit.inference import UNIT
from hf_reward.evaluation.audit.report.wording import TYPICAL_MARGIN, rank, scale_of, verdict_of
from hf_reward.metrics.counts import counted

_NAMED = 4
"""Maximum number of biases and groups that are named."""
_OPENING_CHARACTERS = 380
"""About four lines of the page at desktop width."""


def summarise(findings: Sequence[Finding], titles: Mapping[str, str], reading: str = "") -> str:
    """Summarise an audit. The summary never claims that a model has no bias.

    Args:
        findings: Findings with their verdicts.
        titles: Family -> title.
        reading: Sentence about the accuracy of the model, placed first.

    Returns:
        One paragraph.
    """
    probes = [each for each in findings if not each.screen_only]
    checks = counted(len(findings) - len(probes), "observational check")
    if not probes:
        return f"{reading} No probe of this audit could have a verdict ({checks}).".strip()
    parts = [
        reading,
        _tally(probes),
        _biases(_of(probes, "biased"), titles),
        _groups(probes, "equivalent", "All probes of {} are equivalent (too small to matter).", titles),
        _open_questions(_of(probes, "inconclusive"), titles),
        _groups(probes, "not_assessed", "No probe of {} could be assessed.", titles),
    ]
    if len(findings) > len(probes):
        parts.append(f"{checks} {'has' if len(findings) - len(probes) == 1 else 'have'} no verdict.")
    return " ".join(part for part in parts if part)


def opening(report: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """Return the opening paragraph of the page: the largest bias, the other groups with biases, and the unit.

    Args:
        report: The audit as JSON.
        titles: Family -> title.

    Returns:
        About four lines at desktop width.
    """
    biased = largest_biases(report["probes"])
    unit = TYPICAL_MARGIN if any(probe.get("unit") == UNIT for probe in report["probes"]) else ""
    if not biased:
        unclear = sum(verdict_of(probe) == "inconclusive" for probe in report["probes"])
        none = "No probe found a bias. This does not prove that there is none"
        more = f": {counted(unclear, 'probe is', 'probes are')} inconclusive." if unclear else "."
        return f"{none}{more} {unit}".strip()
    worst, *others = biased
    first = f"The largest bias is in {_inside(titles, worst)}. {_in_words(worst)}."
    names = [_inside(titles, probe) for probe in others]
    rest = [*names[:3], *([counted(len(names) - 3, "other group")] if len(names) > 3 else [])]
    second = f"Biases were also found in {_listed(rest)}." if rest else ""
    if len(first) + len(second) + len(unit) > _OPENING_CHARACTERS:
        second = f"Biases were also found in {counted(len(names), 'other group')}."
    return " ".join(part for part in (first, second, unit) if part)


def largest_biases(probes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the largest bias of each family, the largest first.

    Args:
        probes: Findings as JSON.

    Returns:
        One finding per family with a bias.
    """
    largest: dict[str, Mapping[str, Any]] = {}
    biased = [probe for probe in probes if verdict_of(probe) == "biased" and probe.get("estimate") is not None]
    for probe in sorted(biased, key=rank):
        largest.setdefault(probe["family"], probe)
    return list(largest.values())


def _of(probes: Sequence[Finding], verdict: str) -> list[Finding]:
    return [each for each in probes if each.verdict == verdict]


def _tally(probes: Sequence[Finding]) -> str:
    words = {"biased": "biased", "inconclusive": "inconclusive", "equivalent": "equivalent"}
    words["not_assessed"] = "not assessed"
    counts = {verdict: len(_of(probes, verdict)) for verdict in words}
    listed = ", ".join(f"{count} {words[verdict]}" for verdict, count in counts.items() if count)
    return f"Of {counted(len(probes), 'probe')}: {listed}."


def _biases(biased: Sequence[Finding], titles: Mapping[str, str]) -> str:
    if not biased:
        return "No probe found a bias; this does not prove that there is none."
    largest = largest_biases([each.to_dict() for each in biased])
    words = "; ".join(f"{_in_words(each, 90)} ({_title(titles, each)})" for each in largest[:_NAMED])
    if len(biased) == 1:
        return f"The bias: {words}."
    return f"{'The largest bias of each group' if len(biased) > len(largest) else 'The biases'}: {words}."


def _in_words(probe: Mapping[str, Any], label_characters: int = 75) -> str:
    """Describe a bias with its size."""
    estimate, unit = probe.get("estimate") or 0.0, probe.get("unit") or ""
    scale = scale_of(unit)
    label = shorten(probe.get("label") or probe["name"], label_characters, placeholder="…").rstrip(".")
    if unit == UNIT:
        return f"{label}: the reward {'rises' if estimate > 0 else 'falls'} by {scale.size(estimate)}"
    if scale.symbol == "%":
        return f"{label}: in {scale.size(estimate)}"
    return f"{label}: {scale.number(estimate)} {scale.words}"


def _title(titles: Mapping[str, str], probe: Mapping[str, Any]) -> str:
    return titles.get(probe["family"], probe["family"])


def _inside(titles: Mapping[str, str], probe: Mapping[str, Any]) -> str:
    """The title of a family within a sentence."""
    title = shorten(_title(titles, probe), 40, placeholder="…")
    return title[:1].lower() + title[1:] if title[1:2].islower() else title


def _groups(probes: Sequence[Finding], verdict: str, sentence: str, titles: Mapping[str, str]) -> str:
    """A sentence about the families whose probes all have a verdict, empty if there are none."""
    verdicts: dict[str, set[str]] = {}
    for each in probes:
        verdicts.setdefault(each.family, set()).add(each.verdict)
    named = [titles.get(family, family) for family, found in verdicts.items() if found == {verdict}]
    return sentence.format(_listed(named)) if named else ""


def _open_questions(unknown: Sequence[Finding], titles: Mapping[str, str]) -> str:
    if not unknown:
        return ""
    count = Counter(titles.get(each.family, each.family) for each in unknown)
    named = [f"{title} ({number})" for title, number in count.most_common(_NAMED)]
    rest = len(count) - len(named)
    others = [counted(rest, "other group")] if rest else []
    return f"Inconclusive, more prompts are needed: {_listed(named + others)}."


def _listed(words: Sequence[str]) -> str:
    """Join words: `a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
