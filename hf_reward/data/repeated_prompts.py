"""A prompt and what came with it -> the prompt and the responses alone, so that no model reads the prompt twice.

Many data sets give the prompt in a column of its own and again at the start of each side. Messages are told by their
turns, which differ in nothing but white space; text by its words, where all sides of a row begin with the prompt's.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from hf_reward.data.fields import is_blank, prompt_of_kind, read_prompt, read_response
from hf_reward.data.preference_row import Message, PreferenceFormatError, Prompt, Response

_CONTEXT = ("system", "developer")
_CLOSING = ("?", ":", ".")


@dataclass(frozen=True, kw_only=True)
class Sides:
    """One prompt and the responses to it."""

    prompt: Prompt
    responses: list[Response]
    repeated: bool = False
    """Whether sides held the prompt too."""
    differed: bool = False
    """Whether the turns before the prompt differed, so that only the shared ones are the prompt."""
    blank: bool = False
    """Whether the prompt says nothing."""


def read_sides(prompt: Any, values: Sequence[Any], names: Sequence[str], *, may_be_empty: bool = False) -> Sides:
    """Read a prompt and the responses to it, each of which may be a whole conversation that holds the prompt.

    Args:
        prompt: Text or messages.
        values: Text or messages for each response. A single text stays as it is: whether it quotes the prompt or
            repeats it cannot be told.
        names: What to call each response in messages.
        may_be_empty: Whether a response may say nothing.

    Returns:
        The prompt once, and the responses without it.

    Raises:
        PreferenceFormatError: If a value is unusable, or messages begin with another prompt than this one.
    """
    given = read_prompt(prompt)
    own = prompt_of_kind(given, values)
    responses = [
        read_response(value, own, name, may_be_empty=may_be_empty) for value, name in zip(values, names, strict=True)
    ]
    texts = isinstance(own, str) or all(isinstance(value, str) for value in values)
    sides = _without_prompt_text(own, responses) if texts else _without_prompt_turns(own, responses, names)
    return replace(sides, blank=is_blank(given))


def _without_prompt_turns(own: Any, responses: Sequence[Response], names: Sequence[str]) -> Sides:
    parts = [_split(own, cast(list[Message], turns), name) for turns, name in zip(responses, names, strict=True)]
    first = parts[0][0]
    repeated = any(whole for _, _, whole in parts)
    if all(before == first for before, _, _ in parts):
        return Sides(prompt=first, responses=[turns for _, turns, _ in parts], repeated=repeated and bool(own))
    lacking = [name for name, (_, _, whole) in zip(names, parts, strict=True) if not whole]
    if lacking:
        raise PreferenceFormatError(
            f"`{lacking[0]}` holds the response alone, but another side has turns before the prompt. Put these turns "
            "into `prompt`, or give each side as a whole conversation without `prompt`.",
            field=lacking[0],
        )
    shared, rest = shared_turns([[*before, *turns] for before, turns, _ in parts])
    return Sides(prompt=shared, responses=list(rest), repeated=bool(own), differed=True)


def shared_turns(conversations: Sequence[list[Message]]) -> tuple[list[Message], list[list[Message]]]:
    """Split conversations after the turns that all of them share, which leave each its last turn.

    Args:
        conversations: One or more conversations.

    Returns:
        The shared turns, and what is left of each conversation.
    """
    shared = 0
    for turns in zip(*(conversation[:-1] for conversation in conversations), strict=False):
        if any(turn != turns[0] for turn in turns):
            break
        shared += 1
    return conversations[0][:shared], [conversation[shared:] for conversation in conversations]


def text_after_prompt(prompt: Prompt, text: str) -> str | None:
    """What follows the prompt in a text that begins with it.

    White space may differ. A prompt of one word that is no sentence is not looked for: "Hello there." answers "Hello".

    Args:
        prompt: Text, or messages with one turn beside the system's.
        text: The text.

    Returns:
        The rest with the white space before it, or None if the text does not begin with the prompt or ends with it.
    """
    asked = _asked(prompt)
    if not text.lstrip().startswith(tuple(asked.split(None, 1)[:1])):  # nearly always: a long prompt is not looked into
        return None
    words = asked.split()
    if not any(map(str.isalnum, asked)) or (len(words) == 1 and not words[0].endswith(_CLOSING)):
        return None
    end = _end_of_words(words, text)
    rest = "" if end is None else text[end:]
    if not rest.strip() or (words[-1][-1].isalnum() and not rest[0].isspace()):
        return None
    return rest.lstrip() if asked[-1].isspace() else rest


def _end_of_words(words: Sequence[str], text: str) -> int | None:
    """Where words end that a text begins with, whatever the white space between them."""
    place = 0
    for number, word in enumerate(words):
        start = place
        while place < len(text) and text[place].isspace():
            place += 1
        if (number and place == start) or not text.startswith(word, place):
            return None
        place += len(word)
    return place


def _asked(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    turns = [turn for turn in prompt if turn["role"] not in _CONTEXT]
    return str(turns[0]["content"] or "") if len(turns) == 1 else ""


def _without_prompt_text(prompt: Prompt, responses: list[Response]) -> Sides:
    """Cut the prompt's text where all of two or more sides begin with it; if only one does, it quotes the prompt."""
    texts = [each if isinstance(each, str) else str(each[0]["content"] or "") for each in responses]
    rests = [text_after_prompt(prompt, text) for text in texts] if len(texts) > 1 else [None]
    found = [rest for rest in rests if rest is not None]
    if len(found) < len(responses):
        return Sides(prompt=prompt, responses=responses)
    if isinstance(prompt, str):
        return Sides(prompt=prompt, responses=list(found), repeated=True)
    answers: list[Response] = [[{"role": "assistant", "content": rest.lstrip()}] for rest in found]
    return Sides(prompt=prompt, responses=answers, repeated=True)


def _split(prompt: list[Message], turns: list[Message], name: str) -> tuple[list[Message], list[Message], bool]:
    """The turns before the response, the response, and whether it came as a whole conversation."""
    opens = turns[0]["role"]
    if not prompt:
        whole = opens in ("user", *_CONTEXT) and len(turns) > 1
        return (turns[:-1], turns[-1:], True) if whole else ([], turns, False)
    found = _split_whole(prompt, turns)
    if found is not None:
        return *found, True
    if opens in _CONTEXT or (opens == "user" and prompt[-1]["role"] == "user"):
        raise PreferenceFormatError(
            f"`{name}` begins with a {opens} turn, as a whole conversation does, but holds another prompt than "
            "`prompt`. Remove `prompt` where the conversations are whole, or give the response's turns alone.",
            field=name,
        )
    return prompt, turns, False


def _split_whole(prompt: list[Message], turns: list[Message]) -> tuple[list[Message], list[Message]] | None:
    """The turns before the response and the response of a conversation that holds the prompt, else None."""
    wanted, keys, size = [_key(turn) for turn in prompt], [_key(turn) for turn in turns], len(prompt)
    if keys[:size] == wanted and len(turns) > size:
        return prompt, turns[size:]
    if turns[0]["role"] not in ("user", *_CONTEXT):
        return None
    # Turns before the prompt, such as a system turn or earlier questions.
    for start in range(len(turns) - size - 1, 0, -1):
        if keys[start : start + size] == wanted:
            return [*turns[:start], *prompt], turns[start + size :]
    # The conversation begins later than the prompt, such as after its system turn.
    for start in range(1, size):
        common = wanted[start:]
        if keys[: len(common)] == common and len(turns) > len(common) and any(key[0] == "user" for key in common):
            return prompt, turns[len(common) :]
    return None


def _key(turn: Message) -> tuple[str, str, str]:
    """What a turn says, without its white space."""
    calls = json.dumps(turn.get("tool_calls"), sort_keys=True, default=str)
    return turn["role"], " ".join(str(turn["content"] or "").split()), calls
