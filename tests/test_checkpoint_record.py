"""The record that travels with a model: it comes back as it was, and its hashes see every change that moves ids."""

import json
from importlib.metadata import version

import pytest

from hf_reward import CheckpointRecord, FormatRule
from hf_reward.checkpoint_record import FILE_NAME, library_versions, template_hash, tokenizer_hash


def make_record(tokenizer, **changes) -> CheckpointRecord:
    values = {
        "format": FormatRule(max_length=64).to_dict(),
        "reads": "last_token",
        "pad_token_id": 0,
        "template_hash": template_hash(tokenizer),
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "loss": {"name": "bradley_terry", "tie_parameter": 0.25},
        "reward_statistics": {"mean": -0.125, "std": 1.1, "count": 16},
        "training": {"rows": 16},
        "base_model": "base",
        "versions": library_versions(),
    }
    return CheckpointRecord(**{**values, **changes})


def test_a_record_survives_its_file(chat_tokenizer, tmp_path):
    record = make_record(chat_tokenizer)
    path = record.save(tmp_path)
    assert path == tmp_path / FILE_NAME
    assert CheckpointRecord.load(tmp_path) == record
    assert FormatRule(**CheckpointRecord.load(tmp_path).format) == FormatRule(max_length=64)


def test_a_record_is_plain_json_that_strict_readers_accept(chat_tokenizer, tmp_path):
    path = make_record(chat_tokenizer).save(tmp_path)
    content = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["loss"]["tie_parameter"] == 0.25
    with pytest.raises(ValueError, match="JSON"):
        make_record(chat_tokenizer, reward_statistics={"mean": float("nan")}).save(tmp_path)


def test_a_folder_without_record_has_none(tmp_path):
    assert CheckpointRecord.load(tmp_path) is None


def test_the_template_hash_sees_every_change_of_the_template(chat_tokenizer, text_tokenizer):
    before = template_hash(chat_tokenizer)
    assert before is not None
    assert len(before) == 64
    assert template_hash(text_tokenizer) is None
    chat_tokenizer.chat_template += " "
    assert template_hash(chat_tokenizer) != before


def test_the_tokenizer_hash_sees_new_and_renamed_tokens_but_not_the_template(chat_tokenizer, text_tokenizer):
    before = tokenizer_hash(chat_tokenizer)
    assert tokenizer_hash(text_tokenizer) != before
    chat_tokenizer.chat_template += " "
    assert tokenizer_hash(chat_tokenizer) == before
    chat_tokenizer.eos_token = "<|endoftext|>"
    renamed = tokenizer_hash(chat_tokenizer)
    assert renamed != before
    chat_tokenizer.add_tokens(["<new>"])
    assert tokenizer_hash(chat_tokenizer) not in (before, renamed)


def test_the_tokenizer_hash_stays_the_same_when_a_tokenizer_has_been_used_and_reloaded(chat_tokenizer, tmp_path):
    before = tokenizer_hash(chat_tokenizer)
    chat_tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=3)
    assert tokenizer_hash(chat_tokenizer) == before
    chat_tokenizer.save_pretrained(tmp_path)
    assert tokenizer_hash(type(chat_tokenizer).from_pretrained(tmp_path)) == before


def test_versions_name_what_decides_a_reward():
    assert library_versions()["transformers"] == version("transformers")
