"""Check input and output paths, and remove the user's folders from names in reports."""

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
    """Refuse links in an untrusted folder that point to files outside of it.

    Links in the Hub's cache are accepted: its snapshots are links to files in the folder `blobs`.

    Args:
        folder: The folder.
        paths: Files found in it.

    Raises:
        ValueError: If a file is a link to a file outside of the folder.
    """
    home = folder.resolve()
    blobs = [parent.parent / "blobs" for parent in (home, *home.parents) if parent.name == "snapshots"]
    for path in paths:
        if not any(path.resolve().is_relative_to(place) for place in (home, *blobs)):
            raise ValueError(
                f"Links in the folder {folder} must point to files inside it, but {path} points to {path.resolve()}. "
                "Replace the link with a copy, or pass the path of the file itself."
            )


def require_folder_or_hub_id(name: str | Path) -> None:
    """Refuse a path without a folder before the Hub is queried for it.

    Args:
        name: Folder or Hub id.

    Raises:
        FileNotFoundError: If the name can only be a path, and no such folder exists.
    """
    text = str(name)
    is_path = Path(text).is_absolute() or text.startswith(("./", "../", "~")) or text.count("/") > 1
    if is_path and not os.path.isdir(text):  # Path.is_dir raises if a name is too long
        raise FileNotFoundError(f"There is no folder {text!r} (looked in {Path.cwd()}). Check the path.")


def require_writable(path: str | Path) -> None:
    """Refuse an output path that cannot be written, before any work is done.

    Args:
        path: A file or folder to create, or a folder to write into.

    Raises:
        NotADirectoryError: If a parent folder is a file.
        PermissionError: If the folder is not writable.
    """
    target = Path(path).absolute()
    place = next(parent for parent in (target, *target.parents) if parent.exists())
    folder = place.parent if place == target and place.is_file() else place
    if not folder.is_dir():
        raise NotADirectoryError(f"{path} cannot be created: {folder} is a file. Name another output.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{path} cannot be written: the folder {folder} is not writable. Change its permissions or name another "
            "output."
        )


def is_plain_name(name: Any) -> bool:
    """Return whether a value is a file name without any folder."""
    is_name = isinstance(name, str) and name not in ("", ".", "..")
    return is_name and Path(name).name == name and "\\" not in name and "\0" not in name


def shown_name(name: str | Path) -> str:
    """Shorten the name of a model or dataset for reports that may be published.

    Args:
        name: A Hub id, a path, or any other name.

    Returns:
        The last part of a path that is absolute or starts with `~`, `.` or `..`, because its folders reveal private
        information; any other name unchanged.
    """
    text = str(name)
    if not _LEAVES_THE_FOLDER.match(text):
        return text
    parts = [part for part in re.split(r"[/\\]+", text.removeprefix("file://")) if part not in ("", ".", "..")]
    if not parts:
        return Path(text).resolve().name
    return "home" if Path(text).expanduser() == Path.home() else parts[-1]


def with_shown_model(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Shorten the model's name in facts for a report. Hashes in the fingerprint still identify the model.

    Args:
        facts: JSON values with `model`, and optionally `fingerprint` with its own `model`.

    Returns:
        A copy with short names.
    """
    cut = dict(facts)
    if isinstance(facts.get("model"), str):
        cut["model"] = shown_name(facts["model"])
    if isinstance(facts.get("fingerprint"), Mapping):
        cut["fingerprint"] = with_shown_model(facts["fingerprint"])
    return cut


def warn_if_others_can_read(path: str | Path) -> None:
    """Warn if other users of the machine can read a file with a token.

    Args:
        path: The file. A missing file is ignored, as is every file on Windows, which has no such permission bits.
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
    """Refuse archives and compressed files, which the readers of `datasets` would unpack automatically.

    Args:
        paths: Data files.

    Raises:
        ValueError: If a file is an archive or compressed, by its content.
    """
    for path in paths:
        kind = Extractor.infer_extractor_format(path)
        if kind:
            raise ValueError(
                f"Data files must not be compressed, but {path} is a {kind} file. Unpack it and pass the files in it."
            )
