"""Protocols of judges as pure functions: a pair -> bodies of requests, and an answer -> P(response A is better).

Chat completions: https://platform.openai.com/docs/api-reference/chat. Decisions: `decision_create_params.py` and
`decision.py` of openai-python 3.26, also spoken by Fireworks and SGLang. System One: `transformers.decision` (5.23) and
`transformers serve`, also spoken by vLLM, Ollama and TypeSafe.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hf_reward.scoring.judging.pairs import JudgedPair, pair_state, pair_text

LEAST_MASS = 0.5
"""Least probability of the letters A and B together. Below it, the model was about to write something else."""
_NAME = "better"
OPTIONS = {"A": "Response A is better.", "B": "Response B is better."}
"""Options of a question and their texts. `hf-reward serve` recognises questions of judges by them."""
_TOP = 20
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_VERDICT = re.compile(r"\W*(?:(?:response|answer)\W+(?:is\W+)?)?([AB])\W*", re.IGNORECASE)


class AnswerError(ValueError):
    """An answer of a judge from which no probability can be read."""


@dataclass(frozen=True)
class Answer:
    """The answer to one request."""

    value: float
    """P(response A, which is shown first, is better), 0 or 1 for a vote; the reward for a request to score a text."""
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True)
class Protocol:
    """Form of the requests and answers of one kind of endpoint."""

    kind: str
    path: str
    """End of the URL of the endpoint."""
    bodies: Callable[[str, JudgedPair, str, int], list[dict[str, Any]]]
    """Model, pair, question and number of votes -> bodies of the requests for this order of the responses."""
    read: Callable[[Any, int], float]
    """Answer and number of votes -> P(A is better). Raises `AnswerError`."""


# --- chat completions -------------------------------------------------------------------------------------------------


def chat_bodies(model: str, pair: JudgedPair, question: str, votes: int) -> list[dict[str, Any]]:
    """Return the bodies for `/v1/chat/completions`.

    Args:
        model: Name of the model.
        pair: The pair.
        question: The criterion.
        votes: 0 to read the log-probabilities of the first token; otherwise the number of sampled answers.

    Returns:
        One body, or one for each vote with a seed of its own. Votes have no limit of tokens, because models that reason
        first need them.
    """
    content = f"{question}\n\n{pair_text(pair)}\n\nAnswer with the letter A or B only."
    body = {"model": model, "messages": [{"role": "user", "content": content}], "temperature": 1.0}
    if votes:
        return [body | {"seed": seed} for seed in range(votes)]
    return [body | {"max_tokens": 1, "logprobs": True, "top_logprobs": _TOP}]


def read_chat(answer: Any, votes: int = 0) -> float:
    """Read a chat completion.

    Args:
        answer: The parsed JSON.
        votes: 0 to read the log-probabilities of the first token; otherwise its text is a vote.

    Returns:
        P(A), normalised over A and B; 0 or 1 for a vote.

    Raises:
        AnswerError: If there is no verdict, no log-probabilities, or A and B have less than `LEAST_MASS` of them.
    """
    choice = _item(_field(answer, "choices"), 0)
    if votes:
        text = _field(_field(choice, "message"), "content")
        found = _VERDICT.fullmatch(_THOUGHT.sub("", text)) if isinstance(text, str) else None
        if found is None:
            raise AnswerError(f"the answer must be A or B, but is {_shown(text)}")
        return float(found[1].upper() == "A")
    logprobs = choice.get("logprobs") if isinstance(choice, Mapping) else None
    if not isinstance(logprobs, Mapping) or not logprobs.get("content"):
        raise AnswerError("the server returned no log-probabilities; sample answers with votes")
    return _letters(_field(_item(logprobs["content"], 0), "top_logprobs"))


def _letters(alternatives: Iterable[Any]) -> float:
    mass = {"A": 0.0, "B": 0.0}
    for each in alternatives:
        letter = str(_field(each, "token")).strip()
        if letter in mass:
            mass[letter] += math.exp(min(0.0, float(_field(each, "logprob"))))
    total = sum(mass.values())
    if total < LEAST_MASS:
        raise AnswerError(
            f"the first token is A or B with a probability of {total:.2f} only, less than {LEAST_MASS}; if the model "
            "reasons first, use votes or switch its reasoning off"
        )
    return mass["A"] / total


# --- decisions --------------------------------------------------------------------------------------------------------


def decision_bodies(model: str, pair: JudgedPair, question: str, votes: int) -> list[dict[str, Any]]:
    """Return the body for `/v1/decisions`; see `chat_bodies`. Votes do not apply: the answer is a probability."""
    choices = [{"value": value, "description": words} for value, words in OPTIONS.items()]
    asked = {"type": "choice", "name": _NAME, "instructions": question, "choices": choices}
    return [{"model": model, "input": pair_text(pair), "questions": [asked]}]


def read_decision(answer: Any, votes: int = 0) -> float:
    """Read P(A) from an answer of `/v1/decisions`.

    Args:
        answer: The parsed JSON.
        votes: Not used.

    Returns:
        P(A), normalised over A and B.

    Raises:
        AnswerError: If the model refused, or a probability is missing.
    """
    found = _item(_field(answer, "answers"), 0)
    if isinstance(found, Mapping) and found.get("type") == "refusal":
        raise AnswerError("the model refused to answer")
    parts = _field(found, "probabilities")
    return _share({str(_field(each, "value")): _field(each, "probability") for each in parts})


def systemone_bodies(model: str, pair: JudgedPair, question: str, votes: int) -> list[dict[str, Any]]:
    """Return the body for `/v1/systemone` and the decision pipeline; see `decision_bodies`."""
    asked = {"type": "choice", "instructions": question, "criteria": dict(OPTIONS)}
    return [{"model": model, "state": pair_state(pair), "questions": {_NAME: asked}}]


def read_systemone(answer: Any, votes: int = 0) -> float:
    """Read P(A) from an answer of `/v1/systemone`.

    Args:
        answer: The parsed JSON.
        votes: Not used.

    Returns:
        P(A), normalised over A and B.

    Raises:
        AnswerError: If the question was not answered, or a probability is missing.
    """
    return _share(_field(_field(_field(answer, "answers"), _NAME), "probabilities"))


def _share(probabilities: Any) -> float:
    values = [_field(probabilities, name) for name in OPTIONS]
    if not all(isinstance(each, int | float) and not isinstance(each, bool) and 0 <= each <= 1 for each in values):
        raise AnswerError(f"the probabilities must be in [0, 1], but are {_shown(values)}")
    if sum(values) < LEAST_MASS:
        raise AnswerError(f"the probabilities of A and B must add up to {LEAST_MASS} or more, but are {_shown(values)}")
    return float(values[0] / sum(values))


# --- all --------------------------------------------------------------------------------------------------------------


PROTOCOLS = {
    each.kind: each
    for each in (
        Protocol("chat", "/chat/completions", chat_bodies, read_chat),
        Protocol("decisions", "/decisions", decision_bodies, read_decision),
        Protocol("systemone", "/systemone", systemone_bodies, read_systemone),
    )
}
"""Kind -> protocol."""


def usage_of(answer: Any) -> tuple[int, int]:
    """Return the input and output tokens that an answer reports, 0 if it reports none."""
    usage = answer.get("usage") if isinstance(answer, Mapping) else None
    counts = usage if isinstance(usage, Mapping) else {}
    found = [counts.get(one, counts.get(other, 0)) for one, other in _USAGE]
    given, written = (each if isinstance(each, int) and each >= 0 else 0 for each in found)
    return given, written


_USAGE = (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))


def _field(value: Any, name: str) -> Any:
    if not isinstance(value, Mapping) or name not in value:
        raise AnswerError(f"the answer lacks `{name}`: {_shown(value)}")
    return value[name]


def _item(value: Any, place: int) -> Any:
    if not isinstance(value, list) or len(value) <= place:
        raise AnswerError(f"the answer must be a list, but is {_shown(value)}")
    return value[place]


def _shown(value: Any) -> str:
    return repr(value)[:200]
