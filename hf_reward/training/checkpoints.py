"""Checkpoints on the disk: each appears whole or not at all, and the newest whole one is never removed.

`Trainer` writes into the final name and resumes from the highest number, finished or not. Here a checkpoint is written
beside its place, listed, synchronised and renamed; whatever is half done has a name that nobody resumes from.
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
from hf_reward.modeling.weight_safety import non_finite_in_file, why_not_whole_file

logger = logging.getLogger(__name__)

LIST_FILE = "checkpoint_files.json"
"""In a checkpoint: the size in bytes of each of its files (`files`), and a hash of its content (`xxh3_128`)."""
_HASHES = "xxh3_128"
_STATE_FILE = "trainer_state.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_STAGING, _REPLACED, _REMOVED = ".unfinished-", ".replaced-", ".removed-"


def staging_folder(run: Path, name: str) -> Path:
    """Where the checkpoint of this name is written, in a folder of that name; the same for all processes."""
    return run / f"{_STAGING}{name}"


def publish(staged: Path, final: Path) -> None:
    """Let a written checkpoint appear under its final name, after all of it is on the disk.

    Args:
        staged: The written folder, on the same disk.
        final: Its name from now on; a checkpoint that is there is replaced.
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
    aside = final.with_name(f"{_REPLACED}{final.name}")
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
    staged.rename(final)
    sync_folder(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(run: Path) -> None:
    """Remove what a killed run left half done, and undo a replacement that did not come to its end.

    Args:
        run: The output folder.
    """
    if not run.is_dir():
        return
    for aside in run.glob(f"{_REPLACED}checkpoint-*"):
        final = run / aside.name.removeprefix(_REPLACED)
        if not final.exists():
            aside.rename(final)
            sync_folder(run)
    for prefix in (_STAGING, _REPLACED, _REMOVED):
        for left in run.glob(f"{prefix}checkpoint-*"):
            shutil.rmtree(left, ignore_errors=True)


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of an output folder, whole or not, by their steps."""
    found = [path for path in run.glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_step)


def newest_complete(folders: Sequence[Path], problem_of: Callable[[Path], str | None] | None = None) -> Path | None:
    """The last of some checkpoints that is whole; those passed over are named in a warning.

    Args:
        folders: Checkpoints by their steps.
        problem_of: What a checkpoint lacks, None if nothing; by default `checkpoint_problem`.

    Returns:
        Its folder, None if there is none.
    """
    for folder in reversed(folders):
        problem = (problem_of or checkpoint_problem)(folder)
        if problem is None:
            return folder
        logger.warning("%s is passed over: %s. An earlier checkpoint is looked for.", folder, problem)
    return None


def checkpoint_problem(folder: Path) -> str | None:
    """What is wrong with a checkpoint, None if it is whole and sound. Reads all of its files.

    One that we wrote lists its files with sizes and hashes. Of one that `Trainer` wrote itself, the state, which it
    writes last, has to be there, and of files without a hash (earlier versions listed none) each weight file has to end
    where its own header says, and each optimizer file has to match its own checksums. The weights of both have to be
    finite, as far as they are safetensors, and the states of the optimizer and of the learning rate have to be there:
    `Trainer` would start both from zero silently.

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
        return f"its {_STATE_FILE} is no state of a run"
    match = _CHECKPOINT.fullmatch(folder.name)
    if match and int(match[1]) != step:
        return f"its {_STATE_FILE} is of step {step}"
    listed = (folder / LIST_FILE).is_file()
    problem = _difference_from_list(folder) if listed else None
    if problem is None and not (listed and _is_hashed(folder)):
        problem = next((text for path in _files(folder) if (text := _damage(path))), None)
    return problem or _without_optimizer(folder) or _not_finite(folder)


def remove_old(run: Path, limit: int | None, keep: Collection[Path]) -> None:
    """Remove the oldest checkpoints until as many are left as the limit says.

    Each is renamed first: what a kill leaves of it is no checkpoint any more. `Trainer` deletes in place and sorts by
    the folders' time, which such a half deletion renews, so that it can then take a remnant for the newest.

    Args:
        run: The output folder.
        limit: How many stay; None or below 1 for all.
        keep: Those that stay whatever their age.
    """
    if limit is None or limit < 1:
        return
    kept = {path.resolve() for path in keep}
    found = sorted(checkpoints(run), key=lambda path: (_written_at(path), _step(path)))
    surplus = len(found) - max(limit, len(kept & {path.resolve() for path in found}))
    for path in [path for path in found if path.resolve() not in kept][: max(surplus, 0)]:
        aside = path.with_name(f"{_REMOVED}{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


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
    changed = (name for name, known in hashes.items() if content_hash(folder / name) != known)
    return next((f"the content of {name} has changed since it was saved" for name in changed), None)


def _is_hashed(folder: Path) -> bool:
    return _HASHES in json.loads((folder / LIST_FILE).read_text(encoding="utf-8"))


def _without_optimizer(folder: Path) -> str | None:
    names = [path.name for path in folder.iterdir()]
    if any(name.startswith("global_step") for name in names):  # DeepSpeed keeps both in there
        return None
    if "scheduler.pt" in names and any("optimizer" in name for name in names):  # sharded: a folder, or one per rank
        return None
    return (
        "it holds no state of the optimizer or of the learning rate (`save_only_model=True` leaves them out), so a run "
        "cannot go on from it"
    )


def _not_finite(folder: Path) -> str | None:
    for path in _files(folder):
        if path.suffix == ".safetensors" and (names := non_finite_in_file(path)):
            return f"{path.name} holds weights that are not finite ({names[0]} and {len(names) - 1} others)"
    return None


def _damage(path: Path) -> str | None:
    """What is wrong with a file of tensors that its own content tells; of other files nothing is known."""
    if path.suffix == ".safetensors":
        problem = why_not_whole_file(path)
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
