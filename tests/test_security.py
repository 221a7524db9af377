"""Untrusted data, models and templates are refused or contained; docs/guides/security.md lists these tests."""

import gzip
import io
import json
import logging
import os
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from saved_models import edit_json, reward_model, saved_model, tokenizer_of
from training_runs import make_trainer
from transformers import AutoModelForCausalLM

from hf_reward import AutoModelForRewardScoring, RewardConfig, RewardScorer, prepare_tokenizer
from hf_reward.data.preference_row import PreferenceFormatError
from hf_reward.data.preferences import to_preference_row
from hf_reward.data.sources import Source, load_source
from hf_reward.preprocessing.tokenization import FormatRule, tokenize_rows
from hf_reward.publishing.importers import read_foreign
from hf_reward.publishing.staged_files import PUBLISHED, _take
from hf_reward.scoring.bulk.inputs import open_tables
from hf_reward.scoring.bulk.manifest import Manifest
from hf_reward.training.run_arguments import parse_run_arguments
from hf_reward.training.settings_file import read_settings

SECRET = "hf_" + "s3cret" * 5
ROW = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'

# --- code -------------------------------------------------------------------------------------------------------------


def with_code(folder: Path, marker: Path, **settings: Any) -> Path:
    """A model folder that brings code, which leaves a file behind when it runs."""
    code = f"open({str(marker)!r}, 'w').close()\nfrom transformers import LlamaConfig\nclass Evil(LlamaConfig):\n    "
    (folder / "evil.py").write_text(code + "model_type = 'evil'\n")
    edit_json(folder / "config.json", auto_map={"AutoConfig": "evil.Evil"}, **settings)
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]})
    return folder


@pytest.mark.parametrize("model_type", ["llama", "evil"])
def test_code_that_a_folder_brings_is_not_run(model_type, make_model_folder, tmp_path, monkeypatch):
    def ask(*words: Any) -> str:
        raise AssertionError("there must be no prompt on the terminal")

    monkeypatch.setattr("builtins.input", ask)
    folder = with_code(
        saved_model(make_model_folder("llama"), tmp_path / "saved"), tmp_path / "ran", model_type=model_type
    )
    loaders: list[Any] = [AutoModelForRewardScoring.from_pretrained, RewardScorer.from_pretrained, read_foreign]
    for load in loaders:
        if model_type == "llama" and load is not read_foreign:
            load(folder)  # as the stock model that it is
        else:
            with pytest.raises(ValueError, match=r"trust_remote_code|needs no import"):
                load(folder)
    assert not (tmp_path / "ran").exists()


def test_code_runs_when_asked_for(make_model_folder, tmp_path, monkeypatch):
    """The trap of the test before this one works."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder = with_code(make_model_folder("llama"), tmp_path / "ran", model_type="evil")
    with pytest.raises(Exception, match=r"\w"):  # there is no model for that configuration
        AutoModelForRewardScoring.from_pretrained(folder, trust_remote_code=True)
    assert (tmp_path / "ran").exists()


def test_yaml_makes_no_objects(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(f"seed: !!python/object/apply:os.mkdir ['{tmp_path}/x']")
    with pytest.raises(ValueError, match=r"not YAML with plain values[\s\S]*python/object"):
        read_settings(path, {"seed"})
    assert not (tmp_path / "x").exists()


def test_yaml_that_unfolds_without_end_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    levels = ["a: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"k{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 9)]  # 10^9 words
    path.write_text("\n".join(levels))
    with pytest.raises(ValueError, match="more than 100,000 values"):
        read_settings(path, {"seed"})


# --- weights ----------------------------------------------------------------------------------------------------------


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def index_of(folder: Path, names: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


@pytest.mark.parametrize("place", ["outside", "pickle"])
def test_an_index_of_shards_leads_neither_outside_nor_to_a_pickle(place, make_model_folder, tmp_path):
    folder = saved_model(make_model_folder("llama"), tmp_path / "saved")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    name = "../elsewhere.safetensors" if place == "outside" else "shard.bin"
    if place == "outside":
        save_file(tensors, tmp_path / "elsewhere.safetensors", metadata={"format": "pt"})
    else:
        torch.save(tensors | {"trap": Trap(tmp_path / "ran")}, folder / name)
    index_of(folder, dict.fromkeys(tensors, name))
    for load in (AutoModelForRewardScoring.from_pretrained, read_foreign):
        with pytest.raises(ValueError, match="in the same folder"):
            load(folder)
    assert not (tmp_path / "ran").exists()


def test_an_honest_index_of_shards_loads(make_model_folder, tmp_path):
    folder = saved_model(make_model_folder("llama"), tmp_path / "saved", save_options={"max_shard_size": "20KB"})
    assert (folder / "model.safetensors.index.json").is_file()
    AutoModelForRewardScoring.from_pretrained(folder, verify=True)


def test_a_pickled_adapter_is_refused_with_any_other_files(make_model_folder, tmp_path):
    base = make_model_folder("llama")
    reward_model(base, lora=True).save_pretrained(tmp_path / "adapter")
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    torch.save(weights, tmp_path / "adapter" / "adapter_model.bin")
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "decoy_model.safetensors")
    with pytest.raises(ValueError, match=r"no adapter_model\.safetensors.*allow_pickle=True"):
        AutoModelForRewardScoring.from_pretrained(tmp_path / "adapter")
    AutoModelForRewardScoring.from_pretrained(tmp_path / "adapter", allow_pickle=True)


def test_a_pickle_in_a_base_of_an_adapter_is_refused(make_model_folder, tmp_path):
    base = make_model_folder("llama")
    reward_model(base, lora=True).save_pretrained(tmp_path / "adapter")
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="are pickles"):
        AutoModelForRewardScoring.from_pretrained(tmp_path / "adapter")


def test_adapters_that_are_their_own_base_are_refused(make_model_folder, tmp_path):
    base = make_model_folder("llama")
    for name, other in (("one", "two"), ("two", "one")):
        reward_model(base, lora=True).save_pretrained(tmp_path / name)
        edit_json(tmp_path / name / "adapter_config.json", base_model_name_or_path=str(tmp_path / other))
    with pytest.raises(ValueError, match="is circular"):
        AutoModelForRewardScoring.from_pretrained(tmp_path / "one")


@pytest.mark.parametrize("content", ["[]", "{", '{"base_model_name_or_path": 3}'])
def test_a_damaged_configuration_of_an_adapter_is_refused(content, make_model_folder, tmp_path):
    reward_model(make_model_folder("llama"), lora=True).save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        AutoModelForRewardScoring.from_pretrained(tmp_path / "adapter")


def test_an_sft_adapter_with_a_stray_index_in_its_base_is_refused(make_model_folder, tmp_path):
    base = make_model_folder("llama")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM")).save_pretrained(
        tmp_path / "sft"
    )
    shutil.move(base / "model.safetensors", tmp_path / "weights.safetensors")
    index_of(base, dict.fromkeys(load_file(tmp_path / "weights.safetensors"), "../weights.safetensors"))
    with pytest.raises(ValueError, match="in the same folder"):
        AutoModelForRewardScoring.from_pretrained(tmp_path / "sft")


# --- files ------------------------------------------------------------------------------------------------------------


def test_links_that_leave_a_data_folder_are_refused(tmp_path):
    (tmp_path / "secret.jsonl").write_text(ROW)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(ValueError, match=r"must point to files inside it.*path of the file itself"):
        load_source(Source(data=str(tmp_path / "data")))
    with pytest.raises(ValueError, match=r"must point to files inside it.*path of the file itself"):
        open_tables(tmp_path / "data")
    assert len(load_source(Source(data=str(tmp_path / "data" / "train.jsonl")))) == 1  # as the message says


def test_links_of_the_hubs_cache_are_followed(tmp_path):
    snapshot = tmp_path / "datasets--a--b" / "snapshots" / "0123" / "data"
    (tmp_path / "datasets--a--b" / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (tmp_path / "datasets--a--b" / "blobs" / "ff").write_text(ROW)
    (snapshot / "train.jsonl").symlink_to("../../../blobs/ff")
    assert len(load_source(Source(data=str(snapshot)))) == 1
    assert len(open_tables(snapshot)) == 1


def test_a_link_that_leaves_a_model_folder_is_not_published(make_model_folder, tmp_path):
    folder = saved_model(make_model_folder("llama"), tmp_path / "saved")
    (tmp_path / "id_rsa").write_text("PRIVATE")
    (folder / "vocab.txt").symlink_to(tmp_path / "id_rsa")
    with pytest.raises(ValueError, match=r"must point to files inside it, but .*vocab\.txt points to"):
        _take(folder, tmp_path / "staged", PUBLISHED)
    assert not list(tmp_path.glob("staged/*"))


def archived(kind: str, path: Path) -> None:
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("../../outside.jsonl", ROW)
            archive.writestr("rows.jsonl", ROW)
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            member = tarfile.TarInfo("../../outside.jsonl")
            member.size = len(ROW)
            archive.addfile(member, io.BytesIO(ROW.encode()))
    else:
        path.write_bytes(gzip.compress(ROW.encode()))


@pytest.mark.parametrize("kind", ["zip", "tar", "gzip"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.zip"])
def test_archives_are_not_unpacked_whatever_they_are_called(kind, name, tmp_path):
    (tmp_path / "deep" / "data").mkdir(parents=True)
    path = tmp_path / "deep" / "data" / name
    archived(kind, path)
    words = (
        "data files must all have the same format"
        if name == "rows.zip"
        else f"must not be compressed, but .* is a {kind} file"
    )
    with pytest.raises(ValueError, match=words):
        load_source(Source(data=str(path)))
    assert not list(tmp_path.rglob("outside*"))
    if name in ("rows.jsonl", "rows.csv"):  # our own readers never unpack
        (table,) = open_tables(path)
        rows = [each for span in table.spans(10) for each in table.read(span)] if name == "rows.jsonl" else []
        assert all(each.problem for each in rows)


@pytest.mark.parametrize("name", ["../../victim", "/tmp/victim", "..", "", "a\\b", 3])
def test_a_manifest_names_only_shards_in_its_folder(name, tmp_path):
    """`--overwrite` removes the files of a run's shards."""
    path = tmp_path / "_manifest.json"
    shard = Manifest(identity={"scorer": {}, "inputs": {}, "settings": {}}, shards=[], schema=None)
    content = json.loads(shard.to_bytes()) | {"names": [name], "shards": [[0, 0, 1, 0, 1]]}
    del content["checksum"]  # an attacker can leave it out, as earlier versions did
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="not a valid name of a shard"):
        Manifest.load(path)
    path.write_text(json.dumps(content | {"names": ["rows-00000"]}))
    assert Manifest.load(path).shards[0].name == "rows-00000"


# --- chat templates ---------------------------------------------------------------------------------------------------

HOSTILE = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "include": "{% include '/etc/hostname' %}",
    "import": "{% import '/etc/hostname' as x %}",
    "format": "{{ '{0.__class__.__init__}'.format('') }}",
    "changes": "{{ messages.append({}) }}",
    "range": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "recursion": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "division": "{{ 1 / 0 }}",
    "syntax": "{% for %}",
    "types": "{{ 1 + 'a' }}",
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_templates_cause_an_error(name, chat_tokenizer):
    chat_tokenizer.chat_template = HOSTILE[name]
    with pytest.raises(ValueError, match=r"the chat template cannot render the conversation: \w") as caught:
        prepare_tokenizer(chat_tokenizer)
    assert "object at" not in str(caught.value)
    if name in ("globals", "format"):  # the sandbox gives them nothing, so there is no error in them
        return
    chat = {"prompt": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": "c"}
    with pytest.raises(PreferenceFormatError, match="the chat template cannot render the conversation"):
        tokenize_rows([to_preference_row(chat)], chat_tokenizer, FormatRule())


def test_a_row_cannot_bring_a_template(chat_tokenizer):
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "chat_template_kwargs": {"chat_template": "{{ 1 }}"}}
    with pytest.raises(PreferenceFormatError, match="must only set variables"):
        to_preference_row(row)


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_a_run_leaves_its_hub_token_nowhere(make_model_folder, chat_pairs, tmp_path, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    folder = tmp_path / "run"
    trainer = make_trainer(
        make_model_folder("llama"), chat_pairs[:4], folder, hub_token=SECRET, save_strategy="steps", save_steps=1
    )
    trainer.train()
    trainer.save_model()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"training_args.bin", "reward_config.json", "README.md"} <= {path.name for path in files}
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    printed = capsys.readouterr()
    assert SECRET not in caplog.text + printed.out + printed.err
    assert SECRET not in f"{trainer.args} {trainer.args!r} {trainer.args.to_json_string()}"


def test_a_misspelt_setting_is_named_without_its_value(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse_run_arguments(["--model_name_or_path", "a", "--train_data", "b", f"--hub-tokn={SECRET}"])
    said = capsys.readouterr().err
    assert "--hub-tokn" in said
    assert SECRET not in said
    assert SECRET not in str(RewardConfig(output_dir=str(tmp_path), hub_token=SECRET))


def test_a_prepared_tokenizer_is_still_what_tests_of_refusals_start_from(make_model_folder):
    """Without the damage, each of the loads above succeeds."""
    folder = make_model_folder("llama")
    assert tokenizer_of(folder).chat_template
    assert AutoModelForRewardScoring.from_pretrained(folder) is not None
