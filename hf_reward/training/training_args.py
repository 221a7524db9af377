"""`RewardConfig`: `TrainingArguments` with the settings of reward models.

Every field of TRL 1.16's `RewardConfig` is accepted with the same meaning; docs/migration.md lists the defaults that
differ.
"""

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


@dataclass(repr=False)  # the generated one would show tokens; that of TrainingArguments does not
class RewardConfig(TrainingArguments):
    """Settings of a reward-model training run, in addition to those of `TrainingArguments`."""

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs", "model_card"]  # noqa: RUF012 - read by transformers

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for the model, checkpoints, metrics and curves."}
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate."})
    logging_steps: float = field(
        default=10, metadata={"help": "Steps between log entries. A value below 1 is a fraction of all steps."}
    )
    bf16: bool | None = field(  # pyright: ignore[reportIncompatibleVariableOverride] - None until `__post_init__`
        default=None,
        metadata={"help": "Train with bfloat16 mixed precision. Defaults to true if the accelerator supports it."},
    )

    # model
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Keyword arguments for loading the model with `AutoModelForRewardScoring.from_pretrained`."},
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Allow models and tokenizers from the Hub to run their own code."}
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "Set the dropout of the backbone to 0; `lora_dropout` is unchanged."}
    )
    train_vision: bool = field(
        default=False,
        metadata={
            "help": "For a vision-language model: also train the vision tower and its projector. By default, they are "
            "frozen and the features of each image are computed once."
        },
    )
    head_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of the reward head. Defaults to 2 / hidden size, or `learning_rate` if that is "
            "higher, for a head that starts at zero on a trainable backbone; otherwise to `learning_rate`."
        },
    )

    num_reward_heads: int = field(
        default=1,
        metadata={
            "help": "Number of reward heads on the backbone, each trained on its own bootstrap sample of the rows. The "
            "reward is their mean; their spread is the uncertainty."
        },
    )

    # data
    max_length: int | None = field(
        default=1024,
        metadata={"help": "Longest sequence in tokens, prompt and response together; 0 for no limit."},
    )
    over_length: str = field(
        default="truncate_prompt",
        metadata={
            "help": "Policy for rows longer than `max_length`. TRL uses 'drop'.",
            "metavar": "truncate_prompt|drop|error",
        },
    )
    separator: str = field(default="", metadata={"help": "Text between prompt and response of plain-text rows."})
    chat_template_path: str | None = field(
        default=None, metadata={"help": "Jinja file, or tokenizer, with the chat template to use."}
    )
    eos_token: str | None = field(
        default=None, metadata={"help": "End-of-sequence token. Defaults to the tokenizer's."}
    )
    pad_token: str | None = field(
        default=None, metadata={"help": "Pad token. Defaults to a token that never ends a sequence."}
    )
    pad_to_multiple_of: int | str | None = field(
        default="auto",
        metadata={
            "help": "Pad batches to a multiple of this number of tokens. 'auto' pads only to the longest sequence.",
            "metavar": "int|auto",
        },
    )
    dataset_num_proc: int | None = field(default=None, metadata={"help": "Number of processes that tokenise the data."})
    skip_bad_rows: bool = field(
        default=False, metadata={"help": "Skip and count unreadable rows instead of stopping at the first."}
    )

    shuffle_buffer_size: int = field(
        default=1000,
        metadata={
            "help": "For a stream: number of rows in the buffer from which training rows are drawn at random; 0 keeps "
            "the order."
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
            "help": "Compute each shared prompt once, without padding. 'auto' enables it if the model supports it; "
            "'true' requires it.",
            "metavar": "auto|true|false",
        },
    )
    max_tokens_per_batch: int | None = field(
        default=None,
        metadata={
            "help": "Largest number of tokens in a micro-batch; larger batches are split to save memory. The gradient "
            "is that of the complete batch."
        },
    )
    length_bucketing: str = field(
        default="auto",
        metadata={
            "help": "Put rows of similar length into a batch. 'auto' enables it if batches are padded. Evaluation "
            "results keep the order of the data.",
            "metavar": "auto|true|false",
        },
    )
    group_by_prompt: str = field(
        default="auto",
        metadata={
            "help": "Put several rows of a prompt into a batch, so that a packed batch computes what they share once. "
            "'auto' keeps the rows in random order.",
            "metavar": "auto|true|false",
        },
    )
    cache_features: str = field(
        default="auto",
        metadata={
            "help": "Compute the features of a frozen backbone once and train the head on them. 'auto' enables it for "
            "two or more epochs; 'true' requires it.",
            "metavar": "auto|true|false",
        },
    )

    # loss
    loss_type: str = field(
        default="bradley_terry",
        metadata={
            "help": "Loss; 'rao_kupper' and 'davidson' model ties, 'plackett_luce' is for ranked lists.",
            "metavar": "bradley_terry|hinge|rao_kupper|davidson|plackett_luce",
        },
    )
    label_smoothing: float = field(
        default=0.0, metadata={"help": "Probability that a preference label is wrong, in [0, 0.5)."}
    )
    center_rewards_coefficient: float | None = field(
        default=None, metadata={"help": "Weight of the penalty that keeps the mean reward near zero; 0.01 is common."}
    )
    length_penalty: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the penalty on the correlation of reward and response length in a batch; not part of "
            "the evaluation loss."
        },
    )
    tie_parameter: float | None = field(
        default=None,
        metadata={"help": "Tie parameter: theta of 'rao_kupper' (above 1, default 2) or nu of 'davidson' (default 1)."},
    )

    # memory
    activation_checkpointing: bool | None = field(
        default=None,
        metadata={"help": "Recompute activations in the backward pass (formerly `gradient_checkpointing`)."},
    )
    activation_checkpointing_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keyword arguments of activation checkpointing."}
    )
    activation_offloading: bool = field(
        default=False, metadata={"help": "Keep activations in CPU memory between the forward and the backward pass."}
    )

    # health
    health_checks: bool = field(
        default=True,
        metadata={
            "help": "Warn if rewards collapse, explode or do not fit the training data, if accuracy is below chance or "
            "no better than the length baseline, and if gradients are not finite."
        },
    )

    # output
    model_card: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Entries for the model card: `license`, `language`, `dataset` (Hub ids), `model_name`, `tags`, "
            "`base_model` (Hub id)."
        },
    )
    hub_training_state: bool = field(
        default=False,
        metadata={"help": "Allow values of `hub_strategy` that also publish the optimizer and RNG states."},
    )
    allow_changed_run: bool = field(
        default=False,
        metadata={
            "help": "Resume from a checkpoint even if data, model or settings have changed. A warning lists the "
            "differences."
        },
    )
    plot_curves: bool = field(default=True, metadata={"help": "Write training_curves.png to `output_dir`."})

    def __post_init__(self) -> None:
        if self.bf16 and self.fp16:
            raise ValueError(
                f"`{setting('bf16', True)}` and `{setting('fp16', True)}` both set the precision. Set one of them."
            )
        if self.bf16 is None:
            self.bf16 = not self.fp16 and not self.use_cpu and is_torch_bf16_gpu_available()  # pyright: ignore[reportIncompatibleVariableOverride]
        self.pad_to_multiple_of = _multiple(self.pad_to_multiple_of)
        self.max_length = self.max_length or None
        for name in ("packing", "length_bucketing", "group_by_prompt", "cache_features"):
            setattr(self, name, str(auto_or_bool(name, getattr(self, name))).lower())  # text, as from the parser
        for name in ("length_bucketing", "group_by_prompt"):
            if self.choice(name) is True and self.train_sampling_strategy != "random":
                raise ValueError(
                    f"`{setting(name, True)}` and "
                    f"`{setting('train_sampling_strategy', self.train_sampling_strategy)}` both set which rows share "
                    "a batch. Set one of them."
                )
        if self.max_tokens_per_batch is not None and self.max_tokens_per_batch < 1:
            raise ValueError(f"`max_tokens_per_batch` must be 1 or more, or None, but is {self.max_tokens_per_batch}.")
        if type(self.num_reward_heads) is not int or self.num_reward_heads < 1:
            raise ValueError(f"`num_reward_heads` must be an integer of 1 or more, but is {self.num_reward_heads!r}.")
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
        self._refuse_unsuitable_settings()
        self._refuse_public_training_state()
        self._require_reporters()
        self._check_length_penalty()
        self._check_card()
        self.loss  # noqa: B018 - builds the loss, so that a wrong setting stops the run here
        self.format_rule  # noqa: B018

    def _refuse_unsuitable_settings(self) -> None:
        """Refuse settings of `TrainingArguments` that do not fit reward models or are replaced by other settings."""
        if self.label_smoothing_factor:
            raise ValueError(
                f"`{setting('label_smoothing_factor', self.label_smoothing_factor)}` smooths class labels, which "
                "reward models do not have. Use `label_smoothing` for the probability that a preference is wrong."
            )
        if self.batch_eval_metrics or not self.eval_do_concat_batches:
            raise ValueError(
                f"`{setting('batch_eval_metrics', True)}` and `{setting('eval_do_concat_batches', False)}` return the "
                "rewards batch by batch, but accuracy and its interval are computed once over the complete split. "
                "Leave both unset; `eval_accumulation_steps` saves memory."
            )
        if self.include_for_metrics:
            raise ValueError(
                f"`{setting('include_for_metrics', self.include_for_metrics)}` is not available: `compute_metrics` "
                "gets one row of rewards and ranks per dataset row, but the inputs and losses of a batch do not have "
                "that shape. Leave it unset."
            )
        if self.enable_jit_checkpoint:
            raise ValueError(
                f"`{setting('enable_jit_checkpoint', True)}` writes another checkpoint, which is not atomic. "
                "Leave it unset: SIGTERM saves a complete checkpoint and ends the run in any case."
            )

    def _require_reporters(self) -> None:
        """Refuse missing reporters here: `Trainer` would look for them after the model and the data are prepared."""
        names = [self.report_to] if isinstance(self.report_to, str) else list(self.report_to or [])
        known = {*get_available_reporting_integrations(), "flyte", "azure_ml"}  # transformers cannot detect these two
        missing = [name for name in names if name not in known and name not in ("none", "all")]
        if missing:
            raise ValueError(
                f"`{setting('report_to')}` names reporters that are unknown or not installed: {', '.join(missing)}. "
                "Install the package, or use one of: "
                f"{', '.join(sorted(known - {'flyte', 'azure_ml'})) or 'none'}."
            )

    def _check_length_penalty(self) -> None:
        """Refuse batches without a meaningful correlation: it needs several rows, and rows of all lengths."""
        if not self.length_penalty:
            return
        name = f"`{setting('length_penalty', self.length_penalty)}`"
        if self.max_tokens_per_batch is not None:
            raise ValueError(
                f"{name} correlates rewards and lengths over a batch, which "
                f"`{setting('max_tokens_per_batch', self.max_tokens_per_batch)}` splits by length. Set one "
                "of them; `activation_checkpointing` saves memory too."
            )
        if self.choice("length_bucketing") is True or self.train_sampling_strategy == "group_by_length":
            raise ValueError(
                f"{name} needs rows of all lengths in a batch, but `length_bucketing` or `train_sampling_strategy` "
                "puts rows of similar length together. Set `length_bucketing` to 'auto' and the strategy to 'random'."
            )
        if self.per_device_train_batch_size < 2:
            raise ValueError(
                f"{name} needs at least two rows in a batch (8 or more are recommended): the correlation of a single "
                f"pair is always 1 or -1. `per_device_train_batch_size` is {self.per_device_train_batch_size}; raise "
                "it and lower `gradient_accumulation_steps` instead."
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
                "the random generators' state with the model. Use 'every_save' or 'end', or allow it with "
                f"`{setting('hub_training_state', True)}`."
            )

    @property
    def card(self) -> dict[str, Any]:
        """Return `model_card` as a dict; `TrainingArguments` has parsed JSON text."""
        return dict(self.model_card) if isinstance(self.model_card, dict) else {}

    @property
    def loss(self) -> PreferenceLoss:
        """Return the loss with checked settings."""
        return PreferenceLoss(
            loss_type=self.loss_type,
            label_smoothing=self.label_smoothing,
            center_rewards_coefficient=self.center_rewards_coefficient,
            tie_parameter=self.tie_parameter,
            length_penalty=self.length_penalty,
        )

    def choice(self, name: str) -> bool | Literal["auto"]:
        """Return a setting that is "auto", true or false; its field is text because of the command line's parser."""
        return auto_or_bool(name, getattr(self, name))

    @property
    def order_seed(self) -> int:
        """Return the seed of the row order."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def format_rule(self) -> FormatRule:
        """Return the rule that converts rows to tokens."""
        return FormatRule(max_length=self.max_length, over_length=self.over_length, separator=self.separator)


def _multiple(value: int | str | None) -> int | None:
    """Convert `pad_to_multiple_of` from the command line or Python."""
    if value is None or (isinstance(value, str) and value.lower() in ("auto", "none", "null")):
        return None
    multiple = int(value)
    if multiple < 1:
        raise ValueError(f"`pad_to_multiple_of` must be 1 or more, 'auto' or None, but is {value}.")
    return multiple
