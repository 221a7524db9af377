"""Export a trained model to a folder with which other programs compute the same rewards.

Files are written to a temporary folder, verified with stock transformers in a fresh process, and then renamed.
"""

import copy
import logging
import math
import shutil
import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedTokenizerBase

from hf_reward.data.atomic_folder import require_free, staged_folder
from hf_reward.modeling.adapters import merge_adapter
from hf_reward.modeling.architectures import has_stock_class
from hf_reward.modeling.auto_model import AutoModelForRewardScoring
from hf_reward.modeling.checkpoint_record import FILE_NAME, CheckpointRecord, describe
from hf_reward.modeling.custom_code import is_custom
from hf_reward.modeling.head_ensemble import save_heads, with_saved_heads
from hf_reward.modeling.probes import relative_differences
from hf_reward.modeling.reward_head import RewardModel, output_layers, reads_positions, unwrap_model
from hf_reward.modeling.transformers_4 import add_transformers_4_fields
from hf_reward.preprocessing.tokenization import FormatRule
from hf_reward.publishing.card.facts import AUDIT_FILE, BENCHMARKS_FILE
from hf_reward.publishing.card.render import write_model_card
from hf_reward.publishing.compatibility import Verdict, can_be_served, compatibility_of_config, why_unserved
from hf_reward.publishing.saved_model import (
    SavedModel,
    dequantized_on_cpu,
    load_saved_model,
    load_with_heads,
)
from hf_reward.publishing.verify import Verification, VerificationError, verify_checkpoint

logger = logging.getLogger(__name__)

ADAPTER_FOLDER = "adapter"
MERGE_TOLERANCE = 1e-4
"""Rounding of a merge in float32, which exceeds `FLOAT32_TOLERANCE` for large adapters."""


@dataclass(kw_only=True)
class ExportReport:
    """Result of an export."""

    folder: Path
    dtype: str
    verification: Verification | None
    compatibility: list[Verdict]
    differences: dict[str, float] = field(default_factory=dict)
    """Largest change of a probe's reward relative to max(1, |reward|), by the step that changed it."""
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values; `consumers` is the name of `compatibility` in version 0.1."""
        checked = None if self.verification is None else self.verification.to_dict()
        verdicts = [verdict._asdict() for verdict in self.compatibility]
        old = [{"consumer": each.program, "outcome": each.outcome, "note": each.note} for each in self.compatibility]
        values = {**asdict(self), "folder": str(self.folder), "verification": checked, "compatibility": verdicts}
        return {**values, "consumers": old}

    @property
    def consumers(self) -> list[Verdict]:
        """Deprecated name of `compatibility`, removed in version 0.3."""
        message = "`ExportReport.consumers` is now `compatibility`; the old name will be removed in version 0.3"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return self.compatibility


@dataclass(frozen=True, kw_only=True)
class ExportRule:
    """Options of an export."""

    dtype: str = "float32"
    """Precision of the weights; the head stays float32."""
    max_shard_size: str = "5GB"
    legacy_rope: bool = False
    """Deprecated, removed in version 0.3: every save writes `rope_theta` for transformers 4."""
    strip: bool = False
    """Leave out `reward_config.json`; the folder cannot be verified without it."""
    allow_unserved: bool = False
    """Write a model that no server can load."""
    trust_remote_code: bool = False
    """Whether code from the model folder may run, here and in the process that verifies."""

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"`dtype` must be 'float32', 'bfloat16' or 'float16', but is {self.dtype!r}.")
        if self.legacy_rope:
            message = "`legacy_rope` has no effect, because every save writes `rope_theta`. Version 0.3 removes it."
            warnings.warn(message, DeprecationWarning, stacklevel=3)

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as a torch dtype."""
        return getattr(torch, self.dtype)


def export_reward_model(
    source: str | Path,
    folder: str | Path,
    rule: ExportRule | None = None,
    *,
    base_model: str | None = None,
    original_base: bool = False,
    allow_pickle: bool = False,
    overwrite: bool = False,
) -> ExportReport:
    """Export a saved model or adapter to a folder that other programs can load.

    An adapter is merged in float32 before weights are cast. An adapter that was trained on a quantised base (QLoRA) is
    merged into the dequantised base, because it was fitted to these weights.

    Args:
        source: Folder or Hub id of a reward model or an adapter.
        folder: Output folder.
        rule: Options of the export.
        base_model: Current location of the base of an adapter.
        original_base: Merge a QLoRA adapter into the original base instead, and report how much rewards change.
        allow_pickle: Read pickled weights (tensors only).
        overwrite: Replace an existing folder.

    Returns:
        Report on the written and verified folder.

    Raises:
        VerificationError: If the written folder does not give the model's rewards; it is removed.
        ValueError: If the source is damaged, no server can load the result, or `original_base` has no effect.
        FileExistsError: If the folder exists and is not empty.
    """
    rule = rule or ExportRule()
    require_free(Path(folder), overwrite)
    how: dict[str, Any] = {"allow_pickle": allow_pickle, "trust_remote_code": rule.trust_remote_code}
    saved = load_with_heads(source, base_model=base_model, **how)
    if original_base:
        if not saved.record.quantization:
            raise ValueError(
                f"`original_base` requires an adapter on a quantised base (QLoRA), but {source} has none. Leave the "
                "option out."
            )
        quantized, rest = saved.rewards, (saved.tokenizer, saved.record, saved.changes)
        del saved  # two models of this size may not fit into memory
        model = load_saved_model(source, base_model=base_model, **how)
        with_saved_heads(model)
        saved = SavedModel(model, *rest)
        saved.note_change("original base instead of the quantised one", quantized)
        note = "The adapter was merged into the original base; it was trained on the quantised one."
        saved.changes.notes.append(note)
    return write_verified(as_plain(saved), folder, rule)


def save_merged(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    record: CheckpointRecord | None = None,
    dtype: torch.dtype = torch.float32,
    verify: bool = True,
) -> Path:
    """Save a model in memory as a plain sequence classifier; an adapter is saved and merged.

    The adapter is saved in `adapter/` before it is merged in float32; the merge changes `model`. An adapter on a
    quantised base (QLoRA) is merged into the dequantised base.

    Args:
        model: A reward model, with or without an adapter.
        tokenizer: Its prepared tokenizer.
        folder: Output folder; other files in it stay.
        record: Content of `reward_config.json`; its probes are scored again.
        dtype: Precision of the saved weights.
        verify: Whether to verify the folder in a fresh process before it is renamed.

    Returns:
        The folder.

    Raises:
        VerificationError: If the written folder does not give the model's rewards.
        ValueError: If an earlier save already merged the adapter.
    """
    folder = Path(folder)
    if isinstance(model, PeftModel) and not any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError(
            "The adapter was merged into the model by an earlier save and cannot be saved again. Load the saved "
            "adapter with `AutoModelForRewardScoring.from_pretrained`."
        )
    trusted = is_custom(type(unwrap_model(model).config))  # its code is already running
    rule = ExportRule(dtype=str(dtype).removeprefix("torch."), allow_unserved=True, trust_remote_code=trusted)
    saved = SavedModel(model, tokenizer, record or describe(model, tokenizer, FormatRule(), probes={}))
    if isinstance(model, PeftModel):
        saved.record = saved.described()
        with staged_folder(folder / ADAPTER_FOLDER) as staged:
            save_adapter(saved, staged, ADAPTER_FOLDER)
        if getattr(model.get_base_model(), "is_quantized", False):
            saved = _dequantized(saved, folder / ADAPTER_FOLDER, trust_remote_code=trusted)
        saved = as_plain(saved)
    elif {dtype, *(parameter.dtype for parameter in model.parameters())} != {torch.float32}:
        saved = saved.changed(copy.deepcopy(model))  # a cast would change the caller's model
    write_verified(saved, folder, rule, verify=verify, into_existing=True)
    return folder


def _dequantized(saved: SavedModel, folder: Path, *, trust_remote_code: bool) -> SavedModel:
    """Load a saved QLoRA adapter on its dequantised base."""
    options: dict[str, Any] = {"is_trainable": False, "allow_pickle": True}  # already loaded by the caller
    options |= {**dequantized_on_cpu(saved.record), "trust_remote_code": trust_remote_code}
    model = AutoModelForRewardScoring.from_pretrained(folder, **options)
    with_saved_heads(model)
    result = saved.changed(model)
    result.note_change("quantised weights, dequantised", saved.rewards)
    return result


def save_adapter(saved: SavedModel, folder: Path, title: str | None = None) -> None:
    """Save an adapter with its head, tokenizer, record and card; `title` is the folder's name if it is renamed."""
    saved.model.save_pretrained(str(folder))
    save_heads(saved.model, folder)
    saved.tokenizer.save_pretrained(folder)  # the base gets its pad token from it
    saved.write_processor(folder)
    add_transformers_4_fields(folder)
    saved.record.save(folder)
    write_model_card(folder, saved.record, title=title)


def write_verified(
    saved: SavedModel,
    folder: str | Path,
    rule: ExportRule,
    *,
    verify: bool = True,
    into_existing: bool = False,
) -> ExportReport:
    """Write a plain reward model to a temporary folder, verify it, and rename the folder.

    Args:
        saved: The model, without adapter; cast in place to the precision of `rule`.
        folder: Output folder.
        rule: Options of the export.
        verify: Whether to verify the folder in a fresh process before it is renamed.
        into_existing: Move the files into an existing folder instead of replacing it.

    Returns:
        Report on the written folder.

    Raises:
        VerificationError: If the folder does not give the model's rewards; it is removed.
        ValueError: If no server can load it.
    """
    folder, config = Path(folder), saved.model.config
    verdicts = compatibility_of_config(
        config,
        is_stock=has_stock_class(config),
        is_decoder=reads_positions(saved.model),
        own_code=is_custom(type(config)),
    )
    if not (can_be_served(verdicts) or rule.allow_unserved):
        raise ValueError(why_unserved(config, verdicts))
    saved = _cast(saved, rule)
    if saved.changes.differences:
        saved.record.origin = {**saved.record.origin, "differences": saved.changes.differences}
    with staged_folder(folder, into_existing=into_existing) as staged:
        _write(saved, staged, folder, rule, verdicts)
        found = _verified(staged, folder, rule.trust_remote_code) if verify else None
        if rule.strip:
            (staged / FILE_NAME).unlink()
    return ExportReport(
        folder=folder,
        dtype=rule.dtype,
        verification=found,
        compatibility=verdicts,
        differences=saved.changes.differences,
        notes=saved.changes.notes,
    )


def _write(saved: SavedModel, staged: Path, folder: Path, rule: ExportRule, verdicts: list[Verdict]) -> None:
    """Write weights, tokenizer, record and card, and copy the audit and benchmark results of the folder."""
    saved.model.save_pretrained(str(staged), max_shard_size=rule.max_shard_size)
    save_heads(saved.model, staged)
    saved.tokenizer.save_pretrained(staged)
    saved.write_processor(staged)
    add_transformers_4_fields(staged)
    saved.record.save(staged)
    for name in (AUDIT_FILE, BENCHMARKS_FILE):
        if (folder / name).is_file():
            shutil.copy(folder / name, staged / name)
    # Without the record, the card must not mention `hf-reward verify`.
    record = replace(saved.record, probes={}) if rule.strip else saved.record
    write_model_card(staged, record, compatibility=verdicts, title=folder.resolve().name)


def _verified(staged: Path, folder: Path, trust_remote_code: bool) -> Verification:
    found = verify_checkpoint(staged, trust_remote_code=trust_remote_code)
    found.folder = str(folder)
    if not found.equal:
        raise VerificationError(
            f"The written folder was removed, because its rewards differ from the model's. {found}", found
        )
    return found


# --- precision and merging ----------------------------------------------------------------------------------------


def _cast(saved: SavedModel, rule: ExportRule) -> SavedModel:
    """Cast the backbone in place (the head stays float32) and describe the model with the saved weights."""
    saved = saved.in_float32()
    if rule.dtype == "float32":
        return replace(saved, record=replace(saved.described(half=torch.bfloat16), dtype=rule.dtype))
    before = saved.rewards
    _cast_parameters(saved.model, rule.torch_dtype)
    # Programs that load the rounded weights in float32 get exactly these rewards, which `verify` can check.
    _cast_parameters(saved.model, torch.float32)
    rounded = saved.changed(saved.model)
    if not math.isfinite(rounded.note_change(f"cast to {rule.dtype}", before)):
        raise ValueError(f"In {rule.dtype}, the rewards of this model are not finite. Use another `dtype`.")
    record = rounded.described()
    _cast_parameters(saved.model, rule.torch_dtype)
    cast = rounded.changed(saved.model)
    record.probes["rewards"] |= cast.scored()["rewards"]
    return replace(cast, record=replace(record, dtype=rule.dtype))


def _cast_parameters(model: RewardModel, dtype: torch.dtype) -> None:
    """Cast all parameters except those of the head in place. Buffers, such as rotary frequencies, stay float32."""
    head = {id(parameter) for _, layer in output_layers(model) for parameter in layer.parameters()}
    for parameter in model.parameters():
        if parameter.is_floating_point() and id(parameter) not in head:
            parameter.data = parameter.data.to(dtype)


def as_plain(saved: SavedModel) -> SavedModel:
    """Merge an adapter, in float32.

    Args:
        saved: A reward model. It is changed in place; its `changes` record how much the merge changed rewards.

    Returns:
        The plain float32 model.

    Raises:
        VerificationError: If the change exceeds rounding.
    """
    saved = saved.in_float32()
    if not isinstance(saved.model, PeftModel):
        return saved
    before = saved.rewards
    plain = saved.changed(merge_adapter(saved.model))
    difference = max(relative_differences(before, plain.rewards))
    if difference > MERGE_TOLERANCE:
        raise VerificationError(
            f"Merging the adapter changes rewards by {difference:.1e}, which exceeds rounding ({MERGE_TOLERANCE:.0e}). "
            "Nothing was written. Publish the adapter itself, or open an issue with the name of this model."
        )
    plain.changes.differences["merge"] = difference
    return plain
