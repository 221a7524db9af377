"""Split text into sentences and separators, so that edits can join them without loss."""

import re
from dataclasses import dataclass

import xxhash

# An end mark, optionally a closing quote, then white space before a possible sentence start; or a line break.
_BREAK = re.compile(r"(?<=[.!?])[\"')\]\u201d\u2019]*(\s+)(?=[\"'(\[\u201c\u2018]?[A-Z0-9])|(\n+)")
_ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|etc|e\.g|i\.e|U\.S|No|Fig)|\b[A-Z]|^\s*\d{1,3})\.$")


@dataclass(frozen=True)
class Sentences:
    """Sentences and the separators between them."""

    parts: list[str]
    gaps: list[str]

    def join(self) -> str:
        """Return the original text."""
        return self.parts[0] + "".join(gap + part for gap, part in zip(self.gaps, self.parts[1:], strict=True))

    @property
    def single_spaced(self) -> bool:
        """Whether all separators are single spaces."""
        return all(gap == " " for gap in self.gaps)


def split_sentences(text: str) -> Sentences:
    """Split a text at sentence ends and line breaks, without loss.

    Args:
        text: Any text.

    Returns:
        The sentences; the complete text if it has only one.
    """
    parts, gaps, start = [], [], 0
    for found in _BREAK.finditer(text):
        group = 1 if found.group(1) is not None else 2
        before = text[start : found.start(group)]
        if not before or (group == 1 and "\n" not in found.group(1) and _ABBREVIATION.search(before)):
            continue
        parts.append(before)
        gaps.append(found.group(group))
        start = found.end(group)
    return Sentences([*parts, text[start:]], gaps)


def count_words(text: str) -> int:
    """Return the number of words separated by white space."""
    return len(text.split())


def text_seed(text: str, salt: str = "") -> int:
    """Return a random seed that depends only on the text, so that edits are deterministic."""
    return xxhash.xxh3_64_intdigest(f"{salt}\x00{text}".encode("utf-8", "surrogatepass"))
