"""Read UTF-8 text files, with or without a byte order mark, and report other encodings with the remedy."""

from pathlib import Path

BOM = b"\xef\xbb\xbf"
_MARKS = {b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read_utf8(path: str | Path) -> str:
    r"""Read a text file.

    Args:
        path: The file.

    Returns:
        Its text without a byte order mark, with line ends as `\n`.

    Raises:
        ValueError: If the file is not UTF-8. The message has the line, the byte and the remedy.
    """
    raw = Path(path).read_bytes()
    _refuse_wide(path, raw[:4])
    text = raw.removeprefix(BOM)
    try:
        return text.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = text[: error.start].count(b"\n") + 1
        reason = why_not_utf8(error, offset=len(raw) - len(text))
        raise ValueError(f"{path}, line {line}: the file must be UTF-8, but {reason}.") from error


def require_one_byte_units(path: Path) -> None:
    """Refuse a UTF-16 or UTF-32 file.

    Args:
        path: A text file.

    Raises:
        ValueError: If the file is UTF-16 or UTF-32. The message has the remedy.
    """
    with path.open("rb") as file:
        _refuse_wide(path, file.read(4))


def why_not_utf8(error: UnicodeDecodeError, *, offset: int = 0) -> str:
    """Describe the first byte of a file that is not UTF-8, and the command that converts the file.

    Args:
        error: Decoding error of a part of the file.
        offset: Offset of this part in the file, in bytes.

    Returns:
        A clause.
    """
    byte = error.object[error.start]
    return (
        f"byte {offset + error.start} of the file is 0x{byte:02X} ({error.reason}); if the file is Latin-1 or "
        "Windows-1252, convert it with `iconv -f WINDOWS-1252 -t UTF-8`"
    )


def _refuse_wide(path: str | Path, begins: bytes) -> None:
    encoding = next((name for mark, name in _MARKS.items() if begins.startswith(mark)), "")
    if not encoding and b"\0" in begins[:2]:  # neither JSON nor CSV starts with a null byte
        encoding = "UTF-16LE" if begins[1:2] == b"\0" else "UTF-16BE"
    if encoding:
        raise ValueError(
            f"{path}: the file must be UTF-8, but is {encoding}. Convert it with `iconv -f {encoding} -t UTF-8`."
        )
