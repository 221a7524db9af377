"""Requests to one judge: rate limit, attempts, budget and counts."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from huggingface_hub.utils import tqdm

from hf_reward.data.interface import setting
from hf_reward.metrics.counts import counted
from hf_reward.scoring.judging.cache import AnswerCache, request_key
from hf_reward.scoring.judging.pairs import QUESTION, JudgedPair
from hf_reward.scoring.judging.protocols import Answer, AnswerError

_GIVE_UP = 20
"""Number of failed requests in a row after which a run stops: the judge is down, or every request is wrong."""


class JudgeError(ValueError):
    """A judge that cannot be used: it is not reachable, rejects all requests, or its settings are wrong."""


class BudgetError(JudgeError):
    """The requests exceed the budget."""


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """Settings of the requests to judges."""

    question: str = QUESTION
    """The criterion."""
    votes: int = 0
    """For chat judges: number of sampled answers for each order of the responses; 0 reads log-probabilities."""
    at_once: int = 8
    """Largest number of simultaneous requests."""
    requests_per_minute: float = 0.0
    """Rate limit; 0 for none."""
    budget: int | None = None
    """Largest number of requests of this run, repeated attempts included; None for no limit."""
    attempts: int = 5
    """Attempts for a request that fails for a temporary reason: no connection, a timeout, status 408, 429 or 5xx."""
    timeout: float = 120.0
    """Seconds to wait for an answer."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Fields to add to the body of each request, such as `{"chat_template_kwargs": {"enable_thinking": False}}`."""
    prices: tuple[float, float] | None = None
    """Price of a million input tokens and of a million output tokens."""

    def __post_init__(self) -> None:
        for name, least in (("votes", 0), ("at_once", 1), ("requests_per_minute", 0), ("attempts", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"`{setting(name)}` must be {least} or more, but is {getattr(self, name)}.")
        if self.budget is not None and self.budget < 0:
            raise ValueError(f"`{setting('budget')}` must be 0 or more, but is {self.budget}.")
        if not self.question.strip():
            raise ValueError(f"`{setting('question')}` must not be empty.")


class Ledger:
    """Count of all requests of a run, with its limit. Threads share it."""

    def __init__(self, budget: int | None = None) -> None:
        self.budget, self.sent = budget, 0
        self._guard = threading.Lock()

    def take(self) -> None:
        """Count a request before it is sent.

        Raises:
            BudgetError: If it would exceed the budget.
        """
        with self._guard:
            if self.budget is not None and self.sent >= self.budget:
                raise BudgetError(
                    f"Stopped after {counted(self.sent, 'request')}, the budget, because some had to be repeated. All "
                    f"answers are kept. Repeat with a larger `{setting('budget')}` to ask the rest."
                )
            self.sent += 1

    def require(self, needed: int) -> None:
        """Check the budget before a run.

        Args:
            needed: Number of requests.

        Raises:
            BudgetError: If they exceed the budget.
        """
        if self.budget is not None and needed > (left := self.budget - self.sent):
            raise BudgetError(
                f"This needs {counted(needed, 'request')}, but `{setting('budget')}` allows {left:,}. "
                "Nothing was sent. Raise the budget, or ask about fewer rows."
            )


class Endpoint(Protocol):
    """A judge that answers requests."""

    name: str
    fingerprint: dict[str, Any]
    """Properties that determine the answers, besides the body."""
    at_once: int

    def bodies(self, pair: JudgedPair) -> list[dict[str, Any]]:
        """Return the bodies of the requests for a pair in its order."""
        ...

    def ask(self, body: Mapping[str, Any], before: Callable[[], None]) -> Answer:
        """Send a request.

        Args:
            body: The body.
            before: Called before each attempt.

        Returns:
            The answer.

        Raises:
            AnswerError: If this request failed.
            JudgeError: If every request would fail.
        """
        ...


class Requests:
    """Requests to one endpoint, with a cache. Failed requests have no answer; a repeated run sends them again."""

    def __init__(self, endpoint: Endpoint, cache: AnswerCache, settings: JudgeSettings, ledger: Ledger) -> None:
        self.endpoint, self.ledger = endpoint, ledger
        self.from_cache = self.answered = 0
        self.failures: Counter[str] = Counter()
        """Reason -> number of requests."""
        self._cache = cache
        self._pace = _Pace(settings.requests_per_minute)
        self._failed_in_row = 0
        self._fatal: Exception | None = None
        """Error that stops all threads."""
        self._guard = threading.Lock()

    def key(self, body: Mapping[str, Any]) -> str:
        """Return the key of a request."""
        return request_key(self.endpoint.fingerprint, body)

    def missing(self, bodies: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
        """Return the distinct requests without an answer: key -> body."""
        found = {self.key(body): body for body in bodies}
        return {key: body for key, body in found.items() if key not in self._cache}

    def answers(self, bodies: Sequence[Mapping[str, Any]]) -> dict[str, Answer | str]:
        """Send the requests without an answer.

        Args:
            bodies: All requests.

        Returns:
            Key of each -> its answer, or the reason why it failed.

        Raises:
            BudgetError: If the requests exceed the budget; before the first is sent, except for repeated attempts.
            JudgeError: If the endpoint cannot be used.
        """
        missing = self.missing(bodies)
        self.ledger.require(len(missing))
        keys = {self.key(body) for body in bodies}
        self.from_cache += len(keys) - len(missing)
        failed = self._send(missing)
        return {key: failed[key] if key in failed else self._cache[key] for key in keys}

    def _send(self, missing: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        failed: dict[str, str] = {}
        self._fatal, self._failed_in_row = None, 0
        pool = ThreadPoolExecutor(self.endpoint.at_once)
        about = {"desc": f"Asking {self.endpoint.name}"[:60], "unit": "request", "disable": None, "delay": 2}
        try:
            with tqdm(total=len(missing), leave=False, **about) as bar:
                for key, problem in pool.map(self._ask, missing.items()):
                    if problem:
                        failed[key] = problem
                    bar.update(1)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        self.answered += len(missing) - len(failed)
        self.failures.update(failed.values())
        return failed

    def _ask(self, item: tuple[str, Mapping[str, Any]]) -> tuple[str, str]:
        key, body = item
        try:
            self._cache.add(key, self.endpoint.ask(body, self._before))
        except AnswerError as error:
            self._count_failure(error)
            return key, str(error)
        except Exception as error:
            self._fatal = error
            raise
        with self._guard:
            self._failed_in_row = 0
        return key, ""

    def _count_failure(self, error: AnswerError) -> None:
        with self._guard:
            self._failed_in_row += 1
            if self._failed_in_row >= _GIVE_UP:
                self._fatal = self._fatal or JudgeError(
                    f"{self.endpoint.name}: {self._failed_in_row} requests in a row failed; the last one: {error}. All "
                    "answers so far are kept."
                )
                raise self._fatal from error

    def _before(self) -> None:
        if self._fatal is not None:
            raise self._fatal
        self.ledger.take()
        self._pace.wait()


class _Pace:
    """Rate limit for several threads: requests are evenly spaced."""

    def __init__(self, per_minute: float) -> None:
        self._gap = 60 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._guard = threading.Lock()

    def wait(self) -> None:
        if not self._gap:
            return
        with self._guard:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + self._gap
        time.sleep(start - now)
