"""Runs of clients (`?run=NAME`): their observers, metrics, limits and errors, and the monitor of the command line."""

import logging
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving_scorers import asked, error_of

from hf_reward.evaluation.monitoring.monitor import STATISTICS
from hf_reward.evaluation.monitoring.served_run import run_monitors
from hf_reward.scoring.serving import observing

PROMPT, ANSWERS = "Which is heavier?", ["Water.", "Oil is heavier, I think."]
BODY = {"prompt": PROMPT, "responses": ANSWERS}


class Observer:
    """Keeps its responses, and reports their number."""

    def __init__(self, name: str, seen: dict[str, list[Any]]) -> None:
        self.rows = seen.setdefault(name, [])

    def add(self, prompts: Any, responses: Any, rewards: Any) -> dict[str, dict[str, float]]:
        if "fail" in responses:
            raise RuntimeError("a fault of the observer")
        self.rows += zip(prompts, responses, rewards, strict=True)
        return {"mean": {"reward": sum(rewards) / len(rewards)}, "warning": {"length": float("nan")}}


async def samples(client: httpx2.AsyncClient) -> dict[tuple[str, ...], float]:
    """The metrics of runs: (name, label values...) -> value."""
    text = (await client.get("/metrics")).text
    return {
        (each.name.removeprefix("hf_reward_run_"), *each.labels.values()): each.value
        for family in text_string_to_metric_families(text)
        for each in family.samples
        if each.name.startswith("hf_reward_run_") and not each.name.endswith("_created")
    }


def test_each_run_gets_its_responses_from_all_endpoints(scorer):
    seen: dict[str, list[Any]] = {}
    expected = scorer.score([PROMPT] * 2, ANSWERS).tolist()
    chat = [{"role": "user", "content": PROMPT}]
    tokenizer = scorer.tokenizer
    lead = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    text = tokenizer.apply_chat_template([*chat, {"role": "assistant", "content": ANSWERS[0]}], tokenize=False)

    async def test(client: httpx2.AsyncClient) -> None:
        found = (await client.post("/score?run=a", json=BODY)).json()
        assert found["rewards"] == pytest.approx(expected, abs=1e-5)
        for path, body in (
            ("/rank", {"items": [BODY]}),
            ("/v1/rerank", {"query": PROMPT, "documents": ANSWERS}),
            ("/v1/score", {"text_1": PROMPT, "text_2": ANSWERS}),
            ("/get_reward", {"query": text}),
            ("/remote_rm", {"prompt": chat, "response": ANSWERS[0]}),
            ("/score", BODY),
        ):
            assert (await client.post(path if path == "/score" else f"{path}?run=b", json=body)).status_code == 200
        found = await samples(client)
        (name,) = {key[1] for key in found}
        assert found["responses_total", name, "a"] == 2
        assert found["responses_total", name, "b"] == 8
        assert found["mean", name, "a", "reward"] == pytest.approx(sum(expected) / 2, abs=1e-5)

    asked(scorer, test, lambda name: Observer(name, seen))
    assert [row[:2] for row in seen["a"]] == [(PROMPT, answer) for answer in ANSWERS]
    assert [reward for *_, reward in seen["a"]] == pytest.approx(expected, abs=1e-5)
    assert [row[:2] for row in seen["b"]][:6] == [(PROMPT, answer) for answer in ANSWERS] * 3
    formatted, messages = (row[:2] for row in seen["b"][6:])
    assert formatted == (lead.rstrip(), ANSWERS[0])
    assert messages[0] == chat


def test_names_and_bodies_that_cannot_be_observed_are_errors(scorer):
    async def test(client: httpx2.AsyncClient) -> None:
        for name in ("", "-", "a b", "a" * 65, "ä"):
            error_of(await client.post("/score", params={"run": name}, json=BODY), 400, "invalid_run")
        error_of(await client.post("/classify?run=a", json={"input": [1, 2]}), 400, "invalid_run")

    asked(scorer, test, lambda name: Observer(name, {}))

    async def without(client: httpx2.AsyncClient) -> None:
        message = error_of(await client.post("/rank?run=a", json=BODY), 400, "invalid_run")["message"]
        assert "does not observe" in message

    asked(scorer, without, None)


def test_an_observer_that_fails_costs_no_reward(scorer, caplog):
    async def test(client: httpx2.AsyncClient) -> None:
        found = await client.post("/score?run=a", json={"prompt": PROMPT, "response": "fail"})
        assert len(found.json()["rewards"]) == 1
        assert await samples(client) == {}

    asked(scorer, test, lambda name: Observer(name, {}))
    assert any("run a cannot be observed" in record.message for record in caplog.records)


def test_the_number_of_runs_is_bounded(scorer, monkeypatch, caplog):
    monkeypatch.setattr(observing, "MAX_RUNS", 2)

    async def test(client: httpx2.AsyncClient) -> None:
        for name in ("a", "b", "a", "c"):
            await client.post(f"/score?run={name}", json=BODY)
        assert {key[2] for key in await samples(client)} == {"a", "c"}, "b was used least recently"

    with caplog.at_level(logging.WARNING, "hf_reward"):
        asked(scorer, test, lambda name: Observer(name, {}))
    assert any("Run b is not observed" in record.message for record in caplog.records)


def test_the_monitor_of_the_command_line(scorer, caplog):
    async def test(client: httpx2.AsyncClient) -> None:
        for step in range(30):
            answers = ["ab " * (length + step) for length in range(1, 5)]
            items = {"items": [{"prompt": PROMPT, "responses": answers}, {"prompt": "Why?", "responses": answers}]}
            await client.post("/score?run=grpo-1", json=items)
        found = await samples(client)
        assert {key[0] for key in found} == {"responses_total", *STATISTICS}
        (name,) = {key[1] for key in found}
        assert found["responses_total", name, "grpo-1"] == 240
        assert found["mean", name, "grpo-1", "length"] == pytest.approx(3 * (2.5 + 29))
        assert found["drift", name, "grpo-1", "length"] == 1
        assert found["association", name, "grpo-1", "length"] != 0

    with caplog.at_level(logging.WARNING, "hf_reward"):
        asked(scorer, test, run_monitors(8))


def test_a_step_needs_two_responses():
    with pytest.raises(ValueError, match="run_step"):
        run_monitors(1)
