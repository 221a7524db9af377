"""One measurement of `speed.py train`, in a separate process, so that its peak memory belongs to one side.

    python tests/performance/speed_measure.py task.json result.json

`TASKS` are the tasks of such a process; they take and return JSON values.
"""

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from geometries import FROZEN_IN_HALF, GEOMETRIES
from peft import LoraConfig, PeftModel
from speed_rows import Group, our_dataset, small_tokenizer, synthetic_rows, trl_dataset
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)


@dataclass(frozen=True)
class Run:
    """Settings of one training measurement."""

    is_trl: bool
    """Whether TRL's trainer is measured, otherwise ours."""
    mode: str
    """full, lora or frozen."""
    checkpointing: bool
    epochs: int
    max_length: int
    model: str
    """Folder of `build_model`."""
    dtype: str
    """Dtype of the loaded weights."""
    batch_size: int
    rows: str
    """JSON file of `warm_up` and `counted`, each a list of groups, each a list of responses."""
    settings: dict[str, Any]
    """Further settings of our trainer."""


def run_task(specification: Path, result: Path) -> None:
    """Run the task named in a JSON file and write its result to another.

    Args:
        specification: `task`, a name of `TASKS`, and its arguments.
        result: File for the result.
    """
    _prefer_as_oom_victim()
    values = json.loads(specification.read_text(encoding="utf-8"))
    result.write_text(json.dumps(TASKS[values.pop("task")](**values)), encoding="utf-8")


def _prefer_as_oom_victim() -> None:
    """When memory runs out, let Linux kill this measurement rather than the benchmark or another program."""
    place = Path("/proc/self/oom_score_adj")
    if place.exists():
        place.write_text("1000", encoding="ascii")


# --- tasks -----------------------------------------------------------------------------------------------------------


def build_model(geometry: str, folder: str) -> dict[str, Any]:
    """Save a random one-label classifier with a tokenizer.

    Args:
        geometry: Key of `GEOMETRIES`.
        folder: Folder for the model.

    Returns:
        `parameters` of the backbone without embeddings, and `attention`, the cost of one (query, key) pair in units of
        one parameter and token: two products per layer and dimension.
    """
    tokenizer = small_tokenizer(synthetic_rows(200))
    tokenizer.pad_token = "<|endoftext|>"
    torch.manual_seed(0)
    shape = {**GEOMETRIES[geometry], "tie_word_embeddings": True, "max_position_embeddings": 8192}
    config = AutoConfig.for_model(**shape, num_labels=1, pad_token_id=tokenizer.pad_token_id)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # drawing billions of weights on a CPU is slow
        model = AutoModelForSequenceClassification.from_config(config, dtype=getattr(torch, dtype_of(geometry)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    embeddings = model.get_input_embeddings().weight.numel()
    parameters = sum(weight.numel() for weight in model.base_model.parameters()) - embeddings
    return {"parameters": parameters, "attention": 2 * config.num_hidden_layers * config.hidden_size}


def dtype_of(geometry: str) -> str:
    """Return the dtype of the weights of a geometry."""
    return "bfloat16" if geometry in FROZEN_IN_HALF else "float32"


def matmul_rate(seconds: float = 3.0) -> float:
    """Measure the floating-point operations per second of square matrix products, as a median.

    The median rather than the maximum, because the speed of a shared machine varies. It is measured before and after
    each training run, to get the speed at that time.

    Args:
        seconds: Duration of the measurement; a sixth of it on CUDA, where a product takes milliseconds.

    Returns:
        The rate, in bfloat16 on CUDA and float32 on a CPU.
    """
    cuda = torch.cuda.is_available()
    size = 8192 if cuda else 2048
    kind: dict[str, Any] = {"device": "cuda" if cuda else "cpu", "dtype": torch.bfloat16 if cuda else torch.float32}
    one, other = torch.randn(size, size, **kind), torch.randn(size, size, **kind)
    torch.mm(one, other)
    times: list[float] = []
    while sum(times) < (seconds / 6 if cuda else seconds):
        start = _now()
        torch.mm(one, other)
        times.append(_now() - start)
    return 2 * size**3 / median(times)


def measure_training(**values: Any) -> dict[str, Any]:
    """Train and measure the time from the end of each optimizer step to the end of the next.

    Without warm-up rows, epochs are measured instead, the first one from the call of `train`.

    Args:
        **values: The fields of `Run`.

    Returns:
        `seconds`, `cpu_seconds` (of all threads) and `tokens_computed` of each measured step or epoch,
        `start_up_seconds` from the construction of the trainer to its first step, the totals `pairs` and
        `useful_tokens`, `peak_bytes`, and `matmul_flops` before and after.
    """
    run, rate = Run(**values), matmul_rate()
    rows = json.loads(Path(run.rows).read_text(encoding="utf-8"))
    warm_up, counted = ([Group(responses) for responses in rows[part]] for part in ("warm_up", "counted"))
    if warm_up and run.settings.get("torch_compile"):  # the second step compiles again, for any length
        warm_up += counted[: run.batch_size]
    begin = _now()
    with tempfile.TemporaryDirectory() as folder:
        trainer = (trl_trainer if run.is_trl else our_trainer)(run, warm_up, counted, folder)
        assert trainer.model is not None
        clock = Clock(trainer.model)
        trainer.add_callback(clock)
        start = clock.reading()
        trainer.train()
    marks = clock.steps[(len(warm_up) - 1) // run.batch_size :] if warm_up else [start, *clock.epochs]
    return {
        "seconds": [after[0] - before[0] for before, after in pairwise(marks)],
        "tokens_computed": [after[1] - before[1] for before, after in pairwise(marks)],
        "cpu_seconds": [after[2] - before[2] for before, after in pairwise(marks)],
        "start_up_seconds": clock.first_step - begin,
        "pairs": run.epochs * sum(len(group.pairs) for group in counted),
        "useful_tokens": run.epochs * sum(group.useful_tokens for group in counted),
        "peak_bytes": peak_bytes(),
        "matmul_flops": [rate, matmul_rate()],
    }


TASKS = {"build": build_model, "train": measure_training}


# --- the two trainers ------------------------------------------------------------------------------------------------


def trl_trainer(run: Run, warm_up: list[Group], counted: list[Group], folder: str) -> Trainer:
    """Make TRL's trainer on all pairs of the groups."""
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    model: Any = run.model
    if run.mode == "frozen" or run.dtype != "float32":
        model = AutoModelForSequenceClassification.from_pretrained(run.model, dtype=getattr(torch, run.dtype))
    if run.mode == "frozen":
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith("score.")
    return RewardTrainer(
        model=model,
        args=RewardConfig(**_settings(run, folder), gradient_checkpointing=run.checkpointing),
        train_dataset=trl_dataset(warm_up, counted, run.batch_size),
        processing_class=AutoTokenizer.from_pretrained(run.model),
        peft_config=_adapter(run),
    )


def our_trainer(run: Run, warm_up: list[Group], counted: list[Group], folder: str) -> Trainer:
    """Make our trainer on the groups."""
    from hf_reward import AutoModelForRewardScoring, RewardConfig, RewardTrainer

    model: Any = run.model
    settings = {**_settings(run, folder), "activation_checkpointing": run.checkpointing}
    settings |= {"over_length": "drop", "plot_curves": False, **run.settings}
    if run.dtype != "float32":
        model = AutoModelForRewardScoring.from_pretrained(run.model, dtype=run.dtype)
    if run.mode == "frozen":
        model = AutoModelForRewardScoring.from_pretrained(run.model, freeze_backbone=True)
        if "cache_features" in RewardConfig.__dataclass_fields__:
            settings["cache_features"] = "auto"
    return RewardTrainer(
        model=model,
        args=RewardConfig(**settings),
        train_dataset=our_dataset(warm_up, counted),
        processing_class=AutoTokenizer.from_pretrained(run.model),
        peft_config=_adapter(run),
    )


def _settings(run: Run, folder: str) -> dict[str, Any]:
    """Return the settings of both trainers, without logging, saving and shuffling."""
    cuda = torch.cuda.is_available()
    return {
        "output_dir": folder,
        "per_device_train_batch_size": run.batch_size,
        "num_train_epochs": run.epochs,
        "train_sampling_strategy": "sequential",
        "max_length": run.max_length,
        "learning_rate": 1e-4,
        "seed": 42,
        "disable_dropout": True,
        "use_cpu": not cuda,
        "bf16": cuda,
        "dataloader_pin_memory": cuda,
        "report_to": "none",
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def _adapter(run: Run) -> LoraConfig | None:
    return LoraConfig(task_type="SEQ_CLS", r=16, target_modules="all-linear") if run.mode == "lora" else None


# --- measuring -------------------------------------------------------------------------------------------------------


class Clock(TrainerCallback):
    """Record the time and the number of tokens computed by the backbone at the end of each step and epoch."""

    def __init__(self, model: nn.Module) -> None:
        self.tokens = 0
        self.first_step = float("nan")
        self.steps: list[tuple[float, int, float]] = []
        self.epochs: list[tuple[float, int, float]] = []
        bare: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        bare.base_model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        ids = options["input_ids"] if "input_ids" in options else arguments[0]
        self.tokens += ids.numel()

    def reading(self) -> tuple[float, int, float]:
        """Return seconds, tokens and processor seconds, after synchronising the device."""
        return _now(), self.tokens, time.process_time()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the start of the first step."""
        if state.global_step == 0:
            self.first_step = _now()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Record an optimizer step."""
        self.steps.append(self.reading())

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record an epoch."""
        self.epochs.append(self.reading())


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes() -> int:
    """Return the peak memory so far: of tensors on CUDA, else of the process, including imports."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # `ru_maxrss` of a child process starts at that of its parent
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    run_task(Path(sys.argv[1]), Path(sys.argv[2]))
