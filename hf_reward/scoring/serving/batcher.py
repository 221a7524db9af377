"""Continuous batching: a bounded queue of requests, and batches for one model.

An idle model takes a request at once. While it computes, new requests queue up, so batches grow with the load, up to a
token budget. The oldest request goes first, together with requests that have the same prefix key, because a shared
prefix is computed once. If several requests need more than one batch, their batches alternate. The module depends on
neither HTTP nor torch.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

RowType = TypeVar("RowType")

Outcome = float | str
"""A reward, or the reason why there is none."""


@dataclass(frozen=True)
class QueuedRow(Generic[RowType]):
    """One response in the queue."""

    row: RowType
    tokens: int
    """Tokens to compute if the row is scored alone."""
    prefix_key: Hashable = None
    """Equal for rows that share a prefix; None for a row without one."""


class QueueFullError(Exception):
    """The queue has no room at the moment."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"The queue is full; try again in {retry_after} seconds.")
        self.retry_after = retry_after


class RequestTooLargeError(ValueError):
    """The request does not fit even an empty queue."""


class BatchFailedError(RuntimeError):
    """The model raised an error on a batch that contained rows of the request."""


class ClosedError(RuntimeError):
    """The batcher is closed and accepts no requests."""


@dataclass(frozen=True, kw_only=True)
class BatchReport:
    """Size and duration of one model call."""

    rows: int
    tokens: int
    """Computed tokens; a shared prefix counts once."""
    seconds: float
    failed: bool


@dataclass(frozen=True, kw_only=True)
class QueueLimits:
    """Limits of a batch and of the queue."""

    batch_tokens: int
    max_queue_tokens: int
    max_queue_rows: int


@dataclass(kw_only=True, eq=False)
class _QueuedRequest(Generic[RowType]):
    """The rows of one request and their outcomes."""

    rows: list[QueuedRow[RowType]]
    answer: asyncio.Future[list[Outcome]]
    outcomes: list[Outcome]
    missing: int
    """Number of rows without an outcome."""
    started: int = 0
    """Number of rows that were passed to the model."""


@dataclass(frozen=True, kw_only=True)
class _Part(Generic[RowType]):
    """The range of a request's rows that is in a batch."""

    request: _QueuedRequest[RowType]
    start: int
    stop: int

    @property
    def rows(self) -> list[QueuedRow[RowType]]:
        """The rows in this range."""
        return self.request.rows[self.start : self.stop]


@dataclass(kw_only=True)
class _Batch(Generic[RowType]):
    """The next batch."""

    room: int
    """Number of tokens that still fit."""
    parts: list[_Part[RowType]] = field(default_factory=list)
    tokens: int = 0
    last: QueuedRow[RowType] | None = None


class Batcher(Generic[RowType]):
    """A bounded queue in front of one model that is called from one thread."""

    def __init__(
        self,
        score: Callable[[list[RowType]], Sequence[Outcome]],
        limits: QueueLimits,
        *,
        shared_tokens: Callable[[RowType, RowType], int] = lambda one, other: 0,
        on_batch: Callable[[BatchReport], None] = lambda report: None,
        on_queue: Callable[[int, int], None] = lambda rows, tokens: None,
    ) -> None:
        """Create an empty queue. The worker starts with the first request.

        Args:
            score: Returns a reward or a reason for each row. It is called in a thread, one call at a time.
            limits: Limits of a batch and of the queue.
            shared_tokens: Returns the length of the common prefix of two rows, in tokens.
            on_batch: Called with a report after each model call.
            on_queue: Called with the rows and tokens in the queue when they change.
        """
        self._score = score
        self.limits = limits
        self._shared_tokens = shared_tokens
        self._on_batch = on_batch
        self.on_queue = on_queue
        self._queue: deque[_QueuedRequest[RowType]] = deque()
        self._wake = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._closing = False
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        # One thread each: transformers tokenizers hold mutable state that concurrent calls would corrupt.
        self._encoder_thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        self._large_thread = ThreadPoolExecutor(1, thread_name_prefix="large-tokenizer")
        self._tokens_per_second = 0.0
        self.waiting_rows = 0
        self.waiting_tokens = 0
        self.failures_in_a_row = 0

    async def submit(
        self, encode: Callable[[], list[QueuedRow[RowType]]], count: int, *, is_large: bool = False
    ) -> list[Outcome]:
        """Tokenise a request, queue it and wait for its rewards. Cancelling drops the rows that have not started.

        Args:
            encode: Returns the tokenised rows. It is called in a thread, and its exceptions are raised here.
            count: Number of rows that `encode` returns.
            is_large: Tokenise in a separate thread, so that small requests do not wait for this one.

        Returns:
            A reward or a reason for each row, in the order of the rows.

        Raises:
            QueueFullError: If the queue has no room now.
            RequestTooLargeError: If the request does not fit even an empty queue.
            BatchFailedError: If the model failed on these rows.
            ClosedError: If the batcher is closing.
        """
        loop = asyncio.get_running_loop()
        self._require_room("rows", count, self.waiting_rows, self.limits.max_queue_rows)
        self._count(count, 0)
        try:
            thread = self._large_thread if is_large else self._encoder_thread
            rows = await loop.run_in_executor(thread, encode)
            self._require_room("tokens", _tokens(rows), self.waiting_tokens, self.limits.max_queue_tokens)
        except BaseException:
            self._count(-count, 0)
            raise
        if not rows:
            return []
        self._count(0, _tokens(rows))
        request = _QueuedRequest(rows=rows, answer=loop.create_future(), outcomes=[""] * count, missing=count)
        self._queue.append(request)
        self._start()
        try:
            return await request.answer
        finally:
            self._drop(request)

    async def close(self) -> None:
        """Accept no more requests, finish those in the queue and stop the threads."""
        self._closing = True
        self._wake.set()
        if self._worker is not None:
            await self._worker
        self._encoder_thread.shutdown()
        self._large_thread.shutdown()
        self._model_thread.shutdown()

    def _require_room(self, unit: str, wanted: int, waiting: int, limit: int) -> None:
        if self._closing:
            raise ClosedError("The server is shutting down.")
        self.require_possible(unit, wanted)
        if waiting + wanted > limit:
            seconds = self.waiting_tokens / self._tokens_per_second if self._tokens_per_second else 1
            raise QueueFullError(min(60, max(1, math.ceil(seconds))))

    def require_possible(self, unit: str, wanted: int) -> None:
        """Raise an error if a request does not fit even an empty queue.

        Args:
            unit: "rows" or "tokens".
            wanted: Number of rows or tokens of the request that are known so far.

        Raises:
            RequestTooLargeError: If the number exceeds the limit of the queue.
        """
        limit = self.limits.max_queue_rows if unit == "rows" else self.limits.max_queue_tokens
        if wanted > limit:
            raise RequestTooLargeError(
                f"The request has {wanted} {unit}, and the queue holds {limit} (`--max-queue-{unit}`). "
                "Send fewer rows at a time."
            )

    def _start(self) -> None:
        self._wake.set()
        if self._worker is None:
            self._worker = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        while self._queue or not self._closing:
            if not self._queue:
                self._wake.clear()
                await self._wake.wait()
                continue
            await self._run(self._take())

    def _take(self) -> _Batch[RowType]:
        """Return the next batch: groups of requests with the same prefix key, oldest first, up to the token budget."""
        groups: dict[Hashable, list[_QueuedRequest[RowType]]] = {}
        for request in self._queue:
            key = request.rows[request.started].prefix_key
            groups.setdefault(id(request) if key is None else key, []).append(request)
        batch: _Batch[RowType] = _Batch(room=self.limits.batch_tokens)
        for request in chain.from_iterable(groups.values()):
            if not self._add(request, batch):
                break
        # A request that needs several batches moves to the end of the queue, so that the others get their turn.
        waiting = [request for request in self._queue if request.started < len(request.rows)]
        served = {id(part.request) for part in batch.parts}
        self._queue = deque(sorted(waiting, key=lambda request: id(request) in served))
        return batch

    def _add(self, request: _QueuedRequest[RowType], batch: _Batch[RowType]) -> bool:
        """Add rows of a request to a batch while they fit, at least one to an empty batch; return whether all fit."""
        start = request.started
        for row in request.rows[start:]:
            cost = row.tokens
            if batch.last is not None:
                cost -= self._shared_tokens(batch.last.row, row.row)
                if cost > batch.room:
                    break
            batch.room -= cost
            batch.tokens += cost
            batch.last = row
            request.started += 1
        if request.started > start:
            batch.parts.append(_Part(request=request, start=start, stop=request.started))
            self._leave(request.rows[start : request.started])
        return request.started == len(request.rows)

    async def _run(self, batch: _Batch[RowType]) -> None:
        rows = [row for part in batch.parts for row in part.rows]
        begin, failure = time.perf_counter(), ""
        try:
            loop = asyncio.get_running_loop()
            outcomes = await loop.run_in_executor(self._model_thread, self._score, [row.row for row in rows])
            self._deliver(batch.parts, outcomes)
        except Exception as error:  # the next batch may succeed, whatever the error
            logger.exception("The model failed on a batch of %d rows, %d tokens.", len(rows), batch.tokens)
            failure = f"The model failed ({type(error).__name__}) on a batch that contained rows of this request."
        seconds = time.perf_counter() - begin
        if failure:
            self._fail(batch.parts, failure)
            self.failures_in_a_row += 1
        else:
            self.failures_in_a_row = 0
            self._tokens_per_second = _moving_average(self._tokens_per_second, _tokens(rows) / seconds)
        self._on_batch(BatchReport(rows=len(rows), tokens=batch.tokens, seconds=seconds, failed=bool(failure)))

    def _deliver(self, parts: list[_Part[RowType]], outcomes: Sequence[Outcome]) -> None:
        wanted = sum(part.stop - part.start for part in parts)
        if len(outcomes) != wanted:
            raise RuntimeError(f"The model returned {len(outcomes)} rewards for {wanted} rows.")
        place = 0
        for part in parts:
            count = part.stop - part.start
            request = part.request
            request.outcomes[part.start : part.stop] = outcomes[place : place + count]
            request.missing -= count
            place += count
            if not request.missing and not request.answer.done():
                request.answer.set_result(request.outcomes)

    def _fail(self, parts: list[_Part[RowType]], message: str) -> None:
        for part in parts:
            self._drop(part.request)  # its remaining rows would be computed for nothing
            if not part.request.answer.done():
                part.request.answer.set_exception(BatchFailedError(message))

    def _drop(self, request: _QueuedRequest[RowType]) -> None:
        """Remove the rows of a request that have not started from the queue."""
        if request.started < len(request.rows) and request in self._queue:
            self._queue.remove(request)
            self._leave(request.rows[request.started :])

    def _leave(self, rows: list[QueuedRow[RowType]]) -> None:
        self._count(-len(rows), -_tokens(rows))

    def _count(self, rows: int, tokens: int) -> None:
        self.waiting_rows += rows
        self.waiting_tokens += tokens
        self.on_queue(self.waiting_rows, self.waiting_tokens)


def _tokens(rows: Sequence[QueuedRow[RowType]]) -> int:
    return sum(row.tokens for row in rows)


def _moving_average(before: float, now: float) -> float:
    """Exponential moving average over about ten batches."""
    return now if not before else 0.9 * before + 0.1 * now
