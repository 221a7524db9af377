"""Reward models of other libraries become stock classifiers with the same rewards."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_layouts import (
    CASES,
    HIDDEN,
    LAYOUTS,
    TEXTS,
    WITH_BIAS,
    Foreign,
    as_pickle,
    check_rewards,
    close,
    deepspeed_chat,
    llama_factory,
    nemotron,
    openrlhf,
    own_rewards,
    starling,
    trl,
    ultrarm,
    write,
    xtuner,
    xtuner_training,
)
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPTJConfig,
    MixtralConfig,
    PreTrainedTokenizerFast,
)

from hf_reward import AutoModelForRewardScoring
from hf_reward.publishing.importers import FORMATS, detect_format, read_foreign
from hf_reward.publishing.importers.foreign_checkpoint import Checkpoint


@pytest.mark.parametrize(("layout", "arch"), CASES)
def test_an_imported_model_gives_the_foreign_rewards(layout, arch, chat_tokenizer, tmp_path):
    write_layout, name, _ = LAYOUTS[layout]
    model = Foreign(arch, chat_tokenizer)
    folder = write_layout(tmp_path / "foreign", model)
    imported = read_foreign(folder)
    assert imported.format == name
    check_rewards(imported, model.rewards(TEXTS, bias=0.75 if layout in WITH_BIAS else 0.0))
    assert imported.offset == (0.75 if layout in WITH_BIAS else 0.0)
    assert bool(imported.offset) == any("(0.75) is left out" in note for note in imported.notes)
    assert {parameter.dtype for parameter in imported.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exactly_one_format_recognises_each_layout(layout, chat_tokenizer, tmp_path):
    write_layout, name, archs = LAYOUTS[layout]
    folder = write_layout(tmp_path / "foreign", Foreign(archs[0], chat_tokenizer))
    assert [each for each, importer in FORMATS.items() if importer.matches(Checkpoint(folder))] == [name]
    assert detect_format(folder) == name
    assert read_foreign(folder, name).format == name


@pytest.mark.parametrize("layout", ["trl", "openrlhf", "ultrarm", "starling", "nemotron"])
def test_what_is_saved_is_a_stock_classifier_that_brings_no_foreign_settings(layout, chat_tokenizer, tmp_path):
    write_layout, _, archs = LAYOUTS[layout]
    model = Foreign(archs[0], chat_tokenizer)
    imported = read_foreign(write_layout(tmp_path / "foreign", model))
    expected = own_rewards(imported.model, imported.tokenizer, TEXTS)
    imported.model.save_pretrained(tmp_path / "out")
    imported.tokenizer.save_pretrained(tmp_path / "out")
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert close(own_rewards(stock, AutoTokenizer.from_pretrained(tmp_path / "out"), TEXTS), expected)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not {"auto_map", "value_head_prefix", "reward_token_id"} & written.keys()
    assert (written["problem_type"], written["id2label"]) == ("regression", {"0": "reward"})
    with pytest.raises(ValueError, match="already a stock classifier"):
        detect_format(tmp_path / "out")
    ours = AutoModelForRewardScoring.from_pretrained(tmp_path / "out")
    assert close(own_rewards(ours, imported.tokenizer, TEXTS), expected)


# --- reading positions and pad tokens ------------------------------------------------------------------------------


def read_before_first_pad(model: Foreign, ids: Tensor, pad: int) -> Tensor:
    """How DeepSpeed-Chat and Starling read: a padded batch, one row at a time."""
    with torch.no_grad():
        values = model.backbone(ids, attention_mask=(ids != pad).long())[0] @ model.head[0]
    places = [(row == pad).nonzero() for row in ids]
    ends = [int(found[0]) if len(found) else ids.shape[1] for found in places]
    return torch.stack([values[row, end - 1] for row, end in enumerate(ends)])


@pytest.mark.parametrize("layout", ["deepspeed_chat", "starling"])
def test_layouts_that_read_before_the_first_pad_token(layout, chat_tokenizer, tmp_path):
    chat_tokenizer.pad_token = chat_tokenizer.unk_token  # as Starling has it
    model = Foreign("llama", chat_tokenizer)
    imported = read_foreign(LAYOUTS[layout][0](tmp_path, model))
    ids = chat_tokenizer(TEXTS, padding=True, padding_side="right", add_special_tokens=False, return_tensors="pt")
    check_rewards(imported, read_before_first_pad(model, ids["input_ids"], chat_tokenizer.unk_token_id))
    assert "first pad token" in imported.reads


def test_deepspeed_chat_with_eos_as_pad_gives_the_reward_of_the_text_without_eos(chat_tokenizer, tmp_path):
    model = Foreign("llama", chat_tokenizer)
    imported = read_foreign(deepspeed_chat(tmp_path, model))
    texts = [text.removesuffix("<|im_end|>") for text in TEXTS[1:]]
    ids = chat_tokenizer([f"{text}<|im_end|>" for text in texts], padding=True, padding_side="right")["input_ids"]
    check_rewards(imported, read_before_first_pad(model, torch.tensor(ids), chat_tokenizer.eos_token_id), texts)
    assert any("without it" in note for note in imported.notes)


def test_the_unknown_token_as_pad_is_replaced_where_it_can_end_a_text(tmp_path):
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "water": 3, "boils": 4, "ice": 5}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **names)
    model = Foreign("llama", tokenizer)
    imported = read_foreign(starling(tmp_path, model))
    assert imported.tokenizer.pad_token == "<|pad|>"
    assert imported.model.config.pad_token_id == imported.tokenizer.pad_token_id == 6
    texts = ["water boils xyzzy", "ice xyzzy", "water", "water water ice boils xyzzy xyzzy"]
    check_rewards(imported, model.rewards(texts), texts)


def test_a_new_pad_token_gets_an_embedding(text_tokenizer, tmp_path):
    model = Foreign("gpt2", text_tokenizer)
    imported = read_foreign(trl(tmp_path, model))
    assert imported.tokenizer.pad_token == "<|pad|>"
    assert imported.model.get_input_embeddings().num_embeddings == len(text_tokenizer) + 1
    texts = [f"{text}<|endoftext|>" for text in TEXTS]
    check_rewards(imported, model.rewards(texts, bias=0.75), texts)


# --- parts of single layouts ---------------------------------------------------------------------------------------


def adapted(model: Foreign, base: Path, config: Any = None) -> Any:
    """The language model saved as base, and itself with an adapter that changes something."""
    model.language_model.save_pretrained(base)
    model.tokenizer.save_pretrained(base)
    model.language_model.name_or_path = str(base)
    model.language_model.config._name_or_path = str(base)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(model.language_model, config or lora).eval()


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_llama_factory_with_an_adapter(arch, chat_tokenizer, tmp_path):
    model = Foreign(arch, chat_tokenizer)
    plain = model.rewards(TEXTS)
    adapted(model, tmp_path / "base").save_pretrained(tmp_path / "lora")
    head = {"v_head.summary.weight": model.head, "v_head.summary.bias": model.bias}
    save_file(head, tmp_path / "lora" / "value_head.safetensors")
    imported = read_foreign(tmp_path / "lora")
    expected = model.rewards(TEXTS, bias=0.75)
    assert (expected - plain - 0.75).abs().max() > 0.01, "the adapter must change something"
    assert imported.format == "llama_factory"
    check_rewards(imported, expected)


def test_an_adapter_with_a_missing_base_requires_base_model(chat_tokenizer, tmp_path):
    model = Foreign("llama", chat_tokenizer)
    adapted(model, tmp_path / "base").save_pretrained(tmp_path / "lora")
    save_file({"v_head.summary.weight": model.head}, tmp_path / "lora" / "value_head.safetensors")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="base"):
        read_foreign(tmp_path / "lora")
    assert read_foreign(tmp_path / "lora", base_model=tmp_path / "moved").offset == 0


def test_trl_with_an_adapter_and_its_value_head_in_a_pickle(chat_tokenizer, tmp_path):
    model = Foreign("llama", chat_tokenizer)
    adapted(model, tmp_path / "base").save_pretrained(tmp_path / "lora")
    head = {"v_head.summary.weight": model.head, "v_head.summary.bias": model.bias}
    torch.save(head, tmp_path / "lora" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="--allow-pickle"):
        read_foreign(tmp_path / "lora")
    imported = read_foreign(tmp_path / "lora", allow_pickle=True)
    expected = model.rewards(TEXTS, bias=0.75)
    check_rewards(imported, expected)
    assert imported.format == "trl"


def test_an_adapter_of_virtual_tokens_is_refused(chat_tokenizer, tmp_path):
    model = Foreign("llama", chat_tokenizer)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    adapted(model, tmp_path / "base", config).save_pretrained(tmp_path / "prompt")
    save_file({"v_head.summary.weight": model.head}, tmp_path / "prompt" / "value_head.safetensors")
    with pytest.raises(ValueError, match="virtual tokens"):
        read_foreign(tmp_path / "prompt")


def test_an_adapter_in_a_pickle_is_refused(chat_tokenizer, tmp_path):
    model = Foreign("llama", chat_tokenizer)
    adapted(model, tmp_path / "base").save_pretrained(tmp_path / "lora")
    save_file({"v_head.summary.weight": model.head}, tmp_path / "lora" / "value_head.safetensors")
    weights = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    torch.save(weights, tmp_path / "lora" / "adapter_model.bin")
    (tmp_path / "lora" / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="--allow-pickle"):
        read_foreign(tmp_path / "lora")
    save_file(weights, tmp_path / "lora" / "adapter_model.safetensors")
    assert read_foreign(tmp_path / "lora").format == "llama_factory"
    as_pickle(tmp_path / "base")
    with pytest.raises(ValueError, match="cannot be loaded on its base"):
        read_foreign(tmp_path / "lora")
    assert read_foreign(tmp_path / "lora", allow_pickle=True).format == "llama_factory"


@pytest.mark.parametrize("tied", [True, False])
def test_nemotron_uses_the_row_of_token_0_with_tied_or_untied_embeddings(tied, chat_tokenizer, tmp_path):
    model = Foreign("llama", chat_tokenizer, tie_word_embeddings=tied)
    folder = nemotron(tmp_path, model)
    assert ("lm_head.weight" in load_file(folder / "model.safetensors")) is not tied
    language_model = AutoModelForCausalLM.from_pretrained(folder)
    ids = [chat_tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"] for text in TEXTS]
    with torch.no_grad():
        logits = torch.stack([language_model(each).logits[0, -1, 0] for each in ids])
    check_rewards(read_foreign(folder), logits)


def test_nemotron_models_are_known_by_name_only(chat_tokenizer, tmp_path):
    model = Foreign("llama", chat_tokenizer)
    folder = nemotron(tmp_path, model).rename(tmp_path / "plain")
    with pytest.raises(ValueError, match=r"language model .* without a reward head.*format='nemotron'"):
        read_foreign(folder)
    check_rewards(read_foreign(folder, "nemotron"), model.rewards(TEXTS))
    cached = tmp_path / "models--nvidia--Llama-3.1-Nemotron-70B-Reward-HF" / "snapshots" / "0f00"
    cached.parent.mkdir(parents=True)
    assert detect_format(folder.rename(cached)) == "nemotron"


def test_nemotron_refuses_logits_that_are_not_linear(chat_tokenizer, tmp_path):
    model = Foreign("gemma2", chat_tokenizer)
    with pytest.raises(ValueError, match="final_logit_softcapping"):
        read_foreign(nemotron(tmp_path, model))


def test_nemotron_keeps_the_bias_of_token_0_as_offset(chat_tokenizer, tmp_path):
    model = Foreign("llama", chat_tokenizer)
    config = GPTJConfig(vocab_size=len(chat_tokenizer), n_embd=HIDDEN, n_layer=2, n_head=4, rotary_dim=4)
    config.initializer_range = 0.2
    model.language_model = AutoModelForCausalLM.from_config(config).eval()
    torch.nn.init.normal_(model.language_model.lm_head.bias)
    imported = read_foreign(nemotron(tmp_path, model))
    assert imported.offset == model.language_model.lm_head.bias[0].item()
    check_rewards(imported, model.rewards(TEXTS, bias=imported.offset))


def test_openrlhf_statistics_are_facts_and_the_head_may_have_any_name(chat_tokenizer, tmp_path):
    model = Foreign("qwen2", chat_tokenizer)
    imported = read_foreign(openrlhf(tmp_path / "score", model, name="score"))
    check_rewards(imported, model.rewards(TEXTS))
    assert imported.facts == {"head": "score", "mean": 0.5, "std": 2.5}
    assert any("can normalise" in note for note in imported.notes)
    folder = openrlhf(tmp_path / "v_head", model, name="v_head")
    assert [each for each, importer in FORMATS.items() if importer.matches(Checkpoint(folder))] == ["openrlhf"]
    check_rewards(read_foreign(folder), model.rewards(TEXTS))
    folder = openrlhf(tmp_path / "old", model, name="reward_head", value_head_prefix=None, mean=None, std=None)
    imported = read_foreign(folder)
    check_rewards(imported, model.rewards(TEXTS))
    assert (imported.format, imported.facts) == ("openrlhf", {"head": "reward_head"})


def test_a_stock_classifier_that_kept_openrlhf_settings_needs_no_import(chat_tokenizer, tmp_path):
    folder = openrlhf(tmp_path, Foreign("llama", chat_tokenizer), name="score")
    content = json.loads((folder / "config.json").read_text())
    content["architectures"] = ["LlamaForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="needs no import"):
        detect_format(folder)


def test_xtuner_training_checkpoints_hold_their_weights_one_level_down(chat_tokenizer, tmp_path):
    model = Foreign("llama", chat_tokenizer)
    folder = as_pickle(xtuner_training(tmp_path, model), wrap="state_dict", name="iter_500.pth")
    imported = read_foreign(folder, allow_pickle=True)
    check_rewards(imported, model.rewards(TEXTS))


def test_experts_saved_one_by_one_are_put_together(chat_tokenizer, tmp_path):
    """transformers holds a mixture's experts as one tensor, but keeps the files as they always were."""
    model = Foreign("llama", chat_tokenizer)
    config = MixtralConfig(
        vocab_size=len(chat_tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        initializer_range=0.2,
    )
    model.language_model = AutoModelForCausalLM.from_config(config).eval()
    folder = llama_factory(tmp_path, model)
    assert any(".experts.3." in key for key in load_file(folder / "model.safetensors"))
    check_rewards(read_foreign(folder), model.rewards(TEXTS, bias=0.75))


def test_buffers_of_earlier_releases_are_left_out(chat_tokenizer, tmp_path):
    model = Foreign("llama", chat_tokenizer)
    folder = starling(tmp_path, model)
    weights = load_file(folder / "model.safetensors")
    weights["transformer.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, folder / "model.safetensors")
    check_rewards(read_foreign(folder), model.rewards(TEXTS))
    model = Foreign("gpt2", chat_tokenizer)
    folder = trl(tmp_path / "gpt2", model)
    weights = load_file(folder / "model.safetensors")
    weights["transformer.h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
    weights["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(weights, folder / "model.safetensors")
    check_rewards(read_foreign(folder), model.rewards(TEXTS, bias=0.75))


def test_half_precision_weights_are_read_in_float32(chat_tokenizer, tmp_path):
    model = Foreign("llama", chat_tokenizer)
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            parameter.copy_(parameter.bfloat16())
    model.head = model.head.bfloat16().float()
    folder = ultrarm(tmp_path, model)
    weights = load_file(folder / "model.safetensors")
    save_file({key: tensor.bfloat16() for key, tensor in weights.items()}, folder / "model.safetensors")
    imported = read_foreign(folder)
    assert imported.model.dtype == torch.float32
    check_rewards(imported, model.rewards(TEXTS))


# --- files -----------------------------------------------------------------------------------------------------------


def shard(folder: Path, count: int = 3, pickled: bool = False) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem, end = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    index = {}
    for place in range(count):
        name = f"{stem}-{place + 1:05}-of-{count:05}.{end}"
        part = {key: weights[key] for key in sorted(weights)[place::count]}
        if pickled:
            torch.save(part, folder / name)
        else:
            save_file(part, folder / name)
        index.update(dict.fromkeys(part, name))
    (folder / f"{stem}.{end}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


@pytest.mark.parametrize("pickled", [False, True])
def test_sharded_weights(pickled, chat_tokenizer, tmp_path):
    model = Foreign("llama", chat_tokenizer)
    folder = trl(tmp_path, model)
    shard(folder, pickled=pickled)
    check_rewards(read_foreign(folder, allow_pickle=pickled), model.rewards(TEXTS, bias=0.75))
    next(folder.glob("*-00002-*")).unlink()
    with pytest.raises(ValueError, match="00002-of-00003"):
        read_foreign(folder, allow_pickle=True)


def test_pickles_are_opened_only_when_allowed_and_never_run_code(chat_tokenizer, tmp_path):
    model = Foreign("llama", chat_tokenizer)
    folder = as_pickle(deepspeed_chat(tmp_path, model))
    for call in (detect_format, read_foreign):
        with pytest.raises(ValueError, match=r"pytorch_model\.bin is a pickle.*allow_pickle=True.*--allow-pickle"):
            call(folder)
    assert detect_format(folder, allow_pickle=True) == "deepspeed_chat"
    check_rewards(read_foreign(folder, allow_pickle=True), model.rewards(TEXTS))
    weights = torch.load(folder / "pytorch_model.bin")
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    check_rewards(read_foreign(folder, allow_pickle=True), model.rewards(TEXTS))

    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "harmed").touch, ())

    torch.save({**weights, "harm": Harmful()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="is not a file with tensors"):
        read_foreign(folder, allow_pickle=True)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("content", [b"", b"no zip", b"\x80\x04N."])
def test_a_damaged_pickle_is_refused(content, chat_tokenizer, tmp_path):
    folder = as_pickle(deepspeed_chat(tmp_path, Foreign("llama", chat_tokenizer)))
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        read_foreign(folder, allow_pickle=True)


@pytest.mark.parametrize("keep", [0, 4, 200, -100])
def test_a_truncated_file_is_refused(keep, chat_tokenizer, tmp_path):
    folder = trl(tmp_path, Foreign("llama", chat_tokenizer))
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        read_foreign(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": "../../etc/passwd"}}'])
def test_a_damaged_index_is_refused(content, chat_tokenizer, tmp_path):
    folder = trl(tmp_path, Foreign("llama", chat_tokenizer))
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
        read_foreign(folder)


def test_an_index_may_only_name_files_in_its_folder(chat_tokenizer, tmp_path):
    folder = trl(tmp_path / "model", Foreign("llama", chat_tokenizer))
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    index = {"weight_map": {"v_head.summary.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="in the same folder"):
        read_foreign(folder)


def test_several_weight_files_without_index_are_refused(chat_tokenizer, tmp_path):
    folder = as_pickle(deepspeed_chat(tmp_path, Foreign("llama", chat_tokenizer)), name="iter_1.pth")
    (folder / "iter_2.pth").write_bytes((folder / "iter_1.pth").read_bytes())
    with pytest.raises(ValueError, match=r"iter_1\.pth, iter_2\.pth"):
        read_foreign(folder, allow_pickle=True)


def test_the_original_files_are_not_changed(chat_tokenizer, tmp_path):
    folder = trl(tmp_path, Foreign("llama", chat_tokenizer))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    imported = read_foreign(folder)
    with torch.no_grad():
        for parameter in imported.model.parameters():
            parameter.zero_()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_tokenizer_and_configuration_may_come_from_the_base_model(chat_tokenizer, tmp_path):
    model = Foreign("llama", chat_tokenizer)
    model.language_model.save_pretrained(tmp_path / "base")
    model.tokenizer.save_pretrained(tmp_path / "base")
    folder = as_pickle(starling(tmp_path / "rm", model), name="starling.pt")
    for path in folder.iterdir():
        if path.suffix != ".pt":
            path.unlink()
    with pytest.raises(ValueError, match=r"no config\.json.*base_model"):
        read_foreign(folder, allow_pickle=True)
    imported = read_foreign(folder, allow_pickle=True, base_model=tmp_path / "base")
    check_rewards(imported, model.rewards(TEXTS))


def test_a_folder_without_tokenizer_names_base_model(chat_tokenizer, tmp_path):
    folder = trl(tmp_path, Foreign("llama", chat_tokenizer))
    for path in folder.glob("token*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"no tokenizer.*base_model"):
        read_foreign(folder)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"v_head.summary.0.weight": (16, HIDDEN), "v_head.summary.2.weight": (1, 16)}, "has several"),  # GRM sftreg
        ({"score.0.weight": (HIDDEN, HIDDEN), "score.2.weight": (1, HIDDEN)}, "has several"),  # Qwen2.5-Math-RM
        ({"regression_layer.weight": (19, HIDDEN), "gating.layers.0.weight": (8, HIDDEN)}, "objectives"),  # ArmoRM
        ({"score.weight": (10, HIDDEN), "gating.layers.0.weight": (8, HIDDEN)}, "several objectives"),  # URM
        ({"score.weight": (10, HIDDEN)}, "10 labels"),
        ({"v_head.weight": (5, HIDDEN)}, r"\(5, 32\)"),
        ({"v_head.summary.weight": (1, 3)}, "shape"),
        ({"some_head.weight": (1, HIDDEN)}, "some_head.weight"),
        ({"v_head.weight": (1, HIDDEN), "other.weight": (1, HIDDEN)}, "other.weight"),
        ({"v_head.weight": (1, HIDDEN), "model.layers.0.q_proj.lora_A.weight": (1, HIDDEN)}, "LoRA"),
        ({"v_head.weight": (1, HIDDEN), "model.layers.0.self_attn.q_proj.bias": (HIDDEN,)}, "unexpected"),
    ],
)
def test_heads_that_no_stock_class_holds_are_refused(head, message, chat_tokenizer, tmp_path):
    model = Foreign("llama", chat_tokenizer)
    tensors = {key: torch.randn(shape) for key, shape in head.items()}
    folder = write(tmp_path, model, model.weights("model.", tensors), architectures=["LlamaForRewardModel"])
    with pytest.raises(ValueError, match=message):
        read_foreign(folder)


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_given_by_name_refuses_what_is_not_in_it(format, chat_tokenizer, tmp_path):
    model = Foreign("llama", chat_tokenizer)
    head = {"some_head.weight": model.head}
    folder = write(tmp_path, model, model.weights("model.", head), architectures=["LlamaRewardModel"])
    with pytest.raises(ValueError, match=str(tmp_path)):
        read_foreign(folder, format)


def test_an_unknown_layout_is_described(chat_tokenizer, tmp_path):
    model = Foreign("llama", chat_tokenizer)
    weights = model.weights("model.", {"my_head.weight": model.head})
    folder = write(tmp_path, model, weights, architectures=["MyRewardModel"])
    with pytest.raises(ValueError, match="no supported layout") as error:
        detect_format(folder)
    for part in ("config.json", "model.safetensors", "MyRewardModel", "my_head.weight", *FORMATS):
        assert part in str(error.value)


@pytest.mark.parametrize("layout", ["trl", "openrlhf", "deepspeed_chat"])
def test_missing_backbone_weights_are_named(layout, chat_tokenizer, tmp_path):
    folder = LAYOUTS[layout][0](tmp_path, Foreign("llama", chat_tokenizer))
    weights = load_file(folder / "model.safetensors")
    lost = next(key for key in weights if key.endswith("layers.1.mlp.up_proj.weight"))
    weights.pop(lost)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 weights are missing .*model\.layers\.1\.mlp\.up_proj\.weight"):
        read_foreign(folder)


def test_a_plain_language_model_has_no_reward(make_model_folder):
    with pytest.raises(ValueError, match="without a reward head"):
        detect_format(make_model_folder("qwen3"))


@pytest.mark.parametrize(("labels", "message"), [(1, "needs no import"), (2, "2 labels")])
def test_classifiers_are_distinguished_by_their_labels(labels, message, make_model_folder, tmp_path):
    folder = make_model_folder("llama")
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels)
    model.save_pretrained(tmp_path / "classifier")
    with pytest.raises(ValueError, match=message):
        detect_format(tmp_path / "classifier")


def test_an_adapter_without_value_head_needs_no_import(chat_tokenizer, tmp_path):
    model = Foreign("llama", chat_tokenizer)
    adapted(model, tmp_path / "base").save_pretrained(tmp_path / "lora")
    with pytest.raises(ValueError, match=r"adapter .* does not need an import"):
        detect_format(tmp_path / "lora")


def test_encoders_are_refused(pair_tokenizer, make_model_folder):
    folder = make_model_folder("bert")
    weights = load_file(folder / "model.safetensors")
    weights = {key: tensor for key, tensor in weights.items() if key.startswith("bert.")}
    save_file({**weights, "v_head.weight": torch.randn(1, HIDDEN)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="requires a decoder"):
        read_foreign(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "internlm2", "auto_map": {"AutoConfig": "a.B"}}, r"internlm2.*trust_remote_code"),
        ({"model_type": "gpt_neox_reward_model"}, "gpt_neox_reward_model"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised"),
        ({"vocab_size": 7}, "another shape"),
    ],
)
def test_configurations_that_no_stock_class_fits_are_refused(settings, message, chat_tokenizer, tmp_path):
    folder = xtuner(tmp_path, Foreign("llama", chat_tokenizer))
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **settings}))
    with pytest.raises(ValueError, match=message):
        read_foreign(folder)


@pytest.mark.parametrize("content", ["{", "[1]", "\x00"])
def test_a_malformed_configuration_is_refused(content, chat_tokenizer, tmp_path):
    folder = trl(tmp_path, Foreign("llama", chat_tokenizer))
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        read_foreign(folder)


def test_a_missing_folder_and_an_unknown_format_are_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no folder"):
        detect_format(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"'auto' or one of llama_factory"):
        read_foreign(tmp_path, "mine")
    with pytest.raises(ValueError, match=r"no supported layout\. Files: none"):
        read_foreign(tmp_path)


def test_the_reference_is_the_stock_backbone(chat_tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    """`AutoModel`, loaded by transformers itself, gives the hidden states that the references above use."""
    model = Foreign("gpt_neox", chat_tokenizer)
    backbone = AutoModel.from_pretrained(llama_factory(tmp_path, model))
    ids = torch.arange(5, 35).reshape(3, 10)
    with torch.no_grad():
        torch.testing.assert_close(backbone(ids)[0], model.backbone(ids)[0])
