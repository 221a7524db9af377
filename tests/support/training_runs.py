"""A tiny trainer with all features disabled except the given settings, shared by tests of the trainer."""

import gc
from pathlib import Path
from typing import Any

import torch

from hf_reward import AutoModelForRewardScoring, RewardConfig, RewardTrainer

torch.set_num_threads(1)  # tiny matrices: a second thread only waits
gc.freeze()  # accelerate collects garbage in every run; the imported modules need not be searched each time

QUIET: dict[str, Any] = {
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "plot_curves": False,
    "logging_steps": 1,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "num_train_epochs": 1,
}


def settings(folder: Path, **changes: Any) -> RewardConfig:
    """Settings that write nothing but what a test asks for."""
    return RewardConfig(output_dir=str(folder), **{**QUIET, **changes})


def make_trainer(model: Any, train: Any, folder: Path, *, evaluation: Any = None, **changes: Any) -> RewardTrainer:
    """A trainer; `changes` that are not settings go to the trainer itself."""
    names = (
        "callbacks",
        "compute_metrics",
        "peft_config",
        "processing_class",
        "model_init",
        "data_collator",
        "optimizers",
    )
    own = {name: changes.pop(name) for name in names if name in changes}
    model = str(model) if isinstance(model, Path) else model
    args = settings(folder, **changes)
    return RewardTrainer(model=model, args=args, train_dataset=train, eval_dataset=evaluation, **own)


def load(folder: Path, **options: Any) -> Any:
    """A reward model from a folder."""
    return AutoModelForRewardScoring.from_pretrained(str(folder), **options)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every parameter by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest absolute difference between two sets of parameters of the same names."""
    assert one.keys() == other.keys()
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


def losses(trainer: RewardTrainer) -> list[float]:
    """The training loss of each logged step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
