"""What is worth saying of a row that is used all the same, and how it is said of many."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hf_reward.data.preference_row import PreferenceRow

BLANK_PROMPT = "blank_prompt"
REPEATED_PROMPT = "repeated_prompt"
LOST_TEXT = "lost_text"
DOUBLED_BOS = "doubled_bos"
DOUBLED_END = "doubled_end"

REMARKS = {
    BLANK_PROMPT: "have a blank prompt, which is read as none",
    REPEATED_PROMPT: "hold the prompt in their sides too; it is read once",
    LOST_TEXT: "hold text that the chat template leaves out, such as reasoning or a system turn",
    DOUBLED_BOS: "write the BOS token out where it is added anyway; it is read once",
    DOUBLED_END: "write the end-of-turn token out where it is added anyway; it is read once",
}
"""Remark -> what it says of rows."""
SHOWN = 10
"""Row numbers that are named for a remark, at most."""


def remarks_of(row: PreferenceRow) -> list[str]:
    """What was seen of a row when it was read.

    Args:
        row: A canonical row.

    Returns:
        Remarks.
    """
    said = {BLANK_PROMPT: row.blank_prompt, REPEATED_PROMPT: row.repeated_prompt}
    return [remark for remark, holds in said.items() if holds]


@dataclass
class RemarkTally:
    """Remarks on many rows."""

    counts: dict[str, int] = field(default_factory=dict)
    """Remark -> rows."""
    rows: dict[str, list[int]] = field(default_factory=dict)
    """Remark -> numbers of the first `SHOWN` of them."""
    places: dict[str, list[str]] = field(default_factory=dict)
    """Remark -> where these stand, once `name_places` was called."""

    def add(self, row: int, remarks: Iterable[str] | None) -> None:
        """Count a row.

        Args:
            row: Its number.
            remarks: What is said of it; None for a row that an earlier version prepared.
        """
        for remark in remarks or ():
            self.counts[remark] = self.counts.get(remark, 0) + 1
            shown = self.rows.setdefault(remark, [])
            shown += [row] if len(shown) < SHOWN else []

    def name_places(self, place_of: Callable[[int], str]) -> None:
        """Say where the rows stand that were added since the last call.

        Args:
            place_of: Number of a row -> its file and line, or `row 3`.
        """
        for remark, rows in self.rows.items():
            named = self.places.setdefault(remark, [])
            named += map(place_of, rows[len(named) :])


def remark_clauses(counts: Mapping[str, int], places: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """Say how many rows there are of each kind.

    Args:
        counts: Remark -> number of rows.
        places: Remark -> file and line of the first of them, or `row 3`.

    Returns:
        A clause for each remark that was made.
    """
    clauses = []
    for remark, meaning in REMARKS.items():
        if count := counts.get(remark, 0):
            known = (places or {}).get(remark, ())
            more = ", ..." if count > len(known) else ""
            clauses.append(f"{count:,} {meaning}" + (f" ({_listed(known)}{more})" if known else ""))
    return clauses


def _listed(places: Sequence[str]) -> str:
    """Several places in one clause, such as `train.jsonl, lines 4, 9; row 3`."""
    numbers: dict[str, list[str]] = {}
    for place in places:
        name, _, number = place.rpartition(" ")
        numbers.setdefault(name, []).append(number)
    return "; ".join(f"{name}{'s' * (len(each) > 1)} {', '.join(each)}" for name, each in numbers.items())
