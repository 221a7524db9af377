"""Endpoints compared with the scorer, errors and metrics, without a socket or a second process."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import numpy as np
import pytest
from serving_scorers import asked, error_of, tiny_scorer

from hf_reward.data.interface import Interface, used_through
from hf_reward.data.score_request import ScoreRequest
from hf_reward.scoring.reward_scorer import RewardScorer

CHAT = [{"role": "user", "content": "Which is heavier?"}, {"role": "assistant", "content": "Water."}]
ANSWERS = ["Water.", "Oil is heavier, I think.", "Three short answers are better than one long answer."]


@pytest.fixture
def scorer(make_scorer: Any) -> RewardScorer:
    return make_scorer(max_length=508)


# --- rewards ---------------------------------------------------------------------------------------------------------


def test_score_gives_the_scorers_rewards_in_every_layout(scorer):
    expected = scorer.score(["Which is heavier?"] * 3, ANSWERS)
    template = {"enable_thinking": False}

    async def test(client: httpx2.AsyncClient) -> None:
        prompt = "Which is heavier?"
        bodies: list[tuple[dict[str, Any], Any]] = [
            ({"prompt": prompt, "response": ANSWERS[0]}, [expected[0]]),
            ({"prompt": CHAT[:1], "response": CHAT[1:]}, [expected[0]]),
            ({"prompt": CHAT[:1], "response": ANSWERS[0]}, [expected[0]]),
            ({"messages": CHAT}, [expected[0]]),
            ({"messages": CHAT, "chat_template_kwargs": template}, [expected[0]]),
            ({"text": scorer.tokenizer.apply_chat_template(CHAT, tokenize=False)}, [expected[0]]),
            ({"prompt": prompt, "responses": ANSWERS}, expected),
        ]
        for body, rewards in bodies:
            answer = (await client.post("/score", json=body)).json()
            assert answer["model"] == "tiny"
            np.testing.assert_allclose(answer["rewards"], rewards, atol=1e-5)
        items = [{"messages": CHAT}, {"prompt": prompt, "responses": ANSWERS}]
        answer = (await client.post("/score", json={"items": items})).json()
        assert [len(each) for each in answer["rewards"]] == [1, 3]
        np.testing.assert_allclose(np.concatenate(answer["rewards"]), [expected[0], *expected], atol=1e-5)
        encoded = scorer.encode([ScoreRequest(prompt=prompt, response=text) for text in [ANSWERS[0], *ANSWERS]])
        assert answer["tokens"] == sum(len(each.input_ids) for each in encoded)
        assert (await client.post("/score", json={"items": []})).json()["rewards"] == []

    asked(scorer, test)


def test_rank_orders_the_responses(scorer):
    ranking = scorer.rank("Which is heavier?", ANSWERS)

    async def test(client: httpx2.AsyncClient) -> None:
        one = {"prompt": "Which is heavier?", "responses": ANSWERS}
        answer = (await client.post("/rank", json=one)).json()
        assert answer["ranking"] == ranking.order
        assert ANSWERS[answer["best"]] == ranking.best
        np.testing.assert_allclose(answer["rewards"], ranking.rewards, atol=1e-5)
        twins = {"prompt": "a", "responses": ["b", "b"]}
        several = (await client.post("/rank", json={"items": [one, twins]})).json()
        assert several["results"][0]["ranking"] == ranking.order
        assert several["results"][1]["ranking"] == [0, 1]

    asked(scorer, test)


def test_get_reward_is_what_openrlhf_expects(scorer):
    texts = [scorer.tokenizer.apply_chat_template(CHAT, tokenize=False), "no template", ""]
    formatted = [texts[0], *(f"{text}<|im_end|>\n" for text in texts[1:])]  # the end of the template

    async def test(client: httpx2.AsyncClient) -> None:
        body = {"query": texts, "prompts": ["a", "b", "c"], "labels": [None, None, None]}
        answer = (await client.post("/get_reward", json=body)).json()
        expected = scorer.score_texts(formatted)
        np.testing.assert_allclose(answer["rewards"], expected, atol=1e-5)
        assert answer["scores"] == answer["rewards"]
        older = (await client.post("/get_reward", json={"query": texts[:1]})).json()
        np.testing.assert_allclose(older["rewards"], expected[:1], atol=1e-5)

    asked(scorer, test)


def test_classify_is_what_vllm_answers(scorer):
    text = scorer.tokenizer.apply_chat_template(CHAT, tokenize=False)
    ids = scorer.tokenizer(text, add_special_tokens=False)["input_ids"]
    expected = float(scorer.score_conversations([CHAT])[0])

    async def test(client: httpx2.AsyncClient) -> None:
        for given in (text, [text], ids, [ids]):
            for use_activation in (None, True, False):
                body = {"model": "tiny", "input": given, "use_activation": use_activation}
                answer = (await client.post("/classify", json=body)).json()
                assert answer["object"] == "list"
                assert answer["model"] == "tiny"
                assert answer["usage"]["prompt_tokens"] == len(ids)
                (found,) = answer["data"]
                assert (found["index"], found["label"], found["num_classes"]) == (0, "reward", 1)
                assert found["probs"] == pytest.approx([expected], abs=1e-5)
        chat = (await client.post("/classify", json={"messages": CHAT, "priority": 3, "user": "me"})).json()
        assert chat["data"][0]["probs"] == pytest.approx([expected], abs=1e-5)
        several = (await client.post("/classify", json={"input": [ids, [5, 6, 7]]})).json()
        assert [each["index"] for each in several["data"]] == [0, 1]
        (card,) = (await client.get("/v1/models")).json()["data"]
        assert (card["id"], card["owned_by"]) == ("tiny", "hf_reward")

    asked(scorer, test)


def test_answers_name_a_folder_without_its_path(scorer):
    from hf_reward.scoring.serving.service import RewardService
    from hf_reward.scoring.serving.settings import ServerSettings

    assert RewardService(scorer, ServerSettings()).name == "saved"
    assert RewardService(scorer, ServerSettings(served_model_name="mine")).name == "mine"


def test_an_encoder_without_template_serves_text_pairs(make_model_folder, tmp_path):
    scorer = tiny_scorer(make_model_folder("bert"), tmp_path / "saved")

    async def test(client: httpx2.AsyncClient) -> None:
        answer = (await client.post("/score", json={"prompt": "Which?", "responses": ANSWERS})).json()
        np.testing.assert_allclose(answer["rewards"], scorer.score(["Which?"] * 3, ANSWERS), atol=1e-5)

    asked(scorer, test)


def test_requests_that_share_a_batch_keep_their_own_rewards(scorer):
    texts = [f"The number is {number}." for number in range(64)]
    expected = scorer.score(["Which?"] * 64, texts)

    async def test(client: httpx2.AsyncClient) -> None:
        bodies = [{"prompt": "Which?", "response": text} for text in texts]
        answers = await asyncio.gather(*(client.post("/score", json=body) for body in bodies))
        found = [answer.json()["rewards"][0] for answer in answers]
        np.testing.assert_allclose(found, expected, atol=1e-5)

    asked(scorer, test)


# --- errors ----------------------------------------------------------------------------------------------------------


def test_rows_without_a_reward_are_listed_in_the_error(scorer):
    async def test(client: httpx2.AsyncClient) -> None:
        prompt = "Which?"
        empty = {"prompt": prompt, "responses": ["a", " ", "b", ""]}
        error = error_of(await client.post("/score", json=empty), 422, "unscorable")
        assert [row["index"] for row in error["rows"]] == [1, 3]
        assert "`allow_empty=True`" in error["rows"][0]["reason"]
        assert (await client.post("/score", json={**empty, "allow_empty": True})).status_code == 200
        error = error_of(await client.post("/rank", json=empty), 422, "unscorable")
        assert [row["index"] for row in error["rows"]] == [1, 3]
        items = [{"prompt": prompt, "response": "a"}, {"prompt": prompt, "response": "b " * 600}, empty]
        error = error_of(await client.post("/score", json={"items": items}), 422, "unscorable")
        assert [{**row, "reason": ""} for row in error["rows"]] == [
            {"index": 1, "reason": ""},
            {"index": 2, "response": 1, "reason": ""},
            {"index": 2, "response": 3, "reason": ""},
        ]
        assert "too long" in error["message"]
        broken = [{"prompt": prompt, "response": "a"}, {"messages": CHAT[:1]}]
        error = error_of(await client.post("/score", json={"items": broken}), 422, "unscorable")
        assert error["rows"][0]["index"] == 1
        assert "end with the user" in error["message"]
        for input_ids, reason in (([1, 2, 10**9], "token id"), ([-1], "negative"), ([[]], "")):
            error = error_of(await client.post("/classify", json={"input": input_ids}), 422, "unscorable")
            assert reason in error["message"]

    with used_through(Interface.COMMAND):  # as `hf-reward serve`
        asked(scorer, test)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/score", {"prompt": "a", "respnse": "b"}, "respnse"),
        ("/score", {"prompt": "a", "response": 3}, "response"),
        ("/score", {}, "nothing to score"),
        ("/score", {"prompt": "a", "response": "b", "text": "c"}, "`response` and `text`"),
        ("/score", {"prompt": "a", "items": [{"prompt": "a", "response": "b"}]}, "and `items`"),
        ("/rank", {"prompt": "a", "responses": []}, "responses"),
        ("/rank", {"prompt": "a"}, "needs `prompt` and `responses`"),
        ("/get_reward", {"queries": ["a"]}, "query"),
        ("/classify", {}, "either `input` or `messages`"),
        ("/classify", {"input": "a", "messages": CHAT}, "either `input` or `messages`"),
        ("/classify", {"input": "a", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ("/classify", {"messages": CHAT, "add_generation_prompt": True}, "add_generation_prompt"),
        ("/classify", {"messages": CHAT[:1]}, "end with the user"),
        ("/score", {"messages": [{"role": "user", "content": "\ud800"}, CHAT[1]]}, "surrogate"),
        ("/get_reward", {"query": ["\ud800"]}, "half a character"),
    ],
)
def test_invalid_bodies_are_rejected(scorer, path, body, message):
    async def test(client: httpx2.AsyncClient) -> None:
        answer = await client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
        assert answer.status_code == 422
        assert message in answer.json()["error"]["message"]

    asked(scorer, test)


def test_other_errors_have_the_same_format(scorer):
    async def test(client: httpx2.AsyncClient) -> None:
        error_of(await client.get("/nothing"), 404, "not_found")
        error_of(await client.post("/classify", json={"model": "other", "input": "a"}), 404, "not_found")
        error_of(await client.get("/score"), 405, "method_not_allowed")
        error_of(await client.post("/score", data={"prompt": "a"}), 415, "not_json")
        json_type = {"Content-Type": "application/json"}
        error_of(await client.post("/score", content='{"prompt"', headers=json_type), 400, "invalid_json")
        error_of(await client.post("/score", content="[" * 100_000, headers=json_type), 400, "invalid_json")

    asked(scorer, test)


def test_large_bodies_are_rejected_with_and_without_content_length(scorer):
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b" " * 100

    async def test(client: httpx2.AsyncClient) -> None:
        body = {"prompt": "a", "response": "b" * 3000}
        assert "2000 bytes" in error_of(await client.post("/score", json=body), 413, "too_large")["message"]
        headers = {"Content-Type": "application/json"}
        error_of(await client.post("/score", content=chunks(), headers=headers), 413, "too_large")
        assert (await client.post("/score", json={"prompt": "a", "response": "b"})).status_code == 200

    asked(scorer, test, max_body_bytes=2000)


def test_a_token_is_required_except_for_health(scorer):
    async def test(client: httpx2.AsyncClient) -> None:
        body = {"prompt": "a", "response": "b"}
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "secret"},
            {"Authorization": "Bearer"},
        ):
            answer = await client.post("/score", json=body, headers=headers)
            error_of(answer, 401, "unauthorized")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        for path in ("/metrics", "/v1/models", "/nothing"):
            error_of(await client.get(path), 401, "unauthorized")
        assert (await client.get("/health")).status_code == 200
        right = {"Authorization": "bearer secret"}
        assert (await client.post("/score", json=body, headers=right)).status_code == 200
        assert (await client.get("/metrics", headers=right)).status_code == 200

    asked(scorer, test, token="secret")


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_count_requests_rows_tokens_and_batches(scorer):
    async def test(client: httpx2.AsyncClient) -> None:
        body = {"prompt": "Which?", "responses": ANSWERS}
        await client.post("/score", json=body)
        await client.post("/score", json={"prompt": "Which?"})
        await client.get("/some/invented/path")
        text = (await client.get("/metrics")).text
        assert 'hf_reward_requests_total{endpoint="/score",status="200"} 1.0' in text
        assert 'hf_reward_requests_total{endpoint="/score",status="422"} 1.0' in text
        assert 'hf_reward_requests_total{endpoint="other",status="404"} 1.0' in text
        assert "invented" not in text
        assert 'hf_reward_rejected_total{reason="invalid_or_unscorable"} 1.0' in text
        assert 'hf_reward_rows_scored_total{model="tiny"} 3.0' in text
        assert 'hf_reward_batch_rows_sum{model="tiny"} 3.0' in text
        assert 'hf_reward_batch_seconds_count{model="tiny"} 1.0' in text
        assert 'hf_reward_request_seconds_count{endpoint="/score"} 2.0' in text
        assert 'hf_reward_queue_rows{model="tiny"} 0.0' in text
        encoded = scorer.encode([ScoreRequest(prompt="Which?", response=text) for text in ANSWERS])
        counted = float(
            next(line for line in text.splitlines() if line.startswith("hf_reward_tokens_scored_total")).split()[1]
        )
        assert counted < sum(len(each.input_ids) for each in encoded)  # the prompt counts once

    asked(scorer, test)
