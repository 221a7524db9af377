"""Storing a temperature or a length correction changes nothing else in the record."""

import json
import math
import os
from pathlib import Path

import pytest
from test_length_correction import CURVE

from hf_reward import CheckpointRecord, LengthCorrection, store_length_correction, store_temperature


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    record = CheckpointRecord(
        format={"max_length": 9}, reads="last_token", pad_token_id=0, template_hash=None, tokenizer_hash="x"
    )
    path = record.save(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"of_a_later_version": {"kept": [1]}}))
    return tmp_path


def content(folder: Path) -> dict:
    return json.loads((folder / "reward_config.json").read_text())


def test_a_correction_is_stored_read_and_removed(folder):
    before = content(folder)
    assert store_length_correction(folder, CURVE) == folder / "reward_config.json"
    assert content(folder) == before | {"length_correction": CURVE.to_dict()}
    record = CheckpointRecord.load(folder)
    assert record is not None
    assert LengthCorrection.from_dict(record.length_correction) == CURVE
    store_length_correction(folder, None)
    assert content(folder) == before
    assert [path.name for path in folder.iterdir()] == ["reward_config.json"]


def test_a_temperature_is_stored_with_its_notes(folder):
    before = content(folder)
    store_temperature(folder, 2.5, data="some pairs", num_pairs=200)
    assert content(folder) == before | {"calibration": {"temperature": 2.5, "data": "some pairs", "num_pairs": 200}}
    store_length_correction(folder, CURVE)
    store_temperature(folder, 3)
    assert content(folder)["calibration"] == {"temperature": 3.0}
    assert content(folder)["length_correction"] == CURVE.to_dict()


@pytest.mark.parametrize("wrong", [0, -1.0, math.nan, math.inf])
def test_a_temperature_is_a_number_above_zero(folder, wrong):
    with pytest.raises(ValueError, match="finite number above 0"):
        store_temperature(folder, wrong)


def test_a_folder_without_a_record_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"stored in reward_config.json.*hf-reward import"):
        store_temperature(tmp_path, 1.0)
    (tmp_path / "reward_config.json").write_text("[]")
    with pytest.raises(ValueError, match="is not a valid record"):
        store_length_correction(tmp_path, CURVE)
    assert (tmp_path / "reward_config.json").read_text() == "[]"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(folder, monkeypatch):
    before = (folder / "reward_config.json").read_bytes()

    def fail(*paths: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        store_length_correction(folder, CURVE)
    with pytest.raises(ValueError, match="JSON"):
        store_temperature(folder, 1.0, interval=[math.nan, 1.0])
    assert (folder / "reward_config.json").read_bytes() == before
    assert [path.name for path in folder.iterdir()] == ["reward_config.json"]


def test_who_may_read_the_record_may_read_it_afterwards(folder):
    (folder / "reward_config.json").chmod(0o644)
    store_temperature(folder, 1.0)
    assert (folder / "reward_config.json").stat().st_mode & 0o777 == 0o644
