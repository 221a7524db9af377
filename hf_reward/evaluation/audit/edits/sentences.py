"""Text -> sentences and what stands between them, so that edits put back together what they took apart."""

import re
from dataclasses import dataclass

import xxhash

# An end mark, perhaps a closing quote, then white space before something that can begin a sentence; or a line break.
_BREAK = re.compile(r"(?<=[.!?])[\"')\]\u201d\u2019]*(\s+)(?=[\"'(\[\u201c\u2018]?[A-Z0-9])|(\n+)")
_ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|etc|e\.g|i\.e|U\.S|No|Fig)|\b[A-Z]|^\s*\d{1,3})\.$")


@dataclass(frozen=True)
class Sentences:
    """Sentences and the separators between them: one fewer than sentences."""

    parts: list[str]
    gaps: list[str]

    def join(self) -> str:
        """The text again."""
        return self.parts[0] + "".join(gap + part for gap, part in zip(self.gaps, self.parts[1:], strict=True))

    @property
    def single_spaced(self) -> bool:
        """Whether one space stands between all sentences."""
        return all(gap == " " for gap in self.gaps)


def split_sentences(text: str) -> Sentences:
    """Cut a text at sentence ends and line breaks; nothing is lost.

    Args:
        text: Any text.

    Returns:
        Its sentences; the text itself where no end is found.
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
    """Words between white space."""
    return len(text.split())


def text_seed(text: str, salt: str = "") -> int:
    """A number that depends on the text alone: what edits draw from, so that a text is always edited alike."""
    return xxhash.xxh3_64_intdigest(f"{salt}\x00{text}".encode("utf-8", "surrogatepass"))
