"""The server scores images of data URLs, and reads no file or URL that a client names."""

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import pytest
from running_servers import running
from serving_scorers import asked, error_of, tiny_scorer
from vision_models import data_url, encoded, picture, save_vision_reward_model

from hf_reward.scoring.judging.labelling import label_rows
from hf_reward.scoring.remote_reward import RemoteReward
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


def test_a_client_sends_its_images_as_data_urls(scorer: RewardScorer, tmp_path: Path) -> None:
    """`RemoteReward` reads the files, and the server does not."""
    file = tmp_path / "picture.png"
    file.write_bytes(encoded(picture(1)))
    images = [picture(0), encoded(picture(0)), str(file), data_url(picture(1))]
    prompts = [_prompt({"type": "image", "image": image}) for image in images]
    answers = ["A dog."] * len(images)
    expected = scorer.score(prompts, answers)
    with running(scorer) as url:
        remote = RemoteReward(url, batch_size=3)
        assert remote.score(prompts, answers) == pytest.approx(expected, abs=1e-5)
        whole = [[*prompt, {"role": "assistant", "content": "A dog."}] for prompt in prompts]
        assert remote.score_conversations(whole) == pytest.approx(expected, abs=1e-5)
    assert expected[0] != pytest.approx(expected[2], abs=1e-3)


def test_the_image_token_in_a_text_is_an_error_of_its_request_only(scorer: RewardScorer) -> None:
    prompt = _prompt({"type": "image", "image": picture(0)})
    expected = scorer.score([prompt], ["A dog."])[0]
    with pytest.raises(ValueError, match="contains '<image>', which the model reserves for images"):
        scorer.score([prompt, "Hi"], ["A dog.", "a <image> b"])
    with pytest.raises(ValueError, match="contains '<video>', which the model reserves for videos"):
        scorer.score([prompt], ["a <video> b"])

    async def test(client: httpx2.AsyncClient) -> None:
        good = {"prompt": _prompt(_openai(data_url(picture(0)))), "response": "A dog."}
        bad = {"prompt": "Hi", "response": "a <image> b"}
        replies = await asyncio.gather(*(client.post("/score", json=body) for body in [good, bad] * 10))
        for reply in replies[::2]:
            assert reply.json()["rewards"] == pytest.approx([expected], abs=1e-5)
        for reply in replies[1::2]:
            error_of(reply, 422, "unscorable")

    asked(scorer, test)


def test_images_in_a_column_are_not_ignored_by_reward_functions(scorer: RewardScorer) -> None:
    for function in (scorer, RemoteReward("http://127.0.0.1:9")):
        with pytest.raises(ValueError, match="got the column `images`"):
            function(["<image>What?"], ["A dog."], images=[[picture(0)]])
    assert scorer(["What?"], ["A dog."], images=[None])[0] is not None


def test_judges_of_texts_do_not_get_rows_with_images(tmp_path: Path) -> None:
    row = {"prompt": _prompt({"type": "image", "image": encoded(picture(0))}), "chosen": "A dog.", "rejected": "A cat."}
    with pytest.raises(ValueError, match="A judge reads texts, but the row has an image"):
        label_rows([row], tmp_path / "labels.jsonl", "http://127.0.0.1:9/v1")


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
