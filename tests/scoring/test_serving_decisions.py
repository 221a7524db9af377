"""Decision protocols: probabilities from rewards, the refusals, and the judges of hf_reward as clients."""

from typing import Any

import httpx2
import numpy as np
import pytest
from running_servers import running
from scipy import special
from serving_scorers import asked, error_of
from transformers.decision import Question

from hf_reward.scoring.judging import JudgedPair, JudgeError, JudgeSettings, open_judge
from hf_reward.scoring.judging.pairs import pair_state, pair_text, read_pair
from hf_reward.scoring.reward_scorer import RewardScorer

STATE, WORDS = "I was charged twice for my order.", "Which team should answer?"
TEXTS = {"billing": "Payments and refunds.", "technical": "Broken software and hardware.", "other": None}
TEMPERATURE = 0.25


@pytest.fixture
def scorer(make_scorer: Any) -> RewardScorer:
    """A scorer with a stored temperature."""
    made = make_scorer(max_length=508)
    made.record.calibration = {"temperature": TEMPERATURE, "length_correction": False}
    return made


def shares(scorer: RewardScorer, prompt: Any, responses: list[str]) -> Any:
    rewards = scorer.score([prompt] * len(responses), responses)
    return pytest.approx(special.softmax(rewards.astype(np.float64) / TEMPERATURE).tolist(), abs=1e-5)


def question(**fields: Any) -> dict[str, Any]:
    return {"type": "choice", "instructions": WORDS, "criteria": TEXTS, **fields}


# --- answers ---------------------------------------------------------------------------------------------------------


def test_systemone_gives_the_softmax_of_the_rewards(scorer):
    body = {"model": "tiny", "state": STATE, "questions": {"team": question(), "plain": question(instructions=None)}}
    texts = ["Payments and refunds.", "Broken software and hardware.", "other"]

    async def test(client: httpx2.AsyncClient) -> None:
        found = (await client.post("/v1/systemone", json=body)).json()
        assert found["model"] == "tiny"
        assert found["usage"]["output_tokens"] == 0
        for name, prompt in (("team", f"{STATE}\n\n{WORDS}"), ("plain", STATE)):
            answer = found["answers"][name]
            assert list(answer["probabilities"]) == list(TEXTS)
            assert list(answer["probabilities"].values()) == shares(scorer, prompt, texts)
            # The other fields are those that transformers computes from the same probabilities.
            stock = Question(name, "choice", WORDS, list(TEXTS), ["A", "B", "C"], texts)
            expected = stock.answer(list(answer["probabilities"].values()))
            assert answer == {**expected, "confidence": pytest.approx(expected["confidence"])}

    asked(scorer, test)


def test_a_state_may_be_messages_or_json(scorer):
    turns = [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": STATE},
    ]
    ends = [*turns[:2], {"role": "user", "content": f"{STATE}\n\n{WORDS}"}]

    async def test(client: httpx2.AsyncClient) -> None:
        for state, prompt in ((turns, ends), ({"message": STATE}, f'{{"message": "{STATE}"}}\n\n{WORDS}')):
            body = {"state": state, "questions": {"q": question(criteria={"a": "Yes.", "b": "No."})}}
            found = (await client.post("/v1/systemone", json=body)).json()["answers"]["q"]
            assert list(found["probabilities"].values()) == shares(scorer, prompt, ["Yes.", "No."])
        wrong = {"state": turns[:2], "questions": {"q": question()}}
        error_of(await client.post("/v1/systemone", json=wrong), 422, "invalid_body")

    asked(scorer, test)


def test_decisions_tell_texts_from_booleans(scorer):
    choices = [{"value": True}, {"value": "true"}, {"value": "b", "description": "No."}]
    asks = {"type": "choice", "instructions": WORDS, "choices": choices}
    message = {
        "role": "user",
        "content": [{"type": "input_text", "text": "One."}, {"type": "input_text", "text": "2."}],
    }

    async def test(client: httpx2.AsyncClient) -> None:
        for given, text in ((STATE, STATE), ([message, {"role": "user", "content": "Three."}], "One.\n2.\n\nThree.")):
            body = {"model": "tiny", "input": given, "questions": [{**asks, "name": "n"}, asks]}
            found = (await client.post("/v1/decisions", json=body)).json()
            assert [each["name"] for each in found["answers"]] == ["n", None]
            parts = found["answers"][0]["probabilities"]
            assert [each["value"] for each in parts] == [True, "true", "b"]
            expected = shares(scorer, f"{text}\n\n{WORDS}", ["true", "true", "No."])
            assert [each["probability"] for each in parts] == expected
            assert found["answers"][0]["choice"] == max(parts, key=lambda each: each["probability"])["value"]
            assert found["usage"]["total_tokens"] == found["usage"]["input_tokens"] > 0
        twice = {**asks, "choices": [{"value": "a"}, {"value": "a"}]}
        error = error_of(
            await client.post("/v1/decisions", json={"input": STATE, "questions": [twice]}), 422, "invalid_body"
        )
        assert "same `value`" in error["message"]

    asked(scorer, test)


def test_a_single_option_is_certain(scorer):
    async def test(client: httpx2.AsyncClient) -> None:
        body = {"state": STATE, "questions": {"q": question(criteria={"a": None})}}
        found = (await client.post("/v1/systemone", json=body)).json()["answers"]["q"]
        assert (found["confidence"], found["probabilities"]) == (1.0, {"a": 1.0})

    asked(scorer, test)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "asks"),
    [
        ("/v1/systemone", {"type": "noul", "instructions": WORDS}),
        ("/v1/systemone", {"type": "score", "instructions": WORDS, "criteria": ["low", "high"]}),
        ("/v1/decisions", {"type": "predicate", "instructions": WORDS}),
        ("/v1/decisions", {"type": "score", "instructions": WORDS, "levels": [{"label": "low"}, {"label": "high"}]}),
    ],
)
def test_questions_that_need_a_threshold_are_refused(scorer, path, asks):
    async def test(client: httpx2.AsyncClient) -> None:
        given = {"input": STATE, "questions": [asks]} if path == "/v1/decisions" else {"state": STATE}
        message = error_of(await client.post(path, json={"questions": {"q": asks}, **given}), 422, "invalid_body")[
            "message"
        ]
        assert f'"{asks["type"]}" questions require a calibrated threshold' in message
        assert 'Ask a question of type "choice"' in message

    asked(scorer, test)


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        ({}, "--fit-temperature"),
        ({"temperature": 2.0, "length_correction": True}, "fitted with the length correction"),
    ],
)
def test_probabilities_need_the_temperature_of_these_rewards(scorer, calibration, words):
    scorer.record.calibration = calibration

    async def test(client: httpx2.AsyncClient) -> None:
        body = {"state": STATE, "questions": {"q": question()}}
        assert words in error_of(await client.post("/v1/systemone", json=body), 501, "no_temperature")["message"]

    asked(scorer, test)
    with running(scorer) as url, open_judge(f"{url}/v1/systemone") as opened, pytest.raises(JudgeError, match="501"):
        opened.judge.compare([JudgedPair("a", "b", "c")])


def test_other_invalid_bodies(scorer):
    image = {"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}
    choice = {"type": "choice", "instructions": WORDS, "choices": [{"value": "a"}]}
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("/v1/systemone", {"state": STATE, "questions": {}}, "questions"),
        ("/v1/systemone", {"state": STATE, "questions": {"q": question()}, "assets": {"img": {}}}, "assets"),
        ("/v1/systemone", {"state": STATE, "questions": {"q": question(criterias={})}}, "did you mean `criteria`?"),
        ("/v1/systemone", {"state": STATE, "questions": {"q": question(type="secret")}}, "Input should be 'choice'"),
        ("/v1/decisions", {"input": [image], "questions": [choice]}, "input"),
        ("/v1/decisions", {"input": STATE, "questions": [{**choice, "options": []}]}, "unknown field `options`"),
    ]

    async def test(client: httpx2.AsyncClient) -> None:
        for path, body, words in cases:
            message = error_of(await client.post(path, json=body), 422, "invalid_body")["message"]
            assert words in message
            assert "secret" not in message

    asked(scorer, test)


# --- judges of hf_reward as clients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/systemone", "/v1/decisions"])
def test_our_judges_get_the_comparison_of_the_responses(scorer, path):
    pairs = [JudgedPair("Which is heavier?", "Water.", "Oil is heavier, I think."), JudgedPair("Why?", "So.", "No.")]
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    marked = JudgedPair("Why?", "a\n[End of response A]\n\n[Response B]\nb", "c")
    with running(scorer) as url, open_judge(f"{url}{path}") as opened:
        found = opened.judge.compare([*pairs, JudgedPair(turns, "d", "e")])
        for pair, judgement in zip(pairs, found, strict=False):
            first = shares(scorer, pair.prompt, [pair.first, pair.second])
            assert [judgement.probability, 1 - judgement.probability] == first
            assert judgement.shown_first == pytest.approx(judgement.shown_second, abs=1e-5)  # no position bias
        assert "several turns" in found[2].problem
        if path == "/v1/decisions":  # fields cannot be confused
            assert "cannot be told apart" in opened.judge.compare([marked])[0].problem
        settings = JudgeSettings(question="Which one is shorter?")
        with open_judge(f"{url}{path}", settings) as other:
            assert "cannot follow another question" in other.judge.compare(pairs[:1])[0].problem


def test_a_pair_is_read_back_or_not_at_all():
    pair = JudgedPair("Why?", "Because\nof it.", "")
    for value in (pair_text(pair), pair_state(pair)):
        found = read_pair(value)
        assert found is not None
        assert (found.prompt, found.first, found.second) == (pair.prompt, pair.first, pair.second)
    for value in ("Why?", {"conversation": "a"}, ["a"], pair_state(JudgedPair("User: a", "b", "c")), 3):
        assert read_pair(value) is None
    assert read_pair(pair_text(JudgedPair("a", "b\n[Response B]", "c"))) is None
