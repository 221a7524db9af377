"""Edits that pad answers with sentences without new content, and controls for them.

A padded answer is never better than the original, so a model that scores it higher rewards length. A lower score proves
nothing: a good model may dislike padding.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from hf_reward.evaluation.audit.edits.sentences import Sentences, count_words, split_sentences, text_seed

CLOSERS = (
    "I hope this is useful.",
    "There is of course more that could be said about this.",
    "That is the general idea.",
    "This is one way to look at the matter.",
    "It is good to keep this in mind.",
    "This should cover what was asked.",
    "As always, the details can differ from case to case.",
    "That sums up what there is to say here.",
    "Please take from this whatever is helpful.",
    "Thank you for reading this far.",
    "This answer is meant as an overview of the topic.",
    "I have tried to put this as plainly as I could.",
    "That is how things stand as far as this question goes.",
    "Many people have thought about this topic before.",
    "It is a topic that comes up from time to time.",
    "There are many ways to put this into words.",
    "Those are the points that belong in an answer like this one.",
    "With that, the question should be answered.",
    "It never hurts to think about such things calmly.",
    "The above is what I wanted to say about it.",
    "This is an area in which questions are welcome.",
    "A question like this deserves an answer, and this is mine.",
    "One could go on for quite a while about this.",
    "That is the answer to the question as I understand it.",
)
"""Sentences that fit any answer and add no content."""
_RESTATEMENTS = ("In other words: ", "To say it again: ", "Put once more: ", "That is to say: ")
KINDS = ("closers", "restatement", "repetition")
_NATURAL_CLOSER = re.compile(
    r"^(?:I hope (?:this|that|these|it) helps?\b.*|(?:Please )?(?:let me know|feel free) \w+.*\bquestions?\b.*|"
    r"Is there anything else\b.*|Hope (?:this|that) helps\b.*)$",
    re.IGNORECASE,
)


def pad(answer: str, *, kind: str = "closers", dose: float = 2.0, position: str = "end") -> str:
    """Lengthen an answer without adding content.

    Args:
        answer: The answer.
        kind: `closers` (stock sentences), `restatement` (its own sentences, introduced as such) or `repetition` (one
            of its own sentences, repeated).
        dose: Approximate ratio of the numbers of words; at least one sentence is added.
        position: `start`, `middle` or `end`.

    Returns:
        The padded answer, with all original sentences in order.

    Raises:
        ValueError: If the kind or position is unknown, or the dose is 1 or less.
    """
    if kind not in KINDS or position not in ("start", "middle", "end") or dose <= 1:
        raise ValueError(
            f"Padding requires a kind from {KINDS}, the position start, middle or end, and a length factor (`dose`) "
            f"above 1, but got {kind!r}, {position!r} and {dose}."
        )
    sentences = split_sentences(answer)
    wanted = (dose - 1) * count_words(answer)
    added: list[str] = []
    for sentence in _fillers(sentences, kind, text_seed(answer, "padding")):
        more = count_words(sentence)
        have = sum(map(count_words, added))
        if added and have + more / 2 > wanted:  # closer to the dose without it
            break
        added.append(sentence)
    return insert(sentences, " ".join(added), position)


def _fillers(sentences: Sentences, kind: str, seed: int) -> Iterator[str]:
    """An infinite iterator over filler sentences."""
    random = np.random.default_rng(seed)
    own = [part.strip() for part in sentences.parts if part.strip()]
    if kind == "closers":
        while True:
            yield from (CLOSERS[place] for place in random.permutation(len(CLOSERS)))
    if kind == "repetition":
        sentence = _ended(min(own, key=lambda part: abs(count_words(part) - 10)))
        while True:
            yield sentence
    place = 0
    while True:
        yield _RESTATEMENTS[place % len(_RESTATEMENTS)] + _ended(own[place % len(own)])
        place += 1


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith((".", "!", "?", ":")) else f"{sentence}."


def insert(sentences: Sentences, text: str, position: str) -> str:
    """Insert a text into an answer.

    Args:
        sentences: The answer.
        text: The text.
        position: `start`, `middle` or `end`; an answer of one sentence has no middle.

    Returns:
        The longer answer.
    """
    answer = sentences.join()
    if position == "start":
        return f"{text} {answer}"
    if position == "end" or len(sentences.parts) < 2:
        return f"{answer.rstrip()} {text}"
    cut = len(sentences.parts) // 2
    first = Sentences(sentences.parts[:cut], sentences.gaps[: cut - 1]).join()
    rest = Sentences(sentences.parts[cut:], sentences.gaps[cut:]).join()
    return f"{first} {text}{sentences.gaps[cut - 1]}{rest}"


def wider_spaces(answer: str) -> str:
    """Return the placebo: a second space after the first and before the last word, without an added word."""
    words = re.split(r"(?<=\S)( )(?=\S)", answer)
    if len(words) < 3:
        return f"{answer} "
    words[1] = "  "
    words[-2] = "  "
    return "".join(words)


def reordered(answer: str) -> str | None:
    """Move the last sentence to the front: a control edit that adds nothing but harms coherence.

    Args:
        answer: The answer.

    Returns:
        The reordered answer; None for fewer than three sentences or several lines.
    """
    sentences = split_sentences(answer)
    if len(sentences.parts) < 3 or not sentences.single_spaced:
        return None
    return " ".join([sentences.parts[-1], *sentences.parts[:-1]])


def without_filler(answer: str) -> str | None:
    """Remove filler: a closing sentence such as "I hope this helps.", or a repeated sentence of prose.

    Args:
        answer: The answer.

    Returns:
        The shorter answer; None if there is no filler, or nothing would be left.
    """
    sentences = split_sentences(answer)
    seen: set[str] = set()
    drop = []
    last = len(sentences.parts) - 1
    for place, part in enumerate(sentences.parts):
        plain = part.strip().lower()
        closes = place == last and _NATURAL_CLOSER.match(part.strip()) is not None
        # Code and lists may repeat a line for good reason.
        repeats = plain in seen and count_words(plain) > 2 and sentences.single_spaced
        if place and (closes or repeats):
            drop.append(place)
        seen.add(plain)
    if not drop or len(drop) == len(sentences.parts):
        return None
    keep = [place for place in range(len(sentences.parts)) if place not in drop]
    text = sentences.parts[keep[0]]
    for place in keep[1:]:
        text += sentences.gaps[place - 1] + sentences.parts[place]
    return text.rstrip()


@dataclass(frozen=True)
class LengthEdit:
    """An edit of the length of an answer, or a control for it."""

    kind: str
    """One of `KINDS`, or `placebo`, `reordered` or `deleted`."""
    dose: float = 1.0
    """Approximate ratio of the numbers of words after and before padding."""
    position: str = ""
    """Position of the added words: `start`, `middle` or `end`."""

    def __call__(self, answer: str) -> str | None:
        """Return the edited answer; None if the edit is impossible."""
        if self.kind in KINDS:
            return pad(answer, kind=self.kind, dose=self.dose, position=self.position)
        return _OTHER_EDITS[self.kind](answer)

    @property
    def label(self) -> str:
        """Name for readers."""
        words = LABELS[self.kind]
        return f"{words}, {self.dose:g} times as long, at the {self.position}" if self.kind in KINDS else words


_OTHER_EDITS: dict[str, Callable[[str], str | None]] = {
    "placebo": wider_spaces,
    "reordered": reordered,
    "deleted": without_filler,
}
PLACEBO, REORDERED, DELETED = map(LengthEdit, _OTHER_EDITS)
LABELS = {
    "closers": "stock sentences",
    "restatement": "restatements",
    "repetition": "a repeated sentence",
    "placebo": "placebo: two wider spaces",
    "reordered": "sentences reordered",
    "deleted": "filler removed",
}
"""Kind of edit -> name for readers."""
