"""Fingerprint of a run: rows, settings and frozen weights are compared when it resumes."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, concatenate_datasets, load_dataset
from peft import LoraConfig
from training_runs import load, make_trainer

from hf_reward.training.checkpoints import LIST_FILE, checkpoints
from hf_reward.training.collators import packs
from hf_reward.training.run_fingerprint import FILE, IGNORED_SETTINGS, content_of_rows
from hf_reward.training.training_args import RewardConfig

ONE_STEP: dict[str, Any] = {
    "save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 4, "max_steps": 1,
}  # fmt: skip


def resumed(model: Any, rows: Any, folder: Path, **changes: Any) -> Any:
    trainer = make_trainer(model, rows, folder, **{**ONE_STEP, **changes})
    trainer.train(resume_from_checkpoint="auto")
    return trainer


def test_another_learning_rate_and_other_rows_are_refused_and_listed(make_model_folder, chat_pairs, tmp_path, caplog):
    model, run = make_model_folder("llama"), tmp_path / "run"
    resumed(model, chat_pairs, run)
    with pytest.raises(ValueError, match="belongs to a run with different data or settings") as caught:
        resumed(model, chat_pairs[:-1], run, learning_rate=3e-4)
    message = str(caught.value)
    assert "\n  settings.learning_rate: was 0.0001, is 0.0003\n" in message
    assert "\n  train_data.rows: was 16, is 15.\n" in message
    assert "--allow_changed_run" in message
    with pytest.raises(ValueError, match=r'train_data.content: was "[0-9a-f]{32}"') as caught:
        resumed(model, chat_pairs[::-1], run)  # the same rows in another order
    assert "settings" not in str(caught.value).split("\n", 1)[1].split("Restore those")[0]
    before = (checkpoints(run)[-1] / FILE).read_text()

    resumed(model, chat_pairs[::-1], run, allow_changed_run=True, max_steps=2)
    assert (
        "because `allow_changed_run` is set:\n  settings.max_steps: was 1, is 2\n  train_data.content: was"
        in caplog.text
    )
    assert (checkpoints(run)[-1] / FILE).read_text() != before
    assert FILE in json.loads((checkpoints(run)[-1] / LIST_FILE).read_text())["files"]


def test_a_run_resumes_with_changed_logging_paths_and_workers(make_model_folder, chat_pairs, tmp_path, caplog):
    model, run = make_model_folder("llama"), tmp_path / "run"
    resumed(model, chat_pairs, run)
    run.rename(tmp_path / "moved")
    changes: dict[str, Any] = {
        "logging_steps": 5,
        "dataset_num_proc": 2,
        "save_total_limit": 3,
        "length_bucketing": "false",
    }
    trainer = resumed(model, chat_pairs, tmp_path / "moved", dataloader_num_workers=1, run_name="again", **changes)
    assert trainer.state.global_step == 1
    assert not [entry for entry in caplog.records if "fingerprint" in entry.name]


def test_another_order_of_the_rows_is_refused_and_can_be_allowed(make_model_folder, chat_pairs, tmp_path):
    model, run = make_model_folder("llama"), tmp_path / "run"
    assert packs(resumed(model, chat_pairs, run).data_collator)
    padded = {"packing": "false"}  # another order: some rows would be seen twice and others never
    with pytest.raises(ValueError, match=r"\n  settings.rows_by_length: was false, is true.\n"):
        resumed(model, chat_pairs, run, **padded)
    assert resumed(model, chat_pairs, run, length_bucketing="false", **padded).state.global_step == 1


def test_a_checkpoint_without_a_fingerprint_is_resumed_with_a_warning(make_model_folder, chat_pairs, tmp_path, caplog):
    model, run = make_model_folder("llama"), tmp_path / "run"
    resumed(model, chat_pairs, run)
    [folder] = checkpoints(run)
    (folder / FILE).unlink()
    (folder / LIST_FILE).unlink()
    resumed(model, chat_pairs, run, learning_rate=3e-4)
    assert f"{folder} has no {FILE}" in caplog.text
    again = resumed(model, chat_pairs, tmp_path / "other")
    folder = checkpoints(Path(again.args.output_dir))[0]
    (folder / FILE).write_text("[]")
    (folder / LIST_FILE).unlink()
    with pytest.raises(ValueError, match="is not a valid fingerprint of a run"):
        resumed(model, chat_pairs, tmp_path / "other")


def test_an_adapter_on_another_base_model_is_refused(make_model_folder, chat_pairs, tmp_path):
    peft = {"peft_config": LoraConfig(task_type="SEQ_CLS", r=2, lora_alpha=4, target_modules=["q_proj"])}
    resumed(load(make_model_folder("llama"), **peft), chat_pairs, tmp_path / "run")
    other = make_model_folder("llama", name="other", seed=5)
    with pytest.raises(ValueError, match=r"  model.frozen_weights: was "):
        resumed(load(other, **peft), chat_pairs, tmp_path / "run")
    peft["peft_config"].lora_alpha = 8
    with pytest.raises(ValueError, match=r"  model.adapter.lora_alpha: was 4, is 8"):
        resumed(load(make_model_folder("llama"), **peft), chat_pairs, tmp_path / "run")


def test_another_precision_or_another_computation_of_the_trained_weights_is_refused(
    make_model_folder, chat_pairs, tmp_path
):
    model = make_model_folder("llama")
    resumed(model, chat_pairs, tmp_path / "run")
    with pytest.raises(ValueError, match=r'  model.trained_dtypes: was \["float32"\], is \["bfloat16", "float32"\]'):
        resumed(model, chat_pairs, tmp_path / "run", model_init_kwargs={"dtype": "bfloat16"})
    config = json.loads((model / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 500.0
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"  model.config.rope_parameters.rope_theta: was 10000.0, is 500.0"):
        resumed(model, chat_pairs, tmp_path / "run")


def test_fields_of_the_configuration_that_another_version_lacks_are_not_compared(
    make_model_folder, chat_pairs, tmp_path
):
    model = make_model_folder("llama")
    resumed(model, chat_pairs, tmp_path / "run")
    [folder] = checkpoints(tmp_path / "run")
    (folder / LIST_FILE).unlink()
    then = json.loads((folder / FILE).read_text())
    then["model"]["config"] |= {"field_of_another_version": 1}
    del then["model"]["config"]["rms_norm_eps"], then["model"]["trained_dtypes"]
    (folder / FILE).write_text(json.dumps(then))
    assert resumed(model, chat_pairs, tmp_path / "run").state.global_step == 1


def test_an_adapter_resumes_with_a_new_pad_token(make_model_folder, text_tokenizer, text_pairs, tmp_path):
    folder = make_model_folder("llama", tokenizer=text_tokenizer)
    peft = {"peft_config": LoraConfig(r=2, target_modules=["q_proj"])}
    for _ in range(2):  # the second start loads the model with other random numbers
        model = load(folder, **peft)
        assert resumed(model, text_pairs, tmp_path / "run").state.global_step == 1
    embeddings = model.get_input_embeddings().weight
    assert len(embeddings) == len(text_tokenizer) + 1
    assert (embeddings[-1] == 0).all()


def test_evaluation_rows_are_compared_if_they_select_the_checkpoint(make_model_folder, chat_pairs, tmp_path, caplog):
    model = make_model_folder("llama")
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1}
    for name, changes in (("plain", {}), ("best", best)):
        resumed(model, chat_pairs, tmp_path / name, evaluation=chat_pairs[:4], **changes)
    resumed(model, chat_pairs, tmp_path / "plain", evaluation=chat_pairs[:3])
    with pytest.raises(ValueError, match=r"  evaluation_data..content: was (.|\n)*evaluation_data..rows: was 4, is 3"):
        resumed(model, chat_pairs, tmp_path / "best", evaluation=chat_pairs[:3], **best)


def test_a_changed_file_of_a_stream_is_refused_beyond_the_rows_that_are_compared(
    make_model_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("hf_reward.training.run_fingerprint.STREAM_ROWS", 4)
    rows = [{"prompt": f"Which {n}?", "chosen": f"A good answer {n}.", "rejected": f"No {n}"} for n in range(10, 26)]
    path = tmp_path / "data" / "train.jsonl"
    Dataset.from_list(rows).to_json(path)
    model = make_model_folder("llama")

    def go(name: str, **changes: Any) -> Any:
        stream = load_dataset("json", data_files=[str(path)], split="train", streaming=True)
        return resumed(model, stream, tmp_path / "run", **changes)

    go("run")
    go("run", logging_steps=7)
    with pytest.raises(ValueError, match=r"settings.dataloader_num_workers: was 0, is 1"):
        go("run", dataloader_num_workers=1)
    path.write_text(path.read_text().replace("Which 25?", "Which 99?"))
    with pytest.raises(ValueError, match=r"  train_data.files.train.jsonl.content: was "):
        go("run")


def test_content_depends_on_values_and_not_on_their_layout_in_memory():
    rows = [{"input_ids": [[1, 2], [3]], "margin": None}, {"input_ids": [[4], [5, 6]], "margin": 0.0}]
    rows.append({"input_ids": [[4, 5], [6]], "margin": 0.0})
    columns = ["input_ids", "margin"]
    complete = Dataset.from_list(rows)
    content = content_of_rows(complete, columns)
    assert content == content_of_rows(concatenate_datasets([complete.select([0]), complete.select([1, 2])]), columns)
    assert content == content_of_rows(complete.select([2, 1, 0]).select([2, 1, 0]), columns)
    others = [complete.select([1, 0, 2]), complete.select([0, 2, 1]), complete.select([0, 1])]
    others.append(Dataset.from_list([{**rows[0], "margin": 0.0}, *rows[1:]]))  # a null is not 0
    assert len({content, *(content_of_rows(data, columns) for data in others)}) == 5


def test_every_setting_that_may_change_exists_and_the_others_are_compared():
    known = RewardConfig.__dataclass_fields__.keys()
    # transformers moved some settings between the supported versions; ours must not be misspelt.
    assert len(IGNORED_SETTINGS - known) <= 12
    deciding = known - IGNORED_SETTINGS
    assert {
        *("learning_rate", "num_train_epochs", "max_steps", "lr_scheduler_type", "warmup_steps", "optim", "seed"),
        *("per_device_train_batch_size", "gradient_accumulation_steps", "bf16", "fp16", "weight_decay", "loss_type"),
        *("max_length", "over_length", "separator", "num_reward_heads", "disable_dropout"),
        *("label_smoothing", "center_rewards_coefficient", "length_penalty", "tie_parameter", "head_learning_rate"),
    } <= deciding
