"""Preference pairs -> training rows against biases. Pure functions; equal pairs and seeds give equal rows.

A row is a dict with `prompt`, `response_a`, `response_b` and `probability` (that the first response is preferred). The
probability is 0.5 for a tie, which the Bradley-Terry loss accepts: no other loss is needed. It is 1 if the first
response is better whatever the bias.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.random import Generator

from hf_reward.data.preference_row import Prompt, has_images
from hf_reward.data.row_text import without_references
from hf_reward.evaluation.audit.edits.sentences import count_words, split_sentences, text_seed
from hf_reward.evaluation.audit.inputs.audit_inputs import Pair, as_transcript
from hf_reward.evaluation.mitigation import wordings
from hf_reward.evaluation.mitigation.edits import FORMAT_EDITS, Edit, padded, pick

Row = dict[str, Any]
Builder = Callable[[Pair, Pair, Generator], list[Row]]
"""A pair, a pair with another prompt, and a random generator -> rows; empty if the pair allows none."""

_QUOTED_WORDS, _REVIEWED_WORDS = 30, 60
"""Most words of an answer that a user quotes, and that a user shows for review."""


def row(prompt: Prompt, first: str, second: str, probability: float) -> Row:
    """Return a training row.

    Args:
        prompt: Text or messages.
        first: The first response.
        second: The second response.
        probability: Probability that the first response is preferred.

    Returns:
        The row.
    """
    return {"prompt": prompt, "response_a": first, "response_b": second, "probability": probability}


def edited_ties(edit: Edit) -> Builder:
    """Return a builder of ties between an answer, preferred or not, and its edited version.

    Args:
        edit: An edit that changes nothing that matters.

    Returns:
        The builder.
    """

    def build(pair: Pair, other: Pair, random: Generator) -> list[Row]:
        answer = pick((pair.chosen, pair.rejected), random)
        edited = edit(answer, random)
        return [] if edited is None else [row(pair.prompt, answer, edited, 0.5)]

    return build


def _opened(bank: Sequence[str]) -> Builder:
    return edited_ties(lambda answer, random: pick(bank, random) + answer)


def _worse(junk: Callable[[Pair, Pair, Generator], str]) -> Builder:
    """Return a builder of rows in which the preferred response beats junk."""

    def build(pair: Pair, other: Pair, random: Generator) -> list[Row]:
        text = junk(pair, other, random)
        return [row(pair.prompt, pair.chosen, text, 1.0)] if text.strip() and text != pair.chosen else []

    return build


def _exchanged(pair: Pair, other: Pair, random: Generator) -> list[Row]:
    """Two answers, each of which is better for its own prompt: neither is better without the prompt."""
    return [row(pair.prompt, pair.chosen, other.chosen, 1.0), row(other.prompt, other.chosen, pair.chosen, 1.0)]


def _believed(pair: Pair, other: Pair, random: Generator) -> list[Row]:
    """A user favours or rejects one of the two responses; the preference stays."""
    bank = pick(("believed", "denied"), random)
    form = pick(wordings.BELIEFS if bank == "believed" else wordings.DISBELIEFS, random)
    statement = form.format(statement=quoted(pick((pair.chosen, pair.rejected), random)))
    return [row(with_user_text(pair.prompt, f" {statement}"), pair.chosen, pair.rejected, 1.0)]


def _opinion(pair: Pair, other: Pair, random: Generator) -> list[Row]:
    """Users with opposite preferences get the same two answers, which tie for both."""
    question, *sides = wordings.OPINIONS[int(random.integers(len(wordings.OPINIONS)))]
    asked = f"{question} (A) {sides[0]} (B) {sides[1]}"
    form, speaker = pick(wordings.OPINION_FORMS, random), pick(wordings.SPEAKERS, random)
    first, second = wordings.OPTION_LETTERS if random.random() < 0.5 else (f"{side}." for side in sides)
    prompts = [form.format(speaker=speaker, side=side.lower(), question=asked) for side in sides]
    return [row(as_prompt(pair.prompt, prompt), first, second, 0.5) for prompt in prompts]


def _doubted(pair: Pair, other: Pair, random: Generator) -> list[Row]:
    """A user doubts an answer: the better answer should be kept, and the worse one given up."""
    doubt, place = pick(wordings.DOUBTING, random), int(random.integers(len(wordings.KEEPING)))
    keep, give_up = wordings.KEEPING[place], wordings.YIELDING[place]
    better, worse = quoted(pair.chosen), quoted(pair.rejected)
    after = [as_prompt(pair.prompt, answer, doubt) for answer in (better, worse)]
    return [
        row(after[0], keep.format(answer=better), give_up.format(answer=worse), 1.0),
        row(after[1], give_up.format(answer=better), keep.format(answer=worse), 1.0),
    ]


def _reviewed(pair: Pair, other: Pair, random: Generator) -> list[Row]:
    """Praise and criticism of a text tie, whoever wrote it and whether the user likes it."""
    text = " ".join(pick((pair.chosen, pair.rejected), random).split()[:_REVIEWED_WORDS])
    asked = wordings.REVIEW_PROMPT.format(stance=pick(wordings.STANCES, random), text=text)
    place = int(random.integers(len(wordings.APPROVING)))
    return [row(_new_prompt(pair.prompt, asked), wordings.APPROVING[place], wordings.REJECTING[place], 0.5)]


# --- prompts ----------------------------------------------------------------------------------------------------------


def quoted(answer: str) -> str:
    """Return the first sentence of an answer, cut to 30 words.

    Args:
        answer: The answer.

    Returns:
        One line of text.
    """
    return " ".join(split_sentences(answer.strip()).parts[0].split()[:_QUOTED_WORDS])


def with_user_text(prompt: Prompt, text: str) -> Prompt:
    """Add a text to the last message of a prompt, in the prompt's own form.

    Args:
        prompt: Text or messages.
        text: The addition.

    Returns:
        A new prompt.
    """
    if isinstance(prompt, str):
        return prompt + text
    return [*prompt[:-1], {**prompt[-1], "content": f"{prompt[-1]['content']}{text}"}]


def as_prompt(prompt: Prompt, *turns: str) -> Prompt:
    """Continue a prompt with turns of assistant and user, or replace it by a single turn of the user.

    Args:
        prompt: Text or messages.
        *turns: The assistant's and the user's turn after the prompt; or one turn, which replaces the prompt.

    Returns:
        A new prompt in the same form; text names the speakers of several turns, as in the audit.
    """
    if len(turns) == 1:
        return _new_prompt(prompt, turns[0])
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    messages += [{"role": role, "content": turn} for role, turn in zip(("assistant", "user"), turns, strict=True)]
    return as_transcript(messages) if isinstance(prompt, str) else messages


def _new_prompt(like: Prompt, text: str) -> Prompt:
    return text if isinstance(like, str) else [{"role": "user", "content": text}]


# --- kinds ------------------------------------------------------------------------------------------------------------


def _last_turn(prompt: Prompt) -> str:
    return without_references(prompt if isinstance(prompt, str) else str(prompt[-1]["content"]) if prompt else "")


def _long(bank: Sequence[str], pair: Pair, random: Generator) -> str:
    """Join random texts, up to twice the length of the preferred response, so that length does not identify junk."""
    wanted = random.uniform(0, 2) * count_words(pair.chosen)
    texts = [pick(bank, random)]
    while sum(map(count_words, texts)) < wanted:
        texts.append(pick(bank, random))
    return " ".join(texts)


_JUNK: dict[str, Callable[[Pair, Pair, Generator], str]] = {
    "empty": lambda pair, other, random: pick(wordings.FRAGMENTS, random),
    "one_token": lambda pair, other, random: pick(wordings.SHORT_ANSWERS, random),
    "repetition": lambda pair, other, random: _long([pick(wordings.REPEATED_WORDS, random)], pair, random),
    "echo": lambda pair, other, random: _last_turn(pair.prompt)[:1000],
    "other_answer": lambda pair, other, random: other.chosen,
    "refusal": lambda pair, other, random: _long(wordings.REFUSALS, pair, random),
    "lorem_ipsum": lambda pair, other, random: f"{_long(wordings.PSEUDO_LATIN.split(), pair, random).capitalize()}.",
    "constant": lambda pair, other, random: _long(wordings.SELF_PRAISE, pair, random),
}
BUILDERS: dict[tuple[str, str], Builder] = {
    ("length", "padding"): edited_ties(padded),
    **{("format", name): edited_ties(edit) for name, edit in FORMAT_EDITS.items()},
    ("sycophancy", "flattery"): _opened(wordings.PRAISING),
    ("sycophancy", "agreement"): _opened(wordings.AGREEING),
    ("sycophancy", "beliefs"): _believed,
    ("sycophancy", "opinions"): _opinion,
    ("sycophancy", "doubts"): _doubted,
    ("sycophancy", "feedback"): _reviewed,
    **{("degenerate", name): _worse(junk) for name, junk in _JUNK.items()},
    ("degenerate", "exchanged_prompts"): _exchanged,
}
"""Family of the audit and kind of rows -> builder."""


def build_rows(pairs: Sequence[Pair], kinds: Mapping[str, Sequence[str]], share: float, seed: int) -> list[Row]:
    """Build the training rows against some biases.

    Args:
        pairs: Preference pairs of the training data.
        kinds: Family -> kinds of its rows, keys of `BUILDERS`.
        share: Rows of each family as a fraction of the number of pairs; its kinds get equal numbers.
        seed: Random seed.

    Returns:
        The rows, each with its `kind` (`family: kind`) and its `group`, in the order of the kinds. A kind has fewer
        rows if too few pairs allow them.

    Raises:
        ValueError: If there are fewer than two prompts.
    """
    if len({pair.cluster for pair in pairs}) < 2:
        raise ValueError(
            "Rows against biases combine the answers to different prompts, but the training data has pairs for fewer "
            "than two prompts. Add pairs with other prompts."
        )
    rows = []
    for family, names in kinds.items():
        count = round(share * len(pairs))
        for place, name in enumerate(names):
            wanted = count // len(names) + (place < count % len(names))
            rows += _rows_of(pairs, family, name, wanted, seed)
    return rows


def _rows_of(pairs: Sequence[Pair], family: str, name: str, count: int, seed: int) -> list[Row]:
    random = np.random.default_rng(text_seed(f"{family}: {name}", str(seed)))
    build, found = BUILDERS[family, name], []
    for pair, other in _with_others(pairs, random):
        if len(found) >= count:
            break
        rows = [{**each, "prompt": _stored(each["prompt"])} for each in build(pair, other, random)]
        found += [{**each, "kind": f"{family}: {name}", "group": pair.cluster} for each in rows]
    return found[:count]


def _stored(prompt: Prompt) -> Prompt:
    """Return a prompt that JSON and tables can store."""
    if not has_images(prompt):
        return prompt
    from hf_reward.data.image_messages import as_raw  # not imported for rows without images

    return as_raw(prompt)


def _with_others(pairs: Sequence[Pair], random: Generator, passes: int = 10) -> Iterator[tuple[Pair, Pair]]:
    """Yield the pairs in random order, several times, each with a random pair of another prompt."""
    for _ in range(passes):
        for place in random.permutation(len(pairs)).tolist():
            pair = pairs[place]
            while (other := pairs[int(random.integers(len(pairs)))]).cluster == pair.cluster:
                pass
            yield pair, other
