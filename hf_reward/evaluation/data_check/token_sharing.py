"""Tokenised rows -> the tokens that training computes, because a packed batch computes shared tokens once."""

from collections.abc import Sequence
from dataclasses import dataclass

from hf_reward.preprocessing.prefix_tree import pack_sequences
from hf_reward.preprocessing.samplers import PromptSampler, response_numbers

BATCH_SIZE = 16
SAMPLE = 2_000
"""Most rows whose tokens are kept for the count."""


@dataclass(frozen=True)
class TokenSharing:
    """Tokens given and tokens computed in packed batches."""

    rows: int
    """The first rows, which were counted."""
    given: int
    """Sum of the lengths of all sequences."""
    by_row: int
    """Tokens computed if each row is a batch."""
    by_prompt: int
    """Tokens computed with `group_by_prompt`, in batches of `BATCH_SIZE` rows."""


def token_sharing(rows: Sequence[Sequence[list[int]]], prompts: Sequence[int]) -> TokenSharing:
    """Count the tokens of one epoch.

    Args:
        rows: Token ids of the sequences of each row.
        prompts: A number for the prompt of each row.

    Returns:
        The counts.
    """
    order = list(PromptSampler(prompts, response_numbers(rows), BATCH_SIZE)) if rows else []
    batches = [order[start : start + BATCH_SIZE] for start in range(0, len(order), BATCH_SIZE)]
    return TokenSharing(
        rows=len(rows),
        given=sum(len(ids) for row in rows for ids in row),
        by_row=sum(_computed(row) for row in rows),
        by_prompt=sum(_computed([ids for place in batch for ids in rows[place]]) for batch in batches),
    )


def _computed(sequences: Sequence[list[int]]) -> int:
    return len(pack_sequences(sequences).input_ids)
