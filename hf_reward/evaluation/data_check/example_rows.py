"""Rows of a data set -> shortened examples of a finding."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_reward.data.preference_row import UNREADABLE, PreferenceRow
from hf_reward.data.row_text import prompt_text, response_text
from hf_reward.evaluation.data_check.facts import RowFacts
from hf_reward.evaluation.data_check.report import Example, RowCounts
from hf_reward.evaluation.data_check.row_reader import RowReader
from hf_reward.evaluation.data_check.style_features import FEATURES

MOST_EXAMPLES = 3
"""Rows that a finding shows at most."""
_MOST_TEXTS = 6
"""Responses or columns that an example shows at most."""
_SHOWN = 200
"""Characters of a text in an example."""


@dataclass(frozen=True)
class DataSide:
    """Training or evaluation data, with their examples."""

    counts: RowCounts
    facts: RowFacts
    reader: RowReader

    def examples(self, numbers: Iterable[int]) -> list[Example]:
        """Show usable rows.

        Args:
            numbers: Row numbers; the first three different ones are shown.

        Returns:
            Prompt and responses of each, best response first.
        """
        shown = list(dict.fromkeys(int(number) for number in numbers))[:MOST_EXAMPLES]
        return [self._example(number, _row_texts(self.reader.row(number))) for number in shown]

    def raw_examples(self, numbers: Iterable[int]) -> list[Example]:
        """Show rows that cannot be used.

        Args:
            numbers: Row numbers; the first three are shown.

        Returns:
            The columns of each.
        """
        return [self._example(number, _raw_texts(self.reader.raw(number))) for number in [*numbers][:MOST_EXAMPLES]]

    def by_gap(self, feature: str, sign: int) -> list[Example]:
        """Show the rows whose responses differ most in a feature.

        Args:
            feature: One of `FEATURES`.
            sign: 1 for pairs whose preferred response has more of it, -1 for those whose preferred response has less.

        Returns:
            The rows, largest difference first.
        """
        gaps = sign * self.facts.gaps[:, list(FEATURES).index(feature)]
        pairs = np.argsort(-gaps, kind="stable")[: 20 * MOST_EXAMPLES]
        return self.examples(self.facts.number[self.facts.pair_row[pairs[gaps[pairs] > 0]]])

    def of_largest_group(self) -> list[Example]:
        """Show rows of the prompt group that has the most rows."""
        groups, sizes = np.unique(self.facts.group, return_counts=True)
        return self.examples(self.facts.number[self.facts.group == groups[np.argmax(sizes)]][:MOST_EXAMPLES])

    def by_disagreement(self) -> list[Example]:
        """Show the rows whose votes are closest to even."""
        votes = self.facts.votes
        total = votes.sum(axis=1)
        rows = np.flatnonzero(total > 1)
        order = np.argsort(votes[rows].max(axis=1) / total[rows], kind="stable")
        return self.examples(self.facts.number[rows[order[:MOST_EXAMPLES]]])

    def _example(self, number: int, texts: dict[str, str]) -> Example:
        return Example(row=number, place=self.reader.place(number), texts=texts)


def _row_texts(row: PreferenceRow) -> dict[str, str]:
    order = sorted(range(len(row.ranks)), key=lambda i: row.ranks[i])[:_MOST_TEXTS]
    pair = len(row.ranks) == 2 and row.ranks[0] != row.ranks[1]
    names = ["chosen", "rejected"] if pair else [f"response {i + 1}, rank {row.ranks[i]}" for i in order]
    texts = {name: response_text(row, i) for name, i in zip(names, order, strict=True)}
    return {name: shorten(text) for name, text in {"prompt": prompt_text(row), **texts}.items()}


def _raw_texts(raw: Any) -> dict[str, str]:
    if raw.get(UNREADABLE) is not None:
        return {"unreadable line": shorten(str(raw[UNREADABLE]))}
    columns = [(name, value) for name, value in raw.items() if name != UNREADABLE]
    return {name: shorten(_value_text(value)) for name, value in columns[:_MOST_TEXTS]}


def _value_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def shorten(text: str) -> str:
    """Return the start of a text on one line.

    Args:
        text: Any text.

    Returns:
        At most 200 characters and, where more were cut, the number of characters of the text; `(empty)` for a blank
        text.
    """
    line = " ".join(text.split())
    if len(line) <= _SHOWN:
        return line or "(empty)"
    return f"{line[: _SHOWN - 1]}\u2026 ({len(text):,} characters)"
