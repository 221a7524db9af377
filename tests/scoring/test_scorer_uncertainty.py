"""Scoring with several heads: mean, standard deviation and lower bound, for all batches."""

import shutil
from typing import Any

import numpy as np
import pytest
import torch
from conftest import randomize_head
from training_runs import make_trainer

from hf_reward import RewardScorer
from hf_reward.modeling.head_ensemble import HEADS_FILE
from hf_reward.scoring.results import ScoringError

PROMPTS = ["What is 2 + 2?", "What is 2 + 2?", "Name a colour.", "Say something long, please."]
RESPONSES = ["4.", "Perhaps it is 5, who knows.", "Blue", "word " * 40]


@pytest.fixture
def folder(make_model_folder, chat_pairs, tmp_path) -> Any:
    """A saved model with four heads that disagree."""
    trainer = make_trainer(make_model_folder("llama"), chat_pairs, tmp_path / "run", num_reward_heads=4)
    randomize_head(trainer.model)
    trainer.save_model(str(tmp_path / "saved"))
    return tmp_path / "saved"


def test_uncertainty_is_that_of_the_heads_and_does_not_depend_on_the_batch(folder):
    scorer = RewardScorer.from_pretrained(folder)
    found = scorer.score_with_uncertainty(PROMPTS, RESPONSES, beta=2.0)
    np.testing.assert_allclose(found.mean, scorer.score(PROMPTS, RESPONSES), rtol=1e-5, atol=1e-5)
    stored = scorer.model.score.head_weight.detach()  # (4, H)
    kept: list[torch.Tensor] = []
    handle = scorer.model.score.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    scorer.score([PROMPTS[3]], [RESPONSES[3]])
    handle.remove()
    by_hand = (kept[0][0] @ stored.T).numpy()
    np.testing.assert_allclose(found.heads[3], by_hand, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.std[3], by_hand.std(ddof=1), rtol=1e-4)
    np.testing.assert_allclose(found.lower_bound[3], by_hand.mean() - 2 * by_hand.std(ddof=1), rtol=1e-4, atol=1e-5)
    for other in (scorer.with_padding(), RewardScorer.from_pretrained(folder, batch_tokens=1)):
        alone = [other.score_with_uncertainty([p], [r]).heads[0] for p, r in zip(PROMPTS, RESPONSES, strict=True)]
        np.testing.assert_allclose(np.array(alone), found.heads, rtol=1e-4, atol=1e-5)
    assert scorer.model.score.gives_every_head is False


def test_a_scorer_of_lower_bounds_ranks_by_them(folder):
    plain = RewardScorer.from_pretrained(folder)
    found = plain.score_with_uncertainty(PROMPTS, RESPONSES, beta=1.5)
    careful = RewardScorer.from_pretrained(folder, lower_bound=1.5)
    np.testing.assert_allclose(careful.score(PROMPTS, RESPONSES), found.lower_bound, rtol=1e-5, atol=1e-5)
    assert not np.allclose(found.lower_bound, found.mean, atol=0.1)
    bound = plain.score_with_uncertainty([PROMPTS[0]] * 3, RESPONSES[:3], beta=1.5).lower_bound
    assert careful.rank(PROMPTS[0], RESPONSES[:3]).order == np.argsort(-bound).tolist()
    again = careful.score_with_uncertainty(PROMPTS, RESPONSES, beta=1.5)
    np.testing.assert_array_equal(again.heads, found.heads)
    with pytest.raises(ValueError, match="`compare` needs mean rewards"):
        careful.compare(PROMPTS[0], *RESPONSES[:2])


def test_the_fingerprint_includes_the_heads_if_their_spread_matters(folder):
    plain, careful = (RewardScorer.from_pretrained(folder, lower_bound=beta).fingerprint() for beta in (None, 1.0))
    assert "heads" not in plain
    assert careful["lower_bound"] == 1.0
    more = RewardScorer.from_pretrained(folder, lower_bound=1.0)
    with torch.no_grad():
        more.model.score.head_weight[0] += 1
        more.model.score.head_weight[1] -= 1  # the same mean
    assert more.fingerprint()["heads"] != careful["heads"]


def test_problems_are_those_of_plain_scoring(folder):
    scorer = RewardScorer.from_pretrained(folder)
    with pytest.raises(ScoringError, match="1 of 2 responses") as caught:
        scorer.score_with_uncertainty(["a", "b"], ["", "c"])
    assert np.isnan(caught.value.rewards[0])
    assert np.isfinite(caught.value.rewards[1])
    with pytest.raises(ValueError, match="must be a list"):
        scorer.score_with_uncertainty("a", ["b"])
    with pytest.raises(ValueError, match="`beta`, the number"):
        scorer.score_with_uncertainty(["a"], ["b"], beta=-1)


def test_one_head_has_no_uncertainty(folder, make_model_folder, chat_pairs, tmp_path):
    shutil.rmtree(folder / HEADS_FILE.split("/")[0])
    with pytest.raises(ValueError, match="states 4 heads, but their file"):
        RewardScorer.from_pretrained(folder, lower_bound=1.0)
    trainer = make_trainer(make_model_folder("llama"), chat_pairs, tmp_path / "one")
    trainer.save_model()
    scorer = RewardScorer.from_pretrained(tmp_path / "one")
    with pytest.raises(ValueError, match=r"has one reward head.*num_reward_heads=8"):
        scorer.score_with_uncertainty(["a"], ["b"])
