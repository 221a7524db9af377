"""The results of `make interop` agree with its cases, the verdicts of the code, and the documentation."""

import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PretrainedConfig

from hf_reward.publishing import program_results as module
from hf_reward.publishing.compatibility import SAME, compatibility_of_config
from hf_reward.publishing.program_results import (
    LLAMA_MODELS,
    NOT_RUN,
    OTHER_REWARD,
    READ,
    REFUSED,
    RUN,
    SAME_REWARD,
    TOLERANCE,
    ProgramResult,
    evidence_of,
    program_results,
    write_results,
)

SUITE = Path(__file__).parents[1] / "interop"
LLAMA = PretrainedConfig(architectures=["LlamaForSequenceClassification"])


@pytest.fixture(autouse=True)
def _suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SUITE))
    monkeypatch.syspath_prepend(str(SUITE / "programs"))


@pytest.fixture
def results_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A results file of its own."""
    monkeypatch.setattr(module, "RESULTS_PATH", tmp_path / "results.json")
    yield module.RESULTS_PATH
    monkeypatch.undo()
    program_results.cache_clear()


def result(**changes: Any) -> ProgramResult:
    known = ProgramResult(
        program="vLLM",
        version="1.0",
        status=RUN,
        date="2026-01-02",
        machine="CPU",
        dtype="float32",
        way="/classify",
        model="quick start",
        outcome=SAME_REWARD,
        difference=2e-5,
    )
    return replace(known, **changes)


# --- the committed file -----------------------------------------------------------------------------------------------


def test_every_case_was_run_with_the_expected_outcome() -> None:
    from cases import CASES

    expected = {
        (case.name, way.label or way.key, case.dtype, model): outcome
        for case in CASES
        for way in case.ways
        for model, outcome in zip(case.models, way.expected, strict=True)
        if outcome is not None
    }
    ran = [each for each in program_results() if each.status == RUN]
    not_run = [each for each in program_results() if each.status == NOT_RUN and each.way]
    assert {(each.program, each.way, each.dtype, each.model): each.outcome or None for each in ran} == {
        case: outcome
        for case, outcome in expected.items()
        if case not in {(each.program, each.way, each.dtype, each.model) for each in not_run}
    }
    assert len(ran) + len(not_run) == len(expected)
    for each in ran:
        assert (each.outcome == REFUSED) == (each.difference is None), each
        if each.difference is not None:
            assert (each.outcome == SAME_REWARD) == (each.difference <= TOLERANCE), each
        assert each.outcome != OTHER_REWARD or each.instead, each
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", each.date)
        assert each.version
        assert each.machine


def test_programs_that_were_only_read_state_the_version_that_was_read() -> None:
    read = [each for each in program_results() if each.status == READ]
    assert {"SGLang", "TEI", "verl"} <= {each.program for each in read}
    for each in read:
        assert re.search(r"\((PyPI|[0-9a-f]{7})\)$", each.version), each
        assert each.difference is None
        assert each.note


def test_verdicts_on_llama_agree_with_the_runs() -> None:
    for verdict in compatibility_of_config(LLAMA):
        ran = [each for each in program_results() if each.program == verdict.program and each.status == RUN]
        assert verdict.evidence.startswith("run" if ran else READ), verdict
        if ran and verdict.outcome == SAME:
            assert any(each.outcome == SAME_REWARD and each.dtype == "float32" for each in ran), verdict


def test_the_documentation_has_the_current_tables() -> None:
    from program_tables import DOCS, PAGES, TABLES, with_tables

    texts = {name: (DOCS / name).read_text(encoding="utf-8") for name in PAGES}
    for name, text in texts.items():
        assert with_tables(text) == text, f"{name}: run `make interop`"
    found = re.findall(r"<!-- (\w+): generated", "".join(texts.values()))
    assert sorted(found) == sorted(TABLES)


def test_programs_do_not_import_hf_reward() -> None:
    from cases import CASES

    scripts = {path.stem: path.read_text() for path in (SUITE / "programs").glob("*.py")}
    assert {case.script for case in CASES} == set(scripts) - {"exchange"}
    assert [
        name for name, text in scripts.items() if re.search(r"^\s*(from|import) hf_reward", text, re.MULTILINE)
    ] == []


def test_requirements_are_plain_pins() -> None:
    from cases import CASES

    files = {path.stem: path.read_text().splitlines() for path in (SUITE / "requirements").glob("*.txt")}
    assert set(files) == {case.environment for case in CASES}
    for name, lines in files.items():
        assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == [], name
        assert "torch==" in "".join(lines)


# --- evidence and tables ----------------------------------------------------------------------------------------------


def test_evidence_states_the_largest_difference_of_the_ways_that_agree(results_path: Path) -> None:
    rows = [
        result(),
        result(way="/pooling", difference=7e-6),
        result(way="/score", outcome=OTHER_REWARD, difference=2.0),
    ]
    write_results([*rows, result(program="TEI", version="2 (abcdef0)", status=READ, outcome="", difference=None)])
    assert evidence_of("vLLM", LLAMA_MODELS) == "run (1.0, CPU): up to 2e-05"
    assert evidence_of("vLLM", ()) == "source read; run with Llama (1.0)"
    assert evidence_of("TEI", LLAMA_MODELS) == "source read: 2 (abcdef0)"
    assert evidence_of("unknown", LLAMA_MODELS) == ""
    assert list(program_results())[:3] == rows
    assert "difference" not in json.loads(results_path.read_text())[3]


def test_tables_mark_other_rewards_and_errors() -> None:
    from program_tables import change_table, read_table, run_table

    rows = [
        result(),
        result(model="adapter", outcome=REFUSED, difference=None, note="ValueError: a|b"),
        result(way="/score", outcome=OTHER_REWARD, difference=0.5, instead="`/classify`"),
        result(way="/score", model="BOS", outcome=OTHER_REWARD, difference=math.inf, instead="`/classify`"),
        ProgramResult(program="TEI", version="2", status=READ, note="a|b"),
    ]
    assert run_table(rows)[2:] == [
        "| vLLM | 1.0 | /classify | float32 | 2.0e-05 | error | - | 2026-01-02 |",
        "| vLLM | 1.0 | /score | float32 | **5.0e-01** | - | **inf** | 2026-01-02 |",
    ]
    assert change_table(rows)[2:] == ["| vLLM | 1.0 | /score | float32 | 0.5 | inf | `/classify` |"]
    assert read_table(rows)[2:] == ["| TEI | 2 | - | source read | a\\|b |"]


# --- the driver -------------------------------------------------------------------------------------------------------


def answer_of(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ways: list[str]) -> Any:
    from exchange import run

    asked, answered = tmp_path / "request.json", tmp_path / "answer.json"
    asked.write_text(json.dumps({"folder": "f", "ways": ways, "probes": [{"text": "a"}, {"text": "bcd"}]}))
    monkeypatch.setattr(sys, "argv", ["program", str(asked), str(answered)])
    run("pytest", *script)
    return json.loads(answered.read_text())


def test_a_program_answers_with_rewards_or_the_error_of_each_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise ValueError("first line\nsecond line")

    ways = {"lengths": lambda _, probes: [len(probe["text"]) for probe in probes], "fails": fail}
    answer = answer_of((dict, ways), tmp_path, monkeypatch, ["lengths", "fails"])
    assert answer == {
        "version": pytest.__version__,
        "rewards": {"lengths": [1.0, 3.0]},
        "errors": {"fails": "ValueError: first line"},
    }
    answer = answer_of((fail, ways), tmp_path, monkeypatch, ["lengths"])
    assert answer["errors"] == {"lengths": "ValueError: first line"}
    assert answer["rewards"] == {}


def test_a_reward_that_is_not_finite_differs() -> None:
    from probing import largest_difference

    assert largest_difference([1.0, 2.0], [1.5, 2.0]) == 0.5
    assert largest_difference([1.0, 2.0], [math.nan, 2.0]) == math.inf
    with pytest.raises(ValueError, match="zip"):
        largest_difference([1.0, 2.0], [1.0])


@pytest.mark.parametrize(("rewards", "code"), [([1.0, 2.00001], 0), ([1.0, 2.01], 1), (None, 1)])
def test_an_unexpected_outcome_is_an_error_and_is_not_written(
    rewards: list[float] | None, code: int, results_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import run_programs
    from cases import MODELS, Program, Way

    case = Program(
        name="vLLM", environment="vllm", script="s", ways=(Way(key="w", expected=(SAME_REWARD, None, None)),)
    )
    replaced = [result(way="replaced"), result(way="replaced too", status=NOT_RUN)]
    known = [result(program="TRL", way="kept"), *replaced, result(program="TEI", status=READ)]
    write_results(known)
    answer = {
        "version": "2.0",
        "rewards": {} if rewards is None else {"w": rewards},
        "errors": {} if rewards is not None else {"w": "ValueError: no"},
    }
    monkeypatch.setattr(run_programs, "CASES", (replace(case, name="TRL", environment="other"), case))
    monkeypatch.setattr(run_programs, "python_of", lambda name: Path(name))
    monkeypatch.setattr(run_programs, "make_folders", lambda: dict.fromkeys([*MODELS, "policy"], Path()))
    monkeypatch.setattr(run_programs, "run_program", lambda *_, **__: answer)
    monkeypatch.setattr(run_programs, "recorded_rewards", lambda _: [1.0, 2.0])
    monkeypatch.setattr(run_programs, "write_tables", lambda: None)
    assert run_programs.main(["vllm"]) == code
    found = list(program_results())
    if code:
        assert found == known
        return
    assert [each.way for each in found] == ["kept", "w", "/classify"]
    assert found[1].difference == pytest.approx(1e-5)
    assert found[1].version == "2.0"


def test_unknown_environments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    import run_programs

    with pytest.raises(SystemExit):
        run_programs.main(["valm"])
    assert re.search(r"vllm.*not valm", capsys.readouterr().err)


def test_an_answer_is_reused_only_for_the_same_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import probing

    program = tmp_path / "counting.py"
    program.write_text(
        "import json, sys\nfrom pathlib import Path\ncount = Path('count')\ncount.touch()\n"
        "count.write_text(count.read_text() + 'x')\n"
        "if json.loads(Path(sys.argv[1]).read_text())['dtype'] != 'none':\n"
        "    Path(sys.argv[2]).write_text(json.dumps({'version': count.read_text()}))\n"
    )
    for name, value in {"PLACE": tmp_path, "ROOT": tmp_path, "PROGRAMS": tmp_path}.items():
        monkeypatch.setattr(probing, name, value)
    monkeypatch.setattr(probing, "probes_of", lambda folder: [])

    def answer(dtype: str = "float32", **options: Any) -> str:
        return probing.run_program(Path(sys.executable), "counting", tmp_path, dtype=dtype, **options)["version"]

    assert answer(ways=["a"]) == "x"
    assert answer(ways=["a"], reuse=True) == "x"
    assert answer(ways=["a"]) == "xx"
    assert answer(ways=["b"], reuse=True) == "xxx"
    with pytest.raises(RuntimeError, match=r"exit code 0: see .*output.txt"):
        answer("none")
