"""Reader of JSONL files, with one JSON object per line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from hf_reward.data.file_identity import file_identity
from hf_reward.data.tables.input_row import MAX_RECORD_BYTES, RAW_SHOWN, InputRow, Span, lone_surrogate
from hf_reward.data.tables.text_records import Line, cut_spans, lines_from, open_text
from hf_reward.data.text_files import why_not_utf8


class JsonLinesTable:
    """The rows of a JSONL file. Empty lines are skipped; lines without a JSON object are unreadable rows."""

    schema: pa.Schema | None = None

    def __init__(self, path: Path, name: str = "") -> None:
        self.path, self.name = path, name or path.name

    def identity(self) -> dict[str, Any]:
        """Name, size and hashes of the content."""
        return file_identity(self.path) | {"name": self.name}

    def spans(self, rows: int) -> Iterator[Span]:
        """Divide the file into spans; reads it once, without parsing."""
        with open_text(self.path) as file:
            yield from cut_spans(_starts(lines_from(file, 0, 1)), rows)

    def read(self, span: Span) -> Iterator[InputRow]:
        """Read the rows of a span."""
        number = span.first
        with open_text(self.path) as file:
            for line in lines_from(file, span.offset, span.line):
                if number == span.stop:
                    return
                if line.raw.strip() or line.too_long:
                    yield _parse(line, number)
                    number += 1

    def close(self) -> None:
        """Do nothing: no file is left open."""


def _starts(lines: Iterator[Line]) -> Iterator[tuple[int, int]]:
    begins = 0
    for line in lines:
        if line.raw.strip() or line.too_long:
            yield begins, line.number
        begins = line.end


def _parse(line: Line, number: int) -> InputRow:
    problem, row = "", None
    if line.too_long:
        problem = f"the line is longer than {MAX_RECORD_BYTES // 2**20} MiB"
    else:
        try:
            row = json.loads(line.raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            problem = f"the row is not UTF-8 ({why_not_utf8(error, offset=line.end - len(line.raw))})"
        except json.JSONDecodeError as error:
            problem = f"the row is not valid JSON ({error.msg}, character {error.pos})"
        except (RecursionError, ValueError) as error:  # nested too deeply, a number with too many digits
            problem = f"the row is JSON that cannot be read ({error})"
        else:
            problem = _problem_of(row, line.raw)
    if problem:
        raw = line.raw[: 4 * RAW_SHOWN].decode("utf-8", "replace").rstrip("\r\n")[:RAW_SHOWN]
        return InputRow(number=number, problem=problem, raw=raw, line=line.number)
    return InputRow(number=number, row=row, line=line.number, size=len(line.raw))


def _problem_of(row: Any, raw: bytes) -> str:
    if not isinstance(row, dict):
        return f"the row must be a JSON object, but is a {type(row).__name__}"
    if b"\\ud" in raw or b"\\uD" in raw:  # in UTF-8, a lone surrogate can only be an escape sequence
        return lone_surrogate(json.dumps(row, ensure_ascii=False))
    return ""
