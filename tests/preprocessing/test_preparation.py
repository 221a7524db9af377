"""Every raw row is kept, cut, merged or dropped with a reason, for every way to load the data."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset

from hf_reward.data.preference_row import PreferenceFormatError
from hf_reward.data.preferences import to_preference_row
from hf_reward.preprocessing.data_summary import summarize
from hf_reward.preprocessing.preparation import TOKENIZED_FEATURES, PreparationRule, is_prepared, prepare_preferences
from hf_reward.preprocessing.tokenization import FormatRule, tokenize_rows

NO_LIMIT = PreparationRule(format=FormatRule(max_length=None))
SKIP = PreparationRule(format=FormatRule(max_length=None), skip_bad_rows=True)


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def mishaps() -> list[dict[str, Any]]:
    """One row per outcome: kept, empty, cut prompt, identical responses, too long, duplicate."""
    return [
        {"prompt": "a ", "chosen": "yes", "rejected": "no"},
        {"prompt": "b ", "chosen": "", "rejected": "no"},
        {"prompt": "Water boils at one hundred degrees; " * 3, "chosen": "yes", "rejected": "no"},
        {"prompt": "c ", "chosen": "same", "rejected": "same"},
        {"prompt": "d ", "chosen": "The capital of France is Paris, and the capital " * 3, "rejected": "no"},
        {"prompt": "a ", "chosen": "yes", "rejected": "no"},
    ]


MISHAP_RULE = PreparationRule(format=FormatRule(max_length=24), skip_bad_rows=True)
MISHAP_DROPS = {"unreadable (chosen)": 1, "identical responses": 1, "too long": 1}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# --- counts ----------------------------------------------------------------------------------------------------------


def test_every_row_is_accounted_for(mishaps, text_tokenizer):
    data, summary = prepare_preferences(mishaps, text_tokenizer, MISHAP_RULE, name="mishaps")
    assert summary.dropped == MISHAP_DROPS
    assert (summary.rows, summary.kept, len(data)) == (6, 3, 3)
    assert (summary.cut, summary.merged, summary.duplicates, summary.prompts) == (1, 1, 1, 2)
    assert data["row"] == [0, 2, 5]
    assert data["id"] == ["0", "2", "5"]
    assert [cut > 0 for cut in data["cut_tokens"]] == [False, True, False]
    assert max(len(ids) for row in data["input_ids"] for ids in row) == 24
    assert data.features == TOKENIZED_FEATURES


def test_the_summary_is_logged_once_with_all_counts(mishaps, text_tokenizer, caplog):
    with caplog.at_level(logging.INFO, logger="hf_reward.preprocessing.preparation"):
        _, summary = prepare_preferences(mishaps, text_tokenizer, MISHAP_RULE, name="mishaps")
    (record,) = [record for record in caplog.records if record.name == "hf_reward.preprocessing.preparation"]
    assert record.getMessage() == str(summary)
    for part in ("mishaps: 3 of 6 rows kept (2 prompts)", "1 identical responses", "1 too long", "1 duplicate row,"):
        assert part in str(summary)
    assert json.loads(json.dumps(summary.to_dict()))["dropped"] == MISHAP_DROPS


def test_counts_and_rows_survive_worker_processes_and_the_cache(tmp_path, mishaps, text_tokenizer):
    path = write_lines(tmp_path / "rows.jsonl", mishaps)
    once, first = prepare_preferences(path, text_tokenizer, MISHAP_RULE)
    files = set((tmp_path / "cache").rglob("*.arrow"))
    again, second = prepare_preferences(path, text_tokenizer, MISHAP_RULE)
    assert files
    assert set((tmp_path / "cache").rglob("*.arrow")) == files  # otherwise the cache was not used
    # In memory, because rows of a file would come from the cache instead of the workers.
    workers, third = prepare_preferences({"data": mishaps, "name": "rows"}, text_tokenizer, MISHAP_RULE, num_proc=2)
    assert first == second == third
    assert first.dropped == MISHAP_DROPS
    assert once.to_list() == again.to_list() == workers.to_list()


def test_a_different_rule_does_not_use_the_first_rule_s_cache(tmp_path, mishaps, text_tokenizer):
    path = write_lines(tmp_path / "rows.jsonl", mishaps)
    _, short = prepare_preferences(path, text_tokenizer, MISHAP_RULE)
    _, long = prepare_preferences(path, text_tokenizer, SKIP)
    assert (short.kept, long.kept) == (3, 4)


def test_a_bad_row_is_reported_with_its_location_in_the_file(tmp_path, mishaps, text_tokenizer):
    path = write_lines(tmp_path / "rows.jsonl", mishaps)
    with pytest.raises(PreferenceFormatError, match=r"rows\.jsonl, line 2: `chosen` is empty"):
        prepare_preferences(path, text_tokenizer, NO_LIMIT)


def test_a_bad_row_in_a_worker_process_is_reported_too(mishaps, text_tokenizer):
    rows = [mishaps[0]] * 3 + [{**mishaps[0], "margin": "wide"}]
    with pytest.raises(PreferenceFormatError, match="Row 3: `margin` must be a finite number, but is 'wide'"):
        prepare_preferences(rows, text_tokenizer, NO_LIMIT, num_proc=2)


def test_the_error_policy_names_the_row_that_is_too_long(mishaps, text_tokenizer):
    rule = PreparationRule(format=FormatRule(max_length=24, over_length="error"))
    with pytest.raises(
        PreferenceFormatError, match=r"Row 1: the longest sequence has \d+ tokens, above `max_length=24`"
    ):
        prepare_preferences([mishaps[0], mishaps[2]], text_tokenizer, rule)


def test_a_row_that_the_chat_template_refuses_is_named(chat_pairs, chat_tokenizer):
    chat_tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + chat_tokenizer.chat_template
    )
    chat_pairs[2]["prompt"] = [{"role": "system", "content": "Be kind."}, *chat_pairs[2]["prompt"]]
    with pytest.raises(PreferenceFormatError, match=r"Row 2: the chat template cannot render .*System role"):
        prepare_preferences(chat_pairs, chat_tokenizer, NO_LIMIT)


def test_hand_made_rows_have_the_right_summary(text_tokenizer):
    sides = [("b" * 9, "c"), ("b" * 3, "c" * 5), ("bb", "cc"), ("bbbb", "c"), ("bbbb", "c")]
    rows = [
        {"prompt": f"{number} ", "chosen": " ".join(a), "rejected": " ".join(b)}
        for number, (a, b) in enumerate(sides[:4])
    ]
    rows.append(rows[3])
    _, summary = prepare_preferences(rows, text_tokenizer, NO_LIMIT)
    longest = [
        max(len(text_tokenizer(f"{row['prompt']}{row[side]}")["input_ids"]) + 1 for side in ("chosen", "rejected"))
        for row in rows
    ]
    assert summary.token_quantiles["max"] == max(longest)
    assert summary.token_quantiles["median"] == sorted(longest)[2]
    assert summary.longer_preferred == pytest.approx((1 + 0 + 0.5 + 1 + 1) / 5)
    assert summary.num_pairs == 5
    assert (summary.duplicates, summary.prompts, summary.sources) == (1, 4, ["data"])


def test_a_row_whose_sides_had_different_prompts_is_counted(chat_tokenizer):
    turn = {"role": "user", "content": "hello"}
    rows = [
        {
            "chosen": [turn, {"role": "assistant", "content": "one"}],
            "rejected": [{**turn, "content": other}, {"role": "assistant", "content": "two"}],
        }
        for other in ("hello", "goodbye")
    ]
    data, summary = prepare_preferences(rows, chat_tokenizer, NO_LIMIT)
    assert summary.prompts_differed == 1
    assert data["prompts_differed"] == [False, True]


# --- rows that the loss can use --------------------------------------------------------------------------------------

VOTES = [
    {"prompt": "a ", "response_a": "yes", "response_b": "no", "winner": "b"},
    {"prompt": "b ", "response_a": "yes", "response_b": "no", "winner": "tie"},
    {"prompt": "c ", "response_a": "yes", "response_b": "no", "winner": None, "probability": 0.5},
    {"prompt": "d ", "response_a": "same", "response_b": "same", "winner": "tie"},
]
RANKED = [
    {"prompt": "a ", "responses": ["x", "y", "z"], "ranks": [0, 1, 1]},
    {"prompt": "b ", "responses": ["x", "y", "z"], "ranks": [2, 1, 0]},
    {"prompt": "c ", "responses": ["x", "y", "y"], "ranks": [0, 1, 1]},
]


@pytest.mark.parametrize(
    ("models_ties", "kept", "dropped"),
    [(False, [0, 2], {"tied": 1, "identical responses": 1}), (True, [0, 1, 2], {"identical responses": 1})],
)
def test_ties_are_kept_only_where_the_loss_models_them(text_tokenizer, models_ties, kept, dropped):
    rule = PreparationRule(models_ties=models_ties)
    data, summary = prepare_preferences(VOTES, text_tokenizer, rule)
    assert data["row"] == kept
    assert summary.dropped == dropped
    assert data["ranks"][0] == [1, 0]
    assert data["probability"][kept.index(2)] == 0.5


def test_a_loss_of_strict_orders_drops_rows_with_ties_but_not_ties_of_equal_responses(text_tokenizer):
    data, summary = prepare_preferences(RANKED, text_tokenizer, PreparationRule(strict_order=True))
    assert data["row"] == [1, 2]
    assert summary.dropped == {"with ties, where the loss needs a strict order": 1}
    assert (data["ranks"][1], summary.merged) == ([0, 1], 1)
    assert prepare_preferences(RANKED, text_tokenizer, PreparationRule())[1].kept == 3


def test_data_of_ties_alone_is_refused_with_the_reason(text_tokenizer):
    with pytest.raises(ValueError, match=r"votes: none of 1 rows can be used \(1 tied\)"):
        prepare_preferences(VOTES[1:2], text_tokenizer, name="votes")


# --- mixtures --------------------------------------------------------------------------------------------------------


def test_weights_repeat_rows_or_take_a_random_part_of_them(text_pairs, text_tokenizer):
    parts = [
        {"data": Dataset.from_list(text_pairs[:4]), "name": "twice", "weight": 2.0},
        {"data": Dataset.from_list(text_pairs[4:12]), "name": "half", "weight": 0.5},
        {"data": Dataset.from_list(text_pairs[12:]), "name": "whole"},
    ]
    data, summary = prepare_preferences(parts, text_tokenizer, NO_LIMIT, seed=1)
    seen = {name: [row["row"] for row in data if row["source"] == name] for name in ("twice", "half", "whole")}
    assert sorted(seen["twice"]) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(set(seen["half"])) == len(seen["half"]) == 4
    assert seen["whole"] == [0, 1, 2, 3]
    assert summary.sources == ["half", "twice", "whole"]
    assert (summary.rows, summary.kept) == (16, 16)  # of the data, not of the mixture

    def half(seed: int) -> list[int]:
        mixed, _ = prepare_preferences(parts, text_tokenizer, NO_LIMIT, seed=seed)
        return [row["row"] for row in mixed if row["source"] == "half"]

    assert half(1) == seen["half"]
    assert any(half(seed) != seen["half"] for seed in (2, 3))


def test_a_row_s_own_source_column_wins_over_the_name_of_the_data(text_pairs, text_tokenizer):
    rows = [{**text_pairs[0], "source": "forum"}, {**text_pairs[1], "source": None}]
    data, summary = prepare_preferences({"data": rows, "name": "mix"}, text_tokenizer)
    assert data["source"] == ["forum", "mix"]
    assert summary.sources == ["forum", "mix"]


def test_a_mixture_of_a_stream_and_a_table_is_refused(text_pairs, text_tokenizer):
    data = Dataset.from_list(text_pairs)
    with pytest.raises(ValueError, match="must all be streams or all be datasets"):
        prepare_preferences([data, data.to_iterable_dataset()], text_tokenizer, NO_LIMIT)


def test_a_mixture_of_streams_gives_rows_of_each(text_pairs, text_tokenizer):
    streams = [Dataset.from_list(part).to_iterable_dataset() for part in (text_pairs[:8], text_pairs[8:])]
    data, summary = prepare_preferences(streams, text_tokenizer, NO_LIMIT)
    assert isinstance(data, IterableDataset)
    assert {row["source"] for row in data} == {"data", "source1"}
    assert summary.kept == 16


# --- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named_columns", [True, False])
def test_a_stream_remains_a_stream_and_gives_the_same_rows(mishaps, text_tokenizer, named_columns):
    table, expected = prepare_preferences(mishaps, text_tokenizer, MISHAP_RULE)
    if named_columns:
        stream = Dataset.from_list(mishaps).to_iterable_dataset()
    else:
        stream = IterableDataset.from_generator(lambda: iter(mishaps))
        assert stream.column_names is None
    data, summary = prepare_preferences(stream, text_tokenizer, MISHAP_RULE)
    assert isinstance(data, IterableDataset)
    assert list(data) == table.to_list()
    assert summary.sampled
    assert not expected.sampled
    assert {**summary.to_dict(), "sampled": False} == expected.to_dict()


# --- edges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        [],
        Dataset.from_list([]),
        Dataset.from_dict({"prompt": [], "chosen": [], "rejected": []}),
        IterableDataset.from_generator(lambda: iter([])),
    ],
    ids=["list", "bare dataset", "dataset", "stream"],
)
def test_data_without_rows_is_refused(text_tokenizer, data):
    with pytest.raises(ValueError, match="must have at least one row"):
        prepare_preferences(data, text_tokenizer)


def test_a_limit_below_every_response_is_refused_with_the_remedy(text_pairs, text_tokenizer):
    rule = PreparationRule(format=FormatRule(max_length=3))
    message = (
        r"16 too long\). `max_length=3` is shorter than the responses. To keep 99% of the rows uncut, set "
        r"`max_length=50`"
    )
    with pytest.raises(ValueError, match=message):
        prepare_preferences(text_pairs, text_tokenizer, rule)


@pytest.mark.parametrize("policy", ["drop", "truncate_prompt"])
def test_the_length_that_keeps_99_percent_is_the_smallest_that_does(text_tokenizer, policy, caplog):
    rows = [{"prompt": "Why? ", "chosen": "x" * number, "rejected": "no"} for number in range(1, 301)]
    with pytest.raises(ValueError, match="none of 300 rows can be used"), caplog.at_level(logging.INFO, "hf_reward"):
        prepare_preferences(rows, text_tokenizer, PreparationRule(format=FormatRule(max_length=2, over_length=policy)))
    assert "nan" not in caplog.text
    assert "No strict pair is left." in caplog.text
    limit = 20 if policy == "truncate_prompt" else 100
    rule = PreparationRule(format=FormatRule(max_length=limit, over_length=policy))
    summary = prepare_preferences(rows, text_tokenizer, rule)[1]
    enough = summary.length_for_99_percent
    assert enough is not None
    assert f"`max_length={enough}` would keep 99% of the rows uncut" in str(summary)
    for change, kept in ((0, True), (-1, False)):
        rule = PreparationRule(format=FormatRule(max_length=enough + change, over_length="drop"))
        assert (prepare_preferences(rows, text_tokenizer, rule)[1].kept >= 0.99 * 300) is kept
    full = prepare_preferences(rows, text_tokenizer, NO_LIMIT)[1]
    assert full.length_for_99_percent is None
    assert "uncut" not in str(full)


def test_columns_that_fit_no_layout_are_refused_before_any_row_is_read(text_tokenizer):
    with pytest.raises(PreferenceFormatError, match=r"The columns do not match any layout.*Found: bad, good"):
        prepare_preferences([{"good": "a", "bad": "b"}], text_tokenizer)
    data, _ = prepare_preferences(
        [{"good": "a", "bad": "b"}], text_tokenizer, columns={"chosen": "good", "rejected": "bad"}
    )
    assert len(data) == 1


def test_prepared_data_passes_through_and_is_summarised(mishaps, text_tokenizer):
    data, summary = prepare_preferences(mishaps, text_tokenizer, MISHAP_RULE)
    again, other = prepare_preferences(data, text_tokenizer, NO_LIMIT)
    assert again is data
    assert is_prepared(data)
    assert not is_prepared(Dataset.from_list(mishaps))
    assert not is_prepared(mishaps)
    assert (other.rows, other.kept, other.dropped) == (3, 3, {})
    assert other.token_quantiles == summary.token_quantiles == summarize(data, "x").token_quantiles


def test_fields_that_arrow_fills_with_none_do_not_reach_the_template(chat_tokenizer):
    chat_tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}"
        "{{ ' name' if m['name'] is defined }}{{ '\n' }}{% endfor %}"
    )
    rows = [
        {
            "prompt": [{"role": "user", "content": "hi", **extra}],
            "chosen": [{"role": "assistant", "content": "one"}],
            "rejected": [{"role": "assistant", "content": "two"}],
        }
        for extra in ({"name": "Ada"}, {})
    ]
    table = Dataset.from_list(rows)
    assert table[1]["prompt"][0]["name"] is None
    data, _ = prepare_preferences(table, chat_tokenizer, NO_LIMIT)
    direct = tokenize_rows([to_preference_row(row) for row in rows], chat_tokenizer, NO_LIMIT.format)
    assert data["input_ids"] == [result.input_ids for result in direct]
    assert chat_tokenizer.decode(data["input_ids"][1][0]).startswith("user: hi\n")


def test_optional_fields_of_a_row_are_kept(text_pairs, text_tokenizer):
    rows = [
        {**text_pairs[0], "margin": 0.5, "weight": 2.0, "id": "x", "group": "g"},
        {**text_pairs[1], "margin": None, "weight": None, "id": None, "group": "g"},
        {**text_pairs[1], "margin": None, "weight": 0.0, "id": None, "group": None},
    ]
    data, summary = prepare_preferences(rows, text_tokenizer)
    assert data["margin"] == [0.5, None, None]
    assert data["weight"] == [2.0, 1.0, 0.0]
    assert data["id"] == ["x", "1", "2"]
    assert data["group"][0] == data["group"][1] != data["group"][2]
    assert data["probability"] == [None] * 3
    assert summary.prompts == 2
    assert data["length"] == [sum(map(len, ids)) for ids in data["input_ids"]]


def test_already_tokenised_rows_keep_their_ids(text_tokenizer):
    data, _ = prepare_preferences([{"chosen_ids": [5, 6, 7], "rejected_ids": [5, 8]}], text_tokenizer)
    assert data["input_ids"] == [[[5, 6, 7], [5, 8]]]
    assert data["prefix_length"] == [1]


def test_text_pairs_keep_their_token_types(text_pairs, pair_tokenizer):
    data, _ = prepare_preferences(text_pairs, pair_tokenizer)
    for ids, types in zip(data["input_ids"], data["token_type_ids"], strict=True):
        assert [len(part) for part in types] == [len(part) for part in ids]
        assert {kind for part in types for kind in part} == {0, 1}
