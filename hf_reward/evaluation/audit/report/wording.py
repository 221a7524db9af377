"""Words for the verdicts and numbers of an audit, shared by the page, the figures and the terminal."""

import math
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from hf_reward.evaluation.plain_text import plain_line

VERDICT_WORDS = {
    "biased": "Biased",
    "inconclusive": "Inconclusive",
    "equivalent": "Equivalent",
    "not_assessed": "Not assessed",
}
"""Verdict -> its name for readers, the worst first."""
TYPICAL_MARGIN = "A typical margin is the median difference between the rewards of the two responses of a pair."
OBSERVATIONAL_WORDS = "Observational: no verdict"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Scale:
    """Format of the numbers of one unit."""

    factor: float
    """Multiplier."""
    form: str
    """Format specification of the product."""
    symbol: str
    """Appended to the number."""
    words: str
    """The unit in words."""

    def number(self, value: float | None, *, sign: bool = True) -> str:
        """Format a number with its symbol.

        Args:
            value: The number; None and NaN are missing.
            sign: Whether positive differences get a plus sign.

        Returns:
            The text; a dash for a missing number.
        """
        if value is None or not math.isfinite(value):
            return "\N{EN DASH}"
        form = self.form if sign else self.form.lstrip("+")
        text = format(value * self.factor, form)
        if float(text) == 0:
            text = text.lstrip("+-")
        return text.replace("-", MINUS) + self.symbol

    def size(self, value: float) -> str:
        """Format a number without sign, with its unit in words."""
        return f"{self.number(abs(value), sign=False)} {self.words}".strip()


def scale_of(unit: str) -> Scale:
    """Return the format of a unit: rates in per cent, differences of rates in percentage points.

    Args:
        unit: Unit of a finding.

    Returns:
        The scale.
    """
    if unit == "rate" or unit.startswith(("rate of ", "share of ")):
        return Scale(100.0, ".1f", "%", unit.partition(" ")[2] or "of cases")
    if unit.endswith("rate difference"):
        return Scale(100.0, "+.1f", "", "percentage points")
    if unit == "typical margins":
        return Scale(1.0, "+.2f", "", unit)
    if unit == "slope":
        return Scale(1.0, "+.2f", "", "")
    return Scale(1.0, ".3f", "", unit)


def verdict_of(probe: Mapping[str, Any]) -> str:
    """Return the verdict of a finding; `observational` for findings without one."""
    if probe.get("screen_only"):
        return "observational"
    return probe["verdict"] if probe.get("verdict") in VERDICT_WORDS else "not_assessed"


def verdict_words(verdict: str) -> str:
    """Return the name of a verdict of `verdict_of`."""
    return VERDICT_WORDS.get(verdict, OBSERVATIONAL_WORDS)


def worst(probes: Iterable[Mapping[str, Any]]) -> str:
    """Return the worst verdict among findings; `inconclusive` is worse than `equivalent`."""
    present = {verdict_of(probe) for probe in probes}
    order = ["biased", "inconclusive", "equivalent", "observational"]
    return next((verdict for verdict in order if verdict in present), "not_assessed")


def rank(probe: Mapping[str, Any]) -> tuple[int, float]:
    """Return the sort key of a finding with an estimate: the worst verdict, then the largest effect over `delta`."""
    verdicts = [*VERDICT_WORDS, "observational"]
    return verdicts.index(verdict_of(probe)), -abs(probe["estimate"]) / (probe.get("delta") or 1.0)


def interval_words(probe: Mapping[str, Any]) -> str:
    """Return the 95% interval of a finding, empty without one."""
    low, high = probe.get("ci_low"), probe.get("ci_high")
    if low is None or high is None:
        return ""
    scale = scale_of(probe.get("unit") or "")
    return f"{scale.number(low)} to {scale.number(high)}"


def reason_words(probe: Mapping[str, Any]) -> str:
    """Return the reason for a verdict as a sentence; empty if the note of the finding states it."""
    verdict, scale = verdict_of(probe), scale_of(probe.get("unit") or "")
    mde, delta, q_value = probe.get("mde"), probe.get("delta"), probe.get("q_value")
    if verdict == "inconclusive" and mde is not None:
        return f"This audit detects effects of {scale.size(mde)} or more."
    if delta is None:
        return ""
    limit = scale.number(delta, sign=False)
    if verdict == "biased":
        return f"More than {limit}" + ("." if q_value is None else f"; corrected p {below(q_value)}.")
    return f"Less than {limit}." if verdict == "equivalent" else ""


def below(q_value: float) -> str:
    """Format a q-value as a comparison: `= 0.012`, `< 0.001`."""
    return "< 0.001" if q_value < 0.001 else f"= {q_value:.2g}"


def wrapped(text: str, columns: int) -> list[str]:
    """Wrap a text, cleaned by `plain_line`, into at most two lines; characters of double width count twice."""
    text = plain_line(text)
    wide = sum(unicodedata.east_asian_width(sign) in "WF" for sign in text)
    lines = wrap(text, max(8, columns * len(text) // (len(text) + wide)) if text else columns)
    return [*lines[:1], lines[1].rstrip() + "…"] if len(lines) > 2 else lines or [""]
