"""The server check against our own server in all protocols, and against fakes with known faults."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from running_servers import fake, free_port, running
from serving_scorers import tiny_scorer

from hf_reward.scoring.reward_scorer import RewardScorer
from hf_reward.scoring.server_check import check_server, probe_requests
from hf_reward.scoring.server_client import ServerClientError

Change = Callable[[np.ndarray], np.ndarray]


def of_text(scorer: RewardScorer, texts: list[str], special: bool) -> np.ndarray:
    """Rewards of a stock server: the text goes through its tokenizer only."""
    import torch

    rewards = []
    for text in texts:
        ids = scorer.tokenizer(text, add_special_tokens=special, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            rewards.append(float(scorer.model(input_ids=ids).logits[0, 0]))
    return np.array(rewards)


def like_vllm(scorer: RewardScorer, change: Change = lambda values: values) -> Callable[[str, Any], Any]:
    def answer(path: str, body: Any) -> Any:
        if path == "/v1/models":
            return {"data": [{"id": "served", "owned_by": "vllm"}]}
        if path != "/classify" or body["model"] != "served":
            return 404
        values = change(of_text(scorer, body["input"], body.get("add_special_tokens", True)))
        return {"data": [{"index": place, "probs": [value]} for place, value in enumerate(values.tolist())]}

    return answer


def like_sglang(scorer: RewardScorer, change: Change = lambda values: values) -> Callable[[str, Any], Any]:
    def answer(path: str, body: Any) -> Any:
        if path == "/v1/models":
            return {"data": [{"id": "served", "owned_by": "sglang"}]}
        values = change(of_text(scorer, body["text"], True))
        return [{"embedding": [value], "meta_info": {}} for value in values.tolist()]

    return answer


def like_openrlhf(scorer: RewardScorer) -> Callable[[str, Any], Any]:
    def answer(path: str, body: Any) -> Any:
        if path != "/get_reward":
            return 404
        values = of_text(scorer, body["query"], False).tolist()
        return {"rewards": values, "scores": values, "extra_logs": {"dummy_scores": values}}

    return answer


@pytest.mark.parametrize("kind", ["auto", "hf_reward", "vllm", "openrlhf"])
def test_our_own_server_gives_the_same_rewards_in_each_protocol(scorer, kind):
    with running(scorer, token="secret") as url:
        found = check_server(url, scorer, kind=kind, token="secret")
    assert found.verdict == "same"
    assert found.passed
    assert found.kind == ("hf_reward" if kind == "auto" else kind)
    assert found.rows >= 60  # the tiny model has few positions
    assert found.spearman == pytest.approx(1)
    assert found.largest_relative_difference < 1e-5
    assert "counts" not in " ".join(found.notes)
    assert json.loads(json.dumps(found.to_dict()))["passed"]
    assert f"{found.rows} rows: same" in str(found)


@pytest.mark.parametrize("template", [True, False])
def test_stock_servers_get_the_token_ids_of_the_model(make_model_folder, tmp_path, text_tokenizer, template):
    tokenizer = None if template else text_tokenizer
    scorer = tiny_scorer(make_model_folder("llama", tokenizer=tokenizer), tmp_path / "saved")
    rows = [{"prompt": f"What is {number}?", "response": f"It is {number}."} for number in range(9)]
    for server in (like_vllm(scorer), like_sglang(scorer)):
        with fake(server) as url:
            found = check_server(url, scorer, rows)
            assert (found.verdict, found.rows) == ("same", 9)
            assert check_server(f"{url}/classify", scorer, rows).verdict == "same"
    with fake(like_openrlhf(scorer)) as url:
        assert check_server(f"{url}/get_reward", scorer, rows).verdict == "same"
        assert check_server(url, scorer, rows, kind="openrlhf").verdict == "same"


def test_a_tokenizer_that_adds_bos_gets_text_without_it(make_model_folder, tmp_path, chat_tokenizer):
    from tokenizers import processors

    bos = chat_tokenizer.bos_token
    chat_tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, chat_tokenizer.bos_token_id)]
    )
    scorer = tiny_scorer(make_model_folder("llama", tokenizer=chat_tokenizer), tmp_path / "saved")
    assert scorer.tokenizer("a")["input_ids"][0] == chat_tokenizer.bos_token_id
    for server in (like_vllm(scorer), like_sglang(scorer)):
        with fake(server) as url:
            assert check_server(url, scorer).verdict == "same"


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def noise(values: np.ndarray) -> np.ndarray:
    return values + 0.01 * np.cos(np.arange(len(values)) * 7)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (lambda values: values + 5e-4, "same"),
        (lambda values: values + 0.7, "shifted by a constant"),
        (lambda values: noise(values) + 0.7, "shifted by a constant"),
        (sigmoid, "sigmoid"),
        (lambda values: sigmoid(noise(values)), "sigmoid"),
        (noise, "half precision"),
        (np.ones_like, "softmax"),
        (np.zeros_like, "constant"),
        (lambda values: -values, "different"),
        (lambda values: values * 1.5, "different"),
        (lambda values: np.roll(values, 1), "different"),
    ],
)
def test_changes_of_rewards_by_a_server_are_recognised(scorer, change, verdict):
    with fake(like_vllm(scorer, change)) as url:
        found = check_server(url, scorer)
    assert found.verdict == verdict
    assert found.passed == (verdict in ("same", "half precision"))
    assert verdict in str(found)
    json.dumps(found.to_dict(), allow_nan=False)
    if verdict == "shifted by a constant":
        assert found.mean_shift == pytest.approx(0.7, abs=0.01)


def test_different_token_counts_are_reported(scorer):
    def answer(path: str, body: Any) -> Any:
        values = like_vllm(scorer)(path, body)
        return values if body is None else {**values, "usage": {"prompt_tokens": 7}}

    with fake(answer) as url:
        found = check_server(url, scorer)
    assert "The server counts 28 tokens" in found.notes[-1]


def test_rows_that_cannot_be_scored_are_left_out_and_counted(scorer):
    scorer = RewardScorer(scorer.model, scorer.tokenizer, scorer.record, max_length=500)
    rows = [{"prompt": "a", "response": text} for text in ("b", "c", "d " * 900)]
    with fake(like_vllm(scorer)) as url:
        found = check_server(url, scorer, rows)
        assert found.rows == 2
        assert "1 row left out" in found.notes[0]
        with pytest.raises(ValueError, match="Only 0 of 1 rows qualify"):
            check_server(url, scorer, rows[2:])


def test_almost_constant_rewards_are_reported(scorer):
    import torch

    with torch.no_grad():
        scorer.model.score.weight.zero_()
    with fake(like_vllm(scorer)) as url:
        found = check_server(url, scorer)
    assert found.spearman is None
    assert "almost equal" in found.notes[-1]
    assert "undefined" in str(found)


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (lambda path, body: 401, "vllm", "requires a valid token"),
        (lambda path, body: 404, "vllm", "of another kind"),
        (lambda path, body: 404, "auto", "cannot be detected"),
        (lambda path, body: 500, "openrlhf", "returned 500"),
        (lambda path, body: b"<html>", "openrlhf", "invalid JSON"),
        (lambda path, body: {"scores": [1]}, "openrlhf", "did not answer in the format"),
        (lambda path, body: [1], "hf_reward", "did not answer in the format"),
        (lambda path, body: {"rewards": [1.0]}, "openrlhf", "16 finite numbers"),
        (lambda path, body: b'{"rewards": [' + b"NaN," * 15 + b"NaN]}", "openrlhf", "16 finite numbers"),
        (
            lambda path, body: [{"embedding": [1.0, 2.0]}] * 16,
            "sglang",
            "2 numbers for a text|did not answer in the format",
        ),
        (lambda path, body: {"data": [{"id": "a", "owned_by": "someone"}]}, "auto", "cannot be detected"),
    ],
)
def test_invalid_answers_are_one_clear_error(scorer, answer, kind, message):
    with fake(answer) as url, pytest.raises(ServerClientError, match=message) as error:
        check_server(url, scorer, kind=kind)
    assert "\n" not in str(error.value)


def test_invalid_urls_and_kinds(scorer):
    for kind in ("auto", "vllm"):
        with pytest.raises(ServerClientError, match="cannot be reached"):
            check_server(f"http://127.0.0.1:{free_port()}", scorer, kind=kind)
    with pytest.raises(ValueError, match="must have the form http"):
        check_server("localhost:8000", scorer)
    with pytest.raises(ValueError, match="`kind` must be"):
        check_server("http://localhost:8000", scorer, kind="tei")
    with running(scorer, token="secret") as url, pytest.raises(ServerClientError, match="requires a valid token"):
        check_server(url, scorer, token="wrong")


def test_a_redirect_to_another_origin_does_not_get_the_token(scorer):
    seen: list[tuple[str, str | None]] = []

    class Redirects(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers["Authorization"]))
            self.send_response(307 if self.path == "/v1/models" else 404)
            self.send_header("Location", f"http://localhost:{server.server_address[1]}/moved")
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Redirects) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        with pytest.raises(ServerClientError):
            check_server(f"http://127.0.0.1:{server.server_address[1]}", scorer, token="secret")
        server.shutdown()
        thread.join()
    assert seen == [("/v1/models", "Bearer secret"), ("/moved", None)]


def test_the_probes_make_enough_rows():
    assert len(probe_requests()) == 64
