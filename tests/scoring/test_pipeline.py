"""`pipeline("reward-scoring")` returns the scorer's rewards for every kind of input."""

from pathlib import Path
from typing import Any

import pytest
from foreign_models import foreign_model
from transformers import pipeline

import hf_reward.scoring.pipeline  # noqa: F401 - registers the task
from hf_reward import RewardScorer

CONVERSATION = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because it is so."}]


def test_pipeline_rewards_equal_those_of_the_scorer(folder: Path) -> None:
    scorer = RewardScorer.from_pretrained(folder)
    expected = float(scorer.score_conversations([CONVERSATION])[0])
    pipe: Any = pipeline("reward-scoring", model=str(folder))
    text = str(scorer.tokenizer.apply_chat_template(CONVERSATION, tokenize=False))
    for given in (CONVERSATION, {"prompt": "Why?", "response": "Because it is so."}, {"messages": CONVERSATION}, text):
        assert pipe(given) == {"reward": pytest.approx(expected, abs=1e-5)}
    longer = [CONVERSATION[0], {"role": "assistant", "content": "A much longer answer. " * 5}]
    batch = [each["reward"] for each in pipe([CONVERSATION, longer, CONVERSATION], batch_size=3)]
    assert batch == pytest.approx(scorer.score_conversations([CONVERSATION, longer, CONVERSATION]).tolist(), abs=1e-5)
    stream = pipe(each for each in [CONVERSATION, longer])
    assert [each["reward"] for each in stream] == pytest.approx(batch[:2], abs=1e-5)


def test_the_stock_pipeline_gives_the_raw_reward(folder: Path) -> None:
    scorer = RewardScorer.from_pretrained(folder)
    expected = float(scorer.score_conversations([CONVERSATION])[0])
    classify: Any = pipeline("text-classification", model=str(folder))
    text = scorer.tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
    found = classify(text, add_special_tokens=False)
    assert found[0]["label"] == "reward"
    assert found[0]["score"] == pytest.approx(expected, abs=1e-5)


def test_a_foreign_text_pair(tmp_path: Path) -> None:
    folder = foreign_model("OpenAssistant-DeBERTa", tmp_path / "pair")
    pipe: Any = pipeline("reward-scoring", model=str(folder))
    expected = RewardScorer.from_pretrained(folder).score(["Why?"], ["Because."])[0]
    assert pipe({"prompt": "Why?", "response": "Because."})["reward"] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({"prompt": "Why?", "response": ""}, {}, "the response is empty"),
        ({"prompt": "Why?", "responses": ["a", "b"]}, {}, "RewardScorer.rank"),
        ({"prompt": "Why?"}, {}, "nothing to score"),
        ({"prompt": "Why?", "response": "x"}, {"top_k": 1}, "takes only `allow_empty`, but got top_k"),
    ],
)
def test_wrong_input(folder: Path, given: Any, options: Any, message: str) -> None:
    pipe: Any = pipeline("reward-scoring", model=str(folder))
    with pytest.raises((ValueError, TypeError), match=message):
        pipe(given, **options)
    assert pipe({"prompt": "Why?", "response": ""}, allow_empty=True)["reward"] != 0
