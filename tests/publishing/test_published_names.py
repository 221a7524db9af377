"""Published files contain no local folder, user or password, and hostile names are escaped."""

import json
import logging
import os
import re
from pathlib import Path

import pytest
from audit_reports import HOSTILE, audit_report, comparison
from card_records import front_matter, full_record, render
from saved_models import edit_json, saved_model

from hf_reward.data.path_safety import shown_name, warn_if_others_can_read, with_shown_model
from hf_reward.data.sources import source_name
from hf_reward.evaluation.audit.comparing import compare_audits
from hf_reward.evaluation.audit.inputs.synthetic import synthetic_data
from hf_reward.evaluation.audit.report.comparison_page import render_comparison, write_comparison
from hf_reward.evaluation.audit.report.files import write_audit
from hf_reward.evaluation.audit.report.page import render_page
from hf_reward.evaluation.audit.running import AuditRule, run_audit
from hf_reward.publishing.card.text import without_paths
from hf_reward.publishing.push import PushError, explained
from hf_reward.publishing.staged_files import PushRule, assemble
from hf_reward.scoring.server_token import read_token

NAMES = [
    *HOSTILE[:3],
    "[x](javascript:alert(1)) ![i](http://evil.example/i.png)",
    "a\n---\nlicense: mit\n---\n# Owned",
    "'\": {x: !!python/object/apply:os.system [id]} # |",
    "` ``` </details> <!-- | -->",
]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/home/jane doe/models/rm", "rm"), ("~/runs/rm/", "rm"), ("../jane/rm", "rm"), ("./rm", "rm"),
        ("C:\\Users\\Jane Doe\\rm", "rm"), ("file:///home/jane/rm", "rm"), ("/jane/runs/checkpoint-5", "checkpoint-5"),
        ("org/name", "org/name"), ("outputs/rm", "outputs/rm"), ("rm", "rm"), (".hidden", ".hidden"), ("a.b", "a.b"),
        (Path.home(), "home"), ("~", "home"),
    ],
)  # fmt: skip
def test_only_the_last_part_of_a_path_is_shown(name, shown):
    assert shown_name(name) == shown


def test_the_current_folder_is_shown_by_its_own_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shown_name(".") == tmp_path.name


def test_facts_of_a_model_keep_everything_but_its_folders():
    facts = {"model": "/home/jane/rm", "fingerprint": {"model": "/home/jane/rm", "weights": "ab"}, "prompts_cut": 0}
    cut = with_shown_model(facts)
    assert cut == {"model": "rm", "fingerprint": {"model": "rm", "weights": "ab"}, "prompts_cut": 0}
    assert facts["model"] == "/home/jane/rm"
    assert with_shown_model({"model": None, "fingerprint": None}) == {"model": None, "fingerprint": None}


def test_data_in_the_home_folder_is_not_named_after_its_user(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/jane"))
    assert source_name("/home/jane/train.jsonl") == "train"
    assert source_name("/home/jane/hh/train.jsonl") == "hh"


def test_a_home_folder_with_a_space_is_cut(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/Users/Jane Doe"))
    assert without_paths("train --data /Users/Jane Doe/x.jsonl") == "train --data LOCAL/x.jsonl"


def test_files_of_an_audit_name_no_folder(make_model_folder, tmp_path):
    home = tmp_path / "jane_s3cret"
    folder = saved_model(make_model_folder("llama"), home / "model")
    rows = synthetic_data(12, 2).rows
    report = run_audit(folder, rows, rule=AuditRule(families=("accuracy",)))
    files = write_audit(report, home / "audit")
    assert len(files) > 3
    assert [path.name for path in files if b"jane_s3cret" in path.read_bytes()] == []
    assert "<title>Bias audit: model</title>" in (home / "audit" / "audit.html").read_text()
    assert report.fingerprint["model"] == "model"
    edit_json(
        home / "audit" / "audit.json", model=str(folder), data=str(home / "rows.jsonl")
    )  # as earlier versions did
    compared = compare_audits(home / "audit", home / "audit")
    write_comparison(compared, home / "compared")
    assert (compared["a"], compared["b"]) == ("model", "model")
    pages = list((home / "compared").iterdir())
    assert {path.suffix for path in pages} == {".json", ".html"}
    assert [path.name for path in pages if b"jane_s3cret" in path.read_bytes()] == []


def test_a_published_record_names_no_folder_in_any_part(make_model_folder, tmp_path):
    home = tmp_path / "jane_s3cret"
    folder = saved_model(make_model_folder("llama"), home / "model")
    content = json.loads((folder / "reward_config.json").read_text())
    place = f"{home}/rows.jsonl"
    content |= {"calibration": {"temperature": 1.0, "data": place}, "card": {"dataset": place, "notes": place}}
    content |= {"baselines": [{"name": place, "accuracy": 0.5}], "base_model": place, "training": {"command": place}}
    (folder / "reward_config.json").write_text(json.dumps(content))
    assemble(folder, tmp_path / "assembled", "org/rm", PushRule())
    files = [path for path in (tmp_path / "assembled").rglob("*") if path.is_file()]
    assert {"README.md", "reward_config.json", "config.json"} <= {path.name for path in files}
    assert [path.name for path in files if b"jane_s3cret" in path.read_bytes()] == []


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names_stay_text_on_pages(name):
    report = audit_report().to_dict() | {"model": name, "data": name}
    compared = comparison() | {"a": name, "b": name}
    for page in (render_page(report), render_comparison(compared)):
        assert not re.search(r"<(script|img|iframe|!--)|</details> <!", page)
        assert page.count("</style>") == 1


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names_stay_text_in_a_card(name, tmp_path):
    record = full_record()
    record.card |= {"model_name": name, "widget": name}
    record.baselines = [{"name": name, "accuracy": 0.5, "num_pairs": 10}]
    record.training["data"] = {name: record.training["data"]["train"]}
    record.training["settings"] = {"run_name": name}
    record.training["command"] = name
    plain = render(tmp_path / "m", full_record())
    text = render(tmp_path / "m", record)
    metadata = front_matter(text)
    assert metadata["widget"] == name
    assert metadata["license"] == front_matter(plain)["license"]
    assert set(metadata) - set(front_matter(plain)) == {"widget"}
    body = text.split("\n---\n", 1)[1]
    assert [line for line in body.splitlines() if line.startswith("#")][1:] == [
        line for line in plain.split("\n---\n", 1)[1].splitlines() if line.startswith("#")
    ][1:]
    fences = [line for line in body.splitlines() if line.startswith("```")]
    assert len(fences) == sum(line.startswith("```") for line in plain.splitlines())
    outside = re.sub(r"^```.*?^```$", "", body.rpartition("\n<!-- written by")[0], flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"<[a-z/!]", outside)
    assert not re.search(r"(?<!\\)\[(x|i)(?<!\\)\]", outside)


# --- tokens ---------------------------------------------------------------------------------------------------------


def test_an_error_of_the_hub_repeats_no_token_and_no_password():
    secret = "hf_" + "s3cret" * 5
    with pytest.raises(PushError) as caught, explained("org/rm", "Nothing was changed."):
        raise OSError(f"no answer from https://jane:hunter2@hub.example/api with Bearer {secret}")
    assert secret not in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "https://USER@hub.example/api with Bearer HF_TOKEN" in str(caught.value)


@pytest.mark.skipif(os.name == "nt", reason="modes of files say nothing there")
@pytest.mark.parametrize(
    ("mode", "warns"), [(0o600, False), (0o400, False), (0o640, True), (0o644, True), (0o604, True)]
)
def test_a_token_file_that_others_can_read_is_warned_about(mode, warns, tmp_path, caplog, monkeypatch):
    monkeypatch.delenv("HF_REWARD_SERVER_TOKEN", raising=False)
    file = tmp_path / "token"
    file.write_text("t0ken-value\n")
    file.chmod(mode)
    with caplog.at_level(logging.WARNING):
        assert read_token(file) == "t0ken-value"
    assert (f"{file} holds a token and can be read by other users" in caplog.text) == warns
    assert "t0ken-value" not in caplog.text
    warn_if_others_can_read(tmp_path / "absent")
