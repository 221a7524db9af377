"""Checkpoints on disk: each appears complete or not at all, and the newest complete one is never removed.

`Trainer` writes into the final folder and resumes from the highest number, complete or not. Here a checkpoint is
written to a temporary folder with a list of its files, flushed to disk and renamed. No run resumes from a temporary
folder.
"""

import json
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from hf_reward.data.atomic_file import sync_folder
from hf_reward.data.file_identity import content_hash
from hf_reward.modeling.weight_safety import non_finite_in_file, safetensors_problem

logger = logging.getLogger(__name__)

LIST_FILE = "checkpoint_files.json"
"""In a checkpoint: the size in bytes of each of its files (`files`), and a hash of its content (`xxh3_128`)."""
_HASHES = "xxh3_128"
_STATE_FILE = "trainer_state.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_STAGING, _REPLACED, _REMOVED = ".unfinished-", ".replaced-", ".removed-"


def staging_folder(run: Path, name: str) -> Path:
    """Return the temporary parent folder of a checkpoint, the same for all processes."""
    return run / f"{_STAGING}{name}"


def publish(staged: Path, final: Path) -> None:
    """Rename a written checkpoint to its final name, after all its files are synchronised with the disk.

    Args:
        staged: The written folder, on the same disk.
        final: Its final path; an existing checkpoint there is replaced.
    """
    paths = {str(path.relative_to(staged)): path for path in _files(staged)}
    listed = {
        "files": {name: path.stat().st_size for name, path in paths.items()},
        _HASHES: {name: content_hash(path) for name, path in paths.items()},
    }
    (staged / LIST_FILE).write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    for path in _files(staged):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for folder in [staged, *(path for path in staged.rglob("*") if path.is_dir())]:
        sync_folder(folder)
    replaced = final.with_name(f"{_REPLACED}{final.name}")
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    staged.rename(final)
    sync_folder(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def remove_leftovers(run: Path) -> None:
    """Remove incomplete folders of a killed run, and undo an unfinished replacement.

    Args:
        run: The output folder.
    """
    if not run.is_dir():
        return
    for replaced in run.glob(f"{_REPLACED}checkpoint-*"):
        final = run / replaced.name.removeprefix(_REPLACED)
        if not final.exists():
            replaced.rename(final)
            sync_folder(run)
    for prefix in (_STAGING, _REPLACED, _REMOVED):
        for leftover in run.glob(f"{prefix}checkpoint-*"):
            shutil.rmtree(leftover, ignore_errors=True)


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of an output folder in the order of their steps, complete or not."""
    found = [path for path in run.glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_step)


def newest_complete(folders: Sequence[Path], problem_of: Callable[[Path], str | None] | None = None) -> Path | None:
    """Return the last complete checkpoint, and log a warning for each one that is skipped.

    Args:
        folders: Checkpoints in the order of their steps.
        problem_of: Returns the problem of a checkpoint or None; by default `checkpoint_problem`.

    Returns:
        The folder, None if no checkpoint is complete.
    """
    for folder in reversed(folders):
        problem = (problem_of or checkpoint_problem)(folder)
        if problem is None:
            return folder
        logger.warning("%s is skipped: %s. Trying an earlier checkpoint.", folder, problem)
    return None


def checkpoint_problem(folder: Path) -> str | None:
    """Return the reason why a checkpoint cannot be resumed, None if it is complete. Reads all its files.

    A checkpoint of hf_reward must match its list of file sizes and hashes. In one of plain `Trainer`, or of an earlier
    version without hashes, each weight file must have the size that its header states, and each optimizer file must
    match its own checksums. In both, `trainer_state.json` (which `Trainer` writes last) must exist, weights in
    safetensors must be finite, and the states of optimizer and scheduler must exist, because `Trainer` would silently
    reset them.

    Args:
        folder: The checkpoint.

    Returns:
        A clause.
    """
    if not folder.is_dir():
        return "there is no such folder"
    try:
        state = json.loads((folder / _STATE_FILE).read_text(encoding="utf-8"))
        step = state["global_step"]
    except FileNotFoundError:
        return f"it has no {_STATE_FILE}"
    except (ValueError, KeyError, TypeError):
        return f"its {_STATE_FILE} is not a valid trainer state"
    match = _CHECKPOINT.fullmatch(folder.name)
    if match and int(match[1]) != step:
        return f"its {_STATE_FILE} belongs to step {step}"
    listed = (folder / LIST_FILE).is_file()
    problem = _difference_from_list(folder) if listed else None
    if problem is None and not (listed and _is_hashed(folder)):
        problem = next((text for path in _files(folder) if (text := _damage(path))), None)
    return problem or _without_optimizer(folder) or _not_finite(folder)


def remove_old(run: Path, limit: int | None, keep: Collection[Path]) -> None:
    """Remove the oldest checkpoints above a limit.

    Each is renamed before it is deleted, so an interrupted deletion leaves no partial checkpoint. `Trainer` deletes in
    place and sorts by modification time, which an interrupted deletion renews, and may then resume from the remains.

    Args:
        run: The output folder.
        limit: Number of checkpoints to keep; None or below 1 keeps all.
        keep: Checkpoints that are kept regardless of their age.
    """
    if limit is None or limit < 1:
        return
    kept = {path.resolve() for path in keep}
    found = sorted(checkpoints(run), key=lambda path: (_written_at(path), _step(path)))
    surplus = len(found) - max(limit, len(kept & {path.resolve() for path in found}))
    for path in [path for path in found if path.resolve() not in kept][: max(surplus, 0)]:
        removed = path.with_name(f"{_REMOVED}{path.name}")
        shutil.rmtree(removed, ignore_errors=True)
        path.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)


def _difference_from_list(folder: Path) -> str | None:
    try:
        listed = json.loads((folder / LIST_FILE).read_text(encoding="utf-8"))
        sizes, hashes = dict(listed["files"]), dict(listed.get(_HASHES, {}))
    except (ValueError, KeyError, AttributeError, TypeError):
        return f"its {LIST_FILE} cannot be read"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    changed = (name for name, expected in hashes.items() if content_hash(folder / name) != expected)
    return next((f"the content of {name} has changed since it was saved" for name in changed), None)


def _is_hashed(folder: Path) -> bool:
    return _HASHES in json.loads((folder / LIST_FILE).read_text(encoding="utf-8"))


def _without_optimizer(folder: Path) -> str | None:
    names = [path.name for path in folder.iterdir()]
    if any(name.startswith("global_step") for name in names):  # DeepSpeed stores both in this folder
        return None
    if "scheduler.pt" in names and any("optimizer" in name for name in names):  # sharded: a folder, or one per rank
        return None
    return (
        "it has no optimizer or scheduler state (`save_only_model=True` does not save them), so a run cannot resume "
        "from it"
    )


def _not_finite(folder: Path) -> str | None:
    for path in _files(folder):
        if path.suffix == ".safetensors" and (names := non_finite_in_file(path)):
            return f"{path.name} has weights that are not finite ({names[0]} and {len(names) - 1} others)"
    return None


def _damage(path: Path) -> str | None:
    """Return the damage of a tensor file according to its own header or checksums; None for other files."""
    if path.suffix == ".safetensors":
        problem = safetensors_problem(path)
        return None if problem is None else f"{path.name} is damaged: {problem}"
    if path.suffix in (".pt", ".pth"):
        if not zipfile.is_zipfile(path):  # its directory is at the end
            return f"{path.name} is cut off"
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip() is not None
        except zipfile.BadZipFile:
            damaged = True
        return f"{path.name} is damaged" if damaged else None
    return None


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _written_at(folder: Path) -> float:
    state = folder / _STATE_FILE
    return state.stat().st_mtime if state.is_file() else 0.0
