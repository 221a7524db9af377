"""Files of an image processor in a folder or repository. Imports no image library."""

from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""Files of a processor besides those of its tokenizer. A saved model has copies of them."""


def processor_files(name: str, **hub: Any) -> dict[str, bytes]:
    """Return the contents of the processor's files in a folder or repository, by name.

    Args:
        name: Folder or Hub id.
        **hub: Options of the Hub, such as `revision`.

    Returns:
        The contents; empty without these files.
    """
    options: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False, **hub}
    found = {file: cached_file(name, file, **options) for file in PROCESSOR_FILES}
    return {file: Path(path).read_bytes() for file, path in found.items() if path is not None}
