"""Logits of encoder-decoders (T5, BART) whose classifiers compute the reward at the last EOS token of a row.

These classifiers refuse a batch whose rows contain different numbers of EOS tokens, so such rows are scored separately.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from datasets import Dataset, IterableDataset
from torch import Tensor, nn

from hf_reward.modeling.reward_head import unwrap_model


def reward_end_token(model: nn.Module) -> int | None:
    """Return the id of the EOS token at whose last occurrence a model computes the reward.

    Args:
        model: A reward model, with any wrapper of PEFT, torch.compile or distributed training.

    Returns:
        The id, or None for other models.
    """
    bare: Any = unwrap_model(extract_model_from_parallel(model, keep_torch_compile=False))
    if not getattr(bare.config, "is_encoder_decoder", False):
        return None
    forwards = [vars(kind)["forward"] for kind in type(bare).__mro__ if "forward" in vars(kind)]
    names = {name for each in forwards for name in inspect.unwrap(each).__code__.co_names}
    return int(bare.config.eos_token_id) if "eos_token_id" in names else None


def logits_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Compute the logits of a batch; rows with different numbers of EOS tokens are scored separately.

    Args:
        model: A reward model.
        inputs: Inputs of the model, one entry for each row.

    Returns:
        Logits, shape `(N, labels)`.

    Raises:
        ValueError: If a row lacks the EOS token that the model requires.
    """
    end = reward_end_token(model)
    counts = None if end is None else (inputs["input_ids"] == end).sum(1)
    if counts is None or (len(numbers := counts.unique()) == 1 and int(numbers[0])):
        return model(**inputs).logits
    if int(numbers[0]) == 0:
        row = int((counts == 0).nonzero()[0, 0])
        raise ValueError(f"Sequence {row} of the batch: {missing_end(model)}")
    parts = [(counts == number).nonzero()[:, 0] for number in numbers]
    found = [model(**{name: values[part] for name, values in inputs.items()}).logits for part in parts]
    return torch.cat(found)[torch.cat(parts).argsort()]


def missing_end(model: nn.Module) -> str:
    """Return the error message for a row without the required EOS token.

    Args:
        model: A model that computes the reward at its EOS token.

    Returns:
        A sentence or two.
    """
    bare: Any = unwrap_model(extract_model_from_parallel(model, keep_torch_compile=False))
    return (
        f"{type(bare).__name__} computes the reward at the last EOS token (`eos_token_id`, {reward_end_token(model)}), "
        "but there is none. The tokenizer adds it to text, but a chat template must add it itself. Use a template that "
        "ends with it, or remove the template (`processing_class.chat_template = None`) and pass rows of text."
    )


def require_end_tokens(model: nn.Module, data: Any, *, sharded: bool) -> None:
    """Refuse prepared rows without the EOS token that a model requires, before the first step.

    Args:
        model: A reward model.
        data: Prepared rows. For a stream, the first eight rows are checked.
        sharded: Whether the model is sharded, so that all processes must call it the same number of times.

    Raises:
        ValueError: If a row has no EOS token, or rows for a sharded model have different numbers of them.
    """
    end = reward_end_token(model)
    if end is None:
        return
    rows: Any = data.take(8) if isinstance(data, IterableDataset) else data
    found: set[int] = set()
    rows = rows.select_columns(["input_ids", "row"]) if isinstance(rows, Dataset) else rows
    row: Any
    for row in rows:
        counts = {list(ids).count(end) for ids in row["input_ids"]}
        if 0 in counts:
            raise ValueError(f"Row {row['row']}: {missing_end(model)}")
        found |= counts
        if sharded and len(found) > 1:
            raise ValueError(
                f"For a sharded model, all rows must have the same number of EOS tokens (id {end}), but row "
                f"{row['row']} has a different number. Remove the token from the text of this row."
            )


def largest_batchable_group(model: nn.Module, sequences: Sequence[Any]) -> list[Any]:
    """Return the largest group of sequences with the same number of EOS tokens, which fit into one batch.

    Args:
        model: A reward model.
        sequences: Token ids of each sequence, and its token types.

    Returns:
        All sequences, if the model does not use an EOS token.
    """
    end = reward_end_token(model)
    groups: dict[int, list[Any]] = {}
    for each in sequences:
        groups.setdefault(0 if end is None else list(each[0]).count(end), []).append(each)
    return max(groups.values(), key=len, default=[])
