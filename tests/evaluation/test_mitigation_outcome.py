"""The comparison of the audits before and after a mitigation: outcomes, accuracies and the page."""

import json
from dataclasses import replace

import pytest

from hf_reward.evaluation.audit import FULL, AuditRule, run_audit
from hf_reward.evaluation.audit.inputs.synthetic import SyntheticReward, synthetic_data
from hf_reward.evaluation.audit.report.evidence import write_evidence
from hf_reward.evaluation.mitigation.outcome import compare_outcomes, outcome_of
from hf_reward.evaluation.mitigation.report import write_outcome
from hf_reward.evaluation.mitigation.training_pairs import require_held_out

DATA = synthetic_data(80, 11)
RULE = AuditRule(
    profile=replace(FULL, answers=60, questions=0, doses=(2.0,), positions=("end",), wordings=1),
    families=("accuracy", "length", "format"),
    resamples=200,
)


def write(folder, **biases):
    report = run_audit(SyntheticReward(DATA.quality, **biases), DATA.rows, rule=RULE)
    folder.mkdir()
    (folder / "audit.json").write_text(json.dumps(report.to_dict()))
    write_evidence(report.evidence, folder)
    return folder


@pytest.fixture(scope="module")
def audits(tmp_path_factory):
    place = tmp_path_factory.mktemp("audits")
    sizes = {"biased": {"length": 0.6}, "weaker": {"length": 0.25}, "fair": {}, "bold": {"bold": 0.8}}
    return {name: write(place / name, **biases) for name, biases in sizes.items()}


UNITS = ("biased", "fair")


def outcomes(found):
    return {each["name"]: each["outcome"] for each in found["probes"]}


def test_a_bias_that_is_gone_is_removed(audits):
    found = compare_outcomes(audits["biased"], audits["fair"])
    padding = next(each for each in found["probes"] if each["name"] == "padding_effect")
    assert padding["outcome"] == "removed"
    assert padding["change"] == pytest.approx(padding["after"] - padding["before"], abs=1e-6)
    assert padding["ci_high"] < 0
    assert set(outcomes(found).values()) <= {"removed", "halved"}
    assert found["summary"].startswith(f"Of {len(found['probes'])} biased probes: ")
    assert "No new bias. Typical margin: " in found["summary"]
    assert found["typical_margins"] == [json.loads((audits[name] / "audit.json").read_text())["unit"] for name in UNITS]
    assert [each["name"] for each in found["accuracies"]] == ["length_balanced_accuracy", "accuracy"]
    assert all(each["ci_low"] is None or each["ci_low"] <= each["change"] for each in found["accuracies"])


def test_a_bias_that_shrinks_is_halved(audits):
    assert outcomes(compare_outcomes(audits["biased"], audits["weaker"]))["padding_effect"] == "halved"


def test_a_new_bias_is_reported(audits):
    found = compare_outcomes(audits["biased"], audits["bold"])
    assert outcomes(found)["format_bold"] == "new"
    assert "New biases: Bold text" in found["summary"]


def test_the_second_domain_adds_its_accuracies(audits):
    found = compare_outcomes(audits["biased"], audits["fair"], (audits["fair"], audits["weaker"]))
    assert len(found["accuracies"]) == 4


@pytest.mark.parametrize(
    ("before", "after", "bounds", "verdict", "expected"),
    [
        (0.8, 0.05, (-0.9, -0.6), "equivalent", "removed"),
        (0.8, 0.4, (-0.6, -0.2), "biased", "halved"),
        (0.8, 0.41, (-0.6, -0.2), "biased", "reduced"),
        (0.8, 0.2, (-1.3, 0.1), "inconclusive", "unchanged"),
        (0.8, 1.0, (0.1, 0.3), "biased", "increased"),
        (-0.8, -0.3, (0.3, 0.7), "inconclusive", "halved"),
        (-0.8, -0.9, (-0.2, -0.05), "biased", "increased"),
        (0.8, 0.1, (None, None), "inconclusive", "unknown"),
    ],
)
def test_outcomes(before, after, bounds, verdict, expected):
    entry = {"before": before, "after": after, "ci_low": bounds[0], "ci_high": bounds[1]}
    assert outcome_of({**entry, "verdict_before": "biased", "verdict_after": verdict}) == expected
    assert outcome_of({**entry, "verdict_before": "equivalent", "verdict_after": "biased"}) == "new"


def test_the_page_has_both_tables_and_escapes_names(audits, tmp_path):
    found = compare_outcomes(audits["biased"], audits["fair"])
    rows = {"rows": 10, "usable": 8, "built": {"length: padding": 5}}
    content = {"model": "<b>m</b>", "data": "train", "rows": rows, **found}
    write_outcome(content, tmp_path)
    page = (tmp_path / "mitigation.html").read_text()
    assert "&lt;b&gt;m&lt;/b&gt; before and after" in page
    assert "8 of 10 rows of train; 5 built rows." in page
    assert "Accuracy if both cases were equally frequent" in page
    assert json.loads((tmp_path / "mitigation.json").read_text())["counts"] == found["counts"]


# --- the training data ------------------------------------------------------------------------------------------------


def test_rows_with_a_held_out_prompt_or_group_are_refused():
    train, held_out = DATA.rows[:10], [replace(row, group=None) for row in DATA.rows[10:20]]
    require_held_out(train, held_out, "test")
    with pytest.raises(ValueError, match=r"but 3 of 3 rows of test have a prompt"):
        require_held_out(train, [replace(row, group="other") for row in DATA.rows[:3]], "test")
    with pytest.raises(ValueError, match=r"but 1 of 1 row of test"):
        require_held_out(train, [replace(held_out[0], group=train[0].group)], "test")
