"""An average of reward models has their mean weights, and requires compatible models."""

import json
from pathlib import Path

import pytest
import torch
from conftest import randomize_head
from safetensors.torch import load_file
from saved_models import edit_json, reward_model, save, saved_model, tokenizer_of
from transformers import T5Config, T5ForSequenceClassification

from hf_reward import AutoModelForRewardScoring, CheckpointRecord
from hf_reward.modeling.checkpoint_record import describe
from hf_reward.modeling.probes import relative_differences
from hf_reward.publishing.averaging import average_reward_models
from hf_reward.publishing.export import ExportRule, save_adapter
from hf_reward.publishing.saved_model import SavedModel
from hf_reward.publishing.verify import verify_checkpoint


def member(base: Path, folder: Path, seed: int, *, head_alone: bool = False) -> Path:
    """A model as if fine-tuned from the base."""
    model = reward_model(base, seed=seed)
    if not head_alone:
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "score" not in name:
                    parameter += 0.01 * torch.randn_like(parameter)
    save(model, tokenizer_of(base), folder)
    edit_json(folder / "reward_config.json", base_model="base", evaluation={"accuracy": 0.75})
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def recorded(folder: Path) -> torch.Tensor:
    return torch.tensor(CheckpointRecord.load(folder).probes["rewards"]["float32"])


@pytest.mark.parametrize("arch", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("count", [2, 3])
def test_an_average_is_the_mean_of_the_weights(arch, count, make_model_folder, tmp_path):
    base = make_model_folder(arch)
    members = [member(base, tmp_path / f"m{seed}", seed) for seed in range(1, count + 1)]
    edit_json(members[0] / "reward_config.json", calibration={"temperature": 2.0}, length_correction={"unit": "x"})
    report = average_reward_models(members, tmp_path / "mean")
    found, parts = weights(tmp_path / "mean"), [weights(folder) for folder in members]
    assert found.keys() == parts[0].keys()
    for name, value in found.items():
        expected = sum(part[name].double() for part in parts) / count
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)
    assert report.verification.equal
    assert len(report.differences) == count
    for folder in members:
        moved = max(relative_differences(recorded(folder).tolist(), recorded(tmp_path / "mean").tolist()))
        assert report.differences[f"from {Path(folder).name} to the average"] == pytest.approx(moved, rel=1e-3)
    record = CheckpointRecord.load(tmp_path / "mean")
    assert record.origin["averaged"] == list(map(str, members))
    found_later = (record.evaluation, record.calibration, record.length_correction)
    assert found_later == ({}, {}, {}), "it is that of none of them"
    assert any("evaluate it again" in note for note in report.notes)


def test_rewards_average_exactly_where_only_linear_heads_differ(make_model_folder, tmp_path):
    base = make_model_folder("llama")
    members = [member(base, tmp_path / f"m{seed}", seed, head_alone=True) for seed in (1, 2, 3)]
    average_reward_models(members, tmp_path / "mean")
    expected = torch.stack([recorded(folder) for folder in members]).mean(0)
    assert expected.std() > 0.01
    torch.testing.assert_close(recorded(tmp_path / "mean"), expected, rtol=1e-5, atol=1e-6)


def test_adapters_are_merged_first(make_model_folder, tmp_path):
    base = make_model_folder("llama")
    members = []
    for seed in (1, 2):
        model, tokenizer = reward_model(base, lora=True, seed=seed), tokenizer_of(base)
        randomize_head(model, seed)
        save_adapter(SavedModel(model, tokenizer, describe(model, tokenizer)), tmp_path / f"a{seed}")
        members.append(tmp_path / f"a{seed}")
    average_reward_models(members, tmp_path / "mean", ExportRule(dtype="bfloat16"))
    assert not (tmp_path / "mean" / "adapter_config.json").exists()
    merged = [
        AutoModelForRewardScoring.from_pretrained(folder, is_trainable=False).merge_and_unload() for folder in members
    ]
    name = "model.layers.0.mlp.down_proj.weight"
    expected = (merged[0].state_dict()[name] + merged[1].state_dict()[name]) / 2
    assert (merged[0].state_dict()[name] - merged[1].state_dict()[name]).abs().max() > 0.01
    found = weights(tmp_path / "mean")[name]
    torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=1e-6)
    assert verify_checkpoint(tmp_path / "mean").equal


def test_tied_weights_count_once(tmp_path, pair_tokenizer):
    """T5's encoder and decoder share one matrix: adding to it twice would move it twice."""
    pair_tokenizer.eos_token = "[SEP]"
    folders = [tmp_path / "t1", tmp_path / "t2"]
    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        config = T5Config(
            vocab_size=len(pair_tokenizer),
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=1,
            num_heads=4,
            num_labels=1,
            pad_token_id=0,
            eos_token_id=pair_tokenizer.eos_token_id,
            decoder_start_token_id=0,
        )
        model = T5ForSequenceClassification(config)
        assert model.transformer.encoder.embed_tokens.weight is model.transformer.shared.weight
        model.save_pretrained(folder)
        pair_tokenizer.save_pretrained(folder)
    average_reward_models(folders, tmp_path / "mean", ExportRule(allow_unserved=True))
    name = "transformer.shared.weight"
    one, two, mean = (weights(folder)[name] for folder in (*folders, tmp_path / "mean"))
    torch.testing.assert_close(mean, (one + two) / 2)


def test_models_that_do_not_belong_together_are_refused_with_what_differs(make_model_folder, chat_tokenizer, tmp_path):
    base = make_model_folder("llama")
    first = member(base, tmp_path / "first", 1)

    def refused(second: Path, words: str) -> None:
        with pytest.raises(ValueError, match=words) as caught:
            average_reward_models([first, second], tmp_path / "mean")
        assert str(second) in str(caught.value)
        assert not (tmp_path / "mean").exists()

    other_base = member(base, tmp_path / "other-base", 2)
    edit_json(other_base / "reward_config.json", base_model="another")
    refused(other_base, r"base models \(base and another\)")
    changed = chat_tokenizer
    changed.chat_template += " "
    template = member(make_model_folder("llama", "with-template", tokenizer=changed), tmp_path / "template", 2)
    refused(template, "chat templates")
    changed.add_tokens(["<new>"])
    tokenizer = member(make_model_folder("llama", "with-token", tokenizer=changed), tmp_path / "token", 2)
    refused(tokenizer, r"tokenizers.*names or shapes of the weights")
    refused(member(make_model_folder("qwen3"), tmp_path / "architecture", 2), "names or shapes of the weights")
    with pytest.raises(ValueError, match="requires at least two models, but got 1"):
        average_reward_models([first], tmp_path / "mean")


def test_folders_without_record_are_averaged_where_all_else_fits(make_model_folder, tmp_path):
    base = make_model_folder("llama")
    folders = [saved_model(base, tmp_path / f"f{seed}", seed=seed) for seed in (1, 2)]
    for folder in folders:
        (folder / "reward_config.json").unlink()
    average_reward_models(folders, tmp_path / "mean")
    one, two, mean = (weights(folder)["score.weight"] for folder in (*folders, tmp_path / "mean"))
    torch.testing.assert_close(mean, (one + two) / 2)


def test_a_damaged_member_is_refused_and_a_folder_is_not_overwritten(make_model_folder, tmp_path):
    base = make_model_folder("llama")
    one, two = (member(base, tmp_path / name, seed) for seed, name in enumerate(("one", "two"), start=1))
    with pytest.raises(FileExistsError, match="not empty"):
        average_reward_models([one, two], one)
    content = json.loads((two / "reward_config.json").read_text())
    content["probes"]["rewards"]["float32"][0] += 1.0
    edit_json(two / "reward_config.json", probes=content["probes"])
    with pytest.raises(ValueError, match="does not give its recorded rewards"):
        average_reward_models([one, two], tmp_path / "mean")
