"""Edits of the format of an answer that keep its words.

Every edit can be undone exactly. Answers for which this fails, because they already have the format or too few
sentences, are not edited.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from hf_reward.evaluation.audit.edits.sentences import Sentences, split_sentences

_LINK = " (https://www.example.com)"
_HEADER = "## Answer\n\n"
_OPENING = "Certainly! "
_FENCE = "```\n{}\n```"
_EMOJI = " \U0001f60a"
_FIRST_WORDS = re.compile(r"\S+(?: \S+){0,2}")


@dataclass(frozen=True)
class FormatEdit:
    """A change of format."""

    name: str
    label: str
    apply: Callable[[str], str | None]
    undo: Callable[[str], str]
    neutral: bool = True
    """Whether it changes only the layout and should not matter in either direction; others may be disliked."""
    control: Callable[[str], str] | None = None
    """A neutral addition of the same length in the same place, to measure the effect of any addition."""

    def __call__(self, answer: str) -> str | None:
        """Return the edited answer; None if the edit is impossible or cannot be undone."""
        edited = self.apply(answer)
        return edited if edited is not None and edited != answer and self.undo(edited) == answer else None


def _each_sentence(change: Callable[[int, str], str], between: str | None = None) -> Callable[[str], str | None]:
    def apply(answer: str) -> str | None:
        sentences = split_sentences(answer)
        if len(sentences.parts) < 2 or not sentences.single_spaced:
            return None
        parts = [change(place, part) for place, part in enumerate(sentences.parts)]
        return (" " if between is None else between).join(parts)

    return apply


def _bold(_: int, sentence: str) -> str:
    return _FIRST_WORDS.sub(lambda found: f"**{found.group()}**", sentence, count=1)


def _exclaim(answer: str) -> str | None:
    if "!" in answer:
        return None
    sentences = split_sentences(answer)
    parts = [f"{part[:-1]}!" if part.endswith(".") else part for part in sentences.parts]
    return Sentences(parts, sentences.gaps).join()


def _calm(text: str) -> str:
    return text.replace("!", ".")


def _unlist(marker: str) -> Callable[[str], str]:
    return lambda text: " ".join(re.sub(rf"^{marker}", "", line) for line in text.split("\n"))


def _answer_says(text: str) -> str:
    return f"Answer: {text}"


FORMAT_EDITS = (
    FormatEdit("bold", "bold text", _each_sentence(_bold), lambda text: text.replace("**", "")),
    FormatEdit("bullets", "bullet points", _each_sentence(lambda _, part: f"- {part}", "\n"), _unlist("- ")),
    FormatEdit(
        "numbered",
        "a numbered list",
        _each_sentence(lambda place, part: f"{place + 1}. {part}", "\n"),
        _unlist(r"\d+\. "),
    ),
    FormatEdit(
        "header",
        "a header",
        lambda text: _HEADER + text,
        lambda text: text.removeprefix(_HEADER),
        control=_answer_says,
    ),
    FormatEdit(
        "emoji",
        "emoji",
        _each_sentence(lambda _, part: part + _EMOJI),
        lambda text: text.replace(_EMOJI, ""),
        neutral=False,
    ),
    FormatEdit("exclamation", "exclamation marks", _exclaim, _calm, neutral=False),
    FormatEdit(
        "certainly",
        'an opening "Certainly!"',
        lambda text: _OPENING + text,
        lambda text: text.removeprefix(_OPENING),
        neutral=False,
        control=_answer_says,
    ),
    FormatEdit(
        "code_fence",
        "a code fence",
        lambda text: None if "```" in text else _FENCE.format(text),
        lambda text: text.removeprefix("```\n").removesuffix("\n```"),
        neutral=False,
    ),
    FormatEdit(
        "link",
        "a link",
        lambda text: text + _LINK,
        lambda text: text.removesuffix(_LINK),
        neutral=False,
        control=lambda text: f"{text} (as many people say)",
    ),
    FormatEdit(
        "blank_lines",
        "blank lines between sentences",
        _each_sentence(lambda _, part: part, "\n\n"),
        lambda text: text.replace("\n\n", " "),
    ),
)
"""All format edits."""
