"""A folder or a model in memory -> model, tokenizer and record, and its rewards on the probes."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from hf_reward.modeling.auto_model import AutoModelForRewardScoring, load_tokenizer, match_pad_token
from hf_reward.modeling.checkpoint_record import CheckpointRecord, describe
from hf_reward.modeling.custom_code import require_trust
from hf_reward.modeling.position_limits import longest_sequence
from hf_reward.modeling.probes import format_probes, probe_rewards, read_probes, relative_differences
from hf_reward.modeling.reward_head import RewardModel, bare_model, output_layers
from hf_reward.preprocessing.tokenization import FormatRule
from hf_reward.preprocessing.tokenizer import prepare_tokenizer


@dataclass(kw_only=True)
class RewardChanges:
    """What happened to the rewards on the way to the written folder."""

    differences: dict[str, float] = field(default_factory=dict)
    """Largest change of a probe's reward relative to max(1, |reward|), by the step that changed it."""
    notes: list[str] = field(default_factory=list)


def _probe_rewards(model: Any, tokenizer: PreTrainedTokenizerBase, record: CheckpointRecord) -> list[float]:
    if record.probes.get("conversations"):
        return probe_rewards(model, read_probes(record.probes["conversations"], tokenizer))
    rule = _format_rule(record)
    limit = longest_sequence(model, rule.max_length)
    return probe_rewards(model, format_probes(tokenizer, separator=rule.separator, limit=limit))


def reward_change(
    before: RewardModel, after: RewardModel, tokenizer: PreTrainedTokenizerBase, record: CheckpointRecord
) -> float:
    """Largest difference of the probes' rewards between two models, relative to max(1, |reward|)."""
    rewards = [_probe_rewards(each, tokenizer, record) for each in (before, after)]
    return max(relative_differences(*rewards))


def _format_rule(record: CheckpointRecord | None) -> FormatRule:
    return FormatRule() if record is None else FormatRule(**record.format)


def load_saved_model(source: str | Path, *, base_model: str | None = None, **options: Any) -> RewardModel:
    """Load a saved model or adapter in float32, with `base_model` as the place where an adapter's base is now."""
    where = {"base_model_name_or_path": base_model} if base_model else {}
    try:
        return AutoModelForRewardScoring.from_pretrained(source, is_trainable=False, **where, **options)
    except OSError as error:
        raise OSError(f"{source} cannot be loaded: {' '.join(str(error).split())}") from error


def load_saved(
    source: str | Path,
    changes: RewardChanges,
    *,
    base_model: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> tuple[RewardModel, PreTrainedTokenizerBase, CheckpointRecord]:
    """Load a saved model to write it anew; a damaged one is refused.

    Args:
        source: Folder or Hub id.
        changes: Takes up what loading did to the rewards (of quantised weights).
        base_model: Where the adapter's base lies now.
        allow_pickle: Read weights that are pickles, tensors only.
        trust_remote_code: Whether code that the folder brings may run.

    Returns:
        The model in float32, its tokenizer and its record.

    Raises:
        ValueError: If it has no head or tokenizer, does not give its recorded rewards, or needs code that may not run.
    """
    require_trust(source, trust_remote_code)
    record = CheckpointRecord.find(source)
    has_probes = record is not None and bool(record.probes)
    options: dict[str, Any] = {
        "allow_pickle": allow_pickle,
        "verify": has_probes,
        "trust_remote_code": trust_remote_code,
    }
    if record is not None and record.quantization:
        options |= _dequantized_on_cpu(record)
    model = load_saved_model(source, base_model=base_model, **options)
    tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
    if tokenizer is None:
        raise ValueError(f"{source} has no tokenizer, without which nobody can score with it. Save it there first.")
    if not has_probes:
        _require_head(model, source)
    if record is None:
        tokenizer = _padding_as(model, tokenizer)
        record = describe(model, tokenizer)
        if not isinstance(model, PeftModel):
            record.base_model = None  # it is the folder itself
    elif record.quantization and has_probes:
        recorded = next(iter(record.probes["rewards"].values()))
        found = _probe_rewards(model, tokenizer, record)
        changes.differences["quantised weights, dequantised"] = max(relative_differences(recorded, found))
    return model, tokenizer, record


def _padding_as(model: RewardModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer that pads on the right, with the pad token by which stock classes find the model's last token."""
    bare = bare_model(model)
    pad = bare.config.get_text_config().pad_token_id
    if pad not in tokenizer.added_tokens_decoder:  # none yet, or an ordinary word, which cannot be made special
        result = prepare_tokenizer(tokenizer)
        match_pad_token(bare, result)
        return result
    result = copy.deepcopy(tokenizer)
    result.padding_side = "right"
    if result.pad_token_id != pad:
        result.pad_token = str(result.convert_ids_to_tokens(pad))
    return result


def _require_head(model: RewardModel, source: str | Path) -> None:
    bare = bare_model(model)
    is_new = not isinstance(model, PeftModel) and getattr(bare, "has_new_head", False)
    if is_new or all(not layer.weight.any() for _, layer in output_layers(bare)):
        raise ValueError(
            f"{source} has no reward head (or one that is zero), so there is no reward to export. Train it first, or "
            "bring a foreign reward model in with `hf-reward import`."
        )


def _dequantized_on_cpu(record: CheckpointRecord) -> dict[str, Any]:
    """How to load a QLoRA base as floats: they fit no accelerator that needed QLoRA."""
    return {"quantization_config": record.quantization, "dequantize": True, "device_map": {"": "cpu"}}
