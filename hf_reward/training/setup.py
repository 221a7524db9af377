"""Names and settings -> tokenizer and model of a run, prepared for training."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from peft import PeftConfig, PeftModel
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_reward.data.interface import setting
from hf_reward.modeling.adapters import add_adapter, frozen_heads_as_buffers, number_of_embeddings, train_head_of
from hf_reward.modeling.auto_model import AutoModelForRewardScoring
from hf_reward.modeling.dropout import disable_dropout
from hf_reward.modeling.head_ensemble import add_heads, count_saved, load_heads, number_of_heads
from hf_reward.modeling.model_images import load_images
from hf_reward.modeling.model_place import hub_options
from hf_reward.modeling.model_tokenizer import match_pad_token
from hf_reward.modeling.position_limits import position_limit
from hf_reward.modeling.reward_head import (
    RewardModel,
    as_reward_model,
    check_head_is_trained,
    unwrap_model,
)
from hf_reward.preprocessing.tokenizer import prepare_tokenizer
from hf_reward.training.training_args import RewardConfig

logger = logging.getLogger(__name__)


def default_output_dir(model: Any) -> str:
    """Return `<model>-Reward`, the default of TRL."""
    name = model if isinstance(model, str) else getattr(getattr(model, "config", None), "_name_or_path", "") or "model"
    return f"{name.rstrip('/').split('/')[-1]}-Reward"


def prepared_tokenizer(
    model: Any, args: RewardConfig, own: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """Return the tokenizer of a run.

    Args:
        model: A name, or a loaded model.
        args: Settings of the run.
        own: The user's tokenizer or processor, which is not changed; by default the tokenizer of the model.

    Returns:
        A copy with pad token, EOS token and chat template, and the list of added tokens, without the pad token.

    Raises:
        ValueError: If the model does not name its tokenizer.
    """
    before = getattr(own, "tokenizer", own) or _own_tokenizer(model, args)
    tokenizer = prepare_tokenizer(
        before,
        pad_token=args.pad_token,
        eos_token=args.eos_token,
        chat_template_path=args.chat_template_path,
        trust_remote_code=args.trust_remote_code,
    )
    return tokenizer, _added_tokens(before, tokenizer)


def _own_tokenizer(model: Any, args: RewardConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model."""
    name = model if isinstance(model, str) else getattr(getattr(model, "config", None), "_name_or_path", "")
    if not name:
        raise ValueError("The model has no name or path, so its tokenizer is unknown. Pass it as `processing_class`.")
    options = _init_kwargs(args)
    kept = hub_options(options) | {key: options[key] for key in ("gguf_file",) if key in options}
    return AutoTokenizer.from_pretrained(name, trust_remote_code=args.trust_remote_code, **kept)


def _added_tokens(before: PreTrainedTokenizerBase, after: PreTrainedTokenizerBase) -> list[str]:
    """Return the tokens that a chat template has added to a tokenizer, without the pad token."""
    return sorted(after.get_vocab().keys() - before.get_vocab().keys() - {str(after.pad_token)})


def loaded_model(model: Any, args: RewardConfig, quantization_config: Any | None) -> Any:
    """Return the model, loaded if it is given by name.

    Args:
        model: Hub id, folder or loaded model; None if `model_init` makes it.
        args: Settings of the run.
        quantization_config: As in transformers, for a name.

    Returns:
        The model, None for None.

    Raises:
        ValueError: If a loaded model is passed together with settings for loading.
    """
    if isinstance(model, str):
        return load_model(model, args, quantization_config)
    if quantization_config is not None or args.model_init_kwargs:
        raise ValueError(
            "`quantization_config` and `model_init_kwargs` cannot be set for a loaded model. Pass its name instead."
        )
    return model


def load_model(name: str, args: RewardConfig, quantization_config: Any | None) -> RewardModel:
    """Load a model by name, with the settings' `model_init_kwargs`.

    Args:
        name: Hub id or folder.
        args: Settings of the run.
        quantization_config: As in transformers.

    Returns:
        The reward model.

    Raises:
        ValueError: If the quantisation is given twice.
    """
    options = _init_kwargs(args)
    if quantization_config is not None:
        if "quantization_config" in options:
            raise ValueError("`quantization_config` is given twice: as an argument and in `model_init_kwargs`.")
        options["quantization_config"] = quantization_config
    options.setdefault("trust_remote_code", args.trust_remote_code)
    options.pop("num_labels", None)  # always 1
    return AutoModelForRewardScoring.from_pretrained(name, **options)


def prepare_model(
    model: Any,
    args: RewardConfig,
    tokenizer: PreTrainedTokenizerBase,
    peft_config: PeftConfig | None,
    new_tokens: Sequence[str] = (),
) -> RewardModel:
    """Check a loaded model, and add head, pad token and adapter in place.

    Args:
        model: A one-label classifier, with or without an adapter.
        args: Settings of the run.
        tokenizer: The prepared tokenizer.
        peft_config: An adapter to add.
        new_tokens: Tokens without trained embeddings: see `prepared_tokenizer`.

    Returns:
        The model to train.

    Raises:
        ValueError: If the model already has an adapter, or the head would not be trained and saved, or embeddings of
            new tokens would not be trained.
    """
    inner = unwrap_model(model)
    as_reward_model(inner)
    _fit_embeddings(model, inner, tokenizer)
    if args.eos_token is not None:
        inner.config.get_text_config().eos_token_id = tokenizer.eos_token_id
    initialize_heads(model, args)
    if peft_config is not None:
        if isinstance(model, PeftModel):
            raise ValueError(
                "The model already has an adapter. Remove `peft_config` to train this adapter, or merge it first "
                "(`hf_reward.merge_adapter`)."
            )
        model = add_adapter(model, peft_config)
    if isinstance(model, PeftModel):
        train_head_of(model)
        frozen_heads_as_buffers(model)
    check_head_is_trained(model)
    _require_trained_embeddings(inner, new_tokens)
    if args.disable_dropout:
        disable_dropout(model)
    if isinstance(model, PeftModel) and args.activation_checkpointing:
        model.enable_input_require_grads()  # transformers#42489: otherwise no gradient reaches the adapter
    return model


def images_of_run(model: Any, args: RewardConfig, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return the `RunImages` of a vision-language model, or None if images cannot be used."""
    images = None if model is None else load_images(model, tokenizer)
    if model is None or images is None:
        if args.train_vision:
            raise ValueError(
                f"`{setting('train_vision')}` requires a vision-language model, given by name or loaded, and its image "
                "processor. Remove the setting."
            )
        return None
    from hf_reward.training.images import RunImages  # noqa: PLC0415 - not for text models

    return RunImages(model, args, images)


def initialize_heads(model: RewardModel, args: RewardConfig) -> None:
    """Add the number of heads in the settings to a model in place; load its saved heads if it has as many.

    Args:
        model: A loaded model.
        args: Settings of the run.

    Raises:
        ValueError: If the model already has several heads, and a different number than the settings.
    """
    count, present = args.num_reward_heads, number_of_heads(model)
    saved: Any = unwrap_model(model).saved_heads
    if present > 1:
        if present != count:
            raise ValueError(
                f"The model already has {present} reward heads, but `num_reward_heads={count}`. Set it to {present}, "
                "or reload the model, which loads the mean of its heads."
            )
        return
    if count > 1:
        add_heads(model, count, args.seed)
    if saved is None:
        return
    found = count_saved(saved)
    if found == count:
        load_heads(model, saved)
    elif args.should_log:
        logger.warning(
            "The model was saved with %s reward heads, but `num_reward_heads` is %s. Training starts from their "
            "mean%s.",
            found,
            count,
            "" if count == 1 else ", and the differences between the saved heads are lost",
        )


def training_settings(args: RewardConfig, model: RewardModel) -> dict[str, Any]:
    """Return the settings of a run for its model card.

    Args:
        args: Settings of the run.
        model: The model, with its adapter if there is one.

    Returns:
        Names and JSON values.
    """
    settings: dict[str, Any] = {
        "learning_rate": args.learning_rate,
        "head_learning_rate": args.head_learning_rate,
        "num_train_epochs": args.num_train_epochs,
        "rows_per_step": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "max_length": args.max_length,
        "reward_heads": args.num_reward_heads if args.num_reward_heads > 1 else None,
        "precision": "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32",
        "processes": args.world_size,
        "seed": args.seed,
    }
    if isinstance(model, PeftModel):
        adapter: Any = model.active_peft_config
        settings |= {"adapter": str(adapter.peft_type).removeprefix("PeftType.")}
        settings |= {name: getattr(adapter, name) for name in ("r", "lora_alpha") if hasattr(adapter, name)}
    elif not any(p.requires_grad for p in unwrap_model(model).base_model.parameters()):
        settings["frozen_backbone"] = True
    return {name: value for name, value in settings.items() if value is not None}


def limit_to_positions(args: RewardConfig, model: RewardModel) -> RewardConfig:
    """Lower `max_length` to the number of positions of the model; a longer row would end the run with an error.

    Args:
        args: Settings of the run; changed in place.
        model: The model.

    Returns:
        The settings.
    """
    limit = position_limit(model)
    if limit is not None and isinstance(args.pad_to_multiple_of, int):
        limit -= limit % args.pad_to_multiple_of  # padding uses positions too
    if limit is None or (args.max_length is not None and args.max_length <= limit):
        return args
    if args.should_log:
        logger.warning(
            "`max_length` is %s, but this model supports %s positions: `max_length=%s` is used in training and in "
            "scoring with the saved model. Set it to at most this value.",
            args.max_length,
            limit,
            limit,
        )
    args.max_length = limit
    return args


def _init_kwargs(args: RewardConfig) -> dict[str, Any]:
    return dict(args.model_init_kwargs) if isinstance(args.model_init_kwargs, Mapping) else {}


def _fit_embeddings(model: RewardModel, inner: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the tokenizer's pad token in the model, and refuse to resize embeddings under an adapter."""
    if isinstance(model, PeftModel) and len(tokenizer) > number_of_embeddings(inner):
        raise ValueError(
            "The tokenizer needs a new pad token, but the model already has an adapter and cannot be resized. Load the "
            "model with `AutoModelForRewardScoring.from_pretrained(name, peft_config=...)`."
        )
    match_pad_token(inner, tokenizer)


def _require_trained_embeddings(model: PreTrainedModel, new_tokens: Sequence[str]) -> None:
    """Refuse new tokens whose random embeddings would not be trained, because every rendered text contains them."""
    weight: Any = model.get_input_embeddings().weight
    if new_tokens and not weight.requires_grad:
        raise ValueError(
            f"The chat template adds tokens for which the model has no embeddings ({', '.join(new_tokens)}). With an "
            "adapter or a frozen backbone, the new embeddings would stay random. Train the complete model, or use a "
            "chat template (`chat_template_path`) made for this model."
        )
