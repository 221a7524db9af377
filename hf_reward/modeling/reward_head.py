"""Stock classifier -> reward model: read at the last token, with a float32 head that is trained and saved.

The class keeps the stock class's name, so what is saved is a stock model. It changes two things only: the head runs at
the last token of each sequence instead of at all of them, and it computes in float32 whatever the backbone's precision.
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
from hf_reward.modeling.architectures import classifier_class
from hf_reward.modeling.custom_code import is_custom, save_config_code, saving_code
from hf_reward.modeling.sharding import whole_parameters

RewardModel = PreTrainedModel | PeftModel


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32, under autocast too.

    In bfloat16 rewards around 8 are 0.06 apart, so near pairs become ties. Parameters keep their names.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to hidden states of any dtype, shape `(..., H)` -> `(..., 1)`, float32."""
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return nn.functional.linear(input.float(), self.weight.float(), bias)


class PublishesVerified:
    """Mixin for reward models: `push_to_hub` verifies what it publishes instead of uploading it as it is."""

    def push_to_hub(self, repo_id: str, *, tokenizer: Any | None = None, token: Any = None, **rule: Any) -> Any:
        """Publish this model, merged if it has an adapter; see `push.push_reward_model`.

        Args:
            repo_id: `user/name` on the Hub.
            tokenizer: Its tokenizer; by default the one of the folder that the model came from.
            token: Write token; by default the one that `hf auth login` stored.
            **rule: Fields of `push.PushRule`, and transformers' names for them (`revision`, `commit_message`).

        Returns:
            A `push.PushReport`.
        """
        return hf_reward.push_model(self, repo_id, tokenizer=tokenizer, token=token, **rule)


class RewardClassifier(PublishesVerified):
    """Mixin for stock classifiers that were made reward models: their class keeps its name and can be pickled."""

    has_new_head = False
    """Whether the checkpoint lacked the head, or part of it, so that its rewards mean nothing until it is trained."""
    saved_heads: str | None = None
    """Where the heads lie of which the loaded head is the mean; see `head_ensemble`."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made at run time and shares its name with the stock class, so pickle finds it through that; a
        # stock class that was itself made at run time (Granite, ...) is found through its configuration.
        stock: Any = next(cls for cls in type(self).__mro__[1:] if not issubclass(cls, PublishesVerified))
        is_made = not hasattr(sys.modules[stock.__module__], stock.__name__)
        reads = isinstance(self, ReadsLastToken)
        return _new_reward_model, (stock.config_class if is_made else stock, reads), self.__dict__


class ReadsLastToken(RewardClassifier):
    """Mixin for decoders: the head runs on one position of each sequence instead of on all.

    Without `reward_positions` that is the position that the stock class reads, the rightmost token that is not
    the pad token. The backbone runs inside this `forward`, so hooks of DDP, FSDP, ZeRO and PEFT fire as usual.
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
            reward_positions: Position at which each reward is read, shape `(N,)`.
            reward_features: Final hidden states at those positions if they are known, shape `(N, H)`; the head alone
                runs then, and all else is ignored.
            **kwargs: Passed to the backbone; with `packed_layout` the batch is one packed row (see `packing`).

        Returns:
            A `SequenceClassifierOutputWithPast` with `logits` of shape `(N, 1)`, float32.
        """
        if reward_features is not None:
            return SequenceClassifierOutputWithPast(logits=self.score(reward_features))  # type: ignore[attr-defined]
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


def _require_one_label_classifier(model: PreTrainedModel) -> None:
    name, labels = model.config.name_or_path or type(model).__name__, getattr(model.config, "num_labels", None)
    remedy = "Pass its name to `RewardTrainer`, or load it with `AutoModelForRewardScoring.from_pretrained`."
    if not any("ForSequenceClassification" in cls.__name__ for cls in type(model).__mro__) and _gives_tokens(model):
        raise ValueError(
            f"`model` is a {type(model).__name__}, which gives tokens and no reward; reward models are sequence "
            f"classifiers with one label. {remedy}"
        )
    if labels != 1:
        raise ValueError(f"{name!r} has `num_labels={labels}`, but reward models require `num_labels=1`. {remedy}")


def _gives_tokens(model: PreTrainedModel) -> bool:
    """Whether a model has a layer that gives a number for each token of its vocabulary, as language models have."""
    return model.get_output_embeddings() is not None


@cache
def _reward_class(stock: type[PreTrainedModel], reads: bool) -> type[PreTrainedModel]:
    """The stock class with what we add, under the stock class's own name (it is what config.json records)."""
    ours = ReadsLastToken if reads else RewardClassifier
    members = {"__module__": stock.__module__, "__doc__": stock.__doc__, **saving_code(stock)}
    return type(stock.__name__, (ours, stock), members)


def _new_reward_model(origin: type[PreTrainedModel] | type[PretrainedConfig], reads: bool) -> PreTrainedModel:
    """An empty model for unpickling, from its stock class or from the configuration of one made at run time."""
    stock = classifier_class(origin()) if issubclass(origin, PretrainedConfig) else origin
    cls = _reward_class(stock, reads)
    return cls.__new__(cls)


def as_reward_model(model: PreTrainedModel) -> PreTrainedModel:
    """Give a loaded one-label classifier our reading rule and float32 head, in place.

    Args:
        model: A `...ForSequenceClassification` with one label.

    Returns:
        The same object.

    Raises:
        ValueError: If it has another number of labels or no head that gives one number.
    """
    _require_one_label_classifier(model)
    outputs = [layer for _, layer in output_layers(model)]
    if not outputs:
        raise ValueError(f"{type(model).__name__} has no layer that gives one number for a sequence.")
    for layer in outputs:
        if type(layer) is nn.Linear:
            layer.__class__ = Float32Linear
            layer.float()
    state_regression(model.config)
    model.config.architectures = [type(model).__name__]  # that of the language model until then
    if not isinstance(model, RewardClassifier):
        save_config_code(model.config)
        # What a `forward` of a model's own code does with the hidden states is not known, so it is left in charge.
        own_forward = is_custom(type(model)) and not type(model).forward.__module__.startswith("transformers.")
        model.__class__ = _reward_class(type(model), is_decoder(model) and not own_forward)
    return model


def unwrap_model(model: Any) -> PreTrainedModel:
    """The classifier itself, without PEFT's wrapper."""
    bare: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return bare


def reads_positions(model: nn.Module) -> bool:
    """Whether a model, perhaps wrapped by PEFT, takes `reward_positions`."""
    inner = unwrap_model(model)
    return isinstance(inner, ReadsLastToken)


def head_modules(model: nn.Module) -> list[str]:
    """Names of the modules that turn hidden states into a reward: those outside the backbone, and its pooler.

    BERT keeps its pooler inside the backbone, yet language-model checkpoints lack it as they lack the classifier.
    """
    inner = unwrap_model(model)
    prefix = inner.base_model_prefix
    parts = {name: child for name, child in inner.named_children() if name != prefix}
    pooler = getattr(getattr(inner, prefix, None), "pooler", None)
    if isinstance(pooler, nn.Module):
        parts = {f"{prefix}.pooler": pooler, **parts}
    return [name for name, part in parts.items() if any(True for _ in part.parameters())]


def in_head(name: str, heads: Iterable[str]) -> bool:
    """Whether a parameter or module, perhaps inside PEFT's wrapper, belongs to the head."""
    name = name.removeprefix("base_model.model.")
    return any(name == head or name.startswith(f"{head}.") for head in heads)


def head_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The trainable parameters of the head, with their names in `model.named_parameters()`."""
    heads = head_modules(model)
    return [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and in_head(name, heads)
    ]


def freeze_all_but_head(model: nn.Module) -> None:
    """Stop training everything but the head, in place."""
    heads = head_modules(model)
    for name, parameter in model.named_parameters():
        # PEFT keeps a frozen copy of the head beside the trained one, so what is frozen stays so.
        parameter.requires_grad_(parameter.requires_grad and in_head(name, heads))


def trains_head_alone(model: nn.Module) -> bool:
    """Whether no parameter outside the head is trainable."""
    heads = head_modules(model)
    return not any(p.requires_grad and not in_head(name, heads) for name, p in model.named_parameters())


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
                f"saves {sorted(saved) or 'no whole module'}. Pass the plain model and `peft_config` to "
                "`RewardTrainer` or to "
                f"`AutoModelForRewardScoring.from_pretrained`, or use "
                f"LoraConfig(task_type='SEQ_CLS', modules_to_save={names}, ...)."
            )
    elif not head_parameters(model):
        raise ValueError(
            f"The reward head ({', '.join(names)}) is frozen, so rewards would never be learned. "
            "Set `requires_grad` on its parameters, or use `freeze_backbone=True` to freeze the rest only."
        )


def state_regression(config: PretrainedConfig) -> None:
    """Say in a configuration that the one label is a number, in place."""
    # Without problem_type, pipelines and servers put a sigmoid on a single label.
    config.problem_type = "regression"
    config.id2label = {0: "reward"}
    config.label2id = {"reward": 0}


def zero_head(model: PreTrainedModel) -> None:
    """Let every reward be 0, in place: where training of a new head starts."""
    for _, layer in output_layers(model):
        with whole_parameters(layer.parameters()):
            nn.init.zeros_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def output_layers(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The linear layers of the head that give the reward itself."""
    heads = head_modules(model)
    return [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == 1 and in_head(name, heads)
    ]


def is_decoder(model: PreTrainedModel) -> bool:
    """Whether the stock class reads its bias-free `score` at the last token, as all causal classifiers do."""
    score = getattr(model, "score", None)
    for inside in ("original_module", "base_layer"):  # an adapter's wrapper of the head
        score = getattr(score, inside, score)
    return isinstance(score, nn.Linear) and not getattr(model.config, "is_encoder_decoder", False)
