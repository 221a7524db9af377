"""A forest of token sequences in which sequences that begin with the same tokens share them.

The forest is the radix tree of the sequences, without the segments that would save too few tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from hf_reward.data.preference_row import common_prefix
from hf_reward.preprocessing.packed_layout import PackedLayout, layout_of

LEAST_SAVED = 8
"""Fewest tokens that a shared segment must save, because each segment is an attention call in every layer."""
TOKENS_PER_SAVED = 32
"""Tokens that may continue a segment for each token it saves, because their attention is divided once more."""


class PackedTokens(NamedTuple):
    """The tokens of a forest in depth-first order. T tokens, N sequences."""

    input_ids: list[int]
    """Token ids, length T."""
    position_ids: list[int]
    """Position of each token in the sequences that contain it, length T."""
    last: list[int]
    """Place of the last token of each given sequence, length N."""
    layout: PackedLayout


@dataclass
class _Node:
    """The tokens from the end of its parent to `end` of a sequence, and the nodes that continue them."""

    sequence: int
    end: int
    children: list["_Node"] = field(default_factory=list)
    below: int = 0
    """Tokens of all nodes below this one."""


def pack_sequences(sequences: Sequence[Sequence[int]]) -> PackedTokens:
    """Arrange token sequences as a forest.

    Equal sequences and sequences that are the beginning of another one need no tokens of their own.

    Args:
        sequences: Token ids, at least one per sequence.

    Returns:
        The tokens of the forest.
    """
    order, where = sorted_distinct(sequences)
    tokens = [sequences[place] for place in order]
    shared = shared_with_previous(tokens)
    # A sequence that begins the next one is read inside of it; the search for the longest one starts at the end.
    longest = list(range(len(tokens)))
    for place in reversed(range(len(tokens) - 1)):
        if shared[place + 1] == len(tokens[place]):
            longest[place] = longest[place + 1]
    ids: list[int] = []
    positions: list[int] = []
    spans: list[tuple[int, int]] = []
    paths: dict[int, tuple[tuple[int, int], ...]] = {}  # position and place of the first token of each segment
    pending = [(root, -1, 0, ()) for root in reversed(_roots(tokens, shared))]
    while pending:
        node, parent, start, before = pending.pop()
        paths[node.sequence] = path = (*before, (start, len(ids)))
        ids += tokens[node.sequence][start : node.end]
        positions += range(start, node.end)
        pending += [(child, len(spans), node.end, path) for child in reversed(node.children)]
        spans.append((node.end - start, parent))
    last = []
    for place in where:
        end = len(tokens[place]) - 1
        start, first = next(segment for segment in reversed(paths[longest[place]]) if segment[0] <= end)
        last.append(first + end - start)
    return PackedTokens(ids, positions, last, layout_of(spans))


def sorted_distinct(sequences: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Sort token sequences so that those with a common prefix are adjacent, without repetitions.

    Args:
        sequences: Token ids of each sequence.

    Returns:
        The index of the first occurrence of each distinct sequence, in sorted order; and the place of each given
        sequence in this order.
    """
    # Big-endian bytes sort in the same order as the lists, at the speed of memcmp.
    keys = [np.asarray(ids, dtype=">u4").tobytes() for ids in sequences]
    first = {key: place for place, key in reversed(list(enumerate(keys)))}
    order = sorted(first)
    rank = {key: place for place, key in enumerate(order)}
    return [first[key] for key in order], [rank[key] for key in keys]


def shared_with_previous(sequences: Sequence[Sequence[int]]) -> list[int]:
    """Return the number of leading tokens that each sequence shares with the previous one, 0 for the first."""
    return [0, *(len(common_prefix(pair)) for pair in pairwise(sequences))][: len(sequences)]


def _roots(tokens: Sequence[Sequence[int]], shared: Sequence[int]) -> list[_Node]:
    """Build the forest of sorted distinct sequences from the tokens that neighbours share.

    The open nodes are those of the previous sequence. A sequence closes the nodes that extend beyond the tokens that it
    shares with the previous one.
    """
    root = _Node(0, 0)
    opened = [root]
    for place, sequence in enumerate(tokens):
        following = shared[place + 1] if place + 1 < len(tokens) else 0
        if following == len(sequence):
            continue  # it is the beginning of the next sequence, so its open nodes are the next one's
        closed = [_Node(place, len(sequence))]
        while opened[-1].end > following:
            node = opened.pop()
            _add(node, closed)
            closed = _worth_a_segment(node, max(opened[-1].end, following))
        if opened[-1].end < following:
            opened.append(_Node(place, following))
        _add(opened[-1], closed)
    return root.children


def _add(node: _Node, children: Sequence[_Node]) -> None:
    node.children += children
    node.below += sum(child.end - node.end + child.below for child in children)


def _worth_a_segment(node: _Node, start: int) -> list[_Node]:
    """Return the node, or its children if sharing its tokens from `start` on saves too little."""
    saved = (len(node.children) - 1) * (node.end - start)
    return [node] if saved >= LEAST_SAVED and saved * TOKENS_PER_SAVED >= node.below else node.children
