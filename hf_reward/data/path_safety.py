"""Paths: files outside of an untrusted folder, archives and missing folders are refused; names are cut for readers."""

import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets.utils.extract import Extractor

logger = logging.getLogger(__name__)

_LEAVES_THE_FOLDER = re.compile(r"(?:file://)?(?:~|/|\\|\.\.?(?:[/\\]|\Z)|[A-Za-z]:[/\\])")
_READ_BY_OTHERS = 0o044


def require_inside(folder: Path, paths: Iterable[Path]) -> None:
    """Stop where a folder's files are links to files outside of it, which its author may not be meant to name.

    Links of the Hub's cache, whose snapshots are links to the blobs beside them, are as good as files.

    Args:
        folder: The folder.
        paths: Files found in it.

    Raises:
        ValueError: If one of them lies elsewhere.
    """
    home = folder.resolve()
    blobs = [parent.parent / "blobs" for parent in (home, *home.parents) if parent.name == "snapshots"]
    for path in paths:
        if not any(path.resolve().is_relative_to(place) for place in (home, *blobs)):
            raise ValueError(
                f"{path} is a link to {path.resolve()}, outside of the folder {folder}. Name that file itself if it is "
                "meant, or put a copy in its place."
            )


def require_folder_or_hub_id(name: str | Path) -> None:
    """Stop at a path that can be no Hub id, and leads to no folder, before the Hub is asked about it.

    Args:
        name: Folder or Hub id.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    text = str(name)
    is_path = Path(text).is_absolute() or text.startswith(("./", "../", "~")) or text.count("/") > 1
    if is_path and not os.path.isdir(text):  # Path.is_dir raises where a name is too long
        raise FileNotFoundError(f"There is no folder {text!r} (looked in {Path.cwd()}).")


def require_writable(path: str | Path) -> None:
    """Stop before work whose output could not be written.

    Args:
        path: A file or folder that is to be made, or a folder to write into.

    Raises:
        NotADirectoryError: If a file stands where a folder is needed.
        PermissionError: If nothing may be written there.
    """
    target = Path(path).absolute()
    place = next(parent for parent in (target, *target.parents) if parent.exists())
    folder = place.parent if place == target and place.is_file() else place
    if not folder.is_dir():
        raise NotADirectoryError(f"{path} cannot be made: {folder} is a file. Name another output.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{path} cannot be written: the folder {folder} allows no writing. Name another output.")


def is_plain_name(name: Any) -> bool:
    """Whether something is the name of a file and leads nowhere else."""
    is_name = isinstance(name, str) and name not in ("", ".", "..")
    return is_name and Path(name).name == name and "\\" not in name and "\0" not in name


def shown_name(name: str | Path) -> str:
    """Shorten the name of a model or data set for a report that others read.

    Args:
        name: A Hub id, a path, or any other name.

    Returns:
        The last part of a path that is absolute or begins with `~`, `.` or `..`, because its folders tell who ran the
        program and where; anything else as it is.
    """
    text = str(name)
    if not _LEAVES_THE_FOLDER.match(text):
        return text
    parts = [part for part in re.split(r"[/\\]+", text.removeprefix("file://")) if part not in ("", ".", "..")]
    if not parts:
        return Path(text).resolve().name
    return "home" if Path(text).expanduser() == Path.home() else parts[-1]


def with_shown_model(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Shorten the model's name in facts that others read; hashes among them tell models apart, wherever they lie.

    Args:
        facts: `model`, and perhaps `fingerprint` with another.

    Returns:
        A copy.
    """
    cut = dict(facts)
    if isinstance(facts.get("model"), str):
        cut["model"] = shown_name(facts["model"])
    if isinstance(facts.get("fingerprint"), Mapping):
        cut["fingerprint"] = with_shown_model(facts["fingerprint"])
    return cut


def warn_if_others_can_read(path: str | Path) -> None:
    """Warn about a file with a token that other users of the machine can read.

    Args:
        path: The file; nothing is said of one that does not exist, or on Windows, whose modes say nothing.
    """
    path = Path(path)
    if os.name == "nt" or not path.is_file():
        return
    mode = path.stat().st_mode & 0o777
    if mode & _READ_BY_OTHERS:
        logger.warning(
            "%s holds a token and can be read by other users of this machine (mode %03o). Run `chmod 600 %s`.",
            path, mode, path,
        )  # fmt: skip


def refuse_archives(paths: Iterable[Path]) -> None:
    """Stop at archives, whatever they are called: the readers of `datasets` would unpack them unasked.

    Args:
        paths: Data files.

    Raises:
        ValueError: If one of them is an archive or compressed.
    """
    for path in paths:
        kind = Extractor.infer_extractor_format(path)
        if kind:
            raise ValueError(
                f"{path} is an archive or compressed ({kind}), whatever its name says. Unpack it yourself and give the "
                "files in it."
            )
