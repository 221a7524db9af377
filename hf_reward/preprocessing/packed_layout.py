"""Where the sequences of a packed batch lie: the contract between the collator and the attention.

Shapes: G groups, N sequences, T packed tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

Span = tuple[int, int]
"""The places [start, end) of consecutive tokens in a packed row."""


@dataclass(frozen=True)
class GroupSegments:
    """Where the tokens of one group stand in the packed row."""

    prefix: Span
    responses: tuple[Span, ...]


@dataclass(eq=False)
class PackedLayout:
    """The segments of every group of a packed row, in the order in which they stand there.

    A class and not a tuple, so that transformers and accelerate hand it on as it is; compared by identity and not
    frozen, so that `torch.compile` does not compile anew for each layout.
    """

    groups: tuple[GroupSegments, ...]

    @cached_property
    def segments(self) -> tuple[tuple[Span, Span], ...]:
        """Each segment with the one before it that it also sees, which for a prefix is empty."""
        return tuple(self._segments())

    def _segments(self) -> Iterator[tuple[Span, Span]]:
        for group in self.groups:
            start, end = group.prefix
            if end > start:
                yield group.prefix, (start, start)
            for response in group.responses:
                yield response, group.prefix
