"""Output of the commands: quiet, verbose, redirected, in narrow terminals, and the closing lines."""

import json
import logging
import shlex
import subprocess
import sys
from typing import Any

import datasets
import huggingface_hub
import pytest
import transformers
import typer
from rich.table import Table

from hf_reward.cli.console import make_console
from hf_reward.cli.output import Output, print_scores, start_output

NAME = "Pairwise_set/Helpfulness/Classification/Quality_and_Compliance_Assessment_of_the_Response"


# --- closing lines ---


def test_files_and_the_next_command_are_printed(capsys):
    Output().finish(["out/a b.json", "out/c"], ["hf-reward", "verify", "out/a b"])
    assert capsys.readouterr().out == "Written:\n  out/a b.json\n  out/c\nNext:\n  hf-reward verify 'out/a b'\n"
    Output().finish(then=["hf-reward", "recipes"], err=True)
    assert capsys.readouterr() == ("", "Next:\n  hf-reward recipes\n")
    for output in (Output(quiet=True), Output(as_json=True)):
        output.finish(["out"], ["hf-reward", "recipes"])
    assert capsys.readouterr() == ("", "")


# --- verbosity ---


def test_quiet_and_verbose_set_the_level_of_the_libraries():
    start_output(quiet=True)
    assert transformers.logging.get_verbosity() == datasets.logging.get_verbosity() == logging.ERROR
    assert not logging.getLogger("hf_reward").isEnabledFor(logging.WARNING)
    start_output(verbose=True)
    assert transformers.logging.get_verbosity() == datasets.logging.get_verbosity() == logging.INFO
    assert logging.getLogger("hf_reward").isEnabledFor(logging.INFO)
    with pytest.raises(typer.BadParameter, match="--quiet and --verbose"):
        start_output(quiet=True, verbose=True)


def test_progress_bars_are_off_in_redirected_output():
    start_output()
    assert huggingface_hub.utils.are_progress_bars_disabled()
    assert not datasets.utils.logging.is_progress_bar_enabled()
    assert not transformers.utils.logging.is_progress_bar_enabled()


# --- tables ---


def test_the_width_of_a_dumb_terminal_is_that_of_columns(monkeypatch):
    for name, value in {"COLUMNS": "60", "TERM": "dumb", "TTY_COMPATIBLE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert make_console().width == 60


def printed(capsys: Any) -> str:
    table = Table("name", "value", "note")
    table.add_row(NAME, "0.5", "a note of some words that fill the line and the next line as well")
    make_console().print(table)
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", ["60", "200", None])
def test_names_are_never_cut(columns, monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    shown = printed(capsys)
    cells = "".join(line.split("│")[1].strip() for line in shown.splitlines() if line.startswith("│"))
    assert NAME in cells
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= int(columns or 200)
    assert (columns != "60") == (f"│ {NAME} " in shown)  # on one line where there is space


def test_ids_are_never_cut(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    names = {name: name for name in ("prompt", "response", "responses", "messages", "text")}
    print_scores([{"id": NAME, "prompt": "p", "response": "r", "reward": 0.25}], names, "reward")
    shown = capsys.readouterr().out
    assert NAME in "".join(line.split("│")[1].strip() for line in shown.splitlines() if line.startswith("│"))
    assert "0.2500" in shown


# --- complete commands ---


def next_command(out: str) -> list[str]:
    lines = out.splitlines()
    return shlex.split(lines[lines.index("Next:") + 1])


@pytest.fixture
def pairs(chat_pairs, tmp_path):
    """A file of pairs, each prompt twice."""
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*chat_pairs, *chat_pairs]), encoding="utf-8")
    return path


@pytest.mark.slow
def test_each_next_command_works_as_printed(call, make_model_folder, pairs, tmp_path):
    def run(*words: Any) -> str:
        code, out, err = call(*words)
        assert code == 0, (words, out, err)
        assert "\r" not in out + err
        return out

    checked = run("check-data", "--data", pairs, "--out", tmp_path / "report")
    split = next_command(checked)
    assert split[:2] == ["hf-reward", "split"]
    again = next_command(run(*split[1:]))
    assert again[:2] == ["hf-reward", "check-data"]
    assert next_command(run(*again[1:])) == ["hf-reward", "train", "--help"]

    words = ["--model_name_or_path", make_model_folder("llama"), "--train_data", pairs, "--eval_data", pairs]
    words += ["--output_dir", tmp_path / "run", "--use_cpu", "true", "--report_to", "none", "--max_steps", 2]
    dry = next_command(run("train", *words, "--dry_run"))
    assert dry == ["hf-reward", "train", *map(str, words)]
    trained = run(*dry[1:])
    assert f"  {tmp_path / 'run' / 'model.safetensors'}" in trained
    verify = next_command(trained)
    assert verify == ["hf-reward", "verify", str(tmp_path / "run")]
    serve = ["hf-reward", "serve", "--model", str(tmp_path / "run")]
    assert next_command(run(*verify[1:])) == serve

    score = next_command(run("score", "--model", tmp_path / "run", "--prompt", "p", "--response", "a"))
    assert score == serve
    audit = run("audit", "--model", tmp_path / "run", "--data", pairs, "--out", tmp_path / "audit", "--quick")
    assert next_command(audit) == verify
    assert f"  {tmp_path / 'audit' / 'audit.html'}" in audit
    out = ("--out", tmp_path / "results")
    found = run("benchmark", "pairs", "--model", tmp_path / "run", "--data", pairs, *out)
    assert f"  {tmp_path / 'results' / 'results.json'}" in found
    exported = next_command(run("export", tmp_path / "run", tmp_path / "exported"))
    assert exported == ["hf-reward", "verify", str(tmp_path / "exported")]
    run(*exported[1:])


@pytest.mark.slow
def test_scored_rows_are_shown_and_the_next_command_keeps_them(call, saved_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "p", "response": "r"}\n', encoding="utf-8")
    _, out, _ = call("score", "--model", saved_llama, "--data", rows)
    code, out, _ = call(*next_command(out)[1:])
    assert code == 0
    assert "Written:\n  scored.jsonl\n" in out
    assert (tmp_path / "scored.jsonl").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("option", ["", pytest.param("--quiet", marks=pytest.mark.extended)])
def test_a_run_with_redirected_output_has_no_carriage_returns(option, make_model_folder, pairs, tmp_path):
    words = ["--model_name_or_path", make_model_folder("llama"), "--train_data", pairs, "--test_size", 0.25]
    words += ["--output_dir", tmp_path / "run", "--use_cpu", "true", "--report_to", "none", "--max_steps", 3]
    words += ["--logging_steps", 1, *([option] if option else [])]
    command = [sys.executable, "-m", "hf_reward.cli", "train", *map(str, words)]
    done = subprocess.run(command, capture_output=True, check=True)
    assert b"\r" not in done.stdout + done.stderr
    assert b"eval_accuracy" in done.stdout
    assert (b"Next:" in done.stdout) == (option == "")
    assert (b"'loss'" in done.stdout) == (option == "")
    if option:
        assert done.stderr == b""
