"""A response -> the features that a monitor follows."""

import re
from collections.abc import Callable

from hf_reward.data.row_text import words_of
from hf_reward.evaluation.data_check.style_features import FEATURES

_STOCK_PHRASES = re.compile(
    r"\b(?:i hope (?:this|that|it|these) helps?|(?:please )?(?:let me know|feel free to)|is there anything else|"
    r"happy to help|(?:great|good|excellent) question|it(?:['\u2019]s| is) (?:important|worth) (?:to note|noting)|"
    r"in (?:summary|conclusion)|as an ai)\b",
    re.IGNORECASE,
)
_GRAM = 3
"""Words in the sequences whose repetition is measured."""


def repeated_share(text: str) -> float:
    """Return the share of sequences of three words that occur earlier in a text.

    Args:
        text: A response. Each Chinese or Japanese character counts as a word.

    Returns:
        1 - different sequences / sequences; 0 for a text of fewer than three words.
    """
    words = words_of(text)
    grams = list(zip(*(words[start:] for start in range(_GRAM)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def count_boilerplate(text: str) -> int:
    """Count stock phrases ("I hope this helps", "in conclusion") and an agreeing opening ("Certainly").

    Args:
        text: A response.

    Returns:
        The number of stock phrases, English only.
    """
    return sum(1 for _ in _STOCK_PHRASES.finditer(text)) + int(FEATURES["agreeing opening"](text))


MONITORED: dict[str, Callable[[str], float]] = {
    "length": FEATURES["characters"],
    "formatting": FEATURES["format marks"],
    "repetition": repeated_share,
    "boilerplate": count_boilerplate,
    "refusal": FEATURES["apology or refusal"],
}
"""Feature -> its value in a response: characters, list items and other marks, share of repeated sequences of three
words, stock phrases, and 1 for an apology or refusal."""


def monitored_features(text: str) -> tuple[float, ...]:
    """Return the features of a response, in the order of `MONITORED`."""
    return tuple(float(measure(text)) for measure in MONITORED.values())
