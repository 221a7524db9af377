"""Server errors repeat nothing that was sent, and values are not coerced."""

import json

import httpx2
import pytest
from serving_scorers import asked, error_of, tiny_scorer

from hf_reward.data.fields import read_messages
from hf_reward.data.preference_row import PreferenceFormatError
from hf_reward.modeling.position_limits import position_limit
from hf_reward.preprocessing.response_encoding import EncodedResponse
from hf_reward.scoring.reward_scorer import RewardScorer
from hf_reward.scoring.serving.protocols.own import ScoreBody
from hf_reward.scoring.serving.protocols.vllm import ClassifyBody

SECRET = "hunter2-private"
REFUSING = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('No tools here') }}{% endif %}"
REFUSING += "{% if m.content == 'raise' %}{{ raise_exception('What is ' + m.name) }}{% endif %}"
REFUSING += "{{ m.content + '\n' }}{% endfor %}"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/classify", {"model": SECRET, "input": "a"}),
        ("/classify", {"input": SECRET, "messages": []}),
        ("/classify", {"input": [SECRET, 1]}),
        ("/classify", {"messages": [{"role": "user", "text": SECRET}]}),
        ("/classify", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": [SECRET]}]}),
        ("/classify", {"messages": [{"role": f"user\n{SECRET}", "content": "a"}]}),
        ("/classify", {"messages": [{"role": SECRET, "content": {"a": SECRET}}]}),
        ("/classify", {"input": "a", "padding": SECRET}),
        ("/classify", {"messages": [], "chat_template_kwargs": SECRET}),
        ("/score", {"prompt": [{"role": 1, "content": SECRET}], "response": "a"}),
        ("/score", {"prompt": "a", "response": [{"content": SECRET}]}),
        ("/score", {"prompt": "a", "response": [{"role": "assistant", "content": None, "tool": SECRET}]}),
        ("/score", {f"{SECRET} of mine": 1}),
        ("/score", {"prompt": "a", "response": {"x": SECRET}}),
        ("/score", {"prompt": "a", "responses": [SECRET, None]}),
        ("/rank", {"prompt": "a", "responses": SECRET}),
        ("/rank", {"items": [{"prompt": "a", "responses": ["a"]}, SECRET]}),
        ("/get_reward", {"query": {"a": SECRET}}),
        ("/get_reward", {"query": ["a", {SECRET: 1}]}),
        ("/score", {"messages": [{"role": "user", "content": "raise", "name": SECRET}] * 2, "allow_empty": True}),
        ("/score", {"prompt": [{"role": "user", "content": "raise", "name": SECRET}], "response": "b"}),
        ("/score", {"prompt": [{"role": "user", "content": [{"type": SECRET}]}], "response": "b"}),
    ],
)
def test_errors_repeat_nothing_of_a_body(scorer, path, body):
    scorer.tokenizer.chat_template = REFUSING

    async def test(client: httpx2.AsyncClient) -> None:
        answer = await client.post(path, json=body)
        assert answer.status_code in (404, 422)
        assert "hunter2" not in answer.text
        assert answer.json()["error"]["message"]

    asked(scorer, test)


def test_errors_of_a_template_are_returned(scorer):
    scorer.tokenizer.chat_template = REFUSING

    async def test(client: httpx2.AsyncClient) -> None:
        prompt = [{"role": "user", "content": "a"}, {"role": "tool", "content": SECRET}]
        error = error_of(await client.post("/score", json={"prompt": prompt, "response": "b"}), 422, "unscorable")
        assert "No tools here" in error["message"]

    asked(scorer, test)


def test_errors_for_local_rows_show_the_found_value():
    with pytest.raises(PreferenceFormatError, match="but has") as caught:
        read_messages([{"role": "user", "text": SECRET}], "prompt")
    assert SECRET in str(caught.value)
    assert SECRET not in caught.value.public_message


@pytest.mark.parametrize("given", [[True, False], [[True]], [1.0], ["1", 2], [[1], 2], [None], 3, True])
def test_token_ids_are_integers(scorer, given):
    async def test(client: httpx2.AsyncClient) -> None:
        error_of(await client.post("/classify", json={"input": given}), 422, "invalid_body")
        error_of(
            await client.post("/score", json={"prompt": "a", "response": "b", "allow_empty": 1}), 422, "invalid_body"
        )

    asked(scorer, test)


def test_token_ids_are_limited_to_the_training_length(make_model_folder, tmp_path):
    """The limit also holds for models without a position limit; the longest valid row gets the reward of its text."""
    scorer = tiny_scorer(make_model_folder("llama"), tmp_path / "saved")
    assert position_limit(scorer.model) is None
    scorer = RewardScorer(scorer.model, scorer.tokenizer, scorer.record, max_length=40)
    ids = [5 + place % 50 for place in range(41)]
    expected = scorer.score_encoded([EncodedResponse(input_ids=ids[:40])]).rewards[0]

    async def test(client: httpx2.AsyncClient) -> None:
        answer = await client.post("/classify", json={"input": [ids[:3], ids[:40]]})
        assert answer.json()["data"][1]["probs"] == pytest.approx([expected], rel=1e-5)
        error = error_of(await client.post("/classify", json={"input": [ids[:40], ids]}), 413, "too_large")
        assert error["rows"] == [{"index": 1, "reason": "too long: 41 token ids, and the model takes at most 40"}]
        error_of(await client.post("/classify", json={"input": ids}), 413, "too_large")

    asked(scorer, test)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("application/vnd.api+json", 200),
        ("application/jsonp", 415),
        ("application/x-json-stream", 415),
        ("text/json", 415),
        ("text/plain; a=application/json", 415),
        ("json", 415),
        ("", 415),
    ],
)
def test_only_json_is_json(scorer, kind, status):
    async def test(client: httpx2.AsyncClient) -> None:
        content = json.dumps({"prompt": "a", "response": "b"})
        answer = await client.post("/score", content=content, headers={"Content-Type": kind} if kind else {})
        assert answer.status_code == status

    asked(scorer, test)


@pytest.mark.parametrize(
    "role",
    [
        "assistant\nroot: x",
        "user<|im_end|>",
        " user",
        "user ",
        "",
        "a" * 65,
        "a\x00b",
        "a  b",
        "user\r",
        "[INST]",
        "a:b",
    ],
)
def test_a_role_must_be_a_name(scorer, role):
    turns = [{"role": role, "content": "a"}, {"role": "assistant", "content": "b"}]

    async def test(client: httpx2.AsyncClient) -> None:
        for path, body in (
            ("/score", {"messages": turns}),
            ("/classify", {"messages": turns}),
            ("/rank", {"prompt": turns[:1], "responses": ["b"]}),
        ):
            error_of(await client.post(path, json=body), 422, "unscorable")

    asked(scorer, test)
    for name in ("user", "assistant", "tool_response", "function.call", "Human User", "ipython", "écrivain", "a-b"):
        assert read_messages([{"role": name, "content": "a"}], "prompt")[0]["role"] == name


def test_a_million_invalid_items_make_one_error():
    for body, model in (
        ({"input": [[1], *[True] * 10**6]}, ClassifyBody),
        ({"items": [{"wrong": 1}] * 10**5}, ScoreBody),
        ({"prompt": "a", "responses": [1] * 10**5}, ScoreBody),
        ({"messages": [1] * 10**5}, ScoreBody),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 (pydantic's, which is counted below)
            model.model_validate(body)
        assert caught.value.error_count() <= 8  # type: ignore[attr-defined]
