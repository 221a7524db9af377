"""Benchmarks of judges: the benchmark's arithmetic on win rates, requests counted, no partial results."""

import json
import math

import pytest
from benchmark_rows import four, pair, styles
from judge_server import Asked, ScriptedJudge, judging
from running_servers import running

from hf_reward.evaluation.benchmarks.data import DataChoice
from hf_reward.evaluation.benchmarks.judged import judge_all, judge_benchmark
from hf_reward.evaluation.benchmarks.running import run_benchmark
from hf_reward.scoring.judging import BudgetError, JudgeSettings, open_judge
from hf_reward.scoring.reward_scorer import RewardScorer

PATHS = ("/v1/chat/completions", "/v1/decisions", "/v1/systemone")


def knows(share: float = 0.9, *, length: float = 0.0, position: float = 0.0):
    """A judge that prefers right answers, with biases in log-odds."""

    def reward(text: str) -> float:
        right = text.startswith(("Right", "right", "A good"))
        return right * math.log(share / (1 - share)) + length * len(text)

    def verdict(asked: Asked) -> float:
        return 1 / (1 + math.exp(-(reward(asked.first) - reward(asked.second) + position)))

    return verdict


def own_pairs(count: int = 30) -> list[dict]:
    """Pairs whose preferred response is longer in even rows."""
    return [
        {
            "id": str(n),
            "prompt": f"Question {n}?",
            "chosen": f"Right {n}" + " and more words" * (n % 2 == 0),
            "rejected": f"Wrong {n}" + " and more words" * (n % 2 == 1),
        }
        for n in range(count)
    ]


@pytest.mark.parametrize("path", PATHS)
def test_pairs_over_each_protocol(path, tmp_path):
    scripted = ScriptedJudge(knows(position=1.5))
    with judging(scripted) as url, open_judge(f"{url}{path}", cache=tmp_path / "requests.jsonl") as opened:
        found = judge_benchmark("pairs", opened, own_pairs(), out=tmp_path / "run")
    assert found["overall"] == 1.0
    assert scripted.received == 60
    assert found["judges"][0]["position_bias"]["low"] > 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "scores.jsonl").read_text().splitlines()]
    first, second = lines[0]["rewards"]
    # Both orders: expit(ln 9 + 1.5) and expit(ln 9 - 1.5), averaged, as log-odds.
    mean = (1 / (1 + math.exp(-1.5) / 9) + 1 / (1 + math.exp(1.5) / 9)) / 2
    assert first - second == pytest.approx(math.log(mean / (1 - mean)), abs=1e-6)


def test_a_planted_length_bias_lowers_the_accuracy_where_the_wrong_response_is_longer(tmp_path):
    with judging(ScriptedJudge(knows(length=0.5))) as url, open_judge(f"{url}{PATHS[2]}") as opened:
        biased = judge_benchmark("pairs", opened, own_pairs(), out=tmp_path / "run")
    assert biased["overall"] == 0.5
    assert biased["judges"][0]["position_bias"]["estimate"] == pytest.approx(0)


def test_a_judge_that_only_reads_the_position_ties_every_pair(tmp_path):
    with judging(ScriptedJudge(lambda asked: 1.0)) as url, open_judge(f"{url}{PATHS[2]}") as opened:
        found = judge_benchmark("pairs", opened, own_pairs(), out=tmp_path / "run")
    assert found["judges"][0]["position_bias"]["estimate"] == 0.5
    assert found["judges"][0]["position_bias"]["flips"] == 1.0
    lines = (tmp_path / "run" / "scores.jsonl").read_text().splitlines()
    assert all(set(json.loads(line)["rewards"]) == {0.0} for line in lines)


def test_lists_are_compared_only_where_the_ranks_differ(tmp_path):
    data = [four(n) for n in range(5)]
    scripted = ScriptedJudge(knows())
    with judging(scripted) as url, open_judge(f"{url}{PATHS[2]}") as opened:
        found = judge_benchmark("rewardbench2", opened, data, out=tmp_path / "run")
    assert found["overall"] == 1.0
    assert scripted.received == 5 * 3 * 2
    scripted = ScriptedJudge(knows(0.6, length=0.1))
    rows = [styles(n) for n in range(4)]
    with judging(scripted) as url, open_judge(f"{url}{PATHS[2]}") as opened:
        found = judge_benchmark("rm_bench", opened, rows, out=tmp_path / "rm")
    assert scripted.received == 4 * 9 * 2
    levels = [found["sections"][level] for level in ("easy", "normal", "hard")]
    levels = [each["value"] if isinstance(each, dict) else each for each in levels]
    assert levels == [1.0, 1.0, 0.0]  # the right response wins unless the wrong one is longer


def test_the_budget_and_the_resumption(tmp_path):
    data, out = own_pairs(10), tmp_path / "run"
    scripted = ScriptedJudge(knows(), fault=lambda number, content: 503 if number == 15 else None)
    name, cache, said = PATHS[2], out / "requests.jsonl", []
    with judging(scripted) as url:
        with (
            open_judge(url + name, JudgeSettings(budget=19), cache=cache) as opened,
            pytest.raises(BudgetError, match="needs 20 requests"),
        ):
            judge_benchmark("pairs", opened, data, out=out, announce=lambda *counts: said.append(counts))
        assert (scripted.received, said) == (0, [(10, 20)])
        with (
            open_judge(url + name, JudgeSettings(budget=20, at_once=1, attempts=2), cache=cache) as opened,
            pytest.raises(BudgetError, match="Stopped after 20"),
        ):
            judge_benchmark("pairs", opened, data, out=out)
        assert not (out / "results.json").exists()  # never a part as a result
        assert (scripted.received, len(scripted.bodies)) == (20, 19)
        with open_judge(url + name, JudgeSettings(budget=1), cache=cache) as opened:
            assert judge_benchmark("pairs", opened, data, out=out)["overall"] == 1.0
        with open_judge(url + name, JudgeSettings(budget=0), cache=cache) as opened:
            judge_benchmark("pairs", opened, data, out=out)
        with open_judge(url + "/v1/decisions") as opened, pytest.raises(FileExistsError, match="different run"):
            judge_benchmark("pairs", opened, data, out=out)
    assert len(set(scripted.bodies)) == len(scripted.bodies) == 20


def test_a_row_with_a_failed_request_makes_the_result_partial(tmp_path):
    scripted = ScriptedJudge(knows(), fault=lambda number, content: 400 if "Question 3?" in content else None)
    with judging(scripted) as url, open_judge(f"{url}{PATHS[2]}") as opened:
        found = judge_benchmark("pairs", opened, own_pairs(10), out=tmp_path / "run")
    assert found["partial"]
    line = [json.loads(line) for line in (tmp_path / "run" / "scores.jsonl").read_text().splitlines()][3]
    assert line["rewards"] == [None, None]
    assert "status 400" in line["problem"]


def test_all_benchmarks_share_the_budget(tmp_path):
    (tmp_path / "rewardbench.jsonl").write_text("".join(json.dumps(pair(n)) + "\n" for n in range(4)))
    (tmp_path / "rewardbench2.jsonl").write_text("".join(json.dumps(four(n)) + "\n" for n in range(4)))
    scripted = ScriptedJudge(knows())
    with judging(scripted) as url:
        with (
            open_judge(f"{url}{PATHS[2]}", JudgeSettings(budget=31)) as opened,
            pytest.raises(BudgetError, match="needs 32 requests"),
        ):
            judge_all(opened, out=tmp_path / "out", data=tmp_path)
        assert scripted.received == 0
        with open_judge(f"{url}{PATHS[2]}", JudgeSettings(budget=32)) as opened:
            found = judge_all(opened, out=tmp_path / "out", data=tmp_path)
    assert [each["benchmark"] for each in found.results] == ["rewardbench", "rewardbench2"]
    assert all(each["overall"] == 1.0 for each in found.results)


def test_a_served_reward_model_has_the_results_of_the_local_one(saved_llama, tmp_path):
    scorer = RewardScorer.from_pretrained(saved_llama, device="cpu")
    local = run_benchmark("pairs", scorer, own_pairs(), out=tmp_path / "local", choice=DataChoice())
    with running(scorer) as url, open_judge(url) as opened:
        served = judge_benchmark("pairs", opened, own_pairs(), out=tmp_path / "served")
    assert served["overall"] == local["overall"]


def test_the_command(call, tmp_path):
    data, out = tmp_path / "pairs.jsonl", tmp_path / "run"
    data.write_text("".join(json.dumps(row) + "\n" for row in own_pairs(24)))
    scripted = ScriptedJudge(knows(position=1.0))
    with judging(scripted) as url:
        words = ["benchmark", "pairs", "--judge", url + PATHS[0], "--data", str(data), "--out", str(out)]
        code, _, err = call(*words, "--budget", "47")
        assert (code, scripted.received) == (1, 0)
        assert "24 comparisons: 48 requests to send" in err
        code, printed, err = call(*words, "--budget", "48")
    assert code == 0
    assert "100.0" in printed
    assert "position bias" in err
    assert json.loads((out / "results.json").read_text())["judges"][0]["requests"] == 48
    code, _, err = call("benchmark", "pairs", "--judge", "a", "--scores", "b")
    assert code == 2
