"""Sentences and picture of the biases state only measured results."""

import os
import struct
import subprocess
import sys

import pytest
from card_records import EVALUATION, PROBES, add_results, full_record, probe, render

from hf_reward.publishing.card.biases import PICTURE_FILE


def test_without_an_audit_the_card_compares_accuracy_by_length(tmp_path):
    text = render(tmp_path / "m", full_record())
    assert (
        "accuracy 70.0% on the 103 pairs where the preferred response is longer, 61.0% on the 104 pairs where" in text
    )
    assert "The difference of 9.0 points suggests a bias toward longer responses." in text
    few = {**EVALUATION, "num_preferred_shorter": 19}
    assert "Too few pairs to assess a length bias." in render(tmp_path / "m", full_record(evaluation=few))
    gone = {**EVALUATION, "accuracy_preferred_shorter": None, "num_preferred_shorter": 0}
    assert "Length: not measured." in render(tmp_path / "m", full_record(evaluation=gone))


def test_an_audit_without_bias_lists_inconclusive_probes(tmp_path):
    text = render(add_results(tmp_path / "m", PROBES[1:3], []), full_record())
    assert "- The audit found no bias that matters.\n- Inconclusive: wrong hint" in text


def test_the_picture_stays_small_and_readable(tmp_path):
    verdicts = ("biased", "equivalent", "inconclusive", "not_assessed")
    many = [probe(f"probe number {place} with a rather long name", verdicts[place % 4], 0.1) for place in range(36)]
    many.append(probe("another unit, $x_1", "biased", 5.0, unit="rate", delta=None, ci_low=None))
    render(add_results(tmp_path / "m", many), full_record())
    content = (tmp_path / "m" / PICTURE_FILE).read_bytes()
    assert len(content) < 100_000
    width, height = struct.unpack(">II", content[16:24])
    assert width == 700
    assert height > 36 * 30
    render(add_results(tmp_path / "m", [PROBES[-1]]), full_record())  # observational checks only
    assert not (tmp_path / "m" / PICTURE_FILE).exists()


@pytest.mark.slow
def test_a_card_without_audit_does_not_import_matplotlib(tmp_path):
    code = (
        "import sys, json; from hf_reward import CheckpointRecord;"
        "from hf_reward.publishing.card.render import write_model_card;"
        "record = CheckpointRecord(format={}, reads='x', pad_token_id=0, template_hash='', tokenizer_hash='');"
        "write_model_card(sys.argv[1], record); assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env={**os.environ})
