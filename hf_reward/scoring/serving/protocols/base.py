"""Shared by all protocols: strict bodies, texts as requests, and scoring for a route."""

import base64
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, model_validator

from hf_reward.data.fields import read_template_options
from hf_reward.data.preference_row import PreferenceFormatError
from hf_reward.data.score_request import ScoreRequest, read_request, request_from_messages, request_from_text
from hf_reward.scoring.serving.errors import ApiError, unscorable
from hf_reward.scoring.serving.observing import ObservedRuns
from hf_reward.scoring.serving.service import RewardService, Scored, UnscorableError, by_row, unless_client_leaves

ItemType = TypeVar("ItemType")

Listed = Annotated[list[ItemType], Field(fail_fast=True)]
"""A list whose validation stops at the first wrong item, so that a long list makes one error."""

Messages = Listed[dict[str, Any]]

Text = str | Messages
"""Text, or messages."""

Encoding = Literal["float", "base64"]
"""Form of a vector in an answer; clients of OpenAI ask for base64 by default."""

Anything = dict[str, Any] | list[Any] | str | int | float | bool | None
"""The value of a field that does not affect rewards."""

TAG = "tag:"
"""Start of the tags that tell apart the bodies of one path; error messages leave them out."""


class Body(BaseModel):
    """A body that rejects unknown fields, because a misspelt option would change a reward silently.

    There is no type coercion: `true` is not a token id and "1" is not a boolean.
    """

    model_config = ConfigDict(strict=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _has_known_fields(cls, given: Any) -> Any:
        is_checked = isinstance(given, dict) and cls.model_config.get("extra") != "allow"
        unknown = [name for name in given if name not in cls.model_fields] if is_checked else []
        if unknown:
            raise ValueError(unknown_field(unknown[0], list(cls.model_fields)))
        return given


def unknown_field(name: Any, expected: Sequence[str]) -> str:
    """Return the message for an unknown field.

    Args:
        name: Its name. Only a plausible name of a field is repeated.
        expected: The known fields.

    Returns:
        A clause that lists the known fields and suggests the nearest one.
    """
    is_name = isinstance(name, str) and name.isidentifier() and name.isascii() and len(name) <= 40
    nearest = difflib.get_close_matches(name, expected, n=1) if is_name else []
    what = f"unknown field `{name}`" if is_name else "unknown field"
    guess = f"; did you mean `{nearest[0]}`?" if nearest else "."
    return f"{what}{guess} Expected fields: {', '.join(expected)}"


class ModelBody(Body):
    """A body that may name the model."""

    model: str | None = None


class RefusingBody(ModelBody):
    """A body with fields of the protocol that would give the model other tokens than in training."""

    @model_validator(mode="after")
    def _changes_no_tokens(self) -> Self:
        for name, field in type(self).model_fields.items():
            if REFUSED in field.metadata and getattr(self, name) not in (None, False, 0, "do_not_pad"):
                raise ValueError(f"`{name}` is not supported: the model would get other tokens than in training")
        return self


REFUSED = "refused"
"""Mark of such a field; its neutral values are accepted."""
Refused = Annotated[Anything, REFUSED]


def requests_of_texts(texts: Sequence[str]) -> list[ScoreRequest]:
    """Return requests for formatted texts.

    Args:
        texts: The texts.

    Returns:
        One request for each text.

    Raises:
        ApiError: If a text is not usable; the error names its index.
    """
    return _each(request_from_text, texts)


def requests_of_pairs(
    pairs: Sequence[tuple[Any, Any]], template: Mapping[str, Any] | None = None
) -> list[ScoreRequest]:
    """Return requests for pairs of prompt and response.

    Args:
        pairs: The pairs; each side is text or messages.
        template: Keyword arguments for the chat template, `chat_template_kwargs` of a body.

    Returns:
        One request for each pair.

    Raises:
        ApiError: If a pair is not usable; the error names its index.
    """

    def request(pair: tuple[Any, Any]) -> ScoreRequest:
        options = read_template_options({"chat_template_kwargs": template})
        return read_request(*pair, template=options, response_only=True)

    return _each(request, pairs)


def requests_of_messages(messages: Any, options: Mapping[str, Any]) -> list[ScoreRequest]:
    """Return the request for a conversation whose last turn is the response.

    Args:
        messages: The conversation.
        options: `chat_template_kwargs` and `tools`, if the body has them.

    Returns:
        One request.

    Raises:
        ApiError: If the messages do not end with an assistant turn.
    """
    return _each(lambda turns: request_from_messages(turns, template=read_template_options(options)), [messages])


def _each(read: Callable[[Any], ScoreRequest], rows: Sequence[Any]) -> list[ScoreRequest]:
    requests = []
    for index, row in enumerate(rows):
        try:
            requests.append(read(row))
        except PreferenceFormatError as error:
            raise unscorable([{"index": index, "reason": error.public_message}], len(rows)) from error
    return requests


def service_of(request: Request, model: str | None = None) -> RewardService:
    """Return the service of the model that a request names.

    Args:
        request: The HTTP request. Its `?model=` names the model for protocols without such a field.
        model: The `model` field of the body.

    Returns:
        The service; that of the only model if none is named.

    Raises:
        ApiError: 404 for an unknown model, and 400 if none of several models is named.
    """
    return request.app.state.models.get(request.query_params.get("model") if model is None else model)


async def score(
    service: RewardService,
    request: Request,
    requests: Sequence[ScoreRequest],
    ids: Sequence[list[int]] | None = None,
) -> Scored:
    """Score for the routes of other programs, where empty responses are allowed.

    Args:
        service: The service of the model.
        request: The HTTP request.
        requests: The requests, in the order of the body's rows.
        ids: Sequences of token ids to score instead.

    Returns:
        Their rewards.

    Raises:
        ApiError: If a row has no reward, or the queue or the model fails.
    """
    runs: ObservedRuns = request.app.state.runs
    if ids is not None and runs.name_in(request) is not None:
        raise ApiError(
            400, "invalid_run", "Responses as token ids cannot be observed. Send texts, or leave out `?run=`."
        )
    try:
        if ids is not None:
            return await unless_client_leaves(request, service.score_token_ids(ids))
        return await observed_score(service, request, requests, allow_empty=True)
    except UnscorableError as error:
        raise by_row(error) from error


async def observed_score(
    service: RewardService, request: Request, requests: Sequence[ScoreRequest], *, allow_empty: bool
) -> Scored:
    """Score requests, and pass the rewards to the observer of the run that the HTTP request names.

    Args:
        service: The service of the model.
        request: The HTTP request.
        requests: The requests.
        allow_empty: Whether responses may be empty.

    Returns:
        Their rewards.

    Raises:
        UnscorableError: If a request has no reward.
        ApiError: If the name of the run is not usable, or the queue or the model fails.
    """
    runs: ObservedRuns = request.app.state.runs
    run = runs.name_in(request)
    scored = await unless_client_leaves(request, service.score(requests, allow_empty=allow_empty))
    if run is not None:
        await runs.add(run, service, requests, scored.rewards)
    return scored


def vector(reward: float, encoding: Encoding | None) -> list[float] | str:
    """Return a reward as a vector with one entry: a list, or little-endian float32 in base64."""
    return base64.b64encode(np.float32(reward).astype("<f4").tobytes()).decode() if encoding == "base64" else [reward]


def usage(tokens: int) -> dict[str, int]:
    """Return the number of tokens in the format of OpenAI."""
    return {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
