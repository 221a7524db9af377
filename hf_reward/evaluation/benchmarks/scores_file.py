"""`scores.jsonl`: one line per data row, `{"id": ..., "rewards": [...]}`, written during scoring."""

import json
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_reward.data.fields import is_finite
from hf_reward.evaluation.benchmarks.base import Comparison
from hf_reward.metrics.arrays import FloatArray
from hf_reward.metrics.counts import counted


@dataclass(frozen=True)
class RowScores:
    """Rewards of all rows, in row order."""

    rewards: list[FloatArray]
    """Shape `(K,)` each; NaN for a missing reward."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """Id of a row that could not be scored -> why."""
    tokens: list[list[int] | None] = field(default_factory=list)
    """Tokens of each response of a row, None if its line has none; empty if no line was read."""


def score_line(
    comparison: Comparison, rewards: Sequence[float], problem: str, tokens: Sequence[int] | None = None
) -> str:
    """Format one line of the file.

    Args:
        comparison: The row.
        rewards: Its rewards; NaN becomes null.
        problem: Why a reward is missing, or empty.
        tokens: Tokens of each response, if known.

    Returns:
        JSON and a line break.
    """
    values = [None if math.isnan(value) else float(value) for value in rewards]
    line: dict[str, Any] = {"id": comparison.id, "rewards": values}
    line |= {} if tokens is None else {"tokens": list(tokens)}
    return json.dumps(line | ({"problem": problem} if problem else {}), ensure_ascii=False) + "\n"


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Append lines and flush them to disk."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def read_scores(path: str | Path, comparisons: Sequence[Comparison], not_compared: Collection[str] = ()) -> RowScores:
    """Read the scores of all rows.

    Args:
        path: The file; its lines may be in any order.
        comparisons: The rows.
        not_compared: Ids of rows that are not compared, such as ties; their scores are ignored.

    Returns:
        Their rewards, and the tokens of their responses if lines have them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is damaged, a reward is not finite, a row is unknown or repeated, or rows are missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. `--scores` takes the scores.jsonl of a run.")
    known = {each.id: each for each in comparisons}
    found: dict[str, FloatArray] = {}
    tokens: dict[str, list[int] | None] = {}
    problems: dict[str, str] = {}
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        row = _parse(line, where)
        name = str(row["id"])
        if name in not_compared:
            continue
        if name not in known:
            raise ValueError(
                f"{where}: the data has no row {name!r}. Its first row is {comparisons[0].id!r}. The scores and the "
                "data must have the same rows."
            )
        if name in found:
            raise ValueError(f"{where}: row {name!r} occurs twice. Remove one of its lines.")
        found[name], tokens[name] = _values(row, known[name], where), _tokens(row, known[name], where)
        if row.get("problem"):
            problems[name] = str(row["problem"])
    for name, each in known.items():
        if each.problem and name not in found:  # a row that no program can score
            found[name], problems[name] = np.full(len(each.responses), np.nan), each.problem
    missing = [name for name in known if name not in found]
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} of the data's {counted(len(known), 'row')}, such as {missing[0]!r}. "
            "Finish the run, or choose the subsets that were scored."
        )
    return RowScores([found[each.id] for each in comparisons], problems, [tokens.get(each.id) for each in comparisons])


def finished_lines(path: Path, comparisons: Sequence[Comparison]) -> list[str]:
    """Return the lines of an unfinished run that can be kept: complete lines at the start, in row order.

    Args:
        path: The file; it need not exist.
        comparisons: The rows.

    Returns:
        The lines, each with its line break.
    """
    if not path.is_file():
        return []
    kept = []
    text = path.read_text(encoding="utf-8", errors="replace")
    for line, comparison in zip(
        text.split("\n")[:-1], comparisons, strict=False
    ):  # an incomplete last line has no line break
        try:
            row = _parse(line, "")
            _values(row, comparison, "")
        except ValueError:
            break
        if row["id"] != comparison.id:
            break
        kept.append(f"{line}\n")
    return kept


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}). `--scores` takes the scores.jsonl of a run.") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not valid JSON ({error}). Remove the line, or run again.") from None
    if not isinstance(row, dict) or "id" not in row or not isinstance(row.get("rewards"), list):
        raise ValueError(f'{where}: must be {{"id": ..., "rewards": [...]}}, but is {line[:80]}.')
    return row


def _values(row: Mapping[str, Any], comparison: Comparison, where: str) -> FloatArray:
    rewards, name = row["rewards"], row["id"]
    if len(rewards) != len(comparison.responses):
        raise ValueError(
            f"{where}: row {name!r} has {counted(len(comparison.responses), 'response')}, but "
            f"{counted(len(rewards), 'reward')}. Pass one reward per response, in the benchmark's response order."
        )
    for place, value in enumerate(rewards):
        if value is None and row.get("problem"):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not is_finite(value):
            raise ValueError(
                f"{where}: reward {place} of row {name!r} must be a finite number, but is {value!r}. Score the row "
                'again, or give null and the reason in "problem".'
            )
    return np.array([math.nan if value is None else value for value in rewards], dtype=np.float64)


def _tokens(row: Mapping[str, Any], comparison: Comparison, where: str) -> list[int] | None:
    tokens = row.get("tokens")
    if tokens is None:
        return None
    valid = isinstance(tokens, list) and all(type(each) is int and each >= 0 for each in tokens)
    if not valid or len(tokens) != len(comparison.responses):
        raise ValueError(
            f"{where}: `tokens` of row {row['id']!r} must be an integer of 0 or more for each of its "
            f"{len(comparison.responses)} responses, but is {str(tokens)[:80]}. Correct it, or leave it out."
        )
    return tokens
