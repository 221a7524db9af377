"""Training events -> history and curves."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_reward.data.extras import optional

CURVES_FILE = "training_curves.png"
_PANELS = (
    ("loss", "Loss (nats)", (("loss", "training"), ("epoch_loss", "training, epoch"), ("eval_loss", "evaluation"))),
    (
        "accuracy",
        "Pairwise accuracy (strict)",
        (("accuracy", "training"), ("epoch_accuracy", "training, epoch"), ("eval_accuracy", "evaluation")),
    ),
    ("margin", "Mean margin (reward units)", (("margin", "training"), ("eval_margin", "evaluation"))),
    ("learning rate", "Learning rate", (("learning_rate", "schedule"),)),
)


class TrainingCurves(TrainerCallback):
    """Draws loss, accuracy, margin and learning rate into the output folder when training ends, and after it."""

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw the curves of the main process's history."""
        if state.is_world_process_zero and args.output_dir is not None:
            draw_curves(state.log_history, Path(args.output_dir) / CURVES_FILE)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Draw again with an evaluation made after the last step."""
        if 0 < state.max_steps <= state.global_step:
            self.on_train_end(args, state, control)


def epoch_history(log_history: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Training loss and accuracy of each finished epoch.

    Args:
        log_history: `TrainerState.log_history`, which survives resuming.

    Returns:
        One entry with `epoch`, `epoch_loss` and `epoch_accuracy` for each epoch.
    """
    return [entry for entry in log_history if "epoch_loss" in entry]


def draw_curves(log_history: list[dict[str, Any]], path: Path) -> None:
    """Draw what a run logged, four panels over optimizer steps; nothing without matplotlib.

    Args:
        log_history: `TrainerState.log_history`.
        path: The PNG to write.
    """
    # matplotlib takes a second to import and is needed once, at the end of a run.
    drawing = optional("matplotlib.figure", "audit", "No training curves are drawn.")
    if drawing is None:
        return
    figure = drawing.Figure(figsize=(10, 6.4), layout="constrained")
    panels = figure.subplots(2, 2)
    for axes, (_, label, series) in zip(panels.flat, _PANELS, strict=True):
        for key, name in series:
            _draw_series(axes, log_history, key, name)
        axes.set_xlabel("Optimizer step")
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False)
    figure.suptitle(f"Training curves, {_last_step(log_history)} steps")
    figure.savefig(path, dpi=120)


def _draw_series(axes: Any, log_history: list[dict[str, Any]], key: str, name: str) -> None:
    points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
    if not points:
        return
    style = {"epoch": {"marker": "o", "linestyle": "--"}, "eval": {"marker": "s"}}.get(key.split("_")[0], {})
    axes.plot(*zip(*points, strict=True), label=name, **style)


def _last_step(log_history: list[dict[str, Any]]) -> int:
    return max((int(entry["step"]) for entry in log_history), default=0)
