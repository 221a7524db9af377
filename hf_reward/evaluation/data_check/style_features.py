"""A response -> its length and amount of formatting, without a tokenizer."""

import re
from collections.abc import Callable

LENGTHS = ("words", "characters")

_Count = Callable[[str], int]


def _matches(pattern: str, flags: re.RegexFlag = re.MULTILINE) -> _Count:
    expression = re.compile(pattern, flags)
    return lambda text: sum(1 for _ in expression.finditer(text))


_LIST_ITEMS = _matches(r"^[ \t]*(?:[-*+\u2022]|\d{1,3}[.)])[ \t]")
_BOLD = _matches(r"\*\*[^*\n]+\*\*")
_HEADERS = _matches(r"^#{1,6} ")
_CODE = _matches(r"^[ \t]*```")
_TABLE_ROWS = _matches(r"^[ \t]*\|.*\|[ \t]*$")
_OPENER = re.compile(r"\s*(?:sure|certainly|of course|absolutely|great question)\b", re.IGNORECASE)
_REFUSAL = re.compile(
    r"\bi(?:['\u2019]m| am) (?:sorry|afraid|unable)|\bi (?:can(?:no|['\u2019])t|won['\u2019]t)\b|\bas an ai\b",
    re.IGNORECASE,
)
_FORMATS = (_LIST_ITEMS, _BOLD, _HEADERS, _CODE, _TABLE_ROWS)

FEATURES: dict[str, _Count] = {
    "words": lambda text: len(text.split()),
    "characters": len,
    "format marks": lambda text: sum(count(text) for count in _FORMATS),
    "list items": _LIST_ITEMS,
    "bold": _BOLD,
    "headers": _HEADERS,
    "code fences": _CODE,
    "table rows": _TABLE_ROWS,
    "line breaks": lambda text: text.count("\n"),
    "links": _matches(r"https?://"),
    "emoji": _matches("[\u2600-\u27bf\U0001f300-\U0001faff]"),
    "exclamation marks": lambda text: text.count("!"),
    "question marks": lambda text: text.count("?"),
    "agreeing opening": lambda text: int(_OPENER.match(text) is not None),
    "apology or refusal": lambda text: int(_REFUSAL.search(text) is not None),
}
"""Name -> count in a text. `format marks` is the sum of list items, bold, headers, code fences and table rows."""

MARKS = tuple(name for name in FEATURES if name not in (*LENGTHS, "agreeing opening", "apology or refusal"))
"""Features that format edits add and remove."""

WHAT_COUNTS = {
    "words": "words between white space",
    "characters": "characters",
    "format marks": "list items, bold, headers, code fences and table rows together",
    "list items": "lines that begin with -, *, + or a number",
    "bold": "**bold** passages",
    "headers": "lines that begin with #",
    "code fences": "lines that begin with ```",
    "table rows": "lines between | and |",
    "line breaks": "line breaks",
    "links": "http:// and https://",
    "emoji": "emoji and pictographs",
    "exclamation marks": "exclamation marks",
    "question marks": "question marks",
    "agreeing opening": 'responses that begin with "Sure", "Certainly", "Of course", "Absolutely" or "Great question"',
    "apology or refusal": 'responses with "I\'m sorry", "I can\'t", "I won\'t", "as an AI" or similar',
}
"""Name -> description for readers."""


def count_features(text: str) -> list[int]:
    """Count each of `FEATURES` in a text.

    Args:
        text: A response.

    Returns:
        The counts, in the order of `FEATURES`.
    """
    return [count(text) for count in FEATURES.values()]
