"""`hf-reward audit`: what it writes, stores and prints, and its one-line errors."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from hf_reward import CheckpointRecord, RewardScorer
from hf_reward.cli.audit import app
from hf_reward.evaluation.audit.inputs.synthetic import synthetic_data


@pytest.fixture
def folder(saved_llama, tmp_path):
    return shutil.copytree(saved_llama, tmp_path / "model")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": row.prompt, "chosen": row.responses[0], "rejected": row.responses[1]}
        for row in synthetic_data(60, 2).rows
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "160", "NO_COLOR": "1"})


def test_an_audit_is_written_printed_and_added_to_the_card(folder, data, tmp_path):
    out = tmp_path / "audit"
    options = ["--quick", "--family", "length", "--family", "calibration"]
    found = call("--model", folder, "--data", data, "--out", out, *options, "--update-card")
    assert found.exit_code == 0, found.output
    assert "Padding that adds" in found.output
    assert str(out / "audit.html") in found.output
    report = json.loads((out / "audit.json").read_text())
    assert set(report["families"]) == {"length", "calibration"}
    keys = {"name", "family", "estimate", "unit", "ci_low", "ci_high", "n", "clusters", "verdict", "delta", "mde"}
    keys |= {"p_value", "q_value", "screen_only"}
    assert all(keys <= set(probe) for probe in report["probes"])
    assert (folder / "audit_summary.json").read_text() == (out / "audit_summary.json").read_text()
    card = (folder / "README.md").read_text()
    assert "Padding that adds nothing" in card
    assert "audit_effects.png" in card


def test_only_json_is_printed(folder, data, tmp_path):
    found = call(
        "--model", folder, "--data", data, "--out", tmp_path / "a", "--family", "accuracy", "--quick", "--json"
    )
    assert json.loads(found.stdout)["families"]["accuracy"]["title"] == "Accuracy"


def test_a_temperature_is_stored_and_used_by_compare(folder, data, tmp_path):
    record = CheckpointRecord.load(folder)
    scorer = RewardScorer.from_pretrained(folder)
    before = scorer.compare("Hello", "One answer.", "Another answer, longer.")
    out = tmp_path / "a"
    found = call("--model", folder, "--data", data, "--out", out, "--family", "calibration", "--fit-temperature")
    details = json.loads((out / "audit.json").read_text())["families"]["calibration"]["details"]
    if "temperature" not in details:  # a random model may have a slope below 0
        assert found.exit_code == 1
        assert "No temperature was stored" in str(found.exception)
        return
    assert found.exit_code == 0, found.output
    stored = CheckpointRecord.load(folder)
    assert stored.calibration["temperature"] == pytest.approx(details["temperature"])
    assert stored.calibration["pairs"] == 60
    assert stored.probes == record.probes
    after = RewardScorer.from_pretrained(folder).compare("Hello", "One answer.", "Another answer, longer.")
    assert after != before


def test_a_length_correction_is_stored_and_audited(folder, data, tmp_path):
    words = ["--model", folder, "--data", data, "--family", "accuracy", "--quick"]
    found = call(*words, "--out", tmp_path / "a", "--fit-length-correction")
    assert found.exit_code == 0, found.output
    assert CheckpointRecord.load(folder).length_correction["num_responses"] == 120
    corrected = call(*words, "--out", tmp_path / "b", "--length-correction")
    assert corrected.exit_code == 0, corrected.output
    units = [json.loads((tmp_path / name / "audit.json").read_text())["unit"] for name in "ab"]
    assert units[0] != units[1]
    both = call(*words, "--out", tmp_path / "c", "--length-correction", "--fit-length-correction")
    assert both.exit_code == 2
    assert "leave --length-correction out" in " ".join(both.output.replace("│", " ").split())


def test_two_audits_are_compared(folder, data, tmp_path):
    for name in "ab":
        call("--model", folder, "--data", data, "--out", tmp_path / name, "--family", "accuracy", "--quick")
    found = call("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c")
    assert found.exit_code == 0, found.output
    assert "No probe shows a difference" in found.output
    assert "Accuracy (ties count half)" in (tmp_path / "c" / "comparison.html").read_text()
    assert json.loads((tmp_path / "c" / "comparison.json").read_text())["probes"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "--model is missing"),
        (("--model", "m", "--data", "d"), 2, "--out is missing"),
        (("--model", "m", "--data", "d", "--out", "o", "--fit-temperature"), 2, "--model is not a folder"),
        (("--model", "m", "--data", "d", "--out", "o", "--family", "vanity"), 2, "Unknown family: vanity"),
        (("--self-test", "--seeds", "0"), 2, "--seeds must be 1 or more"),
    ],
)
def test_wrong_options(words, code, message):
    found = call(*words)
    assert found.exit_code == code
    assert message in " ".join(found.output.replace("│", " ").split())


def test_missing_data_is_one_error(folder, tmp_path):
    found = call("--model", folder, "--data", tmp_path / "nowhere.jsonl", "--out", tmp_path / "a")
    assert found.exit_code == 1
    assert "nowhere.jsonl" in str(found.exception)


def test_probe_data_of_an_unknown_kind_is_one_error(folder, data, tmp_path):
    odd = tmp_path / "odd.jsonl"
    odd.write_text('{"text": "hello"}\n')
    found = call("--model", folder, "--data", data, "--out", tmp_path / "a", "--probe-data", odd)
    assert found.exit_code == 1
    assert "odd.jsonl" in str(found.exception)


@pytest.mark.slow
def test_the_self_test_reports_whether_the_audit_passes(monkeypatch):
    from hf_reward.evaluation.audit import self_test

    monkeypatch.setattr(self_test, "FAULTS", self_test.FAULTS[3:])
    found = call("--self-test", "--seeds", "1")
    assert "overconfident by a factor of two" in found.output
    assert "The self-test passed." in found.output or found.exit_code == 3
