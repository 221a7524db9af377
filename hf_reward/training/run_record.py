"""A run -> the checkpoint record and the model card that are saved with its model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from hf_reward.modeling.checkpoint_record import CheckpointRecord, describe
from hf_reward.modeling.encoder import tokenizer_to_save
from hf_reward.modeling.probes import probe_record
from hf_reward.publishing.card.render import write_model_card
from hf_reward.publishing.compatibility import compatibility_of_folder
from hf_reward.training.prepared_data import PreferenceData
from hf_reward.training.setup import training_settings
from hf_reward.training.training_args import RewardConfig


def score_probes(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, args: RewardConfig, *, sharded: bool, images: Any = None
) -> dict[str, Any]:
    """Score the probe texts; with a sharded model, all processes must call this.

    Args:
        model: The model; a sharded one with accelerate's wrappers.
        tokenizer: The prepared tokenizer.
        args: Settings of the run.
        sharded: Whether the model is sharded over processes.
        images: `ImageProcessing` of a vision-language model.

    Returns:
        The result of `probe_record`.
    """
    half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    options: dict[str, Any] = {"rule": args.format_rule, "half": half, "images": images}
    scored: Any = model
    if sharded:  # its mixed-precision policy cannot be disabled
        return probe_record(scored, tokenizer, float32=half is None, **options)
    with _without_autocast(model):
        return probe_record(scored, tokenizer, **options)


def run_record(
    model: Any,
    data: PreferenceData,
    args: RewardConfig,
    probes: dict[str, Any],
    *,
    step: int,
    command: str | None,
    **measured: Any,
) -> CheckpointRecord:
    """Return the record that is saved with the model.

    Args:
        model: The model without accelerate's wrappers.
        data: The run's datasets and tokenizer.
        args: Settings of the run.
        probes: Result of `score_probes`.
        step: Optimizer steps so far.
        command: The command line that started the run.
        **measured: `loss`, `reward_statistics`, `evaluation` and `baselines` of `CheckpointRecord`.

    Returns:
        The record.
    """
    summaries = {name: json_safe(summary.to_dict()) for name, summary in data.summaries.items()}
    settings = training_settings(args, model)
    return replace(
        describe(model, tokenizer_to_save(data.tokenizer, data.rows), args.format_rule, probes=probes),
        rows=data.rows,
        training={"steps": step, "data": summaries, "settings": settings, "command": command},
        training_texts=data.training_texts,
        card=args.card,
        **measured,
    )


def write_card(folder: str | Path, record: CheckpointRecord) -> None:
    """Write the model card of a saved folder.

    Args:
        folder: The folder that contains the model.
        record: Its record.
    """
    write_model_card(folder, record, compatibility=compatibility_of_folder(folder))


def json_safe(values: dict[str, Any]) -> dict[str, Any]:
    """Replace NaN and infinity, which JSON does not support, by None."""
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in values.items()
    }


def numbers_of(values: dict[str, Any]) -> dict[str, float]:
    """Return the numeric entries as floats, without booleans."""
    return {name: float(value) for name, value in values.items() if np.ndim(value) == 0 and _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


@contextmanager
def _without_autocast(model: nn.Module) -> Iterator[None]:
    """Disable accelerate's mixed-precision wrapper of a model's `forward` within the block."""
    wrapped, original = model.__dict__.get("forward"), model.__dict__.get("_original_forward")
    if wrapped is None or original is None:
        yield
        return
    model.forward = original
    try:
        yield
    finally:
        model.forward = wrapped
