"""Help and shell completion: topics, plain types, short summaries, and names that bash completes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from hf_reward.cli.app import app, recipe_names
from hf_reward.cli.audit import FAMILIES
from hf_reward.evaluation.audit import rule
from hf_reward.training.setting_groups import SETTING_GROUPS
from hf_reward.training.settings_help import describe_settings

PROGRAM: Any = typer.main.get_command(app)
COMMANDS = [
    (*path, name)
    for path, group in [((), PROGRAM), *(((name,), PROGRAM.commands[name]) for name in ("audit", "benchmark"))]
    for name in group.commands
]
NAMES = [" ".join(path) for path in COMMANDS]


@pytest.mark.parametrize("path", [path for path in COMMANDS if path != ("train",)], ids=" ".join)
def test_types_are_words_and_switches_have_none(call, path):
    code, out, _ = call(*path, "--help")
    assert code == 0
    assert not re.search(r"<[a-z\[\]| ]+>", out)
    assert re.search(r"--help +Show this message", out)
    if "--json" in out:
        assert re.search(r"--json +Print JSON", out)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_the_summary_is_one_short_sentence(path):
    command = PROGRAM
    for name in path:
        command = command.commands[name]
    summary = command.help.split("\n\n")[0]
    assert len(summary) <= 80
    assert summary.endswith(".")
    assert ". " not in summary
    assert command.rich_help_panel or path[0] == "audit"


def test_commands_are_in_panels_in_the_order_of_use(call):
    _, out, _ = call("--help")
    places = [out.index(f"─ {panel} ─") for panel in ("Train", "Score", "Measure", "Publish")]
    assert places == sorted(places)
    places = [out.index(f"│ {name} ") for name in ("train", "check-data", "score", "serve", "audit", "verify", "push")]
    assert places == sorted(places)


# --- train ---


def listed(out: str) -> list[str]:
    return re.findall(r"^│ --([\w-]+)", out, flags=re.MULTILINE)


def test_train_help_lists_each_common_setting_once_by_topic(call):
    code, out, _ = call("train", "--help")
    assert code == 0
    common = [name for names in SETTING_GROUPS.values() for name in names]
    assert listed(out) == ["config", "quiet", "verbose", "help", "help-all", *common]
    assert all(f"─ {topic} ─" in out for topic in SETTING_GROUPS)
    assert "--help-all` also prints" in out


def test_train_help_all_lists_every_setting_once(call):
    code, out, _ = call("train", "--help-all")
    assert code == 0
    assert listed(out)[5:] == [each.name for each in describe_settings()]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_train_help_fits_the_terminal(width, monkeypatch, capsys):
    from hf_reward.training.settings_help import print_help

    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    print_help(every_setting=False)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if line.startswith(("│", "╭", "╰"))) == width
    assert "…" not in "".join(lines)


def test_train_without_settings_is_a_usage_error_with_examples(call):
    code, out, err = call("train")
    assert (code, out) == (2, "")
    assert "hf-reward train --config run.yaml" in err
    assert len(err.splitlines()) < 8


@pytest.mark.parametrize("words", [("--learning-rate", "1e-3"), ("--learning_rate", "1e-3")])
def test_both_spellings_of_a_setting_are_accepted(words):
    from hf_reward.training.run_arguments import parse_run_arguments

    _, args = parse_run_arguments(["--model_name_or_path", "m", "--train-data", "d", *words])
    assert args.learning_rate == 1e-3


@pytest.mark.parametrize(("option", "level", "bar_is_off"), [("--quiet", "error", True), ("--verbose", "info", False)])
def test_quiet_and_verbose_override_the_yaml_file(option, level, bar_is_off, tmp_path):
    from hf_reward.training.run_arguments import parse_run_arguments

    file = tmp_path / "run.yaml"
    file.write_text("model_name_or_path: m\ntrain_data: d\nlog_level: warning\ndisable_tqdm: false\n", encoding="utf-8")
    _, args = parse_run_arguments(["--config", str(file), option])
    assert (args.log_level, args.disable_tqdm) == (level, bar_is_off)
    _, args = parse_run_arguments(["--config", str(file), option, "--log_level", "critical"])
    assert args.log_level == "critical"


# --- completion ---


@pytest.fixture
def script(tmp_path) -> Path:
    """An executable `hf-reward`."""
    path = tmp_path / "hf-reward"
    path.write_text(f"#!{sys.executable}\nfrom hf_reward.cli import main\nmain()\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_and_values(script):
    typed = ["hf-reward che", "hf-reward score --compare-", "hf-reward audit --family best", "hf-reward recipes quick"]
    typed += ["hf-reward benchmark rewardbench", "hf-reward rank --dtype b", "hf-reward split --format "]
    program = f"""
export _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION=1
eval "$({script} --show-completion bash)"
unset _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION
while IFS= read -r line; do
    read -ra COMP_WORDS <<< "$line"
    [[ $line == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
    _hf_reward_completion {script}
    echo "${{COMPREPLY[@]}}"
done
"""
    lines = "".join(f"{line}\n" for line in typed)
    done = subprocess.run(["bash", "--norc", "-c", program], input=lines, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "check-data",
        "--compare-training",
        "best_of_n",
        "quickstart.yaml",
        "rewardbench rewardbench2",
        "bfloat16",
        "jsonl parquet",
    ]


def test_completed_names_are_those_of_the_package():
    assert tuple(family.name for family in rule.FAMILIES) == FAMILIES
    assert "quickstart.yaml" in recipe_names()
