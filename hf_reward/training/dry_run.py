"""Dry run: try each stage of a run in a minute (data, model, memory, longest rows, evaluation, saving, reloading).

It finds errors that would otherwise stop a run only after several hours. Its files go to a temporary folder, which is
removed.
"""

import math
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from datasets import Dataset, IterableDataset
from huggingface_hub import get_token
from rich.markup import escape
from rich.table import Table

from hf_reward.data.sources import Source
from hf_reward.metrics.counts import counted
from hf_reward.modeling.checkpoint_record import CheckpointRecord
from hf_reward.modeling.reward_head import unwrap_model
from hf_reward.publishing.verify import VerificationError, verify_checkpoint
from hf_reward.training.checkpoints import checkpoint_problem
from hf_reward.training.dry_run_steps import duration, estimate_memory, longest_rows, run_steps
from hf_reward.training.memory import (
    count_parameters,
    gib,
    peak_memory,
)
from hf_reward.training.steps import checkpoints_kept, total_steps
from hf_reward.training.trainer import RewardTrainer
from hf_reward.training.training_args import RewardConfig
from hf_reward.training.trial_config import trial_config

STREAM_SAMPLE = 1000
"""Number of rows read from a stream."""
STEPS = 2  # memory peaks in the second step, when the optimizer has its state and a zero head passes gradients on

T = TypeVar("T")
Sources = list[Source]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Result of one stage of a dry run."""

    name: str
    passed: bool
    detail: str
    seconds: float = 0.0


@dataclass(kw_only=True)
class DryRun:
    """Results of the stages that ran, in order. Stages that depend on a failed one do not run."""

    stages: list[Stage] = field(default_factory=list)

    @property
    def stations(self) -> list[Stage]:
        """Deprecated name of `stages`."""
        warnings.warn("`DryRun.stations` is deprecated; use `DryRun.stages`.", DeprecationWarning, stacklevel=2)
        return self.stages

    @property
    def passed(self) -> bool:
        """Whether every stage that ran passed."""
        return all(stage.passed for stage in self.stages)

    def table(self) -> Table:
        """Return a table with one line for each stage."""
        table = Table("stage", "", "seconds", "found", title="Dry run", title_justify="left")
        for stage in self.stages:
            verdict = "pass" if stage.passed else "FAIL"
            table.add_row(stage.name, verdict, f"{stage.seconds:.1f}", escape(stage.detail))
        return table

    def attempt(self, name: str, work: Callable[[], tuple[T, str]]) -> T | None:
        """Run one stage and record its result.

        Args:
            name: Name of the stage.
            work: Runs it; returns its result and a description of what was found.

        Returns:
            The result of `work`; None if it failed.
        """
        made, passed, started = None, True, time.perf_counter()
        try:
            made, detail = work()
        except (Exception, SystemExit) as error:
            passed, detail = False, _reason(error)
        seconds = time.perf_counter() - started
        self.stages.append(Stage(name=name, passed=passed, detail=detail, seconds=seconds))
        return made


def dry_run(
    args: RewardConfig,
    load: Callable[[], tuple[Sources, Sources]],
    build: Callable[[RewardConfig, Sources, Sources], RewardTrainer],
    *,
    first: Callable[[], None] = lambda: None,
) -> DryRun:
    """Try every stage of a run in one process, without touching its output folder.

    Args:
        args: Settings of the run.
        load: Reads training and evaluation rows as the run does.
        build: Makes the trainer from settings and rows as the run does.
        first: Check that the run makes before it reads anything.

    Returns:
        The result of each stage.

    Raises:
        ValueError: If there are several processes.
    """
    if args.world_size > 1:
        raise ValueError(
            f"`dry_run` runs in one process, but {args.world_size} were started. Start it with `hf-reward train`."
        )
    found = DryRun()
    found.attempt("output folder", lambda: _check_output(args, first))
    if args.push_to_hub:
        found.attempt("Hub token", lambda: _check_token(args))
    with _temporary_folder(args) as folder:
        free = shutil.disk_usage(folder).free  # before anything is written here
        sources = found.attempt("data", lambda: _read(load, args))
        if sources is None:
            return found
        settings = _settings(args, folder)
        trainer = found.attempt("model and rows", lambda: _build(build, settings, *sources))
        if trainer is not None:
            _try_training(found, trainer, args, free)
    return found


def _try_training(found: DryRun, trainer: RewardTrainer, args: RewardConfig, free: int) -> None:
    """Run the stages that need a model."""
    if found.attempt("memory estimate", lambda: estimate_memory(trainer)) is None:
        return
    rows = trainer.train_dataset
    timing = found.attempt(f"{STEPS} steps, longest rows", lambda: run_steps(trainer, args))
    if timing is None:
        return
    for name, data in _evaluation_data(trainer).items():
        found.attempt(f"evaluation batch{name}", lambda data=data: _evaluate(trainer, data))
    checkpoint = found.attempt("checkpoint", lambda: _checkpoint(trainer))
    if checkpoint is not None:
        final = 4 * unwrap_model(trainer.model).num_parameters()  # the recipe saves it merged, in float32
        found.attempt("reload", lambda: _reload(trainer))
        found.attempt("disk space", lambda: _check_disk(args, rows, checkpoint, final, free))
    found.attempt("duration", lambda: duration(args, rows, timing))


# --- before the model ---


def _check_output(args: RewardConfig, first: Callable[[], None]) -> tuple[bool, str]:
    first()
    folder = _existing(Path(args.output_dir or "."))
    if not folder.is_dir():
        raise NotADirectoryError(
            f"{folder} is a file, so {args.output_dir} cannot be created. Set another `output_dir`."
        )
    if not _is_writable(folder):
        raise PermissionError(f"{folder} is not writable. Set another `output_dir`, or change its permissions.")
    return True, f"{args.output_dir} is writable"


def _check_token(args: RewardConfig) -> tuple[bool, str]:
    if not (args.hub_token or get_token()):
        raise PermissionError(
            "`push_to_hub` is set, but there is no token. Run `hf auth login`, set HF_TOKEN, or pass `hub_token`."
        )
    return True, "a token is set; write permission was not checked"


def _read(load: Callable[[], tuple[Sources, Sources]], args: RewardConfig) -> tuple[tuple[Sources, Sources], str]:
    train, held_out = load()
    sampled = any(isinstance(source.data, IterableDataset) for source in train)
    train, held_out = [_sampled(source) for source in train], [_sampled(source) for source in held_out]
    counts = [sum(len(source.data) for source in part) for part in (train, held_out)]
    if sampled and args.max_steps < 1:
        raise ValueError("A stream has no known length, so the run needs `max_steps`. Set it.")
    scope = f" (the first {STREAM_SAMPLE} of each stream)" if sampled else ""
    return (train, held_out), f"{counted(counts[0], 'training row')}{scope}, {counted(counts[1], 'evaluation row')}"


def _sampled(source: Source) -> Source:
    if not isinstance(source.data, IterableDataset):
        return source
    return replace(source, data=Dataset.from_list(list(source.data.take(STREAM_SAMPLE))))


def _settings(args: RewardConfig, folder: Path) -> RewardConfig:
    """Return the run's settings for a few steps in another folder, without reporting or uploads."""
    return trial_config(
        args,
        str(folder),
        max_steps=STEPS,
        gradient_accumulation_steps=min(args.gradient_accumulation_steps, 2),  # the second runs with stored gradients
        cache_features="false" if args.choice("cache_features") == "auto" else args.cache_features,
    )


def _build(
    build: Callable[[RewardConfig, Sources, Sources], RewardTrainer],
    settings: RewardConfig,
    train: Sources,
    held_out: Sources,
) -> tuple[RewardTrainer, str]:
    trainer = build(settings, train, held_out)
    total, trained = count_parameters(trainer.model)  # pyright: ignore[reportArgumentType]
    parts = trainer.data_summaries.items()
    kept = "; ".join(
        f"{name}: {part.kept} of {counted(part.rows, 'row')} kept, longest "
        f"{counted(max(part.token_quantiles.values(), default=0), 'token')}"
        for name, part in parts
    )
    detail = f"{total:,} parameters, {trained:,} trainable ({trained / total:.2%}). {kept}"
    longest = trainer.args.max_length
    if longest != settings.max_length:
        detail += f". The model supports {longest} positions, so `max_length` is {longest}"
    return trainer, detail


def _evaluation_data(trainer: RewardTrainer) -> Mapping[str, Any]:
    held_out: Any = trainer.eval_dataset
    if held_out is None:
        return {}
    return {f" ({name})": data for name, data in held_out.items()} if isinstance(held_out, Mapping) else {"": held_out}


def _evaluate(trainer: RewardTrainer, data: Dataset) -> tuple[float, str]:
    rows: Any = longest_rows(data, trainer.args.eval_batch_size)
    metrics_of, trainer.compute_metrics = trainer.compute_metrics, None  # too few rows for useful metrics
    try:
        with peak_memory(trainer.args.device) as peak:
            loss = trainer.evaluate(eval_dataset=rows)["eval_loss"]
    finally:
        trainer.compute_metrics = metrics_of
    if not math.isfinite(loss):
        raise FloatingPointError(f"The evaluation loss is {loss}. Inspect the data rows {rows['row']}.")
    return loss, f"the {len(rows)} longest rows: loss {loss:.3f}, memory grew by {gib(peak.growth)}"


# --- saving ---


def _checkpoint_folder(trainer: RewardTrainer) -> Path:
    return Path(trainer.args.output_dir or ".") / f"checkpoint-{trainer.state.global_step}"


def _checkpoint(trainer: RewardTrainer) -> tuple[int, str]:
    """Write one checkpoint the way the run does."""
    trainer._save_checkpoint(trainer.model, trial=None)
    folder = _checkpoint_folder(trainer)
    problem = checkpoint_problem(folder)
    if problem is not None:
        raise OSError(f"The checkpoint could not be resumed: {problem}.")
    size = _size(folder)
    return size, f"{gib(size)} with optimizer state, complete"


def _reload(trainer: RewardTrainer) -> tuple[bool, str]:
    folder = _checkpoint_folder(trainer)
    record = CheckpointRecord.load(folder)
    judged = ["float32"] if record is not None and "float32" in record.probes.get("rewards", {}) else None
    loading: dict[str, Any] = {"trust_remote_code": trainer.args.trust_remote_code}
    loading["allow_pickle"] = True  # this run has already loaded the adapter's base by its own rule
    found = verify_checkpoint(folder, dtypes=judged, only=["alone"], **loading)
    if not found.equal:
        raise VerificationError(f"The saved model does not give the same rewards: {found}", found)
    return (
        True,
        "a fresh process gives the same rewards for the probe conversations (largest difference "
        f"{found.largest_difference():.1e})",
    )


def _check_disk(args: RewardConfig, rows: Any, checkpoint: int, final: int, free: int) -> tuple[int, str]:
    count = checkpoints_kept(args, total_steps(args, len(rows)))
    needed, files = count * checkpoint + final, counted(count, "checkpoint")
    detail = f"{files} of {gib(checkpoint)} and the model of {gib(final)} need {gib(needed)}; free {gib(free)}"
    if needed > free:
        raise OSError(
            f"{detail}. Set `save_total_limit`, `save_only_model` (which rules out resuming), or another `output_dir`."
        )
    return needed, detail


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _existing(path: Path) -> Path:
    """Return the path itself if it exists, else its nearest existing parent."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())


@contextmanager
def _temporary_folder(args: RewardConfig) -> Iterator[Path]:
    """Yield a temporary folder on the disk of the output, or in the system's default place if that is read-only."""
    parent = _existing(Path(args.output_dir or "."))
    with tempfile.TemporaryDirectory(prefix=".dry-run-", dir=parent if _is_writable(parent) else None) as folder:
        yield Path(folder)


def _is_writable(folder: Path) -> bool:
    """Test by creating a folder: permission bits do not cover root or a read-only file system."""
    try:
        with tempfile.TemporaryDirectory(prefix=".dry-run-", dir=folder):
            return True
    except OSError:
        return False


def _reason(error: BaseException) -> str:
    """Return the message of an error, with a remedy for out-of-memory errors."""
    if isinstance(error, SystemExit):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"{str(error).splitlines()[0]} The batch holds the longest rows of the data. Set `max_tokens_per_batch`, "
            "`activation_checkpointing`, a smaller `per_device_train_batch_size`, or a lower `max_length`."
        )
    return f"{type(error).__name__}: {error}"
