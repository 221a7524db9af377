"""Invalid models, data and settings are refused with reason and remedy; a failing run keeps its checkpoints."""

from typing import Any

import pytest
import torch
from conftest import randomize_head
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from training_runs import largest_difference, load, make_trainer, weights
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from hf_reward import RewardConfig, RewardTrainer


@pytest.mark.parametrize("packing", ["auto", "false"])
def test_a_non_finite_loss_stops_before_the_weights_change_and_names_the_rows(
    make_model_folder, chat_pairs, tmp_path, packing
):
    model = load(make_model_folder("llama"))
    randomize_head(model)
    marked = 9
    rows = [dict(row) for row in chat_pairs]
    rows[marked]["chosen"] = [{"role": "assistant", "content": "A rare sign: \x07"}]
    trainer = make_trainer(
        model, rows, tmp_path / "run", per_device_train_batch_size=4, train_sampling_strategy="sequential",
        save_strategy="steps", save_steps=1, learning_rate=1e-2, packing=packing,
    )  # fmt: skip
    rare = trainer.processing_class("\x07", add_special_tokens=False)["input_ids"][-1]

    def plant(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.masked_fill((inputs[0] == rare).unsqueeze(-1), float("nan"))

    model.get_input_embeddings().register_forward_hook(plant)
    with pytest.raises(FloatingPointError, match=rf"loss is nan at step 2, from the data rows \[{marked}\]\.") as error:
        trainer.train()
    assert str(tmp_path / "run") in str(error.value)
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "checkpoint-2")
    assert largest_difference(weights(saved), weights(trainer.model)) == 0
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    assert all(torch.isfinite(value).all() for value in weights(trainer.model).values())


def test_a_non_finite_weight_stops_the_first_step_although_nan_losses_are_filtered_from_logs(
    make_model_folder, chat_pairs, tmp_path
):
    model = load(make_model_folder("llama"))
    with torch.no_grad():
        model.score.weight[0, 0] = float("inf")
    with pytest.raises(FloatingPointError, match=r"step 0.*Inspect those rows"):
        make_trainer(model, chat_pairs, tmp_path / "run", logging_nan_inf_filter=True, packing="false").train()


def test_a_model_with_several_labels_is_refused(make_model_folder, chat_pairs, tmp_path):
    folder = make_model_folder("llama")
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    with pytest.raises(ValueError, match=r"has `num_labels=2`, but reward models require `num_labels=1`"):
        make_trainer(model, chat_pairs, tmp_path / "run")


def test_a_language_model_object_is_refused_with_the_way_to_load_it(make_model_folder, chat_pairs, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_model_folder("llama"))
    with pytest.raises(ValueError, match="AutoModelForRewardScoring"):
        make_trainer(model, chat_pairs, tmp_path / "run")


def test_several_gpus_in_one_process_are_refused(make_model_folder, chat_pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(RewardConfig, "n_gpu", 2)
    with pytest.raises(ValueError, match=r"One process sees 2 GPUs.*accelerate launch"):
        make_trainer(make_model_folder("llama"), chat_pairs, tmp_path / "run")


def test_a_frozen_head_is_refused(make_model_folder, chat_pairs, tmp_path):
    model = load(make_model_folder("llama"))
    model.score.weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"reward head \(score\) must be trainable, but is frozen"):
        make_trainer(model, chat_pairs, tmp_path / "run")


def test_an_adapter_that_would_not_save_the_head_is_refused(make_model_folder, chat_pairs, tmp_path):
    model = load(make_model_folder("llama"))
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "score"]))
    with pytest.raises(ValueError, match=r"must train and save the reward head \(score\)"):
        make_trainer(wrapped, chat_pairs, tmp_path / "run", processing_class=tokenizer_of(model))


def tokenizer_of(model: Any) -> Any:
    return AutoTokenizer.from_pretrained(model.config.name_or_path)


def test_a_second_adapter_on_an_adapter_model_is_refused(make_model_folder, chat_pairs, tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"])
    model = load(make_model_folder("llama"), peft_config=config)
    with pytest.raises(ValueError, match="already has an adapter"):
        make_trainer(model, chat_pairs, tmp_path / "run", peft_config=config)


def test_a_model_of_unknown_origin_needs_its_tokenizer(make_model_folder, chat_pairs, chat_tokenizer, tmp_path):
    model = load(make_model_folder("llama"))
    model.config._name_or_path = ""
    with pytest.raises(ValueError, match="Pass it as `processing_class`"):
        make_trainer(model, chat_pairs, tmp_path / "run")
    make_trainer(model, chat_pairs, tmp_path / "run", processing_class=chat_tokenizer, max_steps=1).train()


def test_loading_options_are_refused_for_a_loaded_model(make_model_folder, chat_pairs, tmp_path):
    model = load(make_model_folder("llama"))
    with pytest.raises(ValueError, match="`model_init_kwargs` cannot be set for a loaded model"):
        make_trainer(model, chat_pairs, tmp_path / "run", model_init_kwargs={"dtype": "float32"})


def test_neither_model_nor_model_init_is_refused(chat_pairs, chat_tokenizer, tmp_path):
    with pytest.raises((ValueError, RuntimeError), match="requires either a `model` or `model_init`"):
        make_trainer(None, chat_pairs, tmp_path / "run", processing_class=chat_tokenizer)


def test_data_without_remaining_rows_is_refused_with_the_reasons(make_model_folder, text_pairs, tmp_path):
    folder = make_model_folder("llama")
    ties = [{**row, "rejected": row["chosen"]} for row in text_pairs]
    with pytest.raises(ValueError, match="train: none of 16 rows can be used"):
        make_trainer(folder, ties, tmp_path / "run")
    with pytest.raises(ValueError, match=r"eval: none of 16 rows can be used .*`max_length=4`"):
        make_trainer(folder, None, tmp_path / "run", evaluation=text_pairs, max_length=4)
    with pytest.raises(ValueError, match="must have at least one row"):
        make_trainer(folder, Dataset.from_list([]), tmp_path / "run")


def test_evaluating_without_data_is_refused(make_model_folder, chat_pairs, tmp_path):
    with pytest.raises(ValueError, match="eval_dataset"):
        make_trainer(make_model_folder("llama"), chat_pairs, tmp_path / "run").evaluate()


def test_the_default_output_folder_is_named_after_the_model(make_model_folder, chat_pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = RewardTrainer(model=str(make_model_folder("llama")), train_dataset=chat_pairs)
    assert trainer.args.output_dir == "llama-Reward"
