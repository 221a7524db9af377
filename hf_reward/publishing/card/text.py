"""Any text -> text for publication: on one line, escaped, without local paths and tokens."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

_ABSOLUTE = r"(?:file://)?(?:~[\w-]*/|/|\.\./|[A-Za-z]:\\)"
_QUOTED_PATH = re.compile(rf"(['\"])([^'\"\s]*?)(?<![\w:/.])({_ABSOLUTE}[^'\"]*)\1")
_PATH = re.compile(rf"(?<![\w.:/~\\-]){_ABSOLUTE}(?:\\.|[^\s'\"`,;|)\]}}])+")
_SECRET = re.compile(r"\bhf_[A-Za-z0-9]{16,}\b")
_CREDENTIALS = re.compile(r"(?<=://)[^\s/@]+(?=@)")
_FOLDERS = {"models", "datasets", "data", "outputs", "output", "checkpoints", "runs", "results", "tmp"}
"""Common names of folders: `models/x` is a path even if it does not exist."""
_FILE_ENDS = (".json", ".jsonl", ".csv", ".parquet", ".gguf", ".safetensors", ".jinja")


def one_line(value: Any) -> str:
    """Return text without line breaks, control characters and repeated spaces."""
    return "".join(char for char in " ".join(str(value).split()) if char.isprintable())


def escaped(text: Any) -> str:
    """Return text on one line, escaped for Markdown tables, without local paths and tokens."""
    plain = without_paths(one_line(text))
    plain = re.sub(r"([\\|`*\[\]])", r"\\\1", plain).replace("<", "&lt;")
    return f"\\{plain}" if re.match(r"[-+#>=~_]", plain) else plain


def fenced(text: str) -> str:
    """Return text on one line for a code block."""
    return without_paths(one_line(re.sub(r"\\\s*\n", " ", text))).replace("```", "'''")


def without_paths(text: str) -> str:
    """Replace absolute paths by `LOCAL/name`, and remove Hub tokens."""
    text = _without_spaces_in_home(text)
    text = _QUOTED_PATH.sub(lambda found: f"{found[1]}{found[2]}{_last_part(found[3])}{found[1]}", text)
    return without_tokens(_PATH.sub(lambda found: _last_part(found[0]), text))


def _without_spaces_in_home(text: str) -> str:
    """Replace a home folder with a space, such as `/Users/Jane Doe`, by `/home`: a path ends at a space."""
    home = str(Path.home())
    return re.sub(re.escape(home) + r"(?=[\\/])", "/home", text) if " " in home else text


def without_tokens(text: str) -> str:
    """Replace Hub tokens by `HF_TOKEN`, and user and password in URLs by `USER`."""
    return _CREDENTIALS.sub("USER", _SECRET.sub("HF_TOKEN", text))


def _last_part(path: str) -> str:
    return "/".join(["LOCAL", *[part for part in re.split(r"[\\/]+", path) if part][-1:]])


def hub_id(name: Any) -> str | None:
    """Return the name if it is a Hub id, or None if it is a local path or not an id."""
    if not isinstance(name, str) or is_local(name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name or None


def is_local(name: str) -> bool:
    """Return whether a name is a local path: an existing, absolute or relative one, or a file name."""
    if name.startswith((".", "/", "~")) or "\\" in name or re.match(r"[A-Za-z]:", name) or name.count("/") > 1:
        return True
    if name.endswith(("/", *_FILE_ENDS)) or ("/" in name and name.split("/")[0] in _FOLDERS):
        return True
    try:
        return Path(name).exists()
    except (OSError, ValueError):
        return False
