import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from judge_server import Asked, ScriptedJudge, judging

from hf_reward.data.preferences import to_preference_row
from hf_reward.scoring.judging import BudgetError, JudgeSettings
from hf_reward.scoring.judging import endpoints as endpoints_module
from hf_reward.scoring.judging.labelling import label_rows, report_lines

PATH = "/v1/systemone"


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch):
    monkeypatch.setattr(endpoints_module, "FIRST_WAIT_SECONDS", 0.001)


def verdict(asked: Asked) -> float:
    """More probable for the response with the larger number at its end, and a little for the first."""
    one, other = (int(text.rpartition(" ")[2]) for text in asked[1:])
    return 0.5 + 0.1 * (1 if one > other else -1 if one < other else 0) + 0.05


def unlabelled(count: int = 6) -> list[dict]:
    return [
        {"id": f"r{n}", "prompt": f"Question {n}?", "response_a": f"this is {n}", "response_b": "this is 3", "note": n}
        for n in range(count)
        if n != 3
    ]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pairs_without_labels_get_the_mean_of_both_orders(tmp_path):
    with judging(ScriptedJudge(verdict)) as url:
        report = label_rows(unlabelled(), tmp_path / "out.jsonl", url + PATH)
    rows = read(tmp_path / "out.jsonl")
    assert [row["id"] for row in rows] == ["r0", "r1", "r2", "r4", "r5"]
    assert [row["probability"] for row in rows] == pytest.approx([0.4, 0.4, 0.4, 0.6, 0.6])
    assert [row["ranks"] for row in rows] == [[1, 0]] * 3 + [[0, 1]] * 2
    assert rows[0]["note"] == 0
    assert (report.pairs, report.labelled, report.agreement) == (5, 5, None)
    assert report.judges[0].position_bias.estimate == pytest.approx(0.05)
    again = [to_preference_row(row) for row in rows]
    assert [row.probability for row in again] == [row["probability"] for row in rows]
    assert json.loads((tmp_path / "out.jsonl.report.json").read_text())["labelled"] == 5


@pytest.mark.parametrize("form", ["pairs", "responses", "messages", "votes"])
def test_layouts(form, tmp_path):
    rows = {
        "pairs": [
            {"prompt": "P?", "chosen": "a 2", "rejected": "b 1"},
            {"prompt": "Q?", "chosen": "a 1", "rejected": "b 2"},
        ],
        "responses": [{"prompt": "P?", "responses": ["a 2", "b 1"]}],
        "messages": [
            {
                "prompt": [{"role": "user", "content": "P?"}],
                "chosen": [{"role": "assistant", "content": "a 2"}],
                "rejected": [{"role": "assistant", "content": "b 1"}],
            }
        ],
        "votes": [{"prompt": "P?", "response_a": "a 2", "response_b": "b 1", "winner": "b"}],
    }[form]
    with judging(ScriptedJudge(verdict)) as url:
        report = label_rows(rows, tmp_path / "out.jsonl", url + PATH)
    found = read(tmp_path / "out.jsonl")
    assert found[0]["probability"] == pytest.approx(0.6)
    assert found[0]["ranks"] == [0, 1]
    assert "chosen" not in found[0]
    rate = {"pairs": 0.5, "responses": None, "messages": 1.0, "votes": 0.0}[form]
    assert (report.agreement.rate if report.agreement else None) == rate


def test_a_list_of_responses_becomes_all_its_pairs(tmp_path):
    rows = [{"id": "x", "prompt": "P?", "responses": ["a 1", "b 3", "c 2"], "ranks": [2, 0, 1]}]
    with judging(ScriptedJudge(verdict)) as url:
        report = label_rows(rows, tmp_path / "out.jsonl", url + PATH)
    found = read(tmp_path / "out.jsonl")
    assert [row["id"] for row in found] == ["x/0-1", "x/0-2", "x/1-2"]
    assert [row["probability"] for row in found] == pytest.approx([0.4, 0.4, 0.6])
    assert len({row["group"] for row in found}) == 1
    assert report.agreement.rate == 1.0


def test_a_failed_request_never_becomes_a_label(tmp_path):
    # Only one of the two orders of question 1 fails.
    def fault(number: int, content: str):
        return 400 if '"response_a": "this is 1"' in content else None

    out = tmp_path / "out.jsonl"
    scripted = ScriptedJudge(verdict, fault)
    with judging(scripted) as url:
        report = label_rows([*unlabelled(), {"prompt": "Z?"}, {"prompt": "Y?"}], out, url + PATH)
        assert [row["id"] for row in read(out)] == ["r0", "r2", "r4", "r5"]
        assert sum(report.failed.values()) == 1
        assert sum(report.unusable.values()) == 2
        lost = read(tmp_path / "out.quarantine.jsonl")
        assert [each.get("id") for each in lost] == [None, None, "r1"]
        assert "status 400" in lost[2]["reason"]
        assert report.judges[0].position_bias.pairs == 4
        with pytest.raises(FileExistsError, match="overwrite"):
            label_rows(unlabelled(), out, url + PATH)
        scripted.fault = lambda number, content: None
        report = label_rows(unlabelled(), out, url + PATH, overwrite=True)
    assert report.labelled == 5
    assert (report.judges[0].requests, report.judges[0].from_cache) == (1, 9)
    assert not (tmp_path / "out.quarantine.jsonl").exists()
    assert any("10 from" not in line for line in report_lines(report))


def test_an_interrupted_run_continues_without_repeating_a_request(tmp_path):
    scripted = ScriptedJudge(verdict)
    rows, out = unlabelled(20), tmp_path / "out.jsonl"
    scripted.fault = lambda number, content: 503 if number >= 11 else None
    with judging(scripted) as url:
        with pytest.raises(BudgetError):
            label_rows(rows, out, url + PATH, JudgeSettings(budget=38, at_once=1, attempts=3))
        assert not out.exists()
        scripted.fault = lambda number, content: None
        label_rows(rows, out, url + PATH)
        label_rows(rows, tmp_path / "whole.jsonl", url + PATH)
    assert out.read_text() == (tmp_path / "whole.jsonl").read_text()
    assert len(scripted.bodies) == 38 + 38
    assert len(set(scripted.bodies[:38])) == 38


@pytest.mark.slow  # 30 s: two processes
def test_a_killed_command_continues_without_repeating_an_answered_request(tmp_path):
    rows, out = unlabelled(40), tmp_path / "out.jsonl"
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scripted, process = ScriptedJudge(verdict), None

    def kill(number: int, content: str) -> int | None:
        if number == 30:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return 503
        return None

    def start(url: str) -> subprocess.Popen:
        words = ["label", "--judge", url + PATH, "--data", str(data), "--out", str(out), "--at-once", "1"]
        return subprocess.Popen([sys.executable, "-m", "hf_reward.cli", *words], stdout=subprocess.DEVNULL)

    scripted.fault = kill
    with judging(scripted) as url:
        process = start(url)
        assert process.wait(120) == -signal.SIGKILL
        assert not out.exists()
        assert len(scripted.bodies) == 30
        scripted.fault = lambda number, content: None
        assert start(url).wait(120) == 0
        label_rows(rows, tmp_path / "whole.jsonl", url + PATH)
    assert out.read_text() == (tmp_path / "whole.jsonl").read_text()
    first, second = scripted.bodies[:30], scripted.bodies[30:-78]
    # The answer that the killed process did not read is the only one that may be asked again.
    assert len(set(first) & set(second)) <= 1
    assert len(set(first) | set(second)) == 78
    assert len(second) == len(set(second))


def test_the_command(call, tmp_path):
    data, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in unlabelled()))
    scripted = ScriptedJudge(verdict)
    with judging(scripted) as url:
        words = ["label", "--judge", f"{url}/v1/chat/completions", "--data", str(data), "--out", str(out)]
        code, _, err = call(*words, "--budget", "9")
        assert (code, scripted.received) == (1, 0)
        assert "10 requests to send" in err
        assert "needs 10 requests, but `--budget` allows 9" in err
        code, printed, _ = call(*words, "--budget", "10", "--prices", "1,2")
        assert code == 0
        assert "5 of 5 pairs labelled" in printed
        assert "position bias: the first response wins +5.0% too often" in printed
        assert "cost 0.00" in printed
        code, printed, _ = call(*words, "--overwrite", "--json")
    assert code == 0
    assert json.loads(printed)["judges"][0]["from_cache"] == 10
    assert scripted.received == 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "x"], "give --judge, --data and --out"),
        (["--judge", "a", "--data", "x", "--out", "y.jsonl", "--prices", "1"], "--prices"),
        (["--judge", "a", "--data", "x", "--out", "y.jsonl", "--extra-body", "[1]"], "JSON object"),
        (["--judge", "a", "--data", "x", "--out", "y.jsonl", "--votes", "-1"], "votes"),
    ],
)
def test_wrong_options(words, message, call):
    code, _, err = call("label", *words)
    assert code == 2
    assert message in " ".join(err.replace("│", " ").split())


def test_other_outputs_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must be a \.jsonl file"):
        label_rows(unlabelled(), tmp_path / "out.parquet", "http://127.0.0.1:1/v1/systemone#m")
    with pytest.raises(ValueError, match="no pair to label"):
        label_rows([{"prompt": "a", "chosen": "b", "rejected": "b"}], tmp_path / "o.jsonl", "http://a/v1/systemone#m")
    names = ["http://a/v1/systemone#m", "http://b/v1/systemone#m"]
    with pytest.raises(ValueError, match="several servers"):
        label_rows(unlabelled(), tmp_path / "out.jsonl", names, token="secret")
