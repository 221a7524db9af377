"""Several models in one process, and their reload."""

import asyncio
import logging
import os
import signal
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from running_servers import process, running
from saved_models import saved_model
from serving_scorers import asked, error_of, run

from hf_reward.data.score_request import ScoreRequest
from hf_reward.scoring.remote_reward import RemoteReward
from hf_reward.scoring.reward_scorer import RewardScorer
from hf_reward.scoring.server_check import check_server
from hf_reward.scoring.serving.models import ServedModels
from hf_reward.scoring.serving.reloading import Reloader
from hf_reward.scoring.serving.settings import ServerSettings

PROMPT, ANSWERS = "Which is heavier?", ["Water.", "Oil is heavier, I think."]
BODY = {"prompt": PROMPT, "responses": ANSWERS}


@pytest.fixture
def both(make_scorer: Any) -> dict[str, RewardScorer]:
    """Two models, of which the second gives the negative rewards of the first."""
    return {"one": make_scorer(), "two": negative(make_scorer())}


def negative(scorer: RewardScorer) -> RewardScorer:
    with torch.no_grad():
        scorer.model.score.weight.neg_()
    return scorer


# --- several models --------------------------------------------------------------------------------------------------


def test_the_model_field_selects_the_model(both):
    expected = both["one"].score([PROMPT] * 2, ANSWERS).tolist()
    chat = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": ANSWERS[0]}]
    text = both["one"].tokenizer.apply_chat_template(chat, tokenize=False)

    async def test(client: httpx2.AsyncClient) -> None:
        for name, sign in (("one", 1), ("two", -1)):
            rewards = pytest.approx([sign * each for each in expected], abs=1e-5)
            found = (await client.post("/score", json={**BODY, "model": name})).json()
            assert (found["model"], found["rewards"]) == (name, rewards)
            found = (await client.post("/rank", json={**BODY, "model": name})).json()
            assert (found["model"], found["rewards"]) == (name, rewards)
            found = (await client.post("/classify", json={"messages": chat, "model": name})).json()
            assert found["data"][0]["probs"] == pytest.approx([sign * expected[0]], abs=1e-5)
            body = {"query": PROMPT, "documents": ANSWERS, "model": name}
            found = (await client.post("/v1/rerank", json=body)).json()
            assert found["results"][0]["index"] == max(range(2), key=lambda place: sign * expected[place])
            # Protocols without the field take the name from the address.
            found = (await client.post(f"/get_reward?model={name}", json={"query": [text]})).json()
            assert found["rewards"] == pytest.approx([sign * expected[0]], abs=1e-5)
            found = (await client.post(f"/predict?model={name}", json={"inputs": [PROMPT, ANSWERS[0]]})).json()
            assert found[0]["score"] == pytest.approx(sign * expected[0], abs=1e-5)
        names = [card["id"] for card in (await client.get("/v1/models")).json()["data"]]
        assert names == (await client.get("/health")).json()["models"] == ["one", "two"]

    asked(both, test)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/score", BODY),
        ("/rank", BODY),
        ("/classify", {"input": "a"}),
        ("/v1/rerank", {"query": "a", "documents": ["b"]}),
        ("/get_reward", {"query": ["a"]}),
        ("/remote_rm", {"prompt": "a", "response": "b"}),
        ("/predict", {"inputs": "a"}),
        ("/v1/systemone", {"state": "a", "questions": {"q": {"type": "choice", "criteria": {"b": None}}}}),
    ],
)
def test_one_of_several_models_must_be_named(both, path, body):
    async def test(client: httpx2.AsyncClient) -> None:
        message = error_of(await client.post(path, json=body), 400, "model_required")["message"]
        assert "'one', 'two'" in message
        assert "?model=NAME" in message
        message = error_of(await client.post(f"{path}?model=three", json=body), 404, "not_found")["message"]
        assert "'one', 'two'" in message

    asked(both, test)


def test_metrics_have_the_name_of_the_model(both):
    async def test(client: httpx2.AsyncClient) -> None:
        await client.post("/score", json={**BODY, "model": "two"})
        text = (await client.get("/metrics")).text
        assert 'hf_reward_rows_scored_total{model="two"} 2.0' in text
        assert 'hf_reward_rows_scored_total{model="one"} 0.0' in text
        assert 'hf_reward_queue_rows{model="one"} 0.0' in text
        assert 'hf_reward_batch_rows_count{model="two"} 1.0' in text

    asked(both, test)


def test_our_clients_name_a_model_after_the_address(both):
    expected = both["two"].score([PROMPT] * 2, ANSWERS).tolist()
    with running(both) as url:
        assert RemoteReward(f"{url}#two").score([PROMPT] * 2, ANSWERS) == pytest.approx(expected, abs=1e-5)
        assert check_server(f"{url}#two", both["two"]).verdict == "same"
        assert check_server(f"{url}#two", both["two"], kind="vllm").verdict == "same"
        assert check_server(f"{url}#one", both["two"]).verdict == "different"


def test_a_name_for_a_single_model_does_not_fit_several(both):
    with pytest.raises(ValueError, match="`served_model_name` is for a single scorer"):
        ServedModels(both, ServerSettings(served_model_name="a"))
    with pytest.raises(ValueError, match="a mapping of names"):
        ServedModels({}, ServerSettings())


# --- reload ----------------------------------------------------------------------------------------------------------


def test_requests_to_a_replaced_model_are_finished(both, caplog):
    loads, seen = threading.Event(), []
    expected = both["one"].score([PROMPT] * 2, ANSWERS).tolist()

    def load() -> RewardScorer:
        loads.wait(30)
        return both["two"]

    async def test() -> None:
        models = ServedModels({"m": both["one"]}, ServerSettings())
        old = models.get("m")
        tasks: set[asyncio.Task[Any]] = set()
        reloader = Reloader(models, {"m": load}, lambda: tasks, pause=nullcontext())
        reload = asyncio.create_task(reloader.reload("m"))
        await asyncio.sleep(0)
        assert models.get("m") is old  # while the new one is loaded

        async def ask() -> None:
            service = models.get(None)
            await goes_on.wait()  # such as a body that is still arriving
            seen.append((await service.score(requests, allow_empty=False)).rewards)

        requests = [ScoreRequest(prompt=PROMPT, response=text) for text in ANSWERS]
        goes_on = asyncio.Event()
        tasks.add(asyncio.create_task(ask()))
        await asyncio.sleep(0)
        loads.set()
        while models.get("m") is old:
            await asyncio.sleep(0.001)
        tasks.add(asyncio.create_task(ask()))  # gets the new model
        goes_on.set()
        assert await reload
        await asyncio.gather(*tasks)
        assert b'hf_reward_reloads_total{model="m",result="ok"} 1.0' in models.metrics.text()
        await models.close()

    run(test)
    assert sorted(map(sum, seen)) == pytest.approx(sorted([sum(expected), -sum(expected)]), abs=1e-5)


def test_a_failed_reload_keeps_the_old_model(both, caplog):
    def load() -> RewardScorer:
        raise ValueError("the weights are broken")

    async def test() -> None:
        models = ServedModels({"m": both["one"]}, ServerSettings())
        old = models.get("m")
        reloader = Reloader(models, {"m": load}, list, pause=nullcontext())
        with caplog.at_level(logging.ERROR):
            assert not await reloader.reload("m")
        assert models.get("m") is old
        assert b'hf_reward_reloads_total{model="m",result="failed"} 1.0' in models.metrics.text()
        await models.close()

    run(test)
    assert "The server keeps the old model." in caplog.text
    assert "the weights are broken" in caplog.text


@pytest.mark.slow  # 20 seconds, most of them for the start of the process
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="SIGHUP does not exist here")
def test_sighup_replaces_the_model_without_losing_a_request(make_model_folder, tmp_path):
    """Clients ask all the time while the folder is replaced by another model and then by a broken one."""
    folders = [saved_model(make_model_folder("llama"), tmp_path / name) for name in ("first", "second")]
    changed = negative(RewardScorer.from_pretrained(folders[1], device="cpu"))
    changed.model.save_pretrained(folders[1])
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    expected = [RewardScorer.from_pretrained(each, device="cpu").score([PROMPT] * 2, ANSWERS) for each in folders]
    assert expected[0].tolist() == pytest.approx((-expected[1]).tolist())
    current = tmp_path / "current"

    def show(folder: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to(folder)
        os.replace(link, current)

    async def load(server: Any, url: str) -> None:
        async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
            stopped, answers = asyncio.Event(), [[] for _ in range(8)]

            async def ask(mine: list[httpx2.Response]) -> None:
                while not stopped.is_set():
                    mine.append(await client.post("/score", json=BODY))

            async def until(words: str) -> None:
                for _ in range(3000):
                    if words in (await client.get("/metrics")).text:
                        return
                    await asyncio.sleep(0.02)
                raise AssertionError(words)

            asks = [asyncio.create_task(ask(mine)) for mine in answers]
            await asyncio.sleep(0.5)
            show(folders[1])
            server.send_signal(signal.SIGHUP)
            await until('reloads_total{model="m",result="ok"} 1.0')
            show(broken)
            server.send_signal(signal.SIGHUP)
            await until('reloads_total{model="m",result="failed"} 1.0')
            await asyncio.sleep(0.5)
            stopped.set()
            await asyncio.gather(*asks)
        for mine in answers:
            assert {each.status_code for each in mine} == {200}
            signs = [each.json()["rewards"][0] * expected[0][0] > 0 for each in mine]
            assert signs[0]
            assert not signs[-1]
            assert signs == sorted(signs, reverse=True)  # no client gets the old model after the new one
            for each, is_old in zip(mine, signs, strict=True):
                assert each.json()["rewards"] == pytest.approx(expected[0 if is_old else 1].tolist(), abs=1e-4)

    show(folders[0])
    with process(current, served_model_name="m") as (server, url):
        asyncio.run(load(server, url))
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=60)
        assert server.returncode == 0
    assert "m could not be loaded again. The server keeps the old model." in log
