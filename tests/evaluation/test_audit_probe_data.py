import csv
import json
from pathlib import Path

import pytest

from hf_reward.evaluation.audit.inputs.audit_inputs import FULL, QUICK, build_inputs
from hf_reward.evaluation.audit.inputs.probe_data import read_probe_data

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
LLAMA = f"<|begin_of_text|>{HEADER.format('user')}{{}}<|eot_id|>{HEADER.format('assistant')}"


def write(path: Path, rows: list) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_truthfulqa(tmp_path, name):
    rows = [
        {
            "Category": "Myths",
            "Question": "What happens?",
            "Best Answer": "Nothing at all happens",
            "Incorrect Answers": "You die; You get very ill; You fall into a deep sleep for years.",
        }
    ]
    (question,) = read_probe_data(write(tmp_path / name, rows)).questions
    assert (question.question, question.category) == ("What happens?", "Myths")
    assert (question.correct, question.incorrect) == ("Nothing at all happens.", "You get very ill.")


def test_matched_prompts_with_and_without_a_template(tmp_path):
    targets = {"sycophantic_target": " (B)", "honest_target": " (A)"}
    texts = [{"neutral_text": "Agree?", "biased_text": "I don't. Agree?", **targets}]
    prompts = [{"neutral_prompt": LLAMA.format("Agree?"), "biased_prompt": LLAMA.format("I don't. Agree?"), **targets}]
    found = [read_probe_data(write(tmp_path / "m.jsonl", rows)).matched for rows in (texts, prompts)]
    assert found[0] == found[1]
    (one,) = found[0]
    assert (one.biased, one.plain, one.target, one.other) == ("I don't. Agree?", "Agree?", "(B)", "(A)")
    assert (one.crossed, one.cluster) == (False, "matched: Agree?")


def test_model_written_questions_are_crossed(tmp_path):
    def row(who: str, question: str, answer: str) -> dict:
        other = {" (A)": " (B)", " (B)": " (A)"}[answer]
        text = f"Hello, I'm {who}. Do you agree? {question}\n\nChoices:\n (A) Agree\n (B) Disagree\n\nAnswer:"
        return {"question": text, "answer_matching_behavior": answer, "answer_not_matching_behavior": other}

    rows = [row("Ann", "Tea is good.", " (A)"), row("Ben", "Tea is good.", " (B)"), row("Cem", "Ink is blue.", " (A)")]
    (one,) = read_probe_data(write(tmp_path / "p.jsonl", rows)).matched
    assert one.crossed
    assert (one.target, one.other) == ("(A)", "(B)")
    assert "Ann" in one.biased
    assert "Ben" in one.plain
    assert one.cluster.startswith("matched: Tea is good. (A) Agree")
    with pytest.raises(ValueError, match="occurs with both views"):
        read_probe_data(write(tmp_path / "p.jsonl", rows[1:]))


def test_graded_solutions(tmp_path):
    row = {
        "question": "How many?",
        "ground_truth": "4",
        "small": {"is_correct": False, "solution": "2 + 1 = <<2+1=3>>3"},
        "large": {"is_correct": True, "solution": "2 + 2 = <<2+2=4>>4"},
    }
    (several,) = read_probe_data(write(tmp_path / "g.jsonl", [row])).lists
    assert several.responses == ["2 + 1 = 3", "2 + 2 = 4"]
    assert several.gold == [0.0, 1.0]
    assert several.prompt == [{"role": "user", "content": "How many?"}]
    (text,) = build_inputs([], FULL, lists=[several], takes_messages=False).lists
    assert text.prompt == "How many?"


def test_our_own_format(tmp_path):
    row = {"question": "Why?", "correct": "So.", "incorrect": "No."}
    (question,) = read_probe_data(write(tmp_path / "o.jsonl", [row])).questions
    assert (question.correct, question.incorrect) == ("So.", "No.")
    opinion = dict(zip(("option_a", "option_b", "view_a", "view_b", "answer_a", "answer_b"), "abcdef", strict=True))
    (one,) = read_probe_data(write(tmp_path / "o.jsonl", [{"question": "Tea?", **opinion}])).opinions
    assert one.question == "Tea?\n (A) a\n (B) b"
    assert (one.views, one.answers) == (("c", "d"), ("e", "f"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("{", "line 1: the row is not valid JSON"),
        ("[1]\n", "line 1: the row must be a JSON object, but is a list"),
        ('{"prompt": "x", "chosen": "y"}\n', r"has the fields \['chosen', 'prompt'\].*Known formats: TruthfulQA"),
        ('{"question": "x", "correct": "y", "incorrect": ""}\n', "line 1: `incorrect` must be text, but is ''"),
        ('{"Question": "x", "Best Answer": "y", "Incorrect Answers": "y; "}\n', "no answer other than the best one"),
    ],
)
def test_unknown_formats_are_rejected_with_their_fields(tmp_path, text, message):
    path = tmp_path / "file.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_probe_data(path)


@needs_shared
def test_real_files():
    truthful = read_probe_data(SHARED / "truthfulqa" / "TruthfulQA.jsonl").questions
    assert len(truthful) == 817
    assert all(each.correct != each.incorrect for each in truthful)
    for name, clusters in (("nlp_survey", 101), ("political_typology", 34)):
        matched = read_probe_data(SHARED / "sycophancy_perez" / f"{name}.jsonl").matched
        assert (len(matched), len({each.cluster for each in matched})) == (500, clusters)
        assert {each.target for each in matched} == {"(A)", "(B)"}
        assert len({each.cluster for each in build_inputs([], QUICK, matched=matched).matched}) == QUICK.opinions
    lists = read_probe_data(SHARED / "gsm8k_solutions" / "example_model_solutions.jsonl").lists
    assert len(lists) == 1319
    assert all(len(each.responses) == len(each.gold or []) == 4 for each in lists)
    calls = sum("<<" in text for each in lists for text in each.responses)
    assert calls < 0.01 * 4 * len(lists)  # the models left some open


@needs_shared
def test_model_written_questions_on_real_text(tmp_path):
    rows = [json.loads(line) for line in (SHARED / "sycophancy_perez" / "nlp_survey.jsonl").read_text().splitlines()]
    original = [
        {
            "question": row["biased_text"],
            "answer_matching_behavior": row["sycophantic_target"],
            "answer_not_matching_behavior": row["honest_target"],
        }
        for row in rows
    ]
    matched = read_probe_data(write(tmp_path / "o.jsonl", original)).matched
    assert len(matched) > 50
    assert all(each.crossed and each.biased != each.plain for each in matched)
