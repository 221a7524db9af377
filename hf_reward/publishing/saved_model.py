"""Saved folder or model in memory -> `SavedModel`: model, tokenizer, record and the rewards of the probes."""

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
from hf_reward.modeling.encoder import tokenizer_to_save
from hf_reward.modeling.head_ensemble import with_saved_heads
from hf_reward.modeling.model_images import load_images, unloaded_processor
from hf_reward.modeling.model_tokenizer import load_tokenizer, match_pad_token
from hf_reward.modeling.position_limits import longest_sequence
from hf_reward.modeling.probes import Probe, format_probes, probe_record, probe_rewards, relative_differences
from hf_reward.modeling.recorded_rewards import require_recorded_rewards
from hf_reward.modeling.reward_head import RewardModel, output_layers, unwrap_model
from hf_reward.preprocessing.tokenizer import prepare_tokenizer


@dataclass(kw_only=True)
class RewardChanges:
    """Changes of the rewards by the steps of an export."""

    differences: dict[str, float] = field(default_factory=dict)
    """Largest change of a probe's reward relative to max(1, |reward|), by the step that changed it."""
    notes: list[str] = field(default_factory=list)


@dataclass
class SavedModel:
    """A reward model with its tokenizer and record, as it was loaded or is about to be saved.

    The probes are scored at the first access to their rewards. A step that changes the weights returns a new value with
    `changed`, so cached rewards always belong to the current weights.
    """

    model: RewardModel
    tokenizer: PreTrainedTokenizerBase
    record: CheckpointRecord
    changes: RewardChanges = field(default_factory=RewardChanges)
    """Changes of the rewards by the steps so far."""

    def __post_init__(self) -> None:
        self.tokenizer = tokenizer_to_save(self.tokenizer, self.record.rows)

    @cached_property
    def probes(self) -> list[Probe]:
        """The probes in the text format of this model."""
        rule = self.record.rule
        limit = longest_sequence(self.model, rule.max_length)
        return format_probes(self.tokenizer, separator=rule.separator, limit=limit)

    @cached_property
    def rewards(self) -> list[float]:
        """Rewards of the probes, each scored alone, in the precision of the weights."""
        return probe_rewards(self.model, self.probes)

    def changed(self, model: RewardModel) -> Self:
        """Return the same value with other weights. The probes stay; their rewards are scored again."""
        result = replace(self, model=model)
        result.probes = self.probes
        return result

    def write_processor(self, folder: Path) -> None:
        """Write the files of an image processor, if the model is a vision-language model."""
        files = unloaded_processor(self.model) if self._images is None else self._images.files
        for name, content in files.items():
            (folder / name).write_bytes(content)

    @cached_property
    def _images(self) -> Any:
        """The image part of the processor of a vision-language model; None without its files."""
        return load_images(self.model, self.tokenizer)

    def in_float32(self) -> Self:
        """Cast the weights to float32 in place and return the value with them."""
        parts = (*self.model.parameters(), *self.model.buffers())
        if all(part.dtype == torch.float32 for part in parts if part.is_floating_point()):
            return self
        return self.changed(self.model.float())

    def note_change(self, step: str, before: Sequence[float | None]) -> float:
        """Record how much a step changed the rewards.

        Args:
            step: Description of the step.
            before: The rewards before the step.

        Returns:
            The largest change relative to max(1, |reward|).
        """
        difference = max(relative_differences(before, self.rewards))
        self.changes.differences[step] = difference
        return difference

    def scored(self, half: torch.dtype | None = None) -> dict[str, Any]:
        """Return the `probes` of a record. With `half`, they are also scored under autocast in that precision."""
        options: dict[str, Any] = {"rule": self.record.rule, "half": half, "images": self._images}
        return probe_record(self.model, self.tokenizer, probes=self.probes, known=self.rewards, **options)

    def described(self, half: torch.dtype | None = None) -> CheckpointRecord:
        """Return the record with the facts that depend on the current model.

        Args:
            half: Also score the probes under autocast in this precision.

        Returns:
            A new record.
        """
        current = describe(self.model, self.tokenizer, probes=self.scored(half))
        if "images" in self.record.probes and "images" not in current.probes:
            self.changes.notes.append("Rewards of pictures are no longer recorded: the image processor was not loaded.")
        facts = (
            *("reads", "reward_heads", "pad_token_id", "template_hash", "tokenizer_hash", "dtype", "probes"),
            *("quantization", "versions"),
        )
        return replace(self.record, **{name: getattr(current, name) for name in facts})


def load_saved_model(source: str | Path, *, base_model: str | None = None, **options: Any) -> RewardModel:
    """Load a saved model or adapter in float32; `base_model` is the current location of the base of an adapter."""
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
    """Load a saved model for an export. A damaged model is refused.

    Args:
        source: Folder or Hub id.
        base_model: Current location of the base of an adapter.
        allow_pickle: Read pickled weights (tensors only).
        trust_remote_code: Whether code from the folder may run.

    Returns:
        The model in float32 with its tokenizer and record, and the changes of rewards by dequantisation.

    Raises:
        ValueError: If the head or tokenizer is missing, rewards differ from the recorded ones, or code is not trusted.
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
        raise ValueError(f"Scoring requires a tokenizer, but {source} has none. Save the tokenizer in this folder.")
    _require_head(model, source)
    if record is None:
        tokenizer = _padding_as(model, tokenizer)
        record = describe(model, tokenizer, probes={})
        if not isinstance(model, PeftModel):
            record.base_model = None  # otherwise it is the folder itself
    return SavedModel(model, tokenizer, record)


def _as_recorded(
    source: str | Path, model: RewardModel, tokenizer: PreTrainedTokenizerBase | None, record: CheckpointRecord
) -> SavedModel:
    """Check that a model gives its recorded rewards, and return it."""
    found = require_recorded_rewards(source, model, tokenizer, record, quantized=bool(record.quantization))
    assert tokenizer is not None
    result = SavedModel(model, tokenizer, record)
    if record.quantization:
        recorded = next(iter(record.probes["rewards"].values()))
        difference = max(relative_differences(recorded, found))
        result.changes.differences["quantised weights, dequantised"] = difference
    if [probe.to_dict() for probe in result.probes] == record.probes["conversations"]:
        result.rewards = found  # records of earlier versions may have other probes
    return result


def load_with_heads(source: str | Path, **how: Any) -> SavedModel:
    """Load a saved model with all heads if it is an ensemble; see `load_saved`."""
    saved = load_saved(source, **how)
    if saved.record.reward_heads == 1:
        return saved
    with_saved_heads(saved.model)
    return saved.changed(saved.model)


def _padding_as(model: RewardModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a tokenizer that pads on the right with the pad token that stock classes use to find the last token."""
    bare = unwrap_model(model)
    pad = bare.config.get_text_config().pad_token_id
    if pad not in tokenizer.added_tokens_decoder:  # missing, or an ordinary token, which cannot become special
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
            f"An export requires a trained reward head, but {source} has none (or only zero weights). Train the model "
            "first, or convert a reward model from another library with `hf-reward import`."
        )


def dequantized_on_cpu(record: CheckpointRecord) -> dict[str, Any]:
    """Return options that load a dequantised QLoRA base on the CPU, because it may not fit on the accelerator."""
    return {"quantization_config": record.quantization, "dequantize": True, "device_map": {"": "cpu"}}
