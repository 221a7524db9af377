"""Model errors, non-finite rewards, overload and disconnects do not affect other requests."""

import asyncio
import json
import threading
from typing import Any

import httpx2
import torch
from serving_scorers import asked, error_of, run

from hf_reward.scoring.results import ScoreResult
from hf_reward.scoring.reward_scorer import RewardScorer


class FaultyScorer:
    """A scorer whose model call can block, raise an error or return NaN."""

    def __init__(self, scorer: RewardScorer) -> None:
        self._scorer = scorer
        self.gate = threading.Event()
        self.gate.set()
        self.fault: Exception | None = None
        self.rows = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scorer, name)

    def score_encoded(self, encoded: Any, **options: Any) -> ScoreResult:
        self.rows += len(encoded)
        assert self.gate.wait(20)
        if self.fault is not None:
            raise self.fault
        return self._scorer.score_encoded(encoded, **options)


def test_a_model_error_is_returned_and_the_server_keeps_running(scorer):
    faulty = FaultyScorer(scorer)
    body = {"prompt": "a", "response": "b"}

    async def test(client: httpx2.AsyncClient) -> None:
        faulty.fault = RuntimeError("CUDA error: secret path")
        error = error_of(await client.post("/score", json=body), 500, "model_failed")
        assert "secret" not in error["message"]
        assert (await client.get("/health")).status_code == 200
        for _ in range(2):
            await client.post("/score", json=body)
        error_of(await client.get("/health"), 503, "unwell")
        faulty.fault = None
        assert (await client.post("/score", json=body)).status_code == 200
        assert (await client.get("/health")).status_code == 200
        assert 'hf_reward_failed_batches_total{model="tiny"} 3.0' in (await client.get("/metrics")).text

    asked(faulty, test)


def test_out_of_memory_is_a_fault_like_any_other(scorer):
    faulty = FaultyScorer(scorer)

    async def test(client: httpx2.AsyncClient) -> None:
        faulty.fault = torch.OutOfMemoryError("CUDA out of memory")
        error = error_of(await client.post("/get_reward", json={"query": ["a"]}), 500, "model_failed")
        assert "OutOfMemoryError" in error["message"]
        faulty.fault = None
        assert (await client.post("/get_reward", json={"query": ["a"]})).status_code == 200

    asked(faulty, test)


def test_a_non_finite_reward_is_an_error_and_never_json(scorer):
    weight = next(module for name, module in scorer.model.named_modules() if name == "score").weight
    with torch.no_grad():
        weight.fill_(torch.inf)

    async def test(client: httpx2.AsyncClient) -> None:
        for path, body in (
            ("/score", {"prompt": "a", "response": "b"}),
            ("/rank", {"prompt": "a", "responses": ["b"]}),
            ("/get_reward", {"query": ["a"]}),
            ("/classify", {"input": "a"}),
        ):
            answer = await client.post(path, json=body)
            error_of(answer, 422, "unscorable")
            assert "NaN" not in answer.text
            assert "Infinity" not in answer.text

    asked(scorer, test)


def test_a_full_queue_answers_429_and_a_request_above_it_413(scorer):
    faulty = FaultyScorer(scorer)
    body = {"prompt": "a", "response": "b"}

    async def test(client: httpx2.AsyncClient) -> None:
        faulty.gate.clear()
        asks = [asyncio.create_task(client.post("/score", json=body)) for _ in range(12)]
        while sum(ask.done() for ask in asks) < 7:  # one is computed, four wait
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        rejected = [ask.result() for ask in asks if ask.done()]
        for answer in rejected:
            error_of(answer, 429, "queue_full")
            assert 1 <= int(answer.headers["Retry-After"]) <= 60
        faulty.gate.set()
        statuses = [answer.status_code for answer in await asyncio.gather(*asks)]
        assert statuses.count(200) == 12 - len(rejected)
        assert (await client.post("/score", json=body)).status_code == 200
        error = error_of(await client.post("/rank", json={"prompt": "a", "responses": ["b"] * 5}), 413, "too_large")
        assert "5 rows, and the queue holds 4" in error["message"]
        assert f'reason="queue_full"}} {len(rejected)}.0' in (await client.get("/metrics")).text

    asked(faulty, test, max_queue_rows=4)


def test_an_invalid_row_does_not_affect_other_requests_of_its_batch(scorer):
    faulty = FaultyScorer(scorer)

    async def test(client: httpx2.AsyncClient) -> None:
        faulty.gate.clear()
        bodies = [{"prompt": "a", "response": text} for text in ("b", "", "c", "b " * 20_000, "d")]
        asks = [asyncio.create_task(client.post("/score", json=body)) for body in bodies]
        await asyncio.sleep(0.2)
        faulty.gate.set()
        assert [answer.status_code for answer in await asyncio.gather(*asks)] == [200, 422, 200, 413, 200]

    asked(faulty, test)


def test_work_for_a_disconnected_client_is_dropped(scorer):
    from hf_reward.scoring.serving.app import create_app

    faulty = FaultyScorer(scorer)
    app = create_app(faulty, None)  # type: ignore[arg-type]

    async def ask(leaves: asyncio.Event) -> list[Any]:
        """An ASGI client that disconnects on request."""
        body = json.dumps({"prompt": "a", "responses": ["b", "c", "d"]}).encode()
        sent: list[Any] = []
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await leaves.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/score", "headers": headers, "query_string": b""}
        await app(scope, receive, send)
        return sent

    async def test() -> None:
        (service,) = app.state.models
        batcher = service.batcher
        faulty.gate.clear()
        stays, leaves = asyncio.Event(), asyncio.Event()
        first = asyncio.create_task(ask(stays))
        while faulty.rows == 0:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(ask(leaves))
        while batcher.waiting_tokens == 0:
            await asyncio.sleep(0.001)
        leaves.set()
        await second
        await asyncio.sleep(0.01)
        assert (batcher.waiting_rows, batcher.waiting_tokens) == (0, 0)
        faulty.gate.set()
        assert (await first)[0]["status"] == 200
        assert faulty.rows == 3  # those of the first only
        await batcher.close()
        assert b'status="499"} 1.0' in app.state.models.metrics.text()

    run(test)
