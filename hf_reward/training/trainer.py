"""Model + data + settings -> trained reward model. `RewardTrainer` joins the stations; each job is done in its own.

The heart is `compute_loss`: rewards of the batch, then the loss that the settings name.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from peft import PeftConfig
from torch import Tensor, nn
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from hf_reward.metrics.preference import preference_metrics, strict_pairs
from hf_reward.modeling.checkpoint_record import CheckpointRecord, describe
from hf_reward.modeling.probes import probe_record
from hf_reward.modeling.reward_head import RewardModel, bare_model, head_parameters
from hf_reward.modeling.rewards import compute_rewards
from hf_reward.modeling.sharding import HeadInFloat32, refuse_what_sharding_loses
from hf_reward.preprocessing.tokenizer import prepare_tokenizer
from hf_reward.publishing.card.render import write_model_card
from hf_reward.publishing.compatibility import consumers_of_folder
from hf_reward.training.callbacks import TrainingCurves, epoch_history
from hf_reward.training.data_loading import without_padding
from hf_reward.training.ensemble_loss import EnsembleTrainer
from hf_reward.training.evaluation_table import show_tables
from hf_reward.training.health_callback import HealthMonitor
from hf_reward.training.running_statistics import BatchStatistics
from hf_reward.training.setup import (
    added_tokens,
    default_output_dir,
    fit_to_positions,
    load_model,
    own_tokenizer,
    prepare_model,
    refuse_data_parallel,
    refuse_two_head_rates,
    training_settings,
    warn_of_partial_penalties,
)
from hf_reward.training.training_args import RewardConfig

logger = logging.getLogger(__name__)

LABELS = ("ranks", "lengths", "groups", "sources", "words", "characters", "losses", "loss_weights", "row")
"""What `prediction_step` returns beside rewards, in this order, each with one leading entry per dataset row."""


class RewardTrainer(EnsembleTrainer):
    """Trains a reward model from preferences.

    Takes what TRL's `RewardTrainer` takes: change the import. The model may be a name, a stock one-label classifier or
    a PEFT model; data may come in every layout that `preferences` reads. The caller's tokenizer and settings are not
    changed: the trainer works on copies.

    Args:
        model: A name or folder, a sequence classifier with one label, or PEFT's wrapper of one.
        args: Settings; by default written to `<model>-Reward`.
        data_collator: Replaces the packed or padded collator that suits the model.
        train_dataset: Preference data in any form that `prepare_preferences` takes.
        eval_dataset: The same, or a dict of several.
        processing_class: The tokenizer; by default the model's own.
        model_init: Makes a fresh model, for `hyperparameter_search`.
        compute_metrics: Further metrics, from an `EvalPrediction` whose `predictions` are the rewards and whose
            `label_ids` are the ranks, both `(R, K)` with reward 0 and rank -100 at padded places. They are added to
            the built-in ones.
        callbacks: As in `Trainer`.
        optimizers: As in `Trainer`.
        optimizer_cls_and_kwargs: As in `Trainer`.
        preprocess_logits_for_metrics: As in `Trainer`; sees rewards and `LABELS`.
        quantization_config: For a `model` given by name.
        peft_config: Wrap the model with this adapter; its head is trained and saved whatever `task_type` says.

    Raises:
        ValueError: If data or settings cannot lead to a reward model; the message says what to change.
    """

    args: RewardConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    loss_is_scaled_for_ga = True  # `compute_loss` divides by the weights of the whole accumulated batch itself
    _tag_names = ("reward-model", "hf_reward")

    def __init__(
        self,
        model: str | RewardModel | None = None,
        args: RewardConfig | None = None,
        data_collator: Callable[..., Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        model_init: Callable[..., PreTrainedModel] | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[..., Any] | None = None,
        quantization_config: Any | None = None,
        peft_config: PeftConfig | None = None,
    ) -> None:
        if train_dataset is None and eval_dataset is None:
            raise ValueError(
                "`train_dataset` is required. To evaluate a model without training it, pass `eval_dataset` alone."
            )
        args = copy.copy(args) if args is not None else RewardConfig(output_dir=default_output_dir(model))
        refuse_data_parallel(args)
        refuse_two_head_rates(args, optimizers[0])
        warn_of_partial_penalties(args)
        set_seed(args.seed)  # an encoder's new head is random
        own = processing_class or own_tokenizer(model, args)
        tokenizer = prepare_tokenizer(
            own,
            pad_token=args.pad_token,
            eos_token=args.eos_token,
            chat_template_path=args.chat_template_path,
            trust_remote_code=args.trust_remote_code,
        )
        self.user_peft_config, self.user_metrics = peft_config, compute_metrics
        self._new_tokens = added_tokens(own, tokenizer)
        self.reward_statistics: dict[str, float] = {}
        self.evaluation: dict[str, Any] = {}
        self.baselines: list[dict[str, Any]] = []
        """Rules that never read, on the evaluation data, for the card: see `CheckpointRecord.baselines`."""
        self.command: str | None = None
        """The command line that started this run, for the card."""
        self._epoch_logs: dict[str, float] = {}
        """What `_EpochLog` adds to the next entry of the log."""
        self._probes: dict[str, Any] | None = None
        self._statistics, self._health = BatchStatistics(), HealthMonitor(args.health_checks)
        if isinstance(model, str):
            model = load_model(model, args, quantization_config)
        elif quantization_config is not None or args.model_init_kwargs:
            raise ValueError(
                "`quantization_config` and `model_init_kwargs` need `model` as a name; it is already loaded."
            )
        if model is not None:
            model = prepare_model(model, args, tokenizer, peft_config, self._new_tokens)
            args = fit_to_positions(args, model)
        super().__init__(
            model=model,
            args=args,
            tokenizer=tokenizer,
            loss_function=args.loss,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            model_init=model_init,
            compute_metrics=self._compute_metrics,
            callbacks=[
                HeadInFloat32(),
                _EpochLog(self),
                self._health,
                *([TrainingCurves()] if args.plot_curves else []),
                *(callbacks or []),
            ],
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        refuse_what_sharding_loses(getattr(self.accelerator.state, "fsdp_plugin", None), self.model)
        show_tables(self)
        self.label_names = list(LABELS)
        bare_model(self.model).add_model_tags(list(self._tag_names))

    # --- what goes in ---

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Make a fresh model for a trial, prepared like one passed in."""
        model = super().call_model_init(trial)
        return prepare_model(model, self.args, self.processing_tokenizer, self.user_peft_config, self._new_tokens)

    def _hp_search_setup(self, trial: Any) -> None:
        super()._hp_search_setup(trial)
        if trial is not None:
            self.loss_function = self.args.loss  # a trial may have changed its settings

    # --- the heart ---

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Rewards of the batch, then the loss named in the settings; in evaluation without its length penalty.

        Args:
            model: The (wrapped) model.
            inputs: A collated batch.
            return_outputs: Whether to return the rewards too.
            num_items_in_batch: Sum of the group weights over the whole accumulated batch of all processes.

        Returns:
            The loss, or (loss, {"rewards": (G, K)}).

        Raises:
            FloatingPointError: If the training loss is not finite; the message names the rows.
        """
        with self._packed():  # `training_step` is inside already; who calls this alone is not
            head_rewards = self._head_rewards(model, inputs)  # (M, G, K), with M = 1 in evaluation: their mean
        # Evaluation batches hold rows of like length, so a correlation over one of them would mean something else.
        loss_function = self.loss_function if model.training else self.loss_function.of_preferences
        loss = self._loss_of_heads(loss_function, head_rewards, inputs, num_items_in_batch)
        rewards = head_rewards.mean(0)
        if model.training:
            self._require_finite(loss, rewards, inputs)
            self._health.add(inputs, rewards.detach(), self.loss_function)
            weight = self._group_weights(inputs).sum()
            total = loss.detach() * (weight if num_items_in_batch is None else num_items_in_batch)
            self._statistics.add(total, weight, rewards.detach(), inputs["ranks"], inputs.get("num_tokens"))
            if num_items_in_batch is not None and self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes  # the gradient is averaged over processes afterwards
        return (loss, {"rewards": rewards}) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Any:
        """Sum of the group weights of an accumulated batch, over all processes: what its loss is divided by."""
        if not batch_samples:
            return None
        weights = [self._group_weights(batch).sum() for batch in batch_samples]
        total = torch.stack(weights).sum().to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            gathered: Any = self.accelerator.gather(total)
            total = gathered.sum()
        return total

    def _require_finite(self, loss: Tensor, rewards: Tensor, inputs: Mapping[str, Tensor]) -> None:
        if torch.isfinite(loss):
            return
        bad = ~torch.isfinite(rewards).all(1)
        rows = inputs["row"][bad if bad.any() else slice(None)].tolist()
        checkpoint = self.state.best_model_checkpoint or self.args.output_dir
        raise FloatingPointError(
            f"The loss is {loss.item()} at step {self.state.global_step}, from the data rows {rows}. Training stopped "
            "before "
            f"this step changed the weights; earlier checkpoints in {checkpoint} are untouched. Look at those rows, "
            "lower the learning rate, or train in bfloat16 or float32 instead of float16."
            f"{self._health.blame(self.model)}"  # pyright: ignore[reportArgumentType]
        )

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of one batch, in micro-batches if it was split, with activations in CPU memory if asked.

        Args:
            model: The (wrapped) model.
            inputs: A collated batch.
            num_items_in_batch: Sum of the group weights over the whole accumulated batch of all processes.

        Returns:
            The loss, detached.
        """
        with self._packed(), _offload_activations(self.args.activation_offloading):
            if "micro_batches" not in inputs:
                return super().training_step(model, inputs, num_items_in_batch)
            return self._step_in_parts(model, inputs, num_items_in_batch)

    def _step_in_parts(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any) -> Tensor:
        """Add up losses and gradients of micro-batches, each divided by the groups of the whole batch."""
        if num_items_in_batch is None:
            num_items_in_batch = self._get_num_items_in_batch([inputs], self.args.device)
        inputs = self._in_step(inputs)
        last, total = len(inputs["micro_batches"]) - 1, torch.zeros((), device=self.args.device)
        for number, (part, rows) in enumerate(zip(inputs["micro_batches"], inputs["micro_rows"], strict=True)):
            with self._gradients_kept_back(model, number < last):
                if len(rows):
                    total += super().training_step(model, part, num_items_in_batch)
                else:
                    with self.compute_loss_context_manager():
                        nothing = compute_rewards(model, self._prepare_inputs(part)).sum() * 0
                    self.accelerator.backward(nothing)
        return total

    def _in_step(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch with as many micro-batches as any other process has; those added have no rows.

        Sharded models wait for each other in every forward and backward pass, so one pass less would hang them all.
        """
        parts, rows = inputs["micro_batches"], inputs["micro_rows"]
        if self.args.world_size == 1:
            return inputs
        counts: Any = self.accelerator.gather(torch.tensor(len(parts), device=self.args.device))
        missing = int(counts.max()) - len(parts)
        smallest = min(parts, key=lambda part: part["input_ids"].numel())
        nobody = torch.tensor([], dtype=torch.long)
        return {
            **inputs,
            "micro_batches": [*parts, *[smallest] * missing],
            "micro_rows": [*rows, *[nobody] * missing],
        }

    @contextmanager
    def _gradients_kept_back(self, model: nn.Module, keep: bool) -> Iterator[None]:
        """Do not exchange gradients between processes yet."""
        state = self.accelerator.gradient_state
        before = state.sync_gradients
        # FSDP2 would keep a whole gradient on each device meanwhile, and a budget is there to save memory.
        always = self.is_deepspeed_enabled or self.accelerator.is_fsdp2 or state.plugin_kwargs.get("sync_each_batch")
        state._set_sync_gradients(before and not keep)  # DeepSpeed steps its optimizer where this is set
        try:
            with self.accelerator.no_sync(model) if keep and not always else nullcontext():
                yield
        finally:
            state._set_sync_gradients(before)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer, with groups of its own for the head if it has a learning rate of its own."""
        ready_made = self.optimizer is not None  # by the caller, or by an earlier call of `train`
        optimizer = super().create_optimizer(model)
        rate = self.args.head_learning_rate
        if rate is None or ready_made:
            return optimizer
        head = {id(parameter) for _, parameter in head_parameters(model or bare_model(self.model))}
        for group in list(optimizer.param_groups):
            mine = [parameter for parameter in group["params"] if id(parameter) in head]
            if mine:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in head]
                optimizer.add_param_group({**group, "params": mine, "lr": rate})
        return optimizer

    # --- what comes out ---

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """Evaluate one batch.

        Args:
            model: The (wrapped) model.
            inputs: A collated batch.
            prediction_loss_only: Whether rewards are not needed.
            ignore_keys: Unused; there is one output.

        Returns:
            Loss, rewards `(G, K)` if they are needed, and `LABELS`, each with one leading entry per dataset row.
        """
        inputs = self._prepare_inputs(self._in_step(inputs) if "micro_batches" in inputs else inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        losses, weights = self.loss_function.of_groups(
            outputs["rewards"], inputs["ranks"], inputs.get("margins"), inputs.get("probabilities"), inputs["weights"]
        )
        labels = inputs | {"losses": losses, "loss_weights": weights}
        rewards = None if prediction_loss_only else outputs["rewards"]
        return loss.detach(), rewards, tuple(labels[name] for name in LABELS)

    def _compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        labels: dict[str, Any] = dict(zip(LABELS, self._in_dataset_order(prediction.label_ids), strict=True))
        rewards = without_padding(self._in_dataset_order(np.asarray(prediction.predictions)), labels["ranks"])
        metrics = _split_metrics(rewards, labels) | self._metrics_without_leaks(rewards, labels)
        statistics = {"mean": metrics["mean_reward"], "std": metrics["std_reward"]}
        self.reward_statistics = _json_safe({**statistics, "num_rewards": int((labels["ranks"] != -100).sum())})
        present = np.unique(labels["sources"])
        if len(present) > 1:
            for number in present:
                rows = labels["sources"] == number
                if len(strict_pairs(labels["ranks"][rows]).row) == 0:  # ties alone have no accuracy
                    continue
                part = _split_metrics(rewards[rows], {name: values[rows] for name, values in labels.items()})
                name = self._source_names.get(int(number), str(number))
                metrics |= {f"{name}_{key}": part[key] for key in _PER_SOURCE}
        if self.user_metrics is not None:
            metrics |= self.user_metrics(EvalPrediction(predictions=rewards, label_ids=labels["ranks"]))
        numbers = {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0 and _is_number(value)}
        self.evaluation = _json_safe({"step": self.state.global_step, **numbers})
        tokens = self._statistics.tokens(self.accelerator)
        known = tokens or self.state.global_step == 0  # a collator of the user's own may not say
        return metrics | ({"num_tokens": tokens} if known else {})  # of training so far, as in TRL

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, adding accuracy, margin and rewards of the training rows since the last log."""
        logs = {**logs, **self._epoch_logs}  # `evaluate` returns the dict that it logs
        self._epoch_logs = {}
        if "loss" in logs:
            logs |= self._statistics.since_last_log(self.accelerator)
            logs |= self._health.measure(self.model, self._is_sharded())  # pyright: ignore[reportArgumentType]
        super().log(logs, start_time)

    @property
    def health_warnings(self) -> list[dict[str, Any]]:
        """What was said of the run's health, once for each kind: `step`, `kind`, `seen`, `cause`, `cure`."""
        return [warning.to_dict() for warning in self._health.warnings]

    @property
    def history(self) -> list[dict[str, float]]:
        """Training loss and accuracy of each finished epoch."""
        return epoch_history(self.state.log_history)

    def record(self) -> CheckpointRecord:
        """What travels with every save of this model."""
        model: Any = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        probes = self._probes if self._is_sharded() else self._score_probes()
        data = {name: _json_safe(summary.to_dict()) for name, summary in self.data_summaries.items()}
        return replace(
            describe(model, self.processing_tokenizer, self.args.format_rule, probes=probes or {}),
            rows=self.data_summaries["train"].kind if "train" in self.data_summaries else None,
            loss=self.loss_function.settings,
            reward_statistics=self.reward_statistics,
            evaluation=self.evaluation,
            baselines=self.baselines,
            training={
                "steps": self.state.global_step,
                "data": data,
                "settings": training_settings(self.args, model),
                "command": self.command,
            },
            training_texts=self.training_texts,
            card=self.args.card,
        )

    def _score_probes(self) -> dict[str, Any]:
        half = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else None
        sharded = self._is_sharded()
        whole = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        model: Any = self.model_wrapped if sharded else whole
        options: dict[str, Any] = {"separator": self.args.separator, "max_length": self.args.max_length, "half": half}
        if sharded:  # its mixed-precision policy cannot be left out
            return probe_record(model, self.processing_tokenizer, float32=half is None, **options)
        with _without_autocast(model):
            return probe_record(model, self.processing_tokenizer, **options)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save model, tokenizer, record and card; with `push_to_hub` publish them too, as `Trainer` does.

        Args:
            output_dir: Where to; by default `args.output_dir`.
            _internal_call: Whether `Trainer` saves a checkpoint of its own accord.
        """
        if self._is_sharded():
            self._probes = self._score_probes()  # on all processes, as saving itself is
        super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.args.include_num_input_tokens_seen == "no":
            self.state.num_input_tokens_seen = self._statistics.tokens(self.accelerator)
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        token, self.args.hub_token = self.args.hub_token, None  # `Trainer` pickles its settings beside the model
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token
        folder = output_dir or self.args.output_dir
        if self.args.should_save and folder is not None:
            record = self.record()
            record.save(folder)
            write_model_card(folder, record, consumers=consumers_of_folder(folder))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        record = CheckpointRecord.load(str(self.state.best_model_checkpoint))
        if record is not None:  # rewards of the last evaluation belong to weights that are gone
            self.reward_statistics, self.evaluation = record.reward_statistics, record.evaluation

    def create_model_card(  # pyright: ignore[reportIncompatibleMethodOverride] - the rest comes by keyword
        self, model_name: str | None = None, **kwargs: Any
    ) -> None:
        """Write README.md into the output folder.

        Args:
            model_name: Title; by default the folder's name.
            **kwargs: `license`, `language`, `dataset`, `tags`, `base_model` and what else the card's metadata knows;
                all of it is remembered for later saves.
        """
        said = {"model_name": model_name, **kwargs}
        self.args.model_card = self.args.card | {name: value for name, value in said.items() if value is not None}
        if self.is_world_process_zero() and self.args.output_dir is not None:
            folder = self.args.output_dir
            record = replace(CheckpointRecord.load(folder) or self.record(), card=self.args.card)
            write_model_card(folder, record, consumers=consumers_of_folder(folder))


_PER_SOURCE = (
    *("accuracy", "accuracy_ci_low", "accuracy_ci_high", "num_pairs", "num_prompts", "length_baseline"),
    "log_loss",
)


class _EpochLog(TrainerCallback):
    """Logs the training loss and accuracy of each epoch when it ends (after a resume, of the rows since).

    They are added to the entry of that step if there is one, and after the last step to the next one (an evaluation or
    the summary): code that counts entries from the end of `log_history` finds what it finds with `Trainer`.
    """

    def __init__(self, trainer: RewardTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        counted = args.include_num_input_tokens_seen == "no"  # else `Trainer` counts there, padding included
        self.trainer._statistics.begin(state.log_history, state.num_input_tokens_seen if counted else 0)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        logs = self.trainer._statistics.since_last_epoch(self.trainer.accelerator)
        if not logs:
            return
        entries = state.log_history
        if entries and entries[-1]["step"] == state.global_step:
            entries[-1].update(logs)
            self.trainer.callback_handler.on_log(args, state, control, {**logs, "epoch": state.epoch})
        elif control.should_training_stop or control.should_evaluate or state.global_step >= state.max_steps:
            self.trainer._epoch_logs = logs
        else:
            self.trainer.log(logs)


def _split_metrics(rewards: np.ndarray, labels: Mapping[str, np.ndarray]) -> dict[str, float]:
    sizes = {unit: labels[unit] for unit in ("words", "characters")}
    return preference_metrics(rewards, labels["ranks"], labels["lengths"], labels["groups"], **sizes)


@contextmanager
def _without_autocast(model: nn.Module) -> Iterator[None]:
    """Take off the mixed precision that accelerate puts around a model's `forward`."""
    wrapped, original = model.__dict__.get("forward"), model.__dict__.get("_original_forward")
    if wrapped is None or original is None:
        yield
        return
    model.forward = original
    try:
        yield
    finally:
        model.forward = wrapped


def _json_safe(values: dict[str, Any]) -> dict[str, Any]:
    """NaN and infinity are no JSON values; a number that does not exist is null."""
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in values.items()
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _offload_activations(wanted: bool) -> AbstractContextManager[Any]:
    return torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available()) if wanted else nullcontext()
