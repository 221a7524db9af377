"""Load and check a model for scoring: weights, tokenizer and checkpoint record."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from accelerate import PartialState
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from hf_reward.data.interface import setting
from hf_reward.metrics.length_correction import LengthCorrection
from hf_reward.modeling.auto_model import AutoModelForRewardScoring
from hf_reward.modeling.checkpoint_record import (
    CheckpointRecord,
    adapter_base,
    library_versions,
    template_hash,
    tokenizer_hash,
)
from hf_reward.modeling.head_ensemble import HEADS_FILE, number_of_heads, saved_state, with_saved_heads
from hf_reward.modeling.model_computation import adapter_of, config_of
from hf_reward.modeling.model_place import hub_options, resolve_model
from hf_reward.modeling.model_tokenizer import load_tokenizer
from hf_reward.modeling.position_limits import longest_sequence
from hf_reward.modeling.probes import LONGEST, format_probes, weight_dtype
from hf_reward.modeling.reward_head import RewardModel, unwrap_model
from hf_reward.modeling.row_check import batch_problem
from hf_reward.preprocessing.response_encoding import ResponseEncoder

logger = logging.getLogger(__name__)


def load_for_scoring(
    name: str, *, device: str | torch.device | None = None, verify: bool = False, **options: Any
) -> tuple[RewardModel, PreTrainedTokenizerBase, CheckpointRecord | None]:
    """Load a model, its tokenizer and its record.

    Args:
        name: A folder or Hub id.
        device: Device of the model; by default a GPU if there is one.
        verify: Raise an error if the model no longer gives its stored probe rewards.
        **options: As for `AutoModelForRewardScoring.from_pretrained`.

    Returns:
        The model, its tokenizer, and its record if it has one.

    Raises:
        ValueError: If the model has no head or no tokenizer, or the options contradict each other.
    """
    require_device(device)
    asked = name
    try:
        name, options = resolve_model(name, **options)
        model = AutoModelForRewardScoring.from_pretrained(name, verify=verify, is_trainable=False, **options)
    except FileNotFoundError:
        raise
    except OSError as error:
        if Path(name).exists():
            raise
        raise OSError(
            f"There is no folder {asked!r} (looked in {Path.cwd()}), and loading it from the Hub failed: {error}"
        ) from error
    # An adapter contains the head that its base lacks; loading an adapter without one is an error already.
    if not isinstance(model, PeftModel) and getattr(model, "has_new_head", False):
        raise ValueError(
            f"{name} has no reward head, so it cannot score. Use a trained reward model; `hf-reward train` makes one."
        )
    with_saved_heads(model)
    tokenizer = _tokenizer(name, **options)
    record = CheckpointRecord.find(name, **hub_options(options))
    if "device_map" in options and device is not None:
        raise ValueError("`device` and `device_map` both set the device of the model. Set one of them.")
    if "device_map" not in options:
        move: Any = model
        # Without an accelerator, `cpu=True` is needed for the state to include the other processes of a CPU launch.
        move.to(device if device is not None else PartialState(cpu=not torch.accelerator.is_available()).device)
    return model, tokenizer, record


def batch_of_images(images: Any) -> Any:
    """Return the `ImageBatch` of an `ImageProcessing`."""
    from hf_reward.preprocessing.image_inputs import ImageBatch  # noqa: PLC0415 - not for text models

    return ImageBatch(images)


def require_device(device: str | torch.device | None) -> None:
    """Raise an error if a device cannot be used, before a model is loaded.

    Args:
        device: The device; None for the default.

    Raises:
        ValueError: If there is no such device, or this build of torch cannot use it.
    """
    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch without CUDA raises the second
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"`{setting('device', str(device))}` cannot be used here ({reason}). Use another, or omit it for the "
            "default."
        ) from error


def _tokenizer(name: str, **options: Any) -> PreTrainedTokenizerBase:
    base = None
    if (Path(name) / "adapter_config.json").is_file():
        base = adapter_base(name, options.get("base_model_name_or_path"), **hub_options(options))
    tokenizer = load_tokenizer(name, base, **options)
    if tokenizer is None:
        raise ValueError(
            f"{name} has no tokenizer, so it cannot score texts. Save the tokenizer of its training into that folder: "
            "`tokenizer.save_pretrained(...)`."
        )
    return tokenizer


def require_same_in_batches(
    model: RewardModel, tokenizer: PreTrainedTokenizerBase, record: CheckpointRecord | None
) -> None:
    """Raise an error if the reward for a text depends on the other texts in the batch.

    Args:
        model: A reward model.
        tokenizer: Its tokenizer.
        record: Its record, if it has one.

    Raises:
        ValueError: If it does; the message gives the difference.
    """
    known = {} if record is None else record.format
    limit = longest_sequence(model, known.get("max_length"))
    probes = format_probes(tokenizer, separator=known.get("separator", ""), limit=limit)
    sequences = [(probe.input_ids, probe.token_type_ids) for probe in probes if probe.name != LONGEST]
    problem = batch_problem(model, sequences)
    if problem is not None:
        raise ValueError(problem)


def correction_of(name: str, record: CheckpointRecord | None, wanted: bool) -> LengthCorrection | None:
    """Return the length correction stored in a model's record.

    Args:
        name: Name of the model for messages.
        record: Its record.
        wanted: Whether rewards are to be corrected.

    Returns:
        The correction, or None if it is not wanted.

    Raises:
        ValueError: If it is wanted, and the record has none or an invalid one.
    """
    if not wanted:
        return None
    if record is None or not record.length_correction:
        raise ValueError(
            f"`length_correction=True`, but {name} has no stored length correction. Fit one (`fit_length_correction`) "
            "and store it (`store_length_correction`), or score without it."
        )
    return LengthCorrection.from_dict(record.length_correction)


def require_heads(name: str, model: nn.Module, record: CheckpointRecord | None) -> None:
    """Raise an error if a model has a single head, so that its uncertainty cannot be estimated.

    Args:
        name: Name of the model for messages.
        model: The model.
        record: Its record.

    Raises:
        ValueError: If the model has one head; the message says whether it was saved with more.
    """
    if number_of_heads(model) > 1:
        return
    promised = 1 if record is None else record.reward_heads
    raise ValueError(
        f"{name} has one reward head, so its uncertainty cannot be estimated. "
        + (
            f"Its record states {promised} heads, but their file ({HEADS_FILE}) is missing or was not loaded. Load the "
            "complete folder with `RewardScorer.from_pretrained`."
            if promised > 1
            else "Train with, for example, `num_reward_heads=8` (`RewardConfig`); see docs/guides/ensembles.md."
        )
    )


def describe_scoring(
    model: RewardModel, tokenizer: PreTrainedTokenizerBase, encoder: ResponseEncoder
) -> dict[str, Any]:
    """Describe everything that determines a reward, as JSON values; weights, tokenizer and template as hashes.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        encoder: Its encoder.

    Returns:
        The description.
    """
    bare = unwrap_model(model)
    return {
        "revision": getattr(bare.config, "_commit_hash", None),
        "weights": _weight_hash(model),
        "computation": _computation_hash(model),
        "template_hash": template_hash(tokenizer),
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "format": {**encoder.rule.to_dict(), "rows": encoder.rows},
        **({} if encoder.images is None else {"image_processor": f"{encoder.images.number:015x}"}),
        "dtype": str(weight_dtype(bare)).removeprefix("torch."),
        "device": bare.device.type,
        "versions": library_versions(),
    }


def _weight_hash(model: nn.Module) -> str:
    """XXH3-128 of names, dtypes, shapes and values. It distinguishes versions; it is not cryptographic."""
    return _hash_of(model.state_dict())


def _computation_hash(model: nn.Module) -> str:
    """XXH3-128 of the configurations of model and adapter: positions, adapter scale, ..."""
    content = json.dumps([config_of(model), adapter_of(model)], sort_keys=True, default=str)
    return xxhash.xxh3_128_hexdigest(content.encode())


def heads_hash(model: nn.Module) -> str:
    """XXH3-128 of the heads of an ensemble."""
    return _hash_of(saved_state(model))


def _hash_of(weights: Mapping[str, Any]) -> str:
    digest = xxhash.xxh3_128()
    for name, weight in sorted(weights.items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
