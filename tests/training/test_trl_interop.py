"""Comparison with TRL 1.16: quick start, settings, token ids, loss, and use of a saved reward model in TRL."""

import copy
import dataclasses
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import randomize_head
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import hf_reward
from hf_reward import (
    AutoModelForRewardScoring,
    FormatRule,
    PreferenceFormatError,
    PreparationRule,
    prepare_preferences,
    prepare_tokenizer,
)
from hf_reward.data.preferences import to_preference_row

trl = pytest.importorskip("trl")
pytestmark = pytest.mark.interop

HH = Path(__file__).parents[3] / "shared" / "data" / "hh" / "harmless_test.jsonl"
QUIET: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}
TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}{{ style or '' }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the default `output_dir` is relative


# --- the quick start -------------------------------------------------------------------------------------------------


def quick_start(trainer_class: Any, folder: Path, rows: list[dict[str, Any]]) -> Any:
    """Run TRL's documented quick start with a local model and dataset."""
    dataset = Dataset.from_list(rows)
    trainer = trainer_class(
        model=str(folder),
        train_dataset=dataset,
    )
    trainer.train()
    return trainer


@pytest.mark.skipif(torch.accelerator.is_available(), reason="describes a machine without accelerator")
def test_quick_start_runs_with_only_the_import_changed(make_model_folder, chat_pairs, monkeypatch):
    folder = make_model_folder("qwen2")
    with pytest.raises(ValueError, match="doesn't support bf16"):
        quick_start(trl.RewardTrainer, folder, chat_pairs)
    trainer = quick_start(hf_reward.RewardTrainer, folder, chat_pairs)
    assert trainer.state.global_step == 6
    assert trainer.args.output_dir == "qwen2-Reward"
    assert trainer.state.log_history[-1]["train_loss"] > 0


# --- settings --------------------------------------------------------------------------------------------------------

TRIED = {
    "chat_template_path": "template.jinja",
    "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>",
    "pad_to_multiple_of": 8,
    "learning_rate": 3e-5,
    "model_init_kwargs": {"dtype": "float32"},
    "trust_remote_code": True,
    "disable_dropout": False,
    "dataset_num_proc": 2,
    "max_length": 64,
    "center_rewards_coefficient": 0.01,
    "activation_offloading": True,
    "logging_steps": 3,
    "gradient_checkpointing": True,
    "bf16": True,
    "lr_scheduler_kwargs": {},
    "use_liger_kernel": False,
    "torch_empty_cache_steps": 5,
}
"""A value for each field that TRL's `RewardConfig` defines or redefines, mostly not the default."""


def fields_of(config: Any) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(config)}


def test_every_field_of_trls_config_is_one_of_ours():
    assert fields_of(trl.RewardConfig).keys() <= fields_of(hf_reward.RewardConfig).keys()
    own = {name for base in trl.RewardConfig.__mro__[:2] for name in vars(base).get("__annotations__", {})}
    assert own - {"_VALID_DICT_FIELDS"} == TRIED.keys()


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("name", TRIED)
def test_settings_of_trl_are_accepted(name):
    config = hf_reward.RewardConfig(**{"output_dir": "out", "use_cpu": True, name: TRIED[name]})
    assert getattr(config, name) == TRIED[name]


def test_settings_without_meaning_here_are_refused_with_a_reason(make_model_folder, chat_pairs):
    with pytest.raises(ValueError, match="Use `label_smoothing`"):
        hf_reward.RewardConfig(output_dir="out", label_smoothing_factor=0.1)
    model = AutoModelForRewardScoring.from_pretrained(make_model_folder("llama"))
    args = hf_reward.RewardConfig(output_dir="out", use_cpu=True, model_init_kwargs={"dtype": "float32"})
    with pytest.raises(ValueError, match="cannot be set for a loaded model"):
        hf_reward.RewardTrainer(model=model, args=args, train_dataset=chat_pairs)


# --- differences ----------------------------------------------------------------------------------------------------

DIFFERENT_FIELDS = {"gradient_checkpointing": (True, None)}
"""Fields with a different default: (TRL, hf_reward). Here it follows `activation_checkpointing`, which is off."""

DIFFERENT_BEHAVIOUR = {
    "settings without use_cpu on a CPU": ("ValueError", "float32"),
    "autocast with use_cpu": ("bfloat16", "float32"),
    "gradient checkpointing": (True, False),
    "rows beyond max_length": ("dropped", "prompt cut"),
    "rows of equal responses": ("kept", "dropped"),
    "prompt repeated in both sides": ("read twice", "read once"),
    "new head": ("random", "zero"),
    "pad token where pad == eos": ("<|im_end|>", "<|endoftext|>"),
    "the caller's tokenizer": ("changed", "copied"),
    "model_init_kwargs with a loaded model": ("ignored", "ValueError"),
}
"""Different behaviour of the defaults: (TRL, hf_reward). The table in docs/migration.md shows how to restore TRL's."""


def test_defaults_of_fields_differ_only_as_listed():
    theirs, ours = fields_of(trl.RewardConfig), fields_of(hf_reward.RewardConfig)
    assert {name: (theirs[name], ours[name]) for name in theirs if theirs[name] != ours[name]} == DIFFERENT_FIELDS


@pytest.mark.skipif(torch.accelerator.is_available(), reason="describes a machine without accelerator")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_behaviour_differs_only_as_listed(make_model_folder, chat_tokenizer, chat_pairs):
    folder = make_model_folder("llama")
    seen = {
        key: tuple(look(library, folder, copy.deepcopy(chat_tokenizer), chat_pairs) for library in (trl, hf_reward))
        for key, look in LOOKS.items()
    }
    assert seen == DIFFERENT_BEHAVIOUR


def autocast(library: Any, **settings: Any) -> str:
    try:
        config = library.RewardConfig(output_dir="out", **settings)
    except ValueError:
        return "ValueError"
    return "bfloat16" if config.bf16 else "float32"


def build(library: Any, model: Any, tokenizer: Any, rows: list[dict[str, Any]], **settings: Any) -> Any:
    args = library.RewardConfig(output_dir="out", **{**QUIET, **settings})
    data = Dataset.from_list(rows)
    return library.RewardTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)


def prepared_ids(trainer: Any) -> list[tuple[list[int], list[int]]]:
    """Return (chosen, rejected) ids of the training rows of a trainer of either library."""
    data = trainer.train_dataset
    if "chosen_ids" in data.column_names:
        return [(row["chosen_ids"], row["rejected_ids"]) for row in data]
    return [tuple(row["input_ids"]) for row in data]


def look_at_long_rows(library: Any, folder: Path, tokenizer: Any, rows: list[dict[str, Any]]) -> str:
    long = {**rows[0], "prompt": [{"role": "user", "content": "word " * 100}]}
    trainer = build(library, str(folder), tokenizer, [rows[1], long], max_length=64)
    lengths = [max(map(len, pair)) for pair in prepared_ids(trainer)]
    return "dropped" if len(lengths) == 1 else "prompt cut" if max(lengths) <= 64 else "kept"


def look_at_equal_responses(library: Any, folder: Path, tokenizer: Any, rows: list[dict[str, Any]]) -> str:
    equal = {**rows[0], "rejected": rows[0]["chosen"]}
    return "kept" if len(build(library, str(folder), tokenizer, [rows[1], equal]).train_dataset) == 2 else "dropped"


def look_at_repeated_prompts(library: Any, folder: Path, tokenizer: Any, rows: list[dict[str, Any]]) -> str:
    repeated = rows[0] | {side: rows[0]["prompt"] + rows[0][side] for side in ("chosen", "rejected")}
    plain, doubled = (prepared_ids(build(library, str(folder), tokenizer, [row])) for row in (rows[0], repeated))
    return "read once" if plain == doubled else "read twice"


def look_at_head(library: Any, folder: Path, tokenizer: Any, rows: list[dict[str, Any]]) -> str:
    return "random" if build(library, str(folder), tokenizer, rows).model.score.weight.any() else "zero"


def look_at_callers_tokenizer(library: Any, folder: Path, tokenizer: Any, rows: list[dict[str, Any]]) -> str:
    tokenizer.pad_token = None
    build(library, str(folder), tokenizer, rows)
    return "copied" if tokenizer.pad_token is None else "changed"


def look_at_idle_init_kwargs(library: Any, folder: Path, tokenizer: Any, rows: list[dict[str, Any]]) -> str:
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    randomize_head(model)
    try:
        build(library, model, tokenizer, rows, model_init_kwargs={"dtype": "float32"})
    except ValueError:
        return "ValueError"
    return "ignored"


LOOKS: dict[str, Any] = {
    "settings without use_cpu on a CPU": lambda library, *_: autocast(library),
    "autocast with use_cpu": lambda library, *_: autocast(library, use_cpu=True),
    "gradient checkpointing": lambda library, *_: library.RewardConfig("out", **QUIET).gradient_checkpointing,
    "rows beyond max_length": look_at_long_rows,
    "rows of equal responses": look_at_equal_responses,
    "prompt repeated in both sides": look_at_repeated_prompts,
    "new head": look_at_head,
    "pad token where pad == eos": lambda library, folder, tokenizer, rows: (
        build(library, str(folder), tokenizer, rows).processing_class.pad_token
    ),
    "the caller's tokenizer": look_at_callers_tokenizer,
    "model_init_kwargs with a loaded model": look_at_idle_init_kwargs,
}


# --- token ids -------------------------------------------------------------------------------------------------------


def ids_of_trl(rows: list[dict[str, Any]], tokenizer: Any, max_length: int | None = None) -> list[list[list[int]]]:
    limits = Namespace(dataset_num_proc=None, max_length=max_length)
    prepared = trl.RewardTrainer._prepare_dataset(None, Dataset.from_list(rows), tokenizer, limits, "train")
    return [[row["chosen_ids"], row["rejected_ids"]] for row in prepared]


def ids_of_ours(rows: list[dict[str, Any]], tokenizer: Any, max_length: int | None = None) -> list[list[list[int]]]:
    rule = PreparationRule(format=FormatRule(max_length=max_length, over_length="drop"))
    prepared, _ = prepare_preferences(Dataset.from_list(rows), tokenizer, rule)
    return list(prepared["input_ids"])


def without_prompt_column(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in rows]


def test_same_ids_of_conversations(chat_pairs, chat_tokenizer):
    for rows in (chat_pairs, without_prompt_column(chat_pairs)):
        assert ids_of_ours(rows, chat_tokenizer) == ids_of_trl(rows, chat_tokenizer)


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_same_ids_of_texts(kind, text_pairs, request):
    tokenizer = request.getfixturevalue(f"{kind}_tokenizer")
    for rows in (text_pairs, without_prompt_column(text_pairs)):
        assert ids_of_ours(rows, tokenizer) == ids_of_trl(rows, tokenizer)


def test_same_ids_of_texts_that_end_with_eos_already(text_pairs, text_tokenizer):
    rows = [{**row, "chosen": row["chosen"] + text_tokenizer.eos_token} for row in text_pairs]
    assert ids_of_ours(rows, text_tokenizer) == ids_of_trl(rows, text_tokenizer)


@pytest.mark.parametrize("as_text", [False, True])
def test_same_ids_with_tools_and_template_settings(as_text, chat_pairs, chat_tokenizer):
    chat_tokenizer.chat_template = TOOL_TEMPLATE
    tools = json.dumps([TOOL]) if as_text else [TOOL]
    rows = [{**row, "tools": tools, "chat_template_kwargs": {"style": "brief"}} for row in chat_pairs]
    ids = ids_of_ours(rows, chat_tokenizer)
    assert ids == ids_of_trl(rows, chat_tokenizer)
    assert '"name": "add"' in chat_tokenizer.decode(ids[0][0])
    assert "brief" in chat_tokenizer.decode(ids[0][0])


def test_drop_keeps_exactly_the_rows_that_trl_keeps(chat_pairs, chat_tokenizer):
    rows = [{**row, "prompt": [{"role": "user", "content": "word " * n}]} for n, row in enumerate(chat_pairs, 1)]
    longest = [max(map(len, pair)) for pair in ids_of_trl(rows, chat_tokenizer)]
    limit = sorted(longest)[7]
    kept = ids_of_trl(rows, chat_tokenizer, limit)
    assert 0 < len(kept) < len(rows)
    assert ids_of_ours(rows, chat_tokenizer, limit) == kept


@pytest.mark.skipif(not HH.is_file(), reason="the HH rows are not here")
@pytest.mark.parametrize("layout", ["pairs", "hh"])
def test_same_ids_of_real_rows(layout, chat_tokenizer):
    with HH.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(200), strict=False)]
    if layout == "hh":
        rows = list(conversations(rows))
    assert ids_of_ours(rows, chat_tokenizer, 512) == ids_of_trl(rows, chat_tokenizer, 512)


def conversations(rows: list[dict[str, Any]]) -> Any:
    """Return HH transcripts as message lists, without the few invalid ones."""
    for row in rows:
        try:
            parsed = to_preference_row(row, layout="hh")
        except PreferenceFormatError:
            continue
        yield {"prompt": parsed.prompt, "chosen": parsed.responses[0], "rejected": parsed.responses[1]}


# --- loss ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("center", [None, 0.05])
@pytest.mark.parametrize("margin", [False, True])
def test_same_loss_and_gradient_on_the_same_batch(arch, center, margin, make_model_folder, chat_pairs, chat_tokenizer):
    model = AutoModelForSequenceClassification.from_pretrained(make_model_folder(arch), num_labels=1)
    randomize_head(model)
    tokenizer = prepare_tokenizer(chat_tokenizer)  # a pad token that ends no sequence, for both
    rows = [{**row, "margin": number / 4} if margin else row for number, row in enumerate(chat_pairs)]
    losses, gradients = [], []
    for library in (trl, hf_reward):
        settings = {"center_rewards_coefficient": center, "gradient_checkpointing": False}
        trainer = build(library, copy.deepcopy(model), copy.deepcopy(tokenizer), rows, **settings)
        batch = trainer.data_collator([trainer.train_dataset[place] for place in range(6)])
        trainer.model.train()
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        losses.append(loss.item())
        gradients.append(trainer.model.score.weight.grad)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


# --- a saved model in TRL -------------------------------------------------------------------------------------------


def test_a_saved_model_works_as_a_reward_function_of_grpo(make_model_folder, chat_pairs, chat_tokenizer):
    model = AutoModelForRewardScoring.from_pretrained(make_model_folder("qwen3"))
    randomize_head(model)
    trainer = build(hf_reward, model, chat_tokenizer, chat_pairs, num_train_epochs=1, learning_rate=1e-3)
    trainer.train()
    trainer.save_model("saved")
    rewards = torch.from_numpy(trainer.predict(Dataset.from_list(chat_pairs)).predictions)
    for side, name in enumerate(("chosen", "rejected")):
        torch.testing.assert_close(grpo_rewards("saved", chat_pairs, name), rewards[:, side], rtol=1e-5, atol=1e-5)
    assert rewards.std() > 0.01


def grpo_rewards(folder: str, rows: list[dict[str, Any]], side: str) -> torch.Tensor:
    """Compute rewards like TRL's `GRPOTrainer` with `reward_funcs=folder` (`__init__` and `_calculate_rewards`)."""
    from trl.data_utils import apply_chat_template

    reward_func = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(reward_func.config._name_or_path)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    reward_func.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    messages = [{"messages": row["prompt"] + row[side]} for row in rows]
    texts = [apply_chat_template(conversation, tokenizer)["text"] for conversation in messages]
    inputs = tokenizer(text=texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
    with torch.inference_mode():
        return reward_func(**inputs).logits[:, 0]
