"""Edits that keep the meaning of an answer, such as typos; they should not change a preference."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hf_reward.evaluation.audit.edits.sentences import text_seed

_WORD = re.compile(r"[A-Za-z]{4,}")
_CONTRACTIONS = {
    "can't": "cannot",
    "won't": "will not",
    "shan't": "shall not",
    "n't": " not",
    "'re": " are",
    "'ve": " have",
    "'ll": " will",
    "I'm": "I am",
    "let's": "let us",
}
_SUFFIX = " By the way, the trains were running on time this morning."


@dataclass(frozen=True)
class NoiseEdit:
    """A change that keeps the meaning."""

    name: str
    label: str
    apply: Callable[[str], str]


def with_typos(share: float) -> Callable[[str], str]:
    """Return an edit that adds typos (swapped, lost or doubled letters) to a share of the words, at least one.

    Args:
        share: Share of the words, such as 0.03; only words of four or more letters are changed.

    Returns:
        The edit; it is deterministic.
    """

    def apply(text: str) -> str:
        words = list(_WORD.finditer(text))
        if not words:
            return text
        random = np.random.default_rng(text_seed(text, f"typos {share}"))
        count = max(1, round(share * len(text.split())))
        for place in sorted(random.choice(len(words), size=min(count, len(words)), replace=False), reverse=True):
            found = words[int(place)]
            text = text[: found.start()] + _mistyped(found.group(), random) + text[found.end() :]
        return text

    return apply


def _mistyped(word: str, random: np.random.Generator) -> str:
    place = int(random.integers(1, len(word) - 2))  # the first letter stays, for readability
    kind = int(random.integers(3))
    if kind == 0 and word[place] != word[place + 1]:
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    if kind == 1:
        return word[:place] + word[place + 1 :]
    return word[: place + 1] + word[place:]


def jittered_spaces(text: str) -> str:
    """Double some spaces and append a line break."""
    random = np.random.default_rng(text_seed(text, "spaces"))
    return re.sub(" ", lambda _: "  " if random.random() < 0.15 else " ", text) + "\n"


def curly_quotes(text: str) -> str:
    """Replace straight quotes and apostrophes with typographic ones."""
    text = re.sub(r'(^|[\s(\[])"', "\\1\u201c", text)
    text = re.sub(r"(^|[\s(\[])'", "\\1\u2018", text)
    return text.replace('"', "\u201d").replace("'", "\u2019")


def expanded_contractions(text: str) -> str:
    """Expand contractions: "do not" for "don't"."""
    for short, long in _CONTRACTIONS.items():
        text = re.sub(rf"{re.escape(short)}\b", long, text)
    return text


NOISE_EDITS = (
    NoiseEdit("typos_1", "typos in 1% of the words", with_typos(0.01)),
    NoiseEdit("typos_3", "typos in 3% of the words", with_typos(0.03)),
    NoiseEdit("typos_5", "typos in 5% of the words", with_typos(0.05)),
    NoiseEdit("lower_case", "lower case", str.lower),
    NoiseEdit("spaces", "irregular white space", jittered_spaces),
    NoiseEdit("curly_quotes", "typographic quotes", curly_quotes),
    NoiseEdit("contractions", "expanded contractions", expanded_contractions),
    NoiseEdit("suffix", "an irrelevant last sentence", lambda text: text.rstrip() + _SUFFIX),
)
"""All noise edits; pairs that an edit does not change are left out."""
