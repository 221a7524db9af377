"""Positions of the sequences in a packed batch, used by the collator and the attention.

Shapes: G groups, N sequences, T packed tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

Span = tuple[int, int]
"""Positions [start, end) of consecutive tokens in a packed row."""


@dataclass(frozen=True)
class GroupSegments:
    """Positions of one group's tokens in the packed row."""

    prefix: Span
    responses: tuple[Span, ...]


@dataclass(eq=False)
class PackedLayout:
    """The segments of all groups of a packed row, in order.

    It is a class because transformers and accelerate would convert a tuple. It is compared by identity and not frozen,
    so that `torch.compile` does not recompile for each layout.
    """

    groups: tuple[GroupSegments, ...]

    @cached_property
    def segments(self) -> tuple[tuple[Span, Span], ...]:
        """Each segment with the prefix segment that it attends to, which is empty for a prefix."""
        return tuple(self._segments())

    def _segments(self) -> Iterator[tuple[Span, Span]]:
        for group in self.groups:
            start, end = group.prefix
            if end > start:
                yield group.prefix, (start, start)
            for response in group.responses:
                yield response, group.prefix
