"""Protocols of other programs: recorded requests of their clients get rewards in the fields that these read.

The requests are those that the named file of each client sends, at the named version; the programs were not run.
"""

import base64
import struct
from typing import Any

import httpx2
import numpy as np
import pytest
from foreign_models import llama3_tokenizer
from serving_scorers import asked, error_of, tiny_scorer

from hf_reward.preprocessing.rendered_turns import FormattedTexts
from hf_reward.scoring.reward_scorer import RewardScorer

PROMPT, ANSWERS = "Which is heavier?", ["Water.", "Oil is heavier, I think.", "Three short answers are better."]
CHAT = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": ANSWERS[0]}]


@pytest.fixture
def scorer(make_scorer: Any) -> RewardScorer:
    return make_scorer(max_length=508)


@pytest.fixture
def expected(scorer: RewardScorer) -> list[float]:
    """Rewards of the answers to the prompt."""
    return scorer.score([PROMPT] * 3, ANSWERS).tolist()


def near(rewards: Any) -> Any:
    return pytest.approx(rewards, abs=1e-5)


async def post(client: httpx2.AsyncClient, path: str, body: Any) -> Any:
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


# --- trainers --------------------------------------------------------------------------------------------------------


def decoded(scorer: RewardScorer, response: str) -> str:
    """What OpenRLHF and slime decode: the formatted prompt and the generated tokens, without what follows them."""
    prompt = scorer.tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True)
    return prompt + response


@pytest.mark.parametrize("end", ["<|im_end|>", "", "<|im_end|>\n"], ids=["ended", "cut", "formatted"])
def test_openrlhf_gets_the_reward_of_the_conversation(scorer, expected, end):
    # openrlhf/utils/agent.py, 0.11.0: one text per request; the answer's fields are used as in _fetch_rewards_via_http
    async def test(client: httpx2.AsyncClient) -> None:
        body = {"query": [decoded(scorer, ANSWERS[0] + end)], "prompts": [PROMPT], "labels": [None]}
        info = await post(client, "/get_reward", body)
        assert info["rewards"] == info["scores"] == near(expected[:1])
        assert set(info) == {"rewards", "scores", "extra_logs"}
        assert np.array([info["extra_logs"]["reward_model_tokens"]]).shape == (1, 1)  # a tensor is made of it

    asked(scorer, test)


def test_slime_gets_one_number(scorer, expected):
    # slime/rollout/rm_hub/__init__.py and utils/data.py, 0.3.1: the prompt is formatted if --apply-chat-template is set
    async def test(client: httpx2.AsyncClient) -> None:
        formatted = decoded(scorer, "")
        for prompt, response in (
            (formatted, f"{ANSWERS[0]}<|im_end|>"),
            (formatted, ANSWERS[0]),
            (PROMPT, ANSWERS[0]),
            (CHAT[:1], f"{ANSWERS[0]}<|im_end|>"),
        ):
            body = {"prompt": prompt, "response": response, "label": "42"}
            assert await post(client, "/remote_rm", body) == near(expected[0])

    asked(scorer, test)


def test_nemo_gym_gets_its_body_back_with_the_reward(scorer, expected):
    # responses_api_agents/simple_agent/app.py, 0.5.1: /seed_session, then /verify with the columns of the dataset
    message = {"type": "message", "role": "assistant", "id": "m", "status": "completed", "content": []}
    message["content"] = [{"type": "output_text", "text": ANSWERS[0], "annotations": []}]
    output = [{"type": "reasoning", "id": "r", "summary": []}, message]
    response = {"id": "resp_1", "object": "response", "output": output, "tools": [], "parallel_tool_calls": True}
    parts = [{"role": "user", "type": "message", "content": [{"type": "input_text", "text": PROMPT}]}]

    async def test(client: httpx2.AsyncClient) -> None:
        for given in (PROMPT, parts, CHAT[:1]):
            body = {"responses_create_params": {"input": given, "tools": []}, "answer": "42"}
            assert await post(client, "/seed_session", body) == {}
            found = await post(client, "/verify", {**body, "response": response})
            assert found.pop("reward") == near(expected[0])
            assert found == {**body, "response": response}
        image = {"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}
        wrong = {"responses_create_params": {"input": [image]}, "response": response}
        error_of(await client.post("/verify", json=wrong), 422, "invalid_body")

    asked(scorer, test)


def test_nemo_gym_gets_the_statistics_of_a_collection(scorer):
    # nemo_gym/rollout_collection.py, 0.5.1: _fetch_agent_metrics sends rollouts without the conversation
    rewards = {3: [1.0, 2.0, 6.0], 0: [-1.0]}
    usage = {"response": {"usage": {"total_tokens": 3}}}
    rollouts = [{"_ng_task_index": task, "reward": each, **usage} for task in rewards for each in rewards[task]]

    async def test(client: httpx2.AsyncClient) -> None:
        found = await post(client, "/aggregate_metrics", {"verify_responses": rollouts})
        # Mean 8 / 4; sample variance (1 + 0 + 16 + 9) / 3.
        overall = {"mean": 2.0, "max": 6.0, "min": -1.0, "median": 1.5, "std": (26 / 3) ** 0.5}
        assert found["agent_metrics"] == pytest.approx({f"{name}/reward": each for name, each in overall.items()})
        assert found["key_metrics"] == {"mean/reward": 2.0}
        assert [each["_ng_task_index"] for each in found["group_level_metrics"]] == [0, 3]
        assert [each["mean/reward"] for each in found["group_level_metrics"]] == [-1.0, 3.0]
        assert "std/reward" not in found["group_level_metrics"][0]  # of one rollout
        empty = {"group_level_metrics": [], "agent_metrics": {}, "key_metrics": {}}
        assert await post(client, "/aggregate_metrics", {"verify_responses": []}) == empty
        for reward in (None, "1"):
            wrong = {"verify_responses": [{"_ng_task_index": 0, "reward": reward}]}
            error_of(await client.post("/aggregate_metrics", json=wrong), 422, "invalid_body")

    asked(scorer, test)


def test_tool_calls_of_nemo_gym_reach_the_template(scorer):
    calls = [{"type": "function_call", "call_id": name, "name": name, "arguments": "{}"} for name in "ab"]
    results = [{"type": "function_call_output", "call_id": name, "output": f"{name} done"} for name in "ab"]
    final = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Done."}]}
    tool = {"type": "function", "name": "a", "parameters": {"type": "object"}, "strict": True}
    entries = [{"type": "function", "id": name, "function": {"name": name, "arguments": "{}"}} for name in "ab"]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": "", "tool_calls": entries},
        *({"role": "tool", "tool_call_id": name, "content": f"{name} done"} for name in "ab"),
        {"role": "assistant", "content": "Done."},
    ]
    expected = float(scorer.score_conversations([messages])[0])

    async def test(client: httpx2.AsyncClient) -> None:
        params = {"input": PROMPT, "instructions": "Be brief.", "tools": [tool]}
        body = {"responses_create_params": params, "response": {"output": [*calls, *results, final]}}
        assert (await post(client, "/verify", body))["reward"] == near(expected)
        body["response"]["output"].pop()
        error = error_of(await client.post("/verify", json=body), 422, "invalid_body")
        assert "assistant" in error["message"]

    asked(scorer, test)


def test_verl_gets_the_reward_though_it_removes_the_bos(make_model_folder, tmp_path):
    # verl/experimental/reward_loop/reward_loop.py, 0.10.dev 1dda039: _preprocess_reward_inputs, compute_score_disrm
    tokenizer = llama3_tokenizer("[PAD]")
    scorer = tiny_scorer(make_model_folder("llama", tokenizer=tokenizer), tmp_path / "saved")
    expected = float(scorer.score([PROMPT], ANSWERS[:1])[0])
    text = scorer.tokenizer.apply_chat_template(CHAT, add_generation_prompt=False, tokenize=False)
    text = text.removeprefix(str(scorer.tokenizer.bos_token))

    async def test(client: httpx2.AsyncClient) -> None:
        found = await post(client, "/classify", {"model": "tiny", "input": text, "use_activation": False})
        assert found["data"][-1]["probs"][-1] == near(expected)
        found = await post(client, "/classify", {"model": "tiny", "input": text, "activation": False})  # verl 0.8
        assert found["data"][-1]["probs"][-1] == near(expected)
        found = await post(client, "/v1/embeddings", {"model": "tiny", "input": text})
        assert found["data"][-1]["embedding"][-1] == near(expected)

    asked(scorer, test)


# --- vLLM and OpenAI -------------------------------------------------------------------------------------------------


def test_pooling_and_embeddings_return_vectors(scorer, expected):
    # vllm/frontend/entrypoints/pooling, 055e47c; OpenAI's client asks for base64 unless it is told otherwise
    texts = [
        scorer.tokenizer.apply_chat_template([CHAT[0], {**CHAT[1], "content": each}], tokenize=False)
        for each in ANSWERS
    ]
    ids = [scorer.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    async def test(client: httpx2.AsyncClient) -> None:
        for path, name in (("/pooling", "data"), ("/v1/embeddings", "embedding")):
            for given in (texts, ids):
                found = await post(client, path, {"model": "tiny", "input": given})
                assert [each["index"] for each in found["data"]] == [0, 1, 2]
                assert [each[name][0] for each in found["data"]] == near(expected)
                assert found["usage"]["prompt_tokens"] == sum(map(len, ids))
            found = await post(client, path, {"input": texts, "encoding_format": "base64"})
            values = [struct.unpack("<f", base64.b64decode(each[name]))[0] for each in found["data"]]
            assert values == near(expected)
        found = await post(client, "/pooling", {"messages": CHAT, "task": "classify"})
        assert found["data"] == [{"index": 0, "object": "pooling", "data": near(expected[:1])}]

    asked(scorer, test)


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_pairs_of_vllm_get_the_chat_template(scorer, expected, path):
    # vllm/frontend/entrypoints/pooling/scoring/protocol.py, 055e47c
    async def test(client: httpx2.AsyncClient) -> None:
        for one, other in (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")):
            for prompts in (PROMPT, [PROMPT], [PROMPT] * 3):
                found = await post(client, path, {"model": "tiny", one: prompts, other: ANSWERS})
                assert [each["score"] for each in found["data"]] == near(expected)
                assert found["data"][2]["index"] == 2
        found = await post(client, path, {"text_1": PROMPT, "text_2": ANSWERS[1]})
        assert found["data"] == [{"index": 0, "object": "score", "score": near(expected[1])}]
        wrong = {"text_1": [PROMPT] * 2, "text_2": ANSWERS}
        assert "2 and 3" in error_of(await client.post(path, json=wrong), 422, "invalid_body")["message"]
        wrong = {"text_1": PROMPT, "documents": ANSWERS}
        assert (
            "`queries` and `documents`" in error_of(await client.post(path, json=wrong), 422, "invalid_body")["message"]
        )

    asked(scorer, test)


def test_our_items_are_not_taken_for_those_of_vllm(scorer, expected):
    async def test(client: httpx2.AsyncClient) -> None:
        found = await post(client, "/score", {"items": [{"prompt": PROMPT, "responses": ANSWERS}]})
        assert found["rewards"] == [near(expected)]
        error = error_of(await client.post("/score", json={"item": [], "text_3": "a"}), 422, "invalid_body")
        assert "did you mean `items`?" in error["message"]

    asked(scorer, test)


# --- rerankers -------------------------------------------------------------------------------------------------------


def test_rerank_returns_documents_best_first(scorer, expected):
    order = np.argsort(expected)[::-1].tolist()
    # cohere 7.0.9 (raw_base_client.py, v2/raw_client.py), JinaRerank of langchain-community 08b4fce, vLLM 055e47c
    cohere_1 = {"query": PROMPT, "documents": [{"text": each} for each in ANSWERS], "return_documents": False}
    cohere_2 = {"model": "tiny", "query": PROMPT, "documents": ANSWERS, "top_n": 2}
    jina = {"query": PROMPT, "documents": ANSWERS, "model": "tiny", "top_n": None}
    vllm = {"model": "tiny", "query": PROMPT, "documents": ANSWERS, "top_n": 0, "use_activation": False}

    async def test(client: httpx2.AsyncClient) -> None:
        for path, body in (("/v1/rerank", cohere_1), ("/v2/rerank", cohere_2), ("/v1/rerank", jina), ("/rerank", vllm)):
            found = await post(client, path, body)
            kept = order[: body.get("top_n") or None]
            assert [each["index"] for each in found["results"]] == kept
            assert [each["relevance_score"] for each in found["results"]] == near([expected[place] for place in kept])
            shown = [each.get("document") for each in found["results"]]
            assert shown == [None if body is cohere_1 else {"text": ANSWERS[place]} for place in kept]
            assert found["model"] == "tiny"
            assert found["usage"]["total_tokens"] > 0

    asked(scorer, test)


def test_tei_gets_raw_scores(scorer, expected):
    # router/src/http/types.rs of text-embeddings-inference 1.9.3; HuggingFaceTEIRanker of haystack
    order = np.argsort(expected)[::-1].tolist()
    text = scorer.tokenizer.apply_chat_template(CHAT, tokenize=False)

    async def test(client: httpx2.AsyncClient) -> None:
        body = {"query": PROMPT, "texts": ANSWERS, "raw_scores": True}
        found = await post(client, "/rerank", body)
        assert found == [{"index": place, "score": near(expected[place])} for place in order]
        more = {"truncate": True, "truncation_direction": "Right", "return_text": True}
        found = await post(client, "/rerank", body | more)
        assert [each["text"] for each in found] == [ANSWERS[place] for place in order]
        one = [{"label": "reward", "score": near(expected[0])}]
        assert await post(client, "/predict", {"inputs": text}) == one
        assert await post(client, "/predict", {"inputs": [PROMPT, ANSWERS[0]], "raw_scores": True}) == one
        other = [{"label": "reward", "score": near(expected[1])}]
        assert await post(client, "/predict", {"inputs": [[text], [PROMPT, ANSWERS[1]]]}) == [one, other]
        for path, body in (("/rerank", {"query": "a", "texts": ["b"]}), ("/predict", {"inputs": "a"})):
            error = error_of(await client.post(path, json={**body, "raw_scores": False}), 422, "invalid_body")
            assert "`raw_scores` true" in error["message"]
        error_of(await client.post("/predict", json={"inputs": [["a", "b", "c"]]}), 422, "invalid_body")

    asked(scorer, test)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (
            "/score",
            {"prompts": "a", "response": "b"},
            "unknown field `prompts`; did you mean `prompt`? Expected fields: ",
        ),
        (
            "/score",
            {"items": [{"prompt": "a", "respnse": "b"}]},
            "items.0: unknown field `respnse`; did you mean `response`?",
        ),
        (
            "/score",
            {"zzz": 1},
            "unknown field `zzz`. Expected fields: prompt, response, responses, messages, text, tools",
        ),
        ("/score", {"<script>": 1}, "unknown field. Expected fields: prompt"),
        ("/score", {"text_1": "a", "text2": "b"}, "did you mean `text_2`?"),
        ("/rank", {"prompt": "a", "response": ["b"]}, "did you mean `responses`?"),
        ("/get_reward", {"queries": ["a"]}, "did you mean `query`?"),
        ("/remote_rm", {"prompt": "a", "responses": "b"}, "did you mean `response`?"),
        ("/classify", {"inputs": "a"}, "did you mean `input`?"),
        ("/pooling", {"input": "a", "encoding": "float"}, "did you mean `encoding_format`?"),
        ("/v1/embeddings", {"inputs": "a"}, "did you mean `input`?"),
        ("/rerank", {"query": "a", "document": ["b"]}, "did you mean `documents`?"),
        ("/rerank", {"query": "a", "texts": ["b"], "raw_score": True}, "did you mean `raw_scores`?"),
        ("/predict", {"input": "a"}, "did you mean `inputs`?"),
        ("/verify", {"response": {}}, "responses_create_params: Field required"),
        (
            "/rerank",
            {"query": "a", "documents": ["b"], "max_tokens_per_doc": 5},
            "`max_tokens_per_doc` is not supported",
        ),
        ("/v1/score", {"text_1": "a", "text_2": "b", "instruction": "x"}, "`instruction` is not supported"),
        ("/pooling", {"input": "a", "dimensions": 3}, "dimensions"),
    ],
)
def test_unknown_and_unsupported_fields_are_errors(scorer, path, body, message):
    async def test(client: httpx2.AsyncClient) -> None:
        found = error_of(await client.post(path, json=body), 422, "invalid_body")["message"]
        assert message in found
        assert "script" not in found
        assert "tag:" not in found

    asked(scorer, test)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/pooling", {"input": "a"}),
        ("/v1/embeddings", {"input": "a"}),
        ("/v1/score", {"text_1": "a", "text_2": "b"}),
        ("/rerank", {"query": "a", "documents": ["b"]}),
    ],
)
def test_another_model_is_not_found(scorer, path, body):
    async def test(client: httpx2.AsyncClient) -> None:
        error_of(await client.post(path, json={"model": "other", **body}), 404, "not_found")
        assert "/v1/rerank" in error_of(await client.get("/nothing"), 404, "not_found")["message"]

    asked(scorer, test)


def test_the_end_of_a_formatted_text(chat_tokenizer, text_tokenizer):
    texts = FormattedTexts(chat_tokenizer)
    for text in ("a", "a<|im_end|>", "a<|im_end|>\n", "a<|im_end|>\n<|im_end|>"):
        assert texts.finished(text) == "a<|im_end|>\n"
    assert texts.finished("a \n<|im_end|>") == "a \n<|im_end|>\n"  # white space of the response stays
    assert texts.is_formatted_prompt("<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n")
    assert not texts.is_formatted_prompt("What is <b>?")
    chat_tokenizer.chat_template = (
        "{% for m in messages %}{{ 'Q: ' if m['role'] == 'user' else 'A: ' }}{{ m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'A: ' }}{% endif %}"
    )
    plain = FormattedTexts(chat_tokenizer)
    assert plain.finished("Q: a\nA: b") == plain.finished("Q: a\nA: b\n") == "Q: a\nA: b\n"
    assert plain.is_formatted_prompt("Q: a\nA: ")
    assert not plain.is_formatted_prompt("Q: a")
    none = FormattedTexts(text_tokenizer)
    assert none.finished("a") == "a"
    assert not none.is_formatted_prompt("<|endoftext|>")
