"""Names and settings -> tokenizer, model and batch form of a run: what `RewardTrainer` needs before it can train."""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_reward.data.interface import setting
from hf_reward.modeling.adapters import add_adapter, forget_frozen_heads, number_of_embeddings, train_head_of
from hf_reward.modeling.auto_model import AutoModelForRewardScoring
from hf_reward.modeling.dropout import disable_dropout
from hf_reward.modeling.head_ensemble import add_heads, count_saved, load_heads, number_of_heads
from hf_reward.modeling.model_place import hub_options
from hf_reward.modeling.model_tokenizer import match_pad_token
from hf_reward.modeling.packing import why_not_packed
from hf_reward.modeling.position_limits import position_limit
from hf_reward.modeling.reward_head import RewardModel, as_reward_model, bare_model, check_head_is_trained
from hf_reward.preprocessing.data_collator import DataCollatorForPreference
from hf_reward.preprocessing.packed_collator import DataCollatorForPackedPreference
from hf_reward.preprocessing.token_budget import DataCollatorWithTokenBudget
from hf_reward.preprocessing.tokenizer import token_id
from hf_reward.training.feature_cache import DataCollatorForFeatures
from hf_reward.training.training_args import RewardConfig

logger = logging.getLogger(__name__)

_FEW_ROWS = 8
"""Below it the correlation of unrelated rewards and lengths of pairs is beyond 0.2 on average."""


def default_output_dir(model: Any) -> str:
    """`<model>-Reward`, as TRL names it."""
    name = model if isinstance(model, str) else getattr(getattr(model, "config", None), "_name_or_path", "") or "model"
    return f"{name.rstrip('/').split('/')[-1]}-Reward"


def refuse_data_parallel(args: RewardConfig) -> None:
    """Stop where `Trainer` would fall back to `nn.DataParallel`.

    Args:
        args: Settings of the run.

    Raises:
        ValueError: If one process sees several GPUs.
    """
    if args.n_gpu > 1:
        raise ValueError(
            f"One process sees {args.n_gpu} GPUs, which `Trainer` would use through `nn.DataParallel`; it splits pairs "
            "wrongly. Start with `accelerate launch` (or `torchrun`), or set CUDA_VISIBLE_DEVICES to one GPU."
        )


def refuse_two_head_rates(args: RewardConfig, optimizer: Any) -> None:
    """Stop where a learning rate for the head would have no effect.

    Args:
        args: Settings of the run.
        optimizer: The caller's own optimizer, if any.

    Raises:
        ValueError: If both are given.
    """
    if args.head_learning_rate is not None and optimizer is not None:
        raise ValueError(
            f"`head_learning_rate={args.head_learning_rate}` has no effect on the ready-made optimizer in "
            "`optimizers`. "
            "Give the head a group of its own there and drop the setting, or pass `optimizer_cls_and_kwargs` instead."
        )


def require_a_batch(args: RewardConfig, rows: Any) -> None:
    """Stop where every training batch would be dropped for being smaller than the others.

    Args:
        args: Settings of the run.
        rows: The prepared training rows.

    Raises:
        ValueError: If there are fewer rows than a batch of all processes takes.
    """
    size = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and isinstance(rows, Dataset) and len(rows) < size:
        raise ValueError(
            f"`{setting('dataloader_drop_last', True)}` drops the last batch unless it has {size} rows, and the "
            f"training data has {len(rows)} in all: nothing would be learned. Leave it unset, or lower "
            f"`{setting('per_device_train_batch_size')}`."
        )


def warn_of_partial_penalties(args: RewardConfig) -> None:
    """Say once where the length penalty sees less than the rows of an optimizer step.

    Args:
        args: Settings of the run.
    """
    parts = args.gradient_accumulation_steps * args.world_size
    if not args.length_penalty or not args.should_log:
        return
    rows = args.per_device_train_batch_size
    if parts > 1:
        logger.warning(
            "`length_penalty=%s` is no sum over rows: each of the %s parts of a step (accumulation, processes) has a "
            "correlation of its own, over %s rows, and their mean is added to the loss. So batch 8 is not batch 2 x "
            "accumulation 4 here: make `per_device_train_batch_size` as large as memory allows.",
            args.length_penalty,
            parts,
            rows,
        )
    elif rows < _FEW_ROWS:
        logger.warning(
            "`length_penalty=%s` sees the correlation over %s rows at a time, which is mostly chance: use %s or more "
            "in `per_device_train_batch_size`.",
            args.length_penalty,
            rows,
            _FEW_ROWS,
        )


def own_tokenizer(model: Any, args: RewardConfig) -> PreTrainedTokenizerBase:
    """The tokenizer that a model came with.

    Args:
        model: A name, or a loaded model.
        args: Settings of the run.

    Returns:
        The tokenizer.

    Raises:
        ValueError: If the model does not say where it came from.
    """
    name = model if isinstance(model, str) else getattr(getattr(model, "config", None), "_name_or_path", "")
    if not name:
        raise ValueError("The model does not say where it came from, so pass its tokenizer as `processing_class`.")
    options = _init_kwargs(args)
    kept = hub_options(options) | {key: options[key] for key in ("gguf_file",) if key in options}
    return AutoTokenizer.from_pretrained(name, trust_remote_code=args.trust_remote_code, **kept)


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
    """Check a loaded model and give it head, pad token and adapter, in place.

    Args:
        model: A one-label classifier, perhaps with an adapter.
        args: Settings of the run.
        tokenizer: The prepared tokenizer.
        peft_config: An adapter to add.
        new_tokens: Tokens that the model has not seen: see `added_tokens`.

    Returns:
        The model to train.

    Raises:
        ValueError: If there is an adapter already, or the head would not be trained and saved, or embeddings of new
            tokens would not be trained.
    """
    inner = bare_model(model)
    as_reward_model(inner)
    _fit_embeddings(model, inner, tokenizer)
    if args.eos_token is not None:
        inner.config.get_text_config().eos_token_id = tokenizer.eos_token_id
    start_heads(model, args)
    if peft_config is not None:
        if isinstance(model, PeftModel):
            raise ValueError(
                "The model already has an adapter. Drop `peft_config` to go on training it, or merge it first "
                "(`hf_reward.merge_adapter`)."
            )
        model = add_adapter(model, peft_config)
    if isinstance(model, PeftModel):
        train_head_of(model)
        forget_frozen_heads(model)
    check_head_is_trained(model)
    _require_trained_embeddings(inner, new_tokens)
    if args.disable_dropout:
        disable_dropout(model)
    if isinstance(model, PeftModel) and args.activation_checkpointing:
        model.enable_input_require_grads()  # transformers#42489: else no gradient reaches the adapter
    return model


def start_heads(model: RewardModel, args: RewardConfig) -> None:
    """Give a model as many heads as the settings say, in place: those it was saved with if it has that many.

    Args:
        model: A loaded model.
        args: Settings of the run.

    Raises:
        ValueError: If it has several heads already, and other than the settings say.
    """
    count, present = args.num_reward_heads, number_of_heads(model)
    saved: Any = bare_model(model).saved_heads
    if present > 1:
        if present != count:
            raise ValueError(
                f"The model has {present} reward heads already, but `num_reward_heads={count}`. Set it to {present}, "
                "or load the model anew: what is loaded is the mean of its heads."
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
            "The model was saved with %s reward heads, but `num_reward_heads` is %s: training starts from their "
            "mean%s.",
            found,
            count,
            "" if count == 1 else ", and the new heads know nothing of the old ones' differences",
        )


def training_settings(args: RewardConfig, model: RewardModel) -> dict[str, Any]:
    """The settings of a run that a reader of its card wants to know.

    Args:
        args: Settings of the run.
        model: Its model, which knows its adapter.

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
    elif not any(p.requires_grad for p in bare_model(model).base_model.parameters()):
        settings["frozen_backbone"] = True
    return {name: value for name, value in settings.items() if value is not None}


def fit_to_positions(args: RewardConfig, model: RewardModel) -> RewardConfig:
    """Lower `max_length` to what the model's positions allow: its first longer row would end the run in step 1.

    Args:
        args: Settings of the run; changed in place.
        model: Its model.

    Returns:
        The settings.
    """
    limit = position_limit(model)
    if limit is not None and isinstance(args.pad_to_multiple_of, int):
        limit -= limit % args.pad_to_multiple_of  # padding takes positions too
    if limit is None or (args.max_length is not None and args.max_length <= limit):
        return args
    if args.should_log:
        logger.warning(
            "`max_length` is %s, but the positions of this model end at %s tokens: `max_length=%s` is used, in "
            "training and wherever the saved model scores. Set it to at most that.",
            args.max_length,
            limit,
            limit,
        )
    args.max_length = limit
    return args


def padded_collator(args: RewardConfig, tokenizer: PreTrainedTokenizerBase) -> DataCollatorForPreference:
    """The collator that works for every model."""
    multiple = args.pad_to_multiple_of
    assert multiple is None or isinstance(multiple, int)
    return DataCollatorForPreference(token_id(tokenizer.pad_token_id), multiple)


def choose_collator(
    model: RewardModel | None,
    args: RewardConfig,
    tokenizer: PreTrainedTokenizerBase,
    own: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """The user's own collator; else packed batches where the model allows them and the settings do not forbid it.

    Args:
        model: The model, None where each trial makes its own.
        args: Settings of the run.
        tokenizer: The prepared tokenizer.
        own: The user's own collator, if any.

    Returns:
        The collator.

    Raises:
        ValueError: If packing is asked for and not possible.
    """
    if own is not None:
        if args.packing == "true" and not isinstance(own, DataCollatorForPackedPreference):
            raise ValueError(
                f"`{setting('packing', True)}` has no effect beside a `data_collator` of your own. Drop one of the two."
            )
        return own
    padded = padded_collator(args, tokenizer)
    if args.packing == "false":
        return padded
    reason = why_not_packed(bare_model(model)) if model is not None else None
    if args.neftune_noise_alpha is not None:
        reason = "NEFTune scales its noise by the length of a row, which packing changes"
    if reason is None:
        return DataCollatorForPackedPreference()
    if args.packing == "true":
        raise ValueError(
            f"`{setting('packing', True)}` is not possible with this model: {reason}. Use "
            f"`{setting('packing', 'auto')}`."
        )
    if args.process_index == 0:
        logger.warning("Batches are padded, not packed: %s.", reason)
    return padded


def budgeted(collator: Callable[..., Any], args: RewardConfig) -> Callable[..., Any]:
    """A collator that keeps to `max_tokens_per_batch`, if that is set.

    Args:
        collator: Ours, or the user's own.
        args: Settings of the run.

    Returns:
        The collator.

    Raises:
        ValueError: If the user's own collator cannot say what a batch costs.
    """
    if args.max_tokens_per_batch is None:
        return collator
    if not hasattr(collator, "tokens"):
        raise ValueError(
            "`max_tokens_per_batch` needs a data collator with a method `tokens(rows)`, which "
            f"{type(collator).__name__} lacks. Add it (see `DataCollatorForPreference`), or leave one of the two unset."
        )
    counting: Any = collator
    return DataCollatorWithTokenBudget(counting, args.max_tokens_per_batch)


def inner_collator(collator: Any) -> Callable[..., Any]:
    """The collator that makes token batches, inside those that split batches or stand in for them."""
    while isinstance(collator, (DataCollatorWithTokenBudget, DataCollatorForFeatures)):
        collator = collator.collator
    return collator


def with_rows_in_even_rounds(args: RewardConfig) -> RewardConfig:
    """Let each process read its own rows, as many as each other one.

    accelerate's main process cannot concatenate and slice ragged batches, and processes with batches of different
    sizes wait for each other for ever. This holds for map datasets too, because `evaluate` may get a stream later.

    Args:
        args: Settings of the run; changed in place.

    Returns:
        The settings.
    """
    config: Any = copy.copy(args.accelerator_config)
    if config.dispatch_batches and args.should_log:
        logger.warning(
            "`dispatch_batches=True` in `accelerator_config` is not possible, because rows differ in length: each "
            "process reads its own rows. Leave it unset."
        )
    if not config.even_batches and args.world_size > 1:
        if args.should_log:
            logger.warning(
                "`even_batches=False` in `accelerator_config` is not possible with several processes: one would wait "
                "for the batch that another does not have. Leave it unset; evaluation counts each row once."
            )
        config.even_batches = True
    config.dispatch_batches = False
    args.accelerator_config = config
    return args


def refuse_to_sort_a_stream(args: RewardConfig, rows: Any) -> None:
    """Stop where a stream is to be sorted by length.

    Args:
        args: Settings of the run.
        rows: Prepared rows.

    Raises:
        ValueError: If they are a stream and `length_bucketing` is set.
    """
    if args.length_bucketing == "true" and isinstance(rows, IterableDataset):
        raise ValueError(
            f"`{setting('length_bucketing', True)}` needs rows that can be sorted; a stream has none. Use "
            f"`{setting('length_bucketing', 'auto')}`."
        )


def _init_kwargs(args: RewardConfig) -> dict[str, Any]:
    return dict(args.model_init_kwargs) if isinstance(args.model_init_kwargs, Mapping) else {}


def _fit_embeddings(model: RewardModel, inner: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the model the tokenizer's pad token; a new one needs an embedding, which an adapter must not miss."""
    if isinstance(model, PeftModel) and len(tokenizer) > number_of_embeddings(inner):
        raise ValueError(
            "The tokenizer needs a new pad token, but the model already has an adapter and cannot be resized. Load it "
            "with `AutoModelForRewardScoring.from_pretrained(name, peft_config=...)`."
        )
    match_pad_token(inner, tokenizer)


def added_tokens(before: PreTrainedTokenizerBase, after: PreTrainedTokenizerBase) -> list[str]:
    """Tokens that preparing a tokenizer added to it, its pad token aside: a chat template brought them."""
    return sorted(after.get_vocab().keys() - before.get_vocab().keys() - {str(after.pad_token)})


def _require_trained_embeddings(model: PreTrainedModel, new_tokens: Sequence[str]) -> None:
    """Refuse new tokens whose random embeddings would stay as they are: every text of a chat template holds them."""
    weight: Any = model.get_input_embeddings().weight
    if new_tokens and not weight.requires_grad:
        raise ValueError(
            f"The chat template brings tokens that the model has no embeddings for ({', '.join(new_tokens)}), and an "
            "adapter or a frozen backbone would leave the new ones random. Train the whole model, or use a chat "
            "template (`chat_template_path`) made for this model."
        )
