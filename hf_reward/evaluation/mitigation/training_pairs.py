"""The training data of a mitigation share no prompt with held-out data."""

from collections.abc import Sequence

from hf_reward.data.preference_row import PreferenceRow, prompt_group
from hf_reward.metrics.counts import counted


def require_held_out(train: Sequence[PreferenceRow], held_out: Sequence[PreferenceRow], name: str) -> None:
    """Refuse training data that shares prompts with held-out data: the audit would measure memory.

    Args:
        train: Training rows.
        held_out: Rows of the audit or of the second domain.
        name: Name of the held-out data, for the message.

    Raises:
        ValueError: If rows share a prompt or a prompt group.
    """
    known = {key for row in train for key in _keys(row)}
    leaked = sum(not known.isdisjoint(_keys(row)) for row in held_out)
    if leaked:
        raise ValueError(
            f"The training data must not contain held-out prompts, but {leaked} of {counted(len(held_out), 'row')} of "
            f"{name} have a prompt or a prompt group of the training data. Split the data with `hf-reward split`, and "
            "audit the model on the test part."
        )


def _keys(row: PreferenceRow) -> set[str]:
    return {prompt_group(row)} | ({f"group {row.group}"} if row.group else set())
