"""A folder or a model in memory -> model, tokenizer and record as one value, whose probes are scored once."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from hf_reward.modeling.auto_model import AutoModelForRewardScoring
from hf_reward.modeling.checkpoint_record import CheckpointRecord, describe
from hf_reward.modeling.custom_code import require_trust
from hf_reward.modeling.head_ensemble import with_saved_heads
from hf_reward.modeling.model_tokenizer import load_tokenizer, match_pad_token
from hf_reward.modeling.position_limits import longest_sequence
from hf_reward.modeling.probes import Probe, format_probes, probe_record, probe_rewards, relative_differences
from hf_reward.modeling.recorded_rewards import require_recorded_rewards
from hf_reward.modeling.reward_head import RewardModel, output_layers, unwrap_model
from hf_reward.preprocessing.tokenizer import prepare_tokenizer


@dataclass(kw_only=True)
class RewardChanges:
    """What happened to the rewards on the way to the written folder."""

    differences: dict[str, float] = field(default_factory=dict)
    """Largest change of a probe's reward relative to max(1, |reward|), by the step that changed it."""
    notes: list[str] = field(default_factory=list)


@dataclass
class SavedModel:
    """A reward model with its tokenizer and record, as it was loaded or is about to be saved.

    Its probes are scored when their rewards are first asked for. A step that changes the weights hands on a new value,
    made by `changed`, so that rewards which are known always belong to the weights beside them.
    """

    model: RewardModel
    tokenizer: PreTrainedTokenizerBase
    record: CheckpointRecord
    changes: RewardChanges = field(default_factory=RewardChanges)
    """What the steps so far did to the rewards."""

    @cached_property
    def probes(self) -> list[Probe]:
        """The probes as this model reads them."""
        rule = self.record.rule
        limit = longest_sequence(self.model, rule.max_length)
        return format_probes(self.tokenizer, separator=rule.separator, limit=limit)

    @cached_property
    def rewards(self) -> list[float]:
        """Rewards of the probes, each alone, in the precision of the weights."""
        return probe_rewards(self.model, self.probes)

    def changed(self, model: RewardModel) -> Self:
        """The same with other weights: the probes stay, and their rewards are not known any more."""
        result = replace(self, model=model)
        result.probes = self.probes
        return result

    def in_float32(self) -> Self:
        """The same with weights cast to float32, in place."""
        parts = (*self.model.parameters(), *self.model.buffers())
        if all(part.dtype == torch.float32 for part in parts if part.is_floating_point()):
            return self
        return self.changed(self.model.float())

    def note_change(self, step: str, before: Sequence[float | None]) -> float:
        """Note by how much a step moved the rewards.

        Args:
            step: What the step did.
            before: The rewards before it.

        Returns:
            The largest change relative to max(1, |reward|).
        """
        difference = max(relative_differences(before, self.rewards))
        self.changes.differences[step] = difference
        return difference

    def scored(self, half: torch.dtype | None = None) -> dict[str, Any]:
        """What a record says of the probes; in the precision `half` they are scored under autocast too."""
        return probe_record(self.model, self.tokenizer, half=half, probes=self.probes, known=self.rewards)

    def described(self, half: torch.dtype | None = None) -> CheckpointRecord:
        """The record with what can be read off the model as it is now.

        Args:
            half: Score the probes under autocast in this precision too.

        Returns:
            A new record.
        """
        current = describe(self.model, self.tokenizer, probes=self.scored(half))
        facts = (
            *("reads", "reward_heads", "pad_token_id", "template_hash", "tokenizer_hash", "dtype", "probes"),
            *("quantization", "versions"),
        )
        return replace(self.record, **{name: getattr(current, name) for name in facts})


def load_saved_model(source: str | Path, *, base_model: str | None = None, **options: Any) -> RewardModel:
    """Load a saved model or adapter in float32, with `base_model` as the place where an adapter's base is now."""
    where = {"base_model_name_or_path": base_model} if base_model else {}
    try:
        return AutoModelForRewardScoring.from_pretrained(source, is_trainable=False, **where, **options)
    except OSError as error:
        raise OSError(f"{source} cannot be loaded: {' '.join(str(error).split())}") from error


def load_saved(
    source: str | Path,
    *,
    base_model: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> SavedModel:
    """Load a saved model to write it anew; a damaged one is refused.

    Args:
        source: Folder or Hub id.
        base_model: Where the adapter's base lies now.
        allow_pickle: Read weights that are pickles, tensors only.
        trust_remote_code: Whether code that the folder brings may run.

    Returns:
        The model in float32 with its tokenizer and record, and what loading did to the rewards (of quantised weights).

    Raises:
        ValueError: If it has no head or tokenizer, does not give its recorded rewards, or needs code that may not run.
    """
    require_trust(source, trust_remote_code)
    record = CheckpointRecord.find(source)
    options: dict[str, Any] = {"allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code}
    if record is not None and record.quantization:
        options |= dequantized_on_cpu(record)
    model = load_saved_model(source, base_model=base_model, **options)
    tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
    if record is not None and record.probes:
        return _as_recorded(source, model, tokenizer, record)
    if tokenizer is None:
        raise ValueError(f"{source} has no tokenizer, without which nobody can score with it. Save it there first.")
    _require_head(model, source)
    if record is None:
        tokenizer = _padding_as(model, tokenizer)
        record = describe(model, tokenizer, probes={})
        if not isinstance(model, PeftModel):
            record.base_model = None  # it is the folder itself
    return SavedModel(model, tokenizer, record)


def _as_recorded(
    source: str | Path, model: RewardModel, tokenizer: PreTrainedTokenizerBase | None, record: CheckpointRecord
) -> SavedModel:
    """A model that gives the rewards in its record."""
    found = require_recorded_rewards(source, model, tokenizer, record, quantized=bool(record.quantization))
    assert tokenizer is not None
    result = SavedModel(model, tokenizer, record)
    if record.quantization:
        recorded = next(iter(record.probes["rewards"].values()))
        difference = max(relative_differences(recorded, found))
        result.changes.differences["quantised weights, dequantised"] = difference
    if [probe.to_dict() for probe in result.probes] == record.probes["conversations"]:
        result.rewards = found  # a record of an earlier version may hold other probes
    return result


def load_with_heads(source: str | Path, **how: Any) -> SavedModel:
    """Load a saved model as the ensemble of heads that it was trained as, if it was; see `load_saved`."""
    saved = load_saved(source, **how)
    if saved.record.reward_heads == 1:
        return saved
    with_saved_heads(saved.model)
    return saved.changed(saved.model)


def _padding_as(model: RewardModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer that pads on the right, with the pad token by which stock classes find the model's last token."""
    bare = unwrap_model(model)
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
    bare = unwrap_model(model)
    is_new = not isinstance(model, PeftModel) and getattr(bare, "has_new_head", False)
    if is_new or all(not layer.weight.any() for _, layer in output_layers(bare)):
        raise ValueError(
            f"{source} has no reward head (or one that is zero), so there is no reward to export. Train it first, or "
            "bring a foreign reward model in with `hf-reward import`."
        )


def dequantized_on_cpu(record: CheckpointRecord) -> dict[str, Any]:
    """How to load a QLoRA base as floats: they fit no accelerator that needed QLoRA."""
    return {"quantization_config": record.quantization, "dequantize": True, "device_map": {"": "cpu"}}
