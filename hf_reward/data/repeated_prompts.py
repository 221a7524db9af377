"""Remove a prompt that the responses repeat, so that it is encoded only once.

Many datasets have the prompt in a separate column and again at the start of each response column, such as `chosen`. In
messages, a repeated prompt is recognised by its turns, ignoring white space. In text, it is recognised by its words,
and only if all response columns of a row start with the prompt.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from hf_reward.data.fields import is_blank, prompt_of_kind, read_prompt, read_response, require_no_images
from hf_reward.data.preference_row import Message, PreferenceFormatError, Prompt, Response

_CONTEXT = ("system", "developer")
_CLOSING = ("?", ":", ".")


@dataclass(frozen=True, kw_only=True)
class Sides:
    """One prompt and the responses to it."""

    prompt: Prompt
    responses: list[Response]
    repeated: bool = False
    """Whether sides also contained the prompt."""
    differed: bool = False
    """Whether the turns before the prompt differed; only the shared turns are then the prompt."""
    blank: bool = False
    """Whether the prompt is blank."""


def read_sides(prompt: Any, values: Sequence[Any], names: Sequence[str], *, may_be_empty: bool = False) -> Sides:
    """Read a prompt and its responses, each of which may be a complete conversation that contains the prompt.

    Args:
        prompt: Text or messages.
        values: Text or messages of each response. A single text is not changed, because a quotation of the prompt
            cannot be distinguished from a repetition.
        names: Name of each response in error messages.
        may_be_empty: Whether a response may be blank.

    Returns:
        The prompt, and the responses without it.

    Raises:
        PreferenceFormatError: If a value is unusable, or messages start with a different prompt.
    """
    given = read_prompt(prompt)
    own = prompt_of_kind(given, values)
    responses = [
        read_response(value, own, name, may_be_empty=may_be_empty) for value, name in zip(values, names, strict=True)
    ]
    texts = isinstance(own, str) or all(isinstance(value, str) for value in values)
    sides = _without_prompt_text(own, responses) if texts else _without_prompt_turns(own, responses, names)
    require_no_images(sides.responses)
    return replace(sides, blank=is_blank(given))


def _without_prompt_turns(own: Any, responses: Sequence[Response], names: Sequence[str]) -> Sides:
    parts = [_split(own, cast(list[Message], turns), name) for turns, name in zip(responses, names, strict=True)]
    first = parts[0][0]
    repeated = any(complete for _, _, complete in parts)
    if all(before == first for before, _, _ in parts):
        return Sides(prompt=first, responses=[turns for _, turns, _ in parts], repeated=repeated and bool(own))
    lacking = [name for name, (_, _, complete) in zip(names, parts, strict=True) if not complete]
    if lacking:
        raise PreferenceFormatError(
            f"All response columns must have the same turns before the response. `{lacking[0]}` has only the response, "
            "but another column also has turns before `prompt`. Move these turns into `prompt`, or remove `prompt` and "
            "make every column a complete conversation.",
            field=lacking[0],
        )
    shared, rest = shared_turns([[*before, *turns] for before, turns, _ in parts])
    return Sides(prompt=shared, responses=list(rest), repeated=bool(own), differed=True)


def shared_turns(conversations: Sequence[list[Message]]) -> tuple[list[Message], list[list[Message]]]:
    """Split conversations after their common turns, so that each keeps at least its last turn.

    Args:
        conversations: One or more conversations.

    Returns:
        The common turns, and the remaining turns of each conversation.
    """
    shared = 0
    for turns in zip(*(conversation[:-1] for conversation in conversations), strict=False):
        if any(turn != turns[0] for turn in turns):
            break
        shared += 1
    return conversations[0][:shared], [conversation[shared:] for conversation in conversations]


def text_after_prompt(prompt: Prompt, text: str) -> str | None:
    """Return the part of a text after the prompt with which it starts.

    White space may differ. Prompts of one word without punctuation are ignored: "Hello there." may answer "Hello".

    Args:
        prompt: Text, or messages with one turn besides the system turn.
        text: The text.

    Returns:
        The rest with its leading white space; None if the text does not start with the prompt or has nothing after it.
    """
    question = _question(prompt)
    if not text.lstrip().startswith(tuple(question.split(None, 1)[:1])):  # nearly always; avoids splitting long prompts
        return None
    words = question.split()
    if not any(map(str.isalnum, question)) or (len(words) == 1 and not words[0].endswith(_CLOSING)):
        return None
    end = _end_of_words(words, text)
    rest = "" if end is None else text[end:]
    if not rest.strip() or (words[-1][-1].isalnum() and not rest[0].isspace()):
        return None
    return rest.lstrip() if question[-1].isspace() else rest


def _end_of_words(words: Sequence[str], text: str) -> int | None:
    """Return the end of words with which a text starts, ignoring white space; None if it starts differently."""
    place = 0
    for number, word in enumerate(words):
        start = place
        while place < len(text) and text[place].isspace():
            place += 1
        if (number and place == start) or not text.startswith(word, place):
            return None
        place += len(word)
    return place


def _question(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    turns = [turn for turn in prompt if turn["role"] not in _CONTEXT]
    return str(turns[0]["content"] or "") if len(turns) == 1 else ""


def _without_prompt_text(prompt: Prompt, responses: list[Response]) -> Sides:
    """Remove the prompt's text if two or more sides all start with it; if only some do, they quote the prompt."""
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
    """Return the turns before the response, the response, and whether the turns were a complete conversation."""
    first_role = turns[0]["role"]
    if not prompt:
        complete = first_role in ("user", *_CONTEXT) and len(turns) > 1
        return (turns[:-1], turns[-1:], True) if complete else ([], turns, False)
    found = _split_conversation(prompt, turns)
    if found is not None:
        return *found, True
    if first_role in _CONTEXT or (first_role == "user" and prompt[-1]["role"] == "user"):
        raise PreferenceFormatError(
            f"A complete conversation must contain the turns of `prompt`, but `{name}` starts with a {first_role} turn "
            "and does not contain them. If the conversations are complete, remove `prompt`; otherwise keep only the "
            f"response's turns in `{name}`.",
            field=name,
        )
    return prompt, turns, False


def _split_conversation(prompt: list[Message], turns: list[Message]) -> tuple[list[Message], list[Message]] | None:
    """Split a conversation that contains the prompt into the turns before the response and the response, else None."""
    wanted, keys, size = [_key(turn) for turn in prompt], [_key(turn) for turn in turns], len(prompt)
    if keys[:size] == wanted and len(turns) > size:
        return prompt, turns[size:]
    if turns[0]["role"] not in ("user", *_CONTEXT):
        return None
    # Turns before the prompt, such as a system turn or earlier questions.
    for start in range(len(turns) - size - 1, 0, -1):
        if keys[start : start + size] == wanted:
            return [*turns[:start], *prompt], turns[start + size :]
    # The conversation starts later than the prompt, such as after its system turn.
    for start in range(1, size):
        common = wanted[start:]
        if keys[: len(common)] == common and len(turns) > len(common) and any(key[0] == "user" for key in common):
            return prompt, turns[len(common) :]
    return None


def _key(turn: Message) -> tuple[str, str, str]:
    """Return a turn's role, content and tool calls with normalised white space."""
    calls = json.dumps(turn.get("tool_calls"), sort_keys=True, default=str)
    return turn["role"], " ".join(str(turn["content"] or "").split()), calls
