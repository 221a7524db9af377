"""Count equal and nearly equal rows, prompts and responses."""

from dataclasses import dataclass

import numpy as np

from hf_reward.data.near_duplicates import RowClusters, TextClusters
from hf_reward.evaluation.data_check.facts import NAMED_ROWS, RowFacts


@dataclass(frozen=True, kw_only=True)
class TextRepeats:
    """Repetition among prompts or among responses."""

    texts: int
    distinct: int
    """Different texts, ignoring white space."""
    compared: int
    """Different texts that were compared to find near duplicates; 0 without rensa."""
    near_clusters: int
    """Clusters of two or more near duplicates."""
    near_texts: int
    """Texts in those clusters."""
    examples: list[tuple[int, int]]
    """Two rows of each of a few clusters."""


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Repetition within one data set."""

    duplicate_rows: int
    """Rows that repeat an earlier row: same prompt, responses and ranks, in any order."""
    duplicate_examples: list[tuple[int, int]]
    """A few of them: (row, earlier row)."""
    identical_pairs: int
    """Strict pairs whose two responses are the same text."""
    identical_examples: list[int]
    pair_responses: int
    """Different responses of the strict pairs, counted within each prompt group. Fewer than two per pair mean that
    pairs share responses and are not independent."""
    most_pairs_of_a_response: int
    """Strict pairs with the most frequent response."""
    prompt_groups: int
    largest_group: int
    """Rows of the largest prompt group."""
    rows_sharing_a_group: int
    """Rows whose prompt group has more than one row."""
    prompts: TextRepeats
    responses: TextRepeats


def find_duplicates(facts: RowFacts, clusters: RowClusters) -> Duplicates:
    """Count duplicates.

    Args:
        facts: Facts about the rows.
        clusters: Clusters of equal and similar texts; rows of other data in them are ignored.

    Returns:
        The counts.
    """
    repeated, first = _repeated_rows(facts)
    same = np.flatnonzero(facts.response[facts.better] == facts.response[facts.worse])
    sizes = np.unique(facts.group, return_counts=True)[1]
    ends = np.concatenate([facts.better, facts.worse])
    texts = np.stack([facts.group[facts.response_row[ends]], facts.response[ends]], axis=1)
    uses = np.unique(texts, axis=0, return_counts=True)[1]
    return Duplicates(
        duplicate_rows=len(repeated),
        duplicate_examples=[
            (int(facts.number[row]), int(facts.number[other]))
            for row, other in zip(repeated[:NAMED_ROWS], first[:NAMED_ROWS], strict=True)
        ],
        identical_pairs=len(same),
        identical_examples=[int(row) for row in facts.number[facts.pair_row[same[:NAMED_ROWS]]]],
        pair_responses=len(uses),
        most_pairs_of_a_response=int(uses.max(initial=0)),
        prompt_groups=len(sizes),
        largest_group=int(sizes.max(initial=0)),
        rows_sharing_a_group=int(sizes[sizes > 1].sum()),
        prompts=_repeats(facts.prompt, clusters.prompts, facts.number),
        responses=_repeats(facts.response, clusters.responses, facts.number),
    )


def _repeated_rows(facts: RowFacts) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that repeat an earlier row, and those earlier rows."""
    # The sum of the responses' hashes does not depend on their order.
    marked = facts.response * np.uint64(0x9E3779B97F4A7C15) ^ (facts.rank.astype(np.uint64) + np.uint64(1))
    marked = (marked ^ (marked >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    content = np.zeros(facts.usable, np.uint64)
    np.add.at(content, facts.response_row, marked ^ (marked >> np.uint64(32)))
    keys = np.stack([facts.prompt, content], axis=1)
    _, first, which = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    earlier = first[which.ravel()]
    repeated = np.flatnonzero(earlier != np.arange(facts.usable))
    return repeated, earlier[repeated]


def _repeats(hashes: np.ndarray, clusters: TextClusters, numbers: np.ndarray) -> TextRepeats:
    mine = np.isin(clusters.rows, numbers)
    rows, exact, near = clusters.rows[mine], clusters.exact[mine], clusters.near[mine]
    _, first = np.unique(exact, return_index=True)  # one of each text
    names, sizes = np.unique(near[first], return_counts=True)
    large = names[sizes > 1]
    return TextRepeats(
        texts=len(hashes),
        distinct=len(np.unique(hashes)),
        compared=len(first) if clusters.compared else 0,
        near_clusters=len(large),
        near_texts=int(sizes[sizes > 1].sum()),
        examples=[_two_rows(rows[first][near[first] == name]) for name in large[:NAMED_ROWS]],
    )


def _two_rows(rows: np.ndarray) -> tuple[int, int]:
    first, second = sorted(rows.tolist())[:2]
    return first, second
