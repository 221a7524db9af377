"""Label pairs with the probabilities of a judge: rows in any layout -> canonical rows with `probability`."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from hf_reward.data.atomic_file import write_atomic
from hf_reward.data.interface import setting
from hf_reward.data.path_safety import require_writable
from hf_reward.data.preference_row import PreferenceFormatError, PreferenceRow, as_mapping, has_images, rename_columns
from hf_reward.data.preferences import to_preference_row
from hf_reward.data.python_values import json_value
from hf_reward.data.row_locations import RowLocations
from hf_reward.data.row_text import response_text
from hf_reward.data.sources import Source, as_sources, load_source
from hf_reward.metrics.counts import counted
from hf_reward.metrics.intervals import clustered_interval
from hf_reward.scoring.judging.judge import Judgement, JudgeReport
from hf_reward.scoring.judging.opening import open_judge
from hf_reward.scoring.judging.pairs import JudgedPair
from hf_reward.scoring.judging.requests import JudgeSettings

_VERDICTS = {"winner", "score", "probability", "votes_a", "annotators"}


@dataclass(frozen=True, kw_only=True)
class LabelFiles:
    """The files of a run."""

    out: Path

    @property
    def requests(self) -> Path:
        """The answers, with which an interrupted run resumes."""
        return self.out.with_name(f"{self.out.name}.requests.jsonl")

    @property
    def report(self) -> Path:
        """The report."""
        return self.out.with_name(f"{self.out.name}.report.json")

    @property
    def quarantine(self) -> Path:
        """Rows without a label, with the reasons."""
        return self.out.with_suffix(".quarantine.jsonl")


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement of the judge with the preferences in the data."""

    rate: float
    """Share of the pairs with the same preferred response; a probability of 1/2 counts half."""
    low: float | None
    """95% interval, clustered by prompt."""
    high: float | None
    pairs: int
    """Pairs with a strict preference in the data."""


@dataclass(frozen=True, kw_only=True)
class LabelReport:
    """Counts of a run."""

    rows: int
    """Rows of the data."""
    pairs: int
    """Pairs of these rows."""
    labelled: int
    """Pairs with a probability, which are the rows of the output."""
    failed: Mapping[str, int]
    """Reason -> pairs that the judge could not judge."""
    unusable: Mapping[str, int]
    """Reason -> rows that have no pair of texts."""
    judges: Sequence[JudgeReport]
    agreement: Agreement | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return json_value({**asdict(self), "judges": [each.to_dict() for each in self.judges]})


@dataclass(frozen=True)
class _Asked:
    """A pair of a row."""

    row: PreferenceRow
    places: tuple[int, int]
    known: bool
    """Whether the data has a preference."""

    @property
    def name(self) -> str:
        """Id of the labelled row."""
        several = len(self.row.responses) > 2
        return f"{self.row.id}/{self.places[0]}-{self.places[1]}" if several else str(self.row.id)

    def pair(self) -> JudgedPair:
        first, second = (self.row.responses[place] for place in self.places)
        return JudgedPair(self.row.prompt, first, second, str(self.row.group), self.row.template)

    def labelled(self, probability: float) -> dict[str, Any]:
        """Return the canonical row."""
        row, lead = self.row, probability - 0.5
        found = dict(row.meta) | {"id": self.name, "group": row.group, "prompt": row.prompt}
        found["responses"] = [row.responses[place] for place in self.places]
        found["ranks"] = [0, 0] if lead == 0 else [0, 1] if lead > 0 else [1, 0]
        found["probability"] = probability
        found |= {"source": row.source} if row.source else {}
        found |= {"weight": row.weight} if row.weight != 1 else {}
        return found | ({"chat_template_kwargs": row.template} if row.template else {})


def label_rows(
    data: Any,
    out: str | Path,
    judges: str | Sequence[str],
    settings: JudgeSettings | None = None,
    *,
    token: str | None = None,
    overwrite: bool = False,
    announce: Callable[[int, int], None] = lambda pairs, requests: None,
    **source_defaults: Any,
) -> LabelReport:
    """Label pairs with the probabilities of a judge, the mean over both orders of the responses.

    Writes `out` with a canonical row for each judged pair (a row with more than two responses has several pairs),
    `out`.report.json, and the rows without a label with their reasons to a quarantine file. All answers are kept in
    `out`.requests.jsonl as they arrive: the same call resumes an interrupted run and asks again only for failures.

    Args:
        data: Any input of training, with or without preferences: `prompt` with `response_a` and `response_b`, or
            with `responses`, need no label.
        out: A `.jsonl` file.
        judges: A judge, or several to be averaged; see `open_judge`.
        settings: Settings of the requests.
        token: Bearer token for servers.
        overwrite: Replace the output of an earlier run; its answers are used again.
        announce: Called with the number of pairs and of requests before the first request.
        **source_defaults: `split`, `columns` and `layout` for `data`.

    Returns:
        The report.

    Raises:
        FileExistsError: If `out` exists and `overwrite` is off.
        BudgetError: If the requests exceed the budget; nothing is then written except the answers.
        JudgeError: If a judge cannot be used.
        ValueError: If the data has no pair.
    """
    start = time.monotonic()
    files = LabelFiles(out=Path(out))
    _check_output(files, overwrite)
    asked, lost, rows = _read(data, source_defaults)
    pairs = [each.pair() for each in asked]
    with open_judge(judges, settings, cache=files.requests, token=token) as opened:
        needed = opened.judge.requests_needed(pairs)
        announce(len(pairs), needed)
        judged = opened.judge.compare(pairs)
        reports = opened.judge.reports()
    labels = [each.probability for each in judged]
    lines = [each.labelled(label) for each, label in zip(asked, labels, strict=True) if label is not None]
    failed = [_failure(*each) for each in zip(asked, judged, strict=True) if each[1].probability is None]
    report = LabelReport(
        rows=rows,
        pairs=len(pairs),
        labelled=len(lines),
        failed=dict(Counter(each["reason"] for each in failed).most_common()),
        unusable=dict(Counter(each["reason"] for each in lost).most_common()),
        judges=reports,
        agreement=_agreement(asked, labels),
        seconds=time.monotonic() - start,
    )
    _write_lines(files.out, lines)
    files.quarantine.unlink(missing_ok=True)
    if failed or lost:
        _write_lines(files.quarantine, [*lost, *failed])
    write_atomic(files.report, json.dumps(report.to_dict(), indent=2) + "\n")
    return report


# --- rows -------------------------------------------------------------------------------------------------------------


def _read(data: Any, source_defaults: Mapping[str, Any]) -> tuple[list[_Asked], list[dict[str, Any]], int]:
    """Return the pairs, the unusable rows with reasons, and the number of rows."""
    asked: list[_Asked] = []
    lost: list[dict[str, Any]] = []
    number = 0
    for source in as_sources(data, **source_defaults):
        rows = load_source(source)
        places = RowLocations(rows)
        for place, raw in enumerate(rows):
            try:
                found = list(_pairs_of(raw, source, number))
            except PreferenceFormatError as error:
                found, where = [], places.where(place, short=True) or f"row {place}"
                lost.append({"row": number, "place": where, "reason": error.message})
            asked += found
            number += 1
    if not asked:
        reasons = "; ".join({each["reason"]: "" for each in lost}) or "it is empty"
        raise ValueError(f"The data has no pair to label: {reasons}")
    return asked, lost, number


def _pairs_of(raw: Any, source: Source, number: int) -> Iterator[_Asked]:
    named = rename_columns(as_mapping(raw), source.columns)
    given, known = _with_placeholder(named)
    row = to_preference_row(given, layout=source.layout, row_index=number)
    if row.token_ids is not None:
        raise PreferenceFormatError("A judge reads texts, but the row has token ids. Label the raw rows.")
    if has_images(row.prompt):
        raise PreferenceFormatError("A judge reads texts, but the row has an image. Drop the row.")
    for one, other in combinations(range(len(row.responses)), 2):
        if response_text(row, one) == response_text(row, other):
            if len(row.responses) == 2:
                raise PreferenceFormatError("The two responses must differ, but are equal. Drop the row.")
            continue
        yield _Asked(row, (one, other), known and row.ranks[one] != row.ranks[other])


def _with_placeholder(row: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Add a tie to a row without a preference, because the layouts need one; return whether the row has its own."""
    given = dict(row)
    if given.get("response_a") is not None and not any(given.get(name) is not None for name in _VERDICTS):
        return given | {"winner": "tie"}, False
    if isinstance(given.get("responses"), list) and given.get("ranks") is None and given.get("scores") is None:
        return given | {"ranks": [0] * len(given["responses"])}, given.get("probability") is not None
    return given, True


def _failure(asked: _Asked, judgement: Judgement) -> dict[str, Any]:
    row = asked.row
    responses = [row.responses[place] for place in asked.places]
    return {"id": asked.name, "reason": judgement.problem, "prompt": row.prompt, "responses": responses}


def _agreement(asked: Sequence[_Asked], labels: Sequence[float | None]) -> Agreement | None:
    credits, clusters = [], []
    for each, label in zip(asked, labels, strict=True):
        if each.known and label is not None:
            first, second = (each.row.ranks[place] for place in each.places)
            credits.append((np.sign(label - 0.5) * np.sign(second - first) + 1) / 2)
            clusters.append(each.row.group)
    if not credits:
        return None
    found = clustered_interval(np.array(credits), clusters)
    low, high = found.bounds or (None, None)
    return Agreement(rate=float(np.mean(credits)), low=low, high=high, pairs=len(credits))


# --- files ------------------------------------------------------------------------------------------------------------


def _check_output(files: LabelFiles, overwrite: bool) -> None:
    if files.out.suffix != ".jsonl":
        raise ValueError(f"`{setting('out')}` must be a .jsonl file, but is {files.out}.")
    require_writable(files.out)
    if files.out.exists() and not overwrite:
        raise FileExistsError(
            f"The output {files.out} exists. Name another file, or set `{setting('overwrite', True)}`: answers in "
            f"{files.requests.name} are used again, and failed requests are repeated."
        )


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))


def report_lines(report: LabelReport) -> list[str]:
    """Return a report as lines of text.

    Args:
        report: The report.

    Returns:
        The lines.
    """
    lines = [f"{report.labelled:,} of {counted(report.pairs, 'pair')} labelled in {report.seconds:.1f} s"]
    for label, reasons in (("not labelled", report.failed), ("unusable", report.unusable)):
        lines += [f"  {label}: {count:,} x {reason}" for reason, count in reasons.items()]
    for judge in report.judges:
        lines += judge_lines(judge)
    if report.agreement is not None:
        found = report.agreement
        interval = _interval(found.low, found.high, ".1%")
        lines.append(f"Agreement with the data: {found.rate:.1%}{interval} of {counted(found.pairs, 'pair')}")
    return lines


def judge_lines(judge: JudgeReport) -> list[str]:
    """Return the counts of one judge as lines of text.

    Args:
        judge: The counts.

    Returns:
        Requests with tokens and cost, failures by reason, and the position bias.
    """
    tokens = f"{judge.input_tokens:,} + {judge.output_tokens:,} tokens" if judge.input_tokens else "tokens unknown"
    cost = "" if judge.cost is None else f", cost {judge.cost:.4f}"
    lines = [
        f"{judge.name}: {counted(judge.requests, 'request')} answered, {judge.from_cache:,} from an earlier run, "
        f"{judge.failed:,} failed; {tokens}{cost}"
    ]
    lines += [f"  failed: {count:,} x {reason}" for reason, count in judge.reasons.items()]
    bias = judge.position_bias
    if bias is not None:
        lines.append(
            f"  position bias: the first response wins {bias.estimate:+.1%} too often"
            f"{_interval(bias.low, bias.high, '+.1%')}; the order decides {bias.flips:.1%} of "
            f"{counted(bias.pairs, 'pair')}"
        )
    return lines


def _interval(low: float | None, high: float | None, form: str) -> str:
    return "" if low is None or high is None else f" (95% interval {low:{form}} to {high:{form}})"
