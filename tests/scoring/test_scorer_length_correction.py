"""A stored length correction applies on request, in all methods; inputs of unknown length are problems."""

import contextlib
import json
import sys
from pathlib import Path

import httpx2
import numpy as np
import pytest
from saved_models import saved_model
from serving_scorers import asked, error_of
from test_length_correction import CURVE

from hf_reward import CheckpointRecord, RewardScorer, ScoringError, store_length_correction
from hf_reward.cli import app as cli
from hf_reward.data.score_request import ScoreRequest, request_from_messages, request_from_text
from hf_reward.scoring.serving.server import _loaded
from hf_reward.scoring.serving.settings import ServerSettings

PROMPT = "Which is heavier?"
ANSWERS = ["Water.", "Oil is heavier, I think.", "x" * 150, "No"]
CHAT = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": ANSWERS[1]}]


@pytest.fixture
def folder(folder: Path) -> Path:
    store_length_correction(folder, CURVE)
    return folder


@pytest.fixture
def plain(folder: Path) -> RewardScorer:
    return RewardScorer.from_pretrained(folder)


@pytest.fixture
def scorer(folder: Path) -> RewardScorer:
    return RewardScorer.from_pretrained(folder, length_correction=True)


def expected(plain: RewardScorer, answers: list[str] = ANSWERS) -> np.ndarray:
    """Reward minus the curve at the length of the text."""
    return CURVE.apply(plain.score([PROMPT] * len(answers), answers), [len(each) for each in answers])


# --- methods ---


def test_rewards_are_corrected_exactly_and_only_on_request(plain, scorer):
    found = scorer.score([PROMPT] * 4, ANSWERS)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected(plain))
    assert np.abs(found - plain.score([PROMPT] * 4, ANSWERS)).min() > 0.04
    assert (plain.corrects_length, scorer.corrects_length) == (False, True)


def test_conversations_count_the_characters_of_the_response(plain, scorer):
    want = expected(plain)[1]
    np.testing.assert_allclose(scorer.score_conversations([CHAT]), [want], atol=1e-6)
    np.testing.assert_allclose(scorer.score([CHAT[:1]], [CHAT[1:]]), [want], atol=1e-6)
    turns = [{"role": "assistant", "content": "ab"}, {"role": "tool", "content": "c"}, *CHAT[1:]]
    assert ScoreRequest(prompt=CHAT[:1], response=turns).characters == len("ab\nc\n") + len(ANSWERS[1])
    assert request_from_messages(CHAT).characters == len(ANSWERS[1])
    assert request_from_text("whole").characters is None


def test_rankings_and_probabilities_are_corrected(plain, scorer):
    want = expected(plain)
    for ranking in (scorer.rank(PROMPT, ANSWERS), scorer.best_of_n([PROMPT], [ANSWERS])[0]):
        np.testing.assert_allclose(ranking.rewards, want, atol=1e-6)
        assert ranking.order == np.argsort(-want, kind="stable").tolist()
    assert scorer.compare(PROMPT, ANSWERS[0], ANSWERS[2]) == pytest.approx(1 / (1 + np.exp(want[2] - want[0])))


def test_batches_of_columns_are_corrected_and_whole_texts_are_problems(plain, scorer):
    found = scorer({"prompt": [PROMPT] * 4, "response": ANSWERS, "note": [1, 2, 3, 4]})
    np.testing.assert_allclose(found["reward"], expected(plain), atol=1e-6)
    assert found["problem"] == [""] * 4
    assert scorer([PROMPT], [ANSWERS[0]]) == pytest.approx([float(expected(plain)[0])])
    mixed = scorer({"prompt": [PROMPT, None], "response": [ANSWERS[0], None], "text": [None, "User: a Bot: b"]})
    np.testing.assert_allclose(mixed["reward"], [expected(plain)[0], np.nan], atol=1e-6)
    assert mixed["problem"][0] == ""
    assert "cannot be corrected for length" in mixed["problem"][1]


def test_encoded_requests_have_a_length_and_token_ids_have_none(plain, scorer):
    encoded = scorer.encode([ScoreRequest(prompt=PROMPT, response=text) for text in ANSWERS])
    assert [each.characters for each in encoded] == [len(text) for text in ANSWERS]
    np.testing.assert_array_equal(scorer.score_encoded(encoded).rewards, expected(plain))
    with pytest.raises(ScoringError, match=r"1 of 1 responses.*cannot be separated") as error:
        scorer.score_texts(["whatever it is"])
    assert np.isnan(error.value.rewards).all()
    assert np.isfinite(plain.score_texts(["whatever it is"])).all()


def test_equal_token_ids_of_texts_with_different_lengths_are_corrected_separately(scorer):
    one, *_ = scorer.encode([ScoreRequest(prompt=PROMPT, response="Water.")])
    other = type(one)(input_ids=one.input_ids, characters=99)
    found = scorer.score_encoded([one, other]).rewards
    assert found[0] - found[1] == pytest.approx(3 - float(CURVE.at([6])[0]), abs=1e-5)


def test_an_empty_response_has_the_length_zero(plain, scorer):
    want = plain.score([PROMPT], [""], allow_empty=True) + 1
    np.testing.assert_allclose(scorer.score([PROMPT], [""], allow_empty=True), want, atol=1e-6)


# --- fingerprint and errors ---


def test_the_fingerprint_includes_the_length_correction(folder, plain, scorer):
    on, off = scorer.fingerprint(), plain.fingerprint()
    assert {name: on[name] for name in on if name != "length_correction"} == off
    assert RewardScorer.from_pretrained(folder, length_correction=True).fingerprint() == on
    content = CURVE.to_dict() | {"values": [0.0, 0.0, 1.0]}
    store_length_correction(folder, type(CURVE).from_dict(content))
    assert RewardScorer.from_pretrained(folder, length_correction=True).fingerprint() != on
    assert json.loads(json.dumps(on)) == on


def test_a_model_without_a_correction_is_refused(make_model_folder, tmp_path, folder):
    other = saved_model(make_model_folder("mistral"), tmp_path / "other")
    with pytest.raises(ValueError, match=r"other has no stored length correction.*store_length_correction"):
        RewardScorer.from_pretrained(other, length_correction=True)
    (other / "reward_config.json").unlink()
    with pytest.raises(ValueError, match="no stored length correction"):
        RewardScorer.from_pretrained(other, length_correction=True)
    record = CheckpointRecord.load(folder)
    assert record is not None
    record.length_correction = {**record.length_correction, "unit": "tokens"}
    record.save(folder)
    with pytest.raises(ValueError, match="must be 'characters', but is 'tokens'"):
        RewardScorer.from_pretrained(folder, length_correction=True)
    assert not RewardScorer.from_pretrained(folder).corrects_length


# --- command line and server ---


def test_the_command_line_corrects_on_request(call, folder, plain, tmp_path):
    want = expected(plain)
    words = ("--model", folder, "--length-correction", "--json")
    code, out, _ = call("score", *words, "--prompt", PROMPT, "--response", ANSWERS[0], "--response", ANSWERS[2])
    assert code == 0
    np.testing.assert_allclose(json.loads(out)["rewards"], [want[0], want[2]], atol=1e-6)
    data = tmp_path / "lists.jsonl"
    data.write_text(json.dumps({"prompt": PROMPT, "responses": ANSWERS}) + "\n")
    assert call("rank", *words, "--data", data, "--out", tmp_path / "out.jsonl")[0] == 0
    np.testing.assert_allclose(json.loads((tmp_path / "out.jsonl").read_text())["reward"], want, atol=1e-6)
    other = ("--model", folder, "--json", "--data", data, "--out", tmp_path / "out.jsonl", "--resume")
    code, _, err = call("rank", *other)
    assert code == 1
    assert "length_correction" in err, "outputs with and without are not mixed"
    data.write_text(json.dumps({"text": "a formatted text"}) + "\n")
    code, out, err = call("score", *words, "--data", data, "--out", tmp_path / "texts.jsonl")
    assert code == 3
    assert "corrected for length" in (tmp_path / "texts.quarantine.jsonl").read_text()


def test_the_server_corrects_on_request(folder, plain, scorer, monkeypatch):
    want = expected(plain)

    async def test(client: httpx2.AsyncClient) -> None:
        answer = await client.post("/score", json={"prompt": PROMPT, "responses": ANSWERS})
        np.testing.assert_allclose(answer.json()["rewards"], want, atol=1e-5)
        answer = await client.post("/score", json={"text": "a formatted text"})
        assert "corrected for length" in str(error_of(answer, 422, "unscorable"))
        answer = await client.post("/get_reward", json={"query": ["a formatted text"], "prompts": ["a"]})
        assert "corrected for length" in answer.text

    asked(scorer, test, length_correction=True)
    settings = ServerSettings(device="cpu", length_correction=True)
    assert _loaded(folder, settings).corrects_length
    assert not _loaded(folder, ServerSettings(device="cpu")).corrects_length
    with pytest.raises(ValueError, match="scorer was loaded without it"):
        _loaded(plain, ServerSettings(length_correction=True))
    seen = []
    monkeypatch.setattr("hf_reward.scoring.serving.server.serve", lambda model, settings, **_: seen.append(settings))
    monkeypatch.setattr(sys, "argv", ["hf-reward", "serve", "--model", str(folder), "--length-correction"])
    with contextlib.suppress(SystemExit):
        cli.main()
    assert seen[0].length_correction
