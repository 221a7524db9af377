"""Rows in every official layout; errors name the location and the remedy."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from benchmark_rows import (
    SHARED,
    arena,
    biased,
    four,
    instructed,
    judged,
    pair,
    rmb_list,
    rmb_pair,
    solutions,
    styles,
    tied,
    transformed,
    translated,
    verified,
    write_rows,
)
from datasets import Dataset

from hf_reward.evaluation.benchmarks import data as data_module
from hf_reward.evaluation.benchmarks import m_rewardbench
from hf_reward.evaluation.benchmarks.data import DataChoice, DataUnavailableError, load_benchmark_data
from hf_reward.evaluation.benchmarks.registry import NAMES, PUBLIC, benchmark_named
from hf_reward.evaluation.benchmarks.results import ResultRule, make_results, rows_that_count
from hf_reward.evaluation.benchmarks.rmb import CATEGORIES
from hf_reward.evaluation.benchmarks.scores_file import RowScores

ROWS: dict[str, list[dict[str, Any]]] = {
    "rewardbench": [pair(0), pair(1)],
    "rewardbench2": [four(0), tied("ref", 1), tied("tied", 1)],
    "rm_bench": [styles(0), styles(1, "code")],
    "judgebench": [judged(0), judged(1, "B>A")],
    "rmb": [rmb_pair(0), rmb_list(0)],
    "llmbar": [instructed(0), instructed(1, 2, "Adversarial/GPTOut")],
    "ppe_preference": [arena(0), arena(1, "tie")],
    "ppe_correctness": [verified(0, [True, False]), verified(1, [False, False])],
    "m_rewardbench": [translated(0), translated(0, "jpn_Jpan"), translated(1)],
    "judgebench_pro": [biased(0), biased(1, 2, "code")],
    "rewardmath": [*solutions(0), *solutions(7)],
    "rewordbench": [transformed(0), transformed(0, "add quotes"), transformed(1, "rot-13")],
    "pairs": [{"prompt": "p", "chosen": "a", "rejected": "b"}],
    "lists": [{"prompt": "p", "responses": ["a", "b", "c"], "scores": [3, 1, 2]}],
}


def load(name: str, data: Any, **choice: Any) -> Any:
    return load_benchmark_data(benchmark_named(name), DataChoice(data=data, **choice))


TEXT = [name for name in NAMES if name not in PUBLIC or not PUBLIC[name].image]
"""Benchmarks without images; `test_image_benchmarks` has the others."""


@pytest.mark.parametrize("name", TEXT)
def test_rows_files_and_datasets_give_the_same_comparisons(name: str, tmp_path: Path) -> None:
    file = write_rows(tmp_path / f"{name}.jsonl", ROWS[name])
    listed = tmp_path / f"{name}.json"
    listed.write_text(json.dumps(ROWS[name]))
    columns = dict.fromkeys(
        key for row in ROWS[name] for key in row
    )  # `from_list` uses only the columns of the first row
    dataset = Dataset.from_list([{key: row.get(key) for key in columns} for row in ROWS[name]])
    found = [load(name, each) for each in (ROWS[name], dataset, file, str(listed))]
    assert [each.comparisons for each in found[1:]] == [found[0].comparisons] * 3
    assert len({each.content_hash for each in found}) == 1
    assert all(each.revision == f"sha256:{each.content_hash}" and each.dataset_id is None for each in found)


def test_responses_keep_the_benchmarks_order() -> None:
    row = load("rm_bench", [styles(0)]).comparisons[0]
    assert [text.split()[0] for text in row.responses] == ["right"] * 3 + ["wrong"] * 3
    assert load("judgebench", [judged(0, "B>A")]).comparisons[0].ranks == [1, 0]
    best = load("rmb", [rmb_list(0)]).comparisons[0]
    assert best.responses[0] == "best 0"
    assert best.prompt == [{"role": "user", "content": "Question 0?"}]  # `language` is not part of a message


# --- official folders ---


def test_rm_bench_reads_one_file_per_domain_without_a_domain_column(tmp_path: Path) -> None:
    for domain in ("chat", "safety-refuse"):
        rows = [{key: value for key, value in styles(0, domain).items() if key != "domain"}]
        (tmp_path / f"{domain}_filtered.json").write_text(json.dumps(rows))
    (tmp_path / "other.json").write_text("[]")
    assert [each.id for each in load("rm_bench", tmp_path).comparisons] == ["chat/0", "safety-refuse/0"]


def test_rm_bench_prefers_the_file_of_all_domains(tmp_path: Path) -> None:
    (tmp_path / "total_dataset.json").write_text(json.dumps([styles(0), styles(1, "math")]))
    (tmp_path / "chat_filtered.json").write_text(json.dumps([styles(0)]))
    assert len(load("rm_bench", tmp_path).comparisons) == 2


def test_llmbar_reads_the_folders_of_its_repository(tmp_path: Path) -> None:
    for folder, count in (("Natural", 2), ("Adversarial/Manual", 1)):
        rows = [{k: v for k, v in instructed(each).items() if k not in ("idx", "subset")} for each in range(count)]
        (tmp_path / folder / "evaluators").mkdir(parents=True)
        (tmp_path / folder / "dataset.json").write_text(json.dumps(rows))
        (tmp_path / folder / "evaluators" / "result.json").write_text("[]")
    found = load("llmbar", tmp_path).comparisons
    assert [each.id for each in found] == ["Manual/0", "Natural/0", "Natural/1"]


def test_rmb_reads_nested_folders(tmp_path: Path) -> None:
    for path, row in (("Pairwise_set/Helpfulness/Chat/Casual.json", rmb_pair(0)), ("BoN_set/Harmlessness/S1.json", 0)):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(json.dumps([row or rmb_list(0, "Harmlessness")]))
    ids = [each.id for each in load("rmb", tmp_path).comparisons]
    assert ids == ["BoN_set/Harmlessness/0", "Pairwise_set/Helpfulness/0"]


def test_rmb_has_the_published_categories() -> None:
    assert {goal: len(names) for goal, names in CATEGORIES.items()} == {"Helpfulness": 37, "Harmlessness": 12}
    assert CATEGORIES["Helpfulness"][0] == "Brainstorming/Idea Development"


def test_rmb_names_missing_categories_also_with_a_single_set() -> None:
    chat = "Pairwise_set/Helpfulness/Chat/Discussion"
    missing = benchmark_named("rmb").missing(load("rmb", [rmb_pair(0, category_path=chat)]).comparisons)
    assert missing[:3] == ["Pairwise_set/Harmlessness", "BoN_set/Helpfulness", "BoN_set/Harmlessness"]
    assert chat not in missing
    assert missing[3:] == [f"Pairwise_set/Helpfulness/{name}" for name in CATEGORIES["Helpfulness"]
                           if name != "Chat/Discussion"]  # fmt: skip


def test_rmb_with_every_category_lacks_only_rows() -> None:
    sets = {"Pairwise_set": rmb_pair, "BoN_set": rmb_list}
    rows = [
        make(f"{goal}/{name}", goal, category_path=f"{part}/{goal}/{name}")
        for part, make in sets.items()
        for goal, names in CATEGORIES.items()
        for name in names
    ]
    assert benchmark_named("rmb").missing(load("rmb", rows).comparisons) == [
        "BoN_set/Helpfulness (37 rows, published 2109)",
        "BoN_set/Harmlessness (12 rows, published 1677)",
    ]


def test_ppe_correctness_takes_the_subset_from_the_files_name(tmp_path: Path) -> None:
    row = {key: value for key, value in verified(0, [True, False]).items() if key != "subset"}
    write_rows(tmp_path / "PPE-MMLU-Pro-Best-of-K.jsonl", [row])
    assert load("ppe_correctness", tmp_path).comparisons[0].subset == "MMLU-Pro"


def test_m_rewardbench_reads_a_folder_for_each_language(tmp_path: Path) -> None:
    for language in ("deu_Latn", "jpn_Jpan"):  # as on the Hub; the folder replaces a missing column
        row = _without(translated(0, language), "language")
        (tmp_path / language).mkdir()
        Dataset.from_list([row]).to_parquet(tmp_path / language / "test-00000-of-00001.parquet")
    found = load("m_rewardbench", tmp_path).comparisons
    assert [each.id for each in found] == ["deu_Latn/alpacaeval-easy/0", "jpn_Jpan/alpacaeval-easy/0"]
    assert len({each.cluster for each in found}) == 1
    assert [each.id for each in load("m_rewardbench", tmp_path, subsets=["jpn_Jpan"]).comparisons] == [found[1].id]
    missing = benchmark_named("m_rewardbench").missing(found)
    assert missing[:3] == ["arb_Arab", "ces_Latn", "deu_Latn (1 row, published 2869)"]


def test_m_rewardbench_has_the_published_sizes() -> None:
    sizes = {section: sum(weights.values()) for section, weights in m_rewardbench.WEIGHTS.items()}
    # Table 1 of the paper; math-prm has 447 rows and the weight of all code subsets.
    assert sizes == {"Chat": 296, "Chat Hard": 407, "Safety": 736, "Reasoning": 1430 + 983 - 447}
    assert sum(sizes.values()) - 983 + 447 == m_rewardbench.ROWS
    assert len(m_rewardbench.LANGUAGES) == len(set(m_rewardbench.LANGUAGES)) == 23


def test_judgebench_pro_numbers_its_rows_and_counts_them() -> None:
    found = load("judgebench_pro", [biased(0), biased(0, 2)]).comparisons
    assert [(each.id, each.ranks) for each in found] == [("0", [0, 1]), ("1", [1, 0])]
    assert len({each.cluster for each in found}) == 1
    assert benchmark_named("judgebench_pro").missing(found) == ["rows (2, published 1178)"]


def test_rewardmath_gathers_the_solutions_of_a_problem_in_their_order() -> None:
    mixed = [row for rows in zip(solutions(0), reversed(solutions(7)), strict=True) for row in rows]
    first, second = load("rewardmath", mixed).comparisons
    assert (first.id, first.ranks, first.prompt) == ("0", [0] + [1] * 9, "What is 0 + 1?")
    assert first.responses[:2] == ["Step for 0.\nSolution 0.", "Step for 0.\nSolution 1."]
    assert (second.id, second.ranks) == ("7", [1] * 9 + [0])
    assert benchmark_named("rewardmath").missing([first]) == ["problems (1, published 483)"]


def test_rewardmath_names_the_line_of_the_problem(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [*solutions(0), *solutions(7, wrong=3)])
    with pytest.raises(ValueError, match=r"rows.jsonl, line 11: .*problem 7 has 4 rows, 1 of them 'chosen'"):
        load("rewardmath", file)


def test_rewordbench_names_rows_without_an_original() -> None:
    found = load("rewordbench", ROWS["rewordbench"]).comparisons
    assert benchmark_named("rewordbench").missing(found) == [
        "the original of 1 row",
        "transformations (2, published 28)",
    ]


def test_own_rows_without_a_preference_are_counted() -> None:
    rows = [{"prompt": "p", "responses": ["a", "b"], "ranks": ranks} for ranks in ([0, 1], [0, 0])]
    found = load("lists", rows)
    assert (len(found.comparisons), found.left_out) == (1, 1)


def test_own_rows_accept_other_column_names() -> None:
    benchmark = benchmark_named("pairs", columns={"chosen": "good", "rejected": "bad"})
    found = load_benchmark_data(benchmark, DataChoice(data=[{"prompt": "p", "good": "a", "bad": "b"}]))
    assert found.comparisons[0].responses == ["a", "b"]


def test_several_files_are_read_together(tmp_path: Path) -> None:
    files = [write_rows(tmp_path / f"{n}.jsonl", [pair(n)]) for n in range(2)]
    found = load("rewardbench", files)
    assert [each.id for each in found.comparisons] == ["alpacaeval-easy/0", "alpacaeval-easy/1"]
    assert found.source == "0.jsonl, 1.jsonl"


def test_a_folder_of_own_data_is_read_by_its_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_rows(tmp_path / f"{split}.jsonl", [{"prompt": split, "chosen": "a", "rejected": "b"}])
    assert [each.prompt for each in load("pairs", tmp_path).comparisons] == ["test"]
    assert [each.prompt for each in load("pairs", tmp_path, split="train").comparisons] == ["train"]
    with pytest.raises(ValueError, match="has the splits"):
        load("pairs", tmp_path, split="dev")
    assert load("pairs", "demonstration").comparisons


# --- unusable data ---


def _without(row: dict[str, Any], column: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != column}


@pytest.mark.parametrize("name", [name for name in TEXT if name not in ("pairs", "lists")])
def test_missing_columns_are_named_with_the_available_ones(name: str, tmp_path: Path) -> None:
    column = benchmark_named(name).columns[-1]
    file = write_rows(tmp_path / "rows.jsonl", [_without(ROWS[name][0], column)])
    with pytest.raises(ValueError, match=rf"rows.jsonl lacks the columns {column}, which .* needs. It has: .*Pass "):
        load(name, file)


@pytest.mark.parametrize(
    "name", [name for name in TEXT if name not in ("pairs", "lists", "judgebench_pro", "rewardmath")]
)
def test_repeated_ids_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"1 repeated id, such as .*Remove the repeated rows"):
        load(name, [ROWS[name][0], ROWS[name][0]])


BAD_ROWS: list[tuple[str, dict[str, Any] | list[dict[str, Any]], str]] = [
    ("rewardbench", pair(0, subset="chat-easy"), "`subset` must be one of"),
    ("rewardbench", pair(0, chosen=["a", "b"]), "`chosen` must be text, but is list"),
    ("rewardbench", pair(0, prompt=None), "`prompt` is empty"),
    ("rewardbench2", four(0, num_correct=2), "`num_correct` is 2, but `chosen` holds 1"),
    ("rewardbench2", four(0, chosen=["a", "b"]), "`chosen` must hold one response in Math, but holds 2"),
    ("rewardbench2", {**tied("tied", 1), "id": "7"}, "`id` must be 'ref:<number>' or 'tied:<number>' in Ties"),
    ("rewardbench2", {**tied("tied", 1), "id": "ref:1"}, "'ref' rows hold one"),
    ("rm_bench", styles(0, "poetry"), "`domain` must be one of"),
    ("rm_bench", styles(0, chosen=["a", "b"]), "`chosen` needs 3 or more texts, but has 2"),
    ("rm_bench", styles(0, rejected=["a", "b", "c", "d"]), "`rejected` must hold 3 styles, but holds 4"),
    ("judgebench", judged(0, "A=B"), "`label` must be one of 'A>B', 'B>A', but is 'A=B'"),
    ("judgebench", judged(0, source="trivia"), "`source` must be one of"),
    ("llmbar", instructed(0, 3), "`label` must be one of 1, 2, but is 3"),
    ("llmbar", instructed(0, 1, "Processed/FairEval"), "`subset` must be one of"),
    ("rmb", rmb_pair(0, "Honesty"), "category_path"),
    ("rmb", rmb_list(0, loser_list=[]), "`loser_list` must be a list of one or more answers"),
    ("rmb", rmb_pair(0, chosen="text"), "`chosen` must be an object with the text `answer`"),
    ("rmb", rmb_pair(0, conversation_input=[]), "`conversation_input` must be text or messages"),
    ("ppe_preference", arena(0, "neither"), "`winner` must be one of"),
    ("ppe_correctness", {**verified(0, [True, False]), "scores": [0.5, 1]}, "`scores` must say for each answer"),
    ("ppe_correctness", {**verified(0, [True, False]), "scores": [True] * 3}, "`scores` has 3 entries, but response_3"),
    ("ppe_correctness", verified(0, [True, False], sampled_conflict_pairs=[[0, 5]]), "pairs of indices below 2"),
    ("ppe_correctness", verified(0, [True, True], sampled_conflict_pairs=[[0, 1]]), "equally correct"),
    ("m_rewardbench", translated(0, "deu"), "`language` must be one of 'arb_Arab', 'ces_Latn'"),
    ("m_rewardbench", translated(0, source="alpacaeval"), "`source` must be one of"),
    ("m_rewardbench", translated(0, chosen=["a"]), "`chosen` must be text, but is list"),
    ("judgebench_pro", biased(0, 0), "`label` must be one of 1, 2, but is 0"),
    ("judgebench_pro", biased(0, domain=None), "`domain` is empty"),
    ("rewardmath", solutions(3, wrong=8), "problem 3 has 9 rows, 1 of them 'chosen'"),
    ("rewardmath", solutions(3) * 2, "problem 3 has 20 rows, 2 of them 'chosen'"),
    ("rewardmath", solutions(3, solution_type="rejected"), "problem 3 has 10 rows, 0 of them 'chosen'"),
    ("rewardmath", solutions(3, eval_solution="text"), "`eval_solution` must be a list of texts"),
    ("rewardmath", solutions(3, problem=None), "`problem` is empty"),
    ("rewordbench", transformed(0, " "), "`transformation` must be 'original' or the name"),
    ("rewordbench", transformed(0, subset="chat"), "`subset` must be one of"),
    ("pairs", {"prompt": "p", "chosen": "a"}, "The columns do not match any layout"),
    ("lists", {"prompt": "p", "responses": ["a"], "ranks": [0]}, "`responses` must have two or more"),
    ("pairs", {"chosen_ids": [1], "rejected_ids": [2]}, "token ids"),
]


@pytest.mark.parametrize(("name", "row", "message"), BAD_ROWS, ids=[f"{name}-{part}" for name, _, part in BAD_ROWS])
def test_an_unusable_row_is_named_by_its_location(name: str, row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"^the data, row 0: ") as caught:
        load(name, row if isinstance(row, list) else [row])
    assert message in str(caught.value)


def test_an_unknown_subset_lists_the_available_ones() -> None:
    with pytest.raises(ValueError, match=r"RM-Bench has no subset 'maths' in this data. Available: chat, code."):
        load("rm_bench", ROWS["rm_bench"], subsets=["maths"])


def test_an_unknown_benchmark_lists_the_existing_ones() -> None:
    with pytest.raises(ValueError, match=r"no benchmark 'rmbench'. Available: rewardbench, "):
        benchmark_named("rmbench")
    with pytest.raises(ValueError, match="reads its published columns"):
        benchmark_named("rm_bench", columns={"prompt": "q"})


def test_missing_paths(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*not a valid Hub id. LLMBar reads the folder"):
        load("llmbar", tmp_path / "nowhere.jsonl")
    with pytest.raises(FileNotFoundError, match=r"holds no total_dataset.json or "):
        load("rm_bench", tmp_path)


def test_data_without_rows_to_compare() -> None:
    with pytest.raises(ValueError, match=r"holds no row to compare \(1 left out\)"):
        load("ppe_preference", [arena(0, "tie")])


# --- the Hub ---


@pytest.mark.parametrize("name", [name for name in NAMES if benchmark_named(name).hub])
def test_an_unreachable_hub_names_the_local_file_to_pass(name: str) -> None:
    with pytest.raises(DataUnavailableError, match=r"could not be read from the Hub: .*local copy with `--data`"):
        load(name, None)


@pytest.mark.parametrize("name", ["rmb", "llmbar", "rewordbench", "multimodal_rewardbench", "pairs", "lists"])
def test_data_that_is_not_on_the_hub_has_to_be_given(name: str) -> None:
    with pytest.raises(DataUnavailableError, match=r"is not read from the Hub. Set `--data`: "):
        load(name, None)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A fake Hub with RewardBench and its prior sets at commits; returns the requests that it received."""
    asked: list[Any] = []

    def info(_: Any, repo: str, revision: str | None = None, timeout: float = 0) -> Any:
        asked.append((repo, revision))
        return SimpleNamespace(sha=f"commit-of-{repo.split('/')[1]}")

    def rows(repo: str, config: str | None, split: str, revision: str) -> Dataset:
        asked.append((repo, config, split, revision))
        if split == "filtered":
            return Dataset.from_list([pair(0)])
        messages = [{"role": "user", "content": f"prompt of {split}"}]
        return Dataset.from_list([{"prompt": messages, "chosen": "a", "rejected": "bb", "subset": "inner"}])

    monkeypatch.setattr(data_module.HfApi, "dataset_info", info)
    monkeypatch.setattr(data_module, "load_dataset", rows)
    return asked


def test_the_hubs_commit_is_resolved_and_recorded(hub: list[Any]) -> None:
    found = load("rewardbench", None)
    assert found.revision == "commit-of-reward-bench"
    assert found.dataset_id == "allenai/reward-bench"
    assert hub == [
        ("allenai/reward-bench", None),
        ("allenai/reward-bench", None, "filtered", "commit-of-reward-bench"),
    ]


def test_a_hub_id_may_name_a_revision(hub: list[Any]) -> None:
    load("rewardbench", "me/copy@v1", split="filtered")
    assert hub == [("me/copy", "v1"), ("me/copy", None, "filtered", "commit-of-copy")]


def test_prior_sets_are_read_on_request_and_named(hub: list[Any]) -> None:
    found = load("rewardbench", None, extra_sets=True)
    assert {each.subset for each in found.comparisons} == {
        "alpacaeval-easy",
        "anthropic_helpful",
        "anthropic_hhh",
        "shp",
        "summarize",
    }
    assert "preference-test-sets@commit-of-preference-test-sets" in found.revision


def test_a_configuration_for_each_language_is_read_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def rows(repo: str, config: str | None, split: str, revision: str) -> Dataset:
        asked.append((repo, config, split))
        return Dataset.from_list([_without(translated(0, str(config)), "language")])

    monkeypatch.setattr(data_module.HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(sha="abc"))
    monkeypatch.setattr(data_module, "load_dataset", rows)
    repo = "CohereLabsCommunity/multilingual-reward-bench"
    found = load("m_rewardbench", None, extra_sets=True)
    assert asked == [(repo, name, "test") for name in (*m_rewardbench.LANGUAGES, "translation")]
    assert {each.subset for each in found.comparisons} == {*m_rewardbench.LANGUAGES, "translation"}
    assert found.revision == "abc"
    asked.clear()
    load("m_rewardbench", "me/copy@v1")
    assert asked == [("me/copy", name, "test") for name in m_rewardbench.LANGUAGES]


# --- real files ---

needs_files = pytest.mark.skipif(not SHARED.is_dir(), reason="the real files are not at hand")


def _length_only(name: str, path: Path) -> dict[str, Any]:
    found = load(name, path)
    scores = RowScores([_lengths(each.responses) for each in found.comparisons])
    benchmark, rule = benchmark_named(name), ResultRule()
    return make_results(benchmark, found, rows_that_count(found, scores, rule), rule, {})


def _lengths(responses: Any) -> Any:
    import numpy as np

    return np.array([len(each) for each in responses], float)


@needs_files
def test_rm_bench_length_rule_in_characters_is_the_published_table() -> None:
    results = _length_only("rm_bench", SHARED / "rm_bench")
    table = {  # counted once from the official files: characters, a tie is wrong
        "chat": (0.0258, 0.2842, 0.8114),
        "code": (0.2544, 0.5190, 0.7749),
        "safety-refuse": (0.0235, 0.1585, 0.8897),
        "safety-response": (0.2378, 0.7771, 0.9873),
    }
    for subset, expected in table.items():
        found = [results["subsets"][f"{subset} {level}"] for level in ("hard", "normal", "easy")]
        assert found == pytest.approx(expected, abs=5e-5)
    assert results["baseline_subsets"]["longer response (characters)"] == results["subsets"]
    assert (results["n"], results["partial"]) == (798, ["math"])


@needs_files
def test_llmbar_is_complete_and_its_adversarial_sets_prefer_the_shorter() -> None:
    results = _length_only("llmbar", SHARED / "llmbar")
    assert (results["n"], results["partial"]) == (419, [])
    assert results["subsets"] == pytest.approx(
        {"Natural": 56 / 100, "Neighbor": 16 / 134, "GPTInst": 12 / 92, "GPTOut": 21 / 47, "Manual": 8 / 46}
    )


@needs_files
def test_llmbar_length_table_in_words_without_ties() -> None:
    comparisons = load("llmbar", SHARED / "llmbar").comparisons
    for subset, expected in (("Neighbor", 0.123), ("GPTInst", 0.148), ("Manual", 0.182), ("GPTOut", 0.444)):
        gaps = [_word_gap(each) for each in comparisons if each.subset == subset]
        decided = [gap for gap in gaps if gap]
        assert sum(gap > 0 for gap in decided) / len(decided) == pytest.approx(expected, abs=5e-4)


def _word_gap(row: Any) -> int:
    better = row.ranks.index(0)
    return len(row.responses[better].split()) - len(row.responses[1 - better].split())


@needs_files
@pytest.mark.parametrize(
    ("name", "path", "make"),
    [
        ("lists", "gsm8k_solutions/example_model_solutions.jsonl", "gsm8k"),
        ("pairs", "finegrained_rlhf_qa/pairs.jsonl", ""),
    ],
)
def test_other_real_files_as_own_data(name: str, path: str, make: str) -> None:
    data: Any = SHARED / path
    if make:
        data = [_gsm8k_row(json.loads(line)) for line in data.read_text().splitlines()]
    found = load(name, data)
    counts: dict[str, Callable[[], bool]] = {
        "lists": lambda: len(found.comparisons) + found.left_out == 1319,
        "pairs": lambda: len(found.comparisons) == 2616,
    }
    assert counts[name]()


def _gsm8k_row(row: dict[str, Any]) -> dict[str, Any]:
    solutions = [value for value in row.values() if isinstance(value, dict)]
    scores = [float(each["is_correct"]) for each in solutions]
    return {"prompt": row["question"], "responses": [each["solution"] for each in solutions], "scores": scores}
