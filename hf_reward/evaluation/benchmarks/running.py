"""Model and benchmark -> results: score the remaining rows, write the scores, compute the numbers."""

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from huggingface_hub.utils import tqdm

from hf_reward.data.score_request import read_request
from hf_reward.evaluation.benchmarks.base import Benchmark, Comparison
from hf_reward.evaluation.benchmarks.data import BenchmarkData, DataChoice
from hf_reward.evaluation.benchmarks.registry import PUBLIC
from hf_reward.evaluation.benchmarks.reporting import RUN_FILE, SCORES_FILE, finish_run, load_named, read_run
from hf_reward.evaluation.benchmarks.results import CARD_FILE, ResultRule, write_json
from hf_reward.evaluation.benchmarks.scores_file import append_lines, finished_lines, read_scores, score_line
from hf_reward.preprocessing.response_encoding import EncodedResponse
from hf_reward.preprocessing.tokenization import shared_prefix_length
from hf_reward.scoring.reward_scorer import RewardScorer

logger = logging.getLogger(__name__)

_CHUNK_RESPONSES = 256
"""Responses that are scored and written at once; an interruption loses at most these."""


def run_benchmark(
    name: str,
    scorer: RewardScorer | str | Path,
    data: Any = None,
    *,
    out: str | Path,
    choice: DataChoice | None = None,
    rule: ResultRule | None = None,
    overwrite: bool = False,
    **loading: Any,
) -> dict[str, Any]:
    """Score a benchmark's rows and compute its results.

    Writes `scores.jsonl`, `results.json`, `credits.jsonl` (for `compare`) and `run.json` (model, data and settings)
    into `out`. An interrupted run resumes if model, data and settings are the same.

    Args:
        name: One of `registry.NAMES`.
        scorer: A scorer, or the folder or Hub id of a reward model.
        data: File, folder, Hub id, several of these, rows or a dataset; by default the benchmark's own data on the Hub.
        out: Folder of the run.
        choice: Selection of the data: subsets, split, layout, columns. Its `data` is the default of `data`.
        rule: Rule for rows that could not be scored.
        overwrite: Replace a different run in `out`.
        **loading: For a model that is loaded here, as for `RewardScorer.from_pretrained`: `max_length`, `dtype`, ...

    Returns:
        The content of `results.json`.

    Raises:
        DataUnavailableError: If the data is not available; the message names the local files that can be used instead.
        FileExistsError: If `out` has a run with another model, other data or other settings.
        ValueError: If the data, the model or a setting is unusable, or a text model cannot process the images.
    """
    benchmark, loaded = load_named(name, data, choice)  # fails early, before a large model is loaded
    scorer = _scorer(scorer, loading)
    if reason := _why_not(benchmark, scorer):
        raise ValueError(reason)
    return _run(benchmark, loaded, scorer, Path(out), rule, overwrite)


@dataclass(frozen=True)
class AllResults:
    """Results of `run_all`."""

    results: list[dict[str, Any]]
    skipped: dict[str, str]
    """Benchmark -> why it was not run."""


def run_all(
    scorer: RewardScorer | str | Path,
    *,
    out: str | Path,
    data: str | Path | Mapping[str, Any] | None = None,
    rule: ResultRule | None = None,
    overwrite: bool = False,
    **loading: Any,
) -> AllResults:
    """Run every public benchmark whose data is available.

    Args:
        scorer: As for `run_benchmark`.
        out: Folder with a subfolder for each benchmark and `benchmark_results.json`, a list of all results for model
            cards.
        data: Benchmark -> its data; or a folder with a folder or file named after each benchmark. The others are read
            from the Hub.
        rule: Rule for rows that could not be scored.
        overwrite: As for `run_benchmark`.
        **loading: As for `run_benchmark`.

    Returns:
        The results, and the reasons why other benchmarks were not run.

    Raises:
        ValueError: If the model or a setting is unusable, or `data` names an unknown benchmark.
    """
    places = data_places(data)
    results: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    for name in PUBLIC:
        try:
            benchmark, loaded = load_named(name, places.get(name), None)
        except (OSError, ValueError) as error:  # one damaged file must not stop the other benchmarks
            skipped[name] = str(error)
            continue
        scorer, loading = _scorer(scorer, loading), {}
        if reason := _why_not(benchmark, scorer):
            skipped[name] = reason
            continue
        results.append(_run(benchmark, loaded, scorer, Path(out) / name, rule, overwrite))
    if results and _writes(scorer):
        write_json(Path(out) / CARD_FILE, results)
    return AllResults(results, skipped)


def _scorer(scorer: RewardScorer | str | Path, loading: dict[str, Any]) -> RewardScorer:
    if not isinstance(scorer, RewardScorer):
        return RewardScorer.from_pretrained(scorer, **loading)
    if loading:
        raise ValueError(
            f"{', '.join(loading)} cannot be set for a scorer that is already loaded. Pass the model's name."
        )
    return scorer


def _why_not(benchmark: Benchmark, scorer: RewardScorer) -> str:
    if not benchmark.image or scorer.takes_images:
        return ""
    return f"{benchmark.title} has images, which {scorer.name} cannot process. Use a vision-language model."


def _run(
    benchmark: Benchmark,
    data: BenchmarkData,
    scorer: RewardScorer,
    folder: Path,
    rule: ResultRule | None,
    overwrite: bool,
) -> dict[str, Any]:
    fingerprint = scorer.fingerprint()
    cut = _score(data, scorer, folder, run_description(benchmark.name, data, fingerprint), overwrite)
    about = {"model": scorer.name, "fingerprint": fingerprint, "prompts_cut": cut}
    scores = read_scores(folder / SCORES_FILE, data.comparisons)
    return finish_run(benchmark, data, scores, folder if _writes(scorer) else None, rule, about)


def data_places(data: str | Path | Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the data of each benchmark; see `run_all`."""
    if data is None:
        return {}
    if isinstance(data, Mapping):
        unknown = [name for name in data if name not in PUBLIC]
        if unknown:
            raise ValueError(f"`data` names {', '.join(unknown)}; the benchmarks are {', '.join(PUBLIC)}.")
        return dict(data)
    folder = Path(data)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder {folder}. It must have a folder or file named after each benchmark."
        )
    return {path.stem: path for path in sorted(folder.iterdir()) if path.stem in PUBLIC}


# --- scoring --------------------------------------------------------------------------------------------------------


def _score(
    data: BenchmarkData, scorer: RewardScorer, folder: Path, description: dict[str, Any], overwrite: bool
) -> int:
    """Score the remaining rows and return the number of prompts that were cut to fit the model."""
    scores_file = folder / SCORES_FILE
    done, cut = _resume(folder, description, data.comparisons, overwrite)
    chunks = list(_chunks(data.comparisons))
    writes = _writes(scorer)
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RUN_FILE, description | {"prompts_cut": cut})
        scores_file.write_text("".join(done), encoding="utf-8")
    with tqdm(total=len(data.comparisons), initial=len(done), desc="Scoring", unit="row", disable=None, delay=2) as bar:
        for start, chunk in chunks:
            if start < len(done):
                continue
            lines, more_cut = _score_chunk(chunk, scorer)
            cut += more_cut
            if writes:
                append_lines(scores_file, lines)
                write_json(folder / RUN_FILE, description | {"prompts_cut": cut})
            bar.update(len(chunk))
    if scorer.distributed:
        PartialState().wait_for_everyone()
    return cut


def _score_chunk(chunk: Sequence[Comparison], scorer: RewardScorer) -> tuple[list[str], int]:
    usable = [row for row in chunk if not row.problem]
    requests = [read_request(row.prompt, response, response_only=True) for row in usable for response in row.responses]
    encoded = scorer.encode(requests, allow_empty=True)
    scored = scorer.score_encoded(encoded, show_progress=False)
    lines, place = [], 0
    for row in chunk:
        if row.problem:
            lines.append(score_line(row, [math.nan] * len(row.responses), row.problem))
            continue
        places = range(place, place + len(row.responses))
        problem = next((scored.problems[each] for each in places if each in scored.problems), "")
        tokens = _tokens_of([encoded[each] for each in places])
        lines.append(score_line(row, [float(scored.rewards[each]) for each in places], problem, tokens))
        place += len(row.responses)
    return lines, scored.cut


def _tokens_of(row: Sequence[EncodedResponse]) -> list[int] | None:
    """Return the tokens of each response beyond the shared prefix, as training counts them; None for cut prompts."""
    if any(each.problem or each.cut_tokens for each in row):
        return None
    shared = shared_prefix_length([each.input_ids for each in row])
    return [len(each.input_ids) - shared for each in row]


def _chunks(comparisons: Sequence[Comparison]) -> Iterator[tuple[int, list[Comparison]]]:
    """Yield rows in chunks of about the same number of responses, with the index of each chunk's first row.

    Chunks depend only on the rows, so a resumed run scores the same batches as an uninterrupted run.
    """
    chunk: list[Comparison] = []
    start = responses = 0
    for place, row in enumerate(comparisons):
        if chunk and responses + len(row.responses) > _CHUNK_RESPONSES:
            yield start, chunk
            chunk, start, responses = [], place, 0
        chunk.append(row)
        responses += len(row.responses)
    if chunk:
        yield start, chunk


def _resume(
    folder: Path, description: dict[str, Any], comparisons: Sequence[Comparison], overwrite: bool
) -> tuple[list[str], int]:
    """Return the lines of complete chunks of an earlier run, and its number of cut prompts."""
    if overwrite or not (folder / SCORES_FILE).exists():
        return [], 0
    earlier = read_run(folder / RUN_FILE)
    cut = int(earlier.pop("prompts_cut", 0))
    if changed := changed_settings(earlier, description):
        raise FileExistsError(
            f"{folder} has scores of a different run (different {', '.join(changed)}). Use another "
            "folder, or set `--overwrite` to replace these scores."
        )
    lines = finished_lines(folder / SCORES_FILE, comparisons)
    starts = [start for start, _ in _chunks(comparisons)] + [len(comparisons)]
    complete = max(start for start in starts if start <= len(lines))
    if lines:
        logger.info("%s of %s rows are already scored.", complete, len(comparisons))
    return lines[:complete], cut


def run_description(name: str, data: BenchmarkData, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `run.json` that identifies a run."""
    # Through JSON, so that it compares equal after reading.
    return json.loads(json.dumps({"benchmark": name, "data_hash": data.content_hash, "fingerprint": fingerprint}))


def changed_settings(earlier: Mapping[str, Any], description: Mapping[str, Any]) -> list[str]:
    """Return the names of the properties in which two runs differ."""
    old, new = ({**each, **(each.get("fingerprint") or {})} for each in (earlier, description))
    # The same weights under another name (a relative path, a moved folder) are the same model.
    same = {"fingerprint", "model"} if old.get("weights") else {"fingerprint"}
    return [key for key in old | new if key not in same and old.get(key) != new.get(key)]


def _writes(scorer: Any) -> bool:
    """Return whether this process writes the files: only the first of several."""
    return not getattr(scorer, "distributed", False) or PartialState().is_main_process
