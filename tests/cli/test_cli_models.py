"""`hf-reward verify | export | import`: exit codes, JSON for scripts, one-line errors."""

import json
import shutil

import pytest
import torch
from conftest import randomize_head
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_reward import AutoModelForRewardScoring, CheckpointRecord, prepare_tokenizer, save_merged


@pytest.fixture
def saved(make_model_folder, tmp_path):
    """A merged reward model with its adapter beside it."""
    folder = make_model_folder("llama")
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model = AutoModelForRewardScoring.from_pretrained(folder, peft_config=lora)
    randomize_head(model)
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(folder))
    return save_merged(model, tokenizer, tmp_path / "saved", verify=False)


def test_verify_prints_equal_or_the_differences(call, saved):
    code, out, _ = call("verify", saved)
    assert code == 0
    assert "Equal." in out
    weights = load_file(saved / "model.safetensors")
    weights["score.weight"] = weights["score.weight"].bfloat16().float()
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    code, out, _ = call("verify", saved, "--json", "--dtype", "float32")
    found = json.loads(out)
    assert code == 1
    assert not found["equal"]
    failed = {check["name"] for check in found["checks"] if not check["passed"]}
    assert "rewards, float32, each alone" in failed
    assert failed.isdisjoint({"config.json", "tokenizer", "token ids", "weights"})


def test_export_merges_casts_and_reports(call, saved, tmp_path):
    code, out, err = call("export", saved / "adapter", tmp_path / "out", "--dtype", "bfloat16", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["verification"]["equal"]
    assert report["differences"].keys() == {"merge", "cast to bfloat16"}
    assert {each["program"]: each["outcome"] for each in report["compatibility"]}["SGLang"] == "same reward"
    old = [{"consumer": each["program"], **each} for each in report["compatibility"]]  # removed in version 0.3
    assert report["consumers"] == [{name: each[name] for name in ("consumer", "outcome", "note")} for each in old]
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    code, _, err = call("export", saved, tmp_path / "out")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "is not empty" in err


def test_export_averages(call, saved, tmp_path):
    second = tmp_path / "second"
    shutil.copytree(saved, second)
    weights = load_file(second / "model.safetensors")
    weights["score.weight"] *= 3
    save_file(weights, second / "model.safetensors", metadata={"format": "pt"})
    code, _, err = call("export", "--average", saved, second, tmp_path / "mean")
    assert code == 1, "what does not give its recorded rewards must not be averaged"
    assert "does not give its recorded rewards" in err
    (second / "reward_config.json").unlink()
    record = CheckpointRecord.load(saved)
    record.probes["rewards"] = {"float32": [3 * reward for reward in record.probes["rewards"]["float32"]]}
    record.save(second)
    code, out, err = call("export", "--average", saved, second, tmp_path / "mean")
    assert code == 0, err
    assert "same reward" in out
    mean = load_file(tmp_path / "mean" / "model.safetensors")["score.weight"]
    torch.testing.assert_close(mean, 2 * load_file(saved / "model.safetensors")["score.weight"])


def test_import_writes_a_stock_folder(call, saved, tmp_path):
    foreign = tmp_path / "foreign"
    shutil.copytree(saved, foreign, ignore=shutil.ignore_patterns("adapter", "reward_config.json", "README.md"))
    weights = load_file(foreign / "model.safetensors")
    head = weights.pop("score.weight")
    save_file({**weights, "regression_head.weight": head}, foreign / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((foreign / "config.json").read_text())
    (foreign / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaRewardModel"]}))
    code, out, err = call("import", "--from", foreign, "--out", tmp_path / "stock")
    assert code == 0, err
    assert "Format: ultrarm" in out
    record = CheckpointRecord.load(tmp_path / "stock")
    assert record.origin["imported_from"] == "ultrarm"
    expected = CheckpointRecord.load(saved).probes["rewards"]["float32"]
    rewards = record.probes["rewards"]["float32"]
    assert len(rewards) == 8, "of a foreign model no limit is known, so there is no probe of its length"
    assert rewards == pytest.approx(expected[:8], abs=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify", "nowhere"], "There is no folder"),
        (["export", "nowhere", "out"], "nowhere"),
        (["export", "--average", "a", "out"], "at least two models"),
        (["import", "--from", "nowhere", "--out", "out"], "nowhere"),
        (["import", "--from", ".", "--out", "out", "--format", "nonsense"], "nonsense"),
        (["push", "nowhere", "user/model"], "There is no folder"),
        (["push", ".", "user/model"], "is not a saved model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(call, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    code, _, err = call(*words)
    assert code == 1
    assert err.startswith("hf-reward: ")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_export_without_target_is_a_usage_error(call):
    code, _, err = call("export", "only-one")
    assert code == 2
    assert "give FROM and OUT" in err
