"""A model in memory is saved as a stock classifier with the same rewards, with a merged and a separate adapter."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from adapted_models import TEXTS, close, load, load_with_adapter, rewards
from conftest import DECODERS, ENCODERS, randomize_head
from safetensors.torch import load_file
from saved_models import (
    reward_model,
    save,
    saved_model,
    tokenizer_of,
)
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from hf_reward import (
    CheckpointRecord,
    FormatRule,
    merge_adapter,
    prepare_tokenizer,
    save_merged,
)
from hf_reward.modeling.checkpoint_record import tokenizer_hash
from hf_reward.modeling.reward_head import Float32Linear
from hf_reward.publishing.export import ADAPTER_FOLDER
from hf_reward.publishing.verify import verify_checkpoint


@pytest.mark.parametrize("arch", [arch for arch in (*DECODERS, *ENCODERS) if arch != "granite"])
def test_a_merged_model_is_a_stock_classifier_with_the_same_rewards(arch, make_model_folder, tmp_path):
    folder = make_model_folder(arch)
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(folder))
    model = load_with_adapter(folder)
    expected = rewards(model, tokenizer)
    assert expected.std() > 0.01
    assert save_merged(model, tokenizer, tmp_path / "out", verify=False) == tmp_path / "out"
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert "lora" not in "".join(stock.state_dict())
    assert close(rewards(stock, AutoTokenizer.from_pretrained(tmp_path / "out")), expected)


def test_the_saved_adapter_and_the_merged_model_give_the_same_rewards(make_model_folder, tmp_path):
    folder = make_model_folder("llama")
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(folder))
    model = load_with_adapter(folder)
    expected = rewards(model, tokenizer)
    record = CheckpointRecord(
        format=FormatRule(max_length=64).to_dict(),
        reads="last_token",
        pad_token_id=0,
        template_hash=None,
        tokenizer_hash="hash",
        base_model="base",
        training={"steps": 3},
    )
    save_merged(model, tokenizer, tmp_path / "out", record=record, verify=False)
    adapter = tmp_path / "out" / ADAPTER_FOLDER
    assert close(rewards(load(adapter), AutoTokenizer.from_pretrained(adapter)), expected)
    assert f"# {ADAPTER_FOLDER}\n" in (adapter / "README.md").read_text(encoding="utf-8")
    for place in (adapter, tmp_path / "out"):
        found = CheckpointRecord.load(place)
        assert (found.format, found.base_model, found.training) == (record.format, "base", {"steps": 3})
        assert found.tokenizer_hash == tokenizer_hash(tokenizer), "facts are read off the model, whatever was passed"
        assert len(found.probes["conversations"]) == 9, "eight, and one of the longest length that training reads"
    assert AutoTokenizer.from_pretrained(tmp_path / "out").padding_side == "right"


def test_a_model_without_adapter_is_saved_unchanged(make_model_folder, tmp_path):
    folder = make_model_folder("llama")
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(folder))
    model = load(folder)
    randomize_head(model)
    save_merged(model, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out" / ADAPTER_FOLDER).exists()
    assert torch.equal(load(tmp_path / "out").score.weight, model.score.weight)


def test_a_bfloat16_export_differs_within_its_stated_bound(make_model_folder, tmp_path):
    folder = make_model_folder("llama")
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(folder))
    model = load(folder)
    randomize_head(model)
    model.score.weight.data *= 0.1
    save_merged(model, tokenizer, tmp_path / "full")
    expected = rewards(model, tokenizer)
    save_merged(load(tmp_path / "full"), tokenizer, tmp_path / "half", dtype=torch.bfloat16)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    found = rewards(load(tmp_path / "half"), tokenizer)
    assert ((found - expected).abs() <= 2**-6 * expected.abs().clamp(min=1)).all()


def test_an_adapter_on_a_bfloat16_backbone_is_merged_in_float32(make_model_folder, tmp_path):
    model = load_with_adapter(make_model_folder("llama"), dtype="bfloat16")
    merged = merge_adapter(model)
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}


@pytest.mark.parametrize("arch", ["llama", "gpt2", "bert", "deberta_v2"])
def test_a_merge_is_exact_but_for_rounding(arch, make_model_folder):
    model = load_with_adapter(make_model_folder(arch)).double()
    for layer in model.modules():
        if isinstance(layer, Float32Linear):
            layer.__class__ = torch.nn.Linear
    ids = torch.arange(5, 35).reshape(3, 10)
    with torch.no_grad():
        adapted = model(ids).logits
        with_adapter_off = copy.deepcopy(model).unload()(ids).logits
        merged = model.merge_and_unload()(ids).logits
    assert (adapted - with_adapter_off).abs().max() > 0.01, "the adapter must change something"
    torch.testing.assert_close(merged, adapted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("arch", ["qwen3", "gpt2", "bert"])
def test_the_text_classification_pipeline_gives_the_reward_itself(arch, make_model_folder, tmp_path):
    folder = make_model_folder(arch)
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(folder))
    model = load(folder)
    randomize_head(model)
    save_merged(model, tokenizer, tmp_path / "out", verify=False)
    classify = pipeline("text-classification", model=str(tmp_path / "out"), batch_size=2)
    results = classify(TEXTS, add_special_tokens=False)
    assert {result["label"] for result in results} == {"reward"}
    found = torch.tensor([result["score"] for result in results])
    assert close(found, rewards(model, tokenizer))


def test_saving_a_bfloat16_model_in_float32_does_not_change_it(make_model_folder, tmp_path):
    source = make_model_folder("llama")
    model = reward_model(source, dtype="bfloat16")
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    save_merged(model, tokenizer_of(source), tmp_path / "out")
    assert {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float32}
    assert CheckpointRecord.load(tmp_path / "out").dtype == "float32"
    assert model.dtype == torch.bfloat16
    save_merged(model, tokenizer_of(source), tmp_path / "half", dtype=torch.bfloat16)
    found = model.state_dict()
    assert all(found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in expected.items())


def test_saving_into_a_folder_keeps_other_files_and_removes_old_weights(make_model_folder, tmp_path):
    source = make_model_folder("llama")
    model, tokenizer, out = reward_model(source), tokenizer_of(source), tmp_path / "out"
    save(model, tokenizer, out, max_shard_size="20KB")
    assert (out / "model.safetensors.index.json").is_file()
    (out / "checkpoint-5").mkdir()
    for name in ("notes.txt", "checkpoint-5/state.json", "model_of_mine.safetensors", "audit_summary.json"):
        (out / name).write_text("{}")
    (out / "adapter_config.json").write_text("{}")
    save_merged(model, tokenizer, out)
    names = {path.name for path in out.iterdir()}
    assert {"notes.txt", "checkpoint-5", "model_of_mine.safetensors", "audit_summary.json"} <= names
    assert (out / "checkpoint-5" / "state.json").is_file()
    assert [name for name in names if name.startswith(("model-", "adapter_", "model.safetensors."))] == []
    assert verify_checkpoint(out).equal
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_template_of_an_earlier_save_does_not_stay(make_model_folder, tmp_path):
    folder = saved_model(make_model_folder("gpt2"), tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    (folder / "notes.txt").write_text("mine")
    save_merged(load(folder), tokenizer, folder, verify=False)
    assert not (folder / "chat_template.jinja").exists()
    assert (folder / "notes.txt").read_text() == "mine"
    assert CheckpointRecord.load(folder).template_hash is None


# --- fresh processes -----------------------------------------------------------------------------------------------


RELOAD_ADAPTERS = """
import json, sys
from pathlib import Path
import torch
from hf_reward import AutoModelForRewardScoring

torch.set_num_threads(1)
found = {}
for folder in sorted(Path(sys.argv[1]).glob("*/adapter")):
    torch.manual_seed(99)  # a part of the head that was not saved would be another one here
    model = AutoModelForRewardScoring.from_pretrained(folder).eval()
    with torch.no_grad():
        found[folder.parent.name] = model(torch.arange(5, 35).reshape(3, 10)).logits[:, 0].tolist()
print(json.dumps(found))
"""


@pytest.mark.slow
def test_adapters_load_with_equal_rewards_in_a_fresh_process(make_model_folder, tmp_path):
    expected = {}
    for arch in ("llama", "gpt2", *ENCODERS):
        model = load_with_adapter(make_model_folder(arch))
        model.save_pretrained(tmp_path / arch / "adapter")
        with torch.no_grad():
            expected[arch] = model(torch.arange(5, 35).reshape(3, 10)).logits[:, 0]
    command = [sys.executable, "-c", RELOAD_ADAPTERS, str(tmp_path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(output.splitlines()[-1])
    assert found.keys() == expected.keys()
    for arch, values in expected.items():
        assert close(torch.tensor(found[arch]), values), arch
