"""Load a model by name as a stock sequence classifier with one label, optionally with LoRA or a frozen backbone.

`AutoModelForRewardScoring` is a factory. It returns the `...ForSequenceClassification` of the architecture, so other
programs load the saved model with the same rewards.
"""

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_utils import (  # used by `from_pretrained` itself
    is_fsdp_enabled,  # pyright: ignore[reportPrivateImportUsage]
    is_local_dist_rank_0,  # pyright: ignore[reportPrivateImportUsage]
)
from transformers.quantizers.auto import AutoQuantizationConfig

from hf_reward.modeling.adapters import add_adapter, as_publishable
from hf_reward.modeling.architectures import classifier_class
from hf_reward.modeling.checkpoint_record import CheckpointRecord, adapter_base, drift
from hf_reward.modeling.custom_code import custom_classifier, require_trust
from hf_reward.modeling.head_ensemble import HEADS_FILE, heads_file
from hf_reward.modeling.library_warnings import without_renamed_checkpointing, without_report_of_heads
from hf_reward.modeling.model_place import hub_options, is_adapter, resolve_model
from hf_reward.modeling.model_tokenizer import config_options, load_tokenizer, set_pad_token
from hf_reward.modeling.recorded_rewards import require_recorded_rewards
from hf_reward.modeling.reward_head import (
    RewardModel,
    as_reward_model,
    freeze_all_but_head,
    has_vision,
    head_modules,
    in_head,
    is_decoder,
    output_layers,
    set_regression,
    unwrap_model,
    zero_head,
)
from hf_reward.modeling.weight_safety import (
    refuse_adapter_loop,
    refuse_non_finite,
    refuse_pickled_adapter,
    require_safe_weights,
)

logger = logging.getLogger(__name__)


class AutoModelForRewardScoring:
    """Factory that loads a language model, encoder or existing reward model as a reward model."""

    def __init__(self) -> None:
        raise TypeError("Use `AutoModelForRewardScoring.from_pretrained(name_or_path)`.")

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        peft_config: PeftConfig | None = None,
        freeze_backbone: bool = False,
        gguf_file: str | None = None,
        quantization_config: Any | None = None,
        dtype: str | torch.dtype = "float32",
        is_trainable: bool = True,
        dequantize: bool = False,
        allow_pickle: bool = False,
        verify: bool = False,
        **kwargs: Any,
    ) -> RewardModel:
        """Load a model that gives one reward for each sequence.

        An existing head is kept unchanged. A missing head is created. For decoders it is zero and has no bias, so
        training starts at loss ln 2 and the gradient of the first step only reaches the head. Encoders use the
        initialisation of their architecture.

        Args:
            name_or_path: A Hub id or folder: a language model, an encoder, a reward model, or a saved adapter.
            peft_config: Wrap the model with this adapter. The head is trained and saved with it.
            freeze_backbone: Train only the head.
            gguf_file: Name of a GGUF file in that folder. It is dequantised and can be saved like any model.
            quantization_config: As in transformers. The head is not quantised.
            dtype: Precision of the backbone. The head is always float32.
            is_trainable: Whether a saved adapter is loaded for further training.
            dequantize: With `quantization_config`: dequantise the weights after loading.
            allow_pickle: Load pickled weights (tensors only) if there are no safetensors.
            verify: Score the recorded probes and refuse the model if a reward has changed.
            **kwargs: Passed to transformers' `from_pretrained` (`revision`, `trust_remote_code`, `device_map`, ...).

        Returns:
            The sequence classifier of the architecture with one label, or PEFT's wrapper of it.

        Raises:
            ValueError: If the checkpoint is a classifier with several labels, lacks backbone weights, is a pickle, is
                truncated, or contains weights that are not finite; if the options contradict each other; with
                `verify`, if rewards differ from the recorded ones.
        """
        _refuse_contradictions(peft_config, freeze_backbone, quantization_config, dequantize)
        asked = kwargs.get("revision")
        name, kwargs = resolve_model(str(name_or_path), **kwargs)
        if quantization_config is not None:
            kwargs |= {"quantization_config": quantization_config, "dequantize": dequantize}
        record = CheckpointRecord.find(name, **hub_options(kwargs))
        kwargs.setdefault("trust_remote_code", False)  # otherwise transformers would prompt on the terminal
        require_trust(name, bool(kwargs["trust_remote_code"]))
        kwargs.setdefault("use_safetensors", None if allow_pickle or gguf_file is not None else True)
        loading: dict[str, Any] = {**kwargs, "dtype": dtype} | ({} if gguf_file is None else {"gguf_file": gguf_file})
        model = _load(name, str(name_or_path), is_trainable, peft_config is not None, **loading)
        bare: Any = unwrap_model(model)
        if has_vision(bare):
            bare.processor_place = (name, hub_options(kwargs))
        _check_rewards(name, model, record, verify=verify, **kwargs)
        if freeze_backbone:
            freeze_all_but_head(model)
        if isinstance(model, PreTrainedModel):
            model.loaded_revision = None if Path(name_or_path).is_dir() else asked  # type: ignore[assignment]
            model = model if peft_config is None else add_adapter(model, peft_config)
        return model


def _refuse_contradictions(peft_config: Any, freeze_backbone: bool, quantization: Any, dequantize: bool) -> None:
    if peft_config is not None and freeze_backbone:
        raise ValueError(
            "`freeze_backbone` trains only the head and cannot be combined with `peft_config`. Set one of them."
        )
    if dequantize and quantization is None:
        raise ValueError("`dequantize` requires `quantization_config`. Set both, or leave `dequantize` out.")


def _load(name: str, asked_for: str, is_trainable: bool, adds_adapter: bool, **loading: Any) -> RewardModel:
    """Load a complete model or an adapter; `asked_for` is the name that the caller used."""
    if not is_adapter(name):
        return _load_classifier(name, **loading)
    if adds_adapter and _adapter_has_head(name):
        raise ValueError(
            f"{name} is already an adapter of a reward model. Load it without `peft_config` to continue its training, "
            "or merge it first (`hf_reward.merge_adapter`) to add a new adapter."
        )
    return _load_adapter(name, asked_for, is_trainable=is_trainable, **loading)


def _check_rewards(
    name: str, model: RewardModel, record: CheckpointRecord | None, *, verify: bool, **kwargs: Any
) -> None:
    """Refuse weights that are not finite and, with `verify`, rewards that differ from the recorded ones."""
    if not (is_fsdp_enabled() and not is_local_dist_rank_0()):  # these ranks have no weights yet
        refuse_non_finite(name, model.named_parameters())
    if record is not None:
        _warn_of_drift(name, record, **kwargs)
        _find_heads(name, model, record, **kwargs)
    if verify:
        quantized = kwargs.get("quantization_config") is not None
        require_recorded_rewards(name, model, load_tokenizer(name, **kwargs), record, quantized=quantized)


def _warn_of_drift(name: str, record: CheckpointRecord, **kwargs: Any) -> None:
    tokenizer = load_tokenizer(name, **kwargs)
    wrong = ["the tokenizer is missing"] if tokenizer is None else drift(record, tokenizer)
    if wrong:
        logger.warning(
            "%s has changed since it was saved, so rewards may differ: %s. `hf-reward verify` measures the change.",
            name,
            "; ".join(wrong),
        )


def _find_heads(name: str, model: RewardModel, record: CheckpointRecord, **kwargs: Any) -> None:
    """Store the path of the heads of a saved ensemble. The loaded head is their mean."""
    if record.reward_heads == 1:
        return
    bare: Any = unwrap_model(model)
    path = heads_file(name, **hub_options(kwargs))
    bare.saved_heads = None if path is None else str(path)
    if path is None:
        logger.warning(
            "%s is an ensemble of %s reward heads, but the file with the heads (%s) is missing. Its rewards are "
            "correct, but their uncertainty is not available.",
            name,
            record.reward_heads,
            HEADS_FILE,
        )


def _adapter_has_head(path: str) -> bool:
    config = PeftConfig.from_pretrained(path)
    return config.task_type == "SEQ_CLS" or bool(
        set(getattr(config, "modules_to_save", None) or []) & {"score", "classifier"}
    )


def _load_adapter(path: str, name: str, *, dtype: str | torch.dtype, is_trainable: bool, **kwargs: Any) -> RewardModel:
    """Load an adapter from its folder; `name` is the name that the caller used."""
    refuse_adapter_loop(path)
    _require_safe_weights(path, **kwargs)
    if kwargs.get("use_safetensors") is True:
        refuse_pickled_adapter(path)
    base = adapter_base(path, kwargs.pop("base_model_name_or_path", None), **hub_options(kwargs))
    if not _adapter_has_head(path):
        return _load_sft_adapter(path, name, base, dtype=dtype, **kwargs)
    kwargs.setdefault("tokenizer_name_or_path", path if (Path(path) / "tokenizer_config.json").is_file() else None)
    if is_adapter(base, **kwargs):  # trained on top of an SFT adapter
        place, options = resolve_model(base, **_without(kwargs, "tokenizer_name_or_path"))
        model: Any = _load_adapter(place, base, dtype=dtype, is_trainable=False, **options)
    else:
        model = _load_classifier(base, dtype=dtype, **kwargs)
    _require_saved_head(path, model)
    with without_renamed_checkpointing():
        wrapped = as_publishable(PeftModel.from_pretrained(model, path, is_trainable=is_trainable))
    for _, layer in output_layers(model):
        layer.float()
    return wrapped


def _require_saved_head(path: str, model: PreTrainedModel) -> None:
    """Refuse an adapter without its head. PEFT would raise a KeyError or use a random head."""
    weights = Path(path) / "adapter_model.safetensors"
    if not weights.is_file():
        return
    with safe_open(weights, "pt") as file:
        keys = list(file.keys())
    required = set(getattr(PeftConfig.from_pretrained(path), "modules_to_save", None) or [])
    lost = [
        head
        for head in head_modules(model)
        if required & {head, head.split(".")[-1]} and not any(f".{head}." in key for key in keys)
    ]
    if lost:
        raise ValueError(
            f"The adapter {path} lacks the reward head of its `modules_to_save` ({', '.join(lost)}), so rewards would "
            "be random. Copy the adapter again from its source."
        )


def _load_sft_adapter(path: str, name: str, base: str, *, dtype: str | torch.dtype, **kwargs: Any) -> PreTrainedModel:
    """Merge the LoRA adapter of an SFT model and add a new head."""
    logger.info("%s is an adapter of a language model. It is merged into %s and gets a new reward head.", path, base)
    _require_safe_weights(base, **kwargs)
    language_model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **_without(kwargs, "dequantize"))
    merged = PeftModel.from_pretrained(language_model, path).merge_and_unload()
    config = _reward_config(AutoConfig.from_pretrained(base, **config_options(kwargs)))
    stock = classifier_class(config)
    model: Any = stock(config)
    model.base_model.load_state_dict(merged.base_model.state_dict())
    model = as_reward_model(model.to(_torch_dtype(dtype)))
    zero_head(model)
    model.has_new_head = True  # type: ignore[assignment]
    # A new adapter must name this adapter as its base, not the language model without SFT.
    model.name_or_path = model.config._name_or_path = path if Path(name).is_dir() else name
    return set_pad_token(model, load_tokenizer(path, base, **kwargs))


@dataclass(frozen=True)
class _LoadReport:
    missing: list[str]
    mismatched: list[str]


def _load_classifier(
    name: str,
    *,
    gguf_file: str | None = None,
    dtype: str | torch.dtype,
    tokenizer_name_or_path: str | None = None,
    dequantize: bool = False,
    **kwargs: Any,
) -> PreTrainedModel:
    if gguf_file is not None:
        kwargs["gguf_file"] = gguf_file
    stored = AutoConfig.from_pretrained(name, **config_options(kwargs))
    _require_safe_weights(name, **kwargs)
    _refuse_other_heads(name, stored)
    config = _reward_config(stored)
    custom = custom_classifier(config, name, **hub_options(kwargs)) if kwargs.get("trust_remote_code") else None
    stock = custom or classifier_class(config)
    if kwargs.get("quantization_config") is not None:
        kwargs["quantization_config"] = _keep_head_unquantized(kwargs["quantization_config"], stock, config)
    # With remote code, `from_pretrained` would load the configuration again, so it is passed.
    with without_report_of_heads(stock.base_model_prefix):  # `_check_loaded` checks the same keys
        loaded: Any = stock.from_pretrained(
            name,
            config=config,
            dtype=_torch_dtype(dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `_check_loaded` reports and refuses them
            **_without(kwargs, "trust_remote_code", "ignore_mismatched_sizes"),
        )
    model, info = loaded
    report = _LoadReport(sorted(info["missing_keys"]), [str(key[0]) for key in info["mismatched_keys"]])
    _check_loaded(name, model, report)
    if gguf_file is not None:
        _remove_quantizer(model)
    if dequantize:
        model = _dequantized(model)
    as_reward_model(model)
    if is_decoder(model) and any(key.startswith("score.") for key in report.missing):
        zero_head(model)
    tokenizer = load_tokenizer(tokenizer_name_or_path, name, **kwargs)
    has_new_head = any(in_head(key, head_modules(model)) for key in report.missing)
    model.has_new_head = has_new_head  # type: ignore[assignment]
    return set_pad_token(model, tokenizer, keep_existing=not has_new_head)


def _refuse_other_heads(name: str, config: PretrainedConfig) -> None:
    """Refuse a trained classifier with several labels, whose head would be replaced without a warning."""
    is_classifier = any(arch.endswith("ForSequenceClassification") for arch in config.architectures or [])
    if is_classifier and config.num_labels != 1:
        raise ValueError(
            f"Reward models require one label, but {name} is a trained classifier with "
            f"`num_labels={config.num_labels}`. Start from its base model, or from a checkpoint with one label."
        )


def _reward_config(config: PretrainedConfig) -> PretrainedConfig:
    config.num_labels = 1
    set_regression(config)
    return config


def _check_loaded(name: str, model: PreTrainedModel, report: _LoadReport) -> None:
    prefix = f"{model.base_model_prefix}."
    # Some backbones contain a pooler, which language-model checkpoints lack.
    lost = [key for key in report.missing if key.startswith(prefix) and ".pooler." not in key]
    if lost or report.mismatched:
        found = ", ".join((lost + report.mismatched)[:3])
        raise ValueError(
            f"{name} does not fit {type(model).__name__}: {len(lost)} backbone weights are missing and "
            f"{len(report.mismatched)} have another shape (such as {found}). Check that the folder contains the "
            "complete model."
        )


def _remove_quantizer(model: PreTrainedModel) -> None:
    """Remove the quantiser of dequantised weights (GGUF files, ...), which transformers would refuse to save."""
    model.hf_quantizer = None  # type: ignore[assignment]
    model.is_quantized = False  # type: ignore[assignment]
    for name in ("quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        if name in model.__dict__:
            delattr(model, name)
    if hasattr(model.config, "quantization_config"):
        delattr(model.config, "quantization_config")


def _dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """Dequantise the weights, to merge an adapter that was trained on them."""
    result: Any = model.dequantize(dtype=torch.float32)
    result = (model if result is None else result).float()
    _remove_quantizer(result)
    return result


def _keep_head_unquantized(quantization_config: Any, stock: type[PreTrainedModel], config: PretrainedConfig) -> Any:
    """Exclude all parts of the head from quantisation. transformers only excludes the last module."""
    if isinstance(quantization_config, dict):  # from a configuration or a record
        quantization_config = AutoQuantizationConfig.from_dict(quantization_config)
    if not hasattr(quantization_config, "llm_int8_skip_modules"):
        return quantization_config

    with torch.device("meta"):
        heads = head_modules(stock(config))
    result = copy.deepcopy(quantization_config)
    result.llm_int8_skip_modules = sorted({*(result.llm_int8_skip_modules or []), *heads})
    return result


def _require_safe_weights(name: str, **kwargs: Any) -> None:
    allow_pickle = kwargs.get("use_safetensors") is not True
    require_safe_weights(name, allow_pickle=allow_pickle, variant=kwargs.get("variant"), **hub_options(kwargs))


def _without(kwargs: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in names}


def _torch_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"`dtype` must be 'float32', 'bfloat16', 'float16' or 'auto', but is {dtype!r}.")
    return found
