"""Audits of judges of pairs: the same findings as for a reward model, planted biases found, requests counted."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from judge_server import Asked, ScriptedJudge, by_reward, judging
from running_servers import running
from synthetic_rewards import clean, plus, quality

from hf_reward.data.preference_row import PreferenceRow
from hf_reward.evaluation.audit import PROFILES, AuditRule, run_audit, write_audit
from hf_reward.evaluation.audit.cases import Case, Text
from hf_reward.evaluation.audit.judged import JudgedCase, audit_judge, plan_comparisons
from hf_reward.evaluation.audit.steps import prepare_audit
from hf_reward.scoring.judging import BudgetError, Judgement, JudgeSettings, open_judge
from hf_reward.scoring.judging.cache import AnswerCache
from hf_reward.scoring.judging.opening import OpenedJudge
from hf_reward.scoring.judging.pairs import pair_state
from hf_reward.scoring.judging.requests import Ledger
from hf_reward.scoring.judging.win_rates import log_odds, rewards_of_wins

PATHS = ("/v1/chat/completions", "/v1/decisions", "/v1/systemone")
SMALL = replace(PROFILES["quick"], max_pairs=40, answers=24, questions=4)


def rows(count: int = 40) -> list[PreferenceRow]:
    return [
        PreferenceRow(
            prompt=[{"role": "user", "content": f"Please tell me: what do you know about subject {number}?"}],
            responses=[f"This is a useful answer about {number}.", f"This is an empty answer about {number}."],
            ranks=[0, 1],
        )
        for number in range(count)
    ]


def longer(size: float):
    return plus(lambda text: size * len(text.response.split()))


class DirectJudge:
    """A judge without requests."""

    name = "direct"

    def __init__(self, verdict) -> None:
        self.verdict, self.pairs, self.fingerprint = verdict, [], {"judge": "direct"}

    def requests_needed(self, pairs) -> int:
        return 2 * len(pairs)

    def compare(self, pairs) -> list[Judgement]:
        self.pairs += pairs
        return [self._judge(Asked(*pair_state(pair).values())) for pair in pairs]

    def _judge(self, asked: Asked) -> Judgement:
        return Judgement(self.verdict(asked), 1 - self.verdict(Asked(asked[0], asked[2], asked[1])))

    def reports(self):
        return []

    def close(self) -> None:
        pass


def opened(verdict) -> OpenedJudge:
    return OpenedJudge(DirectJudge(verdict), AnswerCache(None), Ledger())


# --- win rates --------------------------------------------------------------------------------------------------------


def test_log_odds():
    assert log_odds(0.5) == 0
    assert log_odds(0.75) == pytest.approx(math.log(3))
    assert log_odds(1.0) == pytest.approx(math.log(99))
    assert log_odds(0.0) == pytest.approx(-math.log(99))


def test_rewards_reproduce_the_comparisons_of_one_response_with_all_others():
    found = rewards_of_wins(4, [(0, 1), (0, 2), (0, 3)], [1.0, -0.5, 2.0])
    assert found[0] - found[1:] == pytest.approx([1.0, -0.5, 2.0])


def test_rewards_of_an_additive_judge_are_recovered():
    true = np.array([0.3, -1.0, 0.7, 0.0])
    pairs = [(i, j) for i in range(4) for j in range(i)]
    assert rewards_of_wins(4, pairs, [true[i] - true[j] for i, j in pairs]) == pytest.approx(true, abs=1e-8)


# --- cases ------------------------------------------------------------------------------------------------------------


def test_a_gap_is_the_log_odds_in_either_direction():
    texts = {name: Text(prompt="P", response=name) for name in ("a", "b")} | {"c": Text(prompt="P", response="a")}
    keys = tuple(sorted((texts["a"].key, texts["b"].key)))
    case = JudgedCase(case=Case(cluster="x", texts=texts), rewards={}, odds={keys: 0.5})
    assert abs(case.gap("a", "b")) == 0.5
    assert case.gap("a", "b") == -case.gap("b", "a") == case.gap("c", "b")
    assert case.gap("a", "c") == 0.0
    other = JudgedCase(case=Case(cluster="x", texts=texts | {"d": Text(prompt="Q", response="d")}), rewards={}, odds={})
    with pytest.raises(ValueError, match="prompts differ"):
        other.gap("a", "d")


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_every_comparison_is_planned_and_none_is_superfluous(profile):
    # The plan is made from one set of values; the analysis of others must not need more comparisons.
    prepared = prepare_audit(rows(), AuditRule(profile=replace(PROFILES[profile], answers=20, questions=4, opinions=3)))
    planned = {key for cases in plan_comparisons(prepared).values() for asked in cases for key in asked}
    judge = opened(by_reward(clean(0.5)))
    report = audit_judge(judge, rows(), rule=prepared.rule)
    assert len(judge.judge.pairs) == len(planned) == report.counts["comparisons"]
    assert not any(result.left_out for result in report.families.values())


def test_the_findings_are_those_of_the_reward_model_behind_the_judge():
    rule = AuditRule(profile=replace(PROFILES["full"], answers=24, questions=6, opinions=4), seed=3)
    reward = longer(0.02)
    scalar = run_audit(lambda texts: [reward(text) for text in texts], rows(), rule=rule)
    judged = audit_judge(opened(by_reward(reward)), rows(), rule=rule)
    assert judged.unit == pytest.approx(scalar.unit, rel=1e-6)
    same = {each.name: each for each in scalar.findings}
    compared = 0
    for found in judged.findings:
        expected = same.get(found.name)
        if expected is None or expected.estimate is None or found.estimate is None:
            continue
        compared += 1
        assert found.estimate == pytest.approx(expected.estimate, abs=1e-5), found.name
        assert (found.n, found.verdict) == (expected.n, expected.verdict), found.name
    assert compared > 60
    missing = set(same) - {each.name for each in judged.findings if each.estimate is not None}
    assert {"persona_reward_range"} <= missing  # prompts cannot be compared
    assert judged.finding("position_bias").verdict == "equivalent"


# --- planted biases, over HTTP ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_planted_biases_are_found_over_each_protocol(path, tmp_path):
    rule = AuditRule(profile=SMALL, families=("accuracy", "length"))
    scripted = ScriptedJudge(by_reward(longer(0.1), position=1.0))
    with judging(scripted) as url, open_judge(f"{url}{path}", cache=tmp_path / "requests.jsonl") as judge:
        report = audit_judge(judge, rows(), rule=rule)
    assert report.finding("padding_effect").verdict == "biased"
    bias = report.finding("position_bias")
    assert bias.verdict == "biased"
    assert 0 < bias.ci_low < bias.estimate < 1
    assert scripted.received == report.counts["requests"] == 2 * report.counts["comparisons"]
    written = write_audit(report, tmp_path)
    assert any(file.suffix == ".html" and "Position" in file.read_text() for file in written)


@pytest.mark.parametrize("path", PATHS)
def test_an_unbiased_judge_is_not_flagged(path):
    rule = AuditRule(profile=SMALL, families=("accuracy", "length"))
    with judging(ScriptedJudge(by_reward(clean(0.05)))) as url, open_judge(f"{url}{path}") as judge:
        report = audit_judge(judge, rows(), rule=rule)
    assert [each.name for each in report.findings if each.verdict == "biased"] == []
    assert report.finding("position_bias").verdict == report.finding("padding_effect").verdict == "equivalent"


@pytest.mark.simulations  # 45 s: 100 seeds
def test_few_unbiased_judges_are_flagged():
    rule = AuditRule(profile=SMALL, families=("accuracy", "length"), resamples=300)
    flagged = 0
    for seed in range(100):
        report = audit_judge(opened(by_reward(clean(0.5, seed=seed))), rows(), rule=rule)
        flagged += any(each.verdict == "biased" for each in report.findings)
    assert flagged <= 8  # 5 expected at most; P(more than 8 | 5%) = 6%


def test_votes_find_a_planted_bias():
    rule = AuditRule(profile=SMALL, families=("accuracy",))
    scripted = ScriptedJudge(by_reward(quality, position=1.5))
    with judging(scripted) as url, open_judge(f"{url}{PATHS[0]}", JudgeSettings(votes=4)) as judge:
        report = audit_judge(judge, rows(), rule=rule)
    assert report.counts["requests"] == 2 * 4 * 40
    assert report.finding("position_bias").verdict == "biased"
    assert report.finding("accuracy").estimate > 0.6


# --- budget and failures ----------------------------------------------------------------------------------------------


def test_an_audit_beyond_the_budget_does_not_start():
    rule = AuditRule(profile=SMALL, families=("accuracy",))
    said = []
    scripted = ScriptedJudge(by_reward(quality))
    with judging(scripted) as url:
        with (
            open_judge(f"{url}{PATHS[2]}", JudgeSettings(budget=79)) as judge,
            pytest.raises(BudgetError, match="needs 80 requests"),
        ):
            audit_judge(judge, rows(), rule=rule, announce=lambda *counts: said.append(counts))
        assert (scripted.received, said) == (0, [(40, 80)])
        with open_judge(f"{url}{PATHS[2]}", JudgeSettings(budget=80)) as judge:
            audit_judge(judge, rows(), rule=rule)
    assert scripted.received == 80


def test_cases_with_failed_requests_are_left_out():
    def fault(number: int, content: str):
        return 400 if "subject 7?" in content else None

    rule = AuditRule(profile=SMALL, families=("accuracy",))
    with judging(ScriptedJudge(by_reward(quality), fault)) as url, open_judge(f"{url}{PATHS[2]}") as judge:
        report = audit_judge(judge, rows(), rule=rule)
    assert report.families["accuracy"].left_out == report.counts["comparisons_failed"] == 1
    assert report.finding("accuracy").n == 39


def test_the_command(call, tmp_path):
    data, out = tmp_path / "rows.jsonl", tmp_path / "audit"
    data.write_text(
        "".join(
            json.dumps({"prompt": row.prompt[0]["content"], "responses": row.responses, "ranks": row.ranks}) + "\n"
            for row in rows(24)
        )
    )
    scripted = ScriptedJudge(by_reward(quality, position=1.0))
    with judging(scripted) as url:
        words = ["audit", "--judge", url + PATHS[1], "--data", str(data), "--out", str(out), "--family", "accuracy"]
        code, _, err = call(*words, "--budget", "47")
        assert (code, scripted.received) == (1, 0)
        assert "24 comparisons: 48 requests to send" in err
        assert not (out / "audit.json").exists()
        code, printed, _ = call(*words, "--budget", "48")
        assert code == 0
        assert "position bias" in printed
        code, _, err = call(*words)
        assert code == 0
        assert "0 requests to send" in err
    assert scripted.received == 48
    assert json.loads((out / "audit.json").read_text())["counts"]["comparisons"] == 24


def test_a_served_reward_model_is_audited_as_a_reward_model(scorer_of_llama, tmp_path):
    rule = AuditRule(profile=SMALL, families=("accuracy", "length"))
    expected = run_audit(scorer_of_llama, rows(), rule=rule)
    with running(scorer_of_llama) as url, open_judge(url, cache=tmp_path / "requests.jsonl") as judge:
        said = []
        report = audit_judge(judge, rows(), rule=rule, announce=lambda *counts: said.append(counts))
    assert said == [(report.counts["texts"], report.counts["requests"])]
    assert "position" not in report.families
    for found, other in zip(report.findings, expected.findings, strict=True):
        assert found.estimate == pytest.approx(other.estimate, abs=1e-3)


@pytest.fixture
def scorer_of_llama(saved_llama):
    from hf_reward.scoring.reward_scorer import RewardScorer

    return RewardScorer.from_pretrained(saved_llama, device="cpu")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--judge", "a", "--model", "b"], "either --model or --judge"),
        (["--judge", "folder"], "pass it as --model"),
        (["--judge", "http://a/v1/systemone#m", "--update-card"], "needs --model"),
        (["--model", "b", "--budget", "3"], "needs --judge"),
    ],
)
def test_wrong_options(words, message, call):
    code, _, err = call("audit", *words, "--data", "x", "--out", "y")
    assert code == 2
    assert message in " ".join(err.replace("│", " ").split())
