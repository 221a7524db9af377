"""Two processes evaluate like one, and resume from the same checkpoint."""

import copy
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import randomize_head
from datasets import Dataset
from test_trainer import ranked_lists
from training_runs import load, make_trainer, settings, weights
from two_processes import in_two_processes

from hf_reward import RewardConfig
from hf_reward.training import resume as resume_module
from hf_reward.training import run_lock
from hf_reward.training.settings_checks import with_even_batches


def result_of_both(function: Callable[[int], Any]) -> list[Any]:
    found = in_two_processes(function)
    assert [kind for kind, _ in found] == ["result", "result"], found
    return [value for _, value in found]


def trainer_with_random_head(folder: Path, out: Path | str, freeze_backbone: bool = False, **changes: Any) -> Any:
    model = load(folder, freeze_backbone=freeze_backbone)
    randomize_head(model)
    return make_trainer(model, ranked_lists(8), Path(out), per_device_eval_batch_size=2, **changes)


def without_times(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if "second" not in name and "time" not in name}


@pytest.mark.parametrize(("workers", "shards"), [(0, 1), (2, 3)])
def test_each_row_of_a_stream_is_evaluated_once_and_in_order(make_model_folder, tmp_path, workers, shards):
    """Seven rows, two at a time: accelerate repeats the first one, and would split three shards into 4 and 3 rows."""
    folder, rows = make_model_folder("llama"), ranked_lists(7)

    def measured(rank: int = 0) -> Any:
        more = {"dataloader_num_workers": workers, "dataloader_prefetch_factor": 2} if workers else {}
        trainer = trainer_with_random_head(folder, tmp_path / "run", **more)
        stream = Dataset.from_list(rows).to_iterable_dataset(num_shards=shards)
        metrics, output = trainer.evaluate(stream), trainer.predict(stream)
        return without_times(metrics | output.metrics), output.label_ids[-1].tolist(), output.predictions

    metrics, numbers, rewards = measured()
    assert rewards.std() > 1e-2
    table = trainer_with_random_head(folder, tmp_path / "run").predict(Dataset.from_list(rows)).predictions
    assert np.abs(rewards - table).max() < 1e-5
    for found_metrics, found_numbers, found_rewards in result_of_both(measured):
        assert found_numbers == numbers
        assert np.abs(found_rewards - rewards).max() < 1e-5
        assert found_metrics == pytest.approx(metrics, rel=1e-6, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("cached", [False, True])
def test_rows_that_are_already_split_between_processes_are_refused(make_model_folder, tmp_path, cache, cached):
    """accelerate would split each half again, and half of the rows would not be evaluated.

    Cached features would be stored for the rows of the main process, but half of them computed from other rows.
    """
    folder = make_model_folder("llama")

    def measured(rank: int) -> str:
        data = Dataset.from_list(ranked_lists(8)).shard(2, rank)
        trainer = trainer_with_random_head(folder, tmp_path / "run", freeze_backbone=cached, cache_features=cached)
        with pytest.raises(ValueError, match="processes were given different rows") as seen:
            trainer.evaluate(data)
        assert not list(cache.rglob("features-*"))
        return str(seen.value)

    for message in result_of_both(measured):
        assert "(4, 4 rows)" in message
        assert "Remove `split_dataset_by_node` and `shard`" in message


def test_several_processes_get_the_same_number_of_batches(tmp_path, caplog, monkeypatch):
    """Otherwise one process would wait forever for a batch that the other does not have."""
    args = settings(tmp_path, accelerator_config={"even_batches": False})
    assert not with_even_batches(copy.copy(args)).accelerator_config.even_batches
    assert "even_batches" not in caplog.text
    monkeypatch.setattr(RewardConfig, "world_size", 2)
    assert with_even_batches(copy.copy(args)).accelerator_config.even_batches
    assert "`even_batches=False` in `accelerator_config` is not possible" in caplog.text
    assert not args.accelerator_config.even_batches


@pytest.mark.slow  # 6 s
def test_both_processes_resume_from_the_same_checkpoint_or_both_stop(make_model_folder, tmp_path, monkeypatch):
    """Each process has its own disk, and one byte differs on the second."""
    folder, disks = make_model_folder("llama"), [tmp_path / "first", tmp_path / "second"]
    common: dict[str, Any] = {"per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 1}

    def trained(rank: int, **changes: Any) -> Any:
        monkeypatch.chdir(disks[rank])
        return trainer_with_random_head(folder, "run", max_steps=2, **{**common, **changes})

    def started(rank: int) -> None:
        trained(rank).train()

    def resumed(rank: int) -> Any:
        errors = []
        for resume, changes in (("auto", {"learning_rate": 3e-4}), ("run/checkpoint-2", {})):
            with pytest.raises(ValueError, match="checkpoint-") as seen:
                trained(rank, **changes).train(resume_from_checkpoint=resume)
            errors.append(str(seen.value))
        with monkeypatch.context() as patched:
            if rank == 1:  # only the shard of this process has a NaN
                patched.setattr(resume_module, "non_finite", lambda tensors: ["score.weight"])
            with pytest.raises(ValueError, match="checkpoint-1 has weights") as seen:
                trained(rank).train(resume_from_checkpoint="auto")
        errors.append(str(seen.value))
        trainer = trained(rank)
        metrics = trainer.train(resume_from_checkpoint="auto").metrics
        after = weights(trainer.accelerator.unwrap_model(trainer.model))
        return errors, metrics["resumed_from_step"], {name: value.numpy() for name, value in after.items()}

    disks[0].mkdir()
    disks[1].mkdir()
    assert result_of_both(started) == [None, None]
    shutil.copytree(disks[0] / "run", disks[1] / "run", dirs_exist_ok=True)  # only the first saves the shared files
    damaged = disks[1] / "run" / "checkpoint-2" / "optimizer.pt"
    content = bytearray(damaged.read_bytes())
    content[-200] ^= 1
    damaged.write_bytes(content)

    (errors, step, after), (other_errors, other_step, other_after) = result_of_both(resumed)
    assert errors == other_errors
    assert "learning_rate: was 0.0001, is 0.0003" in errors[0]
    assert "optimizer.pt has changed since it was saved" in errors[1]
    assert "not finite (score.weight and 0 others)" in errors[2]
    assert step == other_step == 1
    assert all(np.array_equal(value, other_after[name]) for name, value in after.items())


def test_both_processes_stop_if_another_run_holds_the_folder(make_model_folder, tmp_path, monkeypatch):
    folder, out = make_model_folder("llama"), tmp_path / "run"
    monkeypatch.setattr(run_lock, "HEARTBEAT_SECONDS", 0.2)

    def refused(rank: int) -> str:
        run_lock._held.clear()  # inherited through the fork
        with pytest.raises(RuntimeError) as seen:
            trainer_with_random_head(folder, out if rank == 0 else tmp_path / "free").train()
        return str(seen.value)

    with run_lock.run_lock(out):
        errors = result_of_both(refused)
    assert errors[0] == errors[1]
    assert f"Another run (process {os.getpid()} on " in errors[0]
    assert not list(tmp_path.glob("*/checkpoint-*"))
