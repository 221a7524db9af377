"""Request bodies: our own, OpenRLHF's and vLLM's."""

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hf_reward.data.fields import read_template_options
from hf_reward.data.preference_row import PreferenceFormatError
from hf_reward.data.score_request import ScoreRequest, request_from_messages, request_from_text, requests_of_row
from hf_reward.scoring.serving.errors import unscorable

ItemType = TypeVar("ItemType")

Listed = Annotated[list[ItemType], Field(fail_fast=True)]
"""A list whose validation stops at the first wrong item, so that a long list makes one error."""

Messages = Listed[dict[str, Any]]

Text = str | Messages
"""Text, or messages."""


class _Strict(BaseModel):
    """A body without type coercion: `true` is not a token id and "1" is not a boolean."""

    model_config = ConfigDict(strict=True)


class _Ours(_Strict):
    """A body that rejects unknown fields: a misspelt option would change a reward silently."""

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
        """Convert the row to requests.

        Returns:
            One request for each response.

        Raises:
            PreferenceFormatError: If the row matches no layout.
        """
        given = self.model_dump(include=set(Row.model_fields), exclude_unset=True)
        layouts = [name for name in ("response", "responses", "messages", "text") if given.get(name) is not None]
        if len(layouts) > 1:
            raise PreferenceFormatError(
                f"The row has {' and '.join(f'`{name}`' for name in layouts)}. Send one of them."
            )
        return requests_of_row(given)


class ScoreBody(Row):
    """Body of `/score`: a row, or `items`, a list of rows."""

    items: Listed[Row] | None = None
    allow_empty: bool = False

    def groups(self) -> list[list[ScoreRequest]]:
        """Convert the body to requests.

        Returns:
            The requests of each row.

        Raises:
            ApiError: If a row matches no layout.
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
        """Convert the body to requests.

        Returns:
            The requests of each prompt.

        Raises:
            ApiError: If a row is invalid.
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
        reason = f"the body has {', '.join(f'`{name}`' for name in extra)} and `items`. Move all fields into the items."
        raise unscorable([{"index": 0, "reason": reason}], len(items))
    return [_requests(row, place, len(items)) for place, row in enumerate(items)]


def _requests(row: Row, index: int, total: int) -> list[ScoreRequest]:
    try:
        return row.requests()
    except PreferenceFormatError as error:
        raise unscorable([{"index": index, "reason": error.public_message}], total) from error


def _of_texts(given: Any) -> list[ScoreRequest]:
    """Return requests for one formatted text or a list of them; an error names the index of the text."""
    texts = [given] if isinstance(given, str) else given
    requests = []
    for index, text in enumerate(texts):
        try:
            requests.append(request_from_text(text))
        except PreferenceFormatError as error:
            raise unscorable([{"index": index, "reason": error.public_message}], len(texts)) from error
    return requests


# --- other protocols -------------------------------------------------------------------------------------------------


class OpenRlhfBody(_Strict):
    """Body of OpenRLHF's `/get_reward`. `query` holds prompts with responses, formatted by the policy."""

    query: Listed[str] | str
    prompts: list[Any] | None = None
    labels: list[Any] | None = None

    def requests(self) -> list[ScoreRequest]:
        """Return one request for each query."""
        return _of_texts(self.query)


class ClassifyBody(_Strict):
    """Body of vLLM's `/classify`. Fields that do not affect rewards are accepted and ignored."""

    model: str | None = None
    input: str | Listed[str] | Listed[int] | Listed[Listed[int]] | None = None
    messages: Messages | None = None
    use_activation: bool | None = None
    """Ignored: with `problem_type` "regression" the activation is the identity, in vLLM too."""
    add_special_tokens: bool | None = None
    """Ignored: a text gets the BOS of training either way."""
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
                raise ValueError(f"`{name}` is not supported: the model would get other tokens than in training")
        return self

    def token_ids(self) -> list[list[int]] | None:
        """Return the sequences if the input is token ids, else None."""
        if not isinstance(self.input, list) or not self.input or isinstance(self.input[0], str):
            return None
        given: Any = self.input
        return [given] if isinstance(given[0], int) else given

    def requests(self) -> list[ScoreRequest]:
        """Convert texts or messages to requests.

        Returns:
            One request for each text, or for the conversation.

        Raises:
            ApiError: If the messages do not end with an assistant turn.
        """
        if self.messages is not None:
            try:
                options = read_template_options({"chat_template_kwargs": self.chat_template_kwargs})
                return [request_from_messages(self.messages, template=options)]
            except PreferenceFormatError as error:
                raise unscorable([{"index": 0, "reason": error.public_message}], 1) from error
        return _of_texts(self.input)
