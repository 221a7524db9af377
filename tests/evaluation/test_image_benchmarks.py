"""Benchmarks with images: hand-computed numbers, images from tables and files, and a tiny vision-language model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_rows import write_rows
from datasets import Dataset, Features, Image, List, Value
from saved_models import saved_model
from vision_models import encoded, picture, save_vision_model

from hf_reward import AutoModelForRewardScoring, RewardScorer
from hf_reward.data.row_text import REFERENCE
from hf_reward.evaluation.benchmarks.base import Comparison
from hf_reward.evaluation.benchmarks.data import DataChoice, load_benchmark_data
from hf_reward.evaluation.benchmarks.judged import judge_benchmark
from hf_reward.evaluation.benchmarks.registry import PUBLIC
from hf_reward.evaluation.benchmarks.reporting import results_from_scores
from hf_reward.evaluation.benchmarks.running import run_all, run_benchmark

VL, MULTIMODAL = "vl_rewardbench", "multimodal_rewardbench"


def vl_row(number: int, name: str = "wildvision-battle", **columns: Any) -> dict[str, Any]:
    row = {"id": f"{name}-{number}", "query": f"Question {number}?", "human_ranking": [number % 2, 1 - number % 2]}
    responses = [f"first {number}", f"second answer {number}"]
    return {**row, "response": responses, "image": encoded(picture(number)), "judge": "human", **columns}


def multimodal_row(number: int, name: str, category: str, better: str, **columns: Any) -> dict[str, Any]:
    row = {"ID": f"{name}_{number}", "Text": f"Question {number}?", "Image": f"images/{number}.png"}
    texts = {"Output1": f"first {number}", "Output2": f"second answer {number}"}
    return {**row, **texts, "Better": better, "Category": category, **columns}


def load(name: str, data: Any) -> list[Comparison]:
    return load_benchmark_data(PUBLIC[name], DataChoice(data=data)).comparisons


def scored(name: str, data: Any, rewards: list[list[float]], folder: Path) -> dict[str, Any]:
    """Results of given rewards."""
    ids = [each.id for each in load(name, data)]
    lines = [{"id": each, "rewards": values} for each, values in zip(ids, rewards, strict=True)]
    return results_from_scores(name, data, write_rows(folder / "scores.jsonl", lines))


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_vl_rewardbench_pools_rows_and_averages_groups(tmp_path: Path) -> None:
    names = ["wildvision-battle", "VLFeedback", "RLAIF-V", "RLHF-V", "hallucination_pair", "mathverse", "mmmu_pro"]
    rows = [vl_row(place, name) for place, name in enumerate(names)]
    assert [each.subset for each in load(VL, rows)] == [*["general"] * 2, *["hallucination"] * 3, *["reasoning"] * 2]
    # The first response is better in even rows. Right: rows 0, 3, 5 and 6. Row 1 is a tie.
    rewards = [[1, 0], [1, 1], [0, 1], [0, 1], [0, 1], [0, 1], [1, 0]]
    results = scored(VL, rows, rewards, tmp_path)
    assert results["overall"] == pytest.approx(4 / 7)
    assert results["sections"] == pytest.approx({"general": 1 / 2, "hallucination": 1 / 3, "reasoning": 1})
    assert results["measures"]["macro_average"] == pytest.approx((1 / 2 + 1 / 3 + 1) / 3)
    assert results["overall_half_credit"] == pytest.approx(4.5 / 7)
    assert (results["n"], results["ties"]) == (7, 1)
    assert results["ci"][0] < 4 / 7 < results["ci"][1]
    assert results["partial"] == ["7 rows, published 1247"]


def test_multimodal_rewardbench_pools_rows_and_splits_safety_and_reasoning(tmp_path: Path) -> None:
    rows = [
        multimodal_row(0, "nocaps", "open_generation/correctness_task", "Output1"),
        multimodal_row(1, "pairs", "safety", "Output2"),
        multimodal_row(2, "hateful_memes", "safety", "Output1"),
        multimodal_row(3, "mathvista", "reasoning", "Output2"),
        multimodal_row(4, "EMMA-Coding", "reasoning", "Output1"),
        multimodal_row(5, "image2struct", "reasoning", "Output1"),
        multimodal_row(6, "MMBench", "a category of a later version", "Output1"),
    ]
    for place, row in enumerate(rows):
        row["Image"] = encoded(picture(place))
    rewards = [[1, 0], [0, 1], [0, 1], [1, 1], [2, 1], [0, 1], [1, 0]]
    results = scored(MULTIMODAL, rows, rewards, tmp_path)
    assert results["overall"] == pytest.approx(4 / 7)
    assert results["sections"] == pytest.approx(
        {
            "open_generation/correctness_task": 1,
            "safety": 1 / 2,
            "reasoning": 1 / 3,
            "a category of a later version": 1,
        }
    )
    assert results["subsets"] == pytest.approx(
        {"safety/bias": 1, "safety/toxicity": 0, "reasoning/math": 0, "reasoning/coding": 1 / 2}
    )
    assert results["overall_half_credit"] == pytest.approx(4.5 / 7)
    assert {"vqa", "knowledge", "reasoning (3 rows, published 1098)"} <= set(results["partial"])


# --- data -------------------------------------------------------------------------------------------------------------


def _table(rows: list[dict[str, Any]]) -> Dataset:
    kinds: dict[str, Any] = {"human_ranking": List(Value("int64")), "response": List(Value("string")), "image": Image()}
    return Dataset.from_list(rows, features=Features({name: kinds.get(name, Value("string")) for name in rows[0]}))


def test_every_form_of_a_table_gives_the_same_image(tmp_path: Path) -> None:
    rows = [vl_row(number) for number in range(3)]
    table = _table(rows)
    assert not isinstance(table[0]["image"], dict)  # `datasets` would decode it
    table.to_parquet(tmp_path / "test.parquet")
    (tmp_path / "images").mkdir()
    for number in range(3):
        (tmp_path / "images" / f"{number}.png").write_bytes(encoded(picture(number)))
    named = [{**row, "image": f"images/{number}.png"} for number, row in enumerate(rows)]
    file = write_rows(tmp_path / "test.jsonl", named)
    found = [load(VL, each) for each in (rows, table, tmp_path / "test.parquet", file)]
    assert all(each == found[0] for each in found)
    assert len({row.cluster for row in found[0]}) == 3
    hashes = {load_benchmark_data(PUBLIC[VL], DataChoice(data=each)).content_hash for each in (rows, file)}
    assert len(hashes) == 1
    changed = [*rows[:2], {**rows[2], "image": encoded(picture(7))}]
    assert load_benchmark_data(PUBLIC[VL], DataChoice(data=changed)).content_hash not in hashes


def test_the_image_comes_before_the_question_and_the_placeholder_is_removed() -> None:
    plain, marked = load(VL, [vl_row(0), vl_row(0, query="<image>\nQuestion 0?")])
    assert plain.prompt == marked.prompt
    assert REFERENCE.sub("IMAGE", plain.prompt[0]["content"]) == "IMAGEQuestion 0?"  # type: ignore[index]
    assert plain.id != marked.id  # ids may be repeated


def test_multimodal_rewardbench_reads_images_beside_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [multimodal_row(number, "nocaps", "vqa", "Output1") for number in range(2)]
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "all_data.json").write_text(json.dumps(rows))
    (tmp_path / "data" / "all_data_release.json").write_text(json.dumps([{"ID": "without questions"}]))
    (tmp_path / "data" / "images" / "0.png").write_bytes(encoded(picture(0)))
    with pytest.raises(ValueError, match=r"row 1: The image .*images/1\.png cannot be read \(No such file"):
        load(MULTIMODAL, tmp_path / "data")
    (tmp_path / "data" / "images" / "1.png").write_bytes(encoded(picture(1)))
    assert len(load(MULTIMODAL, tmp_path / "data")) == 2
    monkeypatch.chdir(tmp_path)
    assert len(load(MULTIMODAL, "data/all_data.json")) == 2


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"human_ranking": [0, 0]}, r"`human_ranking` must be one of \[0, 1\], \[1, 0\]"),
        ({"response": ["a", "b", "c"]}, "`response` must have two texts, but has 3"),
        ({"image": "https://example.org/a.png"}, "An image must not be a URL"),
        ({"query": "<image><image>"}, "must have `<image>` once for each of its 1 image"),
    ],
)
def test_unusable_rows_are_named(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"row 1: .*{message}"):
        load(VL, [vl_row(0), vl_row(1, **columns)])


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def scorer(tmp_path: Path, chat_tokenizer: Any) -> RewardScorer:
    folder = save_vision_model(tmp_path / "vision", chat_tokenizer, "qwen2_vl")
    model: Any = AutoModelForRewardScoring.from_pretrained(folder)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    return RewardScorer.from_pretrained(folder)


def test_a_vision_language_model_scores_both_benchmarks(scorer: RewardScorer, tmp_path: Path) -> None:
    vl = [vl_row(number, ("RLHF-V", "mmmu", "other")[number % 3]) for number in range(6)]
    multimodal = [multimodal_row(number, "pairs", "safety", "Output1") for number in range(4)]
    for number, row in enumerate(multimodal):
        row["Image"] = encoded(picture(number))
    found = run_all(scorer, data={VL: vl, MULTIMODAL: multimodal}, out=tmp_path / "out")
    assert [(each["benchmark"], each["n"]) for each in found.results] == [(VL, 6), (MULTIMODAL, 4)]
    lines = [json.loads(line) for line in (tmp_path / "out" / VL / "scores.jsonl").read_text().splitlines()]
    for row, line in zip(vl, lines, strict=True):
        parts = [{"type": "image", "image": row["image"]}, {"type": "text", "text": row["query"]}]
        prompt = [{"role": "user", "content": parts}]
        assert line["rewards"] == pytest.approx(scorer.score([prompt, prompt], row["response"]), abs=2e-5)
    moved = [{**vl[0], "image": vl[number]["image"]} for number in range(6)]
    run_benchmark(VL, scorer, moved, out=tmp_path / "moved")
    texts = (tmp_path / "moved" / "scores.jsonl").read_text().splitlines()
    assert len({str(json.loads(line)["rewards"]) for line in texts}) > 3  # the image changes the reward


def test_a_broken_image_is_an_unscored_row(scorer: RewardScorer, tmp_path: Path) -> None:
    rows = [vl_row(0), vl_row(1, image=encoded(picture(1))[:60])]
    results = run_benchmark(VL, scorer, rows, out=tmp_path / "out")
    assert results["n"] == 1
    assert "cannot be decoded" in results["unscored"]["first"]["wildvision-battle-1/1"]


def test_text_models_and_judges_are_refused(make_model_folder: Any, tmp_path: Path) -> None:
    folder = saved_model(make_model_folder("llama"), tmp_path / "saved")
    with pytest.raises(ValueError, match=r"VL-RewardBench has images, which .* cannot process"):
        run_benchmark(VL, folder, [vl_row(0)], out=tmp_path / "out")
    assert "has images" in run_all(folder, data={VL: [vl_row(0)]}, out=tmp_path / "all").skipped[VL]
    opened: Any = None
    with pytest.raises(ValueError, match="has images, which are not sent to judges"):
        judge_benchmark(VL, opened, [vl_row(0)], out=tmp_path / "judged")
