"""Which collator makes the batches of a run: packed or padded, bounded by a token budget, or the user's own."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from hf_reward.data.interface import setting
from hf_reward.modeling.packing import packed_model, why_not_packed
from hf_reward.modeling.reward_head import RewardModel, unwrap_model
from hf_reward.preprocessing.data_collator import DataCollatorForPreference
from hf_reward.preprocessing.packed_collator import DataCollatorForPackedPreference
from hf_reward.preprocessing.token_budget import DataCollatorWithTokenBudget
from hf_reward.preprocessing.tokenizer import token_id
from hf_reward.training.feature_store import DataCollatorForFeatures
from hf_reward.training.training_args import RewardConfig

logger = logging.getLogger(__name__)


def padded_collator(args: RewardConfig, tokenizer: PreTrainedTokenizerBase) -> DataCollatorForPreference:
    """The collator that works for every model."""
    multiple = args.pad_to_multiple_of
    assert multiple is None or isinstance(multiple, int)
    return DataCollatorForPreference(token_id(tokenizer.pad_token_id), multiple)


def choose_collator(
    model: RewardModel | None,
    args: RewardConfig,
    tokenizer: PreTrainedTokenizerBase,
    own: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """The user's own collator; else packed batches where the model allows them and the settings do not forbid it.

    Args:
        model: The model, None where each trial makes its own.
        args: Settings of the run.
        tokenizer: The prepared tokenizer.
        own: The user's own collator, if any.

    Returns:
        The collator.

    Raises:
        ValueError: If packing is asked for and not possible.
    """
    if own is not None:
        if args.choice("packing") is True and not isinstance(own, DataCollatorForPackedPreference):
            raise ValueError(
                f"`{setting('packing', True)}` has no effect beside a `data_collator` of your own. Drop one of the two."
            )
        return own
    padded = padded_collator(args, tokenizer)
    if args.choice("packing") is False:
        return padded
    reason = why_not_packed(unwrap_model(model)) if model is not None else None
    if args.neftune_noise_alpha is not None:
        reason = "NEFTune scales its noise by the length of a row, which packing changes"
    if reason is None:
        return DataCollatorForPackedPreference()
    if args.choice("packing") is True:
        raise ValueError(
            f"`{setting('packing', True)}` is not possible with this model: {reason}. Use "
            f"`{setting('packing', 'auto')}`."
        )
    if args.process_index == 0:
        logger.warning("Batches are padded, not packed: %s.", reason)
    return padded


def budgeted(collator: Callable[..., Any], args: RewardConfig) -> Callable[..., Any]:
    """A collator that keeps to `max_tokens_per_batch`, if that is set.

    Args:
        collator: Ours, or the user's own.
        args: Settings of the run.

    Returns:
        The collator.

    Raises:
        ValueError: If the user's own collator cannot say what a batch costs.
    """
    if args.max_tokens_per_batch is None:
        return collator
    if not hasattr(collator, "tokens"):
        raise ValueError(
            "`max_tokens_per_batch` needs a data collator with a method `tokens(rows)`, which "
            f"{type(collator).__name__} lacks. Add it (see `DataCollatorForPreference`), or leave one of the two unset."
        )
    counting: Any = collator
    return DataCollatorWithTokenBudget(counting, args.max_tokens_per_batch)


def inner_collator(collator: Any) -> Callable[..., Any]:
    """The collator that makes token batches, inside those that split batches or stand in for them."""
    while isinstance(collator, (DataCollatorWithTokenBudget, DataCollatorForFeatures)):
        collator = collator.collator
    return collator


def packs(collator: Any) -> bool:
    """Whether a collator makes packed batches."""
    return isinstance(inner_collator(collator), DataCollatorForPackedPreference)


def is_ours(collator: Any) -> bool:
    """Whether a collator is one of this package, whose batches are known."""
    return type(inner_collator(collator)) in (DataCollatorForPreference, DataCollatorForPackedPreference)


def packed_if(collator: Any, model: nn.Module) -> AbstractContextManager[Any]:
    """Within this, a model takes the batches of a collator; outside it is unchanged.

    Args:
        collator: The run's collator.
        model: The model, unwrapped or not.

    Returns:
        A context manager.
    """
    return packed_model(unwrap_model(model)) if packs(collator) else nullcontext()
