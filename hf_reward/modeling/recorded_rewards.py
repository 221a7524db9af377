"""A loaded model and its record -> the rewards of the recorded probes, which must be those that were saved."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from hf_reward.modeling.checkpoint_record import CheckpointRecord
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
    """Compare the rewards of the stored probes with those of the model as it is now.

    Args:
        name: What to call the model.
        model: The model, loaded.
        tokenizer: Its tokenizer.
        record: Its record.
        quantized: Whether it was loaded with a `quantization_config`.

    Returns:
        The rewards of the recorded probes, each alone.

    Raises:
        ValueError: If a reward has changed, or there is nothing to compare.
    """
    if record is None or not record.probes or tokenizer is None:
        raise ValueError(
            f"{name} cannot be verified: it has no tokenizer, or no probe rewards in `reward_config.json`."
        )
    unquantized = bool(record.quantization) and not quantized
    dtype = str(weight_dtype(unwrap_model(model))).removeprefix("torch.")
    recorded = record.probes["rewards"]
    expected = recorded.get(dtype) or next(iter(recorded.values()))
    try:
        probes = read_probes(record.probes["conversations"], tokenizer)
    except ValueError as error:
        raise ValueError(f"{name} no longer formats the probes that it was saved with: {error}") from error
    found = probe_rewards(model, probes)
    device = next(model.parameters()).device.type
    wrong = differing(expected, found, _allowed(record, dtype, device, unquantized=unquantized))
    if wrong:
        first = wrong[0]
        cure = "Pass the `quantization_config` it was trained with." if unquantized else "`hf-reward verify` says why."
        raise ValueError(
            f"{name} does not give the rewards that it was saved with: {found[first]} instead of {expected[first]} for "
            f"the probe {probes[first].name!r}, and {len(wrong)} of {len(probes)} probes differ. {cure}"
        )
    return found


def _allowed(record: CheckpointRecord, dtype: str, device: str, *, unquantized: bool) -> float:
    """Allowed relative difference: coarse where weights were rounded otherwise than when they were saved."""
    as_saved = dtype in record.probes["rewards"] and dtype in ("float32", record.dtype)
    is_exact = as_saved and not record.probes.get("weights_cast") and (unquantized or not record.quantization)
    same_device = device == record.probes.get("device", "cpu")
    return tolerance(dtype, same_device=same_device) if is_exact else COARSE_TOLERANCE
