"""Run a few steps on the longest rows: measure their memory, and estimate the duration of the run."""

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_reward.metrics.counts import counted
from hf_reward.modeling.reward_head import head_parameters, trains_only_head
from hf_reward.preprocessing.samplers import longest_sequences
from hf_reward.training.memory import bytes_of, free_memory, gib, optimizer_bytes, optimizer_state, peak_memory
from hf_reward.training.steps import total_steps
from hf_reward.training.trainer import RewardTrainer
from hf_reward.training.training_args import RewardConfig


def estimate_memory(trainer: RewardTrainer) -> tuple[int, str]:
    """Estimate the memory of gradients and optimizer state, and stop if the device has less.

    Args:
        trainer: The trainer.

    Returns:
        Bytes of gradients and optimizer state, and a description.

    Raises:
        MemoryError: If less memory is free.
    """
    model: Any = trainer.model
    weights = bytes_of(model.parameters())
    gradients = bytes_of(weight for weight in model.parameters() if weight.requires_grad)
    name = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    states = optimizer_bytes(name, model)
    free, total = free_memory(trainer.args.device)
    needed = gradients + (states or 0)
    known = f"{gib(states)} optimizer state ({name})" if states is not None else f"optimizer state of {name} unknown"
    detail = f"{gib(weights)} weights, {gib(gradients)} gradients, {known}; free {gib(free)} of {gib(total)}"
    if needed > free:
        raise MemoryError(
            f"{detail}. Gradients and optimizer state alone need {gib(needed)}: use LoRA, a smaller model, or another "
            "`optim`."
        )
    return needed, f"{detail}. Activations are measured in the steps below"


@dataclass(frozen=True)
class Timing:
    """Duration and size of one optimizer step."""

    seconds: float
    tokens: int


class _StepProbe(TrainerCallback):
    """Times the last step, and checks whether gradients reach weights outside the head."""

    def __init__(self, model: Any) -> None:
        head = {name for name, _ in head_parameters(model)}
        self.inner = [(n, w) for n, w in model.named_parameters() if w.requires_grad and n not in head]
        self.seconds, self.reached = math.nan, False

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self.started = _now()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the gradients."""
        self.reached = any(weight.grad is not None and bool(weight.grad.any()) for _, weight in self.inner)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop the clock."""
        self.seconds = _now() - self.started


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def run_steps(trainer: RewardTrainer, args: RewardConfig) -> tuple[Timing, str]:
    """Train on the longest rows.

    Args:
        trainer: A trainer of a few steps; its training rows are replaced.
        args: Settings of the run.

    Returns:
        The timing of the last step, and a description.

    Raises:
        ValueError: If no gradient reaches trainable weights outside the head.
    """
    model: Any = trainer.model
    count = trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps
    rows: Any = longest_rows(trainer.train_dataset, count)  # pyright: ignore[reportArgumentType]
    probe = _StepProbe(model)
    trainer.train_dataset = rows
    trainer.add_callback(probe)
    with peak_memory(trainer.args.device) as peak:
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if probe.inner and not probe.reached and not trains_only_head(model):
        raise ValueError(
            f"No gradient reached the {len(probe.inner)} trainable tensors outside the head (the first is "
            f"{probe.inner[0][0]}). Check activation checkpointing, frozen layers and your own hooks."
        )
    tokens = int(sum(rows["length"]))
    state = optimizer_state(trainer.optimizer)
    gradients = bytes_of(weight for weight in model.parameters() if weight.requires_grad)
    if trainer.args.device.type == "cuda":
        rest = peak.highest - bytes_of(model.parameters()) - gradients - state
        memory = f"peak {gib(peak.highest)} on the device, {gib(max(rest, 0))} of it activations"
    else:
        memory = (
            f"resident set grew by {gib(peak.growth)} to {gib(peak.highest)} (gradients, optimizer state, activations "
            "and memory kept by the allocator)"
        )
    notes = _notes(args, peak.highest, trainer.args.device)
    return (
        Timing(probe.seconds, tokens),
        f"{counted(len(rows), 'row')}, longest sequence {int(longest_sequences(rows).max())} tokens, {tokens} tokens "
        f"in a step: losses {', '.join(f'{loss:.3f}' for loss in losses)}; {memory}; "
        f"optimizer state {gib(state)}{notes}",
    )


def _notes(args: RewardConfig, highest: int, device: torch.device) -> str:
    notes = []
    if args.gradient_accumulation_steps > 2:
        notes.append(f"2 of {args.gradient_accumulation_steps} accumulated batches were run")
    if highest > 0.9 * free_memory(device)[1]:
        notes.append("more than 90% of the memory is in use: set `max_tokens_per_batch` or a smaller batch")
    return "".join(f"; {note}" for note in notes)


def longest_rows(data: Dataset, count: int) -> Dataset:
    """Select the rows that need the most memory: longest sequence first, then most tokens.

    Args:
        data: Prepared rows.
        count: Number of rows; fewer if the data has fewer.

    Returns:
        The selected rows, longest first.
    """
    order = np.lexsort((np.asarray(data["length"]), longest_sequences(data)))[::-1]
    return data.select(order[:count].tolist())


def duration(args: RewardConfig, rows: Any, timing: Timing) -> tuple[float, str]:
    """Estimate the duration of the run from a step on its longest rows.

    Args:
        args: Settings of the run.
        rows: All prepared training rows.
        timing: Timing of that step.

    Returns:
        Seconds, and a description.
    """
    speed = timing.tokens / timing.seconds
    lengths = np.asarray(rows["length"])
    steps = total_steps(args, len(rows))
    total = steps * args.train_batch_size * args.gradient_accumulation_steps * float(lengths.mean())
    seconds = total / speed
    spent = f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.1f} minutes"
    return seconds, (
        f"{speed:,.0f} tokens/s on the longest rows, {total:,.0f} tokens in {steps} steps: about {spent} of training, "
        "without evaluation and saving"
    )
