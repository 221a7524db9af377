"""Text files that users write or export: UTF-8, with or without a byte order mark; anything else is named."""

from pathlib import Path

BOM = b"\xef\xbb\xbf"
_MARKS = {b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read_utf8(path: str | Path) -> str:
    r"""Read a text file.

    Args:
        path: The file; a byte order mark at its start is left out, line ends become `\n`.

    Returns:
        Its text.

    Raises:
        ValueError: If it is not UTF-8, with the file, the byte and the remedy.
    """
    raw = Path(path).read_bytes()
    _refuse_wide(path, raw[:4])
    text = raw.removeprefix(BOM)
    try:
        return text.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = text[: error.start].count(b"\n") + 1
        reason = why_not_utf8(error, offset=len(raw) - len(text))
        raise ValueError(f"{path}, line {line}: must be UTF-8, but {reason}.") from error


def require_one_byte_units(path: Path) -> None:
    """Stop at a file whose characters take two or four bytes each, of which no line could be read.

    Args:
        path: A file of lines.

    Raises:
        ValueError: If it is UTF-16 or UTF-32, with the remedy.
    """
    with path.open("rb") as file:
        _refuse_wide(path, file.read(4))


def why_not_utf8(error: UnicodeDecodeError, *, offset: int = 0) -> str:
    """Say which byte of a file is not UTF-8, and how to convert the file.

    Args:
        error: What Python says of a part of the file.
        offset: Byte of the file at which that part begins.

    Returns:
        A clause.
    """
    byte = error.object[error.start]
    return (
        f"byte {offset + error.start} of the file is 0x{byte:02X} ({error.reason}); if it is Latin-1 or Windows-1252, "
        "convert it with `iconv -f WINDOWS-1252 -t UTF-8`"
    )


def _refuse_wide(path: str | Path, begins: bytes) -> None:
    encoding = next((name for mark, name in _MARKS.items() if begins.startswith(mark)), "")
    if not encoding and b"\0" in begins[:2]:  # neither JSON nor a table begins with such a byte
        encoding = "UTF-16LE" if begins[1:2] == b"\0" else "UTF-16BE"
    if encoding:
        raise ValueError(
            f"{path}: must be UTF-8, but is {encoding} from byte 0 on. Convert it with `iconv -f {encoding} -t UTF-8`."
        )
