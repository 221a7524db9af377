"""Another reward model as a judge: a local model, or one that `hf-reward serve` serves."""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from scipy import special

from hf_reward.data.score_request import ScoreRequest
from hf_reward.preprocessing.response_encoding import EncodedResponse
from hf_reward.scoring.judging.cache import AnswerCache, request_key
from hf_reward.scoring.judging.judge import Judgement, JudgeReport
from hf_reward.scoring.judging.pairs import JudgedPair
from hf_reward.scoring.judging.protocols import Answer
from hf_reward.scoring.judging.requests import JudgeError, JudgeSettings, Ledger
from hf_reward.scoring.reward_scorer import RewardScorer

_AT_ONCE = 16
"""Texts in a request to a server."""


class ScorerRewards:
    """Rewards from a model in this process."""

    needs_requests = False

    def __init__(self, scorer: RewardScorer) -> None:
        self.name, self.fingerprint, self.temperature = scorer.name, scorer.fingerprint(), scorer.temperature
        self._scorer = scorer

    def rewards(self, requests: Sequence[ScoreRequest]) -> tuple[list[float], str]:
        """Return the rewards, NaN for texts that cannot be scored, and the reason of the first failure."""
        encoded = self._scorer.encode(requests, allow_empty=True)
        found = self._scorer.score_encoded(encoded, show_progress=False)
        return found.rewards.tolist(), next(iter(found.problems.values()), "")


class ServerRewards:
    """Rewards from a server of `hf-reward serve`."""

    needs_requests = True
    temperature = 1.0

    def __init__(self, url: str, settings: JudgeSettings, ledger: Ledger, token: str | None = None) -> None:
        """Connect to the server.

        Args:
            url: Address, with or without `/score`.
            settings: Settings; the number of attempts applies.
            ledger: Count of requests.
            token: Bearer token.

        Raises:
            JudgeError: If it is a server of another kind, which would need the model's tokenizer here.
            ServerClientError: If it cannot be reached.
        """
        # It requires the extra `serve`, which local models do not need.
        self._module: Any = import_module("hf_reward.scoring.server_client")
        self._client = self._module.ServerClient(url, token=token)
        if not self._client.takes_requests:
            raise JudgeError(
                f"{url} is a server of {self._client.kind}, which takes formatted text. A judge must be served by "
                "`hf-reward serve`, or be a local folder."
            )
        self.name, self.fingerprint = self._client.name, {"judge": self._client.name, "kind": "reward"}
        self._settings, self._ledger = settings, ledger

    def rewards(self, requests: Sequence[ScoreRequest]) -> tuple[list[float], str]:
        """Return the rewards, NaN if the request failed, and the reason of the failure."""
        rows = [self._module.SentRow(each, EncodedResponse(), "") for each in requests]
        problem = ""
        for attempt in range(self._settings.attempts):
            time.sleep(min(60.0, 0.5 * 2**attempt) if attempt else 0.0)
            self._ledger.take()
            try:
                return self._client.rewards(rows).values, ""
            except self._module.ServerClientError as error:
                problem = str(error)
        return [math.nan] * len(rows), problem

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class RewardJudge:
    """A reward model as a judge: P(first is better) = sigmoid((difference of the rewards) / T).

    T is the temperature stored with a local model, else 1. The order of the responses has no influence.
    """

    def __init__(self, source: ScorerRewards | ServerRewards, cache: AnswerCache, ledger: Ledger) -> None:
        self.name, self.fingerprint = source.name, source.fingerprint
        self._source, self._ledger = source, ledger
        self._cache = cache if source.needs_requests else AnswerCache(None)
        self._problems: dict[str, str] = {}
        """Text without a reward -> why."""
        self._requests = 0

    def rewards_needed(self, requests: Sequence[ScoreRequest]) -> int:
        """Return the number of HTTP requests that texts still need."""
        return math.ceil(len(self._missing(requests)) / _AT_ONCE) if self._source.needs_requests else 0

    def rewards(self, requests: Sequence[ScoreRequest]) -> list[float]:
        """Score texts.

        Args:
            requests: The texts.

        Returns:
            Their rewards, NaN for those that could not be scored.

        Raises:
            BudgetError: If the requests exceed the budget.
        """
        missing = self._missing(requests)
        self._ledger.require(self.rewards_needed(requests))
        keys = sorted(missing)  # so that a chunk does not depend on the order of the rows
        size = _AT_ONCE if self._source.needs_requests else len(keys) or 1
        for start in range(0, len(keys), size):
            part = keys[start : start + size]
            found, problem = self._source.rewards([missing[key] for key in part])
            self._requests += self._source.needs_requests
            for key, reward in zip(part, found, strict=True):
                if math.isfinite(reward):
                    self._cache.add(key, Answer(float(reward)))
                else:
                    self._problems[key] = problem or "the response cannot be scored"
        return [self._cache[key].value if (key := self._key(each)) in self._cache else math.nan for each in requests]

    def problem(self, request: ScoreRequest) -> str:
        """Return why a text has no reward, or an empty text."""
        return self._problems.get(self._key(request), "")

    def requests_needed(self, pairs: Sequence[JudgedPair]) -> int:
        """See `Judge.requests_needed`."""
        return self.rewards_needed(_texts(pairs))

    def compare(self, pairs: Sequence[JudgedPair]) -> list[Judgement]:
        """See `Judge.compare`."""
        texts = _texts(pairs)
        rewards = np.array(self.rewards(texts)).reshape(-1, 2)
        shares = special.expit((rewards[:, 0] - rewards[:, 1]) / self._source.temperature)
        judged = []
        for place, share in enumerate(shares.tolist()):
            problem = next(filter(None, map(self.problem, texts[2 * place : 2 * place + 2])), "")
            judged.append(Judgement(None, None, problem) if problem else Judgement(share, share))
        return judged

    def reports(self) -> list[JudgeReport]:
        """See `Judge.reports`."""
        reasons = dict(Counter(self._problems.values()).most_common())
        counts: Mapping[str, Any] = {"requests": self._requests, "from_cache": 0, "failed": len(self._problems)}
        tokens: Mapping[str, Any] = {"input_tokens": 0, "output_tokens": 0, "cost": None}
        return [JudgeReport(name=self.name, reasons=reasons, position_bias=None, **counts, **tokens)]

    def close(self) -> None:
        """See `Judge.close`."""
        close = getattr(self._source, "close", None)
        if close is not None:
            close()

    def _missing(self, requests: Sequence[ScoreRequest]) -> dict[str, ScoreRequest]:
        return {key: each for each in requests if (key := self._key(each)) not in self._cache}

    def _key(self, request: ScoreRequest) -> str:
        text = {"prompt": request.prompt, "response": request.response, "template": dict(request.template)}
        return request_key(self.fingerprint, text)


def _texts(pairs: Sequence[JudgedPair]) -> list[ScoreRequest]:
    return [
        ScoreRequest(prompt=each.prompt, response=side, template=each.template)
        for each in pairs
        for side in (each.first, each.second)
    ]
