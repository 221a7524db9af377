"""`hf-reward benchmark`: what it prints for people and for programs, and its one-line errors."""

import ast
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from benchmark_rows import instructed, write_rows
from saved_models import saved_model
from typer.testing import CliRunner, Result

from hf_reward.cli import benchmark as cli_benchmark
from hf_reward.cli import benchmark_tables
from hf_reward.cli import output as cli_output
from hf_reward.cli.benchmark import ORDERS, app
from hf_reward.cli.benchmark_tables import print_results
from hf_reward.evaluation.benchmarks.registry import NAMES, PUBLIC, benchmark_named
from hf_reward.evaluation.benchmarks.reporting import results_from_scores

ROWS = [instructed(number, 1 + number % 2, ("Natural", "Manual")[number % 2]) for number in range(24)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "llmbar.jsonl", ROWS)


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    lines = [{"id": f"{row['subset']}/{row['idx']}", "rewards": [1.0, 0.0]} for row in ROWS]
    return write_rows(tmp_path / "mine" / "scores.jsonl", lines)


def call(*words: Any) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200", "NO_COLOR": "1"})


def test_help_matches_the_benchmarks() -> None:
    assert list(ORDERS) == list(NAMES)
    for name, (title, order) in ORDERS.items():
        assert (title, order) == (benchmark_named(name).title, benchmark_named(name).order)
        words = " ".join(call(name, "--help").stdout.split())
        assert f"Response order in scores.jsonl: {order}." in words  # not taken for markup
    listed = call("--help").stdout
    assert all(name in listed for name in (*NAMES, "all", "compare"))


def test_help_imports_nothing_heavy() -> None:
    tree = ast.parse(inspect.getsource(cli_benchmark))
    imported = {
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    light = {
        "dataclasses",
        "json",
        "logging",
        "shlex",
        "sys",
        "os",
        "warnings",
        "collections.abc",
        "pathlib",
        "typing",
        "typer",
    }
    own = ("options", "output", "benchmark_tables", "judging")
    assert imported <= light | {f"hf_reward.cli.{name}" for name in own}
    for module in (cli_output, benchmark_tables):
        tree = ast.parse(inspect.getsource(module))
        names = [getattr(node, "module", None) or node.names[0].name for node in tree.body if hasattr(node, "names")]
        assert light.issuperset(names)


def test_scores_are_recomputed_without_a_model(data: Path, scores: Path, tmp_path: Path) -> None:
    shown = call("llmbar", "--data", data, "--scores", scores)
    assert shown.exit_code == 0
    assert "overall (partial)" in shown.stdout
    assert "LLMBar (not verified)" in shown.stdout
    assert "NOT VERIFIED: arithmetic (not compared with outputs of the original code)." in shown.stdout
    assert "longer response (characters)" in shown.stdout
    assert "PARTIAL" in shown.stdout
    printed = call("llmbar", "--data", data, "--scores", scores, "--out", tmp_path / "out", "--json")
    assert json.loads(printed.stdout) == json.loads((tmp_path / "out" / "results.json").read_text())
    assert json.loads(printed.stdout)["overall"] == 0.5


def test_a_model_from_the_command_line(make_model_folder: Any, data: Path, tmp_path: Path) -> None:
    folder = saved_model(make_model_folder("llama"), tmp_path / "saved")
    words = ("--model", folder, "--data", data, "--out", tmp_path / "out", "--json", "--card")
    first = call("llmbar", *words)
    assert first.exit_code == 0, first.output
    results = json.loads(first.stdout)
    assert json.loads((folder / "benchmark_results.json").read_text()) == [results]
    part = call("llmbar", *words[:4], "--out", tmp_path / "part", "--subset", "Manual", "--json")
    assert json.loads(part.stdout)["n"] == 12
    compared = call("compare", tmp_path / "out", tmp_path / "out")
    assert "McNemar" in compared.stdout
    assert json.loads(call("compare", tmp_path / "out", tmp_path / "out", "--json").stdout)["difference"] == 0


def test_all_from_the_command_line(make_model_folder: Any, data: Path, tmp_path: Path) -> None:
    folder = saved_model(make_model_folder("llama"), tmp_path / "saved")
    found = call("all", "--model", folder, "--data", data.parent, "--out", tmp_path / "out")
    assert found.exit_code == 0, found.output
    assert "LLMBar (partial, not verified)" in found.stdout
    assert "Not run: rewardbench." in found.stdout
    (tmp_path / "empty").mkdir()
    nothing = call("all", "--model", folder, "--data", tmp_path / "empty", "--out", tmp_path / "none")
    assert nothing.exit_code == 1
    assert nothing.stdout.count("Not run: ") == len(PUBLIC)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["llmbar"], "give either --model, --judge or --scores"),
        (["llmbar", "--model", "m"], "--model and --judge need --out"),
        (["pairs", "--scores", "s", "--columns", "chosen"], "--columns must be"),
        (["all", "--out", "o"], "give --model or --judge, and --out"),
        (["compare", "a"], "Missing argument"),
    ],
)
def test_wrong_options(words: list[str], message: str) -> None:
    found = call(*words)
    assert found.exit_code == 2
    assert message in " ".join(found.stderr.replace("│", " ").split())


def test_own_columns_from_the_command_line(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "p", "good": "a", "bad": "b"}])
    scores = write_rows(tmp_path / "scores.jsonl", [{"id": "0", "rewards": [1.0, 0.0]}])
    words = ("--data", rows, "--scores", scores, "--columns", "chosen=good", "--columns", "rejected=bad", "--json")
    assert json.loads(call("pairs", *words).stdout)["overall"] == 1.0


def test_errors_are_not_changed(data: Path) -> None:
    found = call("llmbar", "--data", data, "--scores", "nowhere.jsonl")
    assert isinstance(found.exception, FileNotFoundError)  # which `cli.main` prints as one line


def test_names_are_not_cut_in_a_narrow_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    name = "Pairwise_set/Helpfulness/Classification/Quality_and_Compliance_Assessment"
    rows = [{"id": "a", "prompt": "p", "chosen": "x", "rejected": "y", "subset": name}]
    path = tmp_path / "s.jsonl"
    path.write_text('{"id": "a", "rewards": [1.0, 0.0]}\n', encoding="utf-8")
    print_results(results_from_scores("pairs", rows, path))
    shown = capsys.readouterr().out
    column = "".join(line.split("│")[1].strip() for line in shown.splitlines() if line.startswith("│"))
    assert name in column
    assert "…" not in shown
    assert "Overall: share of a row's pairs in order, mean over rows." in shown
