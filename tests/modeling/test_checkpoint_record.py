"""The record of a model survives saving and loading, and its hashes detect every change of token ids."""

import copy
import json
from importlib.metadata import version

import pytest
from transformers import AutoTokenizer

from hf_reward import CheckpointRecord, FormatRule, prepare_tokenizer
from hf_reward.modeling.checkpoint_record import FILE_NAME, drift, library_versions, template_hash, tokenizer_hash


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


def test_a_folder_without_a_record_gives_none(tmp_path):
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


def test_using_and_reloading_a_tokenizer_does_not_change_its_hash(chat_tokenizer, tmp_path):
    before = tokenizer_hash(chat_tokenizer)
    chat_tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=3)
    assert tokenizer_hash(chat_tokenizer) == before
    chat_tokenizer.save_pretrained(tmp_path)
    assert tokenizer_hash(type(chat_tokenizer).from_pretrained(tmp_path)) == before


@pytest.mark.parametrize("kind", ["chat", "text", "pair"])
def test_hashes_of_prepared_tokenizers_survive_saving(kind, request, tmp_path):
    tokenizer = prepare_tokenizer(request.getfixturevalue(f"{kind}_tokenizer"))
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    record = make_record(tokenizer, pad_token_id=tokenizer.pad_token_id)
    assert drift(record, reloaded) == []
    assert drift(record, prepare_tokenizer(reloaded)) == []


def test_drift_names_each_change(chat_tokenizer):
    tokenizer = prepare_tokenizer(chat_tokenizer)
    record = make_record(tokenizer, pad_token_id=tokenizer.pad_token_id)
    assert drift(record, tokenizer) == []
    changed = copy.deepcopy(tokenizer)
    changed.chat_template += " "
    assert drift(record, changed) == ["the chat template has changed"]
    changed.chat_template = None
    assert drift(record, changed) == ["the chat template is missing"]
    left = copy.deepcopy(tokenizer)
    left.padding_side = "left"
    assert drift(record, left) == ["the tokenizer pads on the left"]
    other = copy.deepcopy(tokenizer)
    other.pad_token = "<|im_start|>"
    assert len(drift(record, other)) == 2
    assert "pad token has id 1 instead of 0" in drift(record, other)[1]
    more = copy.deepcopy(tokenizer)
    more.add_tokens(["<new>"])
    assert drift(record, more) == ["the tokenizer's vocabulary, special tokens or merges have changed"]


PROBE = {"name": "short", "text": "a", "input_ids": "1 2"}


@pytest.mark.parametrize(
    "probes",
    [
        {"conversations": [PROBE]},
        {"conversations": [PROBE], "rewards": {}},
        {"conversations": [PROBE], "rewards": {"float32": []}},
        {"conversations": [PROBE], "rewards": {"float32": [1.0, 2.0]}},
        {"conversations": [PROBE], "rewards": {"float32": ["1.0"]}},
        {"conversations": [{"name": "short"}], "rewards": {"float32": [1.0]}},
        {"conversations": [{**PROBE, "input_ids": "1 b"}], "rewards": {"float32": [1.0]}},
        {"conversations": [{**PROBE, "input_ids": [1, 2]}], "rewards": {"float32": [1.0]}},
        {"rewards": {"float32": [1.0]}},
        [],
    ],
)
def test_damaged_probes_make_a_damaged_record(probes, chat_tokenizer, tmp_path):
    make_record(chat_tokenizer, probes=probes).save(tmp_path)
    with pytest.raises(ValueError, match=r"reward_config\.json is not a valid record"):
        CheckpointRecord.load(tmp_path)


def test_complete_probes_are_accepted(chat_tokenizer, tmp_path):
    probes = {"conversations": [PROBE, {**PROBE, "name": "two"}], "rewards": {"float32": [None, 1.5]}}
    make_record(chat_tokenizer, probes=probes).save(tmp_path)
    assert CheckpointRecord.load(tmp_path).probes == probes


def test_a_path_that_is_not_a_folder_is_an_error(tmp_path):
    for name in (tmp_path / "nowhere", "./nowhere", "../a/b"):
        with pytest.raises(FileNotFoundError, match="There is no folder"):
            CheckpointRecord.find(name)
    assert CheckpointRecord.find("unknown/model") is None, "a Hub id that cannot be reached"


def test_what_a_later_version_added_is_left_out(chat_tokenizer, tmp_path):
    path = make_record(chat_tokenizer).save(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "of_the_future": 1}))
    assert CheckpointRecord.load(tmp_path) == make_record(chat_tokenizer)


def test_versions_name_what_decides_a_reward():
    assert library_versions()["transformers"] == version("transformers")
