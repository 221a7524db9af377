"""Count and report rows that are used with changed or incomplete texts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hf_reward.data.preference_row import PreferenceRow

BLANK_PROMPT = "blank_prompt"
REPEATED_PROMPT = "repeated_prompt"
LOST_TEXT = "lost_text"
DOUBLED_BOS = "doubled_bos"
DOUBLED_END = "doubled_end"

REMARKS = {
    BLANK_PROMPT: "have a blank prompt, which counts as no prompt",
    REPEATED_PROMPT: "repeat the prompt in their responses; the repetition is removed",
    LOST_TEXT: "have text that the chat template omits, such as reasoning or a system turn",
    DOUBLED_BOS: "contain the BOS token that the tokenizer also adds; only one is kept",
    DOUBLED_END: "contain the end-of-turn token that the chat template also adds; only one is kept",
}
"""Remark -> clause about the rows that have it."""
SHOWN = 10
"""Most rows that are listed for a remark."""


def remarks_of(row: PreferenceRow) -> list[str]:
    """Return the remarks on a row that do not depend on a tokenizer.

    Args:
        row: A canonical row.

    Returns:
        The remarks.
    """
    flags = {BLANK_PROMPT: row.blank_prompt, REPEATED_PROMPT: row.repeated_prompt}
    return [remark for remark, applies in flags.items() if applies]


@dataclass
class RemarkTally:
    """Counts of remarks over rows."""

    counts: dict[str, int] = field(default_factory=dict)
    """Remark -> number of rows."""
    rows: dict[str, list[int]] = field(default_factory=dict)
    """Remark -> numbers of the first `SHOWN` rows."""
    places: dict[str, list[str]] = field(default_factory=dict)
    """Remark -> locations of these rows, set by `add_places`."""

    def add(self, row: int, remarks: Iterable[str] | None) -> None:
        """Count a row.

        Args:
            row: Number of the row.
            remarks: Its remarks; None for a row that was prepared by an earlier version.
        """
        for remark in remarks or ():
            self.counts[remark] = self.counts.get(remark, 0) + 1
            shown = self.rows.setdefault(remark, [])
            shown += [row] if len(shown) < SHOWN else []

    def add_places(self, place_of: Callable[[int], str]) -> None:
        """Look up the locations of the rows that were added since the last call.

        Args:
            place_of: Number of a row -> its file and line, or `row 3`.
        """
        for remark, rows in self.rows.items():
            places = self.places.setdefault(remark, [])
            places += map(place_of, rows[len(places) :])


def remark_clauses(counts: Mapping[str, int], places: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """Return a clause for each remark, with its number of rows.

    Args:
        counts: Remark -> number of rows.
        places: Remark -> file and line of the first rows, or `row 3`.

    Returns:
        The clauses.
    """
    clauses = []
    for remark, meaning in REMARKS.items():
        if count := counts.get(remark, 0):
            known = (places or {}).get(remark, ())
            more = ", ..." if count > len(known) else ""
            clauses.append(f"{count:,} {meaning}" + (f" ({_listed(known)}{more})" if known else ""))
    return clauses


def _listed(places: Sequence[str]) -> str:
    """Join locations to one clause, such as `train.jsonl, lines 4, 9; row 3`."""
    numbers: dict[str, list[str]] = {}
    for place in places:
        name, _, number = place.rpartition(" ")
        numbers.setdefault(name, []).append(number)
    return "; ".join(f"{name}{'s' * (len(each) > 1)} {', '.join(each)}" for name, each in numbers.items())
