"""Encoder-decoders that are read at their end token, as T5 and BART are -> logits of rows that hold any number of it.

Their classifiers read the last end token of a row and refuse a batch whose rows hold different numbers of it.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from datasets import Dataset, IterableDataset
from torch import Tensor, nn

from hf_reward.modeling.reward_head import unwrap_model


def end_token_read(model: nn.Module) -> int | None:
    """Id of the token at whose last occurrence a model reads a row's reward.

    Args:
        model: A reward model, perhaps wrapped for distributed training, by PEFT or by torch.compile.

    Returns:
        The id, None for models that read elsewhere.
    """
    bare: Any = unwrap_model(extract_model_from_parallel(model, keep_torch_compile=False))
    if not getattr(bare.config, "is_encoder_decoder", False):
        return None
    forwards = [vars(kind)["forward"] for kind in type(bare).__mro__ if "forward" in vars(kind)]
    names = {name for each in forwards for name in inspect.unwrap(each).__code__.co_names}
    return int(bare.config.eos_token_id) if "eos_token_id" in names else None


def logits_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits of a batch; rows with different numbers of the end token that is read go through the model apart.

    Args:
        model: A reward model.
        inputs: Its inputs, one entry for each row.

    Returns:
        Logits, shape `(N, labels)`.

    Raises:
        ValueError: If a row lacks the end token at which the model reads.
    """
    end = end_token_read(model)
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
    """Why a row without the end token has no reward, and what to do.

    Args:
        model: A model that reads at its end token.

    Returns:
        A sentence or two.
    """
    bare: Any = unwrap_model(extract_model_from_parallel(model, keep_torch_compile=False))
    return (
        f"{type(bare).__name__} reads the reward at the last end token (`eos_token_id`, {end_token_read(model)}), and "
        "there is none. Rows of text get it from the tokenizer, but a chat template has to write it: use one that "
        "ends with it, or remove the template (`processing_class.chat_template = None`) and pass rows of text."
    )


def require_end_tokens(model: nn.Module, data: Any, *, sharded: bool) -> None:
    """Refuse prepared rows without the end token at which a model reads, before the first step.

    Args:
        model: A reward model.
        data: Prepared rows; of a stream, the first eight are looked at.
        sharded: Whether processes hold parts of the model, so that all must call it equally often.

    Raises:
        ValueError: If a row has none, or rows of a sharded model have different numbers.
    """
    end = end_token_read(model)
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
                f"Row {row['row']} holds another number of end tokens (id {end}) than the rows before it, and rows of "
                "a sharded model must all have the same. Remove the token from its text."
            )


def of_one_count(model: nn.Module, sequences: Sequence[Any]) -> list[Any]:
    """Those sequences that share a batch: the largest group with one number of the end token that is read.

    Args:
        model: A reward model.
        sequences: Token ids of each sequence, and its token types.

    Returns:
        All of them for models that read elsewhere.
    """
    end = end_token_read(model)
    groups: dict[int, list[Any]] = {}
    for each in sequences:
        groups.setdefault(0 if end is None else list(each[0]).count(end), []).append(each)
    return max(groups.values(), key=len, default=[])
