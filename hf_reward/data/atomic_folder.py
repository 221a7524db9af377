"""A folder of files appears whole or not at all: it is written beside its place and renamed when all is well."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

_REPLACED = (
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", "adapter_*"),
    *("chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model"),
    "reward_heads/heads.safetensors",
)
"""What an earlier save left and loading would take for part of the new one."""
_OWN_FOLDERS = ("adapter", "reward_heads", ".eval_results", "additional_chat_templates")
_MODEL_FILES = ("config.json", "adapter_config.json", "reward_config.json")


def require_free(folder: Path, overwrite: bool) -> None:
    """Stop before a folder that holds something is written over.

    Args:
        folder: The target.
        overwrite: Whether a model there may be replaced.

    Raises:
        FileExistsError: If it is a file, holds something, or with `overwrite` something else than a model.
    """
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file. Name a folder.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(
            f"The folder {folder} is not empty. Name another one, or allow it to be replaced with `--overwrite`."
        )
    if not any((folder / name).is_file() for name in _MODEL_FILES):
        raise FileExistsError(
            f"The folder {folder} holds no model, so it is not replaced: all of its files would be lost. Name another "
            "one, or empty it yourself."
        )
    others = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name not in _OWN_FOLDERS)
    if others:
        raise FileExistsError(
            f"The folder {folder} holds other folders ({', '.join(others[:3])}), which would be lost with it. Name "
            "another one."
        )


@contextmanager
def staged_folder(folder: Path, *, into_existing: bool = False) -> Iterator[Path]:
    """Give an empty folder, on the same disk, that takes the final one's place unless an error is raised.

    Args:
        folder: The final folder.
        into_existing: Move the files into it one by one, beside what it holds, instead of replacing it; weights and
            tokenizer files of an earlier save are removed.

    Yields:
        Path: Where to write.

    Raises:
        OSError: If a file cannot be written; what was written is removed.
    """
    folder = folder.resolve()
    aside, state = None, ", and is as it was"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        yield aside
        _open_as_umask_says(aside)
        if into_existing and folder.is_dir():
            state = ""  # some of the files may be there already
            _move_into(aside, folder)
        else:
            _replace(aside, folder)
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        if number is None and isinstance(error, OSError):
            raise  # a library's own way to say that something else went wrong
        reason = getattr(error, "strerror", None) or error
        message = f"{folder} could not be written{state}: {reason}. Look at its disk's space and permissions."
        raise (OSError(message) if number is None else OSError(number, message)) from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def _open_as_umask_says(folder: Path) -> None:
    """Temporary folders and what safetensors writes can be read by their owner alone; a model is for others too."""
    sample = folder / ".umask"
    sample.mkdir()
    mode = sample.stat().st_mode & 0o777
    sample.rmdir()
    for path in (folder, *folder.rglob("*")):
        path.chmod(mode if path.is_dir() else mode & 0o666)


def _replace(aside: Path, folder: Path) -> None:
    if not folder.is_dir():
        aside.replace(folder)
        return
    attic = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    old = attic / folder.name
    try:
        folder.replace(old)
        try:
            aside.replace(folder)
        except OSError:
            old.replace(folder)
            raise
    finally:
        shutil.rmtree(attic, ignore_errors=True)


def _move_into(aside: Path, folder: Path) -> None:
    written = {path.relative_to(aside) for path in aside.rglob("*")}
    for path in sorted(aside.iterdir()):
        if path.is_dir():
            shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
        else:
            path.replace(folder / path.name)
    for path in [path for pattern in _REPLACED for path in folder.glob(pattern)]:
        if path.relative_to(folder) not in written:
            path.unlink()
