"""Positions of the segments of a packed batch, used by the collator and the attention.

A packed batch is a forest: the sequences that begin with the same tokens share a segment, and each segment continues
another one or starts a tree. The segments are in depth-first order, so the tokens of all segments that continue a
segment directly follow it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple


class Segment(NamedTuple):
    """Consecutive tokens of a packed row, which all sequences that contain one of them contain."""

    start: int
    end: int
    parent: int
    """Index of the segment that this one continues, or -1 for none."""
    subtree_end: int
    """End of the last segment that continues this one, directly or not; `end` if none does."""


@dataclass(eq=False)
class PackedLayout:
    """The segments of a packed row, in depth-first order.

    It is a class because transformers and accelerate would convert a tuple. It is compared by identity and not frozen,
    so that `torch.compile` does not recompile for each layout.
    """

    segments: tuple[Segment, ...]

    @cached_property
    def ancestors(self) -> tuple[tuple[int, ...], ...]:
        """The indices of the segments before each segment in its sequences, in the order of the tokens."""
        found: list[tuple[int, ...]] = []
        for segment in self.segments:
            found.append((*found[segment.parent], segment.parent) if segment.parent >= 0 else ())
        return tuple(found)


def layout_of(spans: Sequence[tuple[int, int]]) -> PackedLayout:
    """Make a layout from the length and the parent of each segment, in depth-first order.

    Args:
        spans: Length and parent index (-1 for none) of each segment.

    Returns:
        The layout.
    """
    starts = [0]
    for length, _ in spans:
        starts.append(starts[-1] + length)
    ends = starts[1:]
    for place in reversed(range(len(spans))):
        parent = spans[place][1]
        if parent >= 0:
            ends[parent] = max(ends[parent], ends[place])
    return PackedLayout(
        tuple(Segment(starts[place], starts[place + 1], parent, ends[place]) for place, (_, parent) in enumerate(spans))
    )
