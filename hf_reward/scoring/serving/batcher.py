"""Responses of many requests -> batches for the one model: whatever waits goes next, and nobody waits for company.

An idle model takes a request at once. While it computes, others queue up, so the batches grow by themselves as the
load does, up to a budget of tokens. The oldest request always goes first, and those with the same beginning go with it,
because a shared prefix is computed once. A request of several batches gets one of them at a time, in turn. Knows
nothing of HTTP or of torch.
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
"""A reward, or why there is none."""


@dataclass(frozen=True)
class Ticket(Generic[RowType]):
    """One response in the queue."""

    row: RowType
    tokens: int
    """What it costs to compute alone."""
    kin: Hashable = None
    """The same for rows that begin alike, None for a row that is like no other."""


class QueueFullError(Exception):
    """There is no room at the moment."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"The queue is full; try again in {retry_after} seconds.")
        self.retry_after = retry_after


class RequestTooLargeError(ValueError):
    """A request that would not fit an empty queue."""


class BatchFailedError(RuntimeError):
    """The model raised an error at the batch that held some of the request's rows."""


class ClosedError(RuntimeError):
    """The batcher takes nothing more."""


@dataclass(frozen=True, kw_only=True)
class BatchReport:
    """What one call of the model was."""

    rows: int
    tokens: int
    """Tokens that were computed; beginnings that rows share count once."""
    seconds: float
    failed: bool


@dataclass(frozen=True, kw_only=True)
class QueueLimits:
    """How much is computed together, and how much may wait."""

    batch_tokens: int
    max_queue_tokens: int
    max_queue_rows: int


@dataclass(kw_only=True, eq=False)
class _Job(Generic[RowType]):
    """The rows of one request."""

    tickets: list[Ticket[RowType]]
    answer: asyncio.Future[list[Outcome]]
    outcomes: list[Outcome]
    missing: int
    """Rows without an outcome."""
    started: int = 0
    """Rows that were handed to the model."""


@dataclass(frozen=True, kw_only=True)
class _Part(Generic[RowType]):
    """The stretch of a job's rows that is in a batch."""

    job: _Job[RowType]
    start: int
    stop: int

    @property
    def tickets(self) -> list[Ticket[RowType]]:
        """The rows themselves."""
        return self.job.tickets[self.start : self.stop]


@dataclass(kw_only=True)
class _Batch(Generic[RowType]):
    """What is computed next."""

    room: int
    """Tokens that still fit."""
    parts: list[_Part[RowType]] = field(default_factory=list)
    tokens: int = 0
    last: Ticket[RowType] | None = None


class Batcher(Generic[RowType]):
    """A bounded queue before one model that is called from one thread."""

    def __init__(
        self,
        score: Callable[[list[RowType]], Sequence[Outcome]],
        limits: QueueLimits,
        *,
        shared: Callable[[RowType, RowType], int] = lambda one, other: 0,
        on_batch: Callable[[BatchReport], None] = lambda report: None,
    ) -> None:
        """Prepare a queue; nothing runs before the first request.

        Args:
            score: Gives each row a reward or a reason; called in a thread, never twice at once.
            limits: Sizes of batches and of the queue.
            shared: Tokens with which two rows both begin.
            on_batch: Told of each call of the model.
        """
        self._score = score
        self.limits = limits
        self._shared = shared
        self._on_batch = on_batch
        self._queue: deque[_Job[RowType]] = deque()
        self._wake = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._closing = False
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        # One thread too: tokenizers of transformers have a state that two threads would change under each other.
        self._encoder_thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        self._large_thread = ThreadPoolExecutor(1, thread_name_prefix="large-tokenizer")
        self._tokens_per_second = 0.0
        self.waiting_rows = 0
        self.waiting_tokens = 0
        self.failures_in_a_row = 0

    async def submit(
        self, encode: Callable[[], list[Ticket[RowType]]], rows: int, *, is_large: bool = False
    ) -> list[Outcome]:
        """Tokenise a request, queue it, and wait for its rewards. Cancelling drops what the model has not begun.

        Args:
            encode: Makes the rows; called in a thread. What it raises is raised here.
            rows: How many it makes.
            is_large: Whether that takes long: then it is done in another thread, where no small request waits for it.

        Returns:
            A reward or a reason for each row, in their order.

        Raises:
            QueueFullError: If there is no room now.
            RequestTooLargeError: If there never is.
            BatchFailedError: If the model failed at these rows.
            ClosedError: If the batcher is closing.
        """
        loop = asyncio.get_running_loop()
        self._require_room("rows", rows, self.waiting_rows, self.limits.max_queue_rows)
        self.waiting_rows += rows
        try:
            thread = self._large_thread if is_large else self._encoder_thread
            tickets = await loop.run_in_executor(thread, encode)
            self._require_room("tokens", _tokens(tickets), self.waiting_tokens, self.limits.max_queue_tokens)
        except BaseException:
            self.waiting_rows -= rows
            raise
        if not tickets:
            return []
        self.waiting_tokens += _tokens(tickets)
        job = _Job(tickets=tickets, answer=loop.create_future(), outcomes=[""] * rows, missing=rows)
        self._queue.append(job)
        self._start()
        try:
            return await job.answer
        finally:
            self._drop(job)

    async def close(self) -> None:
        """Take nothing more, finish what waits, and end the threads."""
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
        """Stop at a request that would not fit the empty queue.

        Args:
            unit: "rows" or "tokens".
            wanted: How many of them it has, so far as is known.

        Raises:
            RequestTooLargeError: If they are too many.
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
        """The rows of the next batch: the oldest and its kin, the next oldest and its kin, up to the budget."""
        families: dict[Hashable, list[_Job[RowType]]] = {}
        for job in self._queue:
            kin = job.tickets[job.started].kin
            families.setdefault(id(job) if kin is None else kin, []).append(job)
        batch: _Batch[RowType] = _Batch(room=self.limits.batch_tokens)
        for job in chain.from_iterable(families.values()):
            if not self._add(job, batch):
                break
        # A request that does not fit one batch goes to the end for its next: others need not wait for all of it.
        waiting = [job for job in self._queue if job.started < len(job.tickets)]
        served = {id(part.job) for part in batch.parts}
        self._queue = deque(sorted(waiting, key=lambda job: id(job) in served))
        return batch

    def _add(self, job: _Job[RowType], batch: _Batch[RowType]) -> bool:
        """Move a job's rows into a batch while there is room, at least one if the batch is empty; whether all went."""
        start = job.started
        for ticket in job.tickets[start:]:
            cost = ticket.tokens
            if batch.last is not None:
                cost -= self._shared(batch.last.row, ticket.row)
                if cost > batch.room:
                    break
            batch.room -= cost
            batch.tokens += cost
            batch.last = ticket
            job.started += 1
        if job.started > start:
            batch.parts.append(_Part(job=job, start=start, stop=job.started))
            self._leave(job.tickets[start : job.started])
        return job.started == len(job.tickets)

    async def _run(self, batch: _Batch[RowType]) -> None:
        tickets = [ticket for part in batch.parts for ticket in part.tickets]
        begin, failure = time.perf_counter(), ""
        try:
            rows = [ticket.row for ticket in tickets]
            outcomes = await asyncio.get_running_loop().run_in_executor(self._model_thread, self._score, rows)
            self._deliver(batch.parts, outcomes)
        except Exception as error:  # whatever it was, the next batch may be sound
            logger.exception("The model failed at a batch of %d rows, %d tokens.", len(tickets), batch.tokens)
            failure = f"The model failed ({type(error).__name__}) at a batch that held rows of this request."
        seconds = time.perf_counter() - begin
        if failure:
            self._fail(batch.parts, failure)
            self.failures_in_a_row += 1
        else:
            self.failures_in_a_row = 0
            self._tokens_per_second = _mixed(self._tokens_per_second, _tokens(tickets) / seconds)
        self._on_batch(BatchReport(rows=len(tickets), tokens=batch.tokens, seconds=seconds, failed=bool(failure)))

    def _deliver(self, parts: list[_Part[RowType]], outcomes: Sequence[Outcome]) -> None:
        wanted = sum(part.stop - part.start for part in parts)
        if len(outcomes) != wanted:
            raise RuntimeError(f"The model gave {len(outcomes)} rewards for {wanted} rows.")
        place = 0
        for part in parts:
            count = part.stop - part.start
            part.job.outcomes[part.start : part.stop] = outcomes[place : place + count]
            part.job.missing -= count
            place += count
            if not part.job.missing and not part.job.answer.done():
                part.job.answer.set_result(part.job.outcomes)

    def _fail(self, parts: list[_Part[RowType]], message: str) -> None:
        for part in parts:
            self._drop(part.job)  # the rest of such a request would be computed for nothing
            if not part.job.answer.done():
                part.job.answer.set_exception(BatchFailedError(message))

    def _drop(self, job: _Job[RowType]) -> None:
        """Take the rows that the model has not begun off the queue."""
        if job.started < len(job.tickets) and job in self._queue:
            self._queue.remove(job)
            self._leave(job.tickets[job.started :])

    def _leave(self, tickets: list[Ticket[RowType]]) -> None:
        self.waiting_rows -= len(tickets)
        self.waiting_tokens -= _tokens(tickets)


def _tokens(tickets: Sequence[Ticket[RowType]]) -> int:
    return sum(ticket.tokens for ticket in tickets)


def _mixed(before: float, now: float) -> float:
    """A running mean that follows the last ten or so."""
    return now if not before else 0.9 * before + 0.1 * now
