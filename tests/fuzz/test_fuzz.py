"""Random and malformed input at every entry point: only documented errors are raised.

`tests/fuzz/fuzz.py` runs the same targets for minutes.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

RECIPES = Path(__file__).parents[2] / "tests" / "fuzz"
sys.path.append(str(RECIPES))

import fuzz  # noqa: E402
from fuzz_models import MODEL_TARGETS  # noqa: E402
from fuzz_targets import TARGETS, BadRefusal, Target, try_case  # noqa: E402

ALL = {**TARGETS, **MODEL_TARGETS}
EXAMPLES = {
    "rows": 80,
    "ratings": 60,
    "preparation": 25,
    "sources": 25,
    "settings": 40,
    "server": 100,
    "importers": 40,
    "records": 60,
}


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """What tries a case of a target, made when first needed."""
    made: dict[str, Any] = {}

    def of(name: str) -> Any:
        if name not in made:
            made[name] = ALL[name].make(tmp_path_factory.mktemp(name))
        return made[name]

    return of


def test_the_recipe_lists_every_target():
    assert set(fuzz.NAMES) == set(ALL)


@pytest.mark.parametrize("name", list(ALL))
def test_only_documented_errors_come_out(name, attempts):
    target, attempt = ALL[name], attempts(name)

    @given(case=target.cases)
    @settings(max_examples=EXAMPLES.get(name, 150), suppress_health_check=list(HealthCheck))
    def check(case: Any) -> None:
        try_case(target, attempt, case)

    check()


_HUGE, _DEEP = 10**400, "[" * 100_000


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("settings", (b"a: !!timestamp 9", [])),
        ("settings", (b"a: &x [*x]", [])),
        ("settings", (b"!!python/object/apply:os.system ['true']", [])),
        ("settings", (b"a: {\tb", [])),
        ("settings", (b"- " * 3000, [])),
        ("settings", (b"\xff", [])),
        ("settings", (b"", ["--config", "x" * 5000])),
        ("sources", (("json", _DEEP.encode()), None)),
        ("sources", (("jsonl", b"null"), None)),
        ("sources", (("jsonl", b'\n [null, [-2], {"a": 1}]'), None)),
        ("sources", (("jsonl", b'{"a": 1}\n{"a": ' + b"9" * 5000 + b"}"), None)),
        ("preparation", ([{"prompt": _HUGE, "chosen": "a", "rejected": "b"}], True, None)),
        ("preparation", ([{"\x00": {"a": None}, "": [{"b": 4}, 1e308], "chosen": [], "rejected": []}], True, None)),
        ("rows", ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": _HUGE}, "auto", None)),
        ("rows", ({"prompt": "a", "response_a": "b", "response_b": "c", "winner": _HUGE}, "auto", None)),
        ("rows", ({"prompt": "a", "chosen": "b", "rejected": "c", "tools": _DEEP}, "auto", None)),
        ("scores", b'{"id": "0", "rewards": [1%s, 2]}' % (b"0" * 400)),
        ("scores", _DEEP.encode()),
        ("probe_data", ("jsonl", _DEEP.encode())),
        ("manifest", _DEEP.encode()),
        ("records", {"length_correction": ["a"]}),
        ("records", {"length_correction": {"unit": "characters", "knots": [_HUGE], "values": [1], "frac": 1}}),
        ("records", {"format": None}),
        ("records", {"format": {"max_length": [1]}}),
        ("records", {"format": {"separator": 1}}),
        ("records", _DEEP.encode()),
        ("importers", ("trl", [("edit", "config.json", "layer_types", 1e308)], False)),
        ("importers", ("trl", [("edit", "config.json", "layer_types", [])], False)),
        ("importers", ("trl", [("edit", "config.json", "quantization_config", "a")], False)),
        ("importers", ("llama_factory", [("edit", "config.json", "architectures", -3)], False)),
        ("importers", ("trl", [("edit", "config.json", "vocab_size", 10**19)], False)),
        ("importers", ("trl", [("edit", "config.json", "vocab_size", 10**10)], False)),
        ("importers", ("trl", [("edit", "config.json", "num_labels", 10**19)], False)),
        ("importers", ("trl", [("edit", "config.json", "num_hidden_layers", 90_000)], False)),
        ("importers", ("trl", [("replace", "tokenizer_config.json", "", [[]])], True)),
        ("importers", ("trl", [("edit", "tokenizer.json", "model", 3)], True)),
        ("importers", ("trl", [("replace", "config.json", "", json.loads("[" * 900 + "]" * 900))], True)),
    ],
)
def test_what_was_found_stays_fixed(name, case, attempts):
    try_case(ALL[name], attempts(name), case)  # raised an undocumented error


# --- the recipe -------------------------------------------------------------------------------------------------------


def test_errors_that_are_not_documented_or_say_nothing_are_findings(tmp_path):
    def fails(error: BaseException) -> Any:
        def attempt(case: Any) -> None:
            raise error

        return attempt

    target = Target(st.none(), lambda folder: fails(ValueError("x")), (ValueError,))
    try_case(target, fails(ValueError("said")), None)
    with pytest.raises(BadRefusal):
        try_case(target, fails(ValueError()), None)
    findings = fuzz.Findings("rows", "hypothesis", 1.0, tmp_path)
    for case in ("first", "second"):
        with pytest.raises(KeyError) as caught:
            try_case(target, fails(KeyError("lost")), case)
        findings.begin(case)
        findings.keep(caught.value, case)
    findings.report()
    numbers = json.loads((tmp_path / "rows.json").read_text())
    assert (numbers["cases"], len(numbers["findings"])) == (2, 1)
    assert "'first'" in (tmp_path / "rows-1.txt").read_text()
    assert fuzz.show([numbers], tmp_path) == 1
    assert fuzz.show([{**numbers, "findings": []}], tmp_path) == 0


@pytest.mark.slow
@pytest.mark.faults
def test_the_recipe_runs_a_target_in_a_process(tmp_path):
    words = ["manifest", "--minutes", "0.1", "--engine", "hypothesis", "--out", str(tmp_path)]
    ran = subprocess.run([sys.executable, str(RECIPES / "fuzz.py"), *words], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    numbers = json.loads((tmp_path / "manifest.json").read_text())
    assert numbers["cases"] > 20
    assert numbers["findings"] == []
