"""`group_by_prompt`: batches hold several rows of a prompt, and nothing else changes."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from test_resume import SAVES, stop_and_resume
from training_runs import largest_difference, make_trainer, weights

from hf_reward import compute_rewards
from hf_reward.preprocessing.samplers import PromptSampler
from hf_reward.training.collators import packed_if

WORDS = ("good", "bad", "true", "false", "blue", "red", "high", "low", "warm", "cold")


def comparisons(prompts: int = 6, responses: int = 4) -> list[dict[str, Any]]:
    """All pairs of the responses to each prompt, one prompt after the other."""
    random, rows = np.random.default_rng(0), []
    for number in range(prompts):
        prompt = f"Question {number}: " + " ".join(random.choice(WORDS, 12))
        texts = [" ".join(random.choice(WORDS, 6)) + f" {place}" for place in range(responses)]
        rows += [{"prompt": prompt, "chosen": one, "rejected": other} for one, other in combinations(texts, 2)]
    return rows


def run(model: Any, folder: Any, **changes: Any) -> Any:
    settings: dict[str, Any] = {**SAVES, "per_device_train_batch_size": 6, "group_by_prompt": "true", **changes}
    return make_trainer(model, comparisons(), folder, **settings)


def test_batches_hold_few_prompts_and_compute_few_tokens(make_model_folder, tmp_path):
    model = make_model_folder("llama")
    shares = {}
    for grouped in ("true", "false"):
        trainer = run(model, tmp_path / grouped, group_by_prompt=grouped, logging_steps=6)
        trainer.train()
        assert isinstance(trainer.loader.epoch_sampler, PromptSampler) is (grouped == "true")
        shares[grouped] = trainer.state.log_history[0]["computed_token_share"]
        batches = [set(batch["groups"].tolist()) for batch in trainer.get_train_dataloader()]
        assert (max(map(len, batches)) <= 3) is (grouped == "true")
    assert 0 < shares["true"] < 0.7 * shares["false"] < 1


def test_the_logged_share_is_that_of_the_batches(make_model_folder, tmp_path):
    trainer = run(make_model_folder("llama"), tmp_path, logging_steps=6, num_train_epochs=1)
    trainer.train()
    batches = list(trainer.get_train_dataloader())  # the sampler's epoch is still 0
    given, computed = (sum(int(batch[name]) for batch in counted(batches)) for name in ("given", "computed"))
    assert trainer.state.log_history[0]["computed_token_share"] == pytest.approx(computed / given)


def counted(batches: Any) -> list[dict[str, int]]:
    return [{"given": batch["num_tokens"].sum(), "computed": batch["input_ids"].numel()} for batch in batches]


@pytest.mark.parametrize("options", [{}, {"max_tokens_per_batch": 60}, {"length_bucketing": "true"}])
def test_loss_and_gradient_of_a_batch_are_those_of_its_rows_one_by_one(make_model_folder, tmp_path, options):
    trainer = run(make_model_folder("llama"), tmp_path, **options)
    torch.nn.init.normal_(trainer.model.score.weight)
    batch = next(iter(trainer.get_train_dataloader()))
    together = gradient(trainer, [batch])
    rows = [trainer.train_dataset[place] for place in places_of(trainer, batch)]
    alone = gradient(trainer, [trainer._prepare_inputs(trainer.data_collator([row])) for row in rows])
    assert together[0] == pytest.approx(alone[0], rel=1e-5)
    for name, value in alone[1].items():
        floor = 1e-5 * max(float(each.norm()) for each in alone[1].values())
        assert float((together[1][name] - value).norm()) <= 1e-4 * float(value.norm()) + floor, name


def places_of(trainer: Any, batch: Any) -> list[int]:
    numbers = list(trainer.train_dataset["row"])
    return [numbers.index(number) for number in batch["row"].tolist()]


def gradient(trainer: Any, batches: list[Any]) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the mean loss of the rows of batches, and its gradient."""
    model = trainer.model
    model.zero_grad()
    with packed_if(trainer.data_collator, model):
        losses = [trainer.loss_function.of_groups(compute_rewards(model, each), each["ranks"])[0] for each in batches]
        total = torch.cat(losses).mean()
        total.backward()
    return float(total), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_a_stopped_run_ends_with_the_weights_of_one_that_was_not(make_model_folder, tmp_path):
    model = make_model_folder("llama")
    whole = run(model, tmp_path / "whole", num_train_epochs=2)
    whole.train()
    resumed = stop_and_resume(8, lambda **options: run(model, tmp_path / "parts", num_train_epochs=2, **options))
    assert largest_difference(weights(whole.model), weights(resumed.model)) == 0


def test_a_run_does_not_resume_in_another_order(make_model_folder, tmp_path):
    model = make_model_folder("llama")
    run(model, tmp_path, max_steps=1).train()
    with pytest.raises(ValueError, match=r"settings.rows_by_prompt: was true, is false"):
        run(model, tmp_path, max_steps=2, group_by_prompt="false").train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_sampling_strategy": "sequential"}, "both set which rows share a batch"),
        ({"group_by_prompt": "sometimes"}, "group_by_prompt"),
    ],
)
def test_contradicting_settings_are_refused(make_model_folder, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        run(make_model_folder("llama"), tmp_path, **settings)


def test_a_stream_cannot_be_grouped(make_model_folder, tmp_path):
    stream = Dataset.from_list(comparisons()).to_iterable_dataset()
    with pytest.raises(ValueError, match="a stream does not allow"):
        make_trainer(make_model_folder("llama"), stream, tmp_path, group_by_prompt="true", max_steps=1)
