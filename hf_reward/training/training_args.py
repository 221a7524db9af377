"""`RewardConfig`: only what `TrainingArguments` lacks.

Every field of TRL 1.16's `RewardConfig` is taken with its meaning; the README's table lists the defaults that differ.
"""

import copy
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import get_available_reporting_integrations
from transformers.trainer_utils import HubStrategy
from transformers.utils.import_utils import is_torch_bf16_gpu_available

from hf_reward.data.interface import auto_or_bool, setting
from hf_reward.losses.preference_loss import PreferenceLoss
from hf_reward.preprocessing.tokenization import FormatRule
from hf_reward.publishing.card.render import check_card


@dataclass(repr=False)  # its own would show tokens; that of TrainingArguments does not
class RewardConfig(TrainingArguments):
    """Settings of a reward-model training run, beside those of `TrainingArguments`."""

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs", "model_card"]  # noqa: RUF012 - read by transformers

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for the model, checkpoints, metrics and curves."}
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate (TRL's default)."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps; below 1, a ratio of all."})
    bf16: bool | None = field(  # pyright: ignore[reportIncompatibleVariableOverride] - None until `__post_init__`
        default=None,
        metadata={"help": "bfloat16 autocast. Unset: on where the accelerator supports it, off on a CPU."},
    )

    # model
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Keyword arguments for `AutoModelForRewardScoring.from_pretrained` when `model` is a name."},
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Let models and tokenizers from the Hub run their own code."}
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "Set the backbone's dropout to 0; an adapter's own dropout stays."}
    )
    head_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the reward head; unset, `learning_rate`."}
    )

    num_reward_heads: int = field(
        default=1,
        metadata={
            "help": "Heads on the one backbone, each trained on its own resampling of the rows; rewards are their "
            "mean, their spread is the uncertainty of `RewardScorer.score_with_uncertainty`."
        },
    )

    # data
    max_length: int | None = field(
        default=1024,
        metadata={"help": "Longest sequence in tokens, prompt and response together; None or 0 for no limit."},
    )
    over_length: str = field(
        default="truncate_prompt",
        metadata={"help": "Rows beyond `max_length`: 'truncate_prompt', 'drop' (as TRL does) or 'error'."},
    )
    separator: str = field(default="", metadata={"help": "Text between prompt and response of plain-text rows."})
    chat_template_path: str | None = field(
        default=None, metadata={"help": "Jinja file, or tokenizer, whose chat template to use."}
    )
    eos_token: str | None = field(default=None, metadata={"help": "End-of-sequence token; unset, the tokenizer's."})
    pad_token: str | None = field(
        default=None, metadata={"help": "Pad token; unset, a safe one is chosen. Never one that ends a sequence."}
    )
    pad_to_multiple_of: int | str | None = field(
        default="auto", metadata={"help": "Pad batches to a multiple of this; 'auto' does not pad further."}
    )
    dataset_num_proc: int | None = field(default=None, metadata={"help": "Processes for tokenising."})
    skip_bad_rows: bool = field(
        default=False, metadata={"help": "Count unreadable rows and go on instead of stopping at the first."}
    )

    shuffle_buffer_size: int = field(
        default=1000,
        metadata={
            "help": "Training rows of a stream are drawn at random out of so many; 0 keeps its order. Rows at hand are "
            "shuffled as a whole."
        },
    )
    balance_lengths: bool = field(
        default=False,
        metadata={
            "help": "Drop training rows at random until, for every length difference, the longer response is preferred "
            "as often as the shorter."
        },
    )

    # speed
    packing: str = field(
        default="auto",
        metadata={
            "help": "Compute each shared prompt once and no padding: 'auto' where the model allows it, 'true' (else an "
            "error) or 'false'."
        },
    )
    max_tokens_per_batch: int | None = field(
        default=None,
        metadata={
            "help": "Bound memory: split a batch into micro-batches of at most so many tokens; the gradient stays that "
            "of the whole batch."
        },
    )
    length_bucketing: str = field(
        default="auto",
        metadata={
            "help": "Batches of about equally long rows: 'auto' where batches are padded, 'true' or 'false'. "
            "Evaluation results keep the order of the data."
        },
    )
    cache_features: str = field(
        default="auto",
        metadata={
            "help": "Compute a frozen backbone's features once and train the head on them: 'auto' for several epochs, "
            "'true' (else an error) or 'false'."
        },
    )

    # loss
    loss_type: str = field(
        default="bradley_terry",
        metadata={"help": "'bradley_terry', 'hinge', 'rao_kupper', 'davidson' (ties) or 'plackett_luce' (lists)."},
    )
    label_smoothing: float = field(
        default=0.0, metadata={"help": "Probability that a preference label is wrong, in [0, 0.5)."}
    )
    center_rewards_coefficient: float | None = field(
        default=None, metadata={"help": "Weight of the penalty that draws rewards to mean zero; 0.01 is usual."}
    )
    length_penalty: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the penalty |correlation of reward and response length| over each micro-batch; the "
            "evaluation loss is without it."
        },
    )
    tie_parameter: float | None = field(
        default=None, metadata={"help": "theta of 'rao_kupper' (above 1, default 2) or nu of 'davidson' (default 1)."}
    )

    # memory
    activation_checkpointing: bool | None = field(
        default=None,
        metadata={"help": "Compute activations again in the backward pass (formerly `gradient_checkpointing`)."},
    )
    activation_checkpointing_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keyword arguments of activation checkpointing."}
    )
    activation_offloading: bool = field(
        default=False, metadata={"help": "Keep activations in CPU memory between forward and backward."}
    )

    # health
    health_checks: bool = field(
        default=True,
        metadata={
            "help": "Warn in plain words of collapsed, exploding or unlearned rewards, accuracies of the length rule "
            "or below chance, and broken gradients; see docs/guides/monitoring.md."
        },
    )

    # output
    model_card: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "What the card says beside what was measured: `license`, `language`, `dataset` (Hub ids), "
            "`model_name`, `tags`, `base_model` (Hub id)."
        },
    )
    hub_training_state: bool = field(
        default=False,
        metadata={
            "help": "Allow the `hub_strategy` values that publish the optimizer's and random generators' state too."
        },
    )
    allow_changed_run: bool = field(
        default=False,
        metadata={
            "help": "Go on from a checkpoint although data, model or settings are not those that its run was begun "
            "with; the differences are listed in a warning instead of an error."
        },
    )
    plot_curves: bool = field(default=True, metadata={"help": "Draw training_curves.png into `output_dir`."})

    def __post_init__(self) -> None:
        if self.bf16 and self.fp16:
            raise ValueError(
                f"`{setting('bf16', True)}` and `{setting('fp16', True)}` both say in which precision to compute. Set "
                "one of them."
            )
        if self.bf16 is None:
            self.bf16 = not self.fp16 and not self.use_cpu and is_torch_bf16_gpu_available()  # pyright: ignore[reportIncompatibleVariableOverride]
        self.pad_to_multiple_of = _multiple(self.pad_to_multiple_of)
        self.max_length = self.max_length or None
        for name in ("packing", "length_bucketing", "cache_features"):
            setattr(self, name, str(auto_or_bool(name, getattr(self, name))).lower())  # text, as the parser gives it
        if self.choice("length_bucketing") is True and self.train_sampling_strategy != "random":
            raise ValueError(
                f"`{setting('length_bucketing', True)}` and "
                f"`{setting('train_sampling_strategy', self.train_sampling_strategy)}` both say which rows share a "
                "batch. Set one of them."
            )
        if self.max_tokens_per_batch is not None and self.max_tokens_per_batch < 1:
            raise ValueError(f"`max_tokens_per_batch` must be 1 or more, or None, but is {self.max_tokens_per_batch}.")
        if type(self.num_reward_heads) is not int or self.num_reward_heads < 1:
            raise ValueError(
                f"`num_reward_heads` must be a whole number of 1 or more, but is {self.num_reward_heads!r}."
            )
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # it would only warn on every run
        if "activation_checkpointing" not in TrainingArguments.__dataclass_fields__:  # as in transformers 5.17
            self.gradient_checkpointing = bool(self.activation_checkpointing or self.gradient_checkpointing)
            self.gradient_checkpointing_kwargs = (
                self.activation_checkpointing_kwargs or self.gradient_checkpointing_kwargs
            )
            self.activation_checkpointing = self.gradient_checkpointing
            self.activation_checkpointing_kwargs = self.gradient_checkpointing_kwargs
        super().__post_init__()
        self._refuse_settings_for_others()
        self._refuse_public_training_state()
        self._require_reporters()
        self._check_length_penalty()
        self._check_card()
        self.loss  # noqa: B018 - builds the loss, so that a wrong setting stops the run here
        self.format_rule  # noqa: B018

    def _refuse_settings_for_others(self) -> None:
        """Settings of `TrainingArguments` that do not fit a reward model, or that we do in another way."""
        if self.label_smoothing_factor:
            raise ValueError(
                f"`{setting('label_smoothing_factor', self.label_smoothing_factor)}` smooths class labels, which "
                f"reward models do "
                "not have. Use `label_smoothing` for the probability that a preference is wrong."
            )
        if self.batch_eval_metrics or not self.eval_do_concat_batches:
            raise ValueError(
                f"`{setting('batch_eval_metrics', True)}` and `{setting('eval_do_concat_batches', False)}` hand over "
                "the rewards batch by batch, but accuracy and its interval are computed once over the whole split. "
                "Leave both unset; "
                "`eval_accumulation_steps` saves memory."
            )
        if self.include_for_metrics:
            raise ValueError(
                f"`{setting('include_for_metrics', self.include_for_metrics)}` is not available: `compute_metrics` "
                f"gets "
                "rewards and ranks with one row per dataset row, which tokens and losses of a batch do not have. "
                "Leave it unset."
            )
        if self.enable_jit_checkpoint:
            raise ValueError(
                f"`{setting('enable_jit_checkpoint', True)}` would write a second checkpoint, into its final name. "
                f"Leave it unset: "
                "SIGTERM saves a whole checkpoint and ends the run in any case."
            )

    def _require_reporters(self) -> None:
        """`Trainer` looks for them when the model is loaded and the rows are tokenised."""
        names = [self.report_to] if isinstance(self.report_to, str) else list(self.report_to or [])
        known = {*get_available_reporting_integrations(), "flyte", "azure_ml"}  # these two cannot be looked for
        missing = [name for name in names if name not in known and name not in ("none", "all")]
        if missing:
            raise ValueError(
                f"`{setting('report_to')}` names {', '.join(missing)}, whose package is not installed or unknown. "
                f"Install it, or name what is there: {', '.join(sorted(known - {'flyte', 'azure_ml'})) or 'none'}."
            )

    def _check_length_penalty(self) -> None:
        """A correlation needs the responses of several rows, and rows of all lengths."""
        if not self.length_penalty:
            return
        name = f"`{setting('length_penalty', self.length_penalty)}`"
        if self.max_tokens_per_batch is not None:
            raise ValueError(
                f"{name} correlates rewards and lengths over a batch, which "
                f"`{setting('max_tokens_per_batch', self.max_tokens_per_batch)}` computes in parts of like length. "
                f"Set one of "
                "them; `activation_checkpointing` saves memory too."
            )
        if self.choice("length_bucketing") is True or self.train_sampling_strategy == "group_by_length":
            raise ValueError(
                f"{name} needs rows of all lengths in a batch, but `length_bucketing` or `train_sampling_strategy` "
                "puts rows of like length together. Set `length_bucketing` to 'auto' and the strategy to 'random'."
            )
        if self.per_device_train_batch_size < 2:
            raise ValueError(
                f"{name} needs two rows or more in a batch, 8 better: a single pair has |correlation| 1 whatever its "
                f"rewards are. `per_device_train_batch_size` is {self.per_device_train_batch_size}; raise it and lower "
                "`gradient_accumulation_steps` instead."
            )

    def _check_card(self) -> None:
        if self.model_card is not None and not isinstance(self.model_card, dict):
            raise ValueError(f"`model_card` must be a mapping such as {{license: mit}}, but is {self.model_card!r}.")
        check_card(self.card)

    def _refuse_public_training_state(self) -> None:
        publishes = self.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)
        if self.push_to_hub and publishes and not self.hub_training_state:
            raise ValueError(
                f"`{setting('hub_strategy', HubStrategy(self.hub_strategy).value)}` publishes the optimizer's and "
                f"the random "
                "generators' state with the model. Use 'every_save' or 'end', or allow it with "
                f"`{setting('hub_training_state', True)}`."
            )

    @property
    def card(self) -> dict[str, Any]:
        """`model_card` as a dict; what came as JSON text was read by `TrainingArguments`."""
        return dict(self.model_card) if isinstance(self.model_card, dict) else {}

    @property
    def loss(self) -> PreferenceLoss:
        """The loss with its settings checked."""
        return PreferenceLoss(
            loss_type=self.loss_type,
            label_smoothing=self.label_smoothing,
            center_rewards_coefficient=self.center_rewards_coefficient,
            tie_parameter=self.tie_parameter,
            length_penalty=self.length_penalty,
        )

    def choice(self, name: str) -> bool | Literal["auto"]:
        """A setting that is "auto", true or false, whose field holds it as text for the parser of the command line."""
        return auto_or_bool(name, getattr(self, name))

    @property
    def order_seed(self) -> int:
        """Seed of the order of rows."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def format_rule(self) -> FormatRule:
        """How rows become tokens."""
        return FormatRule(max_length=self.max_length, over_length=self.over_length, separator=self.separator)


def for_a_trial(args: RewardConfig, folder: str, **changes: Any) -> RewardConfig:
    """Settings of a few steps in another folder: nothing that reaches out, no schedule, no evaluation, no checkpoint.

    Args:
        args: The caller's settings; they stay as they are.
        folder: Where the trial may write.
        **changes: Further settings, taken without checks.

    Returns:
        A copy.
    """
    trial = copy.copy(args)
    settings: dict[str, Any] = {
        "output_dir": folder,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "logging_steps": 1,
        "plot_curves": False,
        "push_to_hub": False,
        "report_to": [],
        "load_best_model_at_end": False,
        "resume_from_checkpoint": None,
        "eval_strategy": type(args.eval_strategy)("no"),
        "save_strategy": type(args.save_strategy)("no"),
        **changes,
    }
    for name, value in settings.items():
        setattr(trial, name, value)
    return trial


def _multiple(value: int | str | None) -> int | None:
    """`pad_to_multiple_of` as the command line or Python gives it."""
    if value is None or (isinstance(value, str) and value.lower() in ("auto", "none", "null")):
        return None
    multiple = int(value)
    if multiple < 1:
        raise ValueError(f"`pad_to_multiple_of` must be 1 or more, 'auto' or None, but is {value}.")
    return multiple
