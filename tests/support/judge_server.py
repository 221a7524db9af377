"""A scripted judge on a real socket that speaks each protocol, with planted biases and faults."""

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import xxhash
from running_servers import fake

from hf_reward.data.preference_row import Prompt
from hf_reward.evaluation.audit.cases import Text

MODEL = "scripted"
_PARTS = re.compile(
    r"\[Conversation\]\n(.*)\n\[End of conversation\]\n\n\[Response A\]\n(.*)\n\[End of response A\]\n\n"
    r"\[Response B\]\n(.*)\n\[End of response B\]",
    re.DOTALL,
)


class Asked(NamedTuple):
    """A question as the judge sees it."""

    conversation: str
    first: str
    second: str


Verdict = Callable[[Asked], float]
"""P(the response shown first is better)."""


@dataclass
class ScriptedJudge:
    """Answers requests; counts them, and fails where a plan says so."""

    verdict: Verdict
    fault: Callable[[int, str], Any] = lambda number, content: None
    """Number of the request from 0 and its content -> a status or bytes to answer instead; None to answer."""
    bodies: list[str] = field(default_factory=list)
    """Answered requests."""
    received: int = 0

    def answer(self, path: str, body: Any) -> Any:
        """Return the answer to a request."""
        if path.endswith("/models"):
            return {"data": [{"id": MODEL}]}
        content = json.dumps(body, sort_keys=True)
        number, self.received = self.received, self.received + 1
        found = self.fault(number, content)
        if found is not None:
            return found
        answer = {"chat/completions": self._chat, "decisions": self._decision, "systemone": self._systemone}[
            path.removeprefix("/v1/")
        ](body)
        self.bodies.append(content)
        return answer

    def _chat(self, body: Any) -> Any:
        text = body["messages"][0]["content"]
        share = self.verdict(parsed(text))
        usage = {"prompt_tokens": len(text.split()), "completion_tokens": 1}
        if body.get("logprobs"):
            # A tenth of the probability is on another token.
            tops = [("A", 0.9 * share), (" B", 0.9 * (1 - share)), ("The", 0.1)]
            top = [{"token": token, "logprob": math.log(max(part, 1e-30))} for token, part in tops]
            first = {"token": "A", "logprob": top[0]["logprob"], "top_logprobs": top}
            return {"choices": [{"message": {"content": "A"}, "logprobs": {"content": [first]}}], "usage": usage}
        coin = xxhash.xxh3_64_intdigest(f"{body['seed']} {text}".encode()) / 2**64
        letter = "A" if coin < share else "B"
        content = f"<think>A or B?</think>\n**{letter}**."
        return {"choices": [{"message": {"content": content}}], "usage": usage}

    def _decision(self, body: Any) -> Any:
        (question,) = body["questions"]
        shares = self._shares(self.verdict(parsed(body["input"])), [each["value"] for each in question["choices"]])
        parts = [{"value": name, "probability": share} for name, share in shares.items()]
        choice = {"type": "choice", "name": question["name"], "choice": max(shares, key=shares.__getitem__)}
        usage = {"input_tokens": len(body["input"].split()), "output_tokens": 0}
        return {"model": MODEL, "answers": [choice | {"probabilities": parts, "confidence": 0.5}], "usage": usage}

    def _systemone(self, body: Any) -> Any:
        state = body["state"]
        asked = Asked(state["conversation"], state["response_a"], state["response_b"])
        ((name, question),) = body["questions"].items()
        shares = self._shares(self.verdict(asked), list(question["criteria"]))
        answer = {"type": "choice", "choice": max(shares, key=shares.__getitem__), "probabilities": shares}
        usage = {"input_tokens": len(json.dumps(state).split()), "output_tokens": 0}
        return {"model": MODEL, "answers": {name: answer}, "usage": usage}

    @staticmethod
    def _shares(first: float, names: list[str]) -> dict[str, float]:
        return dict(zip(names, (first, 1 - first), strict=True))


def parsed(text: str) -> Asked:
    """Return the parts of a question in text."""
    found = _PARTS.search(text)
    assert found is not None, text
    return Asked(*found.groups())


def by_reward(reward: Callable[[Text], float], *, position: float = 0.0) -> Verdict:
    """Return the verdict of a Bradley-Terry judge of a reward, with a bias in log-odds for the response shown first."""

    def verdict(asked: Asked) -> float:
        rewards = [reward(Text(prompt=_messages(asked.conversation), response=each)) for each in asked[1:]]
        return 1 / (1 + math.exp(-(rewards[0] - rewards[1] + position)))

    return verdict


def _messages(conversation: str) -> Prompt:
    """Undo the names of speakers in longer conversations."""
    turns = re.split(r"(?:^|\n\n)(User|Assistant|System): ", conversation)
    if len(turns) < 3 or turns[0]:
        return [{"role": "user", "content": conversation}]
    return [{"role": role.lower(), "content": content} for role, content in zip(turns[1::2], turns[2::2], strict=True)]


@contextmanager
def judging(judge: ScriptedJudge) -> Iterator[str]:
    """Serve a judge; gives the address."""
    with fake(judge.answer) as url:
        yield url
