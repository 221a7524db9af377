"""Write a report as a self-contained HTML file; audits, their comparisons and data checks share the template."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from hf_reward.data.atomic_file import write_atomic
from hf_reward.evaluation.plain_text import without_controls

THEME = {
    "text": ("#1d2330", "#e6e9ef"),
    "dim": ("#596273", "#9fa9ba"),
    "rule": ("#dfe3ea", "#2c323d"),
    "soft": ("#f4f6f9", "#1b2028"),
    "band": ("#e3e6ec", "#2a303b"),
    "page": ("#ffffff", "#14171d"),
    "link": ("#1f5c9e", "#8fbdf0"),
    "biased": ("#c2330a", "#ff8a5c"),
    "equivalent": ("#1f66b0", "#7fb2ea"),
    "inconclusive": ("#6a5a17", "#d8c470"),
    "not_assessed": ("#606877", "#a3abb9"),
    "observational": ("#74468f", "#cfa3e6"),
    "differs": ("#1f5c9f", "#8fbdf1"),
    "no_difference_shown": ("#5b6374", "#a0aabb"),
    "line-1": ("#1f66b1", "#7fb2eb"),
    "line-2": ("#c2330b", "#ff8a5d"),
    "line-3": ("#2c7a4b", "#7ccf9b"),
    "line-4": ("#7a4fa3", "#c6a0ea"),
    "line-5": ("#8a6100", "#e0b95a"),
}
"""Part of a page or figure -> its light and its dark colour. All colours differ, so that the style sheet can
replace the light colours in figures by dark ones."""
MARKS = {
    "biased": "\N{BLACK DIAMOND}",
    "inconclusive": "\N{WHITE SQUARE}",
    "equivalent": "\N{BLACK CIRCLE}",
    "not_assessed": "\N{MULTIPLICATION SIGN}",
    "observational": "\N{WHITE UP-POINTING TRIANGLE}",
}
"""Sign before a verdict; other verdicts have none."""
_CLAMPED, _CLAMPED_LINES = 320, 6
"""Characters and lines of a text that are shown before it is unfolded."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table, or a text with a verdict."""

    text: str
    small: Sequence[str] = ()
    """Lines below it."""
    verdict: str = ""
    """Verdict that sets its sign and colour."""
    bar: tuple[float, float, float] | None = None
    """A share and the bounds of its interval, each in [0, 1], drawn on a scale that marks one half."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A table of a page."""

    title: str
    columns: Sequence[str] = ()
    """Headers; empty for a table without a header row."""
    rows: Sequence[Sequence[Cell | str]]
    note: str = ""
    folded: bool = False
    """Whether it is folded at first."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure of a page."""

    svg: Markup
    caption: str
    narrow: Markup | None = None
    """The same for the width of a phone; None if `svg` fits it."""
    name: str = ""
    """Anchor for links."""
    more: str = ""
    """Anchor of the figure of all effects."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts that belong together, such as a prompt and its responses."""

    title: str
    texts: Sequence[tuple[str, str, str]]
    """Label, number and text of each."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A finding and what to do about it."""

    title: str
    scope: str = ""
    """Number of affected rows in words."""
    text: str
    remedy: str = ""
    urgent: bool = False
    """Whether it comes before pictures and tables."""
    examples: Sequence[Texts] = ()


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of a page."""

    name: str
    """Anchor for links."""
    title: str
    verdict: Cell | None = None
    """Shown beside the title and in the list of sections."""
    text: Sequence[str] = ()
    points: Sequence[Cell] = ()
    """Items of a list: a verdict with its meaning in `small`."""
    advice: Sequence[Advice] = ()
    tables: Sequence[Rows] = ()
    pictures: Sequence[Picture] = ()
    examples: Sequence[Texts] = ()
    examples_open: bool = False


@dataclass(frozen=True, kw_only=True)
class Page:
    """Content of a page."""

    title: str
    """Title of the browser window."""
    heading: str
    kicker: str = ""
    about: Sequence[str] = ()
    lead: str = ""
    advice: Sequence[Advice] = ()
    pictures: Sequence[Picture] = ()
    tally: Mapping[Cell, int] = field(default_factory=dict)
    sections: Sequence[Section] = ()


def render(page: Page) -> str:
    """Render a page.

    Args:
        page: Its content; text between backticks is set as code.

    Returns:
        HTML without scripts that loads nothing; all text is escaped, and control characters are replaced.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(shortened=_shortened, code=_code)
    template = files("hf_reward.evaluation").joinpath("page.html").read_text(encoding="utf-8")
    return without_controls(environment.from_string(template).render(page=page, theme=THEME, marks=MARKS))


def as_json(content: Any) -> str:
    """Return a report as the text of its JSON file; a number that is not finite is an error."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_files(folder: str | Path, contents: Mapping[str, str | bytes]) -> list[Path]:
    """Write the files of a report and replace earlier ones.

    Args:
        folder: Created if it does not exist.
        contents: Name within the folder -> content.

    Returns:
        The files.

    Raises:
        OSError: If the folder cannot be written to.
    """
    paths = {Path(folder) / name: content for name, content in contents.items()}
    for path, content in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    return list(paths)


def _code(text: str) -> Markup:
    """Escape a text and set the parts between backticks as code."""
    parts = [escape(part) for part in text.split("`")]
    if len(parts) % 2 == 0:  # an unpaired backtick
        return escape(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 else part for place, part in enumerate(parts)
    )


def _shortened(text: str) -> str:
    """Return the start of a text that is too long to be shown at once, and an empty text for others."""
    lines = text.split("\n")
    if len(text) <= _CLAMPED and len(lines) <= _CLAMPED_LINES:
        return ""
    short = "\n".join(lines[:_CLAMPED_LINES])
    return short[: _CLAMPED - 40].rstrip() + "…"
