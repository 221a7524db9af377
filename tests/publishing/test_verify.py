"""`verify` accepts undamaged folders and finds every kind of change."""

import importlib
import json
import math
import pickle
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import DECODERS, ENCODERS
from foreign_models import llama3_tokenizer
from forked_stock import ForkedStock
from safetensors.torch import load_file
from saved_models import (
    copied,
    edit_json,
    edit_weights,
    reward_model,
    save,
    saved_model,
    tokenizer_of,
)
from tokenizers import processors
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from hf_reward import AutoModelForRewardScoring, CheckpointRecord, RewardScorer
from hf_reward.modeling.checkpoint_record import describe
from hf_reward.modeling.weight_safety import refuse_pickles
from hf_reward.publishing.export import ExportRule, export_reward_model, save_adapter
from hf_reward.publishing.saved_model import SavedModel
from hf_reward.publishing.verify import Verification, run_stock_scoring, verify_checkpoint

PARITY = ("llama", "qwen2", "qwen3", "gpt2", "gemma2", "gemma3", "mistral", "bert", "deberta_v2", "modernbert")


@pytest.fixture(scope="module")
def _forks() -> Iterator[ForkedStock]:
    stock = ForkedStock()
    yield stock
    stock.close()


@pytest.fixture
def stock_process(own_stock_process, monkeypatch, _forks) -> None:
    """Verify in processes that never imported hf_reward, forked from one that has imported transformers."""
    monkeypatch.setattr("hf_reward.publishing.verify.subprocess", _forks)


@pytest.fixture
def llama(saved_llama, tmp_path) -> Path:
    """A saved reward model that verifies as equal."""
    return copied(saved_llama, tmp_path / "saved")


@pytest.fixture
def adapter(make_model_folder, tmp_path) -> Path:
    """A saved adapter on a base of its own."""
    source = make_model_folder("llama")
    model, tokenizer = reward_model(source, lora=True), tokenizer_of(source)
    save_adapter(SavedModel(model, tokenizer, describe(model, tokenizer)), tmp_path / "adapter")
    return tmp_path / "adapter"


def failed(result: Verification) -> set[str]:
    return {check.name for check in result.failures}


# --- equal -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2", "bert", "roberta", "deberta_v2"])
def test_what_was_saved_is_equal(arch, make_model_folder, tmp_path):
    folder = saved_model(make_model_folder(arch), tmp_path / "saved")
    result = verify_checkpoint(folder)
    assert result.equal, str(result)
    names = {check.name for check in result.checks}
    ways = {"each alone", "padded on the right", "text-classification pipeline"}
    ways |= {"padded on the left"} if arch in ("llama", "gemma2") else set()
    rewards = {f"rewards, {dtype}, {way}" for dtype in ("float32", "bfloat16") for way in ways}
    assert names == {"config.json", "tokenizer", "weights", "token ids", "token ids, scorer", *rewards}
    assert str(result).startswith(f"{folder}: equal (largest difference in float32 ")
    content = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert content["equal"] is True
    by_name = {check["name"]: check for check in content["checks"]}
    assert by_name["rewards, float32, each alone"]["allowed"] == 1e-5
    assert by_name["rewards, float32, each alone"]["difference"] <= 1e-5
    assert by_name["rewards, bfloat16, each alone"]["allowed"] is None, "float32 weights are rounded there"


def test_a_half_precision_model_is_bounded_in_its_own_precision(make_model_folder, tmp_path):
    folder = saved_model(make_model_folder("llama"), tmp_path / "saved", dtype="bfloat16")
    result = verify_checkpoint(folder)
    assert result.equal, str(result)
    allowed = {check.name: check.allowed for check in result.checks if check.name.startswith("rewards")}
    assert allowed["rewards, bfloat16, each alone"] == 2.0**-6
    assert not any("float32" in name for name in allowed)


def test_a_template_and_a_tokenizer_that_both_write_bos_do_not_double_it(make_model_folder, chat_tokenizer, tmp_path):
    chat_tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    chat_tokenizer.chat_template = "<|endoftext|>" + chat_tokenizer.chat_template
    chat_tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    folder = saved_model(make_model_folder("llama", tokenizer=chat_tokenizer), tmp_path / "saved")
    assert verify_checkpoint(folder).equal
    for probe in CheckpointRecord.load(folder).probes["conversations"]:
        assert probe["input_ids"].split()[0] == "0"
        assert probe["input_ids"].split().count("0") == 1


def test_the_default_pipeline_gives_the_rewards_of_an_export(make_model_folder, tmp_path):
    source = saved_model(make_model_folder("llama", tokenizer=llama3_tokenizer("[PAD]")), tmp_path / "as_version_0_1")
    old = verify_checkpoint(source)
    assert old.equal, str(old)
    assert any("`add_special_tokens=False`" in note for note in old.notes)
    report = export_reward_model(source, tmp_path / "exported")
    assert report.verification.equal
    assert not any("add_special_tokens" in note for note in report.verification.notes)
    chat = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "Water."}]
    expected = float(RewardScorer.from_pretrained(source, device="cpu").score_conversations([chat])[0])
    found = {}
    for folder in (source, report.folder):
        classify = pipeline("text-classification", model=str(folder), device="cpu")
        text = classify.tokenizer.apply_chat_template(chat, tokenize=False)
        found[folder] = classify(text)[0]["score"]
    assert found[report.folder] == pytest.approx(expected, abs=1e-5)
    assert abs(found[source] - expected) > 1e-3


def test_config_tells_sentence_transformers_to_return_the_raw_reward(make_model_folder, tmp_path):
    source = make_model_folder("bert")
    edit_json(source / "config.json", sentence_transformers={"version": "5.1.0", "activation_fn": "torch.nn.Sigmoid"})
    folder = saved_model(source, tmp_path / "saved")
    written = json.loads((folder / "config.json").read_text())["sentence_transformers"]
    assert written == {"version": "5.1.0", "activation_fn": "torch.nn.modules.linear.Identity"}
    # The name is resolved as in CrossEncoder (5.2, `import_from_string`) and vLLM (63e2539, `resolve_obj_by_qualname`).
    module, _, name = written["activation_fn"].rpartition(".")
    values = torch.tensor([1.753, -2.5])
    assert getattr(importlib.import_module(module), name)()(values).tolist() == values.tolist()


def test_an_adapter_is_checked_on_its_base(adapter):
    result = verify_checkpoint(adapter)
    assert result.equal, str(result)
    assert "config.json" not in {check.name for check in result.checks}


def test_precisions_can_be_chosen(llama):
    result = verify_checkpoint(llama, dtypes=["float32"])
    assert result.equal
    assert not any("bfloat16" in check.name for check in result.checks)
    with pytest.raises(ValueError, match=r"recorded precisions \(float32, bfloat16\), but contains float16"):
        verify_checkpoint(llama, dtypes=["float16"])


def test_rewards_recorded_on_another_device_are_noted(llama):
    content = json.loads((llama / "reward_config.json").read_text())
    edit_json(llama / "reward_config.json", probes={**content["probes"], "device": "cuda"})
    result = verify_checkpoint(llama)
    assert result.equal
    assert any("recorded on cuda" in note for note in result.notes)


def test_rewards_that_were_no_numbers_are_never_equal(make_model_folder, tmp_path):
    source = make_model_folder("llama")
    model = reward_model(source)
    model.score.weight.data[0, 0] = math.nan
    folder = save(model, tokenizer_of(source), tmp_path / "saved")
    result = verify_checkpoint(folder)
    found = {check.name: check.detail for check in result.failures}
    assert {"finite weights", "recorded rewards", ALONE, RIGHT, PIPELINE} <= found.keys()
    assert "1 tensors contain values that are not finite: score.weight in" in found["finite weights"]
    assert "8 of 8 were not finite" in found["recorded rewards"]
    with pytest.raises(ValueError, match=r"must be finite.* \(score\.weight\)"):
        load(folder, verify=True)
    edit_weights(folder / "model.safetensors", lambda tensors: tensors["score.weight"].nan_to_num_(0.5))
    result = verify_checkpoint(folder)
    assert not result.equal
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["equal"] is False


def test_float32_judges_even_where_another_precision_is_asked_for(make_model_folder, tmp_path):
    folder = saved_model(make_model_folder("llama"), tmp_path / "saved")
    edit_weights(folder / "model.safetensors", lambda tensors: tensors["score.weight"].mul_(-5))
    assert not verify_checkpoint(folder, dtypes=["bfloat16"]).equal


def test_rewards_recorded_in_a_half_precision_alone_are_judged_in_it(make_model_folder, tmp_path):
    """As sharded training with a mixed-precision policy records them, of float32 weights."""
    folder = saved_model(make_model_folder("llama"), tmp_path / "saved")
    record = json.loads((folder / "reward_config.json").read_text())
    del record["probes"]["rewards"]["float32"]
    (folder / "reward_config.json").write_text(json.dumps(record))
    assert verify_checkpoint(folder).equal
    edit_weights(folder / "model.safetensors", lambda tensors: tensors["score.weight"].mul_(1.5))
    assert not verify_checkpoint(folder).equal


# --- differs ---------------------------------------------------------------------------------------------------------


def _drop_head(folder):
    edit_weights(folder / "model.safetensors", lambda tensors: tensors.pop("score.weight"))


def _round_head(folder):
    edit_weights(
        folder / "model.safetensors",
        lambda tensors: tensors.update({"score.weight": tensors["score.weight"].bfloat16().float()}),
    )


def _change_backbone(folder):
    def change(tensors):
        tensors["model.layers.1.mlp.down_proj.weight"][3, 5] += 0.5

    edit_weights(folder / "model.safetensors", change)


def _change_pad(folder):
    edit_json(folder / "config.json", pad_token_id=1)


def _change_tokenizer_pad(folder):
    edit_json(folder / "tokenizer_config.json", pad_token="<|im_start|>")


def _change_template(folder):
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_end|>\n", "<|im_end|>"))


def _lose_template(folder):
    (folder / "chat_template.jinja").unlink()


def _double_bos(folder):
    path = folder / "chat_template.jinja"
    path.write_text("{{ bos_token }}" + path.read_text())


def _swap_tokens(folder):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["e"], vocabulary["t"] = vocabulary["t"], vocabulary["e"]
    path.write_text(json.dumps(content))


def _lose_merges(folder):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    del content["model"]["merges"][10:]
    path.write_text(json.dumps(content))


def _pad_left(folder):
    edit_json(folder / "tokenizer_config.json", padding_side="left")


def _forget_regression(folder):
    edit_json(folder / "config.json", problem_type=None)


def _two_labels(folder):
    edit_json(folder / "config.json", id2label={"0": "bad", "1": "good"}, label2id={"bad": 0, "good": 1})


def _other_class(folder):
    edit_json(folder / "config.json", architectures=["LlamaForCausalLM"])


def _other_rope(folder):
    edit_json(folder / "config.json", rope_parameters={"rope_theta": 50.0, "rope_type": "default"})


ALONE, PIPELINE, LEFT, RIGHT = (
    f"rewards, float32, {way}"
    for way in ("each alone", "text-classification pipeline", "padded on the left", "padded on the right")
)


@pytest.mark.parametrize(
    ("damage", "expected", "words"),
    [
        (_drop_head, {"weights", ALONE, RIGHT, PIPELINE}, "missing and therefore random: score.weight"),
        (_round_head, {ALONE, RIGHT, PIPELINE}, "at the probe"),
        (_change_backbone, {ALONE, RIGHT, PIPELINE}, "at the probe"),
        (_change_pad, {"config.json"}, "pad token's id is 1, but was 0 when saved"),
        (_change_tokenizer_pad, {"tokenizer"}, "pad token has id 1 instead of 0"),
        (_change_template, {"tokenizer", "token ids", ALONE}, "chat template has changed"),
        (_double_bos, {"tokenizer", "token ids", ALONE}, "the first different token is number 1"),
        (_swap_tokens, {"tokenizer", "token ids", ALONE}, "vocabulary, special tokens or merges have changed"),
        (_lose_merges, {"tokenizer", "token ids", ALONE}, "vocabulary, special tokens or merges have changed"),
        (_pad_left, {"tokenizer"}, "pads on the left"),
        (_forget_regression, {"config.json", PIPELINE}, "pipelines and servers apply a sigmoid"),
        (_two_labels, {"config.json"}, "2 labels instead of 1"),
        (_other_class, {"config.json"}, "not a sequence classifier"),
        (_other_rope, {ALONE, RIGHT, PIPELINE}, "at the probe"),
    ],
)
def test_each_fault_is_found_and_named(damage, expected, words, llama):
    damage(llama)
    result = verify_checkpoint(llama)
    assert not result.equal
    assert expected <= failed(result), failed(result)
    assert words in str(result)
    assert "differs" in str(result)
    if ALONE not in expected:
        assert ALONE not in failed(result)
    json.dumps(result.to_dict(), allow_nan=False)


def test_a_missing_template_is_reported(llama):
    _lose_template(llama)
    with pytest.raises(ValueError, match="chat_template"):
        verify_checkpoint(llama)


def test_a_head_with_two_rows_is_reported(llama):
    edit_weights(
        llama / "model.safetensors", lambda each: each.update({"score.weight": each["score.weight"].repeat(2, 1)})
    )
    with pytest.raises(ValueError, match="cannot load"):
        verify_checkpoint(llama)


def test_an_adapter_that_lost_its_head_is_found(adapter):
    def drop(tensors):
        del tensors["base_model.model.score.weight"]

    edit_weights(adapter / "adapter_model.safetensors", drop)
    with pytest.raises(ValueError, match="adapter's weights lack score of `modules_to_save`"):
        verify_checkpoint(adapter)
    with pytest.raises(ValueError, match=r"lacks the reward head of its `modules_to_save` \(score\)"):
        AutoModelForRewardScoring.from_pretrained(adapter)


def test_an_adapter_on_another_base_is_found(adapter, make_model_folder):
    other = make_model_folder("llama", "other", seed=5)
    assert verify_checkpoint(adapter).equal
    result = verify_checkpoint(adapter, base_model=str(other))
    assert failed(result) == {ALONE, RIGHT, LEFT}


def test_the_error_for_a_missing_base_names_the_option(adapter, make_model_folder):
    base = Path(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"])
    moved = base.rename(base.with_name("moved"))
    for attempt in (lambda: verify_checkpoint(adapter), lambda: AutoModelForRewardScoring.from_pretrained(adapter)):
        with pytest.raises(ValueError, match=r"was found neither as a folder nor.*--base-model FOLDER_OR_ID"):
            attempt()
    assert verify_checkpoint(adapter, base_model=str(moved)).equal
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(ValueError, match="requires its base model"):
        verify_checkpoint(adapter)


# --- folders that cannot be looked at ------------------------------------------------------------------------------


def test_folders_without_anything_to_compare_are_refused(llama, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        verify_checkpoint(tmp_path / "nowhere")
    bare = copied(llama, tmp_path / "bare")
    (bare / "reward_config.json").unlink()
    with pytest.raises(ValueError, match=r"no reward_config\.json.*hf-reward export"):
        verify_checkpoint(bare)
    edit_json(llama / "reward_config.json", probes={})
    with pytest.raises(ValueError, match=r"without probes.*hf-reward export"):
        verify_checkpoint(llama)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": 1', "\x00"])
def test_a_damaged_record_is_named(content, llama):
    (llama / "reward_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"reward_config\.json is not a valid record"):
        verify_checkpoint(llama)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "model.ckpt"])
def test_pickles_are_refused_before_anything_is_loaded(name, llama):
    (llama / "model.safetensors").rename(llama / "value_head.safetensors")
    (llama / name).write_bytes(b"")
    with pytest.raises(ValueError, match=rf"pickles \({name}\).*--allow-pickle"):
        verify_checkpoint(llama)


def test_pickles_are_ignored_if_there_are_safetensors(llama):
    (llama / "pytorch_model.bin").write_bytes(b"never read")
    (llama / "training_args.bin").write_bytes(b"never read")
    refuse_pickles(llama)
    assert verify_checkpoint(llama).equal


# --- from_pretrained -----------------------------------------------------------------------------------------------


def load(folder, **options):
    return AutoModelForRewardScoring.from_pretrained(folder, **options)


def test_loading_an_unchanged_model_logs_no_warning(llama, adapter, caplog):
    for folder in (llama, adapter):
        load(folder, verify=True)
    assert not [line for line in caplog.messages if "has changed since it was saved" in line]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_change_template, "the chat template has changed"),
        (_lose_template, "the chat template is missing"),
        (_swap_tokens, "vocabulary, special tokens or merges"),
        (_change_tokenizer_pad, "pad token has id 1 instead of 0"),
        (_pad_left, "pads on the left"),
    ],
)
def test_loading_warns_of_drift(damage, words, llama, caplog):
    damage(llama)
    load(llama)
    assert any(words in line and "rewards may differ" in line for line in caplog.messages), caplog.messages


def test_loading_weights_without_their_tokenizer_warns_too(llama, caplog):
    for path in llama.glob("tokenizer*"):
        path.unlink()
    load(llama)
    assert any("the tokenizer is missing" in line for line in caplog.messages)


@pytest.mark.parametrize(
    "damage", [_drop_head, _round_head, _change_backbone, _change_template, _swap_tokens, _other_rope]
)
def test_verified_loading_refuses_other_rewards(damage, llama):
    damage(llama)
    with pytest.raises(ValueError, match=r"does not give its recorded rewards.*hf-reward verify"):
        load(llama, verify=True)


def test_verified_loading_works_for_adapters_and_their_precisions(adapter, make_model_folder):
    assert load(adapter, verify=True).peft_config
    load(adapter, verify=True, dtype="bfloat16")
    edit_weights(adapter / "adapter_model.safetensors", lambda each: each["base_model.model.score.weight"].mul_(1.001))
    with pytest.raises(ValueError, match="does not give its recorded rewards"):
        load(adapter, verify=True)


def test_verified_loading_in_half_precision_is_bounded_loosely(llama, make_model_folder, tmp_path):
    load(llama, verify=True, dtype="bfloat16")
    half = saved_model(make_model_folder("llama", "other"), tmp_path / "half", dtype="bfloat16")
    load(half, verify=True)  # float32 rewards of weights that were recorded in bfloat16
    edit_weights(half / "model.safetensors", lambda tensors: tensors["score.weight"].mul_(-1))
    with pytest.raises(ValueError, match="does not give its recorded rewards"):
        load(half, verify=True)


def test_what_cannot_be_verified_is_refused_when_asked(llama, make_model_folder):
    with pytest.raises(ValueError, match="Verification requires a tokenizer"):
        load(make_model_folder("gpt2"), verify=True)
    edit_json(llama / "reward_config.json", probes={})
    with pytest.raises(ValueError, match="Verification requires a tokenizer"):
        load(llama, verify=True)
    load(llama)


def test_a_damaged_record_stops_loading(llama):
    (llama / "reward_config.json").write_text("{")
    with pytest.raises(ValueError, match="remove the file, which is not required"):
        load(llama)
    (llama / "reward_config.json").unlink()
    load(llama)


class _Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def _pickle_weights(folder: Path, name: str, **more) -> None:
    safe = next(folder.glob("*model.safetensors"))
    torch.save({**load_file(safe), **more}, folder / name)
    safe.unlink()


def test_pickles_are_read_only_when_asked(llama, adapter, tmp_path):
    expected = load(llama).score.weight
    _pickle_weights(llama, "pytorch_model.bin")
    _pickle_weights(adapter, "adapter_model.bin")
    for folder in (llama, adapter):
        with pytest.raises(ValueError, match=r"are pickles.*allow_pickle=True"):
            load(folder)
        load(folder, allow_pickle=True, verify=True)
    assert torch.equal(load(llama, allow_pickle=True).score.weight, expected)


@pytest.mark.parametrize("kind", ["llama", "adapter"])
def test_code_in_pickles_is_never_run(kind, request, tmp_path):
    folder = request.getfixturevalue(kind)
    harmed = tmp_path / "harmed"
    name = "pytorch_model.bin" if kind == "llama" else "adapter_model.bin"
    _pickle_weights(folder, name, harm=_Harm(harmed))
    with pytest.raises((pickle.UnpicklingError, ValueError, OSError)):
        load(folder, allow_pickle=True)
    assert not harmed.exists()


def test_an_imported_granite_model_is_loaded_with_hf_reward(make_model_folder, tmp_path):
    folder = saved_model(make_model_folder("granite"), tmp_path / "saved")
    result = verify_checkpoint(folder)
    assert result.equal, str(result)
    assert any("requires hf_reward" in note for note in result.notes)
    assert not any("pipeline" in check.name for check in result.checks)


# --- fresh processes -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("own_stock_process")
@pytest.mark.slow
def test_a_fresh_process_that_never_imports_hf_reward_agrees(make_model_folder, tmp_path, monkeypatch):
    folder = saved_model(make_model_folder("qwen3"), tmp_path / "saved")
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # every import is a line on stderr
    started, run = [], subprocess.run

    def seen(command, **options):
        started.append(run(command, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "run", seen)
    result = verify_checkpoint(folder, dtypes=["float32"])
    assert result.equal, str(result)
    assert len([check for check in result.checks if check.name.startswith("rewards")]) == 4
    imported = [line.rpartition("|")[2].strip() for line in started[0].stderr.splitlines()]
    assert len(started) == 1
    assert "transformers" in imported
    assert [name for name in imported if name.split(".")[0] == "hf_reward"] == []


@pytest.mark.usefixtures("own_stock_process")
@pytest.mark.parametrize(("through_us", "program"), [(False, "Stock transformers"), (True, "hf_reward")])
def test_loading_errors_of_the_fresh_process_are_one_line(through_us, program, tmp_path, monkeypatch):
    failed_process = subprocess.CompletedProcess([], 1, "", "Traceback ...\n  in load\nValueError: no head\n\n")
    monkeypatch.setattr(subprocess, "run", lambda command, **options: failed_process)
    with pytest.raises(ValueError, match=f"^{program} cannot load {re.escape(str(tmp_path))}: ValueError: no head$"):
        run_stock_scoring(tmp_path, ["float32"], ["alone"], with_hf_reward=through_us)


def test_weights_that_do_not_fit_cannot_be_loaded(make_model_folder, tmp_path):
    folder = saved_model(make_model_folder("llama"), tmp_path / "saved")
    edit_weights(
        folder / "model.safetensors", lambda each: each.update({"score.weight": each["score.weight"].repeat(2, 1)})
    )
    with pytest.raises(ValueError, match=r"Stock transformers cannot load .*saved: \S+"):
        verify_checkpoint(folder)


@pytest.mark.slow
@pytest.mark.usefixtures("stock_process")
@pytest.mark.parametrize("arch", PARITY)
def test_trained_reloaded_stock_and_merged_agree(arch, make_model_folder, tmp_path):
    source = make_model_folder(arch)
    tokenizer = tokenizer_of(source)
    save(reward_model(source), tokenizer, tmp_path / "full", max_shard_size="20KB")
    assert len(list((tmp_path / "full").glob("model-*.safetensors"))) > 1
    adapted = reward_model(source, lora=True)
    save_adapter(SavedModel(adapted, tokenizer, describe(adapted, tokenizer, half=torch.bfloat16)), tmp_path / "lora")
    results = {name: verify_checkpoint(tmp_path / name) for name in ("full", "lora")}
    rules = {"merged": ExportRule(), "bf16": ExportRule(dtype="bfloat16", max_shard_size="20KB")}
    for name, rule in rules.items():
        report = export_reward_model(tmp_path / "lora", tmp_path / name, rule)
        assert report.differences["merge"] <= 1e-4
        results[name] = report.verification
    for kind, result in results.items():
        assert result.equal, (kind, str(result))
        own = "bfloat16" if "bf16" in kind else "float32"
        alone = [check.difference for check in result.checks if f"{own}, each alone" in check.name]
        assert len(alone) == 1
        assert alone[0] <= (2.0**-6 if "bf16" in kind else 1e-5)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    ids = AutoTokenizer.from_pretrained(tmp_path / "merged")("a word", return_tensors="pt")
    with torch.no_grad():
        difference = stock(**ids).logits - adapted.eval()(**ids).logits
    assert difference.abs().item() <= 1e-4


@pytest.mark.slow
@pytest.mark.usefixtures("stock_process")
def test_adapters_stacked_on_adapters_and_made_classes_verify_in_fresh_processes(make_model_folder, tmp_path):
    folder = saved_model(make_model_folder("granite"), tmp_path / "granite-reward")
    result = verify_checkpoint(folder)
    assert result.equal, str(result)
    _round_head(folder)
    assert ALONE in failed(verify_checkpoint(folder))


@pytest.mark.slow
@pytest.mark.usefixtures("stock_process")
def test_a_trained_checkpoint_verifies_as_complete_model_and_as_adapter(make_model_folder, chat_pairs, tmp_path):
    from datasets import Dataset
    from peft import LoraConfig
    from training_runs import make_trainer

    for name, peft in (("whole", None), ("adapter", LoraConfig(r=4, target_modules="all-linear"))):
        rows = Dataset.from_list(chat_pairs)
        changes = {"learning_rate": 1e-2, "bf16": True, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
        source = make_model_folder("llama", f"base-{name}")
        trainer = make_trainer(source, rows, tmp_path / name, peft_config=peft, **changes)
        trainer.train()
        trainer.save_model()
        for folder in (tmp_path / name, tmp_path / name / "checkpoint-1"):
            result = verify_checkpoint(folder)
            assert result.equal, str(result)
            rewards = CheckpointRecord.load(folder).probes["rewards"]["float32"]
            assert len({round(reward, 6) for reward in rewards}) == len(rewards), "training moved them apart"


def test_the_matrix_covers_what_conftest_has():
    assert set(PARITY) <= {*DECODERS, *ENCODERS}
