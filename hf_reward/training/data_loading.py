"""Preference data -> the batches of a run: the half of the trainer that has to do with rows.

Prepares datasets, chooses packed or padded batches and checks the choice, sorts rows of like length into padded
batches, and lets cached features stand in for a frozen backbone.
"""

import copy
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from tqdm.auto import tqdm
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer_utils import EvalLoopOutput

from hf_reward.data.interface import setting
from hf_reward.data.training_texts import summarize_training_data
from hf_reward.losses.functions import PADDING_RANK
from hf_reward.losses.preference_loss import PreferenceLoss
from hf_reward.metrics.leakage import leaked_rows, metrics_without_leaks, warn_of_leaks
from hf_reward.modeling.packing import packed_model
from hf_reward.modeling.packing_check import ROUNDING_TOLERANCE, kernel_error, packing_problem
from hf_reward.modeling.reward_head import RewardModel, bare_model, trains_head_alone
from hf_reward.modeling.rewards import compute_features
from hf_reward.modeling.row_check import TokenSequence, batch_problem, require_readable
from hf_reward.preprocessing.data_collator import DataCollatorForPreference, source_number
from hf_reward.preprocessing.data_summary import DataSummary
from hf_reward.preprocessing.packed_collator import DataCollatorForPackedPreference
from hf_reward.preprocessing.preparation import PreparationRule, is_prepared, prepare_preferences
from hf_reward.preprocessing.samplers import (
    CountedStream,
    EndlessStream,
    FixedOrderSampler,
    LengthBucketSampler,
    counted_stream,
    fixed_order,
    longest_first,
    longest_sequences,
)
from hf_reward.preprocessing.token_budget import consecutive_batches
from hf_reward.training.feature_cache import (
    DataCollatorForFeatures,
    FeatureRows,
    FeatureStore,
    feature_fingerprint,
    stored_features,
    why_not_cached,
    without_features,
)
from hf_reward.training.setup import (
    budgeted,
    choose_collator,
    inner_collator,
    padded_collator,
    refuse_to_sort_a_stream,
    require_a_batch,
    with_rows_in_even_rounds,
)
from hf_reward.training.training_args import RewardConfig

logger = logging.getLogger(__name__)

_OUR_COLLATORS = (DataCollatorForPreference, DataCollatorForPackedPreference)


class PreferenceDataTrainer(Trainer):
    """A `Trainer` whose rows are preferences; `RewardTrainer` adds what is learned from them.

    Args:
        model: The prepared model.
        args: Settings; the trainer's own copy.
        tokenizer: The prepared tokenizer.
        loss_function: The loss; what it can use decides which rows are kept.
        data_collator: The user's own, if any.
        train_dataset: Preference data in any form.
        eval_dataset: The same, or a dict of several.
        callbacks: For `Trainer`.
        **kwargs: For `Trainer`.
    """

    args: RewardConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        *,
        model: RewardModel | None,
        args: RewardConfig,
        tokenizer: PreTrainedTokenizerBase,
        loss_function: PreferenceLoss,
        data_collator: Callable[..., Any] | None,
        train_dataset: Any,
        eval_dataset: Any,
        callbacks: Sequence[TrainerCallback],
        **kwargs: Any,
    ) -> None:
        self.processing_tokenizer, self.loss_function = tokenizer, loss_function
        self.data_summaries: dict[str, DataSummary] = {}
        self.training_texts: dict[str, Any] = {}
        self._source_names: dict[int, str] = {}
        self._batches_checked = False
        self._eval_order: np.ndarray | None = None  # in which the rows at hand are evaluated; None is their own
        self._eval_stream: CountedStream | None = None  # that several processes evaluate
        self._bucket_sampler: LengthBucketSampler | None = None
        self._said_uncached = False
        self._feature_stores: dict[str, FeatureStore] = {}
        self._leaked: np.ndarray | None = None  # rows at hand that training has seen too
        train_data, eval_data = self._prepare_data(train_dataset, "train", args), self._prepare_eval(eval_dataset, args)
        require_a_batch(args, train_data)
        args = with_rows_in_even_rounds(args)
        super().__init__(
            model=model,
            args=args,
            data_collator=budgeted(choose_collator(model, args, tokenizer, data_collator), args),
            train_dataset=train_data,
            eval_dataset=eval_data,
            processing_class=tokenizer,
            callbacks=[_EpochOrder(self), *callbacks],
            **kwargs,
        )
        if args.should_log:
            warn_of_leaks(self.train_dataset, self.eval_dataset)

    # --- rows ---

    def _prepare_data(self, data: Any, name: str, args: RewardConfig) -> Any:
        if data is None:
            return None
        kind = self.loss_function.kind
        rule = PreparationRule(
            format=args.format_rule,
            models_ties=kind.models_ties,
            strict_order=kind.strict_order,
            skip_bad_rows=args.skip_bad_rows,
            balance_lengths=args.balance_lengths and name == "train",
            balance_seed=args.seed if args.data_seed is None else args.data_seed,
        )
        with args.main_process_first(desc=f"tokenizing {name}"):
            prepared, summary = prepare_preferences(
                data, self.processing_tokenizer, rule, name=name, num_proc=args.dataset_num_proc, seed=args.seed
            )
        refuse_to_sort_a_stream(args, prepared)
        self.data_summaries[name] = summary
        if name == "train" and args.should_save:
            self.training_texts = summarize_training_data(data, seed=args.seed)
        self._source_names |= {source_number(source): source for source in summary.sources}
        return prepared

    def _prepare_eval(self, data: Any, args: RewardConfig) -> Any:
        if isinstance(data, Mapping) and not data.keys() & {"path", "data"}:
            return {name: self._prepare_data(part, f"eval_{name}", args) for name, part in data.items()}
        return self._prepare_data(data, "eval", args)

    def _prepare_input(self, data: Any) -> Any:
        # Under DeepSpeed `Trainer` would round margins, probabilities and weights to half precision.
        return data.to(self.args.device) if isinstance(data, Tensor) else super()._prepare_input(data)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = [
            *("input_ids", "token_type_ids", "features", "ranks", "prefix_length", "length"),
            *("words", "characters", "margin", "probability", "weight", "group", "row", "source"),
        ]

    # --- data loaders ---

    def get_train_dataloader(self) -> DataLoader:
        """Data loader of the training data."""
        self._check_rows(self.train_dataset)
        return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Data loader of the evaluation data, which may be raw preference data or a name in a dict of several."""
        named = isinstance(eval_dataset, str) and isinstance(self.eval_dataset, Mapping)
        if eval_dataset is not None and not named and not is_prepared(eval_dataset):
            eval_dataset = self._prepare_data(eval_dataset, "eval", self.args)
        data = self._find_eval_dataset(eval_dataset)
        if data is not None:  # else `Trainer` says what is missing
            _require_rows(data)
            self._leaked = leaked_rows(self.train_dataset, data)
            self._check_rows(data)
            own = eval_dataset is None or named
            cached = self._caches_features(data) or isinstance(self.data_collator, DataCollatorForFeatures)
            if cached or not own:  # `Trainer` would hand out persistent workers with other rows, or stale features
                self._eval_dataloaders = {}
        return super().get_eval_dataloader(eval_dataset)

    def _find_eval_dataset(self, data: Any) -> Any:
        """The dataset that `evaluate` means by nothing, by a name, or by the data itself."""
        own: Any = self.eval_dataset
        if data is None:
            return own
        return own[data] if isinstance(data, str) else data

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Data loader for `predict`, which may be raw preference data."""
        if not is_prepared(test_dataset):
            test_dataset = self._prepare_data(test_dataset, "test", self.args)
        _require_rows(test_dataset)
        self._leaked = leaked_rows(self.train_dataset, test_dataset)
        self._check_rows(test_dataset)
        return super().get_test_dataloader(test_dataset)

    def _get_dataloader(  # pyright: ignore[reportIncompatibleMethodOverride] - the rest is handed on
        self, dataset: Any, description: str, *args: Any, **kwargs: Any
    ) -> DataLoader:
        self._require_same_rows(dataset, description)
        if description in ("Training", "Evaluation") and self._caches_features(dataset):
            dataset = self._rows_with_features(dataset)
            if not isinstance(self.data_collator, DataCollatorForFeatures):
                self.data_collator = DataCollatorForFeatures(self.data_collator)
        if description == "Training" and isinstance(dataset, IterableDataset):
            dataset = self._endless(dataset)
        own, read = self.args, cast(Any, dataset)
        try:
            if description != "Training":
                self.args = self._args_of_evaluation(dataset)
                if isinstance(dataset, IterableDataset) and own.world_size > 1:
                    read = CountedStream(dataset)
            return super()._get_dataloader(read, description, *args, **kwargs)
        finally:
            self.args = own

    def _args_of_evaluation(self, data: Any) -> RewardConfig:
        """Settings for a data loader over the whole split, whose rows keep their order."""
        args = copy.copy(self.args)
        args.dataloader_drop_last = False
        if isinstance(data, IterableDataset) and args.dataloader_num_workers > 0:
            logger.info(
                "Streams are evaluated without data loader workers, which would mix up the order of their rows."
            )
            args.dataloader_num_workers, args.dataloader_persistent_workers = 0, False
            args.dataloader_prefetch_factor = args.dataloader_multiprocessing_context = None
        return args

    def _require_same_rows(self, data: Any, description: str) -> None:
        """Stop where processes hold different rows: accelerate would divide what was divided before."""
        if self.args.world_size == 1 or not isinstance(data, (Dataset, IterableDataset)):
            return
        length = len(data) if isinstance(data, Dataset) else None
        found = gather_object([(length, [row["input_ids"] for row in _first_rows(data, 8)])])
        if any(each != found[0] for each in found):
            lengths = "" if length is None else f" ({', '.join(str(each[0]) for each in found)} rows)"
            raise ValueError(
                f"{description}: the processes were given different rows{lengths}. Give all of them the same rows in "
                "the same order: they are divided here. Leave out `split_dataset_by_node` and `shard`, and shuffle a "
                "stream with a `seed`."
            )

    def _endless(self, stream: IterableDataset) -> EndlessStream:
        shuffles = self.args.train_sampling_strategy == "random"
        size = self.args.shuffle_buffer_size if shuffles else 0
        return EndlessStream(stream, buffer_size=size, seed=self._order_seed())

    def _order_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    # --- packed or padded ---

    def _packs(self) -> bool:
        return isinstance(inner_collator(self.data_collator), DataCollatorForPackedPreference)

    def _packed(self) -> AbstractContextManager[Any]:
        """Within this, the model takes packed batches; outside it is as it was."""
        return packed_model(self._bare_model()) if self._packs() else nullcontext()

    def _bare_model(self) -> PreTrainedModel:
        return bare_model(self.accelerator.unwrap_model(self.model, keep_torch_compile=False))

    def _check_rows(self, data: Any) -> None:
        """Refuse, before the first step, rows that the model cannot read and a model that reads them by their batch."""
        if data is None:
            return
        require_readable(self._bare_model(), data, self.processing_tokenizer, sharded=self._is_sharded())
        if self._batches_checked:
            return
        self._batches_checked = True
        problem = None
        if self.accelerator.is_main_process and not self._is_sharded():
            problem = batch_problem(self._bare_model(), _sequences(data))
        [problem] = broadcast_object_list([problem])
        if problem is not None:
            raise ValueError(problem)
        if self._packs():
            self._check_packing(data)

    def _check_packing(self, data: Any) -> None:
        """Before packed batches are trusted: pad instead if they give another result."""
        problem = None
        if self.accelerator.is_main_process:  # under FSDP with memory-saving loading only this one has the weights
            problem = self._kernel_problem() or (None if self._is_sharded() else self._packing_problem(data))
        [problem] = broadcast_object_list([problem])
        if problem is None:
            return
        if self.args.packing == "true":
            raise ValueError(
                f"`{setting('packing', True)}` would train another model: {problem}. Use "
                f"`{setting('packing', 'auto')}`."
            )
        logger.warning("Batches are padded, not packed: %s.", problem)
        self.data_collator = budgeted(padded_collator(self.args, self.processing_tokenizer), self.args)

    def _is_sharded(self) -> bool:
        """Whether no process holds the whole model, so that one alone cannot run it."""
        if is_deepspeed_zero3_enabled() or isinstance(self.model_wrapped, FullyShardedDataParallel):
            return True
        return any(isinstance(weight, DTensor) for weight in self.model.parameters())  # type: ignore[union-attr]

    def _kernel_problem(self) -> str | None:
        """Whether the kernel of this device can be trusted, also for a model that is elsewhere (FSDP, ZeRO) so far."""
        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        device, model = self.args.device, self._bare_model()
        dtype = kinds.get(str(self.accelerator.mixed_precision), model.dtype)
        if device.type != "cuda" or dtype not in kinds.values():
            return None
        config: Any = model.config.get_text_config()
        heads = config.num_attention_heads
        error = kernel_error(
            device,
            dtype,
            heads=heads,
            key_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        )
        return None if error <= ROUNDING_TOLERANCE else f"the attention kernel of this device is off by {error:.1e}"

    def _packing_problem(self, data: Any) -> str | None:
        rows = _first_rows(data, 2)
        padded = padded_collator(self.args, self.processing_tokenizer)(rows)
        with self.accelerator.autocast():  # the kernels that training will use
            return packing_problem(self._bare_model(), padded, inner_collator(self.data_collator)(rows))

    # --- rows of like length; with features they are sampled as without, so that caching changes nothing else ---

    def _buckets(self, data: Any) -> bool:
        if not isinstance(data, Dataset) or self.args.length_bucketing == "false":
            return False
        return self.args.length_bucketing == "true" or not self._packs()

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        data: Any = without_features(self.train_dataset if train_dataset is None else train_dataset)
        spread = bool(self.loss_function.length_penalty)  # which needs rows of all lengths in a batch
        if self.args.train_sampling_strategy != "random" or spread or not self._buckets(data):
            return super()._get_train_sampler(data)
        size = self._train_batch_size * self.args.world_size
        self._bucket_sampler = LengthBucketSampler(longest_sequences(data), size, seed=self._order_seed())
        return self._bucket_sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler | None:
        # `Trainer` would let the strategy for training permute predictions.
        data = without_features(eval_dataset)
        if isinstance(data, IterableDataset):
            return None
        if self._buckets(data):
            return FixedOrderSampler(longest_first(longest_sequences(data)))
        return SequentialSampler(data)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate; predictions and labels come back in dataset order, with reward 0 where there is no response.

        Args:
            dataloader: As in `Trainer`.
            description: As in `Trainer`.
            prediction_loss_only: As in `Trainer`.
            ignore_keys: As in `Trainer`.
            metric_key_prefix: Put before the names of the metrics.

        Returns:
            What `Trainer` returns, with the loss over the rows instead of a mean over batches.
        """
        self._eval_order, self._eval_stream = fixed_order(dataloader), counted_stream(dataloader)
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            rewards, labels = (self._in_dataset_order(values) for values in (output.predictions, output.label_ids))
        finally:
            self._eval_order = self._eval_stream = None
        if isinstance(labels, tuple):
            rewards = without_padding(rewards, labels[0])
            metrics = {**(output.metrics or {}), f"{metric_key_prefix}_loss": _mean_loss(labels)}
            output = output._replace(metrics=metrics, num_samples=len(labels[0]))
        only_loss = self.args.prediction_loss_only if prediction_loss_only is None else prediction_loss_only
        return output._replace(predictions=rewards, label_ids=None if only_loss else labels)

    def _metrics_without_leaks(self, rewards: np.ndarray, labels: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Accuracy of the rows that training has not seen, where there are others."""
        if self._leaked is None or len(self._leaked) != len(rewards):
            return {}
        return metrics_without_leaks(rewards, labels["ranks"], labels["groups"], self._leaked)

    def _in_dataset_order(self, values: Any) -> Any:
        """Undo the order of evaluation; of a stream that several processes share, leave out repeated rows."""
        if isinstance(values, tuple):
            return tuple(self._in_dataset_order(part) for part in values)
        if values is not None and self._eval_stream is not None:
            return values[: self._eval_stream.count]
        return values if values is None or self._eval_order is None else values[np.argsort(self._eval_order)]

    # --- cached features ---

    def _caches_features(self, data: Any) -> bool:
        if self.args.cache_features == "false":
            return False
        reason = self._why_not_cached(data)
        if self.args.cache_features == "true":
            if reason is not None:
                raise ValueError(
                    f"`{setting('cache_features', True)}` is not possible: {reason}. Use "
                    f"`{setting('cache_features', 'auto')}`."
                )
            return True
        if self._passes() > 1 and reason is not None and not self._said_uncached:
            self._said_uncached = True
            if trains_head_alone(self._unwrapped()):  # else nobody expects a cache
                logger.warning("The frozen backbone runs in every epoch: %s.", reason)
        return reason is None and self._passes() > 1

    def _why_not_cached(self, data: Any) -> str | None:
        args = self.args
        reasons = {
            "the model is sharded over processes": self.is_fsdp_enabled
            or self.is_deepspeed_enabled
            or self._is_sharded(),
            "the data collator is your own": type(inner_collator(self.data_collator)) not in _OUR_COLLATORS,
            "the model is cast for evaluation": args.bf16_full_eval or args.fp16_full_eval,
            "NEFTune changes its input": args.neftune_noise_alpha is not None,
        }
        others = (reason for reason, holds in reasons.items() if holds)
        return why_not_cached(self._unwrapped(), data) or next(others, None)

    def _unwrapped(self) -> Any:
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def _passes(self) -> float:
        """How often training goes over its rows."""
        if not isinstance(self.train_dataset, Dataset):
            return 0
        if self.args.max_steps <= 0:
            return self.args.num_train_epochs
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return self.args.max_steps * step / len(self.train_dataset)

    def _rows_with_features(self, data: Dataset) -> FeatureRows:
        fingerprint = ""
        if self.accelerator.is_main_process:
            # Taken from the weights each time: features of other weights would be wrong rewards without a word.
            fingerprint = feature_fingerprint(self._bare_model(), data, self.accelerator.mixed_precision)
        [fingerprint] = broadcast_object_list([fingerprint])
        if fingerprint not in self._feature_stores:
            compute = partial(self._features_of_share, data)
            self._feature_stores[fingerprint] = stored_features(data, fingerprint, compute, self.accelerator)
        return FeatureRows(data, self._feature_stores[fingerprint])

    def _features_of_share(self, data: Dataset, share: range) -> Generator[Tensor]:
        """Features of some consecutive rows of a dataset, batch by batch."""
        collator: Any = inner_collator(self.data_collator)
        size, budget = self.args.eval_batch_size, self.args.max_tokens_per_batch
        with tqdm(total=len(share), desc="Computing features", disable=self.args.disable_tqdm) as progress:
            for rows in consecutive_batches(data, share, collator.tokens, size, budget):
                yield self._features_of_batch(collator(rows))
                progress.update(len(rows))

    @torch.no_grad()
    def _features_of_batch(self, batch: dict[str, Any]) -> Tensor:
        model, inputs = self._bare_model(), self._prepare_inputs(batch)
        training = model.training
        model.eval()
        try:
            with self._packed(), self.accelerator.autocast():
                return compute_features(model, inputs)
        finally:
            model.train(training)


class _EpochOrder(TrainerCallback):
    """Tells the sampler which epoch it is: after a resume with several processes nobody else does."""

    def __init__(self, trainer: PreferenceDataTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.trainer._bucket_sampler is not None:
            self.trainer._bucket_sampler.set_epoch(int(state.epoch or 0))


def without_padding(rewards: Any, ranks: np.ndarray) -> Any:
    """Rewards with 0 where there is no response; `Trainer` leaves -100 there in batches of shorter lists.

    Args:
        rewards: Rewards, shape `(R, K)`, or what the user's own preprocessing made of them, which stays.
        ranks: Ranks, -100 is padding, shape `(R, K)`.

    Returns:
        Shaped like the rewards.
    """
    if np.shape(rewards) != ranks.shape:
        return rewards
    return np.where(ranks == PADDING_RANK, np.zeros_like(rewards), rewards)


def _mean_loss(labels: tuple[np.ndarray, ...]) -> float:
    """The loss over all rows, each once; `Trainer` takes a mean over batches, which depends on how rows share them."""
    *_, losses, weights, _ = labels
    return float((losses * weights).sum(dtype=np.float64) / max(weights.sum(dtype=np.float64), 1e-12))


def _first_rows(data: Any, count: int) -> list[dict[str, Any]]:
    if isinstance(data, IterableDataset):
        return list(data.take(count))
    return [data[place] for place in range(min(count, len(data)))]


def _sequences(data: Any) -> list[TokenSequence]:
    """Some sequences of the data, each with its token types."""
    return [
        (ids, None if row["token_type_ids"] is None else row["token_type_ids"][place])
        for row in _first_rows(data, 8)
        for place, ids in enumerate(row["input_ids"])
    ]


def _require_rows(data: Any) -> None:
    """An empty split would give no metrics without a word."""
    if not isinstance(data, IterableDataset) and len(data) == 0:
        raise ValueError(
            "The evaluation data holds no rows, so there is nothing to measure. Check how it was filtered."
        )
