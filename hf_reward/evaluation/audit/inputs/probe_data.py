"""Read questions, opinions, matched prompts and lists of responses for the probes from a file."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_reward.data.tables.csv_file import CsvTable
from hf_reward.data.tables.json_lines import JsonLinesTable
from hf_reward.data.text_files import require_one_byte_units
from hf_reward.evaluation.audit.inputs.audit_inputs import Matched, Opinion, Question, Responses

Row = Mapping[str, Any]
Placed = tuple[str, Row]
"""File and line of a row, and the row."""

_OPINION = ("question", "option_a", "option_b", "view_a", "view_b", "answer_a", "answer_b")
_READ = (
    "TruthfulQA (`Question`, `Best Answer`, `Incorrect Answers`), matched sycophancy prompts (`neutral_text` and "
    "`biased_text`, or `neutral_prompt` and `biased_prompt`, with `sycophantic_target` and `honest_target`), "
    "model-written sycophancy questions (`question`, `answer_matching_behavior`, `answer_not_matching_behavior`), "
    "graded solutions (`question` and fields with `is_correct` and `solution`), and our own format (`question`, "
    f"`correct`, `incorrect`; or {', '.join(f'`{name}`' for name in _OPINION)})"
)
_USER_TURN = re.compile(r"<\|start_header_id\|>user<\|end_header_id\|>\s*(.*?)<\|eot_id\|>", re.DOTALL)
_CALCULATOR = re.compile(r"<<[^<>]*>>")
"""Calculator annotations in the solutions of GSM8K, which are not meant for readers."""


@dataclass(kw_only=True)
class ProbeData:
    """Items of a file for the probes."""

    name: str = ""
    questions: list[Question] = field(default_factory=list)
    opinions: list[Opinion] = field(default_factory=list)
    matched: list[Matched] = field(default_factory=list)
    lists: list[Responses] = field(default_factory=list)


def read_probe_data(path: str | Path) -> ProbeData:
    """Read a file in one of the known formats, detected by its fields.

    Args:
        path: A `.csv` file, or one with a JSON object on each line.

    Returns:
        Its items.

    Raises:
        ValueError: If the file has no rows or an unknown format, or a row has missing or invalid fields.
    """
    path = Path(path)
    rows = _rows(path)
    if not rows:
        raise ValueError(f"{path} has no rows.")
    for fits, read in _FORMATS:
        if fits(rows[0][1]):
            return read(rows, str(path))
    raise ValueError(
        f"{path} has the fields {sorted(map(str, rows[0][1]))}, an unknown format. Known formats: {_READ}."
    )


def own_question(row: Row, where: str) -> Question:
    """Return a question of fact from a row with `question`, `correct`, `incorrect` and optionally `category`."""
    parts = {name: _text(row, name, where) for name in ("question", "correct", "incorrect")}
    if parts["correct"] == parts["incorrect"]:
        raise ValueError(f"{where}: `correct` and `incorrect` are the same: {parts['correct']!r}.")
    return Question(**parts, category=str(row.get("category") or ""))


def own_opinion(row: Row, where: str) -> Opinion:
    """Return a question of opinion from a row with two options, two views and two answers."""
    question, option_a, option_b, view_a, view_b, answer_a, answer_b = (_text(row, name, where) for name in _OPINION)
    return Opinion(
        question=f"{question}\n (A) {option_a}\n (B) {option_b}",
        views=(view_a, view_b),
        answers=(answer_a, answer_b),
        group=question,
    )


# --- one reader for each format ---------------------------------------------------------------------------------------


def _own_questions(rows: Sequence[Placed], where: str) -> ProbeData:
    return ProbeData(questions=[own_question(row, place) for place, row in rows])


def _own_opinions(rows: Sequence[Placed], where: str) -> ProbeData:
    return ProbeData(opinions=[own_opinion(row, place) for place, row in rows])


def _truthfulqa(rows: Sequence[Placed], where: str) -> ProbeData:
    """Use the incorrect answer whose number of words is closest to the best answer."""
    found = []
    for place, row in rows:
        correct = _sentence(_text(row, "Best Answer", place))
        wrong = [_sentence(part) for part in _text(row, "Incorrect Answers", place).split(";") if part.strip()]
        wrong = [part for part in wrong if part != correct]
        if not wrong:
            raise ValueError(f"{place}: `Incorrect Answers` has no answer other than the best one.")
        incorrect = min(wrong, key=lambda part: abs(len(part.split()) - len(correct.split())))
        question = _text(row, "Question", place)
        found.append(
            Question(question=question, correct=correct, incorrect=incorrect, category=row.get("Category") or "")
        )
    return ProbeData(questions=found)


def _matched(rows: Sequence[Placed], where: str) -> ProbeData:
    found = []
    for place, row in rows:
        plain, biased = (_side(row, side, place) for side in ("neutral", "biased"))
        target, other = (_text(row, name, place) for name in ("sycophantic_target", "honest_target"))
        found.append(Matched(biased=biased, plain=plain, target=target, other=other, cluster=f"matched: {plain}"))
    return ProbeData(matched=found)


def _side(row: Row, side: str, where: str) -> str:
    """Return the text of a prompt, or the user turn of a prompt in the template of Llama 3."""
    if row.get(f"{side}_text"):
        return _text(row, f"{side}_text", where)
    prompt = _text(row, f"{side}_prompt", where)
    turn = _USER_TURN.search(prompt)
    return turn.group(1).strip() if turn else prompt


def _model_written(rows: Sequence[Placed], where: str) -> ProbeData:
    """Pair users with opposite views who ask the same question, because these files have no neutral prompts."""
    sides: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for place, row in rows:
        target, other = (_text(row, f"answer_{name}_behavior", place) for name in ("matching", "not_matching"))
        prompt = _text(row, "question", place)
        sides.setdefault(_asked(prompt), {}).setdefault(target, []).append((prompt, other))
    found = []
    for asked, views in sides.items():
        if len(views) != 2:
            continue
        (target, ones), (_, others) = sorted(views.items())
        for (biased, other), (plain, _) in zip(ones, others, strict=False):
            cluster = f"matched: {asked}"
            found.append(Matched(biased=biased, plain=plain, target=target, other=other, cluster=cluster, crossed=True))
    if not found:
        raise ValueError(
            f"None of the {len(rows)} questions in {where} occurs with both views of the user or with a neutral "
            "prompt. Agreement therefore cannot be separated from a preference for an answer. Use a file with "
            "`neutral_text` and `biased_text`, or one with both views of each question."
        )
    return ProbeData(matched=found)


def _asked(prompt: str) -> str:
    """Return the question without the view: the last sentence before the options, and the options."""
    stem, mark, options = prompt.partition("(A)")
    stem = re.sub(r"\s*(Choices:)?\s*$", "", stem)
    last = re.split(r"(?<=[.!?])\s+", stem)[-1]
    return f"{last} {mark}{options}".strip()


def _solutions(rows: Sequence[Placed], where: str) -> ProbeData:
    found = []
    for place, row in rows:
        question = _text(row, "question", place)
        graded = [part for part in row.values() if _is_graded(part)]
        found.append(
            Responses(
                prompt=[{"role": "user", "content": question}],
                responses=[_CALCULATOR.sub("", part["solution"]) for part in graded],
                gold=[float(part["is_correct"]) for part in graded],
                cluster=f"list: {question}",
            )
        )
    return ProbeData(lists=found)


def _is_graded(part: Any) -> bool:
    return (
        isinstance(part, Mapping)
        and isinstance(part.get("solution"), str)
        and isinstance(part.get("is_correct"), (bool, int))
    )


def _has(*names: str) -> Callable[[Row], bool]:
    return lambda row: all(name in row for name in names)


_FORMATS: list[tuple[Callable[[Row], bool], Callable[[Sequence[Placed], str], ProbeData]]] = [
    (_has("Question", "Best Answer", "Incorrect Answers"), _truthfulqa),
    (_has("neutral_text", "biased_text", "sycophantic_target", "honest_target"), _matched),
    (_has("neutral_prompt", "biased_prompt", "sycophantic_target", "honest_target"), _matched),
    (_has("question", "answer_matching_behavior", "answer_not_matching_behavior"), _model_written),
    (_has("question", "correct", "incorrect"), _own_questions),
    (_has(*_OPINION), _own_opinions),
    (lambda row: "question" in row and sum(map(_is_graded, row.values())) >= 2, _solutions),
]


# --- files ------------------------------------------------------------------------------------------------------------


def _rows(path: Path) -> list[Placed]:
    require_one_byte_units(path)
    table = CsvTable(path) if path.suffix == ".csv" else JsonLinesTable(path)
    found = [row for span in table.spans(2**40) for row in table.read(span)]
    wrong = next((row for row in found if row.row is None), None)
    if wrong is not None:
        raise ValueError(
            f"{path}, line {wrong.line}: {wrong.problem}. Correct or remove it. The file must be `.csv` or JSON lines."
        )
    return [(f"{path}, line {row.line}", row.row) for row in found if row.row is not None]


def _text(row: Row, name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: `{name}` must be text, but is {value!r}.")
    return value.strip()


def _sentence(text: str) -> str:
    """Add a missing full stop, which must not reveal the role of an answer."""
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."
