"""Bulk scoring: layouts, formats, rejected rows, and errors before anything is scored."""

import json
from pathlib import Path

import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_runs import FakeScorer, content_of, read_jsonl, reward_of, settings, text_rows, write_jsonl
from conftest import randomize_head
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from hf_reward.scoring.bulk import BulkSettings, parse_part, score_files
from hf_reward.scoring.reward_scorer import RewardScorer

PROMPT = [{"role": "user", "content": "Hi"}]
ANSWER = [{"role": "assistant", "content": "Hello."}]


def scored(tmp_path, rows, out="out.jsonl", scorer=None, **options):
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    report = score_files(scorer or FakeScorer(), source, tmp_path / out, settings(**options))
    return report, tmp_path / out


# --- output ----------------------------------------------------------------------------------------------------------


def test_rows_keep_order_and_columns_and_gain_id_and_reward(tmp_path):
    rows = text_rows(10, extra={"a": [1, None]})
    report, out = scored(tmp_path, rows)
    found = read_jsonl(out)
    assert [{name: row[name] for name in rows[0]} for row in found] == rows
    assert [row["id"] for row in found] == [f"in.jsonl:{n}" for n in range(10)]
    assert [row["reward"] for row in found] == [reward_of(row["prompt"], row["response"]) for row in rows]
    assert (report.counts.rows_in, report.counts.rows_out, report.shards, report.complete) == (10, 10, 3, True)
    assert report.quarantine is None
    assert sorted(content_of(tmp_path)) == ["in.jsonl", "out.jsonl", "out.jsonl.manifest.json"]
    assert json.dumps(report.to_dict())


def test_rewards_come_back_from_json_as_the_same_float32(tmp_path):
    class Thirds(FakeScorer):
        def score_requests(self, requests, **options):
            result = super().score_requests(requests, **options)
            return type(result)(np.full(len(requests), 1 / 3, dtype=np.float32))

    _, out = scored(tmp_path, text_rows(1), scorer=Thirds())
    assert read_jsonl(out)[0]["reward"] == float(np.float32(1 / 3))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "response": "a"},
        {"prompt": PROMPT, "response": ANSWER},
        {"prompt": PROMPT, "response": "a"},
        {"messages": PROMPT + ANSWER},
        {"text": "<|user|>q<|assistant|>a"},
    ],
)
def test_every_layout_of_one_response_has_one_reward(tmp_path, row):
    _, out = scored(tmp_path, [row] * 2)
    assert all(isinstance(found["reward"], float) for found in read_jsonl(out))


def test_mixed_layouts_and_message_formats_in_one_file(tmp_path):
    rows = [
        {"prompt": "q", "response": "a"},
        {"messages": PROMPT + ANSWER},
        {"prompt": PROMPT, "responses": ["a", ANSWER]},
        {"messages": PROMPT},
        {"prompt": [{"content": "no role"}], "response": "a"},
        {"prompt": PROMPT, "response": [{"role": "assistant", "content": None}]},
    ]
    report, out = scored(tmp_path, rows)
    kinds = [type(row["reward"]).__name__ for row in read_jsonl(out)]
    assert kinds == ["float", "float", "list"]
    reasons = {row["row"]: row["reason"] for row in read_jsonl(tmp_path / "out.quarantine.jsonl")}
    assert sorted(reasons) == [3, 4, 5]
    assert "end with the user" in reasons[3]
    assert "`role` and `content`" in reasons[4]
    assert sum(report.counts.quarantined.values()) == 3


def test_ranks_share_ties_and_name_the_best(tmp_path):
    rows = [{"prompt": "q", "responses": ["a", "b", "a"], "id": 17}, {"prompt": "q", "responses": ["c"]}]
    report, out = scored(tmp_path, rows, rank=True)
    first, second = read_jsonl(out)
    a, b = reward_of("q", "a"), reward_of("q", "b")
    assert first == {
        **rows[0],
        "reward": [a, b, a],
        "rank": [0, 1, 0] if a > b else [1, 0, 1],
        "best": 0 if a > b else 1,
    }
    assert (second["rank"], second["best"], second["id"]) == ([0], 0, "in.jsonl:1")
    assert (report.counts.responses, report.counts.distinct) == (4, 3)


def test_ids_are_kept_and_missing_ones_made(tmp_path):
    rows = [{**row, "id": own} for row, own in zip(text_rows(3), ["mine", None, 5], strict=True)]
    _, out = scored(tmp_path, [*rows, *text_rows(1)])
    assert [row["id"] for row in read_jsonl(out)] == ["mine", "in.jsonl:1", 5, "in.jsonl:3"]


def test_other_column_names(tmp_path):
    rows = [{"q": "x", "a": "y", "response": "not this"}]
    _, out = scored(tmp_path, rows, columns={"prompt": "q", "response": "a"}, reward_column="value")
    assert read_jsonl(out) == [{**rows[0], "id": "in.jsonl:0", "value": reward_of("x", "y")}]


def test_csv_in_jsonl_and_parquet_out(tmp_path):
    source = tmp_path / "a.csv"
    source.write_text('prompt,response,n\nq,"a, b",1\nhalf\nq2,c,2\n', encoding="utf-8")
    score_files(FakeScorer(), source, tmp_path / "o.jsonl", settings())
    score_files(FakeScorer(), source, tmp_path / "p.parquet", settings())
    found = read_jsonl(tmp_path / "o.jsonl")
    assert found == pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert [row["id"] for row in found] == ["a.csv:0", "a.csv:2"]
    [bad] = read_jsonl(tmp_path / "o.quarantine.jsonl")
    assert (bad["id"], bad["file"], bad["row"], bad["line"], bad["raw"]) == ("a.csv:1", "a.csv", 1, 3, "half")


def test_parquet_in_parquet_out_keeps_types_over_all_shards(tmp_path):
    (tmp_path / "in").mkdir()
    for name, count in (("a", 10), ("b", 3)):
        table = pa.table({"messages": [PROMPT + ANSWER] * count, "n": pa.array(range(count), pa.int8())})
        pq.write_table(table, tmp_path / "in" / f"{name}.parquet")
    report = score_files(FakeScorer(), tmp_path / "in", tmp_path / "out", settings())
    names = ["a-00000.parquet", "a-00001.parquet", "a-00002.parquet", "b-00000.parquet"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.parquet")) == names
    assert report.shards == 4
    schemas = [pq.read_schema(tmp_path / "out" / name) for name in names]
    assert all(each == schemas[0] for each in schemas)
    assert str(schemas[0].field("n").type) == "int8"
    assert str(schemas[0].field("reward").type) == "float"
    everything = pq.read_table(tmp_path / "out")  # as other programs read a folder, without our metadata files
    assert everything.num_rows == 13
    assert sorted(everything["id"].to_pylist())[:2] == ["a.parquet:0", "a.parquet:1"]


def test_parquet_lists_have_a_list_column(tmp_path):
    rows = [{"prompt": "q", "responses": ["a", "b"]}, {"prompt": "q", "response": "c"}]
    _, out = scored(tmp_path, rows, out="o.parquet")
    assert pq.read_table(out)["reward"].to_pylist() == [
        [reward_of("q", "a"), reward_of("q", "b")],
        [reward_of("q", "c")],
    ]
    ranked = score_files(FakeScorer(), out, tmp_path / "r.parquet", settings(rank=True, reward_column="again"))
    found = pq.read_table(tmp_path / "r.parquet")
    assert ranked.counts.rows_out == 1
    assert [str(found.schema.field(name).type.value_type) for name in ("again", "rank")] == ["float", "int32"]
    assert str(found.schema.field("best").type) == "int32"


def test_parquet_and_jsonl_outputs_are_equal(tmp_path):
    rows = [*text_rows(9, note=None), b"{half\n", {"prompt": "q", "response": "NAN", "odd": 1}]
    scored(tmp_path, rows, out="o.jsonl")
    scored(tmp_path, rows, out="p.parquet", overwrite=True)
    with_nulls = [{"odd": None, **row} for row in read_jsonl(tmp_path / "o.jsonl")]
    assert [dict(sorted(row.items())) for row in pq.read_table(tmp_path / "p.parquet").to_pylist()] == [
        dict(sorted(row.items())) for row in with_nulls
    ]


def test_datasets_and_lists_of_rows(tmp_path):
    rows = text_rows(6)
    for number, data in enumerate((rows, Dataset.from_list(rows))):
        score_files(FakeScorer(), data, tmp_path / f"{number}.jsonl", settings())
        found = read_jsonl(tmp_path / f"{number}.jsonl")
        assert [row["reward"] for row in found] == [reward_of(row["prompt"], row["response"]) for row in rows]
        assert found[5]["id"] == "data:5"


def test_empty_data_gives_empty_output(tmp_path):
    for out in ("o.jsonl", "o.parquet"):
        report, path = scored(tmp_path, [], out=out)
        assert (report.shards, report.counts.rows_in, report.complete) == (0, 0, True)
        assert path.is_file()
    assert pq.read_table(tmp_path / "o.parquet").num_rows == 0


# --- duplicates, passes, limits --------------------------------------------------------------------------------------


def test_equal_requests_of_a_shard_are_scored_once(tmp_path):
    rows = [*text_rows(3), *text_rows(3), {"prompt": PROMPT, "response": ANSWER}, {"messages": PROMPT + ANSWER}]
    scorer = FakeScorer()
    report, out = scored(tmp_path, rows, scorer=scorer, rows_per_shard=100)
    assert scorer.calls == [4]
    assert (report.counts.responses, report.counts.distinct) == (8, 4)
    found = [row["reward"] for row in read_jsonl(out)]
    assert found[:3] == found[3:6]
    assert found[6] == found[7]


def test_requests_with_other_template_options_are_distinct(tmp_path):
    rows = [{"messages": PROMPT + ANSWER, "chat_template_kwargs": {"think": think}} for think in (True, False, True)]
    scorer = FakeScorer()
    scored(tmp_path, rows, scorer=scorer)
    assert scorer.calls == [2]


def test_passes_are_limited_by_responses_and_by_bytes(tmp_path):
    scorer = FakeScorer()
    scored(tmp_path, text_rows(10), scorer=scorer, rows_per_shard=7, requests_per_pass=3)
    assert scorer.calls == [3, 3, 1, 3]
    scorer = FakeScorer()
    rows = [{"prompt": "p", "response": f"{n}" * 1000} for n in range(6)]
    scored(tmp_path, rows, scorer=scorer, rows_per_shard=6, bytes_per_pass=5_000, overwrite=True)
    assert scorer.calls == [2, 2, 2]
    lists = [{"prompt": "p", "responses": [f"{n} {k}" for k in range(5)]} for n in range(4)]
    scorer = FakeScorer()
    scored(tmp_path, lists, scorer=scorer, rows_per_shard=6, requests_per_pass=4, overwrite=True)
    assert scorer.calls == [5, 5, 5, 5]  # one row is never split


def test_a_text_of_one_megabyte_is_scored(tmp_path):
    rows = [{"prompt": "p", "response": "x" * 2**20}, {"prompt": "y" * 2**20, "response": "a"}]
    for out in ("o.jsonl", "o.parquet"):
        report, _ = scored(tmp_path, rows, out=out)
        assert report.counts.rows_out == 2


# --- rejected rows ---------------------------------------------------------------------------------------------------


def test_rows_without_a_reward_are_rejected_and_counted_by_reason(tmp_path):
    rows = [
        *text_rows(2),
        {"prompt": "q", "response": ""},
        {"prompt": "q", "response": "   "},
        {"prompt": "q", "response": 5},
        {"prompt": "q", "response": "NAN", "id": "mine"},
        {"prompt": "q", "response": "TOOLONG"},
        {"prompt": "q", "responses": ["a", "NAN", "TOOLONG"]},
        {"prompt": "q", "responses": []},
        {"nothing": "here"},
        {"prompt": "q", "response": "a", "reward": 1.0},
        b'{"prompt": "cut in ha',
    ]
    report, out = scored(tmp_path, rows)
    assert len(read_jsonl(out)) == report.counts.rows_out == 2
    assert report.counts.quarantined == {
        "not scored: the response is empty": 2,
        "unusable `response`": 1,
        "not scored: its reward is nan": 2,
        "not scored: too long": 1,
        "unusable `responses`": 1,
        "unusable columns": 2,
        "unreadable: the row is not valid JSON": 1,
    }
    assert report.quarantine == str(tmp_path / "out.quarantine.jsonl")
    rejected = {row["row"]: row for row in read_jsonl(tmp_path / "out.quarantine.jsonl")}
    assert list(rejected) == list(range(2, 12))
    assert rejected[5]["id"] == "mine"
    assert rejected[7]["reason"] == "response 1: its reward is nan, not a finite number (and 1 more of its responses)"
    assert "`reward_column='another_name'`" in rejected[10]["reason"]
    assert rejected[11] == {
        "id": "in.jsonl:11",
        "file": "in.jsonl",
        "row": 11,
        "line": 12,
        "reason": rejected[11]["reason"],
        "raw": '{"prompt": "cut in ha',
    }
    assert json.loads(rejected[4]["raw"]) == rows[4]


def test_empty_responses_are_scored_where_allowed(tmp_path):
    report, _ = scored(tmp_path, [{"prompt": "q", "response": ""}], allow_empty=True)
    assert report.counts.rows_out == 1


def test_quarantine_records_are_truncated(tmp_path):
    rows = [
        *text_rows(1),
        {"prompt": "q", "response": 5, "long": "x" * 10_000},
        {"prompt": "q", "response": ["y"] * 10_000},
    ]
    scored(tmp_path, rows)
    for bad in read_jsonl(tmp_path / "out.quarantine.jsonl"):
        assert len(bad["raw"]) == 2_000
        assert len(bad["reason"]) <= 500


def test_a_folder_has_one_quarantine_file_per_shard(tmp_path):
    write_jsonl(tmp_path / "in" / "a.jsonl", [*text_rows(5), b"bad\n"])
    write_jsonl(tmp_path / "in" / "b.jsonl", text_rows(2))
    report = score_files(FakeScorer(), tmp_path / "in", tmp_path / "out", settings())
    assert sorted(content_of(tmp_path / "out")) == [
        "_done/a-00000.json",
        "_done/a-00001.json",
        "_done/b-00000.json",
        "_manifest.json",
        "_quarantine/a-00001.jsonl",
        "a-00000.jsonl",
        "a-00001.jsonl",
        "b-00000.jsonl",
    ]
    assert report.quarantine == str(tmp_path / "out" / "_quarantine")


@hypothesis.settings(max_examples=50)
@given(
    kinds=st.lists(
        st.sampled_from(["text", "chat", "list", "NAN", "TOOLONG", "", "half", "none", "twice"]), max_size=30
    ),
    shard=st.integers(1, 12),
    requests=st.integers(1, 12),
    out=st.sampled_from(["o.jsonl", "folder"]),
)
def test_every_row_is_scored_or_rejected_for_all_shard_sizes(tmp_path_factory, kinds, shard, requests, out):
    makers = {
        "text": lambda n: {"prompt": f"p{n}", "response": f"r{n}"},
        "chat": lambda n: {"messages": [*PROMPT, {"role": "assistant", "content": f"r{n}"}]},
        "list": lambda n: {"prompt": "p", "responses": [f"r{n}", "r"]},
        "half": lambda n: b'{"prompt": "p\n',
        "none": lambda n: {"other": n},
        "twice": lambda n: {"prompt": "same", "response": "same"},
    }
    rows = [makers.get(kind, lambda n, kind=kind: {"prompt": "p", "response": kind})(n) for n, kind in enumerate(kinds)]
    rows.insert(0, {"prompt": "p", "response": "good"})  # a file in which no row has the columns is an error
    folder = tmp_path_factory.mktemp("run")
    source = write_jsonl(folder / "in.jsonl", rows)
    options = {"rows_per_shard": shard, "requests_per_pass": requests, "output_format": "" if "." in out else "jsonl"}
    report = score_files(FakeScorer(), source, folder / out, settings(**options))
    shards = [folder / out] if "." in out else sorted((folder / out).glob("*.jsonl"))
    found = [row for path in shards for row in read_jsonl(path)]
    good = {"text", "chat", "list", "twice"}
    expected = [number for number, kind in enumerate(["text", *kinds]) if kind in good]
    assert [int(row["id"].split(":")[1]) for row in found] == expected
    for row in found:
        if "messages" in row:
            assert row["reward"] == reward_of(row["messages"][:-1], row["messages"][-1:])
        elif "responses" in row:
            assert row["reward"] == [reward_of("p", response) for response in row["responses"]]
        else:
            assert row["reward"] == reward_of(row["prompt"], row["response"])
    assert report.counts.rows_in == len(rows) == len(found) + sum(report.counts.quarantined.values())


# --- errors before anything is scored --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"question": "q", "answer": "a"}], {}, r"none of its first 1 rows can be scored.*Found: question, answer"),
        (text_rows(2), {"columns": {"response": "answer"}}, "names 'answer', which the data lacks"),
        (text_rows(2, reward=1.0), {}, r"already has a column 'reward'.*`reward_column='another_name'`"),
        (
            [{"prompt": "p", "responses": ["a"], "rank": 1}],
            {"rank": True},
            r"already has a column 'rank'.*`rank_column='another_name'`",
        ),
        (text_rows(2), {"rank": True}, "needs the columns `prompt` and `responses`"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_wrong_columns_stop_the_run_immediately(tmp_path, rows, options, message, kind):
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    if kind == "parquet":
        source = tmp_path / "in.parquet"
        pq.write_table(pa.Table.from_pylist(rows), source)
    scorer = FakeScorer()
    with pytest.raises(ValueError, match=message):
        score_files(scorer, source, tmp_path / "out", settings(**options))
    assert not scorer.calls
    assert not (tmp_path / "out").exists()


def test_a_column_that_exists_only_in_a_later_file_is_not_overwritten(tmp_path):
    (tmp_path / "in").mkdir()
    for name, more in (("a", {}), ("b", {"reward": [1.0]})):
        pq.write_table(pa.table({"prompt": ["p"], "response": ["r"], **more}), tmp_path / "in" / f"{name}.parquet")
    with pytest.raises(ValueError, match="already has a column 'reward'"):
        score_files(FakeScorer(), tmp_path / "in", tmp_path / "out", settings())
    report = score_files(FakeScorer(), tmp_path / "in", tmp_path / "out", settings(reward_column="new"))
    assert report.counts.rows_out == 2


def test_invalid_values_in_the_first_rows_do_not_stop_a_run(tmp_path):
    report, _ = scored(tmp_path, [{"prompt": "q", "response": 5}, {"prompt": 7, "response": "a"}, {"text": None}])
    assert report.counts.rows_out == 0
    assert report.counts.rows_in == 3


def test_a_truncated_parquet_file_is_an_error_before_anything_is_scored(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        pq.write_table(pa.table({"prompt": ["p"], "response": ["r"]}), tmp_path / "in" / f"{name}.parquet")
    path = tmp_path / "in" / "b.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    scorer = FakeScorer()
    with pytest.raises(ValueError, match=r"b\.parquet must be a Parquet file"):
        score_files(scorer, tmp_path / "in", tmp_path / "out", settings())
    assert not scorer.calls


def test_columns_of_mixed_types_stop_a_parquet_output_and_not_a_jsonl_one(tmp_path):
    rows = [{"prompt": "p", "response": "a", "odd": 1}, {"prompt": "p", "response": "b", "odd": "x"}]
    with pytest.raises(ValueError, match=r"'odd' mixes types .* name the output \*\.jsonl"):
        scored(tmp_path, rows, out="o.parquet")
    report, _ = scored(tmp_path, rows, out="o.jsonl")
    assert report.counts.rows_out == 2


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("o.csv", "must be a .jsonl or .parquet file, or a folder"),
        ("in.jsonl", "is also an input"),
        (".", "is also an input, or the folder of one"),
    ],
)
def test_unusable_outputs_are_refused(tmp_path, out, message):
    with pytest.raises(ValueError, match=message):
        scored(tmp_path, text_rows(1), out=out)


def test_an_output_among_the_inputs_is_refused(tmp_path):
    write_jsonl(tmp_path / "in" / "a.jsonl", text_rows(1))
    with pytest.raises(ValueError, match="is in the folder of the inputs"):
        score_files(FakeScorer(), tmp_path / "in", tmp_path / "in" / "o.jsonl", settings())
    score_files(FakeScorer(), tmp_path / "in" / "a.jsonl", tmp_path / "in" / "o.jsonl", settings())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows_per_shard": 0}, "at least 1"),
        ({"bytes_per_pass": -1}, "at least 1"),
        ({"output_format": "csv"}, "jsonl or parquet"),
        ({"input_format": "xml"}, "csv, jsonl or parquet"),
        ({"resume": True, "overwrite": True}, "Choose one"),
        ({"part": (2, 2)}, "i from 0 to n - 1, but is 2/2"),
        ({"part": (0, 2), "overwrite": True}, "Remove the folder yourself"),
        ({"rank": True, "rank_column": "best"}, "distinct names"),
        ({"reward_column": "id"}, "other than `id`"),
    ],
)
def test_unusable_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BulkSettings(**options)


def test_parts_are_parsed_from_text():
    assert parse_part("3/8") == (3, 8)
    for text in ("3", "a/b", "/8", "-1/8", "3/"):
        with pytest.raises(ValueError, match="for example 0/8"):
            parse_part(text)


# --- with a model ----------------------------------------------------------------------------------------------------


def test_a_model_scores_files_as_it_scores_texts(tmp_path: Path, make_model_folder):
    from hf_reward.modeling.auto_model import AutoModelForRewardScoring
    from hf_reward.modeling.model_tokenizer import load_tokenizer

    folder = str(make_model_folder("qwen2"))
    model = AutoModelForRewardScoring.from_pretrained(folder)
    randomize_head(model)
    scorer = RewardScorer(model, load_tokenizer(folder))
    rows = [*text_rows(20), {"prompt": "q", "response": ""}, *text_rows(3)]
    report, out = scored(tmp_path, rows, scorer=scorer, rows_per_shard=100)
    good = [row for row in rows if row["response"]]
    expected = scorer.score([row["prompt"] for row in good], [row["response"] for row in good])
    np.testing.assert_allclose([row["reward"] for row in read_jsonl(out)], expected, rtol=1e-5, atol=1e-5)
    assert np.std(expected) > 0.01
    assert report.counts.distinct == 21
    assert report.counts.quarantined == {"not scored: the response is empty": 1}
    again = score_files(scorer, tmp_path / "in.jsonl", tmp_path / "again.jsonl", settings(rows_per_shard=100))
    assert again.complete
    assert (tmp_path / "again.jsonl").read_bytes() == out.read_bytes()
