"""Metrics as `evaluate` modules: scripts that `evaluate.load` reads from a path, without network access."""

from importlib.resources import files
from pathlib import Path

import evaluate

NAMES = ("preference_accuracy", "preference_calibration", "best_of_n", "length_baseline", "rm_bench")


def metric_path(name: str) -> Path:
    """Return the folder of a metric, for `evaluate.load` and `evaluate.combine`.

    Args:
        name: One of `NAMES`.

    Returns:
        The folder.

    Raises:
        ValueError: If there is no such metric.
    """
    if name not in NAMES:
        raise ValueError(f"There is no metric {name!r}. Available: {', '.join(NAMES)}.")
    return Path(str(files("hf_reward.evaluation"))) / "evaluate_modules" / name


def load_metric(name: str, **options: object) -> evaluate.EvaluationModule:
    """Load a metric offline.

    Args:
        name: One of `NAMES`.
        **options: For `evaluate.load`: `keep_in_memory`, `experiment_id`, `num_process`, `process_id`, ...

    Returns:
        The metric; `evaluate.combine` accepts it too.

    Raises:
        ValueError: If there is no such metric.
    """
    return evaluate.load(str(metric_path(name)), **options)  # pyright: ignore[reportArgumentType]
