"""Checkpoint folders: atomic writing, recognition of incomplete checkpoints, and rotation."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_reward.training import checkpoints as checkpoint_folders
from hf_reward.training.checkpoints import (
    LIST_FILE,
    checkpoint_problem,
    checkpoints,
    newest_complete,
    publish,
    remove_leftovers,
    remove_old,
    staging_folder,
)


def write(folder: Path, step: int, mark: str = "a") -> Path:
    """Write a checkpoint like `Trainer`, without the list of files."""
    (folder / "adapter").mkdir(parents=True)
    save_file({"weight": torch.full((3,), float(step))}, folder / "model.safetensors")
    save_file({"weight": torch.zeros(2)}, folder / "adapter" / "adapter_model.safetensors")
    torch.save({"step": step}, folder / "optimizer.pt")
    torch.save({"last_epoch": step}, folder / "scheduler.pt")
    (folder / "mark.txt").write_text(mark)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return folder


def published(run: Path, step: int, mark: str = "a") -> Path:
    name = f"checkpoint-{step}"
    staging = staging_folder(run, name)
    publish(write(staging / name, step, mark), run / name)
    staging.rmdir()
    return run / name


def names(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


def test_a_checkpoint_lists_its_files_and_is_complete(tmp_path):
    folder = published(tmp_path, 5)
    listed = json.loads((folder / LIST_FILE).read_text())["files"]
    assert listed["adapter/adapter_model.safetensors"] == (folder / "adapter/adapter_model.safetensors").stat().st_size
    assert set(listed) == {
        *("adapter/adapter_model.safetensors", "mark.txt", "model.safetensors", "optimizer.pt", "scheduler.pt"),
        "trainer_state.json",
    }
    assert checkpoint_problem(folder) is None
    assert names(tmp_path) == ["checkpoint-5"]


def test_an_existing_checkpoint_is_replaced(tmp_path):
    published(tmp_path, 5, "old")
    assert (published(tmp_path, 5, "new") / "mark.txt").read_text() == "new"
    assert names(tmp_path) == ["checkpoint-5"]


@pytest.mark.parametrize("listed", [True, False], ids=["ours", "Trainer's"])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "adapter/adapter_model.safetensors"])
def test_truncated_files_are_detected(tmp_path, name, listed):
    folder = published(tmp_path, 5)
    if not listed:
        (folder / LIST_FILE).unlink()
        assert checkpoint_problem(folder) is None
    path = folder / name
    for size in (path.stat().st_size - 1, 5, 0):
        os.truncate(path, size)
        assert Path(name).name in str(checkpoint_problem(folder))


def test_missing_files_and_a_state_of_another_step_are_named(tmp_path):
    folder = published(tmp_path, 5)
    (folder / "optimizer.pt").unlink()
    assert checkpoint_problem(folder) == "optimizer.pt is missing"
    (folder / LIST_FILE).write_text("{")
    assert checkpoint_problem(folder) == f"its {LIST_FILE} cannot be read"
    renamed = shutil.copytree(folder, tmp_path / "checkpoint-6")
    assert checkpoint_problem(renamed) == "its trainer_state.json belongs to step 5"
    (folder / "trainer_state.json").write_text("{}")
    assert checkpoint_problem(folder) == "its trainer_state.json is not a valid trainer state"
    (folder / "trainer_state.json").unlink()
    assert checkpoint_problem(folder) == "it has no trainer_state.json"


@pytest.mark.parametrize("lost", ["optimizer.pt", "scheduler.pt"])
def test_a_checkpoint_without_optimizer_or_scheduler_state_cannot_be_resumed(tmp_path, lost):
    folder = write(tmp_path / "checkpoint-5", 5)  # `Trainer` would silently reset the missing state
    (folder / lost).unlink()
    assert "`save_only_model=True` does not save them" in str(checkpoint_problem(folder))
    (folder / "optimizer_0").mkdir()  # sharded
    assert (checkpoint_problem(folder) is None) == (lost == "optimizer.pt")
    (folder / "global_step5").mkdir()  # DeepSpeed
    assert checkpoint_problem(folder) is None


def test_the_newest_complete_checkpoint_is_found_and_skipped_ones_are_named(tmp_path, caplog):
    assert newest_complete(checkpoints(tmp_path)) is None
    for step in (2, 10, 9):
        published(tmp_path, step)
    (tmp_path / "checkpoint-11").mkdir()  # left by a killed `Trainer`
    (tmp_path / "checkpoint-best").mkdir()
    write(staging_folder(tmp_path, "checkpoint-12") / "checkpoint-12", 12)
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{n}" for n in (2, 9, 10, 11)]
    assert newest_complete(checkpoints(tmp_path)) == tmp_path / "checkpoint-10"
    assert "checkpoint-11 is skipped: it has no trainer_state.json" in caplog.text


def test_old_checkpoints_are_removed_unless_they_are_kept(tmp_path):
    folders = [published(tmp_path, step) for step in (1, 2, 3, 4)]
    for number, folder in enumerate(folders):
        os.utime(folder / "trainer_state.json", (1000 + number, 1000 + number))
    remove_old(tmp_path, None, [])
    assert len(names(tmp_path)) == 4
    remove_old(tmp_path, 3, [folders[3], folders[0]])
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-3", "checkpoint-4"]
    remove_old(tmp_path, 1, [folders[3], folders[0]])  # the best and the newest are kept although the limit is 1
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-4"]


def test_incomplete_checkpoints_and_those_of_an_earlier_run_are_removed_first(tmp_path):
    old, new = published(tmp_path, 900), published(tmp_path, 10)
    os.utime(old / "trainer_state.json", (1000, 1000))
    remnant = tmp_path / "checkpoint-8"
    remnant.mkdir()  # left by an interrupted removal, which renewed its modification time
    remove_old(tmp_path, 2, [new])
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-900"]
    remove_old(tmp_path, 1, [new])
    assert names(tmp_path) == ["checkpoint-10"]


_CALLS = (
    *((os, name) for name in ("fsync", "mkdir", "rmdir", "unlink")),
    *((Path, name) for name in ("rename", "write_text")),
    (checkpoint_folders.shutil, "rmtree"),
)


@pytest.mark.slow
def test_after_a_kill_before_any_call_a_complete_checkpoint_exists_and_the_next_save_succeeds(tmp_path, monkeypatch):
    """A save that replaces checkpoint 5 and removes checkpoint 4; the process ends before each of its calls in turn."""
    for stop in range(200):
        run = tmp_path / f"run-{stop}"
        published(run, 4)
        published(run, 5, "old")
        child = os.fork()
        if child == 0:
            remaining = stop

            def counted(own):
                def call(*args, **kwargs):
                    nonlocal remaining
                    if remaining == 0:
                        os._exit(9)
                    remaining -= 1
                    return own(*args, **kwargs)

                return call

            for owner, name in _CALLS:
                setattr(owner, name, counted(getattr(owner, name)))
            remove_leftovers(run)
            remove_old(run, 1, [published(run, 5, "new")])
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert all(checkpoint_problem(path) is None for path in checkpoints(run))
        remove_leftovers(run)
        found = newest_complete(checkpoints(run))
        assert found == run / "checkpoint-5"
        assert (found / "mark.txt").read_text() in ("old", "new")
        assert not [name for name in names(run) if name.startswith(".")]
        remove_old(run, 1, [published(run, 5, "new")])
        assert names(run) == ["checkpoint-5"]
        assert (found / "mark.txt").read_text() == "new"
        if ended == 0:
            break
    assert ended == 0
    assert stop > 20
