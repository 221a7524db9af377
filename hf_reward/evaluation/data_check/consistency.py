"""Find preferences that contradict each other: A over B and B over A, or A over B over C over A."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from hf_reward.evaluation.data_check.facts import NAMED_ROWS, RowFacts


@dataclass(frozen=True, kw_only=True)
class Contradictions:
    """Preferences of one prompt that cannot all hold."""

    contradictory_pairs: int
    """Pairs of responses to one prompt of which each is preferred to the other by some row."""
    contradictory_rows: int
    """Rows with such a preference."""
    contradictory_examples: list[tuple[int, int]]
    """Two contradicting rows each."""
    cycles: int
    """Cycles of three responses to one prompt, without contradictory pairs."""
    cycle_rows: int
    """Rows whose preference is part of a cycle."""
    cycle_examples: list[int]


def find_contradictions(facts: RowFacts) -> Contradictions:
    """Count contradictions and 3-cycles.

    Args:
        facts: Facts about the rows.

    Returns:
        The counts. Responses that differ only in white space are one response.
    """
    better, worse = _nodes(facts)
    different = better != worse
    rows = facts.pair_row[different]
    better, worse = better[different], worse[different]
    count = int(max(better.max(initial=-1), worse.max(initial=-1))) + 1
    forward, backward = better * count + worse, worse * count + better
    opposed = np.isin(forward, backward)
    low = np.minimum(forward, backward)[opposed]
    cycles, in_cycle = _three_cycles(better[~opposed], worse[~opposed], count)
    cycle_rows = np.unique(rows[~opposed][in_cycle])
    return Contradictions(
        contradictory_pairs=len(np.unique(low)),
        contradictory_rows=len(np.unique(rows[opposed])),
        contradictory_examples=_examples(low, forward[opposed], facts.number[rows[opposed]]),
        cycles=cycles,
        cycle_rows=len(cycle_rows),
        cycle_examples=[int(facts.number[row]) for row in cycle_rows[:NAMED_ROWS]],
    )


def _nodes(facts: RowFacts) -> tuple[np.ndarray, np.ndarray]:
    """Number each (prompt, response text); return the numbers of the preferred and the other response of each pair."""
    prompts = facts.prompt[facts.pair_row]
    keys = np.concatenate([np.stack([prompts, facts.response[side]], axis=1) for side in (facts.better, facts.worse)])
    numbers = np.unique(keys, axis=0, return_inverse=True)[1].ravel().astype(np.int64)
    return numbers[: facts.pairs], numbers[facts.pairs :]


def _three_cycles(better: np.ndarray, worse: np.ndarray, count: int) -> tuple[int, np.ndarray]:
    """Count directed triangles and mark the edges that are part of one.

    With A the adjacency matrix, (A A)[a, c] counts the ways a > b > c, and an edge c > a closes each of them.
    """
    if not len(better):
        return 0, np.zeros(0, bool)
    edges: Any = csr_matrix((np.ones(len(better), np.int64), (better, worse)), shape=(count, count))
    edges.data[:] = 1  # a preference that several rows state counts once
    closing = (edges @ edges).T.multiply(edges).tocsr()
    return int(closing.sum()) // 3, np.asarray(closing[better, worse]).ravel() > 0


def _examples(names: np.ndarray, direction: np.ndarray, numbers: np.ndarray) -> list[tuple[int, int]]:
    """Return a row of each direction for the first few contradictory pairs."""
    found = []
    for name in np.unique(names)[:NAMED_ROWS]:
        here = names == name
        forward = here & (direction == name)
        found.append((int(numbers[forward][0]), int(numbers[here & ~forward][0])))
    return found
