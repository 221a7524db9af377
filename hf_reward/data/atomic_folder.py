"""Atomic writes of a folder: files are written to a temporary folder, which is renamed on success."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from hf_reward.data.interface import setting

_REPLACED = (
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", "adapter_*"),
    *("chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model"),
    "reward_heads/heads.safetensors",
)
"""Files of an earlier save that loading would treat as part of the new one."""
_OWN_FOLDERS = ("adapter", "reward_heads", ".eval_results", "additional_chat_templates")
_MODEL_FILES = ("config.json", "adapter_config.json", "reward_config.json")


def require_free(folder: Path, overwrite: bool) -> None:
    """Refuse to write to a folder that is not empty.

    Args:
        folder: The target.
        overwrite: Whether a model in the folder may be replaced.

    Raises:
        FileExistsError: If the target is a file or not empty; with `overwrite`, if it contains anything but a model.
    """
    if folder.is_file():
        raise FileExistsError(f"The output must be a folder, but {folder} is a file. Name a folder.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(
            f"The output folder {folder} is not empty. Name another folder, or set "
            f"`{setting('overwrite', True)}` to replace the model in it."
        )
    if not any((folder / name).is_file() for name in _MODEL_FILES):
        raise FileExistsError(
            f"Only a model folder can be overwritten, but {folder} has none of {', '.join(_MODEL_FILES)}. Name another "
            "folder, or empty this one yourself."
        )
    others = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name not in _OWN_FOLDERS)
    if others:
        raise FileExistsError(
            f"Overwriting {folder} would delete its other folders ({', '.join(others[:3])}). Name another folder, or "
            "move these folders elsewhere."
        )


@contextmanager
def staged_folder(folder: Path, *, into_existing: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder on the same disk that replaces the final one if no error is raised.

    Args:
        folder: The final folder.
        into_existing: Move the files into an existing folder instead of replacing it. Its other files are kept, but
            weights and tokenizer files of an earlier save are removed.

    Yields:
        Path: The temporary folder.

    Raises:
        OSError: If a file cannot be written; the temporary folder is then removed.
    """
    folder = folder.resolve()
    staged, state = None, " and is unchanged"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        yield staged
        _apply_umask(staged)
        if into_existing and folder.is_dir():
            state = ""  # some of the files may already be moved
            _move_into(staged, folder)
        else:
            _replace(staged, folder)
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        if number is None and isinstance(error, OSError):
            raise  # not an error of the file system
        reason = getattr(error, "strerror", None) or error
        message = f"{folder} could not be written{state}: {reason}. Check free disk space and permissions."
        raise (OSError(message) if number is None else OSError(number, message)) from error
    finally:
        if staged is not None:
            shutil.rmtree(staged, ignore_errors=True)


def _apply_umask(folder: Path) -> None:
    """Give files the user's default permissions: temporary folders and safetensors files are private to their owner."""
    sample = folder / ".umask"
    sample.mkdir()
    mode = sample.stat().st_mode & 0o777
    sample.rmdir()
    for path in (folder, *folder.rglob("*")):
        path.chmod(mode if path.is_dir() else mode & 0o666)


def _replace(staged: Path, folder: Path) -> None:
    if not folder.is_dir():
        staged.replace(folder)
        return
    backup = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    old = backup / folder.name
    try:
        folder.replace(old)
        try:
            staged.replace(folder)
        except OSError:
            old.replace(folder)
            raise
    finally:
        shutil.rmtree(backup, ignore_errors=True)


def _move_into(staged: Path, folder: Path) -> None:
    written = {path.relative_to(staged) for path in staged.rglob("*")}
    for path in sorted(staged.iterdir()):
        if path.is_dir():
            shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
        else:
            path.replace(folder / path.name)
    for path in [path for pattern in _REPLACED for path in folder.glob(pattern)]:
        if path.relative_to(folder) not in written:
            path.unlink()
