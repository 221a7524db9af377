"""Decision protocols: System One (`/v1/systemone`) and OpenAI's Decisions (`/v1/decisions`), choice questions only.

The state (or input) and the instructions are the prompt, and the text of each criterion is a response to it. The
probabilities are softmax(rewards / T) with the temperature T stored with the model: the Plackett-Luce probability that
a response is the best one, which for two is that of Bradley and Terry. Bodies and answers are those of transformers
5.23 (cli/serving/systemone.py, decision/template_utils.py) and openai 3.51 (types/decision_create_params.py,
types/decision.py), which Fireworks documents too.

The judges of hf_reward ask about two responses that are part of the state. Their requests are answered with the
comparison of these responses, because the reward of "Response A is better." would be meaningless.
"""

import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import Field, model_validator
from scipy import special

from hf_reward.data.score_request import ScoreRequest
from hf_reward.scoring.judging.pairs import QUESTION, read_pair
from hf_reward.scoring.judging.protocols import OPTIONS
from hf_reward.scoring.serving.errors import ApiError, StrictJSON
from hf_reward.scoring.serving.protocols import answers
from hf_reward.scoring.serving.protocols.base import (
    Anything,
    Body,
    Listed,
    ModelBody,
    requests_of_pairs,
    score,
    service_of,
)
from hf_reward.scoring.serving.service import RewardService, Scored

router = APIRouter(tags=["Decisions"])

_MOST_QUESTIONS, _MOST_CHOICES = 64, 255
Content = str | dict[str, Any] | list[Any]
"""Text, or JSON values that become text."""


class _Question(Body):
    """A question; only choice questions are supported."""

    type: Literal["choice"]

    @model_validator(mode="before")
    @classmethod
    def _is_choice(cls, given: Any) -> Any:
        kind = given.get("type") if isinstance(given, dict) else None
        if kind in ("noul", "predicate", "score"):  # before their other fields are called unknown
            raise ValueError(
                f'"{kind}" questions require a calibrated threshold, which the model does not have: a reward is only '
                'defined up to a constant. Ask a question of type "choice" with a text for each possible answer'
            )
        return given


class SystemOneQuestion(_Question):
    """A choice question of System One. Its instructions are the end of the prompt, its criteria the responses."""

    instructions: Content | None = None
    criteria: dict[str, Content | None] = Field(min_length=1, max_length=_MOST_CHOICES)
    """Option -> text of the response; null stands for the name of the option."""


class SystemOneBody(ModelBody):
    """Body of `/v1/systemone`."""

    state: Content
    """Text, messages, or JSON values that become text."""
    questions: dict[str, SystemOneQuestion] = Field(min_length=1, max_length=_MOST_QUESTIONS)
    assets: dict[str, Any] = Field(default_factory=dict, max_length=0)
    """Images are not supported."""


class _InputPart(Body):
    """A part of a message; images are not supported."""

    type: Literal["input_text"]
    text: str


class _InputMessage(Body):
    """A message of the user."""

    type: Literal["message"] = "message"
    role: Literal["user"]
    content: str | Listed[_InputPart]


class _DecisionChoice(Body):
    """A choice; its description is the response that is scored, or else its value."""

    value: str | bool
    description: str | None = None


class DecisionQuestion(_Question):
    """A choice question of OpenAI. Its instructions are the end of the prompt, its choices the responses."""

    instructions: str
    choices: list[_DecisionChoice] = Field(min_length=1, max_length=_MOST_CHOICES)
    name: str | None = None


class DecisionsBody(ModelBody):
    """Body of `/v1/decisions`."""

    input: str | Listed[_InputMessage]
    questions: list[DecisionQuestion] = Field(min_length=1, max_length=_MOST_QUESTIONS)
    safety_identifier: Anything = None

    def text(self) -> str:
        """Return the input as one text, with a blank line between messages."""
        if isinstance(self.input, str):
            return self.input
        contents = [each.content for each in self.input]
        return "\n\n".join(
            each if isinstance(each, str) else "\n".join(part.text for part in each) for each in contents
        )


# --- routes ----------------------------------------------------------------------------------------------------------


@router.post("/v1/systemone", summary="System One", response_model=answers.SystemOneAnswers)
async def systemone(body: SystemOneBody, request: Request) -> StrictJSON:
    """Answer choice questions with probabilities, in the format of System One."""
    service = service_of(request, body.model)
    asked = [
        _requests(body.state, each.instructions, {name: _text(name, each.criteria[name]) for name in each.criteria})
        for each in body.questions.values()
    ]
    shares, scored = await _shares(service, request, asked)
    found = {}
    for (name, question), part in zip(body.questions.items(), shares, strict=True):
        options = list(question.criteria)
        best = {"type": "choice", "choice": options[int(np.argmax(part))], "confidence": _confidence(part)}
        found[name] = {**best, "probabilities": dict(zip(options, part, strict=True))}
    usage = {"input_tokens": scored.tokens, "output_tokens": 0}
    return StrictJSON({"model": service.name, "answers": found, "usage": usage})


@router.post("/v1/decisions", summary="OpenAI: decisions", response_model=answers.Decisions)
async def decisions(body: DecisionsBody, request: Request) -> StrictJSON:
    """Answer choice questions with probabilities, in the format of OpenAI's Decisions."""
    service, text = service_of(request, body.model), body.text()
    asked = [
        _requests(text, each.instructions, {json.dumps(one.value): _described(one) for one in each.choices})
        for each in body.questions
    ]
    for question, requests in zip(body.questions, asked, strict=True):
        if len(requests) < len(question.choices):
            raise _invalid("/v1/decisions", "two choices of a question have the same `value`")
    shares, scored = await _shares(service, request, asked)
    found = []
    for question, part in zip(body.questions, shares, strict=True):
        values = [each.value for each in question.choices]
        each = {"type": "choice", "name": question.name, "choice": values[int(np.argmax(part))]}
        probabilities = [{"value": value, "probability": share} for value, share in zip(values, part, strict=True)]
        found.append({**each, "probabilities": probabilities, "confidence": _confidence(part)})
    usage = {
        "input_tokens": scored.tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": scored.tokens,
    }
    return StrictJSON({"model": service.name, "answers": found, "usage": usage})


# --- questions as requests -------------------------------------------------------------------------------------------


def _requests(state: Any, instructions: Any, options: dict[str, str]) -> list[ScoreRequest]:
    """Return a request for each option of a question."""
    if list(options.values()) == list(OPTIONS.values()):
        return _compared(state, instructions)
    prompt = _prompt(state, instructions)
    return requests_of_pairs([(prompt, text) for text in options.values()])


def _prompt(state: Any, instructions: Any) -> Any:
    """Join state and instructions with a blank line. Messages stay messages, and their last turn is continued."""
    words = None if instructions is None else _as_text(instructions)
    if _are_messages(state):
        last = state[-1]
        if last["role"] != "user" or (words is not None and not isinstance(last["content"], str)):
            raise _invalid("/v1/systemone", "messages in `state` must end with a text of the user")
        return state if words is None else [*state[:-1], {**last, "content": f"{last['content']}\n\n{words}"}]
    return "\n\n".join(part for part in (_as_text(state), words) if part)


def _compared(state: Any, instructions: Any) -> list[ScoreRequest]:
    """Return requests for the two responses about which a judge of hf_reward asks."""
    if instructions not in (None, QUESTION):
        raise ApiError(
            422,
            "other_question",
            "A reward model compares responses by the criterion of its training and cannot follow another question. "
            "Leave the question of the judge (`--question`) out.",
        )
    pair = read_pair(state)
    if pair is None:
        raise ApiError(
            422,
            "unclear_pair",
            "The two responses cannot be told apart in this text, or the conversation has several turns. Use this "
            "server as a judge without the path: `--judge http://HOST:PORT`.",
        )
    return requests_of_pairs([(pair.prompt, pair.first), (pair.prompt, pair.second)])


def _are_messages(state: Any) -> bool:
    return (
        isinstance(state, list)
        and bool(state)
        and all(isinstance(each, dict) and {"role", "content"} <= each.keys() for each in state)
    )


def _as_text(content: Any) -> str:
    try:
        return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    except RecursionError as error:  # such a value was just within the limit when the body was read
        raise _invalid("this path", "a value is nested too deeply") from error


def _text(option: str, description: Any) -> str:
    return option if description is None else _as_text(description)


def _described(choice: _DecisionChoice) -> str:
    return _text(_as_text(choice.value), choice.description)


# --- probabilities ---------------------------------------------------------------------------------------------------


async def _shares(
    service: RewardService, request: Request, asked: Sequence[list[ScoreRequest]]
) -> tuple[list[list[float]], Scored]:
    """Return the probabilities of the options of each question."""
    temperature = _temperature(service)
    scored = await score(service, request, [each for part in asked for each in part])
    ends = np.cumsum([len(part) for part in asked])[:-1]
    parts = np.split(np.array(scored.rewards), ends)
    return [special.softmax(part / temperature).tolist() for part in parts], scored


def _temperature(service: RewardService) -> float:
    """Return the stored temperature, if it was fitted on the rewards that are served."""
    scorer = service.scorer
    stored = {} if scorer.record is None else scorer.record.calibration
    if "temperature" not in stored:
        raise ApiError(
            501,
            "no_temperature",
            "Probabilities require a temperature, and none is stored with this model. Fit one with `hf-reward audit "
            "--model MODEL --data PAIRS --fit-temperature`, then load the model again.",
        )
    if stored.get("length_correction", scorer.corrects_length) != scorer.corrects_length:
        fitted, remedy = ("with", "with") if stored["length_correction"] else ("without", "without")
        raise ApiError(
            501,
            "no_temperature",
            f"The temperature stored with this model was fitted {fitted} the length correction. Start the server "
            f"{remedy} `--length-correction`, or fit the temperature again.",
        )
    return float(stored["temperature"])


def _confidence(shares: Sequence[float]) -> float:
    """Return 0 for equal probabilities and 1 for a certain choice, as transformers' `Question.answer` does."""
    if len(shares) == 1:
        return 1.0
    least = 1 / len(shares)
    return max(0.0, (max(shares) - least) / (1 - least))


def _invalid(path: str, message: str) -> ApiError:
    return ApiError(422, "invalid_body", f"The body does not fit {path}: {message}.")
