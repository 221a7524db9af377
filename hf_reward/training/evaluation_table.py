"""Logged metrics of an evaluation -> a short table on the console; loggers and `log_history` get all metrics."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from hf_reward.metrics.intervals import FEW_CLUSTERS
from hf_reward.metrics.preference import doubts

_END = "_accuracy_ci_high"
_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("loss", "loss", ".4f"),
    ("accuracy", "accuracy", ".1%"),
    ("95% interval", "accuracy_ci_low", ".1%"),
    ("margin", "margin", ".3g"),
    ("length rule", "length_baseline", ".1%"),
    ("pairs", "num_pairs", ".0f"),
    ("prompts", "num_prompts", ".0f"),
)
"""Title, metric and format."""


def evaluation_table(logs: Mapping[str, Any]) -> str | None:
    """Return a table of the most important metrics, one line for each split and for each of its sources.

    Notes below the table name baselines that the accuracy of a split does not significantly exceed, and splits with too
    few prompts.

    Args:
        logs: A log entry of `RewardTrainer`.

    Returns:
        An aligned table with a heading; None for entries without an evaluation.
    """
    prefixes = [name.removesuffix(_END) for name in logs if name.endswith(_END)]
    if not any(f"{prefix}_loss" in logs for prefix in prefixes):
        return None
    lines = [["", *(title for title, _, _ in _COLUMNS)]]
    lines += [[prefix, *(_cell(logs, prefix, name, form) for _, name, form in _COLUMNS)] for prefix in prefixes]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    epoch = f"Evaluation at epoch {logs['epoch']:.2f}" if "epoch" in logs else "Evaluation"
    return "\n".join([epoch, *rows, *(f"{prefix}: {notes}." for prefix in prefixes if (notes := _notes(logs, prefix)))])


def _notes(logs: Mapping[str, Any], prefix: str) -> str:
    metrics = {name.removeprefix(f"{prefix}_"): value for name, value in logs.items() if name.startswith(f"{prefix}_")}
    if not {"loss", "length_baseline", "num_prompts"} <= metrics.keys():  # a source, or metrics of another trainer
        return ""
    few = [f"fewer than {FEW_CLUSTERS} prompts, too few for a verdict"] if metrics["num_prompts"] < FEW_CLUSTERS else []
    return "; ".join([*doubts(metrics), *few])


def _cell(logs: Mapping[str, Any], prefix: str, name: str, form: str) -> str:
    value = logs.get(f"{prefix}_{name}", math.nan)
    if name == "length_baseline":  # sources have only the rule in tokens
        value = logs.get(f"{prefix}_length_baseline_strongest", value)
    if not math.isfinite(value):
        return "-"
    if name == "accuracy_ci_low":
        return f"{value:.1%} to {logs[prefix + _END]:.1%}"
    return format(value, form)


class ProgressWithTable(ProgressCallback):
    """Progress bar of transformers that writes evaluations as a table."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a log entry above the bar."""
        table = evaluation_table(logs or {})
        if table is None:
            super().on_log(args, state, control, logs=logs, **kwargs)
        elif state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(table)


class PrinterWithTable(PrinterCallback):
    """Printer callback of transformers that prints evaluations as a table."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print a log entry."""
        table = evaluation_table(logs or {})
        if table is None:
            super().on_log(args, state, control, logs=logs, **kwargs)
        elif state.is_local_process_zero:
            print(table)  # noqa: T201 - like the printer of transformers


_WITH_TABLE: dict[type[TrainerCallback], Callable[[], TrainerCallback]] = {
    ProgressCallback: ProgressWithTable,
    PrinterCallback: PrinterWithTable,
}


def show_tables(trainer: Trainer) -> None:
    """Replace the console callbacks of a trainer by those that show evaluations as tables.

    Args:
        trainer: A trainer with the default callbacks of transformers; other callbacks are kept.
    """
    handler = trainer.callback_handler
    handler.callbacks = [_WITH_TABLE.get(type(each), lambda each=each: each)() for each in handler.callbacks]
