"""Very long texts and requests are rejected or truncated and do not delay small requests."""

import asyncio
import time
from typing import Any

import httpx2
import numpy as np
import pytest
from serving_scorers import asked, error_of, run

from hf_reward.preprocessing.text_limits import TextLimits
from hf_reward.scoring.bulk import BulkSettings, score_files
from hf_reward.scoring.results import ScoringError
from hf_reward.scoring.reward_scorer import RewardScorer
from hf_reward.scoring.serving.batcher import Batcher, QueuedRow, QueueLimits

PROSE = "Water boils when the sun shines and ice melts. "


@pytest.fixture
def scorer(make_scorer: Any) -> RewardScorer:
    return make_scorer(max_length=512)


@pytest.fixture
def limit(scorer: RewardScorer) -> int:
    encoder = scorer.copy_encoder()
    return TextLimits(tokenizer=encoder.tokenizer, rule=encoder.rule).characters


def test_every_endpoint_returns_413_for_a_text_that_cannot_fit(scorer, limit):
    text = "b" * (limit + 1)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": text}]

    async def test(client: httpx2.AsyncClient) -> None:
        for path, body in (
            ("/score", {"prompt": "a", "response": text}),
            ("/score", {"items": [{"prompt": "a", "response": "b"}, {"messages": turns}]}),
            ("/score", {"text": text}),
            ("/rank", {"prompt": "a", "responses": ["b", text]}),
            ("/get_reward", {"query": ["b", text]}),
            ("/classify", {"input": text}),
            ("/classify", {"messages": turns}),
            (
                "/score",
                {"messages": [{"role": "system", "content": text}, *turns[:1], turns[0] | {"role": "assistant"}]},
            ),
        ):
            error = error_of(await client.post(path, json=body), 413, "too_large")
            assert f"above the limit of {limit:,}" in error["message"]
            assert len(error["rows"]) == 1

    asked(scorer, test)


def test_a_very_long_prompt_has_the_reward_of_its_end_on_the_server_and_in_python(scorer):
    long, response = PROSE * 10_000, "This."
    expected = scorer.score([PROSE * 400], [response])
    np.testing.assert_allclose(scorer.score([long], [response]), expected, atol=1e-5)

    async def test(client: httpx2.AsyncClient) -> None:
        begin = time.monotonic()
        answer = await client.post("/score", json={"prompt": long, "response": response})
        np.testing.assert_allclose(answer.json()["rewards"], expected, atol=1e-5)
        turns = [{"role": "user", "content": long}, {"role": "assistant", "content": response}]
        answer = await client.post("/classify", json={"messages": turns})
        np.testing.assert_allclose(answer.json()["data"][0]["probs"], expected, atol=1e-5)
        assert time.monotonic() - begin < 20

    asked(scorer, test)


def test_without_a_max_length_the_server_rejects_texts_beyond_the_positions(scorer):
    unlimited = RewardScorer(scorer.model, scorer.tokenizer, scorer.record)
    beyond = PROSE * 50  # rotary positions have no limit
    assert len(scorer.tokenizer(beyond)["input_ids"]) > scorer.model.config.max_position_embeddings == 512

    async def test(client: httpx2.AsyncClient) -> None:
        fits = await client.post("/score", json={"prompt": beyond, "response": "This."})
        np.testing.assert_allclose(fits.json()["rewards"], unlimited.score([beyond], ["This."]), atol=1e-5)
        for path, body in (
            ("/score", {"prompt": PROSE * 5000, "response": "This."}),
            ("/classify", {"input": PROSE * 5000}),
            ("/classify", {"input": [5] * 16_385}),
        ):
            assert "16,384" in error_of(await client.post(path, json=body), 413, "too_large")["message"]

    asked(unlimited, test)


def test_python_and_bulk_scoring_reject_the_same_text(scorer, limit, tmp_path):
    text = "b" * (limit + 1)
    with pytest.raises(ScoringError, match="too large: the response has") as caught:
        scorer.score(["a", "a"], [text, "b"])
    assert np.isfinite(caught.value.rewards).tolist() == [False, True]
    rows = [{"prompt": "a", "response": text}, {"prompt": "a", "response": "b"}, {"text": text}]
    report = score_files(scorer, rows, tmp_path / "out.jsonl", BulkSettings(show_progress=False))
    assert report.counts.quarantined == {"not scored: too large": 2}
    assert report.counts.rows_out == 1


def test_a_request_larger_than_the_queue_is_rejected_before_all_of_it_is_tokenised(scorer, monkeypatch):
    seen = []
    real = type(scorer.copy_encoder()).encode
    monkeypatch.setattr(
        type(scorer.copy_encoder()),
        "encode",
        lambda self, part, **rest: seen.append(len(part)) or real(self, part, **rest),
    )
    monkeypatch.setattr("hf_reward.scoring.serving.service._PART_CHARACTERS", 1000)

    async def test(client: httpx2.AsyncClient) -> None:
        body = {"prompt": PROSE * 10, "responses": ["This."] * 1000}
        error = error_of(await client.post("/score", json=body), 413, "too_large")
        assert "tokens, and the queue holds 600" in error["message"]
        assert sum(seen) < 50

    asked(scorer, test, max_queue_tokens=600)


# --- the queue -------------------------------------------------------------------------------------------------------


def test_a_large_request_gets_one_batch_at_a_time():
    batches: list[list[str]] = []

    def score(rows: list[str]) -> list[float]:
        batches.append(rows)
        time.sleep(0.01)
        return [0.0] * len(rows)

    async def test() -> None:
        limits = QueueLimits(batch_tokens=4, max_queue_tokens=1000, max_queue_rows=1000)
        batcher: Batcher[str] = Batcher(score, limits)
        large = [QueuedRow(f"large{number}", 1, number) for number in range(40)]
        asks = [asyncio.create_task(batcher.submit(lambda: large, 40))]
        await asyncio.sleep(0.015)
        for number in range(3):
            asks.append(asyncio.create_task(batcher.submit(lambda n=number: [QueuedRow(f"small{n}", 1, "s")], 1)))
        await asyncio.gather(*asks)
        await batcher.close()

    run(test)
    place = next(place for place, batch in enumerate(batches) if any(row.startswith("small") for row in batch))
    assert place <= 3  # of ten
    assert sorted(row for batch in batches for row in batch if row.startswith("large")) == sorted(
        f"large{number}" for number in range(40)
    )


def test_small_requests_are_tokenised_while_a_large_one_is():
    async def test() -> None:
        limits = QueueLimits(batch_tokens=4, max_queue_tokens=1000, max_queue_rows=1000)
        batcher: Batcher[str] = Batcher(lambda rows: [1.0] * len(rows), limits)

        def slow() -> list[QueuedRow[str]]:
            time.sleep(0.5)
            return [QueuedRow("large", 1)]

        large = asyncio.create_task(batcher.submit(slow, 1, is_large=True))
        await asyncio.sleep(0.01)
        assert await batcher.submit(lambda: [QueuedRow("small", 1)], 1) == [1.0]
        assert not large.done()
        assert await large == [1.0]
        await batcher.close()

    run(test)


def test_large_requests_use_a_separate_tokenizer(scorer, monkeypatch):
    from hf_reward.scoring.serving.service import RewardService
    from hf_reward.scoring.serving.settings import ServerSettings

    service = RewardService(scorer, ServerSettings())
    assert service._large_encoder.tokenizer is not scorer.tokenizer

    async def test(client: httpx2.AsyncClient) -> None:
        monkeypatch.setattr(type(scorer), "encode", lambda *rest, **more: pytest.fail("the small requests' tokenizer"))
        body = {"prompt": PROSE * 20, "responses": ["This."] * 100}
        answer = await client.post("/score", json=body)
        np.testing.assert_allclose(answer.json()["rewards"], expected, atol=1e-5)

    expected = np.repeat(scorer.score([PROSE * 20], ["This."]), 100)
    asked(scorer, test)
