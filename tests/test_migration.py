"""Code for TRL's `RewardTrainer` runs with hf_reward: a test for each behaviour that TRL's tests require."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from reward_parity import assert_same_rewards
from training_runs import load, make_trainer, settings
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hf_reward import AutoModelForRewardScoring, RewardTrainer
from hf_reward.modeling.adapters import frozen_heads_as_buffers
from hf_reward.preprocessing.data_collator import DataCollatorForPreference
from hf_reward.training.collators import packs


def stock_model(folder, tokenizer, labels=1):
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels, dtype="float32")
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


def changed(before, trainer):
    return {name: not torch.equal(value, trainer.model.get_parameter(name)) for name, value in before.items()}


def parameters(trainer):
    return {name: value.clone() for name, value in trainer.model.named_parameters()}


# --- adapters --------------------------------------------------------------------------------------------------------


def test_under_fsdp_the_frozen_copy_of_the_head_stays_a_parameter(make_model_folder, monkeypatch):
    """accelerate shards only parameters, and fails on an unsharded buffer in the state dict."""
    model = AutoModelForRewardScoring.from_pretrained(
        make_model_folder("qwen2"), peft_config=LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])
    )
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    frozen_heads_as_buffers(model)
    assert any("original_module" in name for name, _ in model.named_parameters())
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    frozen_heads_as_buffers(model)
    assert not any("original_module" in name for name, _ in model.named_parameters())
    assert any("original_module" in name for name, _ in model.named_buffers())


def test_the_head_of_a_callers_adapter_is_trained_and_saved(
    make_model_folder, tmp_path, chat_pairs, chat_tokenizer, caplog
):
    folder = make_model_folder("qwen2")
    model = get_peft_model(stock_model(folder, chat_tokenizer), LoraConfig())
    trainer = make_trainer(
        model, chat_pairs, tmp_path / "run", processing_class=chat_tokenizer, learning_rate=1e-2, num_train_epochs=2
    )
    (message,) = [
        each.message for each in caplog.records if "neither trained nor saved the reward head" in each.message
    ]
    assert "(score)" in message
    assert "padded, not packed" not in caplog.text, "an adapter does not make a decoder an encoder"
    before = parameters(trainer)
    trainer.train()
    moved = changed(before, trainer)
    assert {name for name, value in moved.items() if value} == {
        name for name in moved if "lora_" in name or "score" in name
    }
    assert not any("original_module" in name for name in moved)
    assert_same_rewards(trainer, chat_pairs[:3], folder=tmp_path / "saved")


def test_an_adapter_for_sequence_classification_is_still_a_decoder(
    make_model_folder, tmp_path, chat_pairs, chat_tokenizer, caplog
):
    model = get_peft_model(stock_model(make_model_folder("llama"), chat_tokenizer), LoraConfig(task_type="SEQ_CLS"))
    trainer = make_trainer(model, chat_pairs, tmp_path / "run", processing_class=chat_tokenizer)
    assert packs(trainer.data_collator)
    assert "encoder" not in caplog.text
    trainer.train()
    assert_same_rewards(trainer, chat_pairs[:3], folder=tmp_path / "saved")


def test_a_head_among_the_targets_is_trained_in_full(make_model_folder, tmp_path, chat_pairs, caplog):
    config = LoraConfig(target_modules=["q_proj", "score"])
    trainer = make_trainer(make_model_folder("llama"), chat_pairs, tmp_path / "run", peft_config=config)
    assert "`target_modules` names the reward head (score). The head is fully trained and saved" in caplog.text
    assert set(config.target_modules) == {"q_proj", "score"}, "the caller's configuration is not changed"
    before = parameters(trainer)
    trainer.train()
    moved = changed(before, trainer)
    assert moved["base_model.model.score.modules_to_save.default.weight"]
    assert not [name for name in moved if "score" in name and "lora" in name]
    assert_same_rewards(trainer, chat_pairs[:3], folder=tmp_path / "saved")
    with pytest.raises(ValueError, match="only names the reward head"):
        make_trainer(make_model_folder("llama"), chat_pairs, tmp_path, peft_config=LoraConfig(target_modules=["score"]))


def test_the_head_without_its_adapter_is_the_one_from_before(make_model_folder, tmp_path, chat_pairs):
    config = LoraConfig(target_modules=["q_proj"])
    trainer = make_trainer(make_model_folder("llama"), chat_pairs, tmp_path / "run", peft_config=config)
    trainer.train()
    batch = trainer.processing_tokenizer("some text", return_tensors="pt")
    with torch.no_grad():
        assert trainer.model(**batch).logits.abs().max() > 0
        with trainer.model.disable_adapter():
            assert trainer.model(**batch).logits.abs().max() == 0, "a new head is zero"
    trainer.save_model()
    again = load(tmp_path / "run")
    assert isinstance(again, PeftModel)
    went_on = make_trainer(again, chat_pairs, tmp_path / "more", processing_class=trainer.processing_tokenizer)
    before = parameters(went_on)
    went_on.train()
    assert any(value for name, value in changed(before, went_on).items() if "score" in name)


# --- refused models --------------------------------------------------------------------------------------------------


def test_a_model_that_is_not_a_reward_model_is_refused_with_its_name(
    make_model_folder, tmp_path, chat_pairs, chat_tokenizer
):
    folder = make_model_folder("llama")
    language_model = AutoModelForCausalLM.from_pretrained(folder)
    for model in (language_model, get_peft_model(language_model, LoraConfig())):
        with pytest.raises(ValueError, match="is the language model LlamaForCausalLM"):
            make_trainer(model, chat_pairs, tmp_path, processing_class=chat_tokenizer)
    with pytest.raises(ValueError, match=r"has `num_labels=2`, but reward models require `num_labels=1`"):
        make_trainer(stock_model(folder, chat_tokenizer, 2), chat_pairs, tmp_path, processing_class=chat_tokenizer)


def test_a_trainer_needs_data(make_model_folder, tmp_path, chat_pairs):
    folder = str(make_model_folder("llama"))
    with pytest.raises(ValueError, match="`train_dataset` is required"):
        RewardTrainer(model=folder, args=settings(tmp_path))
    trainer = RewardTrainer(model=folder, args=settings(tmp_path), eval_dataset=chat_pairs)
    assert trainer.evaluate()["eval_num_pairs"] == len(chat_pairs)
    with pytest.raises(ValueError, match="train_dataset"):
        trainer.train()


# --- collator --------------------------------------------------------------------------------------------------------


def test_rows_of_trl_are_collated_as_trl_does():
    rows = [
        {"chosen_ids": [1, 2, 3], "rejected_ids": [4, 5], "margin": 0.5},
        {"chosen_ids": [6, 7], "rejected_ids": [8], "margin": 2.0},
    ]
    batch = DataCollatorForPreference(pad_token_id=9)(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [6, 7, 9], [4, 5, 9], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 0, 0]]
    assert batch["margin"].tolist() == [0.5, 2.0]
    plain = DataCollatorForPreference(pad_token_id=0, pad_to_multiple_of=4)([{"chosen_ids": [1], "rejected_ids": [2]}])
    assert plain.keys() == {"input_ids", "attention_mask"}
    assert plain["input_ids"].tolist() == [[1, 0, 0, 0], [2, 0, 0, 0]]


# --- the log ---------------------------------------------------------------------------------------------------------


def history(make_model_folder, tmp_path, rows, **changes):
    trainer = make_trainer(make_model_folder("llama"), rows, tmp_path / "run", num_train_epochs=2, **changes)
    trainer.train()
    assert [entry["epoch"] for entry in trainer.history] == [1, 2]
    assert [entry["step"] for entry in trainer.history] == [2, 4]
    return trainer.state.log_history


EVALUATED = {"eval_strategy": "steps", "eval_steps": 2, "logging_steps": 100}


def test_entries_of_the_log_are_counted_from_its_end_as_in_trl(make_model_folder, tmp_path, chat_pairs):
    rows = chat_pairs[:6]
    log = history(
        make_model_folder, tmp_path, chat_pairs, evaluation={"a": rows, "b": rows}, **EVALUATED,
        compute_metrics=lambda _: {"mine": 0.25},
    )  # fmt: skip
    assert "train_loss" in log[-1]
    assert log[-2]["eval_b_mine"] == 0.25
    assert log[-2]["epoch_loss"] > 0
    assert log[-3]["eval_a_loss"] > 0


@pytest.mark.parametrize("logging_steps", [1, 100])
def test_the_log_ends_with_a_step_and_the_summary(make_model_folder, tmp_path, chat_pairs, logging_steps):
    log = history(make_model_folder, tmp_path, chat_pairs, logging_steps=logging_steps)
    assert "train_loss" in log[-1]
    if logging_steps == 1:
        assert [("loss" in entry, entry["step"]) for entry in log] == [*[(True, n) for n in range(1, 5)], (False, 4)]
        assert "epoch_loss" in log[-2]
    else:
        assert [sorted(entry.keys() & {"epoch_loss", "train_loss"}) for entry in log] == [
            ["epoch_loss"],
            ["epoch_loss", "train_loss"],
        ]


def test_evaluation_at_the_end_of_an_epoch_shares_its_entry(make_model_folder, tmp_path, chat_pairs):
    log = history(
        make_model_folder, tmp_path, chat_pairs, evaluation=chat_pairs[:6], eval_strategy="epoch", logging_steps=100
    )
    assert [("eval_loss" in entry, "epoch_loss" in entry) for entry in log] == [
        (True, True),
        (True, True),
        (False, False),
    ]
    assert "train_loss" in log[-1]


# --- templates -------------------------------------------------------------------------------------------------------


def test_the_tokens_of_a_second_tokenizers_template_are_added(
    make_model_folder, tmp_path, chat_pairs, chat_tokenizer, text_tokenizer, caplog
):
    chat_tokenizer.save_pretrained(tmp_path / "other")
    folder = make_model_folder("gpt_neox", tokenizer=text_tokenizer)
    changes = {"chat_template_path": str(tmp_path / "other"), "learning_rate": 1e-2, "num_train_epochs": 2}
    trainer = make_trainer(folder, chat_pairs, tmp_path / "run", **changes)
    assert "uses tokens that the tokenizer lacked: <|im_start|>, <|im_end|>. They were added" in caplog.text
    added = trainer.processing_tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    before = trainer.model.get_input_embeddings().weight[added].clone()
    trainer.train()
    assert not torch.equal(trainer.model.get_input_embeddings().weight[added], before)
    assert_same_rewards(trainer, chat_pairs[:3], folder=tmp_path / "saved")
    with pytest.raises(ValueError, match=r"no embeddings \(<\|im_end\|>, <\|im_start\|>\)"):
        make_trainer(folder, chat_pairs, tmp_path / "lora", peft_config=LoraConfig(), **changes)
