import re
from collections import Counter

import numpy as np
import pytest

from hf_reward.evaluation.audit.inputs.bundled_items import (
    _rows,
    bundled_arguments,
    bundled_opinions,
    bundled_questions,
)
from hf_reward.evaluation.audit.inputs.probe_data import own_opinion, own_question

COMMON = set(re.findall(r"\w+", "a an the is it in to of and or for be by with i my me that at on as so are if not"))


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower())) - COMMON


def test_questions_are_unique_and_their_answers_differ():
    questions = bundled_questions()
    assert len(questions) >= 130
    assert len({each.question for each in questions}) == len(questions)
    assert all(each.question.endswith("?") for each in questions)
    assert all(each.correct != each.incorrect for each in questions)
    assert len({each.cluster for each in questions}) == len(questions)
    assert not [each for each in questions if each.correct.rstrip(".") in each.incorrect]
    assert not [each for each in questions if each.incorrect.rstrip(".") in each.correct]


def test_the_form_of_an_answer_does_not_reveal_its_role():
    questions = bundled_questions()
    assert all(text.endswith(".") for each in questions for text in (each.correct, each.incorrect))
    by_words = np.array([len(each.correct.split()) - len(each.incorrect.split()) for each in questions])
    by_letters = np.array([len(each.correct) - len(each.incorrect) for each in questions])
    assert np.abs(by_words).max() <= 2
    assert abs(by_words.mean()) < 0.05
    assert abs(by_letters.mean()) < 0.5
    assert abs(np.sum(by_letters > 0) - np.sum(by_letters < 0)) < 10
    negated = [
        Counter(" not " in text for text in texts)[True]
        for texts in zip(*[(q.correct, q.incorrect) for q in questions], strict=True)
    ]
    assert max(negated) < 0.06 * len(questions)


def test_the_first_questions_cover_all_categories():
    questions = bundled_questions()
    assert {each.category for each in questions[:24]} == {each.category for each in questions}


def test_opinions_are_unique_and_balanced():
    rows, opinions = _rows("opinions.jsonl"), bundled_opinions()
    assert len(opinions) == 64
    assert len({each.question for each in opinions}) == len({each.cluster for each in opinions}) == 64
    assert Counter(row["conventional"] for row in rows) == {"A": 32, "B": 32}
    assert Counter(row["conventional"] for row in rows[:16]) == {"A": 8, "B": 8}
    assert all("\n (A) " in each.question and "\n (B) " in each.question for each in opinions)


def test_views_share_no_more_words_with_the_agreeing_answer():
    shared = []
    for each in bundled_opinions():
        common = [[len(words(view) & words(answer)) for answer in each.answers] for view in each.views]
        shared.append((common[0][0] - common[0][1] - common[1][0] + common[1][1]) / 2)
    assert abs(np.mean(shared)) < 0.05
    assert np.abs(shared).max() <= 1


def test_first_options_are_neither_longer_nor_shorter():
    rows = _rows("opinions.jsonl")
    for part in ("option", "view", "answer"):
        differences = [len(row[f"{part}_a"].split()) - len(row[f"{part}_b"].split()) for row in rows]
        assert abs(np.mean(differences)) < 0.6, part


def test_arguments_are_enough_for_an_interval():
    arguments = bundled_arguments()
    assert len({each.cluster for each in arguments}) == len(arguments) >= 24


def test_an_item_with_a_missing_field_is_named():
    with pytest.raises(ValueError, match="row 3: `incorrect` must be text"):
        own_question({"question": "Why?", "correct": "So."}, "row 3")
    with pytest.raises(ValueError, match="are the same"):
        own_question({"question": "Why?", "correct": "So.", "incorrect": "So."}, "row 3")
    with pytest.raises(ValueError, match="`option_b` must be text"):
        own_opinion({"question": "Why?", "option_a": "x"}, "row 1")
