"""The server scores images of data URLs, and reads no file or URL that a client names."""

from pathlib import Path
from typing import Any

import httpx2
import pytest
from serving_scorers import asked, error_of, tiny_scorer
from vision_models import data_url, encoded, picture, save_vision_reward_model

from hf_reward.scoring.reward_scorer import RewardScorer

QUESTION = {"type": "text", "text": "What is shown?"}


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory, _chat_tokenizer: Any) -> RewardScorer:
    folder = save_vision_reward_model(tmp_path_factory.mktemp("vision"), _chat_tokenizer)
    return RewardScorer.from_pretrained(folder, device="cpu")


def _prompt(image: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [image, QUESTION]}]


def _openai(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def test_images_in_data_urls_have_the_rewards_of_the_scorer(scorer: RewardScorer) -> None:
    answers = ["A red square.", "A dog."]
    prompts = [_prompt({"type": "image", "image": picture(number)}) for number in (0, 1)]
    expected = [scorer.score([prompt] * 2, answers).tolist() for prompt in prompts]
    assert expected[0] != pytest.approx(expected[1], abs=1e-3)

    async def test(client: httpx2.AsyncClient) -> None:
        for number, rewards in enumerate(expected):
            body = {"prompt": _prompt(_openai(data_url(picture(number)))), "responses": answers}
            reply = await client.post("/score", json=body)
            assert reply.status_code == 200, reply.text
            assert reply.json()["rewards"] == pytest.approx(rewards, abs=1e-5)
            messages = [*body["prompt"], {"role": "assistant", "content": answers[0]}]
            reply = await client.post("/classify", json={"messages": messages})
            assert reply.json()["data"][0]["probs"][0] == pytest.approx(rewards[0], abs=1e-5)

    asked(scorer, test)


def test_files_and_urls_of_clients_are_not_read(scorer: RewardScorer, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(picture(0)))
    parts = [
        {"type": "image", "image": str(secret)},
        {"type": "image", "path": str(secret)},
        _openai(str(secret)),
        _openai(secret.as_uri()),
        _openai("http://127.0.0.1:9/picture.png"),
        _openai("data:image/png;base64,AAAA"),
        {"type": "image"},
    ]

    async def test(client: httpx2.AsyncClient) -> None:
        for part in parts:
            reply = await client.post("/score", json={"prompt": _prompt(part), "responses": ["a", "b"]})
            message = error_of(reply, 422, "unscorable")["message"]
            assert "secret" not in message

    asked(scorer, test)


def test_a_server_of_a_text_model_refuses_images(saved_llama: Path, tmp_path: Path) -> None:
    async def test(client: httpx2.AsyncClient) -> None:
        body = {"prompt": _prompt(_openai(data_url(picture(0)))), "responses": ["a", "b"]}
        assert "image" in str((await client.post("/score", json=body)).json())

    asked(tiny_scorer(saved_llama, tmp_path), test)
