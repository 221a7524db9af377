"""Our own protocol: `/score` for responses and `/rank` for the responses to a prompt."""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Request
from pydantic import Discriminator, Field, Tag, model_validator

from hf_reward.data.preference_row import PreferenceFormatError
from hf_reward.data.score_request import ScoreRequest, requests_of_row
from hf_reward.scoring.serving.errors import StrictJSON, unscorable
from hf_reward.scoring.serving.protocols import answers
from hf_reward.scoring.serving.protocols.base import TAG, Body, Listed, Messages, Text, observed_score, service_of
from hf_reward.scoring.serving.protocols.vllm import PairsBody, score_pairs
from hf_reward.scoring.serving.service import RewardService, Scored, UnscorableError, by_row

router = APIRouter(tags=["hf_reward"])


class Row(Body):
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
    model: str | None = None

    def groups(self) -> list[list[ScoreRequest]]:
        """Convert the body to requests.

        Returns:
            The requests of each row.

        Raises:
            ApiError: If a row matches no layout.
        """
        return _requests_of(self, self.items)


class RankRow(Body):
    """A prompt and the responses to rank."""

    prompt: Text
    responses: Listed[Text] = Field(min_length=1)
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Messages | None = None


class RankBody(Body):
    """Body of `/rank`: a prompt and its responses, or `items`, a list of these."""

    prompt: Text | None = None
    responses: Listed[Text] | None = Field(default=None, min_length=1)
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Messages | None = None
    items: Listed[RankRow] | None = None
    allow_empty: bool = False
    model: str | None = None

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


# --- routes ----------------------------------------------------------------------------------------------------------


def _protocol(given: Any) -> str:
    """Tell vLLM's body of `/score` from ours by its fields."""
    ours = not isinstance(given, dict) or not given.keys() & PairsBody.model_fields.keys() - {"model", "items"}
    return f"{TAG}hf_reward" if ours or given.keys() & Row.model_fields.keys() else f"{TAG}vllm"


EitherScoreBody = Annotated[
    Annotated[ScoreBody, Tag(f"{TAG}hf_reward")] | Annotated[PairsBody, Tag(f"{TAG}vllm")], Discriminator(_protocol)
]


@router.post("/score", summary="Score responses", response_model=answers.Rewards | answers.PairScores)
async def score(body: EitherScoreBody, request: Request) -> StrictJSON:
    """Score each response. vLLM's body (`text_1` and `text_2`, ...) is accepted too."""
    if isinstance(body, PairsBody):
        return await score_pairs(body, request)
    service, groups = service_of(request, body.model), body.groups()
    scored, rewards = await _score_groups(service, request, groups, body)
    flat = rewards if body.items is not None else rewards[0]
    return StrictJSON({"model": service.name, "rewards": flat, "tokens": scored.tokens})


@router.post("/rank", summary="Rank responses", response_model=answers.OneRanking | answers.Rankings)
async def rank(body: RankBody, request: Request) -> StrictJSON:
    """Rank the responses to a prompt, best first; equal rewards keep their order."""
    service, groups = service_of(request, body.model), body.groups()
    scored, rewards = await _score_groups(service, request, groups, body)
    rankings = [_ranking(group) for group in rewards]
    found = {"results": rankings} if body.items is not None else rankings[0]
    return StrictJSON({"model": service.name, **found, "tokens": scored.tokens})


async def _score_groups(
    service: RewardService, request: Request, groups: list[list[ScoreRequest]], body: ScoreBody | RankBody
) -> tuple[Scored, list[list[float]]]:
    requests = [each for group in groups for each in group]
    sizes = [len(group) for group in groups]
    try:
        scored = await observed_score(service, request, requests, allow_empty=body.allow_empty)
    except UnscorableError as error:
        raise by_row(error, sizes if body.items is not None else None) from error
    ends = np.cumsum(sizes)
    rewards = [scored.rewards[end - size : end] for end, size in zip(ends.tolist(), sizes, strict=True)]
    return scored, rewards


def _ranking(rewards: list[float]) -> dict[str, Any]:
    order = sorted(range(len(rewards)), key=lambda place: -rewards[place])
    return {"rewards": rewards, "ranking": order, "best": order[0]}
