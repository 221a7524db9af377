"""Plain texts and words of canonical rows, for baselines, statistics and duplicate detection."""

import json
import re
from collections.abc import Sequence

from hf_reward.data.preference_row import Message, PreferenceRow, Response, common_prefix, shared_text

# Chinese and Japanese do not separate words with spaces, so each of their characters counts as a word.
_WORD = re.compile(r"[^\W\u3040-\u30ff\u3400-\u9fff]+|[\u3040-\u30ff\u3400-\u9fff]")


REFERENCE = re.compile("\ufdd0([0-9a-f]{64})\ufdd1")
"""A reference to an image in a text, with the hash of the image; see `images`."""


def without_references(text: str) -> str:
    """Return a text without references to images."""
    return REFERENCE.sub("", text)


def readable(text: str) -> str:
    """Return a text in which references to images can be read: `[image 1a2b3c4d]`, with the start of the hash."""
    return REFERENCE.sub(lambda found: f"[image {found.group(1)[:8]}]", text)


def prompt_text(row: PreferenceRow) -> str:
    """Return the text of a row's prompt.

    Args:
        row: A canonical row.

    Returns:
        The text. For messages, a line with role, content and tool calls per message; for token ids, the common prefix
        as numbers; for text rows without a prompt, the common start of the responses.
    """
    if row.token_ids is not None:
        return _numbers(common_prefix(row.token_ids))
    if isinstance(row.prompt, str):
        return row.prompt or shared_text([str(response) for response in row.responses])
    return "\n".join(f"{message['role']}: {_message_text(message)}" for message in row.prompt)


def response_text(row: PreferenceRow, place: int) -> str:
    """Return the text of one response of a row.

    Args:
        row: A canonical row.
        place: Index of the response.

    Returns:
        The text. For messages, their contents and tool calls; for token ids, those after the common prefix, as numbers.
    """
    if row.token_ids is not None:
        return _numbers(row.token_ids[place][len(common_prefix(row.token_ids)) :])
    response = row.responses[place]
    if isinstance(response, str):
        return response
    return "\n".join(map(_message_text, response))


def contents_of(response: Response) -> str:
    """Return the text of a response without roles and tool calls; for messages, one line per content."""
    if isinstance(response, str):
        return response
    return "\n".join(str(message.get("content") or "") for message in response)


def response_words(response: Response) -> int:
    """Count the words of a response, separated by white space."""
    return len(contents_of(response).split())


def response_characters(response: Response) -> int:
    """Count the characters of a response, without the line breaks between its messages."""
    breaks = 0 if isinstance(response, str) else max(0, len(response) - 1)
    return len(contents_of(response)) - breaks


def _message_text(message: Message) -> str:
    """Return content and tool calls of a message, so that responses with different tool calls have different texts."""
    calls = message.get("tool_calls")
    parts = [message.get("content") or "", json.dumps(calls, sort_keys=True, default=str) if calls else ""]
    return "\n".join(str(part) for part in parts if part)


def words_of(text: str) -> list[str]:
    """Return the lower-case words of a text without punctuation. Each Chinese or Japanese character is a word.

    Args:
        text: Any text.

    Returns:
        The words in order. A text without words, such as `:-)`, is returned as one word.
    """
    return _WORD.findall(text.lower()) or [" ".join(text.split())]


def _numbers(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))
