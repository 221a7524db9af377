"""Planted faults are found and counted, and clean data has no findings."""

import json
import random
import re
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from vision_models import encoded, picture

from hf_reward.data.near_duplicates import RowPool
from hf_reward.data.preference_row import PreferenceFormatError
from hf_reward.data.splits import split_by_prompt
from hf_reward.evaluation.data_check import DataReport, check_data, write_report
from hf_reward.evaluation.data_check.facts import RowFacts, gather_facts
from hf_reward.evaluation.data_check.row_reader import RowReader
from hf_reward.preprocessing.tokenization import FormatRule

Row = dict[str, Any]


def words(key: Any, count: int = 30) -> str:
    """Words that no other text has."""
    rng = random.Random(str(key))
    return " ".join("".join(rng.choices("abcdefghijklmnop", k=6)) for _ in range(count))


def pair(number: Any, **changes: Any) -> Row:
    """A pair with its own prompt; both sides have the same numbers of words and characters."""
    row = {"prompt": words(f"p{number}"), "chosen": words(f"c{number}"), "rejected": words(f"r{number}")}
    return row | changes


def clean(count: int = 60) -> list[Row]:
    return [pair(number) for number in range(count)]


def findings(report: DataReport) -> dict[str, str]:
    return {fix.finding: fix.found for fix in report.fix_first}


def scopes(report: DataReport) -> dict[str, str]:
    return {fix.finding: fix.scope for fix in report.fix_first}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


# --- rows ------------------------------------------------------------------------------------------------------------


def test_clean_data_has_nothing_to_fix():
    report = check_data(clean(), eval_data=[pair(f"e{number}") for number in range(20)])
    assert report.fix_first == []
    assert (report.data.rows, report.data.usable, report.data.strict_pairs) == (60, 60, 60)
    assert report.data.layouts == {"pairs, text": 60}
    assert report.leakage is not None
    assert report.leakage.leaked_rows == 0
    assert report.votes is report.tokens is None


def test_unusable_rows_are_counted_by_reason_and_named():
    rows = clean()
    rows[3]["chosen"] = ""
    rows[5]["rejected"] = True
    rows[6]["rejected"] = False
    rows[9]["rejected"] = None
    rows[11]["prompt"] = 7
    report = check_data(rows)
    assert report.data.usable == 55
    assert report.data.unusable == {
        "`rejected` must be text, but is bool": 2,
        "`chosen` is empty": 1,
        "`rejected` must be text, but is missing": 1,
        "`prompt` must be text or a non-empty list of messages, but is int": 1,
    }
    assert report.data.unusable_rows["`rejected` must be text, but is bool"] == [5, 6]
    assert scopes(report)["unusable rows"] == "5 of 60 rows (8.3%)"
    assert (
        "`rejected` must be text, but is bool (2 rows); `chosen` is empty (1 row)" in findings(report)["unusable rows"]
    )


def test_missing_and_damaged_images_are_unusable_rows(tmp_path):
    good = encoded(picture(0))
    rows = clean()
    rows[0] |= {"image": good}
    rows[2] |= {"image": good[: len(good) // 2]}
    rows[4] |= {"images": [good, b"no image"]}
    rows[6] |= {"prompt": [{"role": "user", "content": [{"type": "image", "path": str(tmp_path / "gone.png")}]}]}
    report = check_data(rows)
    assert report.data.usable == 57
    reasons = {tuple(rows): reason for reason, rows in report.data.unusable_rows.items()}
    assert set(reasons) == {(2,), (4,), (6,)}
    assert reasons[2,].startswith("An image cannot be decoded")
    assert reasons[4,] == "An image must be one of PNG, JPEG, WEBP, GIF, BMP, TIFF"
    assert re.fullmatch(r"The image .*gone\.png cannot be read \(No such file or directory\)", reasons[6,])


def test_layouts_are_distinguished():
    message = [{"role": "user", "content": words("q")}]
    answer = [{"role": "assistant", "content": words("a")}]
    other = [{"role": "assistant", "content": words("b")}]
    assert check_data([{"prompt": message, "chosen": answer, "rejected": other}]).data.layouts == {"pairs, messages": 1}
    implicit = check_data([{"chosen": [*message, *answer], "rejected": [*message, *other]}])
    assert implicit.data.layouts == {"pairs, messages": 1}
    no_prompt = check_data([{"chosen": "a yes", "rejected": "a no"}])
    assert no_prompt.data.layouts == {"pairs, text, no prompt": 1}
    ranked = check_data([{"prompt": "p", "responses": [words(1), words(2), words(3)], "scores": [1, 2, 2]}])
    assert ranked.data.layouts == {"ranked, text, 3 responses": 1}
    assert (ranked.data.strict_pairs, ranked.data.tied_rows) == (2, 0)
    voted = check_data([{"prompt": "p", "response_a": "x", "response_b": "y", "winner": "tie"}])
    assert voted.data.layouts == {"votes, text": 1}
    assert (voted.data.strict_pairs, voted.data.tied_rows, voted.shallow_rules) == (0, 1, None)


def test_transcripts_read_as_text_are_named():
    text = "\n\nHuman: {}\n\nAssistant: {}"
    rows = [{side: text.format(words(i), words(f"{side}{i}")) for side in ("chosen", "rejected")} for i in range(10)]
    assert scopes(check_data(rows))["transcripts"] == "10 of 10 rows (100.0%)"
    read = check_data(rows, layout="hh")
    assert "transcripts" not in findings(read)
    assert read.data.layouts == {"hh, messages": 10}


def test_sides_with_different_prompts_are_counted():
    text = "\n\nHuman: {}\n\nAssistant: {}"
    rows = [{side: text.format(words(i), words(f"{side}{i}")) for side in ("chosen", "rejected")} for i in range(30)]
    for number in (4, 20):
        rows[number]["rejected"] = text.format(words(f"other {number}"), words(number))
    report = check_data(rows, layout="hh")
    assert (report.data.prompts_differed, report.data.prompts_differed_rows) == (2, [4, 20])
    assert scopes(report)["prompt mismatch"] == "2 of 30 rows (6.7%)"


def test_token_ids_are_compared_as_numbers():
    rows = [{"chosen_ids": [1, 2, 3, number], "rejected_ids": [1, 2, 3, number + 50]} for number in range(25)]
    report = check_data([*rows, rows[0]])
    assert report.data.layouts == {"tokenized": 26}
    assert report.duplicates.duplicate_rows == 1


# --- repetition ------------------------------------------------------------------------------------------------------


def test_repeated_rows_are_counted_in_any_order_of_responses():
    rows = clean()
    rows += [rows[0], rows[1], rows[1]]
    rows += [pair(2, chosen=f"  {rows[2]['chosen']}\n")]  # differs only in white space
    report = check_data(rows)
    assert report.duplicates.duplicate_rows == 4
    assert report.duplicates.duplicate_examples == [(60, 0), (61, 1), (62, 1), (63, 2)]
    assert scopes(report)["duplicate rows"] == "4 of 64 rows (6.2%)"
    lists = [
        {"prompt": "p", "responses": [words(i) for i in order], "ranks": list(order)}
        for order in ((0, 1, 2), (2, 0, 1))
    ]
    assert check_data(lists).duplicates.duplicate_rows == 1


def test_a_few_repeated_rows_are_counted_but_not_listed():
    rows = [*clean(200), pair(0)]
    report = check_data(rows)
    assert report.duplicates.duplicate_rows == 1
    assert "duplicate rows" not in findings(report)


def test_identical_pairs_are_counted():
    rows = clean()
    for number in (7, 8):
        rows[number]["rejected"] = f"{rows[number]['chosen']} "
    report = check_data(rows)
    assert (report.duplicates.identical_pairs, report.duplicates.identical_examples) == (2, [7, 8])
    assert report.contradictions.contradictory_pairs == 0


def test_near_duplicates_are_counted_by_kind():
    rows = clean(30)
    rows += [pair(100, prompt=f"{rows[0]['prompt']} more"), pair(101, chosen=f"{rows[1]['chosen']} more")]
    rows += [pair(102, chosen="I cannot say."), pair(103, chosen="I cannot say that.")]  # too short to be compared
    found = check_data(rows).duplicates
    assert (found.prompts.texts, found.prompts.distinct, found.prompts.compared) == (34, 34, 34)
    assert (found.prompts.near_clusters, found.prompts.near_texts, found.prompts.examples) == (1, 2, [(0, 30)])
    assert (found.responses.texts, found.responses.distinct, found.responses.compared) == (68, 68, 66)
    assert (found.responses.near_clusters, found.responses.near_texts, found.responses.examples) == (1, 2, [(1, 31)])


def test_prompt_groups_are_counted():
    rows = [pair(i, prompt=f"prompt {i // 3}") for i in range(7)]
    found = check_data(rows).duplicates
    assert (found.prompt_groups, found.largest_group, found.rows_sharing_a_group) == (3, 3, 6)
    assert "only 3 prompt groups" in findings(check_data(rows))["few prompts"]


# --- contradictions --------------------------------------------------------------------------------------------------


def test_contradictory_pairs_are_counted_once_and_only_within_a_prompt():
    rows = clean()
    flipped = {"chosen": rows[0]["rejected"], "rejected": rows[0]["chosen"]}
    rows += [pair(0, **flipped), pair(0, **flipped)]  # two rows state the same preference
    rows += [pair("another prompt", **flipped)]
    found = check_data(rows).contradictions
    assert (found.contradictory_pairs, found.contradictory_rows, found.cycles) == (1, 3, 0)
    assert {frozenset(rows) for rows in found.contradictory_examples} <= {frozenset({0, 60}), frozenset({0, 61})}


def test_cycles_of_three_are_counted_and_contradictory_pairs_are_left_out_of_them():
    a, b, c, d = (words(name) for name in "abcd")
    circle = [(a, b), (b, c), (c, a)]
    rows = clean(40)
    rows += [pair("x", chosen=better, rejected=worse) for better, worse in circle]
    rows += [pair("y", chosen=better, rejected=worse) for better, worse in [(a, b), (b, c), (a, c), (c, d)]]
    found = check_data(rows).contradictions
    assert (found.cycles, found.cycle_rows, found.cycle_examples) == (1, 3, [40, 41, 42])
    both_ways = [pair("z", chosen=better, rejected=worse) for better, worse in [*circle, (b, a)]]
    found = check_data(both_ways).contradictions
    assert (found.contradictory_pairs, found.contradictory_rows, found.cycles) == (1, 2, 0)


def test_cycles_equal_a_search_over_all_triples():
    rng = random.Random(3)
    for _ in range(5):
        texts = [words(name, 5) for name in "abcdefg"]
        edges = {(i, j) if rng.random() < 0.5 else (j, i) for i in range(7) for j in range(i) if rng.random() < 0.7}
        rows = [{"prompt": "p", "chosen": texts[i], "rejected": texts[j]} for i, j in sorted(edges)]
        triples = {
            frozenset((i, j, k))
            for i, j in edges
            for k in range(7)
            if (j, k) in edges and (k, i) in edges
        }  # fmt: skip
        assert facts_of(rows)[1].cycles == len(triples)


def facts_of(rows: list[Row]) -> tuple[RowFacts, Any]:
    from hf_reward.evaluation.data_check.consistency import find_contradictions

    reader = RowReader(rows)
    facts = gather_facts(reader, RowPool(reader.row))
    return facts, find_contradictions(facts)


# --- leakage ---------------------------------------------------------------------------------------------------------


def test_each_kind_of_leak_is_counted():
    train = clean()
    held = [pair(f"e{number}") for number in range(20)]
    held[0] = train[0]  # complete row
    held[1] = pair(
        1, chosen=train[1]["rejected"], rejected=train[1]["chosen"]
    )  # complete row with the opposite preference
    held[2] = pair("e2", prompt=train[2]["prompt"])
    held[3] = pair("e3", prompt=f"{train[3]['prompt']} more")
    held[4] = pair("e4", chosen=train[4]["rejected"])
    held[5] = pair("e5", rejected=f"{train[5]['chosen']} more")
    held[6] = pair("e6", chosen="No.")
    report = check_data([*train, pair("stock", chosen="No.")], eval_data=held)
    assert report.leakage is not None
    assert report.leakage.kinds == {
        "whole row": 2,
        "prompt group": 3,
        "prompt": 3,
        "near prompt": 4,
        "response": 3,
        "near response": 4,
    }
    assert report.leakage.leaked_rows == 6
    assert report.leakage.examples["near prompt"] == [0, 1, 2, 3]
    assert scopes(report)["leakage"] == "6 of 20 evaluation rows (30.0%)"
    assert report.fix_first[0].finding == "leakage"


def test_a_group_on_both_sides_leaks():
    train = [pair(number, group="a") for number in range(5)]
    held = [pair(f"e{number}", group="a" if number else "b") for number in range(4)]
    leakage = check_data(train, eval_data=held).leakage
    assert leakage is not None
    assert leakage.kinds["prompt group"] == leakage.leaked_rows == 3


def test_rows_without_a_prompt_do_not_share_one():
    train, held = ([{"chosen": f"{a}{i} yes", "rejected": f"{b}{i} no"} for i in range(5)] for a, b in ("ab", "cd"))
    leakage = check_data(train, eval_data=held).leakage
    assert leakage is not None
    assert leakage.leaked_rows == 0


@pytest.mark.parametrize("seed", range(4))
def test_a_split_by_near_duplicates_never_leaks(seed: int):
    """Prompts and responses that repeat exactly or nearly, in many combinations."""
    rng = random.Random(seed)
    rows = []
    for number in range(80):
        prompt, chosen = (words(f"{kind}{rng.randrange(60)}") + rng.choice(["", " more"]) for kind in "pc")
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rng.choice(["No.", words(f"r{number}")])})
    train, held = split_by_prompt(Dataset.from_list(rows), test_size=0.3, seed=seed, near_duplicates=True)
    leakage = check_data(train, eval_data=held).leakage
    assert leakage is not None
    assert leakage.leaked_rows == 0


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_rows_that_max_length_cuts_or_drops_are_counted(text_tokenizer):
    rows = [{"prompt": "a ", "chosen": "yes", "rejected": f"no {number}"} for number in range(17)]
    rows += [{"prompt": "Water boils at one hundred degrees; " * 3, "chosen": "yes", "rejected": "no"}] * 2
    rows += [{"prompt": "d ", "chosen": "The capital of France is Paris, and the capital " * 3, "rejected": "no"}]
    rows += [{"prompt": "c ", "chosen": "same", "rejected": "same"}]
    report = check_data(rows, tokenizer=text_tokenizer, rule=FormatRule(max_length=24))
    fit = report.tokens
    assert fit is not None
    assert (fit.rows, fit.cut_rows, fit.dropped) == (21, 2, {"too long": 1, "identical responses": 1})
    assert fit.sharing.rows == 19
    assert fit.sharing.given > fit.sharing.by_row >= fit.sharing.by_prompt
    assert fit.quantiles["max"] > 24
    assert fit.length.pairs + fit.length.ties == 19
    assert scopes(report)["too long"] == "1 of 21 rows (4.8%)"
    assert scopes(report)["cut prompts"] == "2 of 21 rows (9.5%)"
    strict = check_data(rows, tokenizer=text_tokenizer, rule=FormatRule(max_length=24, over_length="error"))
    assert strict.tokens is not None
    assert strict.tokens.dropped["too long"] == 3
    dropped = check_data(rows, tokenizer=text_tokenizer, rule=FormatRule(max_length=None)).tokens
    assert dropped is not None
    assert (dropped.cut_rows, dropped.dropped) == (0, {"identical responses": 1})


def test_messages_need_a_chat_template(chat_pairs, text_tokenizer, chat_tokenizer):
    fit = check_data(chat_pairs, tokenizer=chat_tokenizer).tokens
    assert fit is not None
    assert fit.rows == 16
    with pytest.raises(PreferenceFormatError, match="has no chat template"):
        check_data(chat_pairs, tokenizer=text_tokenizer)


# --- the complete report -------------------------------------------------------------------------------------------


def test_a_mixture_is_numbered_consecutively_and_sources_can_have_their_own_columns():
    ours = clean(10)
    theirs = [
        {"q": row["prompt"], "yes": row["chosen"], "no": row["rejected"]} for row in (pair(f"t{i}") for i in range(10))
    ]
    theirs[2]["yes"] = ""
    columns = {"prompt": "q", "chosen": "yes", "rejected": "no"}
    sources = [
        {"data": Dataset.from_list(ours), "name": "ours"},
        {"data": Dataset.from_list(theirs), "name": "theirs", "columns": columns},
    ]
    report = check_data(sources)
    assert report.data.name == "ours + theirs"
    assert report.data.unusable_rows == {"`chosen` is empty": [12]}


def test_the_report_is_json_and_deterministic(tmp_path):
    rows = [*clean(30), pair(0), pair(3, chosen="")]
    first, second = (check_data(rows, eval_data=[pair(1)]) for _ in range(2))
    assert first.to_dict() == second.to_dict()
    paths = write_report(first, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["data_report.json", "data_report.html"]
    loaded = json.loads(paths[0].read_text(encoding="utf-8"))
    assert loaded == first.to_dict()
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["data_report.html", "data_report.json"]
    assert loaded["settings"]["near_duplicate_jaccard"] == 0.8


def test_data_without_usable_rows_has_a_report():
    report = check_data([{"prompt": "p", "chosen": "", "rejected": "x"}] * 3)
    assert (report.data.usable, report.data.strict_pairs, report.shallow_rules) == (0, 0, None)
    assert list(findings(report)) == ["unusable rows"]
    assert report.length().verdict == "none"


def test_the_rows_are_not_changed():
    rows = clean(5)
    before = json.dumps(rows)
    check_data(rows)
    assert json.dumps(rows) == before


@pytest.mark.parametrize(
    ("data", "options", "error"),
    [
        ([], {}, "must have at least one row"),
        ([{"text": "a"}], {}, "do not match any layout"),
        (clean(3), {"layout": "chat"}, "`layout` must be auto, pairs"),
        (clean(3), {"columns": {"prompt": "question"}}, "`columns` names 'question'"),
        (clean(3), {"max_baseline_rows": 1}, "must be 2 or more"),
        (Dataset.from_list(clean(3)).to_iterable_dataset(), {}, "is a stream"),
        (Dataset.from_dict({"input_ids": [[[1]]]}), {}, "already tokenised"),
        ("nowhere/at/all.jsonl", {}, "There is no file"),
    ],
)
def test_data_that_cannot_be_checked_is_refused_with_the_remedy(data, options, error):
    with pytest.raises((ValueError, OSError), match=error):
        check_data(data, **options)


def test_a_sample_for_the_baselines_has_complete_prompt_groups():
    rows = [pair(f"{prompt} {i}", prompt=f"prompt {prompt}") for prompt in range(20) for i in range(5)]
    rules = check_data(rows, max_baseline_rows=42).shallow_rules
    assert rules is not None
    assert (rules.rows, rules.sampled) == (40, True)
    assert rules.by_prompt is not None
    assert rules.by_prompt.interval.num_clusters == 8


def test_a_random_split_that_overstates_accuracy_is_reported():
    """Forty prompts; each has one good text that is preferred to eight others."""
    rows = []
    for prompt in range(40):
        good = words(f"good{prompt}", 12)
        rows += [
            pair(f"{prompt} {i}", prompt=words(prompt), chosen=good, rejected=words(f"{prompt}{i}", 12))
            for i in range(8)
        ]
    report = check_data(rows)
    assert report.shallow_rules is not None
    assert report.shallow_rules.leak is not None
    assert report.shallow_rules.leak > 0.3
    assert "would overstate accuracy" in findings(report)["random split"]
    with_eval = check_data(rows, eval_data=clean(30))
    assert "random split" not in findings(with_eval)


def test_memory_does_not_grow_with_the_texts():
    facts, _ = facts_of(clean(50))
    arrays = [value for value in vars(facts).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) / 50 < 400
