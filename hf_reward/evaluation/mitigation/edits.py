"""Edits of answers for training rows. None equals an edit of the audit; each depends only on its random generator."""

import re
from collections.abc import Callable, Sequence

from numpy.random import Generator

from hf_reward.evaluation.audit.edits.padding import insert
from hf_reward.evaluation.audit.edits.sentences import Sentences, count_words, split_sentences
from hf_reward.evaluation.mitigation.wordings import FILLER, RESTATING

Edit = Callable[[str, Generator], str | None]
"""Answer and random generator -> edited answer, or None if the edit is impossible."""

_BULLETS, _NUMBERS = ("* ", "\N{BULLET} "), ("{}) ", "({}) ")
_HEADERS = ("# Reply\n\n", "### Overview\n\n", "**Reply**\n\n", "Reply\n=====\n\n")
_OPENINGS = ("Sure thing! ", "Gladly! ", "Of course! ", "Happy to help! ")
_EMOJIS = ("\N{THUMBS UP SIGN}", "\N{PARTY POPPER}", "\N{SPARKLES}", "\N{ROCKET}")
_FENCES = ("```text\n{}\n```", "~~~\n{}\n~~~")
_LINKS = (" [more](https://example.org/info)", " See https://example.net/page.", " (source: www.example.org)")
_BREAKS = ("\n", "\n\n\n")
_WORD = re.compile(r"\S+")


def pick(items: Sequence[str], random: Generator) -> str:
    """Return a random item."""
    return items[int(random.integers(len(items)))]


def padded(answer: str, random: Generator) -> str:
    """Lengthen an answer to 1.2 to 3 times its words, at a random position, without adding content.

    The added text is filler, restatements of its own sentences, or one of them repeated.

    Args:
        answer: The answer.
        random: Source of all choices.

    Returns:
        The longer answer; all original sentences stay in order.
    """
    sentences = split_sentences(answer)
    wanted = random.uniform(0.2, 2.0) * count_words(answer)
    added = [_padding(sentences, kind := int(random.integers(3)), random)]
    while sum(map(count_words, added)) < wanted:
        added.append(added[0] if kind == 2 else _padding(sentences, kind, random))
    return insert(sentences, " ".join(added), pick(("start", "middle", "end"), random))


def _padding(sentences: Sentences, kind: int, random: Generator) -> str:
    if kind == 0:
        return pick(FILLER, random)
    own = [part.strip() for part in sentences.parts if part.strip()]
    return (pick(RESTATING, random) if kind == 1 else "") + pick(own, random)


def _per_sentence(change: Callable[[int, str], str], between: str | None = None) -> Callable[[str], str | None]:
    def apply(answer: str) -> str | None:
        sentences = split_sentences(answer)
        if len(sentences.parts) < 2 or not sentences.single_spaced:
            return None
        parts = [change(place, part) for place, part in enumerate(sentences.parts)]
        return " ".join(parts) if between is None else between.join(parts)

    return apply


def _bold(answer: str, random: Generator) -> str | None:
    """Set one to four words within each sentence in bold, but not its first words, which the audit sets in bold."""
    mark = pick(("**", "__"), random)

    def change(_: int, sentence: str) -> str:
        words = list(_WORD.finditer(sentence))[1:]
        if not words:
            return sentence
        first = int(random.integers(len(words)))
        last = words[min(len(words) - 1, first + int(random.integers(4)))]
        start, end = words[first].start(), last.end()
        return f"{sentence[:start]}{mark}{sentence[start:end]}{mark}{sentence[end:]}"

    sentences = split_sentences(answer)
    parts = [change(0, part) for part in sentences.parts]
    edited = Sentences(parts, sentences.gaps).join()
    return edited if edited != answer else None


def _bullets(answer: str, random: Generator) -> str | None:
    marker = pick(_BULLETS, random)
    return _per_sentence(lambda _, part: marker + part, "\n")(answer)


def _numbered(answer: str, random: Generator) -> str | None:
    form = pick(_NUMBERS, random)
    return _per_sentence(lambda place, part: form.format(place + 1) + part, "\n")(answer)


def _emoji(answer: str, random: Generator) -> str:
    parts = split_sentences(answer)
    chosen = [f"{part} {pick(_EMOJIS, random)}" if random.random() < 0.7 else part for part in parts.parts[:-1]]
    return Sentences([*chosen, f"{parts.parts[-1]} {pick(_EMOJIS, random)}"], parts.gaps).join()


def _exclamation(answer: str, random: Generator) -> str | None:
    marks = pick(("!!", "!!!"), random)
    edited = re.sub(r"(?<=\w)\.(?=\s|$)", marks, answer)
    return edited if edited != answer else None


def _fenced(answer: str, random: Generator) -> str | None:
    return None if "```" in answer or "~~~" in answer else pick(_FENCES, random).format(answer)


def _broken(answer: str, random: Generator) -> str | None:
    return _per_sentence(lambda _, part: part, pick(_BREAKS, random))(answer)


FORMAT_EDITS: dict[str, Edit] = {
    "bold": _bold,
    "bullets": _bullets,
    "numbered": _numbered,
    "header": lambda answer, random: pick(_HEADERS, random) + answer,
    "emoji": _emoji,
    "exclamation": _exclamation,
    "certainly": lambda answer, random: pick(_OPENINGS, random) + answer,
    "code_fence": _fenced,
    "link": lambda answer, random: answer + pick(_LINKS, random),
    "blank_lines": _broken,
}
"""Name of the audit's edit -> an edit of the same kind with other marks or in other places."""
