"""The card names the training and evaluation data, and states that accuracy on other data is unknown."""

from pathlib import Path

from card_records import full_record, make_record

from hf_reward.data.training_texts import summarize_training_data
from hf_reward.evaluation.benchmarks.results import record_for_card
from hf_reward.publishing.card.domain import UNKNOWN
from hf_reward.publishing.card.render import write_model_card


def result(name: str, overall: float) -> dict:
    return {
        "benchmark": "pairs",
        "data_name": name,
        "overall": overall,
        "ci": [overall - 0.05, overall + 0.05],
        "n": 300,
        "ties": 0,
        "baselines": {"longer response (characters)": 0.5},
        "sections": {},
        "partial": [],
    }


def card(folder: Path, record) -> str:
    return write_model_card(folder, record).read_text(encoding="utf-8")


def with_data(**changes):
    data = {"train": {"sources": ["debates"]}, "eval": {"sources": ["debates", "more"]}}
    return full_record(training={"steps": 1, "data": data}, **changes)


def test_the_card_names_training_and_evaluation_data(tmp_path):
    text = card(tmp_path, with_data())
    glance, limits = text.split("## Results on held-out pairs")[0], text.split("## Limits")[1]
    assert f"Evaluated only on held-out pairs of debates and more. {UNKNOWN}" in glance
    assert "Trained on debates." in limits
    assert UNKNOWN in limits


def test_results_on_a_second_domain_are_added_to_the_first(tmp_path):
    record_for_card(tmp_path, [result("debates", 0.82)])
    record_for_card(tmp_path, [result("questions", 0.49)])
    record_for_card(tmp_path, [result("debates", 0.8)])  # again: replaces the first
    text = card(tmp_path, with_data())
    assert "| pairs (questions) | 49.0% |" in text
    assert "| pairs (debates) | 80.0% |" in text
    assert "82.0%" not in text
    assert "Evaluated on held-out pairs of debates and more, pairs (questions) and pairs (debates)." in text
    assert "dataset" in text.split("---")[1]


def test_the_card_of_an_unevaluated_model_says_so(tmp_path):
    assert f"It was not evaluated on any data. {UNKNOWN}" in card(tmp_path, make_record())


def test_the_card_states_the_lengths_of_the_training_texts(tmp_path):
    rows = [{"prompt": "a b", "chosen": "a b c", "rejected": "d e f"} for _ in range(4)]
    text = card(tmp_path, make_record(training_texts=summarize_training_data(rows, seed=0)))
    assert "90% of the training texts are prompts of 2 to 2 words and responses of 3 to 3 words." in text
    assert "`hf-reward score --compare-training`" in text
