"""Logged metrics of an evaluation -> a short table on the console; loggers and `log_history` keep the whole dict."""

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
    """The important fields of an evaluation, one line for each split and one for each of its sources.

    Below them is said, of each split, what its accuracy is not shown to be above, and where prompts are too few.

    Args:
        logs: What `RewardTrainer` logs.

    Returns:
        An aligned table with a headline, None for entries that hold no evaluation.
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
    return "\n".join([epoch, *rows, *(f"{prefix}: {said}." for prefix in prefixes if (said := _said(logs, prefix)))])


def _said(logs: Mapping[str, Any], prefix: str) -> str:
    metrics = {name.removeprefix(f"{prefix}_"): value for name, value in logs.items() if name.startswith(f"{prefix}_")}
    if not {"loss", "length_baseline", "num_prompts"} <= metrics.keys():  # a source, or a split of another kind
        return ""
    few = [f"fewer than {FEW_CLUSTERS} prompts, too few for a verdict"] if metrics["num_prompts"] < FEW_CLUSTERS else []
    return "; ".join([*doubts(metrics), *few])


def _cell(logs: Mapping[str, Any], prefix: str, name: str, form: str) -> str:
    value = logs.get(f"{prefix}_{name}", math.nan)
    if name == "length_baseline":  # sources have the rule in tokens alone
        value = logs.get(f"{prefix}_length_baseline_strongest", value)
    if not math.isfinite(value):
        return "-"
    if name == "accuracy_ci_low":
        return f"{value:.1%} to {logs[prefix + _END]:.1%}"
    return format(value, form)


class ProgressWithTable(ProgressCallback):
    """The progress bar of transformers, which writes evaluations as a table."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write an entry above the bar."""
        table = evaluation_table(logs or {})
        if table is None:
            super().on_log(args, state, control, logs=logs, **kwargs)
        elif state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(table)


class PrinterWithTable(PrinterCallback):
    """The printer of transformers, which prints evaluations as a table."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print an entry."""
        table = evaluation_table(logs or {})
        if table is None:
            super().on_log(args, state, control, logs=logs, **kwargs)
        elif state.is_local_process_zero:
            print(table)  # noqa: T201 - as the printer of transformers does


_WITH_TABLE: dict[type[TrainerCallback], Callable[[], TrainerCallback]] = {
    ProgressCallback: ProgressWithTable,
    PrinterCallback: PrinterWithTable,
}


def show_tables(trainer: Trainer) -> None:
    """Let a trainer's console show evaluations as tables, in place.

    Args:
        trainer: A trainer with the callbacks that transformers gave it; others stay.
    """
    handler = trainer.callback_handler
    handler.callbacks = [_WITH_TABLE.get(type(each), lambda each=each: each)() for each in handler.callbacks]
