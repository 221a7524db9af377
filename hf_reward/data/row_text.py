"""A canonical row -> the plain texts that rules without a language model read."""

import json
import re
from collections.abc import Sequence

from hf_reward.data.preference_row import Message, PreferenceRow, Response, common_prefix, shared_text

# A script that puts no space between words would make a sentence one word, so each of its characters counts as one.
_WORD = re.compile(r"[^\W\u3040-\u30ff\u3400-\u9fff]+|[\u3040-\u30ff\u3400-\u9fff]")


def prompt_text(row: PreferenceRow) -> str:
    """Text of a row's prompt.

    Args:
        row: A canonical row.

    Returns:
        The text; of messages, a line of role, content and tool calls for each; of token ids, the shared ones as
        numbers; of texts without a prompt of their own, what they have in common.
    """
    if row.token_ids is not None:
        return _numbers(common_prefix(row.token_ids))
    if isinstance(row.prompt, str):
        return row.prompt or shared_text([str(response) for response in row.responses])
    return "\n".join(f"{message['role']}: {_message_text(message)}" for message in row.prompt)


def response_text(row: PreferenceRow, place: int) -> str:
    """Text of one response of a row.

    Args:
        row: A canonical row.
        place: Which response.

    Returns:
        The text; of messages, their contents and tool calls; of token ids, those that are not shared, as numbers.
    """
    if row.token_ids is not None:
        return _numbers(row.token_ids[place][len(common_prefix(row.token_ids)) :])
    response = row.responses[place]
    if isinstance(response, str):
        return response
    return "\n".join(map(_message_text, response))


def contents_of(response: Response) -> str:
    """Text of a response without roles and tool calls, of messages a line of each one's content."""
    if isinstance(response, str):
        return response
    return "\n".join(str(message.get("content") or "") for message in response)


def response_words(response: Response) -> int:
    """Words of a response between white space."""
    return len(contents_of(response).split())


def response_characters(response: Response) -> int:
    """Characters of a response; the breaks between its messages do not count."""
    breaks = 0 if isinstance(response, str) else max(0, len(response) - 1)
    return len(contents_of(response)) - breaks


def _message_text(message: Message) -> str:
    """Content and tool calls: two answers that call tools differently are not the same text."""
    calls = message.get("tool_calls")
    parts = [message.get("content") or "", json.dumps(calls, sort_keys=True, default=str) if calls else ""]
    return "\n".join(str(part) for part in parts if part)


def words_of(text: str) -> list[str]:
    """Words of a text in small letters, without punctuation; Chinese and Japanese characters are words each.

    Args:
        text: Any text.

    Returns:
        The words in order; the whole text as one word if it has none, such as `:-)`.
    """
    return _WORD.findall(text.lower()) or [" ".join(text.split())]


def _numbers(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))
