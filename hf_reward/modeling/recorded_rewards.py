"""Loaded model and its record -> rewards of the recorded probes, which must equal the recorded rewards."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_reward.modeling.checkpoint_record import CheckpointRecord
from hf_reward.modeling.model_images import load_images
from hf_reward.modeling.probes import (
    COARSE_TOLERANCE,
    differing,
    probe_rewards,
    read_probes,
    tolerance,
    weight_dtype,
)
from hf_reward.modeling.reward_head import RewardModel, unwrap_model


def require_recorded_rewards(
    name: str | Path,
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase | None,
    record: CheckpointRecord | None,
    *,
    quantized: bool = False,
) -> list[float]:
    """Compare the current rewards of the recorded probes with the recorded rewards.

    Args:
        name: Name of the model for messages.
        model: The loaded model.
        tokenizer: Its tokenizer.
        record: Its record.
        quantized: Whether the model was loaded with a `quantization_config`.

    Returns:
        The rewards of the recorded probes, each scored alone.

    Raises:
        ValueError: If a reward has changed, or no rewards are recorded.
    """
    if record is None or not record.probes or tokenizer is None:
        raise ValueError(
            f"Verification requires a tokenizer and the probe rewards in reward_config.json, but {name} lacks one of "
            "them. Save the model again with `hf-reward export`."
        )
    unquantized = bool(record.quantization) and not quantized
    try:
        probes = read_probes(record.probes["conversations"], tokenizer)
    except ValueError as error:
        raise ValueError(f"The recorded probes of {name} can no longer be formatted: {error}") from error
    found = probe_rewards(model, probes)
    if difference := _difference(record, record.probes, model, found, unquantized=unquantized):
        remedy = (
            "Pass the `quantization_config` of the training."
            if unquantized
            else "Run `hf-reward verify` to find the cause."
        )
        raise ValueError(f"{name} does not give its recorded rewards: {difference}. {remedy}")
    _require_recorded_pictures(name, model, tokenizer, record, unquantized=unquantized)
    return found


def _require_recorded_pictures(
    name: str | Path,
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    record: CheckpointRecord,
    *,
    unquantized: bool,
) -> None:
    """Compare the rewards of pictures, unless the image processor is missing or has another implementation."""
    recorded = record.probes.get("images")
    if not recorded or not recorded["conversations"]:
        return
    images = load_images(model, tokenizer)
    if images is None or images.implementation != recorded["processor"]:
        return
    from hf_reward.modeling.image_probes import image_probe_rewards  # noqa: PLC0415 - not for text models

    found = image_probe_rewards(model, images, recorded["conversations"])
    if difference := _difference(record, recorded, model, found, unquantized=unquantized):
        raise ValueError(
            f"{name} does not give its recorded rewards for images, although those for texts are right: {difference}. "
            "The vision tower, the image processor or the chat template has changed. Copy the model again from its "
            "source."
        )


def _difference(
    record: CheckpointRecord,
    recorded: Mapping[str, Any],
    model: RewardModel,
    found: Sequence[float | None],
    *,
    unquantized: bool,
) -> str:
    """Compare rewards with recorded ones (`conversations` and `rewards`); describe the first difference."""
    dtype = str(weight_dtype(unwrap_model(model))).removeprefix("torch.")
    expected = recorded["rewards"].get(dtype) or next(iter(recorded["rewards"].values()))
    device = next(model.parameters()).device.type
    wrong = differing(expected, found, _allowed(record, dtype, device, unquantized=unquantized))
    if not wrong:
        return ""
    first = wrong[0]
    return (
        f"{found[first]} instead of {expected[first]} for the probe {recorded['conversations'][first]['name']!r}, and "
        f"{len(wrong)} of {len(found)} probes differ"
    )


def _allowed(record: CheckpointRecord, dtype: str, device: str, *, unquantized: bool) -> float:
    """Return the allowed relative difference, which is larger if weights are rounded differently than at saving."""
    as_saved = dtype in record.probes["rewards"] and dtype in ("float32", record.dtype)
    is_exact = as_saved and not record.probes.get("weights_cast") and (unquantized or not record.quantization)
    same_device = device == record.probes.get("device", "cpu")
    return tolerance(dtype, same_device=same_device) if is_exact else COARSE_TOLERANCE
