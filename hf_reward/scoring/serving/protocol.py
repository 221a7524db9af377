"""The bodies of requests: our own, OpenRLHF's and vLLM's."""

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hf_reward.data.fields import read_template_options
from hf_reward.data.preference_row import PreferenceFormatError
from hf_reward.data.score_request import ScoreRequest, request_from_messages, request_from_text, requests_of_row
from hf_reward.scoring.serving.errors import unscorable

ItemType = TypeVar("ItemType")

Listed = Annotated[list[ItemType], Field(fail_fast=True)]
"""A list whose check ends at the first wrong item: a million of them would make a million errors."""

Messages = Listed[dict[str, Any]]

Text = str | Messages
"""Text, or messages."""


class _Strict(BaseModel):
    """A body whose values have the types of JSON that are asked for: `true` is no token id and "1" no boolean."""

    model_config = ConfigDict(strict=True)


class _Ours(_Strict):
    """A body in which an unknown field is an error: one that is misspelt would change a reward in silence."""

    model_config = ConfigDict(extra="forbid")


class Row(_Ours):
    """One prompt with one or several responses, in a layout of `requests_of_row`."""

    prompt: Text | None = None
    response: Text | None = None
    responses: Listed[Text] | None = None
    messages: Messages | None = None
    text: str | None = None
    tools: Messages | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def requests(self) -> list[ScoreRequest]:
        """Read the row.

        Returns:
            One request for each response.

        Raises:
            PreferenceFormatError: If the row fits no layout.
        """
        given = self.model_dump(include=set(Row.model_fields), exclude_unset=True)
        layouts = [name for name in ("response", "responses", "messages", "text") if given.get(name) is not None]
        if len(layouts) > 1:
            raise PreferenceFormatError(f"There are {' and '.join(f'`{name}`' for name in layouts)}. Give one of them.")
        return requests_of_row(given)


class ScoreBody(Row):
    """Body of `/score`: a row, or `items`, a list of rows."""

    items: Listed[Row] | None = None
    allow_empty: bool = False

    def groups(self) -> list[list[ScoreRequest]]:
        """Read the body.

        Returns:
            The requests of each row.

        Raises:
            ApiError: If a row fits no layout.
        """
        return _requests_of(self, self.items)


class RankRow(_Ours):
    """A prompt and the responses to rank."""

    prompt: Text
    responses: Listed[Text] = Field(min_length=1)
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Messages | None = None


class RankBody(_Ours):
    """Body of `/rank`: a prompt and its responses, or `items`, a list of these."""

    prompt: Text | None = None
    responses: Listed[Text] | None = Field(default=None, min_length=1)
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Messages | None = None
    items: Listed[RankRow] | None = None
    allow_empty: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> "RankBody":
        if self.items is None and (self.prompt is None or self.responses is None):
            raise ValueError("needs `prompt` and `responses`, or `items`, a list of these")
        return self

    def groups(self) -> list[list[ScoreRequest]]:
        """Read the body.

        Returns:
            The requests of each prompt.

        Raises:
            ApiError: If a row is unusable.
        """
        names = set(RankRow.model_fields)
        one = Row(**self.model_dump(include=names, exclude_unset=True))
        rows = None if self.items is None else [Row(**row.model_dump(exclude_unset=True)) for row in self.items]
        return _requests_of(one, rows)


def _requests_of(one: Row, items: Sequence[Row] | None) -> list[list[ScoreRequest]]:
    if items is None:
        return [_requests(one, 0, 1)]
    extra = sorted(one.model_fields_set & set(Row.model_fields))
    if extra:
        reason = f"beside `items` there is {', '.join(f'`{name}`' for name in extra)}. Put everything into the items."
        raise unscorable([{"index": 0, "reason": reason}], len(items))
    return [_requests(row, place, len(items)) for place, row in enumerate(items)]


def _requests(row: Row, index: int, total: int) -> list[ScoreRequest]:
    try:
        return row.requests()
    except PreferenceFormatError as error:
        raise unscorable([{"index": index, "reason": error.public_message}], total) from error


def _of_texts(given: Any) -> list[ScoreRequest]:
    """Requests for one whole text or a list of them; one that cannot be read is named by its place."""
    texts = [given] if isinstance(given, str) else given
    requests = []
    for index, text in enumerate(texts):
        try:
            requests.append(request_from_text(text))
        except PreferenceFormatError as error:
            raise unscorable([{"index": index, "reason": error.public_message}], len(texts)) from error
    return requests


# --- other programs' -------------------------------------------------------------------------------------------------


class OpenRlhfBody(_Strict):
    """Body of OpenRLHF's `/get_reward`. `query` holds prompt and response as the policy formatted them."""

    query: Listed[str] | str
    prompts: list[Any] | None = None
    labels: list[Any] | None = None

    def requests(self) -> list[ScoreRequest]:
        """One request for each query."""
        return _of_texts(self.query)


class ClassifyBody(_Strict):
    """Body of vLLM's `/classify`. Fields that neither change a reward nor its form are accepted and not read."""

    model: str | None = None
    input: str | Listed[str] | Listed[int] | Listed[Listed[int]] | None = None
    messages: Messages | None = None
    use_activation: bool | None = None
    """Accepted: the activation of a model whose `problem_type` is "regression" is the identity, in vLLM too."""
    add_special_tokens: bool | None = None
    """Accepted: a text gets the one BOS of training whatever it says."""
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    chat_template: str | None = None
    truncate_prompt_tokens: int | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    padding: str | None = None

    @model_validator(mode="after")
    def _is_possible(self) -> "ClassifyBody":
        if (self.input is None) == (self.messages is None):
            raise ValueError("needs either `input` or `messages`")
        refused = ("add_generation_prompt", "continue_final_message", "chat_template", "truncate_prompt_tokens")
        for name in (*refused, "mm_processor_kwargs", "padding"):
            if getattr(self, name) not in (None, False, "do_not_pad"):
                raise ValueError(
                    f"`{name}` would give the model other tokens than it was trained with, and is not supported here"
                )
        return self

    def token_ids(self) -> list[list[int]] | None:
        """The sequences, where the input is token ids."""
        if not isinstance(self.input, list) or not self.input or isinstance(self.input[0], str):
            return None
        given: Any = self.input
        return [given] if isinstance(given[0], int) else given

    def requests(self) -> list[ScoreRequest]:
        """Read the body, unless it holds token ids.

        Returns:
            One request for each text, or for the conversation.

        Raises:
            ApiError: If the messages are no conversation that ends with the assistant.
        """
        if self.messages is not None:
            try:
                options = read_template_options({"chat_template_kwargs": self.chat_template_kwargs})
                return [request_from_messages(self.messages, template=options)]
            except PreferenceFormatError as error:
                raise unscorable([{"index": 0, "reason": error.public_message}], 1) from error
        return _of_texts(self.input)
