"""The snippets of the card run and give the reward of hf_reward's own model."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from card_records import front_matter, full_record, make_record, render
from conftest import randomize_head
from peft import LoraConfig
from saved_models import reward_model, tokenizer_of
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_reward import AutoModelForRewardScoring, CheckpointRecord, prepare_tokenizer, save_merged
from hf_reward.modeling.checkpoint_record import describe, template_hash
from hf_reward.publishing import stock_scoring
from hf_reward.publishing.export import save_adapter
from hf_reward.publishing.saved_model import SavedModel
from hf_reward.publishing.stock_scoring import load_adapter
from hf_reward.publishing.verify import verify_checkpoint


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def saved_model(
    make_model_folder, arch: str, tokenizer: Any = None, lora: bool = False
) -> tuple[Path, CheckpointRecord]:
    base = make_model_folder(arch, tokenizer=tokenizer)
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(base))
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False) if lora else None
    model = AutoModelForRewardScoring.from_pretrained(base, peft_config=config)
    randomize_head(model)
    record = make_record(
        reads="last_token" if arch in ("llama", "granite") else "pooled",
        template_hash=template_hash(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = base.parent / f"{arch}-reward"
    save_merged(model, tokenizer, folder, verify=False)
    return (folder / "adapter" if lora else folder), record


def run_snippets(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Run the blocks one after the other in one namespace, as a reader would; the reward after each that sets it."""
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    found = []
    for block in python_blocks(text):
        if "GRPOTrainer" in block:
            continue
        names.pop("reward", None)
        code = block.replace(f'"{folder.name}"', repr(str(folder)))
        assert str(folder) in code or "model=model" in code or "save_merged" in code
        exec(compile(code, "card", "exec"), names)
        found += [names["reward"]] if "reward" in names else []
    return found


def expected_reward(folder: Path, text: str | None = None) -> float:
    """The reward computed from token ids made by hand, in hf_reward's own model."""
    model = AutoModelForRewardScoring.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.chat_template:
        ids = tokenizer(
            "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n4.<|im_end|>\n", return_tensors="pt"
        )
    elif text is None:
        ids = tokenizer("What is 2 + 2?", "4.", return_tensors="pt")
    else:
        ids = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        return model(**ids).logits[0, 0].item()


@pytest.mark.parametrize("arch", ["llama", "bert"])
def test_the_snippets_give_the_same_reward(arch, make_model_folder, monkeypatch):
    folder, record = saved_model(make_model_folder, arch)
    text = render(folder, record)
    rewards = run_snippets(folder, text, monkeypatch)
    assert len(rewards) == 3
    assert rewards == pytest.approx([expected_reward(folder)] * 3, rel=1e-5)
    assert abs(rewards[0]) > 1e-3
    assert ("localhost:8000/score" in text) == (arch == "bert")
    assert ("Do not pass (prompt, response) pairs" in text) == (arch == "llama")


SECTIONS = [
    *(
        "Results at a glance",
        "Results on held-out pairs",
        "Benchmarks",
        "Reward scale and calibration",
        "Biases",
        "Limits",
    ),
    *("Usage", "Training", "Compatibility", "Licence", "Versions"),
]


@pytest.mark.parametrize("lora", [False, True])
def test_a_saved_card_has_results_before_compatibility(lora, make_model_folder):
    folder, _ = saved_model(make_model_folder, "llama", lora=lora)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE) == SECTIONS
    assert "same prompt.\n\n## Results at a glance\n\n- **Evaluation:** Not evaluated." in text


def test_snippets_without_a_chat_template_end_with_the_end_token(make_model_folder, text_tokenizer, monkeypatch):
    folder, record = saved_model(make_model_folder, "llama", text_tokenizer)
    record.format["separator"] = "\n\n"
    text = render(folder, record)
    assert 'text = prompt + "\\n\\n" + response + tokenizer.eos_token' in text
    rewards = run_snippets(folder, text, monkeypatch)
    assert rewards == pytest.approx([expected_reward(folder, "What is 2 + 2?\n\n4.<|endoftext|>")] * 3, rel=1e-5)


def test_snippets_of_an_adapter_merge_it_for_others(make_model_folder, monkeypatch):
    folder, record = saved_model(make_model_folder, "llama", lora=True)
    text = render(folder, record)
    assert inspect.getsource(load_adapter) in text
    assert "An adapter for a base model that was not recorded." in text
    rewards = run_snippets(folder, text, monkeypatch)
    assert len(rewards) == 3
    assert rewards == pytest.approx([expected_reward(folder)] * 3, rel=1e-4)
    assert expected_reward(folder / "merged") == pytest.approx(rewards[0], rel=1e-4)
    text = render(folder, full_record())
    assert front_matter(text)["base_model_relation"] == "adapter"


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_an_adapter_with_a_new_pad_token_loads_with_the_code_of_its_card(
    arch, make_model_folder, text_tokenizer, tmp_path, monkeypatch
):
    """`<|pad|>` is new here, so the base lacks its embedding: loading stock PEFT's usual way fails."""
    base = make_model_folder(arch, tokenizer=text_tokenizer)
    tokenizer = tokenizer_of(base)
    assert len(tokenizer) == len(text_tokenizer) + 1
    folder = tmp_path / "lora"
    model = reward_model(base, lora=True)
    save_adapter(SavedModel(model, tokenizer, describe(model, tokenizer)), folder)
    text = (folder / "README.md").read_text()
    rewards = run_snippets(folder, text.partition("With hf_reward")[0], monkeypatch)
    assert len(rewards) == 1
    assert rewards[0] == pytest.approx(expected_reward(folder, "What is 2 + 2?4.<|endoftext|>"), rel=1e-5)
    assert abs(rewards[0]) > 1e-3
    with pytest.raises((AssertionError, RuntimeError, IndexError)):
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, pad_token_id=tokenizer.pad_token_id)
    assert verify_checkpoint(folder).equal
    # What verification runs is what the card shows: an error in it is an error of the folder.
    monkeypatch.setattr(stock_scoring, "load_adapter", lambda folder, base, **options: 1 / 0)
    with pytest.raises(ValueError, match="division by zero"):
        verify_checkpoint(folder)


@pytest.mark.slow  # 20 s: a process of its own
def test_the_code_of_an_adapters_card_needs_no_hf_reward(make_model_folder, text_tokenizer, tmp_path):
    base = make_model_folder("llama", tokenizer=text_tokenizer)
    model, tokenizer, folder = reward_model(base, lora=True), tokenizer_of(base), tmp_path / "lora"
    save_adapter(SavedModel(model, tokenizer, describe(model, tokenizer)), folder)
    code = python_blocks((folder / "README.md").read_text())[0].replace('"lora"', repr(str(folder)))
    code += "\nimport sys\nassert 'hf_reward' not in sys.modules\nprint('REWARD', reward)\n"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reward = float(done.stdout.rpartition("REWARD")[2])
    assert reward == pytest.approx(expected_reward(folder, "What is 2 + 2?4.<|endoftext|>"), rel=1e-5)


def test_a_backbone_without_a_stock_class_is_loaded_through_hf_reward(make_model_folder, monkeypatch):
    folder, record = saved_model(make_model_folder, "granite")
    text = render(folder, record)
    assert "AutoModelForSequenceClassification" not in text
    rewards = run_snippets(folder, text, monkeypatch)
    assert rewards == pytest.approx([expected_reward(folder)] * 2, rel=1e-5)


@pytest.mark.parametrize(
    ("reads", "probes", "tokens", "line"),
    [
        ("pooled", [], None, "tokenizer(prompt, response, return"),
        ("last_token", [], None, "text = prompt + response + tokenizer.eos_token"),
        ("pooled", [{"text": "a"}], None, "text = prompt + response + tokenizer.eos_token"),
        ("last_token", [{"text": "a", "text_pair": "b"}], None, "tokenizer(prompt, response, return"),
        ("last_token", [], {"cls_token": "a", "sep_token": "b"}, "tokenizer(prompt, response, return"),
        ("pooled", [], {"eos_token": None}, "text = prompt + response\n"),
        ("last_token", [], {"eos_token": "x", "add_eos_token": True}, "text = prompt + response\n"),
    ],
)
def test_the_snippet_matches_the_text_format(reads, probes, tokens, line, tmp_path):
    if tokens is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokens))
    text = render(tmp_path, make_record(reads=reads, template_hash=None, probes={"conversations": probes}))
    assert line in text
    assert ("checks that a copy of this model gives" in text) == bool(probes)
    assert "GRPOTrainer" not in text


@pytest.mark.parametrize(
    ("architecture", "note"),
    [
        ("Qwen3ForSequenceClassification", "for this architecture, reward differences are correct"),
        ("LlamaForSequenceClassification", "it returns raw rewards."),
        ("MistralForSequenceClassification", "SGLang 0.5.23 has no reward head for this architecture."),
    ],
)
def test_the_sglang_note_depends_on_the_architecture(architecture, note, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    assert note in render(tmp_path, make_record())


@pytest.mark.slow
@pytest.mark.interop
def test_the_trl_snippet_trains_a_step_with_our_rewards(make_model_folder, tmp_path, monkeypatch):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    folder, record = saved_model(make_model_folder, "llama")
    text = render(folder, record)
    code = next(block for block in python_blocks(text) if "GRPOTrainer" in block)
    code = code.replace(f'"{folder.name}"', repr(str(folder))).replace(
        "your/policy", str(make_model_folder("llama", "p"))
    )
    prompts = Dataset.from_list([{"prompt": [{"role": "user", "content": "What is 2 + 2?"}]}] * 2)
    options = {"max_completion_length": 4, "num_generations": 2, "per_device_train_batch_size": 2, "max_steps": 1}
    args = GRPOConfig(output_dir=str(tmp_path / "out"), report_to="none", use_cpu=True, bf16=False, **options)
    names: dict[str, Any] = {"prompts": prompts}
    exec(code.replace("train_dataset", "args=args, train_dataset"), names | {"args": args}, names)
    trainer: GRPOTrainer = names["trainer"]
    seen: list[float] = []
    score = trainer.reward_funcs[0]
    assert isinstance(score, torch.nn.Module)
    score.register_forward_hook(lambda module, given, output: seen.extend(output.logits[:, 0].tolist()))
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "reward" in entry)
    assert seen
    assert logged["reward"] == pytest.approx(sum(seen) / len(seen), rel=1e-4)
