"""The batcher: order, token budget, limits, cancellation, failures and closing, with a fake model."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from hf_reward.scoring.serving.batcher import (
    Batcher,
    BatchFailedError,
    BatchReport,
    ClosedError,
    QueuedRow,
    QueueFullError,
    QueueLimits,
    RequestTooLargeError,
)


class GatedModel:
    """Fake model: doubles the numbers of a batch once the gate is open; fails on batches with 13."""

    def __init__(self, is_open: bool = True) -> None:
        self.gate = threading.Event()
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        if is_open:
            self.gate.set()

    def __call__(self, rows: list[int]) -> list[float | str]:
        self.batches.append(list(rows))
        self.threads.add(threading.get_ident())
        assert self.gate.wait(10)
        if 13 in rows:
            raise RuntimeError("unlucky")
        return ["not a number" if row == 7 else 2.0 * row for row in rows]


def limits(batch_tokens: int = 100, max_queue_tokens: int = 1000, max_queue_rows: int = 1000) -> QueueLimits:
    return QueueLimits(batch_tokens=batch_tokens, max_queue_tokens=max_queue_tokens, max_queue_rows=max_queue_rows)


def queued(rows: list[int], tokens: int = 10) -> Callable[[], list[QueuedRow[int]]]:
    return lambda: [QueuedRow(row, tokens) for row in rows]


async def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "timed out"
        await asyncio.sleep(0.001)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


def test_an_idle_model_takes_a_request_at_once_and_a_busy_one_gathers_the_next_batch():
    async def test() -> None:
        model = GatedModel(is_open=False)
        batcher = Batcher(model, limits())
        asks = [asyncio.create_task(batcher.submit(queued([1]), 1))]
        await until(lambda: model.batches)  # else the first batch may hold more
        asks += [asyncio.create_task(batcher.submit(queued([row]), 1)) for row in range(2, 6)]
        await until(lambda: batcher.waiting_tokens == 40)
        model.gate.set()
        assert await asyncio.gather(*asks) == [[2.0], [4.0], [6.0], [8.0], [10.0]]
        assert model.batches == [[1], [2, 3, 4, 5]]
        assert len(model.threads) == 1
        assert (batcher.waiting_rows, batcher.waiting_tokens) == (0, 0)
        await batcher.close()

    run(test)


def test_batches_keep_order_and_budget_and_large_requests_are_split():
    async def test() -> None:
        model = GatedModel(is_open=False)
        batcher = Batcher(model, limits(batch_tokens=30))
        first = asyncio.create_task(batcher.submit(queued([1]), 1))
        await until(lambda: model.batches)
        large = asyncio.create_task(batcher.submit(queued([2, 3, 4, 5]), 4))
        await until(lambda: batcher.waiting_tokens == 40)
        small = asyncio.create_task(batcher.submit(queued([6], tokens=50), 1))
        last = asyncio.create_task(batcher.submit(queued([8]), 1))
        await until(lambda: batcher.waiting_rows == 6 and batcher.waiting_tokens == 100)
        model.gate.set()
        answers = await asyncio.gather(first, large, small, last)
        assert answers == [[2.0], [4.0, 6.0, 8.0, 10.0], [12.0], [16.0]]
        # Row 6 alone exceeds the budget and is a batch of its own; the rest of the large request waits its turn.
        assert model.batches == [[1], [2, 3, 4], [6], [8, 5]]
        await batcher.close()

    run(test)


def test_rows_with_the_same_prefix_key_share_a_batch_and_the_oldest_goes_first():
    async def test() -> None:
        model = GatedModel(is_open=False)
        reports: list[BatchReport] = []
        # Numbers with the same tens digit have the same prefix key and share 8 of their 10 tokens.
        batcher = Batcher(
            model,
            limits(batch_tokens=24),
            shared_tokens=lambda one, other: 8 if one // 10 == other // 10 else 0,
            on_batch=reports.append,
        )

        def ask(row: int) -> asyncio.Task[Any]:
            return asyncio.create_task(batcher.submit(lambda: [QueuedRow(row, 10, prefix_key=row // 10)], 1))

        first = ask(99)
        await until(lambda: model.batches)
        numbers = (11, 21, 31, 12, 22, 14, 32)
        asks = []
        for number in numbers:
            asks.append(ask(number))
            await until(lambda: batcher.waiting_tokens == 10 * len(asks))
        model.gate.set()
        assert await asyncio.gather(first, *asks) == [[198.0], *([2.0 * number] for number in numbers)]
        assert model.batches == [[99], [11, 12, 14, 21], [31, 32, 22]]
        assert [report.tokens for report in reports] == [10, 24, 22]
        await batcher.close()

    run(test)


def test_a_row_without_a_reward_does_not_affect_the_others():
    async def test() -> None:
        batcher = Batcher(GatedModel(), limits())
        assert await batcher.submit(queued([1, 7, 2]), 3) == [2.0, "not a number", 4.0]
        assert await batcher.submit(queued([]), 0) == []
        await batcher.close()

    run(test)


def test_a_full_queue_rejects_requests_and_recovers():
    async def test() -> None:
        model = GatedModel(is_open=False)
        batcher = Batcher(model, limits(max_queue_tokens=25, max_queue_rows=3))
        running = asyncio.create_task(batcher.submit(queued([1]), 1))
        await until(lambda: model.batches)
        waiting = asyncio.create_task(batcher.submit(queued([2, 3]), 2))
        await until(lambda: batcher.waiting_tokens == 20)
        with pytest.raises(QueueFullError) as rejected:
            await batcher.submit(queued([4]), 1)  # too many tokens
        assert rejected.value.retry_after >= 1
        with pytest.raises(QueueFullError):
            await batcher.submit(queued([4, 5], tokens=1), 2)  # too many rows
        with pytest.raises(RequestTooLargeError, match=r"30 tokens, and the queue holds 25 \(`--max-queue-tokens`\)"):
            await batcher.submit(queued([4], tokens=30), 1)
        with pytest.raises(RequestTooLargeError, match="4 rows, and the queue holds 3"):
            await batcher.submit(queued([1, 2, 3, 4]), 4)
        assert (batcher.waiting_rows, batcher.waiting_tokens) == (2, 20)
        model.gate.set()
        assert await asyncio.gather(running, waiting) == [[2.0], [4.0, 6.0]]
        assert await batcher.submit(queued([4]), 1) == [8.0]
        await batcher.close()

    run(test)


def test_rows_count_against_the_queue_while_they_are_tokenised():
    async def test() -> None:
        gate = threading.Event()

        def slow() -> list[QueuedRow[int]]:
            assert gate.wait(10)
            return [QueuedRow(1, 1)]

        batcher = Batcher(GatedModel(), limits(max_queue_rows=2))
        asks = [asyncio.create_task(batcher.submit(slow, 1)) for _ in range(2)]
        await until(lambda: batcher.waiting_rows == 2)
        with pytest.raises(QueueFullError):
            await batcher.submit(queued([1]), 1)
        gate.set()
        assert await asyncio.gather(*asks) == [[2.0], [2.0]]
        await batcher.close()

    run(test)


def test_tokenisation_errors_are_raised_and_free_the_queue():
    async def test() -> None:
        def broken() -> list[QueuedRow[int]]:
            raise KeyError("template")

        batcher = Batcher(GatedModel(), limits())
        with pytest.raises(KeyError):
            await batcher.submit(broken, 5)
        assert batcher.waiting_rows == 0
        assert await batcher.submit(queued([1]), 1) == [2.0]
        await batcher.close()

    run(test)


def test_a_cancelled_request_is_not_computed():
    async def test() -> None:
        model = GatedModel(is_open=False)
        batcher = Batcher(model, limits(batch_tokens=20))
        running = asyncio.create_task(batcher.submit(queued([1]), 1))
        await until(lambda: model.batches)
        gone = asyncio.create_task(batcher.submit(queued([2, 3, 4]), 3))
        stays = asyncio.create_task(batcher.submit(queued([5]), 1))
        await until(lambda: batcher.waiting_tokens == 40)
        gone.cancel()
        await until(gone.done)
        assert (batcher.waiting_rows, batcher.waiting_tokens) == (1, 10)
        model.gate.set()
        assert await asyncio.gather(running, stays) == [[2.0], [10.0]]
        assert model.batches == [[1], [5]]
        await batcher.close()

    run(test)


def test_a_partly_computed_request_that_is_cancelled_frees_its_remaining_rows():
    async def test() -> None:
        model = GatedModel(is_open=False)
        batcher = Batcher(model, limits(batch_tokens=20))
        gone = asyncio.create_task(batcher.submit(queued([1, 2, 3]), 3))
        await until(lambda: model.batches)
        gone.cancel()
        await until(gone.done)
        model.gate.set()
        assert await batcher.submit(queued([5]), 1) == [10.0]
        assert model.batches == [[1, 2], [5]]
        await batcher.close()

    run(test)


def test_a_model_error_fails_only_its_batch():
    async def test() -> None:
        model = GatedModel(is_open=False)
        reports: list[BatchReport] = []
        batcher = Batcher(model, limits(batch_tokens=20), on_batch=reports.append)
        running = asyncio.create_task(batcher.submit(queued([1]), 1))
        await until(lambda: model.batches)
        asks = [asyncio.create_task(batcher.submit(queued(rows), len(rows))) for rows in ([13], [2], [3], [13, 4, 5])]
        await until(lambda: batcher.waiting_rows == 6 and batcher.waiting_tokens == 60)
        model.gate.set()
        found = await asyncio.gather(running, *asks, return_exceptions=True)
        assert found[0] == [2.0]
        assert isinstance(found[1], BatchFailedError)
        assert isinstance(found[2], BatchFailedError)  # it shared the batch
        assert isinstance(found[3], BatchFailedError)  # so did this
        assert isinstance(found[4], BatchFailedError)  # and the rest of the last one is not computed
        assert model.batches == [[1], [13, 2], [3, 13]]
        assert batcher.failures_in_a_row == 2
        assert await batcher.submit(queued([6]), 1) == [12.0]
        assert batcher.failures_in_a_row == 0
        assert [report.failed for report in reports] == [False, True, True, False]
        assert (batcher.waiting_rows, batcher.waiting_tokens) == (0, 0)
        await batcher.close()

    run(test)


def test_a_missing_reward_is_a_model_error():
    async def test() -> None:
        batcher = Batcher(lambda rows: [1.0], limits())
        with pytest.raises(BatchFailedError, match="RuntimeError"):
            await batcher.submit(queued([1, 2]), 2)
        await batcher.close()

    run(test)


def test_closing_finishes_accepted_requests_and_rejects_new_ones():
    async def test() -> None:
        model = GatedModel(is_open=False)
        batcher = Batcher(model, limits(batch_tokens=20))
        asks = [asyncio.create_task(batcher.submit(queued([1]), 1))]
        await until(lambda: model.batches)  # else the first batch may hold more
        asks += [asyncio.create_task(batcher.submit(queued([row]), 1)) for row in range(2, 6)]
        await until(lambda: batcher.waiting_tokens == 40)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0.01)
        with pytest.raises(ClosedError):
            await batcher.submit(queued([6]), 1)
        model.gate.set()
        await closing
        assert await asyncio.gather(*asks) == [[2.0], [4.0], [6.0], [8.0], [10.0]]

    run(test)


def test_nothing_is_lost_or_swapped_under_load():
    async def test() -> None:
        batcher = Batcher(GatedModel(), limits(batch_tokens=64, max_queue_tokens=10**6))

        async def client(number: int) -> None:
            for turn in range(20):
                rows = [1000 * number + 10 * turn + place + 100 for place in range(number % 4 + 1)]
                assert await batcher.submit(queued(rows, tokens=number % 7 + 1), len(rows)) == [2.0 * x for x in rows]

        await asyncio.gather(*(client(number) for number in range(50)))
        assert (batcher.waiting_rows, batcher.waiting_tokens) == (0, 0)
        await batcher.close()

    run(test)
