"""The outcome of a mitigation as JSON, as a page and as tables for the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hf_reward.evaluation.audit.report.wording import VERDICT_WORDS, interval_words, scale_of, verdict_words
from hf_reward.evaluation.mitigation.outcome import OUTCOMES
from hf_reward.evaluation.page import Cell, Page, Rows, Section, as_json, render, write_files
from hf_reward.evaluation.plain_text import plain_line

JSON_NAME, PAGE_NAME = "mitigation.json", "mitigation.html"
_PROBES = ("Probe", "Before", "After", "Change", "95% interval", "Outcome")
_ACCURACY = ("Accuracy", "Data", "Before", "After", "Change", "95% interval")
_READING = (
    "Both audits edit the same answers to the same prompts, with wordings that were not used in training. Changes are "
    "paired, case by case; their 95% intervals take into account that cases of one prompt are not independent. "
    "A bias counts as halved if the estimate is at most half as large and the interval of the change excludes 0. "
    "Changes of rates and of accuracies are in percentage points."
)


def write_outcome(content: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `mitigation.json` and `mitigation.html`.

    Args:
        content: The result of `compare_outcomes`, with `model`, `data` and `rows` (numbers of training rows).
        folder: Created if it is missing.

    Returns:
        The files.
    """
    return write_files(folder, {JSON_NAME: as_json(content), PAGE_NAME: render(_page(content))})


def print_outcome(content: Mapping[str, Any], console: Console) -> None:
    """Print both tables and the summary.

    Args:
        content: As in `write_outcome`.
        console: The target.
    """
    console.print(_table(_PROBES, [_words(each) for each in content["probes"]]))
    console.print(_table(_ACCURACY, [_accuracy(each) for each in content["accuracies"]]))
    console.print(escape(plain_line(content["summary"])), highlight=False)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if 0 < place < len(columns) - 1 else "left")
    for row in rows:
        table.add_row(*(escape(plain_line(text)) for text in row))
    return table


def _words(entry: Mapping[str, Any]) -> list[str]:
    scale, sides = scale_of(entry["unit"]), ("before", "after")
    numbers = [f"{scale.number(entry[side])} {verdict_words(entry[f'verdict_{side}']).lower()}" for side in sides]
    return [entry["label"], *numbers, *_change(entry), OUTCOMES[entry["outcome"]]]


def _accuracy(entry: Mapping[str, Any]) -> list[str]:
    scale = scale_of(entry["unit"])
    return [
        entry["label"],
        entry["data"],
        *(scale.number(entry[side]) for side in ("before", "after")),
        *_change(entry),
    ]


def _change(entry: Mapping[str, Any]) -> list[str]:
    """Change and interval; rates change by percentage points."""
    unit = "rate difference" if scale_of(entry["unit"]).symbol == "%" else entry["unit"]
    return [scale_of(unit).number(entry["change"]), interval_words({**entry, "unit": unit}) or "-"]


def _page(content: Mapping[str, Any]) -> Page:
    probes = [
        [each["label"], *_sides(each), *_change(each), Cell(OUTCOMES[each["outcome"]], [each["note"]])]
        for each in content["probes"]
    ]
    rows = content["rows"]
    built = [[kind, f"{count:,}"] for kind, count in rows["built"].items()]
    used = (
        f"{rows['usable']:,} of {rows['rows']:,} rows of {content['data']}; {sum(rows['built'].values()):,} built rows."
    )
    tables = [
        Rows(title="Biases", columns=_PROBES, rows=probes),
        Rows(title="Accuracy", columns=_ACCURACY, rows=[_accuracy(each) for each in content["accuracies"]]),
        Rows(title="Training rows", columns=("Kind", "Rows"), rows=built, note=used, folded=True),
    ]
    return Page(
        title="Bias mitigation",
        kicker="Bias mitigation",
        heading=f"{content['model']} before and after",
        lead=content["summary"],
        tally={Cell(OUTCOMES[name]): count for name, count in content["counts"].items()},
        sections=[
            Section(name="changes", title="Before and after", tables=tables),
            Section(name="reading", title="How to read this page", text=[_READING]),
        ],
    )


def _sides(entry: Mapping[str, Any]) -> list[Cell]:
    scale = scale_of(entry["unit"])
    return [
        Cell(scale.number(entry[side]), [VERDICT_WORDS.get(entry[f"verdict_{side}"], "")], entry[f"verdict_{side}"])
        for side in ("before", "after")
    ]
