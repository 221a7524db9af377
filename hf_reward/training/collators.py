"""The data collator of a run: packed or padded, with or without a token budget, or the user's own."""

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


def padded_collator(
    args: RewardConfig, tokenizer: PreTrainedTokenizerBase, images: Any = None
) -> DataCollatorForPreference:
    """Return the padded collator, which works for every model; `images` is an `ImageBatch`."""
    multiple = args.pad_to_multiple_of
    assert multiple is None or isinstance(multiple, int)
    return DataCollatorForPreference(token_id(tokenizer.pad_token_id), multiple, images)


def choose_collator(
    model: RewardModel | None,
    args: RewardConfig,
    tokenizer: PreTrainedTokenizerBase,
    own: Callable[..., Any] | None = None,
    images: Any = None,
) -> Callable[..., Any]:
    """Return the user's collator, else a packed collator if model and settings allow it, else a padded one.

    Args:
        model: The model; None if each trial makes its own.
        args: Settings of the run.
        tokenizer: The prepared tokenizer.
        own: The user's collator, if any.
        images: `RunImages` of a vision-language model.

    Returns:
        The collator.

    Raises:
        ValueError: If packing is required and not possible.
    """
    if own is not None:
        if args.choice("packing") is True and not isinstance(own, DataCollatorForPackedPreference):
            raise ValueError(
                f"`{setting('packing', True)}` has no effect with a custom `data_collator`. Remove one of the two."
            )
        return own
    batch = None if images is None else images.batch
    padded = padded_collator(args, tokenizer, batch)
    if args.choice("packing") is False:
        return padded
    reason = why_not_packed(unwrap_model(model)) if model is not None else None
    if args.neftune_noise_alpha is not None:
        reason = "NEFTune scales its noise by the row length, which packing changes"
    if reason is None:
        return DataCollatorForPackedPreference(batch)
    if args.choice("packing") is True:
        raise ValueError(
            f"`{setting('packing', True)}` is not possible with this model: {reason}. Use "
            f"`{setting('packing', 'auto')}`."
        )
    if args.process_index == 0:
        logger.warning("Batches are padded, not packed: %s.", reason)
    return padded


def with_token_budget(collator: Callable[..., Any], args: RewardConfig) -> Callable[..., Any]:
    """Wrap a collator so that it obeys `max_tokens_per_batch`, if that is set.

    Args:
        collator: A collator of this package, or the user's.
        args: Settings of the run.

    Returns:
        The collator.

    Raises:
        ValueError: If the user's collator cannot count the tokens of a batch.
    """
    if args.max_tokens_per_batch is None:
        return collator
    if not hasattr(collator, "tokens"):
        raise ValueError(
            "`max_tokens_per_batch` needs a data collator with a method `tokens(rows)`, which "
            f"{type(collator).__name__} lacks. Add the method (see `DataCollatorForPreference`), or unset "
            "`max_tokens_per_batch`."
        )
    counting: Any = collator
    return DataCollatorWithTokenBudget(counting, args.max_tokens_per_batch)


def inner_collator(collator: Any) -> Callable[..., Any]:
    """Return the collator of token batches, without wrappers for token budgets and cached features."""
    while isinstance(collator, (DataCollatorWithTokenBudget, DataCollatorForFeatures)):
        collator = collator.collator
    return collator


def packs(collator: Any) -> bool:
    """Whether a collator makes packed batches."""
    return isinstance(inner_collator(collator), DataCollatorForPackedPreference)


def is_builtin_collator(collator: Any) -> bool:
    """Whether a collator is one of this package."""
    return type(inner_collator(collator)) in (DataCollatorForPreference, DataCollatorForPackedPreference)


def packed_if(collator: Any, model: nn.Module) -> AbstractContextManager[Any]:
    """Return a context in which the model accepts packed batches, if the collator makes them.

    Args:
        collator: The run's collator.
        model: The model, wrapped or not.

    Returns:
        A context manager; after the block the model is unchanged.
    """
    return packed_model(unwrap_model(model)) if packs(collator) else nullcontext()
