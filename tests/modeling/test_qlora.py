"""Adapters that were trained on a 4-bit base are merged into the dequantised base."""

import json

import pytest
import torch
from conftest import randomize_head
from peft import LoraConfig
from saved_models import edit_weights, tokenizer_of
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

from hf_reward import AutoModelForRewardScoring, CheckpointRecord, save_merged
from hf_reward.modeling.checkpoint_record import describe
from hf_reward.modeling.probes import format_probes, probe_rewards, relative_differences
from hf_reward.publishing.export import ExportRule, export_reward_model, save_adapter
from hf_reward.publishing.saved_model import SavedModel
from hf_reward.publishing.verify import verify_checkpoint

pytest.importorskip("bitsandbytes")
FOUR_BITS = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


@pytest.fixture
def base(tmp_path, chat_tokenizer):
    """A llama whose matrices are large enough to be quantised."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(chat_tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    chat_tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def quantized_model(base):
    torch.manual_seed(1)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = AutoModelForRewardScoring.from_pretrained(base, quantization_config=FOUR_BITS, peft_config=lora).eval()
    assert model.get_base_model().is_quantized
    randomize_head(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "score." in name:
                parameter *= 0.1
    return model


@pytest.fixture
def adapter(base, tmp_path):
    model, tokenizer = quantized_model(base), tokenizer_of(base)
    save_adapter(SavedModel(model, tokenizer, describe(model, tokenizer)), tmp_path / "adapter")
    return tmp_path / "adapter"


def exact_rewards(model, tokenizer):
    """Rewards in training mode (without dropout): in evaluation bitsandbytes may pack weights for bfloat16 kernels."""
    model.train()
    with torch.no_grad():
        return [model(torch.tensor([probe.input_ids])).logits.item() for probe in format_probes(tokenizer)]


def rewards(folder, tokenizer, **options):
    model = AutoModelForRewardScoring.from_pretrained(folder, is_trainable=False, **options)
    return probe_rewards(model, format_probes(tokenizer))


def test_the_record_contains_the_quantisation_of_the_base(adapter):
    record = CheckpointRecord.load(adapter)
    assert record.quantization["load_in_4bit"] is True
    assert "score" in record.quantization["llm_int8_skip_modules"]
    assert len(set(record.probes["rewards"]["float32"])) == 8


def test_adapters_are_merged_into_dequantised_weights_by_default(base, adapter, tmp_path):
    tokenizer = tokenizer_of(base)
    exact = exact_rewards(quantized_model(base), tokenizer)
    recorded = CheckpointRecord.load(adapter).probes["rewards"]["float32"]
    report = export_reward_model(adapter, tmp_path / "default")
    assert max(relative_differences(exact, rewards(tmp_path / "default", tokenizer))) < 1e-4
    assert report.differences["quantised weights, dequantised"] < 2**-4
    assert report.differences["merge"] < 1e-4
    assert CheckpointRecord.load(tmp_path / "default").quantization == {}
    assert "quantization_config" not in json.loads((tmp_path / "default" / "config.json").read_text())

    other = export_reward_model(adapter, tmp_path / "original", original_base=True)
    moved = max(relative_differences(exact, rewards(tmp_path / "original", tokenizer)))
    assert moved > 0.1, "4 bits lose something"
    assert other.differences["original base instead of the quantised one"] == pytest.approx(moved, rel=0.01)
    assert len(set(recorded)) == 8
    assert any("trained on the quantised one" in note for note in other.notes)
    stored = CheckpointRecord.load(tmp_path / "original").origin["differences"]
    assert stored == other.differences


def test_a_damaged_adapter_is_refused(adapter, tmp_path):
    def turn(tensors):
        tensors["base_model.model.score.weight"].mul_(-1)

    edit_weights(adapter / "adapter_model.safetensors", turn)
    with pytest.raises(ValueError, match="does not give its recorded rewards"):
        export_reward_model(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_verified_loading_wants_the_quantised_base(adapter):
    model = AutoModelForRewardScoring.from_pretrained(adapter, quantization_config=FOUR_BITS, verify=True)
    assert model.get_base_model().is_quantized
    with pytest.raises(ValueError, match="Pass the `quantization_config` of the training"):
        AutoModelForRewardScoring.from_pretrained(adapter, verify=True)


def test_an_adapter_is_verified_on_its_quantised_base(adapter):
    result = verify_checkpoint(adapter)
    assert result.equal, str(result)
    edit_weights(adapter / "adapter_model.safetensors", lambda each: each["base_model.model.score.weight"].mul_(-1))
    assert not verify_checkpoint(adapter).equal


def test_a_live_quantised_model_is_saved_merged_and_as_adapter(base, tmp_path):
    tokenizer = tokenizer_of(base)
    exact = exact_rewards(quantized_model(base), tokenizer)
    model = quantized_model(base)
    record = describe(model, tokenizer)
    record.quantization = {}  # it is a fact of the model, whatever was passed
    folder = save_merged(model, tokenizer, tmp_path / "out", record=record)
    assert max(relative_differences(exact, rewards(folder, tokenizer))) < 1e-4
    assert verify_checkpoint(folder).equal
    assert CheckpointRecord.load(folder).origin["differences"]["quantised weights, dequantised"] < 2**-4
    assert CheckpointRecord.load(folder / "adapter").quantization["load_in_4bit"] is True
    assert verify_checkpoint(folder / "adapter").equal


@pytest.mark.slow
@pytest.mark.usefixtures("own_stock_process")
def test_an_adapter_and_its_merge_verify_in_fresh_processes(adapter, tmp_path):
    result = verify_checkpoint(adapter)
    assert result.equal, str(result)
    report = export_reward_model(adapter, tmp_path / "out", ExportRule(dtype="bfloat16"))
    assert report.verification.equal
