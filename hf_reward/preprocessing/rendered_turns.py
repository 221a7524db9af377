"""Checks around chat templates: remove repeated end-of-turn tokens, and detect text that a template omits."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_reward.data.preference_row import Message
from hf_reward.preprocessing.tokenizer import render_chat

_NO_END = re.compile(r"[\w.?!,\"')*`\u3002]\Z")
"""Endings of nearly all texts and of hardly any special token."""
_REASONING = ("reasoning_content", "reasoning", "thinking")
_SYSTEM, _USER, _ANSWER, _NEXT, _LAST = ("Zqsa", "Zqub", "Zqac", "Zqud", "Zqae")


class TurnEnds:
    """Remove end-of-turn tokens from messages if the chat template adds them.

    Text that was decoded with special tokens ends with the model's end-of-turn token. Templates that add this token
    would print it twice. Templates that do not add it need the token in the text.

    Args:
        tokenizer: A tokenizer with a chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._eos = str(tokenizer.eos_token or "")

    @cached_property
    def answer(self) -> tuple[str, str]:
        """Text that the template prints after the last assistant turn, and the special token in it, or ""."""
        return self._following.get(("assistant", True), ""), self._added("assistant", is_last=True)

    @property
    def eos(self) -> str:
        """The tokenizer's end-of-sequence token, or ""."""
        return self._eos

    @cached_property
    def special_tokens(self) -> list[str]:
        """Special tokens, longest first."""
        added = self._tokenizer.added_tokens_decoder.values()
        tokens = {token.content for token in added if token.special} | {self._eos}
        return sorted(tokens - {""}, key=len, reverse=True)

    def single(self, messages: Sequence[Message]) -> tuple[list[Message], bool]:
        """Remove end-of-turn tokens that the template adds, and repetitions of other end-of-turn tokens.

        Args:
            messages: A conversation; it is not changed.

        Returns:
            The conversation, and whether a token was removed.
        """
        result = list(messages)
        for place, message in enumerate(messages):
            content = message.get("content")
            if isinstance(content, str) and self._may_end(content):
                shorter = self._shorter(content, self._added(message["role"], is_last=place == len(messages) - 1))
                if shorter != content:
                    result[place] = {**message, "content": shorter}
        return result, any(new is not old for new, old in zip(result, messages, strict=True))

    def _may_end(self, content: str) -> bool:
        end = content.rstrip()
        return bool(end) and (_NO_END.search(end) is None or bool(self._eos and end.endswith(self._eos)))

    def _shorter(self, content: str, added: str) -> str:
        """Remove all end tokens if the template adds one, else all but one of a repeated token."""
        if added:
            return without_end(content, {added, self._eos} - {""})
        token = next((token for token in self.special_tokens if content.rstrip().endswith(token)), "")
        return with_one_end(content, token) if token and without_end(content, {token}) + token != content else content

    def _added(self, role: str, is_last: bool) -> str:
        """Return the special token that the template prints after the content of a turn, or ""."""
        following = self._following.get((role, is_last), "").lstrip()
        return next((token for token in self.special_tokens if following.startswith(token)), "")

    @cached_property
    def _following(self) -> dict[tuple[str, bool], str]:
        """(role, whether the turn is the last one) -> text that the template prints after its content."""
        turns = [("user", _USER), ("assistant", _ANSWER), ("user", _NEXT), ("assistant", _LAST)]
        for conversation in ([("system", _SYSTEM), *turns], turns, turns[:2]):
            try:
                messages = [{"role": role, "content": content} for role, content in conversation]
                text = render_chat(self._tokenizer, messages)
            except ValueError:  # the template supports no system turn, or only one question
                continue
            return {
                (role, place == len(conversation) - 1): text.partition(content)[2]
                for place, (role, content) in enumerate(conversation)
            }
        return {}


class FormattedTexts:
    """Formatted texts of a policy, which differ from the output of the chat template at their end.

    The text was decoded from the generated tokens. It ends with the end-of-turn token, or with the response if that was
    cut; a template also prints white space or further tokens. Rewards are computed at the last token, so they differ.

    Args:
        tokenizer: The tokenizer of the reward model. Without a chat template, texts are not changed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._has_template = tokenizer.chat_template is not None
        self._turns = TurnEnds(tokenizer)
        self._lead = _generation_prompt(tokenizer) if self._has_template else ""

    def finished(self, text: str) -> str:
        """Return a text with the end that the template prints after a response.

        Args:
            text: A formatted conversation whose last turn is the response.

        Returns:
            The same text, with the end exactly once.
        """
        ending, token = self._turns.answer if self._has_template else ("", "")
        if token:
            return without_end(text, {token, self._turns.eos} - {""}) + ending
        return text if text.endswith(ending) else text + ending

    def is_formatted_prompt(self, prompt: str) -> bool:
        """Return whether a chat template was applied to a prompt: it has special tokens, or ends as for generation.

        Args:
            prompt: Any text.

        Returns:
            Whether it is formatted; False for models without a chat template.
        """
        if not self._has_template:
            return False
        has_lead = bool(self._lead) and prompt.rstrip().endswith(self._lead)
        return has_lead or any(token in prompt for token in self._turns.special_tokens)

    def prompt_and_response(self, text: str) -> tuple[str, str]:
        """Split a formatted conversation before its last response.

        Args:
            text: A formatted conversation whose last turn is the response.

        Returns:
            The prompt with its special tokens, and the response without end tokens. Without a chat template, or if the
            template's start of a response does not occur, the prompt is empty and all of the text is the response.
        """
        prompt, lead, response = text.rpartition(self._lead) if self._lead else ("", "", text)
        return prompt + lead, without_end(response, {self._turns.answer[1], self._turns.eos} - {""}).strip()


def _generation_prompt(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text that the template prints after a question for the start of a response."""
    with suppress(ValueError):
        text = render_chat(tokenizer, [{"role": "user", "content": _USER}], add_generation_prompt=True)
        return text.partition(_USER)[2].strip()
    return ""


def without_end(text: str, tokens: set[str]) -> str:
    """Remove tokens from the end of a text.

    Args:
        text: Any text.
        tokens: The tokens.

    Returns:
        The text without these tokens at its end and the white space after them; unchanged if there are none.
    """
    while True:
        end = text.rstrip()
        token = next((token for token in tokens if end.endswith(token)), None)
        if token is None:
            return text
        text = end.removesuffix(token)


def with_one_end(text: str, token: str) -> str:
    """Make a text end with a token exactly once.

    Args:
        text: Any text.
        token: The token; if empty, the text is returned unchanged.

    Returns:
        The text.
    """
    return without_end(text, {token}) + token if token else text


def loses_text(rendered: str, messages: Sequence[Message], tools: Any = None) -> bool:
    """Return whether a chat template omitted text of a conversation, ignoring white space and JSON escapes.

    Args:
        rendered: The output of the template.
        messages: The conversation.
        tools: The tools that were passed to the template.

    Returns:
        True if a content, a reasoning text, or a name or argument of a tool call occurs less often than in the input.
    """
    wanted = Counter(text for text in _texts(messages, tools) if text.strip())
    return any(not _contains(rendered, text, count) for text, count in wanted.items())


def _contains(rendered: str, text: str, count: int) -> bool:
    if rendered.count(text.strip()) >= count:
        return True
    forms = [text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]]
    packed = "".join(rendered.split())
    return any(packed.count("".join(form.split())) >= count for form in forms)


def _texts(messages: Sequence[Message], tools: Any) -> Iterator[str]:
    for message in messages:
        yield from (message[name] for name in ("content", *_REASONING) if isinstance(message.get(name), str))
        if isinstance(message.get("content"), list):  # text and images
            yield from (part["text"] for part in message["content"] if part["type"] == "text")
        yield from _strings([_of_call(call) for call in message.get("tool_calls") or ()])
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        yield from _strings(function.get("name") if isinstance(function, Mapping) else None)


def _of_call(call: Any) -> list[Any]:
    """Return the name and arguments of a tool call; arguments given as JSON text are parsed."""
    function = call.get("function", call) if isinstance(call, Mapping) else {}
    if not isinstance(function, Mapping):
        return []
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with suppress(ValueError, RecursionError):  # text that is not JSON is searched unchanged
            arguments = json.loads(arguments)
    return [function.get("name"), arguments]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(list(value.values()))
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)
