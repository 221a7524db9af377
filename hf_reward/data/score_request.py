"""What is to be scored, a response to a prompt, and the row layouts in which it comes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_reward.data.fields import (
    column_example,
    prompt_of,
    read_conversation,
    read_list,
    read_prompt,
    read_structure,
    read_template_options,
    read_text,
)
from hf_reward.data.preference_row import PreferenceFormatError, PreferenceRow, Prompt, Response, rename_columns
from hf_reward.data.python_values import columns_to_python
from hf_reward.data.repeated_prompts import read_sides, text_after_prompt
from hf_reward.data.row_text import response_text

REQUEST_COLUMNS = ("prompt", "response", "responses", "messages", "text", "tools", "chat_template_kwargs")
"""Columns that say what is to be scored; every other column is the caller's own."""


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """One response to one prompt, of which the reward is wanted."""

    prompt: Prompt
    """Text or messages; empty for none."""
    response: Response
    """Text, or the messages that follow the prompt."""
    formatted: bool = False
    """Whether `response` is the whole text as the model gets it, with its chat template applied."""
    template: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments for the chat template."""
    repeats_prompt: bool = False
    """Whether the response is text that begins with its whole prompt. It may quote it or hold it: it is not scored."""

    def is_empty(self) -> bool:
        """Whether the response says nothing."""
        last: Any = self.response if isinstance(self.response, str) else self.response[-1].get("content")
        calls = not isinstance(self.response, str) and self.response[-1].get("tool_calls")
        return not calls and (last is None or (isinstance(last, str) and not last.strip()))

    @property
    def characters(self) -> int | None:
        """Length of the response's text; None where a whole text does not tell prompt and response apart."""
        return None if self.formatted else len(response_text(self.as_row(conversational=False), 0))

    def as_row(self, *, conversational: bool) -> PreferenceRow:
        """See the request as a row of one response.

        Args:
            conversational: Whether text becomes turns of a conversation. Messages always do.

        Returns:
            A row that ranks nothing.
        """
        prompt, response = self.prompt, self.response
        if conversational or not isinstance(prompt, str) or not isinstance(response, str):
            prompt = _turns(prompt, "user")
            response = _turns(response, "assistant", may_be_empty=True)
        return PreferenceRow(prompt=prompt, responses=[response], ranks=[0], template=dict(self.template))


def _turns(value: Prompt, role: str, *, may_be_empty: bool = False) -> list[dict[str, Any]]:
    if not isinstance(value, str):
        return value
    return [{"role": role, "content": value}] if value or may_be_empty else []


def read_request(
    prompt: Any, response: Any, *, template: Mapping[str, Any] | None = None, response_only: bool = False
) -> ScoreRequest:
    """Check one prompt and response as a caller gave them.

    Args:
        prompt: Text or messages.
        response: Text or messages, whatever the prompt is. Messages may be the whole conversation.
        template: Keyword arguments for the chat template.
        response_only: Whether the response is known not to include the prompt, such as text that a policy has just
            generated. A text that starts with the prompt's words then counts as a quotation.

    Returns:
        The request.

    Raises:
        PreferenceFormatError: If either is neither text nor messages, or messages hold another prompt.
    """
    given = columns_to_python({"prompt": prompt, "response": response}, REQUEST_COLUMNS)
    sides = read_sides(given["prompt"], [given["response"]], ["response"], may_be_empty=True)
    is_text = isinstance(given["response"], str) and not response_only
    return ScoreRequest(
        prompt=sides.prompt,
        response=sides.responses[0],
        template=template or {},
        repeats_prompt=is_text and text_after_prompt(sides.prompt, given["response"]) is not None,
    )


def request_from_messages(messages: Any, *, template: Mapping[str, Any] | None = None) -> ScoreRequest:
    """See a conversation as a prompt and the response that ends it.

    Args:
        messages: A conversation whose last turns are the assistant's.
        template: Keyword arguments for the chat template.

    Returns:
        The request.

    Raises:
        PreferenceFormatError: If it is no conversation, or does not end with the assistant.
    """
    given = columns_to_python({"messages": messages}, REQUEST_COLUMNS)
    turns = read_conversation(given["messages"], "messages", may_be_empty=True)
    if turns[-1]["role"] == "user":
        raise PreferenceFormatError(
            "`messages` end with the user, so there is no response to score. Add the assistant's turn.",
            field="messages",
        )
    return ScoreRequest(prompt=turns[:-1], response=turns[-1:], template=template or {})


def request_from_text(text: Any) -> ScoreRequest:
    """Score a whole text as it is, with its chat template applied by the caller.

    Args:
        text: The text.

    Returns:
        The request.

    Raises:
        PreferenceFormatError: If it is no text.
    """
    given = columns_to_python({"text": text}, REQUEST_COLUMNS)
    return ScoreRequest(prompt="", response=read_text(given["text"], "text", may_be_empty=True), formatted=True)


def requests_of_row(row: Mapping[str, Any], columns: Mapping[str, str] | None = None) -> list[ScoreRequest]:
    """Read what a row of a table wants scored.

    Args:
        row: A row with `prompt` and `response`, `prompt` and `responses` (a list), `messages`, or `text`.
        columns: Our name -> the row's own column name.

    Returns:
        One request, or one for each of `responses`.

    Raises:
        PreferenceFormatError: If the row fits no layout or a field is unusable.
    """
    named = columns_to_python(rename_columns(row, columns), REQUEST_COLUMNS)
    template = read_template_options(named)
    if named.get("messages") is not None:
        return [request_from_messages(read_structure(named["messages"], "messages", list), template=template)]
    if named.get("prompt") is not None and named.get("responses") is not None:
        responses = read_structure(named["responses"], "responses", list)
        if not responses:
            raise PreferenceFormatError("`responses` is an empty list. Give it one or more.", field="responses")
        return [read_request(named["prompt"], response, template=template) for response in responses]
    if named.get("prompt") is not None and "response" in named:
        return [read_request(named["prompt"], named["response"], template=template)]
    if named.get("text") is not None:
        return [request_from_text(named["text"])]
    if "prompt" in named and named.keys() & {"response", "responses"}:  # the columns are there, but null in this row
        read_prompt(prompt_of(named))
        read_list(named.get("responses"), "responses")
    raise PreferenceFormatError(
        "There is nothing to score. Needed: `prompt` and `response`, `prompt` and `responses`, `messages`, or `text` "
        f"(already formatted). Found: {', '.join(map(str, row)) or 'no column'}. Name your columns: "
        f"{column_example('response')}."
    )
