"""Self-test: overfit a copy of the model on one small batch of its own rows.

If accuracy stays below 1 on eight rows, the settings or the data are wrong.
"""

import copy
import math
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from hf_reward.data.sources import as_sources, load_source
from hf_reward.metrics.counts import counted
from hf_reward.preprocessing.preparation import TOKENIZED_FEATURES, is_prepared
from hf_reward.training.trainer import RewardTrainer
from hf_reward.training.training_args import RewardConfig
from hf_reward.training.trial_config import trial_config

ROWS_READ = 64
"""Number of rows of each source that are read to find the batch."""


@dataclass(frozen=True, kw_only=True)
class OverfitReport:
    """Result of the self-test."""

    passed: bool
    start_loss: float
    end_loss: float
    accuracy: float
    """Strict accuracy at the last step."""
    steps: int
    rows: list[int]
    """Data rows of the batch."""
    advice: list[str] = field(default_factory=list)
    """Likely causes of a failure; empty if it passed."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        text = (
            f"overfit_one_batch {verdict}: loss {self.start_loss:.4f} -> {self.end_loss:.4f}, accuracy "
            f"{self.accuracy:.0%} after {self.steps} steps on {counted(len(self.rows), 'row')}."
        )
        return "\n".join([text, *(f"- {line}" for line in self.advice)])


def overfit_one_batch(
    model: Any,
    args: RewardConfig | None = None,
    train_dataset: Any = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    *,
    rows: int = 8,
    steps: int = 100,
    loss_below: float = 0.1,
    learning_rate: float | None = None,
    **options: Any,
) -> OverfitReport:
    """Train a copy of a model on one small batch until it overfits the batch.

    The loss is that of the settings, without the terms that keep it above 0 (label smoothing, centering, length
    penalty). The learning rate is constant. The caller's weights, settings, files and random state do not change.

    Args:
        model: A `RewardTrainer`, which provides settings and rows too, or a model as for `RewardTrainer`.
        args: Settings, as for `RewardTrainer`.
        train_dataset: Preference data, as for `RewardTrainer`; the first rows that state a strict preference are used.
        processing_class: The tokenizer, as for `RewardTrainer`.
        rows: Number of rows in the batch.
        steps: Maximum number of steps.
        loss_below: The test passes when accuracy is 1 and the loss of a step is below this value, in nats above the
            entropy of stated probabilities.
        learning_rate: Replaces the learning rate of the settings.
        **options: `peft_config`, `quantization_config`, `data_collator`, as for `RewardTrainer`.

    Returns:
        Losses, and advice after a failure.

    Raises:
        ValueError: If `rows` or `steps` is below 1, there is no training data, or no row states a strict preference
            between different responses.
    """
    if rows < 1 or steps < 1:
        raise ValueError(f"`rows` and `steps` must be 1 or more, but are {rows} and {steps}.")
    if isinstance(model, RewardTrainer):
        trainer, model = model, model.accelerator.unwrap_model(model.model, keep_torch_compile=False)
        args = args or trainer.args
        train_dataset = trainer.train_dataset if train_dataset is None else train_dataset
        processing_class = processing_class or trainer.processing_tokenizer
    if train_dataset is None:
        raise ValueError("`overfit_one_batch` needs rows: pass `train_dataset`, or a trainer that has one.")
    with tempfile.TemporaryDirectory() as folder, _preserved_random_state():
        settings = _settings(args or RewardConfig(output_dir=folder), folder, rows, steps, learning_rate)
        probe = RewardTrainer(
            model=_copy_of(model),
            args=settings,
            train_dataset=_few_rows(train_dataset),
            processing_class=processing_class,
            **options,
        )
        probe.remove_callback(PrinterCallback)  # the report summarises the log in a line
        batch = _first_strict(probe.train_dataset, rows)
        probe.train_dataset = batch
        return _report(probe, batch, loss_below + _entropy(batch))


def _settings(args: RewardConfig, folder: str, rows: int, steps: int, learning_rate: float | None) -> RewardConfig:
    """Return the caller's settings without evaluation, files and learning-rate schedule."""
    return trial_config(
        args,
        folder,
        max_steps=steps,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=1,
        learning_rate=args.learning_rate if learning_rate is None else learning_rate,
        logging_strategy=type(args.logging_strategy)("steps"),
        logging_first_step=False,
        balance_lengths=False,
        cache_features="false",
        label_smoothing=0.0,
        center_rewards_coefficient=None,
        length_penalty=None,
        health_checks=False,
        disable_tqdm=True,
        train_sampling_strategy="random",
    )


def _copy_of(model: Any) -> Any:
    """Return a copy of a model without accelerate's wrapper of its `forward`."""
    if not isinstance(model, nn.Module):
        return model
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if "_original_forward" in module.__dict__:  # both methods are bound to the original and use its weights
            del module.__dict__["_original_forward"]
            module.__dict__.pop("forward", None)
    return copied


def _few_rows(data: Any) -> Any:
    """Return the first rows of each source."""
    if is_prepared(data):
        return _prepared(data)
    return [replace(source, data=_first_rows(load_source(source)), weight=1.0) for source in as_sources(data)]


def _first_rows(data: Dataset | IterableDataset) -> Any:
    if isinstance(data, IterableDataset):
        return list(data.take(ROWS_READ))
    return data.select(range(min(ROWS_READ, len(data))))


def _prepared(data: Any) -> Dataset:
    """Return the first rows of a prepared dataset, which may be a stream."""
    if isinstance(data, IterableDataset):
        return Dataset.from_list(list(data.take(ROWS_READ)), features=TOKENIZED_FEATURES)
    return data.select(range(min(ROWS_READ, len(data))))


def _first_strict(data: Any, count: int) -> Dataset:
    ranks = data["ranks"]
    places = [place for place in range(len(data)) if len(set(ranks[place])) == len(ranks[place])][:count]
    if not places:
        raise ValueError(
            f"None of the first {counted(len(data), 'training row')} states a preference (all are ties). Pass rows "
            "with a preference to `overfit_one_batch`."
        )
    return data.select(places)


def _entropy(batch: Dataset) -> float:
    """Return the mean entropy of the stated probabilities in nats, the lower limit of the loss."""
    stated = np.asarray(batch["probability"], dtype=float)
    inner = np.clip(np.nan_to_num(stated, nan=1.0), 1e-12, 1 - 1e-12)
    return float(np.mean(-inner * np.log(inner) - (1 - inner) * np.log(1 - inner)))


class _StopWhenOverfit(TrainerCallback):
    def __init__(self, loss_below: float) -> None:
        self.loss_below, self.overfit = loss_below, False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Stop when the model overfits the batch."""
        if logs and "loss" in logs and logs["accuracy"] == 1 and logs["loss"] < self.loss_below:
            self.overfit = control.should_training_stop = True


def _report(probe: RewardTrainer, batch: Dataset, loss_below: float) -> OverfitReport:
    """Train and return the report."""
    stop = _StopWhenOverfit(loss_below)
    probe.add_callback(stop)
    before = {name: weight.detach().clone() for name, weight in probe.model.named_parameters() if weight.requires_grad}  # type: ignore[union-attr]
    problem = ""
    try:
        probe.train()
    except FloatingPointError as error:
        problem = str(error)
    logs = [entry for entry in probe.state.log_history if "loss" in entry]
    losses = [entry["loss"] for entry in logs] or [math.nan]
    advice = [problem] if problem else []
    if not (stop.overfit or problem):
        moved = any(not torch.equal(before[name], w) for name, w in probe.model.named_parameters() if name in before)  # type: ignore[union-attr]
        advice = _advice(probe.args, batch, losses, moved)
    return OverfitReport(
        passed=stop.overfit,
        start_loss=losses[0],
        end_loss=losses[-1],
        accuracy=logs[-1]["accuracy"] if logs else math.nan,
        steps=probe.state.global_step,
        rows=list(batch["row"]),
        advice=advice,
    )


def _advice(args: RewardConfig, batch: Dataset, losses: list[float], moved: bool) -> list[str]:
    """Return likely causes of a failure, most certain first."""
    advice = []
    if not moved:
        advice.append(
            f"No weight changed: `learning_rate` is {args.learning_rate} and `head_learning_rate` "
            f"{args.head_learning_rate}. Raise them, and check that head and adapter are trainable."
        )
    opposed = _contradictions(batch)
    if opposed:
        advice.append(
            f"The data rows {opposed} contradict each other: they have the same responses with opposite preferences. "
            "Drop one of each pair; `hf-reward check-data` finds all of them."
        )
    if advice:
        return advice
    if losses[-1] > losses[0] or max(losses[len(losses) // 2 :]) > 2 * max(losses[0], 1e-6):
        return [f"The loss rises or jumps: `learning_rate={args.learning_rate}` is too high. Try a tenth of it."]
    return [
        f"The loss falls too slowly: from {losses[0]:.4f} to {losses[-1]:.4f} in {len(losses)} steps. Try more "
        f"`steps`, or `learning_rate` ten times {args.learning_rate}; if neither helps, inspect two tokenised rows."
    ]


def _contradictions(batch: Dataset) -> list[int]:
    """Return the rows for which another row states the opposite preference."""
    seen: dict[tuple[tuple[int, ...], ...], int] = {}
    for row, responses, ranks in zip(batch["row"], batch["input_ids"], batch["ranks"], strict=True):
        ordered = sorted(range(len(ranks)), key=ranks.__getitem__)
        seen[tuple(tuple(responses[place]) for place in ordered)] = row
    return sorted({row for order, row in seen.items() if order[::-1] in seen and order != order[::-1]})


@contextmanager
def _preserved_random_state() -> Iterator[None]:
    """Restore the state of all random generators at the end of the block."""
    python, numbers = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count()))
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
