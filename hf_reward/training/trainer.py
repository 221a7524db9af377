"""Model + data + settings -> trained reward model. `RewardTrainer` connects `Trainer`'s hooks to its collaborators.

Start with `compute_loss`: it computes the rewards of a batch and then the loss. The other hooks delegate to
collaborators in their own modules: `prepared_data`, `data_loading`, `batch_checks`, `feature_cache`, `ensemble_loss`,
`evaluation`, `resume`, `background_push`, `run_record`.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from hf_reward.metrics.leakage import leaked_rows, warn_about_leaks
from hf_reward.modeling.checkpoint_record import CheckpointRecord
from hf_reward.modeling.encoder import tokenizer_to_save
from hf_reward.modeling.head_ensemble import save_heads
from hf_reward.modeling.reward_head import RewardModel, unwrap_model
from hf_reward.modeling.rewards import compute_rewards, computed_tokens
from hf_reward.modeling.sharding import HeadInFloat32, check_fsdp_settings, is_sharded, saves_only_shards
from hf_reward.modeling.transformers_4 import add_transformers_4_fields
from hf_reward.publishing.push import PushReport, explained
from hf_reward.training.background_push import PUSH_OPTIONS, BackgroundPush, Publisher
from hf_reward.training.batch_checks import BatchCheck
from hf_reward.training.callbacks import EpochLog, EpochOrder, LoadedCheckpoint, TrainingCurves, epoch_history
from hf_reward.training.collators import choose_collator, packed_if, with_token_budget
from hf_reward.training.data_loading import BatchLoader, number_of_passes, require_rows, rows_of
from hf_reward.training.ensemble_loss import HeadsLoss, group_weights
from hf_reward.training.evaluation import LABELS, EvaluationResult, batch_labels, in_dataset_order, with_metrics
from hf_reward.training.evaluation_table import show_tables
from hf_reward.training.feature_cache import FeatureCache
from hf_reward.training.head_rate import HeadRate, separate_head_group
from hf_reward.training.health_callback import HealthMonitor
from hf_reward.training.micro_batches import accumulate_micro_batches, equalize_micro_batches, offloaded_activations
from hf_reward.training.prepared_data import PreferenceData
from hf_reward.training.renamed_weights import load_if_renamed
from hf_reward.training.resume import CheckpointWriter, since_resume
from hf_reward.training.run_fingerprint import run_fingerprint
from hf_reward.training.run_record import json_safe, numbers_of, run_record, score_probes, write_card
from hf_reward.training.running_statistics import BatchStatistics
from hf_reward.training.settings_checks import check_settings, require_a_batch, with_even_batches
from hf_reward.training.setup import (
    default_output_dir,
    images_of_run,
    limit_to_positions,
    loaded_model,
    prepare_model,
    prepared_tokenizer,
)
from hf_reward.training.stop_signal import STOPPED, StopAfterCheckpoint, StopSignal, log_stopped
from hf_reward.training.training_args import RewardConfig


class RewardTrainer(Trainer):
    """Trains a reward model from preferences.

    It accepts the arguments of TRL's `RewardTrainer`, so code for TRL only needs another import. The caller's tokenizer
    and settings are not changed: the trainer works on copies.

    Args:
        model: A name or folder, a sequence classifier with one label, or PEFT's wrapper of one.
        args: Settings; by default with the output folder `<model>-Reward`.
        data_collator: Replaces the default packed or padded collator.
        train_dataset: Preference data in any form that `prepare_preferences` accepts.
        eval_dataset: The same, or a dict of several.
        processing_class: The tokenizer; by default that of the model.
        model_init: Makes a new model, for `hyperparameter_search`.
        compute_metrics: Computes further metrics from an `EvalPrediction` whose `predictions` are the rewards and whose
            `label_ids` are the ranks, both `(R, K)` with reward 0 and rank -100 at padding. They are added to the
            built-in metrics.
        callbacks: As in `Trainer`.
        optimizers: As in `Trainer`.
        optimizer_cls_and_kwargs: As in `Trainer`.
        preprocess_logits_for_metrics: As in `Trainer`; receives rewards and `LABELS`.
        quantization_config: For a `model` given by name.
        peft_config: Adapter to add; the head is trained and saved for every `task_type`.

    Raises:
        ValueError: If data or settings are not valid; the message contains the remedy.
    """

    args: RewardConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    loss_is_scaled_for_ga = True  # `compute_loss` itself divides by the weights of the full accumulated batch
    _tag_names = ("reward-model", "hf_reward")
    push_in_progress: Any

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
        check_settings(args, optimizers[0])
        set_seed(args.seed)  # the new head of an encoder is random
        tokenizer, self._new_tokens = prepared_tokenizer(model, args, processing_class)
        self.user_peft_config, self.user_metrics = peft_config, compute_metrics
        self.head_rate = HeadRate(enabled=optimizers[0] is None)
        prepared = loaded_model(model, args, quantization_config)
        if prepared is not None:
            prepared = prepare_model(prepared, args, tokenizer, peft_config, self._new_tokens)
            limit_to_positions(args, prepared)
            self.head_rate.set_default(args, prepared)
        self.images = images_of_run(prepared, args, tokenizer)
        self._make_collaborators(args, tokenizer)
        train_rows = self.data.prepare(train_dataset, "train")
        eval_rows = self.data.prepare_evaluation(eval_dataset)
        require_a_batch(args, train_rows)
        args = with_even_batches(args)
        collator = choose_collator(prepared, args, tokenizer, data_collator, self.images)
        super().__init__(
            model=prepared,
            args=args,
            data_collator=with_token_budget(collator, args),
            train_dataset=train_rows,
            eval_dataset=eval_rows,
            processing_class=tokenizer,
            model_init=model_init,
            compute_metrics=_no_metrics,
            callbacks=[*self._own_callbacks(args), *(callbacks or [])],
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        check_fsdp_settings(getattr(self.accelerator.state, "fsdp_plugin", None), self.model)
        if args.should_log:
            warn_about_leaks(self.train_dataset, self.eval_dataset)
        show_tables(self)
        self.label_names = list(LABELS)
        unwrap_model(self.model).add_model_tags(list(self._tag_names))

    def _make_collaborators(self, args: RewardConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        """Make the collaborators that need no accelerator; `create_accelerator_and_postprocess` makes the others."""
        self.processing_tokenizer, self.loss_function = tokenizer, args.loss
        self.data, self.heads = PreferenceData(args, tokenizer, self.images), HeadsLoss(args)
        self.checkpoints, self.stop_signal = CheckpointWriter(args), StopSignal()
        self.publisher, args.hub_token = Publisher(args, args.hub_token), None
        self.statistics, self.health = BatchStatistics(), HealthMonitor(args.health_checks)
        self.data_summaries = self.data.summaries
        self.reward_statistics: dict[str, Any] = {}
        self.evaluation: dict[str, Any] = {}
        self.baselines: list[dict[str, Any]] = []
        """Trivial baselines on the evaluation data, for the model card: see `CheckpointRecord.baselines`."""
        self.command: str | None = None
        """The command line of this run, for the model card."""

    def _own_callbacks(self, args: RewardConfig) -> list[TrainerCallback]:
        own = [HeadInFloat32(), EpochOrder(self), LoadedCheckpoint(self), EpochLog(self), self.health]
        return [*own, *([TrainingCurves()] if args.plot_curves else [])]

    def create_accelerator_and_postprocess(self) -> None:
        """Make the accelerator and the collaborators that need it; each trial of a search repeats this.

        Raises:
            ValueError: If there are several heads and the model is sharded with FSDP or DeepSpeed.
        """
        super().create_accelerator_and_postprocess()
        sharding = "FSDP" if self.is_fsdp_enabled else "DeepSpeed" if self.is_deepspeed_enabled else None
        self.heads.refuse_sharding(sharding)
        self.loss_function = self.args.loss  # a trial may have changed its settings
        self.loader = BatchLoader(self.args, self.accelerator)
        self.checks = BatchCheck(self.args, self.accelerator, self.processing_tokenizer)
        self.features = FeatureCache(self.args, self.accelerator)

    # --- the model ---

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Make and prepare a new model for a trial."""
        model = super().call_model_init(trial)
        model = prepare_model(model, self.args, self.processing_tokenizer, self.user_peft_config, self._new_tokens)
        self.head_rate.set_default(self.args, model)
        return model

    def unwrapped_model(self) -> Any:
        """Return the model (with its adapter) without the wrappers of accelerate and `torch.compile`."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def is_sharded(self) -> bool:
        """Whether the model is sharded over processes, so that one alone cannot run it."""
        return is_sharded(self.model, self.model_wrapped)  # pyright: ignore[reportArgumentType]

    def packed(self) -> AbstractContextManager[Any]:
        """Return a context in which the model accepts the batches of the run's collator."""
        return packed_if(self.data_collator, self.unwrapped_model())

    # --- the loss ---

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the rewards of a batch and their loss; in evaluation without the length penalty.

        Args:
            model: The (wrapped) model.
            inputs: A collated batch.
            return_outputs: Whether to return the rewards too.
            num_items_in_batch: Sum of the group weights over the accumulated batch of all processes.

        Returns:
            The loss, or (loss, {"rewards": (G, K)}).

        Raises:
            FloatingPointError: If the training loss is not finite; the message names the rows.
        """
        with self.packed():  # `training_step` has entered it already, but other callers have not
            head_rewards = self.heads.rewards(model, inputs)  # (M, G, K), with M = 1 in evaluation: their mean
        # Evaluation batches hold rows of similar length, so the length penalty of a batch would be meaningless.
        loss_function = self.loss_function if model.training else self.loss_function.of_preferences
        loss = self.heads.loss(loss_function, head_rewards, inputs, num_items_in_batch)
        rewards = head_rewards.mean(0)
        if model.training:
            loss = self._record_training_batch(loss, rewards, inputs, num_items_in_batch)
        return (loss, {"rewards": rewards}) if return_outputs else loss

    def _record_training_batch(
        self, loss: Tensor, rewards: Tensor, inputs: Mapping[str, Tensor], num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        """Add a batch to the statistics, and scale its loss because gradients are averaged over processes."""
        model: Any = self.model
        self.health.require_finite(loss, rewards, inputs, model, self.state, str(self.args.output_dir))
        self.health.add(inputs, rewards.detach(), self.loss_function)
        weight = group_weights(self.loss_function, inputs).sum()
        total = loss.detach() * (weight if num_items_in_batch is None else num_items_in_batch)
        given, computed = inputs.get("num_tokens"), computed_tokens(inputs)
        self.statistics.add(total, weight, rewards.detach(), inputs["ranks"], given, computed)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            return loss * self.accelerator.num_processes  # the gradient is averaged over processes afterwards
        return loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Return the batches of an optimizer step, and the sum of their group weights over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, self.heads.total_weight(self.loss_function, batches, self.accelerator)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Run forward and backward of one batch, in micro-batches if it was split; return the detached loss."""
        step = super().training_step
        with self.packed(), offloaded_activations(self.args.activation_offloading):
            if "micro_batches" not in inputs:
                return step(model, inputs, num_items_in_batch)
            if num_items_in_batch is None:
                num_items_in_batch = self.heads.total_weight(self.loss_function, [inputs], self.accelerator)
            parts = equalize_micro_batches(inputs, self.accelerator)
            return accumulate_micro_batches(
                parts,
                self.accelerator,
                model,
                step=lambda part: step(model, part, num_items_in_batch),
                empty_loss=lambda part: self._empty_loss(model, part),
            )

    def _empty_loss(self, model: nn.Module, part: dict[str, Any]) -> Tensor:
        """Return a loss of 0 from a forward pass that other processes wait for."""
        with self.compute_loss_context_manager():
            return compute_rewards(model, self._prepare_inputs(part)).sum() * 0

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer, with separate parameter groups for the head if it has its own learning rate."""
        exists = self.optimizer is not None  # from the caller, or from an earlier call of `train`
        optimizer = super().create_optimizer(model)
        if self.args.head_learning_rate is not None and not exists:
            separate_head_group(optimizer, model or self.model, self.args.head_learning_rate)
        return optimizer

    def _prepare_input(self, data: Any) -> Any:
        return data.to(self.args.device) if isinstance(data, Tensor) else super()._prepare_input(data)

    # --- data loaders ---

    def get_train_dataloader(self) -> DataLoader:
        """Return the data loader of the training data."""
        if self.train_dataset is None:
            return super().get_train_dataloader()  # raises
        rows = self._checked(self.train_dataset, "Training")
        return self.loader.training(rows, self.data_collator, self._train_batch_size, self._get_train_sampler)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return the data loader of evaluation data: raw or prepared rows, or a name in a dict of several."""
        own: Any = self.eval_dataset
        name = eval_dataset if isinstance(eval_dataset, str) and isinstance(own, Mapping) else None
        if name is None and eval_dataset is None and own is None:
            return super().get_eval_dataloader()  # raises
        given = own[name] if name is not None else own if eval_dataset is None else eval_dataset
        rows = self.data.prepared(given, "eval")
        require_rows(rows)
        return self.loader.evaluation(self._checked(rows, "Evaluation"), self.data_collator, name or "eval")

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Return the data loader for `predict`, of raw or prepared rows."""
        rows = self.data.prepared(test_dataset, "test")
        require_rows(rows)
        return self.loader.evaluation(self._checked(rows, "Prediction", cached=False), self.data_collator)

    def _checked(self, rows: Any, description: str, *, cached: bool = True) -> Any:
        """Check the rows against the model and between processes; return them with features if the run caches them."""
        model, sharded = self.unwrapped_model(), self.is_sharded()
        self.data_collator = self.checks.collator_for(rows, model, self.data_collator, sharded=sharded)
        self.loader.require_same_rows(rows, description)
        if not cached:
            return rows
        passes = number_of_passes(self.train_dataset, self.args)
        sharded = sharded or self.is_fsdp_enabled or self.is_deepspeed_enabled
        return self.features.rows(rows, model, self.data_collator, passes=passes, sharded=sharded)

    # --- evaluation ---

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """Return loss, rewards `(G, K)` if needed, and `LABELS`, each with one leading entry per dataset row."""
        inputs = self._prepare_inputs(equalize_micro_batches(inputs, self.accelerator))
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        labels = batch_labels(self.loss_function, outputs["rewards"], inputs)
        return loss.detach(), None if prediction_loss_only else outputs["rewards"], labels

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate as in `Trainer`; outputs are in dataset order with reward 0 at padding, the loss is over rows."""
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        output = in_dataset_order(output, dataloader)
        labels = output.label_ids
        if isinstance(labels, tuple):
            evaluated = EvaluationResult(output.predictions, dict(zip(LABELS, labels, strict=True)))
            is_measured = self.compute_metrics is not None and evaluated.rewards is not None
            measured = self._measure(evaluated, dataloader) if is_measured else {}
            output = with_metrics(output, {**measured, "loss": evaluated.loss}, metric_key_prefix)
            output = output._replace(num_samples=len(labels[0]))
        only_loss = self.args.prediction_loss_only if prediction_loss_only is None else prediction_loss_only
        return output._replace(label_ids=None) if only_loss else output

    def _measure(self, evaluated: EvaluationResult, dataloader: DataLoader) -> dict[str, float]:
        """Compute the metrics of an evaluation; the record contains the last ones."""
        leaked = leaked_rows(self.train_dataset, rows_of(dataloader))
        metrics = evaluated.metrics(self.data.source_names, leaked, self.user_metrics)
        self.reward_statistics = json_safe(evaluated.reward_statistics())
        self.evaluation = json_safe({"step": self.state.global_step, **numbers_of(metrics)})
        tokens = self.statistics.tokens(self.accelerator)
        known = tokens or self.state.global_step == 0  # a custom collator may not count them
        return metrics | ({"num_tokens": tokens} if known else {})  # training tokens so far, as in TRL

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as in `Trainer`; after training, SIGTERM saves a checkpoint after the evaluation (exit code 143)."""
        entered = self.is_in_train or self.stop_signal.entered  # `Trainer` calls it for each of several datasets
        if entered or not self.stop_signal.used:
            return super().evaluate(*args, **kwargs)
        with self.stop_signal:
            metrics = super().evaluate(*args, **kwargs)
            self._stop_after_signal(None)
        return metrics

    # --- the log ---

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add accuracy, margin and rewards of the training rows since the last log, and log."""
        logs = {**logs, **self.statistics.for_next_log}  # `evaluate` returns the dict that it logs
        self.statistics.for_next_log = {}
        if "loss" in logs:
            logs |= self.statistics.since_last_log(self.accelerator)
            logs |= self.health.measure(self.model, self.is_sharded())  # pyright: ignore[reportArgumentType]
        super().log(logs, start_time)

    @property
    def health_warnings(self) -> list[dict[str, Any]]:
        """Health warnings of the run, one for each kind: `step`, `kind`, `seen`, `cause`, `cure` (the remedy)."""
        return [warning.to_dict() for warning in self.health.warnings]

    @property
    def history(self) -> list[dict[str, float]]:
        """Training loss and accuracy of each finished epoch."""
        return epoch_history(self.state.log_history)

    # --- training and its checkpoints ---

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train the model.

        Args:
            resume_from_checkpoint: A checkpoint folder; True for the newest complete one in `output_dir`; or 'auto' for
                that one if it exists and step 0 otherwise, which suits jobs that may be restarted.
            trial: As in `Trainer`.
            ignore_keys_for_eval: As in `Trainer`.

        Returns:
            Steps, loss and metrics. In a resumed run they cover the steps after `resumed_from_step`; if no step was
            left, there is no `train_loss`.

        Raises:
            ValueError: If the checkpoint does not exist or is not complete.
            SystemExit: With code 143 after SIGTERM, when a checkpoint of the step has been saved.
        """
        with self.checkpoints.locked():
            folder = self.checkpoints.find(resume_from_checkpoint)
            self.head_rate.keep_earlier(self.args, folder)
            self.checkpoints.begin(folder, self._fingerprint())
            if folder is not None:
                gathered = self.is_fsdp_enabled or self.is_deepspeed_enabled
                self.checkpoints.require_loadable(self.model, gathered=gathered)  # pyright: ignore[reportArgumentType]
                self.heads.require_fitting(folder)
            self.add_callback(self.pop_callback(StopAfterCheckpoint) or StopAfterCheckpoint(self.stop_signal))  # last
            with self.stop_signal:
                output = super().train(None if folder is None else str(folder), trial, ignore_keys_for_eval)
                self._stop_after_signal(trial)
        return output if folder is None else since_resume(output, self.checkpoints.resumed_step)

    def _fingerprint(self) -> dict[str, Any] | None:
        if self.args.process_index != 0:
            return None
        data, model = self.train_dataset, self.model
        order = {
            "rows_by_length": self.loader.buckets(data, self.data_collator),
            "rows_by_prompt": self.loader.groups_prompts(data, self.data_collator),
        }
        return run_fingerprint(self.args, model, data, self.eval_dataset, **order)  # type: ignore[arg-type]

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # a finished run over a stream is resumed
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self._load_if_renamed(Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_if_renamed(self, folder: Path) -> bool:
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled  # these have formats of their own
        return not sharded and load_if_renamed(self.model, folder)

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        if not self._load_if_renamed(best):
            super()._load_best_model()
        self.heads.restore(best, self.model)  # pyright: ignore[reportArgumentType]
        record = CheckpointRecord.load(best)
        if record is not None:  # the last evaluation was of other weights
            self.reward_statistics, self.evaluation = record.reward_statistics, record.evaluation

    def _get_output_dir(self, trial: Any) -> str:
        return self.checkpoints.folder(super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.args.include_num_input_tokens_seen == "no":
            self.state.num_input_tokens_seen = self.statistics.tokens(self.accelerator)
        with self.checkpoints.staged(Path(super()._get_output_dir(trial)), self.state, self.model) as final:  # pyright: ignore[reportArgumentType]
            super()._save_checkpoint(model, trial)
        if self.args.push_to_hub:
            self._push_checkpoint(final)
        self.checkpoints.remove_old(final, self.state.best_model_checkpoint)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Do nothing: `_save_checkpoint` pushes the checkpoint when it is complete."""

    def _stop_after_signal(self, trial: Any) -> None:
        """After training or an evaluation, handle SIGTERM: save a checkpoint and exit."""
        if self.stop_signal.is_agreed():
            if self.checkpoints.saved_step != self.state.global_step:
                self._save_checkpoint(self.model_wrapped, trial)
            log_stopped(self.state, self._get_output_dir(trial), self.args.should_log)
            raise SystemExit(STOPPED)

    # --- what is saved ---

    def record(self) -> CheckpointRecord:
        """Return the record that is saved with the model; with a sharded model, all processes must call this."""
        return self._record(self._score_probes())

    def _record(self, probes: dict[str, Any]) -> CheckpointRecord:
        return run_record(
            self.unwrapped_model(),
            self.data,
            self.args,
            probes,
            step=self.state.global_step,
            command=self.command,
            loss=self.loss_function.settings,
            reward_statistics=self.reward_statistics,
            evaluation=self.evaluation,
            baselines=self.baselines,
        )

    def _score_probes(self) -> dict[str, Any]:
        sharded = self.is_sharded()
        model: Any = self.model_wrapped if sharded else self.unwrapped_model()
        images = None if self.images is None else self.images.processing
        return score_probes(model, self.processing_tokenizer, self.args, sharded=sharded, images=images)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save model, tokenizer, record and card; with `push_to_hub` also publish them, as in `Trainer`."""
        folder = output_dir or self.args.output_dir
        probes = self._score_probes() if self.is_sharded() else None  # on all processes
        super().save_model(output_dir, _internal_call=True)
        has_model = not saves_only_shards(getattr(self.accelerator.state, "fsdp_plugin", None))
        if has_model and self.args.should_save and folder is not None:
            save_heads(self.unwrapped_model(), folder)
            tokenizer_to_save(self.processing_tokenizer, self.data.rows).save_pretrained(folder)
            add_transformers_4_fields(folder)
            if self.images is not None:
                self.images.processing.save(folder)
            record = self._record(self._score_probes() if probes is None else probes)
            record.save(folder)
            write_card(folder, record)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def create_model_card(  # pyright: ignore[reportIncompatibleMethodOverride] - the rest comes by keyword
        self, model_name: str | None = None, **kwargs: Any
    ) -> None:
        """Write README.md into the output folder.

        Args:
            model_name: Title; by default the folder's name.
            **kwargs: `license`, `language`, `dataset`, `tags`, `base_model` and other metadata of the card; later saves
                use them too.
        """
        given = {"model_name": model_name, **kwargs}
        self.args.model_card = self.args.card | {name: value for name, value in given.items() if value is not None}
        folder = self.args.output_dir
        if self.is_world_process_zero() and folder is not None:
            record = CheckpointRecord.load(folder) or self._record({} if self.is_sharded() else self._score_probes())
            write_card(folder, replace(record, card=self.args.card))

    # --- the Hub ---

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository as in `Trainer`; errors become a `PushError` with a remedy."""
        with explained(self.publisher.repository, "The repository could not be created or found."):
            super().init_hf_repo(token=token or self.publisher.token, private=private)

    def push_to_hub(  # pyright: ignore[reportIncompatibleMethodOverride] - the report says more than a commit
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> PushReport | BackgroundPush | None:
        """Publish the current model: merged, and verified before and after the upload.

        Args:
            commit_message: Message of the commit.
            blocking: Whether to wait; otherwise the push runs in another process.
            token: Write token, by default `hub_token` or the token stored by `hf auth login`.
            revision: Branch, by default `hub_revision` or main.
            private: Whether the repository is private, by default `hub_private_repo`.
            **kwargs: `gated`, `create_pr`, `adapter`, `replace` and `base_model` of `PushRule`; others go to the model
                card.

        Returns:
            On the main process the report, or the running push if not `blocking`; None on other processes.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token or self.publisher.token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        rule = self.publisher.rule(self.model, message=commit_message, revision=revision, private=private, **kwargs)
        self.create_model_card(**{name: value for name, value in kwargs.items() if name not in PUSH_OPTIONS})
        publishes = self.is_world_process_zero()
        with self.publisher.new_folder(kept=publishes and not blocking) as folder:
            self.save_model(str(folder), _internal_call=True)
            if not publishes:
                return None
            report = self.publisher.push(folder, str(self.hub_model_id), rule, token, blocking=blocking)
        self.push_in_progress = self.publisher.running
        return report

    def _push_checkpoint(self, checkpoint: Path) -> None:
        if self.is_world_process_zero() and self.publisher.is_free_for_a_checkpoint():
            self.callback_handler.on_push_begin(self.args, self.state, self.control)
            self.publisher.push_checkpoint(checkpoint, str(self.hub_model_id), self.model, self.state)
            self.push_in_progress = self.publisher.running


def _no_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Return no metrics: `RewardTrainer.evaluation_loop` computes them from rewards in dataset order."""
    return {}
