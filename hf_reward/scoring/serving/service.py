"""Score parsed requests through the queue; shared by all endpoints."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from starlette.requests import Request

from hf_reward.data.preference_row import common_prefix
from hf_reward.data.score_request import ScoreRequest
from hf_reward.metrics.counts import counted
from hf_reward.modeling.reward_head import unwrap_model
from hf_reward.preprocessing.rendered_turns import FormattedTexts
from hf_reward.preprocessing.response_encoding import EncodedResponse
from hf_reward.preprocessing.text_limits import UNLIMITED_TOKENS, request_characters
from hf_reward.scoring.reward_scorer import RewardScorer
from hf_reward.scoring.serving.batcher import (
    Batcher,
    BatchFailedError,
    ClosedError,
    Outcome,
    QueuedRow,
    QueueFullError,
    QueueLimits,
    RequestTooLargeError,
)
from hf_reward.scoring.serving.errors import ApiError, unscorable
from hf_reward.scoring.serving.metrics import Metrics, ModelMetrics
from hf_reward.scoring.serving.settings import ServerSettings

_UNWELL_AFTER = 3
"""Consecutive failed batches after which `/health` reports a failure: a broken CUDA context does not recover."""

_PREFIX_KEY_TOKENS = 64
"""Texts with the same first tokens are batched together, because they probably share the prompt. Must exceed the
tokens that a chat template puts in front of every prompt."""

_LEAST_LIMIT = 16_384
"""Lowest limit in tokens for models without `max_length`: rotary positions work beyond the trained length."""
_LARGE_CHARACTERS = 64 * 2**10
"""Characters of a request, prompts counted once per response, above which it is tokenised in a separate thread."""
_PART_CHARACTERS = 2**20

Result = TypeVar("Result")


@dataclass(frozen=True)
class Scored:
    """Rewards of one request."""

    rewards: list[float]
    row_tokens: list[int]
    """Tokens of each row, including its prompt."""

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(self.row_tokens)


def default_name(scorer: RewardScorer) -> str:
    """Return the name of a model in answers: the Hub id, or the folder without its path."""
    folder = Path(scorer.name)
    return folder.resolve().name if folder.is_dir() else scorer.name


class UnscorableError(ValueError):
    """Some rows have no reward; `problems` maps their positions to reasons."""

    def __init__(self, problems: dict[int, str], total: int, *, is_too_large: bool = False) -> None:
        super().__init__(f"{len(problems)} of {counted(total, 'row')} cannot be scored.")
        self.problems, self.total, self.is_too_large = problems, total, is_too_large


class RewardService:
    """A scorer behind a queue."""

    def __init__(
        self,
        scorer: RewardScorer,
        settings: ServerSettings,
        *,
        name: str | None = None,
        metrics: ModelMetrics | None = None,
        turn: AbstractContextManager[Any] | None = None,
    ) -> None:
        """Create the queue for a scorer.

        Args:
            scorer: The scorer. From now on only the service's threads may call it.
            settings: Limits of a batch and of the queue, and the model's name.
            name: Name of the model in answers; by default that of the settings, or the Hub id or the folder's name.
            metrics: Metrics of this model; by default of a registry of their own.
            turn: Held during a batch.
        """
        self.scorer = scorer
        self.name = name or settings.served_model_name or default_name(scorer)
        self._turn = turn or threading.Lock()
        config = unwrap_model(scorer.model).config
        self.label = (getattr(config, "id2label", None) or {}).get(0)
        # Without `max_length`, a single text of the largest body size would occupy the model for hours.
        made_for = getattr(config.get_text_config(), "max_position_embeddings", None) or 0
        most = min(max(made_for, _LEAST_LIMIT), UNLIMITED_TOKENS)
        self._encoder, self._large_encoder = (replace(scorer.copy_encoder(), max_tokens=most) for _ in range(2))
        self._most_tokens = self._encoder.rule.max_length or most
        self.texts = FormattedTexts(self._encoder.copy().tokenizer)
        self.metrics = metrics or Metrics().of_model(self.name)
        limits = QueueLimits(
            batch_tokens=settings.batch_tokens or scorer.batch_tokens,
            max_queue_tokens=settings.max_queue_tokens,
            max_queue_rows=settings.max_queue_rows,
        )
        self.batcher: Batcher[EncodedResponse] = Batcher(
            self._compute, limits, shared_tokens=_shared_tokens, on_batch=self.metrics.count_batch
        )

    @property
    def is_well(self) -> bool:
        """Whether the last batches did not all fail."""
        return self.batcher.failures_in_a_row < _UNWELL_AFTER

    async def score(self, requests: Sequence[ScoreRequest], *, allow_empty: bool) -> Scored:
        """Score requests.

        Args:
            requests: The requests.
            allow_empty: Whether responses may be empty.

        Returns:
            Their rewards.

        Raises:
            UnscorableError: If a request has no reward.
            ApiError: If the queue is full or closed, the requests exceed it, or the model fails.
        """
        is_large = sum(map(request_characters, requests)) > _LARGE_CHARACTERS
        encoder = self._large_encoder if is_large else self._encoder

        def encode() -> Iterator[list[EncodedResponse]]:
            for part in _parts(requests):
                yield encoder.encode(part, allow_empty=allow_empty)

        return await self._score(encode, len(requests), is_large)

    async def score_token_ids(self, sequences: Sequence[list[int]]) -> Scored:
        """Score sequences of token ids without changing them.

        Args:
            sequences: The ids. No sequence may exceed the model's length limit.

        Returns:
            Their rewards.

        Raises:
            UnscorableError: If a sequence has no reward.
            ApiError: If the queue is full or closed, the sequences exceed it, or the model fails.
        """
        limit = self._most_tokens
        is_large = sum(map(len, sequences)) > _LARGE_CHARACTERS
        return await self._score(lambda: [[_checked(ids, limit) for ids in sequences]], len(sequences), is_large)

    async def _score(self, encode: Callable[[], Iterable[list[EncodedResponse]]], rows: int, is_large: bool) -> Scored:
        tokens: list[int] = []

        def queued_rows() -> list[QueuedRow[EncodedResponse]]:
            encoded: list[EncodedResponse] = []
            for part in encode():
                encoded += part
                tokens.extend(len(each.input_ids) for each in part)
                self.batcher.require_possible("tokens", sum(tokens))
            problems = {place: each.public_problem for place, each in enumerate(encoded) if each.problem}
            if problems:
                raise UnscorableError(problems, rows, is_too_large=any(each.is_too_large for each in encoded))
            self.metrics.truncated.inc(sum(each.cut_tokens > 0 for each in encoded))
            return [
                QueuedRow(each, len(each.input_ids), tuple(each.input_ids[:_PREFIX_KEY_TOKENS])) for each in encoded
            ]

        outcomes = await _as_api_errors(self.batcher.submit(queued_rows, rows, is_large=is_large))
        problems = {place: each for place, each in enumerate(outcomes) if isinstance(each, str)}
        if problems:
            raise UnscorableError(problems, rows)
        return Scored([float(each) for each in outcomes], tokens)

    def _compute(self, rows: list[EncodedResponse]) -> list[Outcome]:
        try:
            with self._turn:
                result = self.scorer.score_encoded(rows, show_progress=False)
        except torch.OutOfMemoryError:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            raise
        rewards = result.rewards.tolist()
        return [result.problems[place] if place in result.problems else rewards[place] for place in range(len(rows))]


def _parts(requests: Sequence[ScoreRequest]) -> Iterator[list[ScoreRequest]]:
    """Split requests into parts that are tokenised one by one: a tokenizer needs many times the memory of its text."""
    part, size = [], 0
    for request in requests:
        if part and size > _PART_CHARACTERS:
            yield part
            part, size = [], 0
        part.append(request)
        size += request_characters(request)
    if part:
        yield part


def _checked(ids: list[int], limit: int) -> EncodedResponse:
    """Check the number of token ids. The scorer checks their values."""
    if not ids:
        return EncodedResponse(problem="there are no token ids")
    if len(ids) > limit:
        problem = f"too long: {len(ids):,} token ids, and the model takes at most {limit:,}"
        return EncodedResponse(problem=problem, is_too_large=True)
    return EncodedResponse(input_ids=list(ids))


def _shared_tokens(one: EncodedResponse, other: EncodedResponse) -> int:
    """Length of the common prefix; the reward is read at a token of the response, so one token stays separate."""
    shared = len(common_prefix([one.input_ids, other.input_ids]))
    return min(shared, len(other.input_ids) - 1)


async def _as_api_errors(work: Coroutine[Any, Any, Result]) -> Result:
    """Turn exceptions of the queue into API errors."""
    try:
        return await work
    except QueueFullError as error:
        raise ApiError(429, "queue_full", str(error), headers={"Retry-After": str(error.retry_after)}) from error
    except RequestTooLargeError as error:
        raise ApiError(413, "too_large", str(error)) from error
    except BatchFailedError as error:
        raise ApiError(500, "model_failed", f"{error} The server keeps running; its log has the details.") from error
    except ClosedError as error:
        raise ApiError(503, "shutting_down", str(error)) from error


async def unless_client_leaves(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Await a coroutine and cancel it if the client disconnects.

    Args:
        request: A request whose body was read.
        work: The coroutine that computes the answer.

    Returns:
        The result of the coroutine.

    Raises:
        ApiError: If the client disconnected. The error appears in the metrics only.
    """
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(499, "client_gone", "The client disconnected before the response.")
    finally:
        task.cancel()
        watch.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def by_row(error: UnscorableError, sizes: Sequence[int] | None = None) -> ApiError:
    """Return an API error that lists the rows of a body without a reward.

    Args:
        error: The error, with positions among all requests of the body.
        sizes: Number of requests in each item of the body; None if the positions are already those of the body.

    Returns:
        The API error.
    """
    where: list[dict[str, int]] = [{"index": place} for place in range(error.total)]
    if sizes is not None:
        inner = [[{"response": place} if size > 1 else {} for place in range(size)] for size in sizes]
        where = [{"index": item, **each} for item, places in enumerate(inner) for each in places]
    rows = [{**where[place], "reason": reason} for place, reason in sorted(error.problems.items())]
    return unscorable(rows, error.total, is_too_large=error.is_too_large)
