"""Convert a stock classifier to a reward model with a float32 head at the last token.

The class keeps the name of the stock class, so the saved model is a stock model. There are two changes: the head only
runs at the last token of each sequence, and it computes in float32, regardless of the precision of the backbone.
"""

import sys
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

import hf_reward
from hf_reward.modeling.architectures import classifier_class, save_head_for_servers
from hf_reward.modeling.custom_code import is_custom, save_config_code, saving_code
from hf_reward.modeling.sharding import gathered_parameters

RewardModel = PreTrainedModel | PeftModel


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32, also under autocast.

    In bfloat16, adjacent numbers around 8 differ by 0.06, so similar rewards would become ties.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to hidden states of any dtype, shape `(..., H)` -> `(..., 1)`, float32."""
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return nn.functional.linear(input.float(), self.weight.float(), bias)


class PublishesVerified:
    """Mixin for reward models: `push_to_hub` verifies the model instead of only uploading it."""

    def push_to_hub(self, repo_id: str, *, tokenizer: Any | None = None, token: Any = None, **rule: Any) -> Any:
        """Publish this model, merged if it has an adapter; see `push.push_reward_model`.

        Args:
            repo_id: `user/name` on the Hub.
            tokenizer: Its tokenizer; the default is the tokenizer of the folder that the model was loaded from.
            token: Write token; the default is the token that `hf auth login` stored.
            **rule: Fields of `push.PushRule`, and transformers' names for them (`revision`, `commit_message`).

        Returns:
            A `push.PushReport`.
        """
        return hf_reward.push_model(self, repo_id, tokenizer=tokenizer, token=token, **rule)


class RewardClassifier(PublishesVerified):
    """Mixin for reward models built from stock classifiers. The class keeps its name and can be pickled."""

    has_new_head = False
    """Whether the head, or part of it, was missing in the checkpoint, so rewards are meaningless before training."""
    saved_heads: str | None = None
    """Path of the heads whose mean was loaded; see `head_ensemble`."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is created at run time with the name of the stock class, so pickle stores the stock class. A stock
        # class that was created at run time (Granite, ...) is found through its configuration.
        stock: Any = next(cls for cls in type(self).__mro__[1:] if not issubclass(cls, PublishesVerified))
        is_generated = not hasattr(sys.modules[stock.__module__], stock.__name__)
        reads = isinstance(self, ReadsLastToken)
        return _new_reward_model, (stock.config_class if is_generated else stock, reads), self.__dict__


class ReadsLastToken(RewardClassifier):
    """Mixin for decoders: the head runs at one position of each sequence instead of at all positions.

    Without `reward_positions`, it is the position of the stock class: the rightmost token that is not the pad token.
    The backbone runs inside this `forward`, so hooks of DDP, FSDP, ZeRO and PEFT work as usual.
    """

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        reward_positions: Tensor | None = None,
        reward_features: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Score sequences.

        Args:
            input_ids: Token ids, shape `(N, L)`.
            attention_mask: 1 for tokens and 0 for padding, shape `(N, L)`.
            reward_positions: Position of each reward, shape `(N,)`.
            reward_features: Final hidden states at these positions, shape `(N, H)`. If given, only the head
                runs, and all other inputs are ignored.
            **kwargs: Passed to the backbone. With `packed_layout`, the batch is one packed row (see `packing`).

        Returns:
            A `SequenceClassifierOutputWithPast` with `logits` of shape `(N, 1)`, float32.
        """
        if reward_features is not None:
            return SequenceClassifierOutputWithPast(logits=self.score(reward_features))  # type: ignore[attr-defined]
        if input_ids is None or kwargs.get("labels") is not None:
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)  # type: ignore[misc]
        kwargs.pop("return_dict", None)
        kwargs.pop("labels", None)
        outputs = self.backbone_outputs(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        hidden = outputs.last_hidden_state  # (N, L, H)
        if reward_positions is None:
            reward_positions = last_token_positions(input_ids, self.config.get_text_config().pad_token_id)  # type: ignore[attr-defined]
        # A packed batch is one row with all sequences; a padded batch has one row per sequence.
        rows = 0 if "packed_layout" in kwargs else torch.arange(hidden.shape[0], device=hidden.device)
        return SequenceClassifierOutputWithPast(
            logits=self.score(hidden[rows, reward_positions.to(hidden.device)]),  # type: ignore[attr-defined]
            past_key_values=outputs.get("past_key_values"),
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    def backbone_outputs(self, **inputs: Any) -> Any:
        """Run the backbone and return its outputs."""
        return self.base_model(**inputs)  # type: ignore[attr-defined]


def last_token_positions(input_ids: Tensor, pad_token_id: int | None) -> Tensor:
    """Return the position of the rightmost token that is not the pad token, as stock classifiers do.

    Args:
        input_ids: Token ids, shape `(N, L)`.
        pad_token_id: The pad token; None only for batches of one.

    Returns:
        Positions, shape `(N,)`, int64.

    Raises:
        ValueError: If a batch of several sequences has no pad token.
    """
    if pad_token_id is None:
        if input_ids.shape[0] > 1:
            raise ValueError(
                "A batch of several sequences requires `config.pad_token_id`. Set it, or score sequences one by one."
            )
        return torch.full((1,), input_ids.shape[1] - 1, device=input_ids.device)
    places = torch.arange(input_ids.shape[1], device=input_ids.device)
    return (places * (input_ids != pad_token_id)).argmax(-1)


def _require_one_label_classifier(model: PreTrainedModel) -> None:
    name, labels = model.config.name_or_path or type(model).__name__, getattr(model.config, "num_labels", None)
    remedy = "Pass its name to `RewardTrainer`, or load it with `AutoModelForRewardScoring.from_pretrained`."
    if not any("ForSequenceClassification" in cls.__name__ for cls in type(model).__mro__) and _is_language_model(
        model
    ):
        raise ValueError(
            f"`model` must be a sequence classifier with one label, but is the language model {type(model).__name__}. "
            f"{remedy}"
        )
    if labels != 1:
        raise ValueError(f"{name!r} has `num_labels={labels}`, but reward models require `num_labels=1`. {remedy}")


def _is_language_model(model: PreTrainedModel) -> bool:
    """Return whether a model has an output layer over its vocabulary."""
    return model.get_output_embeddings() is not None


@cache
def _reward_class(stock: type[PreTrainedModel], reads: bool) -> type[PreTrainedModel]:
    """Return a subclass of the stock class with the same name, which config.json records."""
    mixin = (_reads_images() if has_vision(stock) else ReadsLastToken) if reads else RewardClassifier
    members = {"__module__": stock.__module__, "__doc__": stock.__doc__, **saving_code(stock)}
    return type(stock.__name__, (mixin, stock), members)


def has_vision(model: PreTrainedModel | type[PreTrainedModel]) -> bool:
    """Return whether the backbone of a classifier has a vision tower."""
    return "vision_config" in (getattr(model.config_class, "sub_configs", None) or {})


def vision_modules(model: nn.Module) -> list[str]:
    """Return the names of the modules that compute image features: the parts of the backbone besides its decoder."""
    inner: Any = unwrap_model(model)
    if not has_vision(inner):
        return []
    backbone, decoder = inner.base_model, inner.base_model.get_decoder()
    return [f"{inner.base_model_prefix}.{name}" for name, part in backbone.named_children() if part is not decoder]


def _reads_images() -> type[RewardClassifier]:
    from hf_reward.modeling.image_features import ReadsImages  # noqa: PLC0415 - not for text models

    return ReadsImages


def _new_reward_model(origin: type[PreTrainedModel] | type[PretrainedConfig], reads: bool) -> PreTrainedModel:
    """Create an empty model for unpickling, from its stock class or its configuration class."""
    stock = classifier_class(origin()) if issubclass(origin, PretrainedConfig) else origin
    cls = _reward_class(stock, reads)
    return cls.__new__(cls)


def as_reward_model(model: PreTrainedModel) -> PreTrainedModel:
    """Turn a classifier with one label into a reward model, in place.

    Args:
        model: A `...ForSequenceClassification` with one label.

    Returns:
        The same object.

    Raises:
        ValueError: If it has several labels, or no layer with one output.
    """
    _require_one_label_classifier(model)
    outputs = [layer for _, layer in output_layers(model)]
    if not outputs:
        raise ValueError(
            f"A reward model requires a linear layer with one output, but {type(model).__name__} has none."
        )
    for layer in outputs:
        if type(layer) is nn.Linear:
            layer.__class__ = Float32Linear
            layer.float()
    set_regression(model.config)
    save_head_for_servers(model)
    model.config.architectures = [type(model).__name__]  # until here the name of the language model
    if not isinstance(model, RewardClassifier):
        save_config_code(model.config)
        # Custom code may process hidden states differently, so its `forward` is kept.
        own_forward = is_custom(type(model)) and not type(model).forward.__module__.startswith("transformers.")
        model.__class__ = _reward_class(type(model), is_decoder(model) and not own_forward)
    return model


def unwrap_model(model: Any) -> PreTrainedModel:
    """Return the classifier without PEFT's wrapper."""
    bare: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return bare


def reads_positions(model: nn.Module) -> bool:
    """Return whether a model (with or without PEFT's wrapper) supports `reward_positions`."""
    inner = unwrap_model(model)
    return isinstance(inner, ReadsLastToken)


def head_modules(model: nn.Module) -> list[str]:
    """Return the names of the modules of the head: those outside the backbone, and its pooler.

    BERT's pooler is inside the backbone, but language-model checkpoints lack it, as they lack the classifier.
    """
    inner = unwrap_model(model)
    prefix = inner.base_model_prefix
    parts = {name: child for name, child in inner.named_children() if name != prefix}
    pooler = getattr(getattr(inner, prefix, None), "pooler", None)
    if isinstance(pooler, nn.Module):
        parts = {f"{prefix}.pooler": pooler, **parts}
    return [name for name, part in parts.items() if any(True for _ in part.parameters())]


def in_head(name: str, heads: Iterable[str]) -> bool:
    """Return whether a parameter or module, also inside PEFT's wrapper, belongs to the head."""
    name = name.removeprefix("base_model.model.")
    return any(name == head or name.startswith(f"{head}.") for head in heads)


def head_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the trainable parameters of the head with their names in `model.named_parameters()`."""
    heads = head_modules(model)
    return [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and in_head(name, heads)
    ]


def freeze_all_but_head(model: nn.Module) -> None:
    """Freeze all parameters except the head, in place."""
    heads = head_modules(model)
    for name, parameter in model.named_parameters():
        # Frozen parameters stay frozen, because PEFT keeps a frozen copy of the head.
        parameter.requires_grad_(parameter.requires_grad and in_head(name, heads))


def trains_only_head(model: nn.Module) -> bool:
    """Return whether only the head is trainable."""
    heads = head_modules(model)
    return not any(p.requires_grad and not in_head(name, heads) for name, p in model.named_parameters())


def check_head_is_trained(model: nn.Module) -> None:
    """Refuse a model whose head would not be trained or not be saved.

    Args:
        model: A reward model, with or without PEFT's wrapper.

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
                f"The adapter must train and save the reward head ({', '.join(names)}), but its `modules_to_save` is "
                f"{sorted(saved) or None}. Pass the model without adapter and `peft_config` to `RewardTrainer` or to "
                "`AutoModelForRewardScoring.from_pretrained`, or use "
                f"LoraConfig(task_type='SEQ_CLS', modules_to_save={names}, ...)."
            )
    elif not head_parameters(model):
        raise ValueError(
            f"The reward head ({', '.join(names)}) must be trainable, but is frozen. Set `requires_grad` on its "
            "parameters, or use `freeze_backbone=True` to freeze only the backbone."
        )


def set_regression(config: PretrainedConfig) -> None:
    """Configure one regression label, in place."""
    # vLLM reads the configuration of the language model in some vision-language models (InternVL).
    for each in {id(part): part for part in (config, config.get_text_config())}.values():
        # Without `problem_type`, pipelines and servers apply a sigmoid to a single label.
        each.problem_type = "regression"
        each.id2label = {0: "reward"}
        each.label2id = {"reward": 0}
    # CrossEncoder of sentence-transformers ignores it and applies a sigmoid, unless this entry names another function.
    # vLLM reads the entry too; with it, `/classify` and `/pooling` return the raw reward (`make interop`).
    known = getattr(config, "sentence_transformers", None) or {}
    config.sentence_transformers = {**known, "activation_fn": "torch.nn.modules.linear.Identity"}


def zero_head(model: PreTrainedModel) -> None:
    """Set the head to zero, in place, as the start of training."""
    for _, layer in output_layers(model):
        with gathered_parameters(layer.parameters()):
            nn.init.zeros_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def output_layers(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """Return the last layers of the head, which compute the reward."""
    heads = head_modules(model)
    return [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == 1 and in_head(name, heads)
    ]


def is_decoder(model: PreTrainedModel) -> bool:
    """Return whether the stock class applies a `score` layer at the last token, as causal classifiers do."""
    score = getattr(model, "score", None)
    for inside in ("original_module", "base_layer"):  # wrappers of an adapter
        score = getattr(score, inside, score)
    return isinstance(score, nn.Linear) and not getattr(model.config, "is_encoder_decoder", False)
