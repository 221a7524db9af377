"""One small batch learned by heart: can this model, with these settings and these rows, learn at all?

A run that cannot reach accuracy 1 on eight of its own rows will not learn thousands of them.
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
from hf_reward.preprocessing.preparation import TOKENIZED_FEATURES, is_prepared
from hf_reward.training.trainer import RewardTrainer
from hf_reward.training.training_args import RewardConfig, trial_config

ROWS_READ = 64
"""Rows of each source that are read to find the batch."""


@dataclass(frozen=True, kw_only=True)
class OverfitReport:
    """What became of the self-test."""

    passed: bool
    start_loss: float
    end_loss: float
    accuracy: float
    """Of the last step, strict."""
    steps: int
    rows: list[int]
    """Data rows of the batch."""
    advice: list[str] = field(default_factory=list)
    """What is likely wrong; empty if it passed."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        text = (
            f"overfit_one_batch {verdict}: loss {self.start_loss:.4f} -> {self.end_loss:.4f}, accuracy "
            f"{self.accuracy:.0%} after {self.steps} steps on {len(self.rows)} rows."
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
    """Train a copy of a model on one small batch until it knows it by heart.

    The loss is that of the settings without what keeps it above 0 (label smoothing, centering, length penalty); the
    learning rate is constant. Nothing of the caller's changes: weights, settings, files, random state.

    Args:
        model: A `RewardTrainer`, whose settings and rows are taken then; or a model as `RewardTrainer` takes it.
        args: Settings, as for `RewardTrainer`.
        train_dataset: Preference data, as for `RewardTrainer`; the first rows that state a strict preference are used.
        processing_class: The tokenizer, as for `RewardTrainer`.
        rows: Size of the batch.
        steps: Give up after so many.
        loss_below: Passed when accuracy is 1 and the loss of the step below this, in nats beyond the entropy of stated
            probabilities.
        learning_rate: Another learning rate than the settings'.
        **options: `peft_config`, `quantization_config`, `data_collator`, as for `RewardTrainer`.

    Returns:
        Losses, and advice if it failed.

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
        raise ValueError("`overfit_one_batch` needs rows: give it `train_dataset`, or a trainer that has one.")
    with tempfile.TemporaryDirectory() as folder, _same_random_state():
        settings = _settings(args or RewardConfig(output_dir=folder), folder, rows, steps, learning_rate)
        probe = RewardTrainer(
            model=_copy_of(model),
            args=settings,
            train_dataset=_few_rows(train_dataset),
            processing_class=processing_class,
            **options,
        )
        probe.remove_callback(PrinterCallback)  # the report says it in a line
        batch = _first_strict(probe.train_dataset, rows)
        probe.train_dataset = batch
        return _report(probe, batch, loss_below + _entropy(batch))


def _settings(args: RewardConfig, folder: str, rows: int, steps: int, learning_rate: float | None) -> RewardConfig:
    """The caller's settings where only the batch is learned: no evaluation, no files, no schedule."""
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
    """A model of its own, without what accelerate put around the forward of the original."""
    if not isinstance(model, nn.Module):
        return model
    mine = copy.deepcopy(model)
    for module in mine.modules():
        if "_original_forward" in module.__dict__:  # both are bound to the original, whose weights they would read
            del module.__dict__["_original_forward"]
            module.__dict__.pop("forward", None)
    return mine


def _few_rows(data: Any) -> Any:
    """The first rows of each source."""
    if is_prepared(data):
        return _prepared(data)
    return [
        replace(source, data=_beginning(load_source(source)), weight=1.0)
        for source in as_sources(data)
    ]  # fmt: skip


def _beginning(data: Dataset | IterableDataset) -> Any:
    if isinstance(data, IterableDataset):
        return list(data.take(ROWS_READ))
    return data.select(range(min(ROWS_READ, len(data))))


def _prepared(data: Any) -> Dataset:
    """The first rows of a prepared dataset that may be a stream."""
    if isinstance(data, IterableDataset):
        return Dataset.from_list(list(data.take(ROWS_READ)), features=TOKENIZED_FEATURES)
    return data.select(range(min(ROWS_READ, len(data))))


def _first_strict(data: Any, count: int) -> Dataset:
    ranks = data["ranks"]
    places = [place for place in range(len(data)) if len(set(ranks[place])) == len(ranks[place])][:count]
    if not places:
        raise ValueError(
            f"None of the first {len(data)} training rows says which response is better (all are ties). Give "
            "`overfit_one_batch` rows that do."
        )
    return data.select(places)


def _entropy(batch: Dataset) -> float:
    """Mean entropy of the stated probabilities in nats: no model has a lower loss."""
    stated = np.asarray(batch["probability"], dtype=float)
    inner = np.clip(np.nan_to_num(stated, nan=1.0), 1e-12, 1 - 1e-12)
    return float(np.mean(-inner * np.log(inner) - (1 - inner) * np.log(1 - inner)))


class _StopWhenKnown(TrainerCallback):
    def __init__(self, loss_below: float) -> None:
        self.loss_below, self.known = loss_below, False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Stop when the batch is known by heart."""
        if logs and "loss" in logs and logs["accuracy"] == 1 and logs["loss"] < self.loss_below:
            self.known = control.should_training_stop = True


def _report(probe: RewardTrainer, batch: Dataset, loss_below: float) -> OverfitReport:
    """Train, and say what came out."""
    stop = _StopWhenKnown(loss_below)
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
    if not (stop.known or problem):
        moved = any(not torch.equal(before[name], w) for name, w in probe.model.named_parameters() if name in before)  # type: ignore[union-attr]
        advice = _advice(probe.args, batch, losses, moved)
    return OverfitReport(
        passed=stop.known,
        start_loss=losses[0],
        end_loss=losses[-1],
        accuracy=logs[-1]["accuracy"] if logs else math.nan,
        steps=probe.state.global_step,
        rows=list(batch["row"]),
        advice=advice,
    )


def _advice(args: RewardConfig, batch: Dataset, losses: list[float], moved: bool) -> list[str]:
    """What is likely wrong, the surest first."""
    advice = []
    if not moved:
        advice.append(
            f"No weight changed: `learning_rate` is {args.learning_rate} and `head_learning_rate` "
            f"{args.head_learning_rate}. Raise them, and check that head and adapter are trainable."
        )
    opposed = _contradictions(batch)
    if opposed:
        advice.append(
            f"The data rows {opposed} contradict each other: the same two responses in both orders. Drop one of each; "
            "`hf-reward check-data` finds them all."
        )
    if advice:
        return advice
    if losses[-1] > losses[0] or max(losses[len(losses) // 2 :]) > 2 * max(losses[0], 1e-6):
        return [f"The loss rises or jumps: `learning_rate={args.learning_rate}` is too high. Try a tenth of it."]
    return [
        f"The loss falls too slowly: from {losses[0]:.4f} to {losses[-1]:.4f} in {len(losses)} steps. Try more "
        f"`steps`, or `learning_rate` ten times {args.learning_rate}; if neither helps, look at the tokens of two rows."
    ]


def _contradictions(batch: Dataset) -> list[int]:
    """Rows of which another prefers the other side."""
    seen: dict[tuple[tuple[int, ...], ...], int] = {}
    for row, responses, ranks in zip(batch["row"], batch["input_ids"], batch["ranks"], strict=True):
        ordered = sorted(range(len(ranks)), key=ranks.__getitem__)
        seen[tuple(tuple(responses[place]) for place in ordered)] = row
    return sorted({row for order, row in seen.items() if order[::-1] in seen and order != order[::-1]})


@contextmanager
def _same_random_state() -> Iterator[None]:
    """Within this random numbers may be drawn; afterwards they go on as if none had been."""
    python, numbers = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count()))
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
