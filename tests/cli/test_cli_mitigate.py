"""`hf-reward mitigate`: one run from audit to tables, its resumption, and its refusals."""

import json
import shutil

import pytest

from hf_reward import CheckpointRecord, RewardScorer
from hf_reward.evaluation.audit.inputs.synthetic import synthetic_data
from hf_reward.training import mitigation


def write_pairs(path, count, seed, topic):
    rows = [
        {"prompt": f"{topic}: {row.prompt}", "chosen": row.responses[0], "rejected": row.responses[1]}
        for row in synthetic_data(count, seed).rows
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def without_drawing(patch):
    """Leave out the figures, which take most of the time of a small audit; other tests draw them."""
    for module in ("files", "page"):
        patch.setattr(f"hf_reward.evaluation.audit.report.{module}.can_draw", lambda: False)


@pytest.fixture(scope="module")
def audited(saved_llama, tmp_path_factory):
    """A model with a random head, its data and its audit, in which junk often wins."""
    from typer.testing import CliRunner

    from hf_reward.cli.audit import app

    place = tmp_path_factory.mktemp("audited")
    model = shutil.copytree(saved_llama, place / "model")
    held_out = write_pairs(place / "held_out.jsonl", 40, 2, "Held out")
    write_pairs(place / "pairs.jsonl", 24, 3, "Training")
    write_pairs(place / "other.jsonl", 24, 4, "Second")
    words = ["--model", model, "--data", held_out, "--out", place / "audit", "--quick", "--resamples", "200"]
    words += ["--family", "accuracy", "--family", "degenerate", "--family", "length"]
    with pytest.MonkeyPatch.context() as patch:
        without_drawing(patch)
        found = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "160"})
    assert found.exit_code == 0, found.output
    return place


@pytest.fixture
def words(audited, tmp_path):
    given = {"audit": audited / "audit", "model": audited / "model", "data": audited / "pairs.jsonl"}
    return given | {"out": tmp_path / "out", "learning-rate": "0.01"}


@pytest.fixture(autouse=True)
def _without_figures(monkeypatch):
    without_drawing(monkeypatch)


def as_words(given):
    return ["mitigate", *(word for name, value in given.items() for word in (f"--{name}", value))]


def biased(folder):
    probes = json.loads((folder / "audit.json").read_text())["probes"]
    return [each["name"] for each in probes if each["verdict"] == "biased"]


def stop(*args, **options):
    raise ValueError("the machine stopped")


def test_an_interrupted_run_resumes_and_compares(audited, words, call, monkeypatch):
    words["second-domain"] = audited / "other.jsonl"
    before = {path: path.read_bytes() for path in audited.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(mitigation, "_audit", stop)
        code, _, err = call(*as_words(words))
    assert (code, "the machine stopped" in err) == (1, True)
    weights = (words["out"] / "model.safetensors").read_bytes()
    monkeypatch.setattr(mitigation, "train_on", stop)
    code, out, err = call(*as_words(words))
    assert code == 0, err
    assert (words["out"] / "model.safetensors").read_bytes() == weights
    check_tables(audited / "audit", words["out"] / "mitigation", out)
    check_model(audited / "model", words["out"])
    assert before == {path: path.read_bytes() for path in audited.rglob("*") if path.is_file()}

    monkeypatch.setattr(mitigation, "run_audit", stop)
    code, out, _ = call(*as_words(words), "--json")
    assert (code, len(json.loads(out)["accuracies"])) == (0, 4)
    code, _, err = call(*as_words(words), "--share", "0.25")
    assert (code, "other inputs (rows, rule differ)" in err) == (1, True)


def check_tables(audit, folder, out):
    """Every biased probe is in the table, with the rows against it in a file."""
    found, was_biased = json.loads((folder / "mitigation.json").read_text()), biased(audit)
    assert was_biased
    assert {each["name"] for each in found["probes"] if each["verdict_before"] == "biased"} == set(was_biased)
    assert found["summary"] in " ".join(out.split())
    assert f"hf-reward audit compare {audit} {folder / 'audit'}" in out
    assert [each["data"] for each in found["accuracies"]] == ["held_out", "held_out", "other", "other"]
    assert all(each["ci_low"] <= each["change"] <= each["ci_high"] for each in found["accuracies"] if each["ci_low"])
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == sum(found["rows"]["built"].values()) > 0
    assert {each["kind"].split(":")[0] for each in rows} == set(found["plan"]["kinds"])
    assert "Before and after" in (folder / "mitigation.html").read_text()
    assert not (folder / "training").exists()


def check_model(old, new):
    """The new model has the form of the old one, other rewards, and the new audit in its card."""
    records = [CheckpointRecord.load(place) for place in (old, new)]
    assert records[0].format == records[1].format
    assert records[1].loss["loss_type"] == "bradley_terry"
    rewards = [RewardScorer.from_pretrained(place).score(["Question?"], ["An answer."])[0] for place in (old, new)]
    assert rewards[0] != rewards[1]
    assert (new / "audit_summary.json").read_bytes() == (new / "mitigation/audit/audit_summary.json").read_bytes()
    assert (new / "adapter" / "adapter_config.json").is_file()


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"audit": "nowhere"}, 1, "Name the folder that `hf-reward audit` wrote"),
        ({"data": "nowhere.jsonl"}, 1, "nowhere.jsonl"),
        ({"share": "0"}, 2, "`--share` must be above 0"),
        ({"learning-rate": "-1"}, 2, "`--learning-rate` must be above 0"),
        ({"epochs": "0"}, 2, "`--epochs` must be above 0"),
        ({"audit-data": "nowhere.jsonl"}, 1, "nowhere.jsonl"),
    ],
)
def test_wrong_values(words, call, tmp_path, changes, code, message):
    changes = {name: tmp_path / value if "nowhere" in value else value for name, value in changes.items()}
    found, _, err = call(*as_words({**words, **changes}))
    assert found == code
    assert message in " ".join(err.replace("│", " ").split())
    assert not words["out"].exists()


def test_an_output_folder_with_files_is_refused(words, call):
    words["out"].mkdir()
    (words["out"] / "mine.txt").write_text("text")
    code, _, err = call(*as_words(words))
    assert (code, "is not empty" in err) == (1, True)


def test_the_audit_of_another_model_is_refused(words, call, make_model_folder, tmp_path):
    from saved_models import saved_model

    other = saved_model(make_model_folder("llama", seed=5), tmp_path / "other")
    code, _, err = call(*as_words({**words, "model": other}))
    assert (code, "its weights" in err) == (1, True)
    assert not words["out"].exists()


def test_training_data_with_held_out_prompts_is_refused(audited, words, call):
    code, _, err = call(*as_words({**words, "data": audited / "held_out.jsonl"}))
    assert (code, "40 of 40 rows of held_out " in err) == (1, True)
    code, _, err = call(*as_words({**words, "second-domain": words["data"]}))
    assert (code, "24 of 24 rows of " in err) == (1, True)


def changed_audit(audited, target, change):
    shutil.copytree(audited / "audit", target)
    report = json.loads((target / "audit.json").read_text())
    change(report)
    (target / "audit.json").write_text(json.dumps(report))
    return target


def test_an_audit_without_a_bias_ends_without_files(audited, words, call, tmp_path):
    def clear(report):
        for probe in report["probes"]:
            probe["verdict"] = "equivalent"

    words["audit"] = changed_audit(audited, tmp_path / "clean", clear)
    code, out, _ = call(*as_words(words))
    assert (code, "nothing to mitigate" in out) == (0, True)
    assert call(*as_words(words), "--json")[1] == "{}\n"
    assert not words["out"].exists()


def test_biases_without_training_rows_are_refused_with_advice(audited, words, call, tmp_path):
    def only_calibration(report):
        for probe in report["probes"]:
            probe["verdict"] = "equivalent"
        report["probes"][-1] |= {"name": "calibration_slope", "family": "calibration", "verdict": "biased"}
        report["probes"][-1]["screen_only"] = False
        report["families"]["calibration"] = {"title": "Calibration", "advice": "Divide by a temperature."}

    words["audit"] = changed_audit(audited, tmp_path / "slope", only_calibration)
    code, _, err = call(*as_words(words))
    assert code == 1
    assert "only calibration_slope. Divide by a temperature." in err


def test_an_audit_run_from_python_needs_the_name_of_its_data(audited, words, call, tmp_path):
    words["audit"] = changed_audit(audited, tmp_path / "python", lambda report: None)
    (words["audit"] / "inputs.json").unlink()
    code, _, err = call(*as_words(words))
    assert (code, "Set `--audit-data FILE` to the data that was audited (held_out)" in err) == (1, True)
