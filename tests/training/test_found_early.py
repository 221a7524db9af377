"""Errors that would stop a command at its end are found before a model is loaded."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from training_runs import load, make_trainer
from typer.testing import CliRunner

from hf_reward import RewardConfig
from hf_reward.cli.app import app
from hf_reward.data.path_safety import require_writable
from hf_reward.scoring.loading import load_for_scoring
from hf_reward.scoring.serving import server
from hf_reward.scoring.serving.settings import ServerSettings


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Loading a model fails the test, unless the test requests one."""

    def refuse(*args: Any, **options: Any) -> Any:
        raise AssertionError("a model was loaded")

    if "make_model_folder" not in request.fixturenames:
        monkeypatch.setattr("hf_reward.scoring.reward_scorer.RewardScorer.from_pretrained", refuse)
        monkeypatch.setattr("hf_reward.modeling.auto_model.AutoModelForRewardScoring.from_pretrained", refuse)


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    row = {"prompt": "p", "response": "a", "chosen": "a", "rejected": "b"}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return str(path)


def error_of(*words: object) -> str:
    result = CliRunner().invoke(app, [*map(str, words)], env={"COLUMNS": "500"})
    assert result.exit_code != 0
    assert not isinstance(result.exception, AssertionError), result.exception
    return " ".join(f"{result.output} {result.exception}".replace("│", " ").split())


def score(data: object, *words: object) -> str:
    return error_of("score", "--model", "m", "--data", data, *words)


def test_an_unknown_output_format_is_refused_before_the_model_is_loaded(rows, tmp_path):
    assert "must be a .jsonl or .parquet file" in score(rows, "--out", tmp_path / "x.txt")
    (tmp_path / "taken.jsonl").touch()
    assert "taken.jsonl exists. Set `--resume` to resume the run, or `--overwrite` to replace it" in score(
        rows, "--out", tmp_path / "taken.jsonl"
    )
    assert "must be a .jsonl" in score("-", "--out", tmp_path / "x.txt")
    assert "is a file. Name another output" in score(rows, "--out", tmp_path / "taken.jsonl" / "out.jsonl")


def test_data_that_cannot_be_scored_is_refused_before_the_model_is_loaded(rows, tmp_path):
    out = ("--out", tmp_path / "out.jsonl")
    assert "no file" in score(tmp_path / "none.jsonl", *out)
    assert "`--columns` names 'answer'" in score(rows, *out, "--columns", "response=answer")
    assert "names 'answer'" in score(rows, "--columns", "response=answer")
    audit = ("audit", "--model", "m", "--out", tmp_path / "audit")
    assert "`--columns` names 'answer'" in error_of(*audit, "--data", rows, "--columns", "chosen=answer")
    assert not (tmp_path / "audit").exists()


def test_an_unwritable_output_is_refused_before_the_work(rows, tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    message = f"{blocked} is a file. Name another output"
    assert message in error_of("check-data", "--data", rows, "--out", blocked / "out")
    assert message in error_of("split", "--data", rows, "--out", blocked / "out")
    assert message in error_of("audit", "--model", "m", "--data", rows, "--out", blocked / "out")
    assert message in error_of("benchmark", "pairs", "--model", "m", "--data", rows, "--out", blocked / "out")
    card = ("benchmark", "pairs", "--model", "nowhere", "--data", rows, "--out", tmp_path / "out", "--card")
    assert "--card records the result in the model's folder, but --model is not a folder" in error_of(*card)
    require_writable(tmp_path / "new" / "folder" / "file.json")
    require_writable(blocked)


@pytest.mark.parametrize("device", ["cudda", "cuda:99"])
def test_a_missing_device_is_refused_before_the_model_is_loaded(device):
    with pytest.raises(ValueError, match=f"`device='{device}'` cannot be used here"):
        load_for_scoring("m", device=device)


def test_a_port_in_use_is_refused_before_the_model_is_loaded():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port} .*in use.*`port=0` for a free one"):
            server.serve("m", ServerSettings(port=port))
        message = error_of("serve", "--model", "m", "--port", port)
        assert f"cannot listen on 127.0.0.1:{port}" in message
        assert "`--port 0` for a free one" in message
    with pytest.raises(OSError, match=r"`host='no\.such\.host\.invalid'` is not an address of this machine"):
        server.serve("m", ServerSettings(host="no.such.host.invalid"))


def test_a_port_is_held_while_the_model_is_loaded_and_free_afterwards():
    with server.bound_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(OSError, match="in use"), server.bound_socket("127.0.0.1", port):
            pass
    with server.bound_socket("127.0.0.1", port) as again:
        again.listen()


def test_settings_that_contradict_each_other_or_need_a_package_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`bf16=True` and `fp16=True` both set"):
        RewardConfig(output_dir=str(tmp_path), bf16=True, fp16=True, use_cpu=True)
    with pytest.raises(
        ValueError, match=r"`report_to` names reporters that are unknown or not installed: nosuchlogger"
    ):
        RewardConfig(output_dir=str(tmp_path), report_to=["tensorboard", "nosuchlogger"], use_cpu=True)


def test_training_rows_that_would_all_be_dropped_are_refused(make_model_folder, chat_pairs, tmp_path):
    model = load(make_model_folder("llama"))
    settings: dict[str, Any] = {"dataloader_drop_last": True, "per_device_train_batch_size": 5}
    message = (
        r"`dataloader_drop_last=True` drops the last batch unless it has 5 rows, but the training data has only 4 rows"
    )
    with pytest.raises(ValueError, match=message):
        make_trainer(model, chat_pairs[:4], tmp_path / "run", **settings)
    make_trainer(model, chat_pairs[:5], tmp_path / "run", **settings)
