"""Scoring requests (a prompt and a response), and the row layouts from which they are read."""

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
    require_no_images,
    with_image_references,
)
from hf_reward.data.preference_row import PreferenceFormatError, PreferenceRow, Prompt, Response, rename_columns
from hf_reward.data.python_values import columns_to_python
from hf_reward.data.repeated_prompts import read_sides, text_after_prompt
from hf_reward.data.row_text import response_text

REQUEST_COLUMNS = (
    *("prompt", "response", "responses", "messages", "text", "tools", "chat_template_kwargs"),
    *("images", "image"),
)
"""Columns of a scoring request; other columns are ignored."""


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """A response to a prompt that is to be scored."""

    prompt: Prompt
    """Text or messages; empty for no prompt."""
    response: Response
    """Text, or the messages that follow the prompt."""
    formatted: bool = False
    """Whether `response` is the full model input, with the chat template already applied."""
    template: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments for the chat template."""
    repeats_prompt: bool = False
    """Whether the response is text that starts with its prompt. It is not scored, because it may be either a quotation
    or a repeated prompt."""

    def is_empty(self) -> bool:
        """Return whether the response has no text and no tool calls."""
        last: Any = self.response if isinstance(self.response, str) else self.response[-1].get("content")
        calls = not isinstance(self.response, str) and self.response[-1].get("tool_calls")
        return not calls and (last is None or (isinstance(last, str) and not last.strip()))

    @property
    def characters(self) -> int | None:
        """Length of the response's text; None for formatted text, in which the response is unknown."""
        return None if self.formatted else len(response_text(self.as_row(conversational=False), 0))

    def as_row(self, *, conversational: bool) -> PreferenceRow:
        """Convert the request to a row with one response.

        Args:
            conversational: Whether to convert text to messages.

        Returns:
            The row, with rank 0.
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
    prompt: Any,
    response: Any,
    *,
    template: Mapping[str, Any] | None = None,
    response_only: bool = False,
    local_files: bool = False,
) -> ScoreRequest:
    """Validate a prompt and a response and make a request.

    Args:
        prompt: Text or messages.
        response: Text or messages, independent of the prompt's kind. Messages may be the complete conversation.
        template: Keyword arguments for the chat template.
        response_only: Whether the response is known not to include the prompt, such as text that a policy has just
            generated. A text that starts with the prompt's words then counts as a quotation.
        local_files: Whether images may be paths. A server must not read the files that its clients name.

    Returns:
        The request.

    Raises:
        PreferenceFormatError: If either is neither text nor messages, or the messages contain a different prompt.
    """
    given = with_image_references({"prompt": prompt, "response": response}, local_files=local_files)
    given = columns_to_python(given, REQUEST_COLUMNS)
    sides = read_sides(given["prompt"], [given["response"]], ["response"], may_be_empty=True)
    is_text = isinstance(given["response"], str) and not response_only
    return ScoreRequest(
        prompt=sides.prompt,
        response=sides.responses[0],
        template=template or {},
        repeats_prompt=is_text and text_after_prompt(sides.prompt, given["response"]) is not None,
    )


def refuse_image_columns(columns: Mapping[str, Any]) -> None:
    """Refuse images in a column of a reward function, which would be scored without them.

    Args:
        columns: Further arguments of the function.

    Raises:
        ValueError: If there are images.
    """
    for name in ("images", "image"):
        values = columns.get(name)
        if values is not None and any(each is not None and each != [] for each in values):
            raise ValueError(
                f"A reward function takes images as parts of the prompts' messages, but got the column `{name}`. Put "
                "the images into the messages, or leave the column out to score without them."
            )


def request_from_messages(
    messages: Any, *, template: Mapping[str, Any] | None = None, local_files: bool = False
) -> ScoreRequest:
    """Make a request from a conversation: its last turn is the response.

    Args:
        messages: A conversation that ends with an assistant turn.
        template: Keyword arguments for the chat template.
        local_files: As in `read_request`.

    Returns:
        The request.

    Raises:
        PreferenceFormatError: If it is not a conversation or ends with a user turn.
    """
    given = columns_to_python(with_image_references({"messages": messages}, local_files=local_files), REQUEST_COLUMNS)
    turns = read_conversation(given["messages"], "messages", may_be_empty=True)
    if turns[-1]["role"] == "user":
        raise PreferenceFormatError(
            "`messages` must end with an assistant turn, but end with the user's. Add the response to score.",
            field="messages",
        )
    require_no_images([turns[-1:]])
    return ScoreRequest(prompt=turns[:-1], response=turns[-1:], template=template or {})


def request_from_text(text: Any) -> ScoreRequest:
    """Make a request from formatted text, to which the caller has applied the chat template.

    Args:
        text: The full text.

    Returns:
        The request.

    Raises:
        PreferenceFormatError: If the value is not text.
    """
    given = columns_to_python({"text": text}, REQUEST_COLUMNS)
    return ScoreRequest(prompt="", response=read_text(given["text"], "text", may_be_empty=True), formatted=True)


def requests_of_row(
    row: Mapping[str, Any], columns: Mapping[str, str] | None = None, *, local_files: bool = False
) -> list[ScoreRequest]:
    """Read the scoring requests of a row.

    Args:
        row: A row with `prompt` and `response`, `prompt` and `responses` (a list), `messages`, or `text`.
        columns: Field -> name of its column in the row.
        local_files: As in `read_request`.

    Returns:
        One request, or one per entry of `responses`.

    Raises:
        PreferenceFormatError: If the row fits no layout or a field is unusable.
    """
    named = with_image_references(rename_columns(row, columns), local_files=local_files)
    named = columns_to_python(named, REQUEST_COLUMNS)
    template = read_template_options(named)
    if named.get("messages") is not None:
        return [request_from_messages(read_structure(named["messages"], "messages", list), template=template)]
    if named.get("prompt") is not None and named.get("responses") is not None:
        responses = read_structure(named["responses"], "responses", list)
        if not responses:
            raise PreferenceFormatError(
                "`responses` must have one or more entries, but is an empty list. Correct or drop the row.",
                field="responses",
            )
        return [read_request(named["prompt"], response, template=template) for response in responses]
    if named.get("prompt") is not None and "response" in named:
        return [read_request(named["prompt"], named["response"], template=template)]
    if named.get("text") is not None:
        return [request_from_text(named["text"])]
    if "prompt" in named and named.keys() & {"response", "responses"}:  # the columns exist, but are null in this row
        read_prompt(prompt_of(named))
        read_list(named.get("responses"), "responses")
    raise PreferenceFormatError(
        "The row has nothing to score. Needed: `prompt` and `response`, `prompt` and `responses`, `messages`, or "
        f"`text` (already formatted). Found: {', '.join(map(str, row)) or 'no column'}. If yours have different names, "
        f"map each with {column_example('response')}."
    )
