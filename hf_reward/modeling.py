"""Name of a model -> a stock sequence classifier with one label, with LoRA or frozen if asked.

`AutoModelForRewardScoring` is a factory. What it returns is the architecture's own `...ForSequenceClassification`
(as a subclass of the same name), so everything that loads such a model loads ours and gives the same reward. The subclass
changes two things only: the head is read at the last token of each sequence instead of being computed at all
of them, and it computes in float32 whatever the backbone's precision.
"""

import logging
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from hf_reward.tokenization import prepare_tokenizer

logger = logging.getLogger(__name__)

RewardModel = PreTrainedModel | PeftModel


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32, under autocast too.

    In bfloat16 rewards around 8 are 0.06 apart, so near pairs become ties. Parameters keep their names.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's own name
        """Apply the layer to hidden states of any dtype, shape `(..., H)` -> `(..., 1)`, float32."""
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return nn.functional.linear(input.float(), self.weight.float(), bias)


class ReadsLastToken:
    """Mixin for decoders: the head runs on one position of each sequence instead of on all.

    Without `reward_positions` that is the position that the stock class reads, the rightmost token that is not
    the pad token. The backbone runs inside this `forward`, so hooks of DDP, FSDP, ZeRO and PEFT fire as usual.
    """

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        reward_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Score sequences.

        Args:
            input_ids: Token ids, shape `(N, L)`.
            attention_mask: 1 for tokens and 0 for padding, shape `(N, L)`.
            reward_positions: Position at which each reward is read, shape `(N,)`.
            **kwargs: Passed to the backbone; with `packed_layout` the batch is one packed row (see `packing`).

        Returns:
            A `SequenceClassifierOutputWithPast` with `logits` of shape `(N, 1)`, float32.
        """
        if input_ids is None or kwargs.get("labels") is not None:
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)  # type: ignore[misc]
        kwargs.pop("return_dict", None)
        kwargs.pop("labels", None)
        outputs = self.base_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)  # type: ignore[attr-defined]
        hidden = outputs.last_hidden_state  # (N, L, H)
        if reward_positions is None:
            reward_positions = last_token_positions(input_ids, self.config.get_text_config().pad_token_id)  # type: ignore[attr-defined]
        # A packed batch is one row that holds all sequences; a padded one has a row for each.
        rows = 0 if "packed_layout" in kwargs else torch.arange(hidden.shape[0], device=hidden.device)
        return SequenceClassifierOutputWithPast(
            logits=self.score(hidden[rows, reward_positions.to(hidden.device)]),  # type: ignore[attr-defined]
            past_key_values=outputs.get("past_key_values"),
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made at run time and shares its name with the stock class, so pickle finds it through that; a
        # stock class that was itself made at run time (Granite, ...) is found through its configuration.
        stock = type(self).__mro__[2]
        is_made = not hasattr(sys.modules[stock.__module__], stock.__name__)
        return _new_reward_model, (stock.config_class if is_made else stock,), self.__dict__


def last_token_positions(input_ids: Tensor, pad_token_id: int | None) -> Tensor:
    """Position of the rightmost token that is not the pad token, the stock classifiers' reading rule.

    Args:
        input_ids: Token ids, shape `(N, L)`.
        pad_token_id: The pad token; None only for batches of one.

    Returns:
        Positions, shape `(N,)`, int64.

    Raises:
        ValueError: If a batch of several sequences comes without a pad token.
    """
    if pad_token_id is None:
        if input_ids.shape[0] > 1:
            raise ValueError("A batch of several sequences needs `config.pad_token_id`. Set it, or score one by one.")
        return torch.full((1,), input_ids.shape[1] - 1, device=input_ids.device)
    places = torch.arange(input_ids.shape[1], device=input_ids.device)
    return (places * (input_ids != pad_token_id)).argmax(-1)


@lru_cache(maxsize=None)
def _reward_class(stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The stock class with our reading rule, under the stock class's own name (it is what config.json records)."""
    return type(stock.__name__, (ReadsLastToken, stock), {"__module__": stock.__module__, "__doc__": stock.__doc__})


def _new_reward_model(origin: type[PreTrainedModel] | type[PretrainedConfig]) -> PreTrainedModel:
    """An empty model for unpickling, from its stock class or from the configuration of one made at run time."""
    stock = _classifier_class(origin()) if issubclass(origin, PretrainedConfig) else origin
    cls = _reward_class(stock)
    return cls.__new__(cls)


# --- the factory -----------------------------------------------------------------------------------------------------


class AutoModelForRewardScoring:
    """Loads any language model, encoder or existing reward model as a reward model. Not to be instantiated."""

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
        **kwargs: Any,
    ) -> RewardModel:
        """Load a model that gives one reward for each sequence.

        A head that the checkpoint holds is kept as it is. Only a missing one is created: for decoders without bias
        and zero, so training starts from loss ln 2 and the first step's gradient reaches the head alone (a
        zero head passes none on to the backbone); encoders keep their architecture's own initialisation.

        Args:
            name_or_path: A Hub id or folder: a language model, an encoder, a reward model, or a saved adapter.
            peft_config: Wrap the model with this adapter; the head is trained and saved beside it.
            freeze_backbone: Train only the head.
            gguf_file: Name of a GGUF file in that folder; it is dequantised and can be saved like any model.
            quantization_config: As in transformers; the head is left out of quantisation.
            dtype: Precision of the backbone, float32 unless stated; the head is always float32.
            is_trainable: Whether the adapter of a saved adapter directory goes on training.
            **kwargs: Passed to transformers' `from_pretrained` (`revision`, `trust_remote_code`, `device_map`, ...).

        Returns:
            The architecture's own sequence classifier with one label, or PEFT's wrapper of it.

        Raises:
            ValueError: If the checkpoint holds a classifier with several labels, lacks backbone weights, or the
                options contradict each other.
        """
        if peft_config is not None and freeze_backbone:
            raise ValueError("`freeze_backbone` trains the head only; with `peft_config` it is LoRA. Give one of them.")
        name = str(name_or_path)
        if quantization_config is not None:
            kwargs["quantization_config"] = quantization_config
        if (Path(name) / "adapter_config.json").is_file():
            if peft_config is not None and _adapter_has_head(name):
                raise ValueError(
                    f"{name} is already an adapter of a reward model. Load it without `peft_config` to go on "
                    "training it, or merge it first (`hf_reward.merge_adapter`) to add a new one."
                )
            if gguf_file is not None:
                kwargs["gguf_file"] = gguf_file
            model = _load_adapter(name, dtype=dtype, is_trainable=is_trainable, **kwargs)
        else:
            model = _load_classifier(name, gguf_file=gguf_file, dtype=dtype, **kwargs)
        if freeze_backbone:
            freeze_all_but_head(model)
        if peft_config is not None:
            assert isinstance(model, PreTrainedModel)
            model = add_adapter(model, peft_config)
        return model


def as_reward_model(model: PreTrainedModel) -> PreTrainedModel:
    """Give a loaded one-label classifier our reading rule and float32 head, in place.

    Args:
        model: A `...ForSequenceClassification` with one label.

    Returns:
        The same object.

    Raises:
        ValueError: If it has another number of labels or no head that gives one number.
    """
    labels = getattr(model.config, "num_labels", None)
    if labels != 1:
        raise ValueError(
            f"Reward models need `num_labels=1`, but {model.config.name_or_path or type(model).__name__!r} has {labels}. "
            "Reload it with `AutoModelForRewardScoring.from_pretrained`."
        )
    outputs = [layer for _, layer in _output_layers(model)]
    if not outputs:
        raise ValueError(f"{type(model).__name__} has no layer that gives one number for a sequence.")
    for layer in outputs:
        if type(layer) is nn.Linear:
            layer.__class__ = Float32Linear
            layer.float()
    _state_regression(model.config)
    if _is_decoder(model) and not isinstance(model, ReadsLastToken):
        model.__class__ = _reward_class(type(model))
    return model


def bare_model(model: Any) -> PreTrainedModel:
    """The classifier itself, without PEFT's wrapper."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def reads_positions(model: nn.Module) -> bool:
    """Whether a model, perhaps wrapped by PEFT, takes `reward_positions`."""
    inner = bare_model(model)
    return isinstance(inner, ReadsLastToken)


def head_modules(model: nn.Module) -> list[str]:
    """Names of the modules that turn hidden states into a reward: those outside the backbone, and its pooler.

    BERT keeps its pooler inside the backbone, yet language-model checkpoints lack it as they lack the classifier.
    """
    inner = bare_model(model)
    prefix = inner.base_model_prefix
    parts = {name: child for name, child in inner.named_children() if name != prefix}
    pooler = getattr(getattr(inner, prefix, None), "pooler", None)
    if isinstance(pooler, nn.Module):
        parts = {f"{prefix}.pooler": pooler, **parts}
    return [name for name, part in parts.items() if any(True for _ in part.parameters())]


def _in_head(name: str, heads: Iterable[str]) -> bool:
    """Whether a parameter or module, perhaps inside PEFT's wrapper, belongs to the head."""
    name = name.removeprefix("base_model.model.")
    return any(name == head or name.startswith(f"{head}.") for head in heads)


def head_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The trainable parameters of the head, with their names in `model.named_parameters()`."""
    heads = head_modules(model)
    return [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and _in_head(name, heads)
    ]


def freeze_all_but_head(model: nn.Module) -> None:
    """Stop training everything but the head, in place."""
    heads = head_modules(model)
    for name, parameter in model.named_parameters():
        # PEFT keeps a frozen copy of the head beside the trained one, so what is frozen stays so.
        parameter.requires_grad_(parameter.requires_grad and _in_head(name, heads))


def check_head_is_trained(model: nn.Module) -> None:
    """Refuse a model whose head would stay as it is, or would not be saved.

    Args:
        model: A reward model, perhaps wrapped by PEFT.

    Raises:
        ValueError: If no head parameter is trainable, or the adapter would not save the head.
    """
    names = head_modules(model)
    if isinstance(model, PeftModel):
        config = model.active_peft_config
        saved = set(getattr(config, "modules_to_save", None) or [])
        unsaved = [name for name in names if not saved & {name, name.split(".")[-1]}]
        if unsaved or not head_parameters(model):
            raise ValueError(
                f"The reward head ({', '.join(names)}) would stay random or be lost on saving: the adapter trains and "
                f"saves {sorted(saved) or 'no whole module'}. Pass the plain model and `peft_config` to `RewardTrainer` or to "
                f"`AutoModelForRewardScoring.from_pretrained`, or use "
                f"LoraConfig(task_type='SEQ_CLS', modules_to_save={names}, ...)."
            )
    elif not head_parameters(model):
        raise ValueError(
            f"The reward head ({', '.join(names)}) is frozen, so rewards would never be learned. "
            "Set `requires_grad` on its parameters, or use `freeze_backbone=True` to freeze the rest only."
        )


# --- adapters --------------------------------------------------------------------------------------------------------


def add_adapter(model: PreTrainedModel, peft_config: PeftConfig) -> PeftModel:
    """Wrap a reward model with an adapter whose head is trained and saved, whatever `task_type` says.

    Args:
        model: A reward model.
        peft_config: The adapter; not changed.

    Returns:
        PEFT's wrapper of the model.

    Raises:
        ValueError: If the adapter adds virtual tokens, or names the head as a target.
    """
    config = adapter_config(model, peft_config)
    return get_peft_model(model, config)


def adapter_config(model: PreTrainedModel, peft_config: PeftConfig) -> PeftConfig:
    """Copy an adapter configuration so that the head is trained in full and saved.

    PEFT adds `score` and `classifier` only for `task_type='SEQ_CLS'`, and never the other parts of an encoder's
    head (the poolers of BERT and DeBERTa, ModernBERT's head), which would then stay random and unsaved.

    Args:
        model: The model to be wrapped.
        peft_config: The user's configuration.

    Returns:
        A copy with `task_type`, `modules_to_save` and `exclude_modules` set.

    Raises:
        ValueError: If the adapter adds virtual tokens, or names the head as a target.
    """
    if peft_config.is_prompt_learning:
        raise ValueError(
            f"{type(peft_config).__name__} adds virtual tokens, which move the position at which the reward is "
            "read. Use LoraConfig or another adapter that changes weights."
        )
    heads = head_modules(model)
    values = peft_config.to_dict()
    targets = values.get("target_modules")
    named = [targets] if isinstance(targets, str) else list(targets or [])
    if set(named) & set(heads):
        raise ValueError(
            f"`target_modules` names the reward head ({', '.join(sorted(set(named) & set(heads)))}). The head is small and is "
            "trained in full; remove it from `target_modules`."
        )
    changes: dict[str, Any] = {"task_type": "SEQ_CLS"}
    changes["modules_to_save"] = sorted({*(values.get("modules_to_save") or []), *heads})
    if "exclude_modules" in values and not values["exclude_modules"]:
        changes["exclude_modules"] = rf"(.*\.)?({'|'.join(map(re.escape, heads))})(\..*)?"
    import copy  # noqa: PLC0415

    result = copy.deepcopy(peft_config)
    for name, value in changes.items():
        setattr(result, name, value)
    return result


def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """Merge an adapter into its base in float32 and return the plain model.

    A merge in bfloat16 rounds every merged weight and was seen to move rewards by 0.13.

    Args:
        model: An adapter model; its base is changed and must not be used afterwards.

    Returns:
        The merged reward model, float32.
    """
    merged = model.float().merge_and_unload()
    return as_reward_model(merged)


def _adapter_has_head(path: str) -> bool:
    config = PeftConfig.from_pretrained(path)
    return config.task_type == "SEQ_CLS" or bool(
        set(getattr(config, "modules_to_save", None) or []) & {"score", "classifier"}
    )


def _load_adapter(path: str, *, dtype: str | torch.dtype, is_trainable: bool, **kwargs: Any) -> RewardModel:
    config = PeftConfig.from_pretrained(path)
    base = kwargs.pop("base_model_name_or_path", None) or config.base_model_name_or_path
    if not base:
        raise ValueError(f"{path}/adapter_config.json names no base model. Give `base_model_name_or_path`.")
    if not _adapter_has_head(path):
        return _load_sft_adapter(path, str(base), dtype=dtype, **kwargs)
    kwargs.setdefault("tokenizer_name_or_path", path if (Path(path) / "tokenizer_config.json").is_file() else None)
    model = _load_classifier(str(base), dtype=dtype, **kwargs)
    wrapped = PeftModel.from_pretrained(model, path, is_trainable=is_trainable)
    for _, layer in _output_layers(model):
        layer.float()
    return wrapped


def _load_sft_adapter(path: str, base: str, *, dtype: str | torch.dtype, **kwargs: Any) -> PreTrainedModel:
    """An SFT model that was trained with LoRA: merge its adapter, and put a new head on the result."""
    logger.info("%s is an adapter of a language model; it is merged into %s and gets a new head.", path, base)
    language_model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **kwargs)
    merged = PeftModel.from_pretrained(language_model, path).merge_and_unload()
    config = _reward_config(AutoConfig.from_pretrained(base, **_config_kwargs(kwargs)))
    stock = _classifier_class(config)
    model = stock(config)
    model.base_model.load_state_dict(merged.base_model.state_dict())
    model = as_reward_model(model.to(_torch_dtype(dtype)))
    _zero_head(model)
    return _set_pad_token(model, _load_tokenizer(path, base, **kwargs))


# --- loading one model -----------------------------------------------------------------------------------------------


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
    **kwargs: Any,
) -> PreTrainedModel:
    if gguf_file is not None:
        kwargs["gguf_file"] = gguf_file
    stored = AutoConfig.from_pretrained(name, **_config_kwargs(kwargs))
    _refuse_other_heads(name, stored)
    config = _reward_config(stored)
    stock = _classifier_class(config)
    if kwargs.get("quantization_config") is not None:
        kwargs["quantization_config"] = _keep_head_unquantized(kwargs["quantization_config"], stock, config)
    # The class's own `from_pretrained` would read the config again when remote code is involved, so it is passed.
    model, info = stock.from_pretrained(
        name,
        config=config,
        dtype=_torch_dtype(dtype),
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that `_check_loaded` can say which, and refuse
        **_without(kwargs, "trust_remote_code", "ignore_mismatched_sizes"),
    )
    report = _LoadReport(sorted(info["missing_keys"]), [str(key[0]) for key in info["mismatched_keys"]])
    _check_loaded(name, model, report)
    if gguf_file is not None:
        _forget_gguf(model)
    as_reward_model(model)
    if _is_decoder(model) and any(key.startswith("score.") for key in report.missing):
        _zero_head(model)
    tokenizer = _load_tokenizer(tokenizer_name_or_path, name, **kwargs)
    keep_pad = not any(_in_head(key, head_modules(model)) for key in report.missing)
    return _set_pad_token(model, tokenizer, keep_existing=keep_pad)


def _refuse_other_heads(name: str, config: PretrainedConfig) -> None:
    """A trained classifier with several labels is no reward model, and its head must not be thrown away in silence."""
    is_classifier = any(arch.endswith("ForSequenceClassification") for arch in config.architectures or [])
    if is_classifier and config.num_labels != 1:
        raise ValueError(
            f"Reward models need one label, but {name} holds a trained classifier with `num_labels={config.num_labels}`. "
            "Start from the model it was made from, or from a checkpoint with one label."
        )


def _reward_config(config: PretrainedConfig) -> PretrainedConfig:
    config.num_labels = 1
    _state_regression(config)
    return config


def _state_regression(config: PretrainedConfig) -> None:
    # Without problem_type, pipelines and servers put a sigmoid on a single label.
    config.problem_type = "regression"
    config.id2label = {0: "reward"}
    config.label2id = {"reward": 0}


def _classifier_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The architecture's own sequence classifier; for causal backbones without one, transformers' generic one."""
    if type(config) not in AutoModelForSequenceClassification._model_mapping:
        _register_generic_classifier(config)
    cls = AutoModelForSequenceClassification._model_mapping[type(config)]
    return cls[0] if isinstance(cls, tuple) else cls


def _register_generic_classifier(config: PretrainedConfig) -> None:
    """Make and register `<Arch>ForSequenceClassification` for a causal backbone (Granite, Cohere, ...)."""
    kind = type(config)
    if kind not in AutoModelForCausalLM._model_mapping:
        raise ValueError(
            f"{kind.__name__} belongs to no language model or sequence classifier that transformers knows, so it cannot "
            "score text. Start from a decoder or an encoder."
        )
    base = AutoModel._model_mapping[kind]
    base = base[0] if isinstance(base, tuple) else base
    pretrained = next(
        cls for cls in base.__mro__ if cls.__name__.endswith("PreTrainedModel") and cls is not PreTrainedModel
    )
    causal = AutoModelForCausalLM._model_mapping[kind]
    name = causal.__name__.replace("ForCausalLM", "ForSequenceClassification")
    members = {"__module__": pretrained.__module__, "base_model_prefix": "model", "config_class": kind}
    made = type(name, (GenericForSequenceClassification, pretrained), members)
    AutoModelForSequenceClassification.register(kind, made, exist_ok=True)
    logger.warning(
        "transformers has no %s; one was made. Stock transformers loads the saved folder only after `import hf_reward` "
        "and `hf_reward.register_classifier(%s)`.",
        name,
        kind.__name__,
    )


def register_classifier(config_class: type[PretrainedConfig]) -> None:
    """Let `AutoModelForSequenceClassification` load saved reward models of a backbone that has no such class.

    Args:
        config_class: The backbone's configuration class, such as `GraniteConfig`.
    """
    if config_class not in AutoModelForSequenceClassification._model_mapping:
        _register_generic_classifier(config_class())


def _check_loaded(name: str, model: PreTrainedModel, report: _LoadReport) -> None:
    prefix = f"{model.base_model_prefix}."
    # Poolers sit inside some backbones and are absent from language-model checkpoints.
    lost = [key for key in report.missing if key.startswith(prefix) and ".pooler." not in key]
    if lost or report.mismatched:
        found = ", ".join((lost + report.mismatched)[:3])
        raise ValueError(
            f"{name} does not fit {type(model).__name__}: {len(lost)} backbone weights are missing and "
            f"{len(report.mismatched)} have another shape (such as {found}). Check that the folder holds the whole model."
        )


def _zero_head(model: PreTrainedModel) -> None:
    for _, layer in _output_layers(model):
        nn.init.zeros_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _output_layers(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The linear layers of the head that give the reward itself."""
    heads = head_modules(model)
    return [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == 1 and _in_head(name, heads)
    ]


def _is_decoder(model: PreTrainedModel) -> bool:
    """Whether the stock class reads its bias-free `score` at the last token, as all causal classifiers do."""
    score = getattr(model, "score", None)
    return isinstance(score, nn.Linear) and not getattr(model.config, "is_encoder_decoder", False)


def _forget_gguf(model: PreTrainedModel) -> None:
    """A GGUF file is dequantised on loading, yet transformers still refuses to save what came from one."""
    model.hf_quantizer = None  # type: ignore[assignment]
    model.is_quantized = False  # type: ignore[assignment]
    for name in ("quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        if name in model.__dict__:
            delattr(model, name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _keep_head_unquantized(quantization_config: Any, stock: type[PreTrainedModel], config: PretrainedConfig) -> Any:
    """Leave every part of the head out of quantisation: transformers spares only the last parameter's module."""
    if not hasattr(quantization_config, "llm_int8_skip_modules"):
        return quantization_config
    import copy  # noqa: PLC0415

    with torch.device("meta"):
        heads = head_modules(stock(config))
    result = copy.deepcopy(quantization_config)
    result.llm_int8_skip_modules = sorted({*(result.llm_int8_skip_modules or []), *heads})
    return result


def _load_tokenizer(*names: str | None, **kwargs: Any) -> PreTrainedTokenizerBase | None:
    """The first tokenizer that one of the names has; a folder of weights alone has none."""
    for name in names:
        if name is None:
            continue
        try:
            return AutoTokenizer.from_pretrained(name, **_config_kwargs(kwargs))
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return None


def _set_pad_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, *, keep_existing: bool = False
) -> PreTrainedModel:
    """Tell the model a pad token with which no formatted sequence ends.

    A loaded reward model keeps its own, because stock classes read its reward by it.
    """
    if tokenizer is None or (keep_existing and model.config.get_text_config().pad_token_id is not None):
        return model
    return match_pad_token(model, prepare_tokenizer(tokenizer))


def match_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Give the model its tokenizer's pad token, with an embedding for it if it is new, in place.

    Args:
        model: A reward model without adapter.
        tokenizer: A prepared tokenizer.

    Returns:
        The same model.
    """
    embeddings = model.get_input_embeddings()
    if len(tokenizer) > embeddings.num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.get_text_config().pad_token_id = int(tokenizer.pad_token_id)
    model.config.pad_token_id = int(tokenizer.pad_token_id)
    return model


def _config_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    names = ("revision", "trust_remote_code", "cache_dir", "token", "local_files_only", "subfolder", "gguf_file")
    return {name: kwargs[name] for name in names if name in kwargs}


def _without(kwargs: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in names}


def _torch_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"`dtype` must be 'float32', 'bfloat16', 'float16' or 'auto', but is {dtype!r}.")
    return found


def disable_dropout(model: nn.Module, skip: Iterable[str] = ("lora_dropout",)) -> None:
    """Set every dropout of the backbone to 0, in place; an adapter's own dropout was asked for and stays.

    Args:
        model: Any model.
        skip: Parts of module names to leave alone.
    """
    for name, module in model.named_modules():
        if any(part in name for part in skip):
            continue
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for attribute in ("attention_dropout", "activation_dropout", "dropout"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
