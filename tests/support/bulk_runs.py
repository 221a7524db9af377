"""A scorer that computes a function of the text, and tables for bulk runs."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from hf_reward.data.score_request import ScoreRequest
from hf_reward.scoring.bulk import BulkSettings
from hf_reward.scoring.results import ScoreResult

QUIET: dict[str, Any] = {"show_progress": False}


def reward_of(prompt: Any, response: Any) -> float:
    """What `FakeScorer` gives: a number that tells texts apart, exact in float32."""
    digest = hashlib.sha256(json.dumps([prompt, response], sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:3], "big") / 2**16 - 128


class FakeScorer:
    """Scores by a hash; "NAN" has no reward, "TOOLONG" is refused, "BOOM" stops the run."""

    def __init__(self, **fingerprint: Any) -> None:
        self.seen: list[ScoreRequest] = []
        self.calls: list[int] = []
        self.said = {"model": "fake", "weights": "w", "versions": {"torch": "1"}} | fingerprint

    def fingerprint(self) -> dict[str, Any]:
        return self.said

    def score_requests(
        self, requests: Sequence[ScoreRequest], *, allow_empty: bool = False, show_progress: bool | None = None
    ) -> ScoreResult:
        self.seen += requests
        self.calls.append(len(requests))
        rewards, problems = np.zeros(len(requests), dtype=np.float32), {}
        for place, request in enumerate(requests):
            if request.response == "BOOM":
                raise RuntimeError("the device is gone")
            if request.is_empty() and not allow_empty:
                problems[place] = "the response is empty; `allow_empty` scores it"
            elif request.response == "TOOLONG":
                problems[place] = "too long: 5000 tokens, above max_length=1024"
            wrong = place in problems or request.response == "NAN"
            rewards[place] = np.nan if wrong else reward_of(request.prompt, request.response)
        return ScoreResult(rewards, problems, cut=0, tokens=len(requests))


def text_rows(count: int, **more: Any) -> list[dict[str, Any]]:
    """Rows of text, all different."""
    return [{"prompt": f"Question {n}?", "response": f"Answer {n * 7}.", "n": n, **more} for n in range(count)]


def write_jsonl(path: Path, rows: Sequence[dict[str, Any] | bytes]) -> Path:
    """A JSONL file; bytes are lines as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows]
    path.write_bytes(b"".join(lines))
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def settings(**options: Any) -> BulkSettings:
    return BulkSettings(**{**QUIET, "rows_per_shard": 4, **options})


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Killed(BaseException):
    """Stands for the end of the process; nothing in the package catches it on purpose."""


STEPS = ("fsync", "replace", "link", "unlink", "mkdir", "rename", "rmdir")
"""Calls by which files appear, last, or go: between two of them nothing happens that a later start could see."""


@contextmanager
def stopped_at(step: int, stop: Callable[[], Any]) -> Iterator[list[str]]:
    """Call `stop` instead of the given one of all file operations of `os`, counted from 0.

    Yields what was called so far.
    """
    import os

    called: list[str] = []

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            called.append(name)
            if len(called) == step + 1:
                stop()
            return real(*args, **options)

        return call

    with mock.patch.multiple(os, **{name: counted(name, getattr(os, name)) for name in STEPS}):
        yield called
