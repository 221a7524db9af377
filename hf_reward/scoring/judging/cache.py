"""File of the answers of judges, one line each, so that an interrupted run sends no answered request again."""

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import xxhash
from filelock import FileLock, Timeout

from hf_reward.data.fields import is_finite
from hf_reward.scoring.judging.protocols import Answer

_HEAD = {"judge answers": 1}


def request_key(endpoint: Mapping[str, Any], body: Mapping[str, Any]) -> str:
    """Return the XXH3-128 hash of an endpoint and the body of a request, which identifies the request."""
    return xxhash.xxh3_128_hexdigest(json.dumps([dict(endpoint), dict(body)], sort_keys=True).encode())


class AnswerCache:
    """Answers by request, in memory and in a file."""

    def __init__(self, path: Path | None) -> None:
        """Read the answers of earlier runs.

        Args:
            path: The file, which is created when the first answer is added; None for no file.

        Raises:
            RuntimeError: If another process uses the file.
            ValueError: If it is another file, or damaged.
        """
        self.path = path
        self._answers: dict[str, Answer] = {}
        self._file: TextIO | None = None
        self._guard = threading.Lock()
        self._lock = None if path is None else _locked(path)
        if path is not None and path.is_file():
            self._read(path)

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Answer:
        return self._answers[key]

    def add(self, key: str, answer: Answer) -> None:
        """Add an answer; it is in the file when this call returns."""
        with self._guard:
            self._answers[key] = answer
            if self.path is None:
                return
            if self._file is None:
                is_new = not self.path.is_file()
                self._file = self.path.open("a", encoding="utf-8")
                self._file.write(json.dumps(_HEAD) + "\n" if is_new else "")
            line = [key, answer.value, answer.input_tokens, answer.output_tokens]
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file and release it for other processes."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._lock is not None:
            self._lock.release()

    def _read(self, path: Path) -> None:
        lines = path.read_text(encoding="utf-8").split("\n")
        if lines[0] != json.dumps(_HEAD):
            raise ValueError(f"{path} must have answers of a judge, but is another file. Name another output.")
        for number, line in enumerate(lines[1:-1], start=2):  # a line without line break is incomplete
            try:
                key, value, given, written = json.loads(line)
                if not is_finite(value):
                    raise ValueError(f"a value of {value!r}")
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}, line {number} is damaged ({error}). Remove the line.") from error
            self._answers[key] = Answer(float(value), int(given), int(written))
        if lines[-1]:  # it would make the next line unreadable
            path.write_text("\n".join([*lines[:-1], ""]), encoding="utf-8")


def _locked(path: Path) -> FileLock:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RuntimeError(
            f"Another process asks judges and writes to {path}. Wait until it ends, or use another output."
        ) from None
    return lock
