"""What is worth saying of a row that is used all the same, and how it is said of many."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hf_reward.preference_row import PreferenceRow

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


def remark_clauses(counts: Mapping[str, int], rows: Mapping[str, Sequence[int]] | None = None) -> list[str]:
    """Say how many rows there are of each kind.

    Args:
        counts: Remark -> number of rows.
        rows: Remark -> numbers of the first of them.

    Returns:
        A clause for each remark that was made.
    """
    clauses = []
    for remark, meaning in REMARKS.items():
        if count := counts.get(remark, 0):
            shown = ", ".join(map(str, (rows or {}).get(remark, ())))
            more = ", ..." if shown and count > len((rows or {})[remark]) else ""
            clauses.append(f"{count:,} {meaning}" + (f" (row{'s' * (count > 1)} {shown}{more})" if shown else ""))
    return clauses
