import json
import math
from pathlib import Path

import numpy as np
import pytest
from judge_server import Asked, ScriptedJudge, judging
from running_servers import running
from transformers import LlamaConfig, LlamaForCausalLM

from hf_reward.scoring.judging import BudgetError, JudgedPair, JudgeError, JudgeSettings, open_judge
from hf_reward.scoring.judging import endpoints as endpoints_module
from hf_reward.scoring.judging.pairs import pair_state, pair_text
from hf_reward.scoring.judging.position_bias import measure_position_bias
from hf_reward.scoring.judging.protocols import (
    AnswerError,
    chat_bodies,
    decision_bodies,
    read_chat,
    read_decision,
    read_systemone,
    systemone_bodies,
    usage_of,
)

PATHS = ("/v1/chat/completions", "/v1/decisions", "/v1/systemone")


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch):
    monkeypatch.setattr(endpoints_module, "FIRST_WAIT_SECONDS", 0.001)


def pairs(count: int) -> list[JudgedPair]:
    return [JudgedPair(f"Question {number}?", f"good {number}", f"bad {number}") for number in range(count)]


def likes_good(asked: Asked, position: float = 0.0) -> float:
    return min(1.0, max(0.0, (0.8 if asked.first.startswith("good") else 0.2) + position))


# --- protocols --------------------------------------------------------------------------------------------------------


def test_a_pair_as_text_and_as_fields():
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Go"},
    ]
    pair = JudgedPair(turns, [{"role": "assistant", "content": "one"}], "two")
    assert pair_state(pair) == {
        "conversation": "User: Hi\n\nAssistant: Yes?\n\nUser: Go",
        "response_a": "one",
        "response_b": "two",
    }
    assert pair_text(pair).count("[Response B]\ntwo\n[End of response B]") == 1
    assert pair_state(JudgedPair([{"role": "user", "content": "Hi"}], "a", "b"))["conversation"] == "Hi"


def test_chat_bodies():
    (body,) = chat_bodies("m", pairs(1)[0], "Better?", 0)
    assert (body["model"], body["max_tokens"], body["logprobs"]) == ("m", 1, True)
    text = body["messages"][0]["content"]
    assert text.index("Better?") < text.index("good 0") < text.index("bad 0")
    votes = chat_bodies("m", pairs(1)[0], "Better?", 3)
    assert [each["seed"] for each in votes] == [0, 1, 2]
    assert not any("logprobs" in each or "max_tokens" in each for each in votes)


def top(*tokens: tuple[str, float]) -> dict:
    listed = [{"token": token, "logprob": math.log(share)} for token, share in tokens]
    return {"choices": [{"message": {"content": "A"}, "logprobs": {"content": [{"top_logprobs": listed}]}}]}


def test_log_probabilities_are_normalised_over_both_letters():
    # A has 0.3 + 0.1 in two spellings and B has 0.4: 0.4 / 0.8.
    assert read_chat(top(("A", 0.3), ("B", 0.4), (" A", 0.1), ("a", 0.2))) == pytest.approx(0.5)
    assert read_chat(top(("A", 0.9), ("The", 0.1))) == 1.0


def test_a_model_that_begins_with_something_else_gives_no_probability():
    with pytest.raises(AnswerError, match=r"probability of 0\.40 only"):
        read_chat(top(("<think>", 0.6), ("A", 0.3), ("B", 0.1)))


@pytest.mark.parametrize(
    ("text", "value"),
    [("A", 1), (" B\n", 0), ("**B**.", 0), ("<think>A? No.</think>\n\nB", 0), ("Response A", 1), ("Answer: B", 0)],
)
def test_votes(text, value):
    assert read_chat({"choices": [{"message": {"content": text}}]}, 1) == value


@pytest.mark.parametrize("text", ["A or B", "Both", "", None, "Apple", "<think>A"])
def test_an_unclear_vote_is_an_error(text):
    with pytest.raises(AnswerError, match="must be A or B"):
        read_chat({"choices": [{"message": {"content": text}}]}, 1)


@pytest.mark.parametrize("logprobs", [None, {}, {"content": []}])
def test_a_server_without_log_probabilities_does_not_give_a_vote_instead(logprobs):
    answer = {"choices": [{"message": {"content": "A"}, "logprobs": logprobs}]}
    with pytest.raises(AnswerError, match="no log-probabilities"):
        read_chat(answer)
    assert read_chat(answer, 1) == 1.0


def test_decisions():
    (body,) = decision_bodies("m", pairs(1)[0], "Better?", 0)
    assert body["questions"][0]["type"] == "choice"
    assert [each["value"] for each in body["questions"][0]["choices"]] == ["A", "B"]
    shares = [{"value": "B", "probability": 0.6}, {"value": "A", "probability": 0.2}]
    assert read_decision({"answers": [{"type": "choice", "probabilities": shares}]}) == pytest.approx(0.25)
    with pytest.raises(AnswerError, match="refused"):
        read_decision({"answers": [{"type": "refusal", "name": "better"}]})


def test_system_one():
    (body,) = systemone_bodies("m", pairs(1)[0], "Better?", 0)
    assert body["state"] == {"conversation": "Question 0?", "response_a": "good 0", "response_b": "bad 0"}
    assert list(body["questions"]["better"]["criteria"]) == ["A", "B"]
    answer = {"type": "choice", "choice": "A", "probabilities": {"A": 0.7, "B": 0.3}}
    assert read_systemone({"answers": {"better": answer}}) == pytest.approx(0.7)


@pytest.mark.parametrize(
    "answer",
    [{}, [], None, {"answers": {}}, {"answers": {"better": {"probabilities": {"A": 0.5}}}}]
    + [{"answers": {"better": {"probabilities": {"A": bad, "B": 0.5}}}} for bad in (None, "0.5", True, -1, 2, math.nan)]
    + [{"answers": {"better": {"probabilities": {"A": 0.1, "B": 0.1}}}}],
)
def test_a_damaged_answer_is_an_error(answer):
    with pytest.raises(AnswerError):
        read_systemone(answer)


def test_usage():
    assert usage_of({"usage": {"prompt_tokens": 7, "completion_tokens": 1}}) == (7, 1)
    assert usage_of({"usage": {"input_tokens": 7, "output_tokens": 0}}) == (7, 0)
    assert usage_of({"usage": None}) == usage_of([]) == (0, 0)


# --- position bias ----------------------------------------------------------------------------------------------------


def test_position_bias_by_hand():
    # (0.9 + 0.3) / 2 - 0.5 = 0.1 and (0.8 + 0.6) / 2 - 0.5 = 0.2; only the second preference depends on the order.
    found = measure_position_bias(np.array([0.9, 0.8]), np.array([0.3, 0.6]), ["a", "b"])
    assert found.estimate == pytest.approx(0.15)
    assert found.flips == 0.5
    assert (found.pairs, found.prompts) == (2, 2)


def test_quality_is_no_position_bias():
    share = np.random.default_rng(0).uniform(size=200)
    found = measure_position_bias(share, 1 - share, range(200))
    assert found.estimate == pytest.approx(0)
    assert found.low < 0 < found.high


# --- judges on a socket -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_every_protocol_gives_the_judges_probability(path):
    scripted = ScriptedJudge(lambda asked: likes_good(asked, 0.1))
    with judging(scripted) as url, open_judge(f"{url}{path}") as opened:
        (found, *_) = judged = opened.judge.compare(pairs(30))
        (report,) = opened.judge.reports()
    assert found.shown_first == pytest.approx(0.9)
    assert found.shown_second == pytest.approx(1 - 0.3)
    assert all(each.probability == pytest.approx(0.8) for each in judged)
    assert scripted.received == report.requests == 60
    assert report.position_bias.estimate == pytest.approx(0.1)
    assert 0 < report.position_bias.low < 0.1 < report.position_bias.high
    assert report.input_tokens > 0


def test_votes_are_sampled_and_averaged():
    scripted = ScriptedJudge(likes_good)
    settings = JudgeSettings(votes=40, at_once=4)
    with judging(scripted) as url, open_judge(f"{url}{PATHS[0]}", settings) as opened:
        (found,) = opened.judge.compare(pairs(1))
    assert scripted.received == 80
    assert found.probability == pytest.approx(0.8, abs=0.15)
    assert (found.shown_first * 40) == pytest.approx(round(found.shown_first * 40))


def test_the_model_comes_from_the_url_or_the_server():
    scripted = ScriptedJudge(likes_good)
    with judging(scripted) as url:
        for name, model in ((f"{url}/v1/decisions", "scripted"), (f"{url}/v1/decisions#own", "own")):
            with open_judge(name) as opened:
                opened.judge.compare(pairs(1))
            assert json.loads(scripted.bodies[-1])["model"] == model


def test_extra_fields_and_the_question_reach_the_server():
    scripted = ScriptedJudge(likes_good)
    settings = JudgeSettings(question="Which rhymes?", extra_body={"top_logprobs": 5})
    with judging(scripted) as url, open_judge(f"{url}{PATHS[0]}", settings) as opened:
        opened.judge.compare(pairs(1))
    body = json.loads(scripted.bodies[0])
    assert body["top_logprobs"] == 5
    assert body["messages"][0]["content"].startswith("Which rhymes?")


def test_equal_questions_are_sent_once():
    scripted = ScriptedJudge(likes_good)
    with judging(scripted) as url, open_judge(f"{url}{PATHS[1]}") as opened:
        first, second = opened.judge.compare([pairs(1)[0], pairs(1)[0].swapped()])
        again = opened.judge.compare(pairs(1))
    assert scripted.received == 2
    assert first.probability == pytest.approx(1 - second.probability)
    assert again == [first]


def test_answers_are_kept_in_the_file_and_failures_are_not(tmp_path):
    cache = tmp_path / "requests.jsonl"
    scripted = ScriptedJudge(likes_good, fault=lambda number, content: 400 if "Question 1?" in content else None)
    with judging(scripted) as url:
        with open_judge(f"{url}{PATHS[2]}", cache=cache) as opened:
            judged = opened.judge.compare(pairs(3))
            (report,) = opened.judge.reports()
        assert [each.probability is None for each in judged] == [False, True, False]
        assert "status 400" in judged[1].problem
        assert (report.requests, report.failed) == (4, 2)
        assert report.position_bias.pairs == 2
        scripted.fault = lambda number, content: None
        with open_judge(f"{url}{PATHS[2]}", cache=cache) as opened:
            assert opened.judge.requests_needed(pairs(3)) == 2
            assert all(each.probability is not None for each in opened.judge.compare(pairs(3)))
            (report,) = opened.judge.reports()
    assert (report.requests, report.from_cache, report.failed) == (2, 4, 0)
    assert len(scripted.bodies) == len(set(scripted.bodies)) == 6


def test_an_incomplete_last_line_is_dropped_and_a_damaged_one_refused(tmp_path):
    cache = tmp_path / "requests.jsonl"
    scripted = ScriptedJudge(likes_good)
    with judging(scripted) as url:
        with open_judge(f"{url}{PATHS[2]}", cache=cache) as opened:
            opened.judge.compare(pairs(2))
        lines = cache.read_text().splitlines(keepends=True)
        cache.write_text("".join([*lines[:-1], lines[-1][:10]]))
        with open_judge(f"{url}{PATHS[2]}", cache=cache) as opened:
            assert opened.judge.requests_needed(pairs(2)) == 1
            opened.judge.compare(pairs(2))
        assert len(cache.read_text().splitlines()) == 5
        cache.write_text("".join([lines[0], "oops\n", *lines[2:]]))
        with pytest.raises(ValueError, match="line 2 is damaged"):
            open_judge(f"{url}{PATHS[2]}", cache=cache)
    cache.write_text('{"id": 1}\n')
    with pytest.raises(ValueError, match="another file"):
        open_judge("http://127.0.0.1:1/v1/systemone#m", cache=cache)


def test_two_processes_do_not_share_a_file(tmp_path):
    cache = tmp_path / "requests.jsonl"
    name = "http://127.0.0.1:1/v1/systemone#m"
    with open_judge(name, cache=cache), pytest.raises(RuntimeError, match="Another process"):
        open_judge(name, cache=cache)
    open_judge(name, cache=cache).__exit__()


def test_temporary_failures_are_repeated():
    scripted = ScriptedJudge(likes_good, fault=lambda number, content: (503, 429, b"{", None)[min(number, 3)])
    settings = JudgeSettings(at_once=1)
    with judging(scripted) as url, open_judge(f"{url}{PATHS[2]}", settings) as opened:
        (found,) = opened.judge.compare(pairs(1))
        # The damaged answer is not repeated: it is an answer.
        assert found.probability is None
        assert opened.judge.compare(pairs(1))[0].probability == pytest.approx(0.8)
    assert scripted.received == 5


@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_address_stops_the_run(status):
    scripted = ScriptedJudge(likes_good, fault=lambda number, content: status)
    name, settings = PATHS[2], JudgeSettings(at_once=1)
    with (
        judging(scripted) as url,
        open_judge(f"{url}{name}", settings) as opened,
        pytest.raises(JudgeError, match=f"status {status}"),
    ):
        opened.judge.compare(pairs(5))
    assert scripted.received == 1


def test_a_judge_that_only_fails_stops_the_run():
    scripted = ScriptedJudge(likes_good, fault=lambda number, content: 400)
    with (
        judging(scripted) as url,
        open_judge(f"{url}{PATHS[2]}") as opened,
        pytest.raises(JudgeError, match="20 requests in a row failed"),
    ):
        opened.judge.compare(pairs(50))
    assert scripted.received < 20 + 8


def test_a_budget_is_checked_before_the_first_request():
    scripted = ScriptedJudge(likes_good)
    with judging(scripted) as url, open_judge(f"{url}{PATHS[2]}", JudgeSettings(budget=9)) as opened:
        with pytest.raises(BudgetError, match="needs 10 requests"):
            opened.judge.compare(pairs(5))
        assert scripted.received == 0
        assert len(opened.judge.compare(pairs(4))) == 4
        with pytest.raises(BudgetError, match="allows 1"):
            opened.judge.compare(pairs(5))
    assert scripted.received == 8


def test_repeated_attempts_never_exceed_the_budget(tmp_path):
    scripted = ScriptedJudge(likes_good, fault=lambda number, content: 503 if number % 2 else None)
    cache = tmp_path / "requests.jsonl"
    with judging(scripted) as url:
        with (
            open_judge(f"{url}{PATHS[2]}", JudgeSettings(budget=10, at_once=3), cache=cache) as opened,
            pytest.raises(BudgetError, match="Stopped after 10 requests"),
        ):
            opened.judge.compare(pairs(5))
        assert scripted.received == 10
        answered = len(scripted.bodies)
        scripted.fault = lambda number, content: None
        with open_judge(f"{url}{PATHS[2]}", cache=cache) as opened:
            opened.judge.compare(pairs(5))
    assert scripted.received == 10 + 10 - answered
    assert len(scripted.bodies) == len(set(scripted.bodies)) == 10


def test_the_rate_limit_spaces_requests():
    import time

    scripted = ScriptedJudge(likes_good)
    with judging(scripted) as url, open_judge(f"{url}{PATHS[2]}", JudgeSettings(requests_per_minute=1200)) as opened:
        start = time.monotonic()
        opened.judge.compare(pairs(4))
    assert time.monotonic() - start >= 7 * 0.05


def test_the_cost_of_the_answers():
    scripted = ScriptedJudge(likes_good)
    with judging(scripted) as url, open_judge(f"{url}{PATHS[0]}", JudgeSettings(prices=(2.0, 10.0))) as opened:
        opened.judge.compare(pairs(3))
        (report,) = opened.judge.reports()
    assert report.output_tokens == 6
    assert report.cost == pytest.approx((2 * report.input_tokens + 10 * 6) / 1e6)


# --- other judges -----------------------------------------------------------------------------------------------------


def test_the_average_of_two_judges():
    sure = ScriptedJudge(lambda asked: 1.0 if asked.first.startswith("good") else 0.0)
    other = ScriptedJudge(likes_good, fault=lambda number, content: 400 if "Question 1?" in content else None)
    with (
        judging(sure) as one,
        judging(other) as two,
        open_judge([f"{one}{PATHS[2]}", f"{two}{PATHS[1]}"], JudgeSettings(budget=12)) as opened,
    ):
        assert opened.judge.requests_needed(pairs(3)) == 12
        found = opened.judge.compare(pairs(3))
        reports = opened.judge.reports()
    assert found[0].probability == pytest.approx(0.9)
    assert found[1].probability is None  # never the judgement of one judge alone
    assert [each.failed for each in reports] == [0, 2]


def test_the_budget_of_an_average_covers_all_its_judges():
    scripted = ScriptedJudge(likes_good)
    with (
        judging(scripted) as url,
        open_judge([f"{url}{PATHS[2]}", f"{url}{PATHS[1]}"], JudgeSettings(budget=11)) as opened,
        pytest.raises(BudgetError, match="needs 12 requests"),
    ):
        opened.judge.compare(pairs(3))
    assert scripted.received == 0


def test_a_reward_model_as_a_judge(folder, scorer):
    asked = [JudgedPair([{"role": "user", "content": each.prompt}], each.first, each.second) for each in pairs(3)]
    rewards = [scorer.score([each.prompt] * 2, [each.first, each.second]) for each in asked]
    with open_judge(str(folder)) as opened:
        found = opened.judge.compare(asked)
        assert opened.judge.requests_needed(asked) == 0
    for each, (one, other) in zip(found, rewards, strict=True):
        assert each.probability == pytest.approx(1 / (1 + math.exp(other - one)), abs=1e-5)
        assert each.shown_first == each.shown_second


def test_a_served_reward_model_as_a_judge(folder, scorer, tmp_path):
    cache = tmp_path / "requests.jsonl"
    with open_judge(str(folder)) as opened:
        local = [each.probability for each in opened.judge.compare(pairs(10))]
    with running(scorer) as url:
        with open_judge(url, JudgeSettings(budget=2), cache=cache) as opened:
            assert opened.judge.requests_needed(pairs(10)) == 2  # 20 texts, 16 in a request
            served = [each.probability for each in opened.judge.compare(pairs(10))]
        with open_judge(url, JudgeSettings(budget=0), cache=cache) as opened:
            assert [each.probability for each in opened.judge.compare(pairs(10))] == served
    assert served == pytest.approx(local, abs=1e-5)


def test_the_decision_pipeline_of_transformers(tmp_path: Path, chat_tokenizer):
    config = LlamaConfig(
        vocab_size=len(chat_tokenizer) + 8,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "chat")
    chat_tokenizer.save_pretrained(tmp_path / "chat")
    with open_judge(f"decision:{tmp_path / 'chat'}") as opened:
        found = opened.judge.compare(pairs(3))
        assert opened.judge.requests_needed(pairs(3)) == 0
        (report,) = opened.judge.reports()
    assert all(0 < each.probability < 1 for each in found)
    assert found[0].shown_first != found[0].shown_second  # a random model depends on the order
    assert report.requests == 6


# --- settings ---------------------------------------------------------------------------------------------------------


def test_wrong_judges_and_settings():
    with pytest.raises(JudgeError, match="Votes are for chat judges"):
        open_judge("http://127.0.0.1:1/v1/systemone#m", JudgeSettings(votes=3))
    with pytest.raises(ValueError, match="different names"):
        open_judge([])
    with pytest.raises(ValueError, match="Prices are those of one judge"):
        open_judge(["http://a/v1/systemone#m", "http://b/v1/systemone#m"], JudgeSettings(prices=(1, 1)))
    with pytest.raises(JudgeError, match="does not list one"):
        open_judge("http://127.0.0.1:1/v1/systemone")
    with pytest.raises(ValueError, match="must not contain a password"):
        open_judge("http://user:secret@127.0.0.1:1/v1/systemone#m")
    with open_judge("http://127.0.0.1:1/v1/systemone?key=secret#m") as opened:
        assert "secret" not in json.dumps([opened.judge.fingerprint, opened.judge.name])
    with pytest.raises(ValueError, match="`at_once` must be 1 or more"):
        JudgeSettings(at_once=0)
