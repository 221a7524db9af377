"""Requests -> rewards, through the queue: what every endpoint does once its body is understood."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from starlette.requests import Request

from hf_reward.data.preference_row import common_prefix
from hf_reward.data.score_request import ScoreRequest
from hf_reward.modeling.reward_head import unwrap_model
from hf_reward.preprocessing.response_encoding import EncodedResponse
from hf_reward.preprocessing.text_limits import UNLIMITED_TOKENS, request_characters
from hf_reward.scoring.reward_scorer import RewardScorer
from hf_reward.scoring.serving.batcher import (
    Batcher,
    BatchFailedError,
    ClosedError,
    Outcome,
    QueueFullError,
    QueueLimits,
    RequestTooLargeError,
    Ticket,
)
from hf_reward.scoring.serving.errors import ApiError, unscorable
from hf_reward.scoring.serving.metrics import Metrics
from hf_reward.scoring.serving.settings import ServerSettings

_UNWELL_AFTER = 3
"""Batches that fail in a row before the server says that it is unwell: a broken CUDA context does not mend itself."""

_KIN_TOKENS = 64
"""Texts whose first tokens are the same go into one batch, if they can: most probably they share the whole prompt, and
a shorter one is not worth waiting for. It must reach past what a chat template puts in front of every prompt."""

_LEAST_LIMIT = 16_384
"""Tokens that models without `max_length` take at least: rotary positions may be read beyond those of training."""
_LARGE_CHARACTERS = 64 * 2**10
"""Characters of a request, each prompt as often as it is tokenised, above which small ones do not wait for it."""
_PART_CHARACTERS = 2**20

Result = TypeVar("Result")


@dataclass(frozen=True)
class Scored:
    """What the rows of a request got."""

    rewards: list[float]
    tokens: int
    """Tokens of all rows, each with its prompt."""


class UnscorableError(ValueError):
    """Rows without a reward: place -> reason."""

    def __init__(self, problems: dict[int, str], total: int, *, is_too_large: bool = False) -> None:
        super().__init__(f"{len(problems)} of {total} rows cannot be scored.")
        self.problems, self.total, self.is_too_large = problems, total, is_too_large


class RewardService:
    """A scorer behind its queue."""

    def __init__(self, scorer: RewardScorer, settings: ServerSettings) -> None:
        """Take a scorer.

        Args:
            scorer: Called from the service's own threads only.
            settings: Sizes of batches and of the queue, and the model's name.
        """
        self.scorer = scorer
        folder = Path(scorer.name)  # whose place on this machine is nobody's business
        self.name = settings.served_model_name or (folder.resolve().name if folder.is_dir() else scorer.name)
        config = unwrap_model(scorer.model).config
        self.label = (getattr(config, "id2label", None) or {}).get(0)
        # Without `max_length`, one text of the largest size would keep the model busy for hours.
        made_for = getattr(config.get_text_config(), "max_position_embeddings", None) or 0
        most = min(max(made_for, _LEAST_LIMIT), UNLIMITED_TOKENS)
        self._encoder, self._large_encoder = (replace(scorer.copy_encoder(), max_tokens=most) for _ in range(2))
        self._most_tokens = self._encoder.rule.max_length or most
        self.metrics = Metrics()
        limits = QueueLimits(
            batch_tokens=settings.batch_tokens or scorer.batch_tokens,
            max_queue_tokens=settings.max_queue_tokens,
            max_queue_rows=settings.max_queue_rows,
        )
        self.batcher: Batcher[EncodedResponse] = Batcher(
            self._compute, limits, shared=_shared_tokens, on_batch=self.metrics.count_batch
        )
        self.metrics.watch(self.batcher)

    @property
    def is_well(self) -> bool:
        """Whether the model still answers."""
        return self.batcher.failures_in_a_row < _UNWELL_AFTER

    async def score(self, requests: Sequence[ScoreRequest], *, allow_empty: bool) -> Scored:
        """Score requests.

        Args:
            requests: What to score.
            allow_empty: Whether responses may be empty.

        Returns:
            Their rewards.

        Raises:
            UnscorableError: If one of them has no reward.
            ApiError: If the queue or the model cannot take them.
        """
        is_large = sum(map(request_characters, requests)) > _LARGE_CHARACTERS
        encoder = self._large_encoder if is_large else self._encoder

        def encode() -> Iterator[list[EncodedResponse]]:
            for part in _parts(requests):
                yield encoder.encode(part, allow_empty=allow_empty)

        return await self._score(encode, len(requests), is_large)

    async def score_token_ids(self, sequences: Sequence[list[int]]) -> Scored:
        """Score sequences of token ids as they are; none may be longer than the texts that the model reads.

        Args:
            sequences: The ids.

        Returns:
            Their rewards.

        Raises:
            UnscorableError: If one of them has no reward.
            ApiError: If the queue or the model cannot take them.
        """
        limit = self._most_tokens
        is_large = sum(map(len, sequences)) > _LARGE_CHARACTERS
        return await self._score(lambda: [[_checked(ids, limit) for ids in sequences]], len(sequences), is_large)

    async def _score(self, encode: Callable[[], Iterable[list[EncodedResponse]]], rows: int, is_large: bool) -> Scored:
        tokens = 0

        def tickets() -> list[Ticket[EncodedResponse]]:
            nonlocal tokens
            encoded: list[EncodedResponse] = []
            for part in encode():
                encoded += part
                tokens += sum(len(each.input_ids) for each in part)
                self.batcher.require_possible("tokens", tokens)
            problems = {place: each.public_problem for place, each in enumerate(encoded) if each.problem}
            if problems:
                raise UnscorableError(problems, rows, is_too_large=any(each.is_too_large for each in encoded))
            self.metrics.truncated.inc(sum(each.cut_tokens > 0 for each in encoded))
            return [Ticket(each, len(each.input_ids), tuple(each.input_ids[:_KIN_TOKENS])) for each in encoded]

        outcomes = await _explained(self.batcher.submit(tickets, rows, is_large=is_large))
        problems = {place: each for place, each in enumerate(outcomes) if isinstance(each, str)}
        if problems:
            raise UnscorableError(problems, rows)
        return Scored([float(each) for each in outcomes], tokens)

    def _compute(self, rows: list[EncodedResponse]) -> list[Outcome]:
        try:
            result = self.scorer.score_encoded(rows, show_progress=False)
        except torch.OutOfMemoryError:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            raise
        rewards = result.rewards.tolist()
        return [result.problems[place] if place in result.problems else rewards[place] for place in range(len(rows))]


def _parts(requests: Sequence[ScoreRequest]) -> Iterator[list[ScoreRequest]]:
    """Cut a request into parts that are tokenised at once: what a tokenizer holds takes many times its text."""
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
    """Token ids as the scorer takes them; it checks itself whether the model has such tokens."""
    if not ids:
        return EncodedResponse(problem="there are no token ids")
    if len(ids) > limit:
        problem = f"too long: {len(ids):,} token ids, and the model reads {limit:,}"
        return EncodedResponse(problem=problem, is_too_large=True)
    return EncodedResponse(input_ids=list(ids))


def _shared_tokens(one: EncodedResponse, other: EncodedResponse) -> int:
    """Tokens that are computed once for both; each has one of its own, at which its reward is read."""
    shared = len(common_prefix([one.input_ids, other.input_ids]))
    return min(shared, len(other.input_ids) - 1)


async def _explained(work: Coroutine[Any, Any, Result]) -> Result:
    """What the queue raises, as the answer that a client gets."""
    try:
        return await work
    except QueueFullError as error:
        raise ApiError(429, "queue_full", str(error), headers={"Retry-After": str(error.retry_after)}) from error
    except RequestTooLargeError as error:
        raise ApiError(413, "too_large", str(error)) from error
    except BatchFailedError as error:
        raise ApiError(500, "model_failed", f"{error} The server goes on; its log has the details.") from error
    except ClosedError as error:
        raise ApiError(503, "shutting_down", str(error)) from error


async def unless_client_leaves(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Await something, and cancel it if the client hangs up.

    Args:
        request: A request whose body was read.
        work: What answers it.

    Returns:
        What the work returns.

    Raises:
        ApiError: If the client left, which nobody will read.
    """
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(499, "client_gone", "The client left before the answer.")
    finally:
        task.cancel()
        watch.cancel()


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def by_row(error: UnscorableError, sizes: Sequence[int] | None = None) -> ApiError:
    """Name the rows of a body that have no reward.

    Args:
        error: Places among all requests of the body.
        sizes: Requests of each of the body's items; None where the places are those of the body.

    Returns:
        The answer.
    """
    where: list[dict[str, int]] = [{"index": place} for place in range(error.total)]
    if sizes is not None:
        inner = [[{"response": place} if size > 1 else {} for place in range(size)] for size in sizes]
        where = [{"index": item, **each} for item, places in enumerate(inner) for each in places]
    rows = [{**where[place], "reason": reason} for place, reason in sorted(error.problems.items())]
    return unscorable(rows, error.total, is_too_large=error.is_too_large)
