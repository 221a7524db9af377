"""The files of an audit: complete, deterministic, read back unchanged, and rejected if invalid."""

import json
import os
import shutil
from dataclasses import replace

import pytest
from audit_reports import audit_report

from hf_reward.evaluation.audit.report import files
from hf_reward.evaluation.audit.report.files import card_summary, file_stem, read_audit, write_audit
from hf_reward.evaluation.audit.report.wording import VERDICT_WORDS
from hf_reward.publishing.card.biases import _VERDICTS, audit_rows
from hf_reward.publishing.card.facts import AUDIT_FILE, CardFacts, read_json


@pytest.fixture(scope="module")
def report():
    """A short audit with two findings of each family, whose figures are drawn quickly."""
    complete = audit_report()
    families = {name: replace(result, findings=result.findings[:2]) for name, result in complete.families.items()}
    return replace(complete, families=families)


@pytest.fixture(scope="module")
def folder(report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    write_audit(report, folder / "new" / "one")
    return folder / "new" / "one"


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_exactly_the_documented_files_are_written(folder):
    names = set(contents(folder))
    assert {"audit.json", "audit.html", "audit_summary.json"} <= names
    stems = ("headlines", "effects", "length_dose", "calibration_reliability", "best_of_n_bon_curve_x")
    assert names - {"audit.json", "audit.html", "audit_summary.json"} == {
        f"figures/audit_{stem}.{kind}" for stem in stems for kind in ("svg", "png")
    }


def test_a_written_audit_is_read_back_unchanged(report, folder):
    read = read_audit(folder)
    assert read == report.to_dict()
    assert read_audit(folder / "audit.json") == read
    assert read["summary"] == report.summary


@pytest.mark.slow
def test_equal_reports_give_equal_bytes_and_replace_an_earlier_audit(report, folder, tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "audit_gone_curve.png").write_bytes(b"old")
    (tmp_path / "figures" / "mine.png").write_bytes(b"mine")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "audit.html").write_text("old")
    paths = write_audit(read_audit(folder), tmp_path)
    found = contents(tmp_path)
    assert found.pop("figures/mine.png") == b"mine"
    assert found.pop("config.json") == b"{}"
    assert found == contents(folder)
    assert set(paths) == {tmp_path / name for name in found}
    assert report.to_dict() == read_audit(tmp_path)


def test_the_card_reads_the_summary(folder):
    complete = audit_report()
    audit = card_summary(complete.to_dict())
    assert set(read_json(folder / AUDIT_FILE, dict)) == set(audit) == {"model", "data", "unit", "summary", "probes"}
    facts = CardFacts(
        folder=folder, record=None, audit=audit, benchmarks=[], compatibility=[], title="", model_id="", has_id=False
    )
    rows = audit_rows(facts)
    assert len(rows) == sum(not each.screen_only for each in complete.findings)
    assert list(VERDICT_WORDS) == list(_VERDICTS)


def test_a_failure_leaves_the_earlier_audit(report, folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)

    def fail(*_):
        raise RuntimeError("no page")

    monkeypatch.setattr(files, "render_page", fail)
    with pytest.raises(RuntimeError, match="no page"):
        write_audit(report, tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"probes": [', "damaged"),
        ("[1]", "not an object"),
        ('{"probes": []}', "`families`"),
        ('{"model": "m", "probes": {}}', "`probes`"),
    ],
)
def test_other_json_is_rejected(tmp_path, text, words):
    (tmp_path / "audit.json").write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        read_audit(tmp_path)
    assert "audit.json" in str(caught.value)


def test_invalid_findings_and_families_are_rejected(folder, tmp_path):
    good = read_audit(folder)
    for change, words in (
        ({"probes": [{"name": "x"}]}, "entry 0"),
        ({"families": {"length": []}}, "`length`"),
    ):
        (tmp_path / "audit.json").write_text(json.dumps({**good, **change}))
        with pytest.raises(ValueError, match=words):
            read_audit(tmp_path)


def test_the_error_for_a_missing_audit_names_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match="hf-reward audit"):
        read_audit(tmp_path)
    (tmp_path / "audit.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="damaged"):
        read_audit(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_an_error(report, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="Permission"):
        write_audit(report, tmp_path)


def test_file_names_have_only_safe_characters():
    assert file_stem("length", "dose") == "length_dose"
    assert file_stem("../x", "<script> Ö") == "x_script"
    assert file_stem("数学") == "unnamed"
    assert len(file_stem("x" * 500)) == 60
