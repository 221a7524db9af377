"""Answers -> the same answers written less well, or differently: what should not change which one is better."""

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
    """One change that keeps the meaning."""

    name: str
    label: str
    apply: Callable[[str], str]


def with_typos(share: float) -> Callable[[str], str]:
    """Typing errors in a share of the words of four letters or more, at least one: swapped, lost or doubled letters.

    Args:
        share: Of the words, such as 0.03.

    Returns:
        The edit; the same text always gets the same errors.
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
    place = int(random.integers(1, len(word) - 2))  # the first letter stays: readers need it most
    kind = int(random.integers(3))
    if kind == 0 and word[place] != word[place + 1]:
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    if kind == 1:
        return word[:place] + word[place + 1 :]
    return word[: place + 1] + word[place:]


def jittered_spaces(text: str) -> str:
    """Double some spaces and end with a line break."""
    random = np.random.default_rng(text_seed(text, "spaces"))
    return re.sub(" ", lambda _: "  " if random.random() < 0.15 else " ", text) + "\n"


def curly_quotes(text: str) -> str:
    """Typographic quotes and apostrophes instead of straight ones."""
    text = re.sub(r'(^|[\s(\[])"', "\\1\u201c", text)
    text = re.sub(r"(^|[\s(\[])'", "\\1\u2018", text)
    return text.replace('"', "\u201d").replace("'", "\u2019")


def expanded_contractions(text: str) -> str:
    """Write "do not" for "don't" and the like."""
    for short, long in _CONTRACTIONS.items():
        text = re.sub(rf"{re.escape(short)}\b", long, text)
    return text


NOISE_EDITS = (
    NoiseEdit("typos_1", "typing errors in 1% of the words", with_typos(0.01)),
    NoiseEdit("typos_3", "typing errors in 3% of the words", with_typos(0.03)),
    NoiseEdit("typos_5", "typing errors in 5% of the words", with_typos(0.05)),
    NoiseEdit("lower_case", "everything in small letters", str.lower),
    NoiseEdit("spaces", "odd white space", jittered_spaces),
    NoiseEdit("curly_quotes", "typographic quotes", curly_quotes),
    NoiseEdit("contractions", "contractions written out", expanded_contractions),
    NoiseEdit("suffix", "an irrelevant last sentence", lambda text: text.rstrip() + _SUFFIX),
)
"""The edits; one that changes neither side of a pair says nothing about it."""
