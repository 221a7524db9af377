"""The summary of training texts: its content, the detection of different texts, and its place in the checkpoint."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from training_runs import make_trainer
from typer.testing import CliRunner

from hf_reward.cli.app import app
from hf_reward.data.preferences import to_preference_row
from hf_reward.data.training_texts import (
    compare_texts,
    comparison_lines,
    require_summary,
    summarize_texts,
    summarize_training_data,
)
from hf_reward.modeling.checkpoint_record import CheckpointRecord

HOME = [f"w{number}" for number in range(300)]
AWAY = [f"v{number}" for number in range(300)]


def rows(words: list[str], count: int, seed: int, length: int = 20) -> list[dict[str, str]]:
    """Pairs of random words, two per prompt."""
    random = np.random.default_rng(seed)
    return [
        {
            "prompt": f"{words[number // 2 % 300]} {words[number // 600]} ?",
            "chosen": " ".join(random.choice(words, random.integers(length // 2, length * 2))),
            "rejected": " ".join(random.choice(words, random.integers(length // 2, length * 2))),
        }
        for number in range(count)
    ]


def texts(data: list[dict[str, str]]) -> dict[str, list[str]]:
    return {
        "prompt": [row["prompt"] for row in data],
        "response": [row[side] for row in data for side in ("chosen", "rejected")],
    }


def canonical(data: list[dict[str, str]]):
    return [to_preference_row(row, row_index=place) for place, row in enumerate(data)]


def test_the_summary_by_hand():
    # Two groups: the shares of each are measured with the words of the other.
    data = [
        {"prompt": "a b", "chosen": "a a a a", "rejected": "a z"},
        {"prompt": "c d", "chosen": "a b x x", "rejected": "y y"},
    ]
    summary = summarize_texts(canonical(data))
    assert summary["rows"] == 2
    assert summary["response"]["texts"] == 4
    # Words of the first group: a, b, z. Its responses have 1 and 1/2 of a, b, c, d, x, y; the second's 2/4 and 0.
    assert summary["response"]["known_words"]["median"] == 0.5
    assert summary["response"]["words"]["median"] == 3
    assert len(base64.b64decode(summary["common_words"])) == 3 * len({*"abcdxyz"})
    assert require_summary(summary).tolist() == sorted(require_summary(summary).tolist())
    json.dumps(summary, allow_nan=False)


def test_new_texts_of_the_same_kind_do_not_differ():
    summary = summarize_texts(canonical(rows(HOME, 600, seed=0)))
    found = compare_texts(summary, texts(rows(HOME, 600, seed=1)))
    assert [each.kind for each in found] == ["prompt", "response"]
    for each in found:
        assert not each.differs
        assert each.few_known_words < 0.1  # 5% expected
        assert each.unusual_length < 0.05  # 2% expected
    assert "no clear difference" in comparison_lines(found)[-1]


def test_texts_of_other_words_or_other_lengths_differ():
    summary = summarize_texts(canonical(rows(HOME, 600, seed=0)))
    other = compare_texts(summary, texts(rows(AWAY, 100, seed=1)))
    assert [each.known_words for each in other] == [0.0, 0.0]
    assert all(each.differs and each.few_known_words == 1 for each in other)
    assert "prompts and responses differ" in comparison_lines(other)[-1]
    longer = compare_texts(summary, texts(rows(HOME, 100, seed=1, length=200)))
    assert [each.differs for each in longer] == [False, True]
    assert longer[1].unusual_length > 0.9
    assert longer[1].few_known_words < 0.1


def test_few_texts_have_no_verdict():
    summary = summarize_texts(canonical(rows(HOME, 100, seed=0)))
    found = compare_texts(summary, {"response": ["of another kind"] * 19})
    assert [each.differs for each in found] == [False]
    assert "cannot be assessed" in comparison_lines(found)[-1]


@pytest.mark.parametrize("damage", [{}, {"common_words": "?"}, {"common_words": "AAAA", "prompt": {"words": {}}}])
def test_a_record_without_a_usable_summary_is_refused(damage):
    with pytest.raises(ValueError, match="training_texts"):
        compare_texts(damage, {"response": ["text"]})


def test_a_summary_rests_on_2000_rows_and_on_none_of_tokens():
    assert summarize_training_data(rows(HOME, 2500, seed=0), seed=0)["rows"] == 2000
    assert summarize_training_data([{"chosen_ids": [1, 2], "rejected_ids": [3]}], seed=0) == {}


def test_messages_count_as_their_contents():
    plain = {"prompt": "a b", "chosen": "c d", "rejected": "e"}
    turns = {name: [{"role": "user" if name == "prompt" else "assistant", "content": plain[name]}] for name in plain}
    assert summarize_texts(canonical([plain])) == summarize_texts(canonical([turns]))


def test_the_summary_travels_with_the_model_and_score_uses_it(make_model_folder, text_tokenizer, tmp_path: Path):
    home, away, same = rows(HOME, 80, seed=0), rows(AWAY, 60, seed=1), rows(HOME, 60, seed=2)
    make_trainer(
        make_model_folder("llama", tokenizer=text_tokenizer), home, tmp_path / "model", max_steps=1
    ).save_model()
    record = CheckpointRecord.load(tmp_path / "model")
    assert record is not None
    assert record.training_texts == summarize_training_data(home, seed=42)
    compared = {}
    for name, data in (("away", away), ("same", same)):
        file = tmp_path / f"{name}.jsonl"
        lines = [json.dumps({"prompt": row["prompt"], "response": row["chosen"]}) for row in data]
        file.write_text("\n".join(lines), encoding="utf-8")
        words = ["--model", str(tmp_path / "model"), "--data", str(file), "--compare-training"]
        result = CliRunner().invoke(app, ["score", *words, "--out", str(tmp_path / f"{name}-out.jsonl"), "--json"])
        assert result.exit_code == 0, result.output
        compared[name] = {each["kind"]: each for each in json.loads(result.stdout)["training_comparison"]}
    assert compared["away"]["response"]["differs"]
    assert compared["away"]["response"]["texts"] == 60
    assert not compared["same"]["response"]["differs"]
    shown = CliRunner().invoke(app, ["score", *words])
    assert "show no clear difference" in shown.output
