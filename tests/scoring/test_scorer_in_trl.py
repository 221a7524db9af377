"""TRL's trainers get the same rewards from the saved folder and from the scorer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from saved_models import saved_model

from hf_reward import RewardScorer

pytestmark = [pytest.mark.slow, pytest.mark.interop]


@pytest.mark.parametrize("name", ["GRPO", "RLOO"])
@pytest.mark.parametrize("form", ["conversations", "text"])
def test_a_step_with_the_folder_and_the_scorer(name: str, form: str, make_model_folder: Any, tmp_path: Path) -> None:
    import trl
    from datasets import Dataset

    source = make_model_folder("llama")
    folder = saved_model(source, tmp_path / "reward-model")
    scorer = RewardScorer.from_pretrained(folder)
    if form == "text":  # TRL concatenates text, so the model must be a text model
        assert scorer.record is not None
        scorer.record.rows = "text"
        scorer = RewardScorer(scorer.model, scorer.tokenizer, scorer.record)
    seen: dict[str, list[float]] = {"scorer": [], "folder": []}

    def as_seen(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        rewards = scorer(prompts=prompts, completions=completions, **columns)
        seen["scorer"] += [np.nan if reward is None else reward for reward in rewards]
        return rewards

    text = "What is 2 + 2?"
    prompt: Any = [{"role": "user", "content": text}] if form == "conversations" else text
    options = {"max_completion_length": 6, "num_generations": 2, "per_device_train_batch_size": 4, "max_steps": 1}
    args: Any = getattr(trl, f"{name}Config")(
        output_dir=str(tmp_path / "out"), report_to="none", use_cpu=True, bf16=False, **options
    )
    trainer: Any = getattr(trl, f"{name}Trainer")(
        model=str(make_model_folder("llama", "policy", seed=3)),
        reward_funcs=[str(folder), scorer, as_seen],
        args=args,
        train_dataset=Dataset.from_list([{"prompt": prompt}] * 4),
    )
    assert trainer.reward_func_names[1] == "reward-model", "the scorer is logged under its folder's name"
    trainer.reward_funcs[0].register_forward_hook(
        lambda module, given, output: seen["folder"].extend(output.logits[:, 0].tolist())
    )
    trainer.train()
    assert len(seen["folder"]) == len(seen["scorer"]) == 4
    if form == "conversations":
        np.testing.assert_allclose(seen["scorer"], seen["folder"], rtol=1e-4, atol=1e-4)
    logged = next(entry for entry in trainer.state.log_history if "reward" in entry)
    assert np.isfinite(logged["reward"])
