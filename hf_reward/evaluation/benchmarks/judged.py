"""Benchmarks of judges: the responses of a row are compared in pairs and both orders.

The benchmark's own arithmetic then runs on rewards that reproduce the log-odds of the win rates (`rewards_of_wins`).
Only responses that the benchmark ranks differently are compared.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_reward.data.atomic_file import write_atomic
from hf_reward.data.interface import setting
from hf_reward.data.score_request import ScoreRequest, read_request
from hf_reward.evaluation.benchmarks.base import Benchmark, Comparison
from hf_reward.evaluation.benchmarks.data import BenchmarkData, DataChoice
from hf_reward.evaluation.benchmarks.registry import PUBLIC
from hf_reward.evaluation.benchmarks.reporting import RUN_FILE, SCORES_FILE, finish_run, load_named, read_run
from hf_reward.evaluation.benchmarks.results import CARD_FILE, ResultRule, write_json
from hf_reward.evaluation.benchmarks.running import AllResults, changed_settings, data_places, run_description
from hf_reward.evaluation.benchmarks.scores_file import read_scores, score_line
from hf_reward.scoring.judging.judge import Judge, Judgement
from hf_reward.scoring.judging.opening import OpenedJudge
from hf_reward.scoring.judging.pairs import JudgedPair
from hf_reward.scoring.judging.rewards import RewardJudge
from hf_reward.scoring.judging.win_rates import log_odds, rewards_of_wins

REQUESTS_FILE = "requests.jsonl"
"""Answers of judges in the output folder."""
Announce = Callable[[int, int], None]
"""Function of the number of comparisons (or responses) and of requests, called before the first request."""


@dataclass(frozen=True)
class _Run:
    """One benchmark with its folder."""

    benchmark: Benchmark
    data: BenchmarkData
    folder: Path

    @property
    def rows(self) -> list[Comparison]:
        return [row for row in self.data.comparisons if not row.problem]


def _quiet(judged: int, requests: int) -> None:
    return None


def judge_benchmark(
    name: str,
    opened: OpenedJudge,
    data: Any = None,
    *,
    out: str | Path,
    choice: DataChoice | None = None,
    rule: ResultRule | None = None,
    overwrite: bool = False,
    announce: Announce = _quiet,
) -> dict[str, Any]:
    """Judge a benchmark's rows and compute its results; see `run_benchmark` for the files.

    Args:
        name: One of `registry.NAMES`.
        opened: The judge, opened with a cache file to resume an interrupted run.
        data: As for `run_benchmark`.
        out: Folder of the run.
        choice: As for `run_benchmark`.
        rule: Rule for rows with a failed request.
        overwrite: Replace a different run in `out`.
        announce: Called with the numbers of comparisons and of requests.

    Returns:
        The content of `results.json`, with the counts of the judges as `judges`.

    Raises:
        BudgetError: If the requests exceed the budget; there are then no results.
        FileExistsError: If `out` has a run with another judge or other data.
        JudgeError: If the judge cannot be used.
        ValueError: If the benchmark has images.
    """
    _require_text(name)
    return _judge([_Run(*load_named(name, data, choice), Path(out))], opened, rule, overwrite, announce)[0]


def judge_all(
    opened: OpenedJudge,
    *,
    out: str | Path,
    data: str | Path | Mapping[str, Any] | None = None,
    rule: ResultRule | None = None,
    overwrite: bool = False,
    announce: Announce = _quiet,
) -> AllResults:
    """Judge every public benchmark whose data is available; the budget covers all together.

    Args:
        opened: As for `judge_benchmark`.
        out: Folder with a subfolder for each benchmark.
        data: As for `run_all`.
        rule: As for `judge_benchmark`.
        overwrite: As for `judge_benchmark`.
        announce: As for `judge_benchmark`.

    Returns:
        The results, and the reasons why other benchmarks were not run.

    Raises:
        BudgetError: If the requests of all benchmarks exceed the budget.
    """
    places = data_places(data)
    runs: list[_Run] = []
    skipped: dict[str, str] = {}
    for name in PUBLIC:
        try:
            _require_text(name)
            runs.append(_Run(*load_named(name, places.get(name), None), Path(out) / name))
        except (OSError, ValueError) as error:  # one damaged file must not stop the other benchmarks
            skipped[name] = str(error)
    results = _judge(runs, opened, rule, overwrite, announce) if runs else []
    if results:
        write_json(Path(out) / CARD_FILE, results)
    return AllResults(results, skipped)


def _require_text(name: str) -> None:
    if name in PUBLIC and PUBLIC[name].image:
        raise ValueError(f"{PUBLIC[name].title} has images, which are not sent to judges. Use a reward model.")


def _judge(
    runs: Sequence[_Run], opened: OpenedJudge, rule: ResultRule | None, overwrite: bool, announce: Announce
) -> list[dict[str, Any]]:
    judge = opened.judge
    descriptions = [run_description(run.benchmark.name, run.data, judge.fingerprint) for run in runs]
    for run, description in zip(runs, descriptions, strict=True):
        _require_same(run.folder, description, overwrite)
    count, needed = _needed(judge, runs)
    announce(count, needed)
    opened.ledger.require(needed)  # before the first benchmark, so that none is reported alone
    results = []
    for run, description in zip(runs, descriptions, strict=True):
        lines = _reward_lines(judge, run) if isinstance(judge, RewardJudge) else _pair_lines(judge, run)
        run.folder.mkdir(parents=True, exist_ok=True)
        write_json(run.folder / RUN_FILE, description | {"prompts_cut": 0})
        write_atomic(run.folder / SCORES_FILE, "".join(lines))
        scores = read_scores(run.folder / SCORES_FILE, run.data.comparisons)
        about = {"model": judge.name, "fingerprint": judge.fingerprint, "prompts_cut": 0}
        about |= {"judges": [each.to_dict() for each in judge.reports()]}
        results.append(finish_run(run.benchmark, run.data, scores, run.folder, rule, about))
    return results


def _require_same(folder: Path, description: dict[str, Any], overwrite: bool) -> None:
    if overwrite or not (folder / SCORES_FILE).exists():
        return
    earlier = read_run(folder / RUN_FILE)
    earlier.pop("prompts_cut", None)
    if changed := changed_settings(earlier, description):
        raise FileExistsError(
            f"{folder} has scores of a different run (different {', '.join(changed)}). Use another folder, or set "
            f"`{setting('overwrite', True)}` to replace these scores."
        )


def _needed(judge: Judge, runs: Sequence[_Run]) -> tuple[int, int]:
    """Return the number of comparisons (or of responses) and of the requests that they still need."""
    if isinstance(judge, RewardJudge):
        texts = [each for run in runs for row in run.rows for each in _texts(row)]
        return len(texts), judge.rewards_needed(texts)
    pairs = [each for run in runs for row in run.rows for each in _pairs(row)]
    return len(pairs), judge.requests_needed(pairs)


def _texts(row: Comparison) -> list[ScoreRequest]:
    return [read_request(row.prompt, response, response_only=True) for response in row.responses]


def _pairs(row: Comparison) -> list[JudgedPair]:
    return [JudgedPair(row.prompt, row.responses[i], row.responses[j], row.cluster) for i, j in row.pairs()]


def _unscored(row: Comparison, problem: str) -> str:
    return score_line(row, [math.nan] * len(row.responses), problem)


def _reward_lines(judge: RewardJudge, run: _Run) -> list[str]:
    texts = {row.id: _texts(row) for row in run.rows}
    judge.rewards([each for own in texts.values() for each in own])
    lines = []
    for row in run.data.comparisons:
        if row.problem:
            lines.append(_unscored(row, row.problem))
            continue
        problem = next(filter(None, map(judge.problem, texts[row.id])), "")
        lines.append(score_line(row, judge.rewards(texts[row.id]), problem))
    return lines


def _pair_lines(judge: Judge, run: _Run) -> list[str]:
    judged = iter(judge.compare([each for row in run.rows for each in _pairs(row)]))
    lines = []
    for row in run.data.comparisons:
        if row.problem:
            lines.append(_unscored(row, row.problem))
            continue
        lines.append(_pair_line(row, [next(judged) for _ in row.pairs()]))
    return lines


def _pair_line(row: Comparison, judged: Sequence[Judgement]) -> str:
    shares = [each.probability for each in judged if each.probability is not None]
    if len(shares) < len(judged):
        return _unscored(row, next(each.problem for each in judged if each.probability is None))
    rewards = rewards_of_wins(len(row.responses), row.pairs(), [log_odds(share) for share in shares])
    return score_line(row, rewards.tolist(), "")
