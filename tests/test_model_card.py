"""The card says what the record holds, in words that break nothing, and its snippets run."""

import itertools
import json
import math
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import randomize_head
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from transformers import AutoTokenizer

from hf_reward import AutoModelForRewardScoring, CheckpointRecord, prepare_tokenizer, save_merged
from hf_reward.checkpoint_record import template_hash
from hf_reward.evaluation_entries import escaped, hub_id, without_paths
from hf_reward.model_card import AUDIT_FILE, BENCHMARKS_FILE, PICTURE_FILE, write_model_card

EVALUATION = {
    "accuracy": 0.652,
    "accuracy_ci_low": 0.59,
    "accuracy_ci_high": 0.714,
    "accuracy_half_credit": 0.655,
    "tie_rate": 0.005,
    "margin": 0.412,
    "median_margin": 0.3,
    "log_loss": 0.6113,
    "brier_score": 0.2113,
    "mean_reward": 0.1234,
    "std_reward": 1.5,
    "min_reward": -4.2,
    "max_reward": 3.9,
    "num_pairs": 209,
    "num_prompts": 200,
    "length_baseline": 0.493,
    "accuracy_preferred_longer": 0.7,
    "num_preferred_longer": 103,
    "accuracy_preferred_shorter": 0.61,
    "num_preferred_shorter": 104,
    "hh_accuracy": 0.7,
    "hh_accuracy_ci_low": 0.6,
    "hh_accuracy_ci_high": 0.8,
    "hh_num_pairs": 100,
}
SUMMARY = {
    "name": "train",
    "rows": 520,
    "kept": 510,
    "dropped": {"tied": 8, "too long": 2},
    "cut": 3,
    "merged": 0,
    "prompts_differed": 0,
    "duplicates": 0,
    "prompts": 500,
    "sources": ["org/set", "/home/me/pairs.jsonl"],
    "token_quantiles": {"median": 80, "max": 512},
    "longer_preferred": 0.553,
    "num_pairs": 510,
    "sampled": False,
}


def probe(name: str, verdict: str, estimate: float | None, **more: Any) -> dict[str, Any]:
    low, high = (None, None) if estimate is None else (estimate - 0.05, estimate + 0.05)
    return {
        "name": name,
        "family": "length",
        "estimate": estimate,
        "unit": "typical gaps",
        "ci_low": low,
        "ci_high": high,
        "n": 400,
        "clusters": 200,
        "verdict": verdict,
        "delta": 0.1,
        "q_value": 0.02,
        "screen_only": False,
        **more,
    }


PROBES = [
    probe("padding with filler", "biased", 0.42),
    probe("bullets", "equivalent", 0.02),
    probe("wrong hint", "inconclusive", 0.12),
    probe("emoji", "not_assessed", None, q_value=None),
    probe("length correlation", "not_assessed", 0.31, unit="correlation", screen_only=True),
]
BENCHMARKS = [
    {
        "benchmark": "RewardBench",
        "dataset_id": "allenai/reward-bench",
        "task_id": "default",
        "overall": 0.812,
        "ci": [0.797, 0.827],
        "n": 2985,
        "ties": 3,
        "baselines": {"length": 0.587},
        "sections": {"Chat": 0.95, "Hard": None},
        "partial": [],
    },
    {
        "benchmark": "RM-Bench",
        "dataset_id": "org/rm-bench",
        "task_id": "default",
        "overall": 0.6,
        "ci": [None, None],
        "n": 900,
        "ties": None,
        "baselines": {},
        "sections": {},
        "partial": ["code"],
    },
]


def make_record(**changes: Any) -> CheckpointRecord:
    fields: dict[str, Any] = {
        "format": {"max_length": 1024, "over_length": "truncate_prompt", "separator": ""},
        "reads": "last_token",
        "pad_token_id": 0,
        "template_hash": "ab",
        "tokenizer_hash": "cd",
        **changes,
    }
    return CheckpointRecord(**fields)


def full_record(**changes: Any) -> CheckpointRecord:
    baseline = {"name": "TF-IDF Bradley-Terry", "accuracy": 0.443, "ci_low": 0.375, "ci_high": 0.51, "num_pairs": 209}
    run = {"learning_rate": 1e-4, "output_dir": "/home/me/a b/out", "hub_token": "hf_abcdefghijklmnopqrst"}
    card = {"model_name": "Demo", "license": "apache-2.0", "language": "no", "dataset": "org/set", "tags": ["demo"]}
    fields: dict[str, Any] = {
        "loss": {"loss_type": "bradley_terry", "label_smoothing": 0.1},
        "evaluation": EVALUATION,
        "baselines": [baseline],
        "base_model": "Qwen/Qwen3-0.6B",
        "versions": {"torch": "2.13"},
        "card": card,
        "training": {
            "steps": 120,
            "data": {"train": SUMMARY},
            "settings": run,
            "command": "hf-reward train --x /a/b.yaml",
        },
        **changes,
    }
    return make_record(**fields)


def render(folder: Path, record: CheckpointRecord, **options: Any) -> str:
    folder.mkdir(exist_ok=True)
    text = write_model_card(folder, record, **options).read_text(encoding="utf-8")
    assert_well_formed(text)
    return text


def add_results(folder: Path, probes: Any = PROBES, benchmarks: Any = BENCHMARKS) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / AUDIT_FILE).write_text(json.dumps({"summary": "Five probes.", "probes": probes}))
    (folder / BENCHMARKS_FILE).write_text(json.dumps(benchmarks))
    return folder


def front_matter(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))


def assert_well_formed(text: str) -> None:
    """Front matter that reads back, no hole, no double blank line, tables with equally many cells in each row."""
    metadata, body = front_matter(text), text.split("\n---\n", 1)[1]
    assert ModelCard(text).data.to_dict() == metadata
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "text-classification"
    prose = re.sub(r"```.*?```", "CODE", body, flags=re.DOTALL)
    for hole in (r"\bNone\b", r"\bnan\b", r"\n\n\n", r", *\n", r",,", r"\( *\)", r" \."):
        assert not re.search(hole, prose), hole
    headings = [line for line in prose.splitlines() if line.startswith("#")]
    for one, other in itertools.pairwise(headings):
        assert prose.split(f"{one}\n")[1].split(other)[0].strip()
    width = 0
    for line in body.splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert not (cells and width) or cells == width, line
        width = cells


# --- what it says ----------------------------------------------------------------------------------------------------


def test_a_full_card_says_the_numbers_of_its_record(tmp_path):
    text = render(add_results(tmp_path / "m"), full_record(), model_id="org/demo", consumers=[("vLLM", "yes", "a|b")])
    for said in (
        "| **this model** (a tie is wrong) | 65.2% | 59.0% to 71.4% | 209 pairs, 200 prompts |",
        "| this model, ties count half | 65.5% | - | 209 pairs |",
        "| rule: prefer the longer response (tokens) | 49.3% | - | 209 pairs |",
        "| baseline: TF-IDF Bradley-Terry | 44.3% | 37.5% to 51.0% | 209 pairs |",
        "| this model where the preferred response is shorter | 61.0% | - | 104 pairs |",
        "| hh | 70.0% | 60.0% to 80.0% | - | 100 pairs |",
        "- 0.5% of pairs get equal rewards.",
        "- Log loss 0.611 nats a pair",
        "- Brier score 0.211",
        "mean 0.123, standard deviation 1.500, from -4.200 to 3.900.",
        "`(reward - 0.1234) / 1.5`",
        "log loss 0.611 against ln 2 = 0.693, so the probabilities say more than a coin.",
        "Temperature: not fitted.",
        "| RewardBench | 81.2% | 79.7% to 82.7% | 2,985 pairs | 3 | length 58.7% |",
        "| RM-Bench (partial) | 60.0% | - | 900 pairs | - | - |",
        "RewardBench by section: Chat 95.0%.",
        "RM-Bench was run without code",
        "- Biased: padding with filler (+0.42 typical gaps).",
        "| padding with filler | length | +0.42 typical gaps | +0.37 to +0.47 | ±0.1 | 400 cases, 200 prompts | 0.02 | "
        "biased |",
        "Screens, which raise a question and settle none: length correlation (+0.31 correlation).",
        "Five probes.",
        f"]({PICTURE_FILE})",
        "train: 510 of 520 rows kept, 500 prompts; dropped: 8 tied, 2 too long; prompts cut to fit: 3; tokens of the "
        "longest sequence: median 80, max 512; the longer response is preferred in 55.3% of 510 pairs; from org/set.",
        "Loss: Bradley-Terry (label_smoothing 0.1).",
        "- 120 optimizer steps.",
        "learning_rate: 0.0001",
        "Fine-tuned from [Qwen/Qwen3-0.6B]",
        "hf-reward train --x LOCAL/b.yaml",
        "vllm serve org/demo --runner pooling",
        '"use_activation": false',
        "| vLLM | yes | a\\|b |",
        "up to 1,024 tokens",
        "apache-2.0.",
        "Versions: torch 2.13.",
    ):
        assert said in text, said
    assert "/home/me" not in text
    assert "hf_abc" not in text
    glance = text.split("# Demo")[1].split("## How to call it")[0]
    assert "65.2% (95% interval 59.0% to 71.4%" in glance
    assert "longer response scores 49.3%" in glance
    assert "padding with filler" in glance


def test_a_bare_card_says_what_is_missing(tmp_path):
    text = render(tmp_path / "bare", make_record())
    assert "# bare" in text
    for said in (
        "Not evaluated.",
        "## Results on held-out pairs\n\nNot run.",
        "## Benchmarks\n\nNot run.",
        "- Length: not measured.\n- Bias audit: not run",
        "Mean and spread of rewards: not measured.",
        "## Training\n\nNot recorded.",
        "The command was not recorded.",
        "Versions: not recorded.",
        "Not stated: ask its authors",
        "a base model that was not recorded",
        "`bare` stands for the folder or the Hub id",
    ):
        assert said in text, said
    metadata = front_matter(text)
    assert not {"model-index", "base_model", "datasets", "license", "base_model_relation"} & set(metadata)
    assert metadata["tags"] == ["reward-model", "hf_reward", "rlhf", "preference-model"]
    assert not (tmp_path / "bare" / ".eval_results").exists()


def test_without_audit_the_two_lengths_speak(tmp_path):
    text = render(tmp_path / "m", full_record())
    assert (
        "right in 70.0% of the 103 pairs where the preferred response is longer, and in 61.0% of the 104 pairs" in text
    )
    assert "9.0 points apart: a sign of a taste for longer responses." in text
    few = {**EVALUATION, "num_preferred_shorter": 19}
    assert "too few pairs to tell" in render(tmp_path / "m", full_record(evaluation=few))
    gone = {**EVALUATION, "accuracy_preferred_shorter": None, "num_preferred_shorter": 0}
    assert "Length: not measured." in render(tmp_path / "m", full_record(evaluation=gone))


def test_an_audit_without_bias_says_so_and_keeps_what_is_open(tmp_path):
    text = render(add_results(tmp_path / "m", PROBES[1:3], []), full_record())
    assert "- No probe of the audit showed a bias that matters.\n- Cannot tell: wrong hint" in text


@pytest.mark.parametrize(
    "evaluation",
    [
        {"accuracy": 0.7, "accuracy_ci_low": None, "accuracy_ci_high": None},
        {**EVALUATION, "accuracy_ci_low": math.nan, "accuracy_ci_high": None, "num_pairs": 1, "num_prompts": 1},
        {**EVALUATION, "num_prompts": None},
        {**EVALUATION, "length_baseline": None},
        {"accuracy": math.nan},
    ],
)
def test_missing_numbers_leave_no_hole(evaluation, tmp_path):
    text = render(tmp_path / "m", full_record(evaluation=evaluation))
    if evaluation.get("num_pairs") == 1:
        assert "no interval from one prompt, 1 pairs" in text
        assert "| 65.2% | - | 1 pair, 1 prompt |" in text


def test_a_metric_of_the_user_is_no_source(tmp_path):
    assert "| balanced |" not in render(
        tmp_path / "m", full_record(evaluation={**EVALUATION, "balanced_accuracy": 0.5})
    )


def test_useless_probabilities_and_a_fitted_temperature_are_said(tmp_path):
    record = full_record(evaluation={**EVALUATION, "log_loss": 0.8}, reward_statistics={"temperature": 1.7})
    text = render(tmp_path / "m", record)
    assert "no better than a coin's: use rewards to rank only" in text
    assert "Temperature: 1.7, fitted" in text
    assert "`sigmoid((reward_a - reward_b) / 1.7)`" in text


MERGED = {"merged_from": "adapter", "largest_difference": 3e-6}
IMPORTED = {"imported_from": "trl_value_head", "offset": -0.25}


@pytest.mark.parametrize(
    ("origin", "base", "said", "metadata"),
    [
        (MERGED, "o/b", "merged into the weights. Saving it so moved rewards by at most 3e-06.", ("o/b", "finetune")),
        ({"averaged": ["o/a", "o/b"]}, "o/c", "the average of 2 models ([o/a]", (["o/a", "o/b"], "merge")),
        ({"averaged": ["/x/a", "./b"]}, "/x/c", "of 2 models that were fine-tuned from a local model.", (None, None)),
        ({"averaged": ["/x/a", "./b"]}, "o/b", "of 2 models that were fine-tuned from [o/b]", ("o/b", "finetune")),
        (
            {"differences": {"merge": 3e-6, "cast": 0.004}},
            "o/b",
            "moved rewards by at most 0.004.",
            ("o/b", "finetune"),
        ),
        (IMPORTED, "o/b", "format trl_value_head, not trained here; base: [o/b]", ("o/b", "finetune")),
        (IMPORTED, "o/b", "Rewards differ from the original's by the constant 0.25.", ("o/b", "finetune")),
        ({}, "models/Base", "Fine-tuned from a local model.", (None, None)),
    ],
)
def test_where_the_weights_come_from(origin, base, said, metadata, tmp_path):
    text = render(tmp_path / "m", full_record(origin=origin, base_model=base))
    assert said in text
    found = front_matter(text)
    assert (found.get("base_model"), found.get("base_model_relation")) == metadata
    assert ("generated_from_trainer" in found["tags"]) == ("imported_from" not in origin)
    assert "models/Base" not in text
    assert "/x/" not in text


def test_the_spread_of_averaged_models_is_told_without_their_paths(tmp_path):
    record = full_record(origin={"averaged": ["runs/a", "runs/b"], "differences": {"from runs/a to the average": 0.3}})
    text = render(tmp_path / "m", record)
    assert "; their rewards differ from this one's by up to 0.3." in text
    assert "runs/a" not in text


def test_a_card_written_aside_has_the_name_of_its_place(tmp_path):
    text = render(tmp_path / ".aside-1", make_record(), title="final")
    assert "# final\n" in text
    assert '.from_pretrained("final")' in text
    assert "aside" not in text


def test_the_base_model_can_be_named(tmp_path):
    record = full_record(base_model="/home/me/base")
    record.card["base_model"] = "Qwen/Qwen3-0.6B"
    assert front_matter(render(tmp_path / "m", record))["base_model"] == "Qwen/Qwen3-0.6B"


# --- metadata and entries --------------------------------------------------------------------------------------------


def test_the_hub_reads_the_results_back(tmp_path):
    folder = add_results(tmp_path / "m")
    text = render(folder, full_record(), model_id="org/demo")
    metadata = front_matter(text)
    assert metadata["language"] == "no"
    assert metadata["datasets"] == ["org/set"]
    assert metadata["tags"][-2:] == ["generated_from_trainer", "demo"]
    name, results = model_index_to_eval_results(metadata["model-index"])
    assert name == "Demo"
    found = {(each.dataset_type, each.metric_type): each for each in results}
    assert found["org/set", "accuracy"].metric_value == 0.652
    assert found["org/set", "accuracy"].metric_args == {"ci95": [0.59, 0.714], "pairs": 209, "prompts": 200}
    assert found["allenai/reward-bench", "accuracy"].metric_value == 0.812
    assert found["org/rm-bench", "accuracy"].dataset_name == "RM-Bench (partial)"
    assert ModelCard.load(folder / "README.md").data.eval_results == results


def test_entries_are_written_where_a_hub_dataset_is_known(tmp_path):
    from huggingface_hub import parse_eval_result_entries

    folder = add_results(tmp_path / "m")
    render(folder, full_record())
    files = sorted((folder / ".eval_results").iterdir())
    entries = [parse_eval_result_entries(yaml.safe_load(file.read_text()))[0] for file in files]
    assert [(each.dataset_id, each.task_id, each.value) for each in entries] == [
        ("allenai/reward-bench", "default", 0.812),  # the partial RM-Bench does not compare, and is left out
        ("org/set", "default", 0.652),
    ]
    assert entries[0].notes == "RewardBench; 95% interval 0.7970 to 0.8270; 2985 pairs; 3 ties"
    assert "95% interval 0.5900 to 0.7140; 209 pairs; 200 prompts; length rule 0.4930" in str(entries[1].notes)
    (folder / ".eval_results" / "mine.yaml").write_text("[]")
    record = full_record()
    record.card["dataset"] = ["org/set", "org/other"]
    add_results(folder, [], [])
    render(folder, record)
    assert [file.name for file in (folder / ".eval_results").iterdir()] == ["mine.yaml"]
    assert not (folder / PICTURE_FILE).exists()


def test_local_names_are_never_published(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "here").mkdir(parents=True)
    record = full_record(base_model="org/here")
    record.card["dataset"] = ["org/set", "/data/secret", "./x", "org/here", "secret/pairs.jsonl"]
    text = render(tmp_path / "m", record)
    assert front_matter(text)["datasets"] == ["org/set"]
    assert "base_model" not in front_matter(text)
    assert "secret" not in text
    assert "org/here" not in text


@pytest.mark.parametrize(
    ("name", "found"),
    [("gpt2", True), ("org/name", True), ("a/b/c", False), ("~/x", False), ("C:\\x", False), ("outputs/run", False),
     ("x.jsonl", False), ("", False), (None, False), (3, False), ("a b", False), ("a\n---", False)],
)  # fmt: skip
def test_what_is_a_hub_id(name, found):
    assert (hub_id(name) is not None) == found


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("license", 3), ("license", ["mit"]), ("license", "my own\nlicence"), ("language", 3), ("language", "English"),
        ("language", ["en", None]), ("tags", "a\nb"), ("tags", [1]), ("dataset", 3), ("dataset", "not an id"),
        ("widget", {"x": math.nan}), ("widget", object()), ("widget", "\x00"), ("model-index", []), ("a: b", "x"),
    ],
)  # fmt: skip
def test_what_cannot_stand_in_a_card_is_refused_by_name(field, value, tmp_path):
    record = full_record()
    record.card[field] = value
    with pytest.raises(ValueError, match=rf"`{field}` of the model card must be .*, but is"):
        write_model_card(tmp_path, record)
    assert not (tmp_path / "README.md").exists()


def test_an_id_that_is_none_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`model_id` must be a Hub id"):
        write_model_card(tmp_path, make_record(), model_id="../x")
    (tmp_path / AUDIT_FILE).write_text("{")
    with pytest.raises(ValueError, match=f"{AUDIT_FILE} is not JSON"):
        write_model_card(tmp_path, make_record())
    (tmp_path / AUDIT_FILE).write_text("[]")
    with pytest.raises(ValueError, match="must hold a JSON object"):
        write_model_card(tmp_path, make_record())
    (tmp_path / AUDIT_FILE).write_text('{"probes": [3]}')
    with pytest.raises(ValueError, match="must list objects"):
        write_model_card(tmp_path, make_record())


# --- hostile text ----------------------------------------------------------------------------------------------------

HOSTILE = "a | b\n---\ntags: [x]\n# Title ``` {{ title }} {% raw %} <script> [x](y) \\ ' \" : & $1$ \u2028 \u202e é 🙂"


def test_hostile_text_breaks_nothing(tmp_path):
    summary = {**SUMMARY, "dropped": {HOSTILE: 2}, "token_quantiles": {HOSTILE: 3}}
    record = full_record(
        baselines=[{"name": HOSTILE, "accuracy": 0.5}],
        evaluation={**EVALUATION, f"{HOSTILE}_accuracy": 0.5, f"{HOSTILE}_num_pairs": 3},
        loss={"loss_type": HOSTILE, HOSTILE: HOSTILE},
        training={"steps": 1, "data": {HOSTILE: summary}, "settings": {HOSTILE: HOSTILE}, "command": f"run {HOSTILE}"},
        origin={"imported_from": HOSTILE},
        versions={HOSTILE: HOSTILE},
        dtype=HOSTILE,
    )
    record.card |= {
        "model_name": HOSTILE,
        "license_link": "https://x | `y` <z>",
        "extra_gated_prompt": "one\n---\ntwo\n",
    }
    benchmark = {**BENCHMARKS[0], "benchmark": HOSTILE, "sections": {HOSTILE: 0.5}, "baselines": {HOSTILE: 0.5}}
    folder = add_results(tmp_path / "m", [probe(HOSTILE, HOSTILE, 0.2, unit=HOSTILE, family=HOSTILE)], [benchmark])
    text = render(folder, record, consumers=[(HOSTILE, HOSTILE, HOSTILE)])
    metadata, body = front_matter(text), text.split("\n---\n", 1)[1]
    assert metadata["extra_gated_prompt"] == "one\n---\ntwo\n"
    assert metadata["tags"][0] == "reward-model"
    assert "\n---\n" not in body
    assert "<script>" not in re.sub(r"```.*?```", "", body, flags=re.DOTALL)
    assert body.count("```") % 2 == 0
    assert len(re.findall(r"^# ", re.sub(r"```.*?```", "", body, flags=re.DOTALL), flags=re.MULTILINE)) == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("train --data /home/me/x.jsonl --out=~/runs/a", "train --data LOCAL/x.jsonl --out=LOCAL/a"),
        ("train '--data=/home/John Smith/x.jsonl' end", "train '--data=LOCAL/x.jsonl' end"),
        (r'"C:\\Users\\me\\x.json" and C:\me\x', '"LOCAL/x.json" and LOCAL/x'),
        ("file:///home/me/x ../../y/z", "LOCAL/x LOCAL/z"),
        ("https://huggingface.co/org/name and/or org/name recipes/a.yaml", None),
        ("token hf_abcdefghijklmnopqrstuv", "token HF_TOKEN"),
    ],
)
def test_paths_and_tokens_are_shortened(text, shown):
    assert without_paths(text) == (shown or text)


@given(st.text())
def test_escaped_text_is_one_line_without_open_pipes(text):
    shown = escaped(text)
    assert len(shown.splitlines()) <= 1
    assert not re.search(r"(?<!\\)(\\\\)*\|", shown)


odd = st.one_of(st.none(), st.floats(), st.integers(-3, 10**6), st.text(max_size=8), st.booleans())
metric = st.sampled_from([*EVALUATION, "x_accuracy", "_accuracy"])


@settings(max_examples=60, deadline=None)
@given(
    evaluation=st.dictionaries(metric, odd),
    statistics=st.dictionaries(st.sampled_from(["mean", "std", "temperature"]), odd),
    texts=st.lists(st.text(max_size=12), min_size=4, max_size=4),
    consumers=st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5), st.text(max_size=5)), max_size=2),
)
def test_odd_records_make_well_formed_cards(evaluation, statistics, texts, consumers, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "odd"
    record = full_record(
        evaluation=evaluation,
        reward_statistics=statistics,
        versions={texts[0]: texts[1]},
        training={"steps": 1, "data": {texts[2]: SUMMARY}, "command": texts[3]},
        card={"model_name": texts[0], "widget": []},
    )
    folder.mkdir(exist_ok=True)
    text = write_model_card(folder, record, consumers=consumers).read_text(encoding="utf-8")
    assert ModelCard(text).data.to_dict() == front_matter(text)
    assert "\n\n\n" not in text
    assert "| nan" not in text


# --- the same again, and the picture ---------------------------------------------------------------------------------


def test_two_renders_are_equal(tmp_path):
    written = []
    for name in ("one", "two"):
        folder = add_results(tmp_path / name / "m") if (tmp_path / name).mkdir() is None else tmp_path
        render(folder, full_record())
        written.append({file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()})
    assert written[0] == written[1]
    assert {"README.md", PICTURE_FILE} <= {str(name) for name in written[0]}


def test_the_picture_stays_small_and_readable(tmp_path):
    verdicts = ("biased", "equivalent", "inconclusive", "not_assessed")
    many = [probe(f"probe number {place} with a rather long name", verdicts[place % 4], 0.1) for place in range(36)]
    many.append(probe("another unit, $x_1", "biased", 5.0, unit="rate", delta=None, ci_low=None))
    render(add_results(tmp_path / "m", many), full_record())
    content = (tmp_path / "m" / PICTURE_FILE).read_bytes()
    assert len(content) < 100_000
    width, height = struct.unpack(">II", content[16:24])
    assert width == 700
    assert height > 36 * 30
    render(add_results(tmp_path / "m", [PROBES[-1]]), full_record())  # screens only
    assert not (tmp_path / "m" / PICTURE_FILE).exists()


@pytest.mark.slow
def test_a_card_without_audit_does_not_import_matplotlib(tmp_path):
    code = (
        "import sys, json; from hf_reward import CheckpointRecord; from hf_reward.model_card import write_model_card;"
        "record = CheckpointRecord(format={}, reads='x', pad_token_id=0, template_hash='', tokenizer_hash='');"
        "write_model_card(sys.argv[1], record); assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env={**os.environ})


# --- snippets --------------------------------------------------------------------------------------------------------


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def saved_model(
    make_model_folder, arch: str, tokenizer: Any = None, lora: bool = False
) -> tuple[Path, CheckpointRecord]:
    base = make_model_folder(arch, tokenizer=tokenizer)
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(base))
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False) if lora else None
    model = AutoModelForRewardScoring.from_pretrained(base, peft_config=config)
    randomize_head(model)
    record = make_record(
        reads="last_token" if arch in ("llama", "granite") else "pooled",
        template_hash=template_hash(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = base.parent / f"{arch}-reward"
    save_merged(model, tokenizer, folder, verify=False)
    return (folder / "adapter" if lora else folder), record


def run_snippets(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Run the blocks one after the other in one namespace, as a reader would; the reward after each that sets it."""
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    found = []
    for block in python_blocks(text):
        if "GRPOTrainer" in block:
            continue
        names.pop("reward", None)
        code = block.replace(f'"{folder.name}"', repr(str(folder)))
        assert str(folder) in code or "model=model" in code or "save_merged" in code
        exec(compile(code, "card", "exec"), names)
        found += [names["reward"]] if "reward" in names else []
    return found


def expected_reward(folder: Path, text: str | None = None) -> float:
    """The reward computed from token ids made by hand, in hf_reward's own model."""
    model = AutoModelForRewardScoring.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.chat_template:
        ids = tokenizer(
            "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n4.<|im_end|>\n", return_tensors="pt"
        )
    elif text is None:
        ids = tokenizer("What is 2 + 2?", "4.", return_tensors="pt")
    else:
        ids = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        return model(**ids).logits[0, 0].item()


@pytest.mark.parametrize("arch", ["llama", "bert"])
def test_the_snippets_give_the_same_reward(arch, make_model_folder, monkeypatch):
    folder, record = saved_model(make_model_folder, arch)
    text = render(folder, record)
    rewards = run_snippets(folder, text, monkeypatch)
    assert len(rewards) == 3
    assert rewards == pytest.approx([expected_reward(folder)] * 3, rel=1e-5)
    assert abs(rewards[0]) > 1e-3
    assert ("/score" in text) == (arch == "bert")


def test_snippets_without_a_chat_template_end_with_the_end_token(make_model_folder, text_tokenizer, monkeypatch):
    folder, record = saved_model(make_model_folder, "llama", text_tokenizer)
    record.format["separator"] = "\n\n"
    text = render(folder, record)
    assert 'text = prompt + "\\n\\n" + response + tokenizer.eos_token' in text
    rewards = run_snippets(folder, text, monkeypatch)
    assert rewards == pytest.approx([expected_reward(folder, "What is 2 + 2?\n\n4.<|endoftext|>")] * 3, rel=1e-5)


def test_snippets_of_an_adapter_merge_it_for_others(make_model_folder, monkeypatch):
    folder, record = saved_model(make_model_folder, "llama", lora=True)
    text = render(folder, record)
    assert 'num_labels=1, problem_type="regression"' in text
    assert "An adapter for a base model that was not recorded." in text
    rewards = run_snippets(folder, text, monkeypatch)
    assert len(rewards) == 3
    assert rewards == pytest.approx([expected_reward(folder)] * 3, rel=1e-4)
    assert expected_reward(folder / "merged") == pytest.approx(rewards[0], rel=1e-4)
    text = render(folder, full_record())
    assert front_matter(text)["base_model_relation"] == "adapter"


def test_a_backbone_without_a_stock_class_is_loaded_through_hf_reward(make_model_folder, monkeypatch):
    folder, record = saved_model(make_model_folder, "granite")
    text = render(folder, record)
    assert "AutoModelForSequenceClassification" not in text
    rewards = run_snippets(folder, text, monkeypatch)
    assert rewards == pytest.approx([expected_reward(folder)] * 2, rel=1e-5)


@pytest.mark.parametrize(
    ("reads", "probes", "tokens", "line"),
    [
        ("pooled", [], None, "tokenizer(prompt, response, return"),
        ("last_token", [], None, "text = prompt + response + tokenizer.eos_token"),
        ("pooled", [{"text": "a"}], None, "text = prompt + response + tokenizer.eos_token"),
        ("last_token", [{"text": "a", "text_pair": "b"}], None, "tokenizer(prompt, response, return"),
        ("last_token", [], {"cls_token": "a", "sep_token": "b"}, "tokenizer(prompt, response, return"),
        ("pooled", [], {"eos_token": None}, "text = prompt + response\n"),
        ("last_token", [], {"eos_token": "x", "add_eos_token": True}, "text = prompt + response\n"),
    ],
)
def test_how_a_text_is_given_is_found_out(reads, probes, tokens, line, tmp_path):
    if tokens is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokens))
    text = render(tmp_path, make_record(reads=reads, template_hash=None, probes={"conversations": probes}))
    assert line in text
    assert ("to check your copy against" in text) == bool(probes)
    assert "GRPOTrainer" not in text


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("Qwen3ForSequenceClassification", "for this architecture differences between rewards are right"),
        ("LlamaForSequenceClassification", "rewards come back raw."),
        ("MistralForSequenceClassification", "SGLang 0.5.23 has no reward head for this architecture."),
    ],
)
def test_sglang_is_told_by_architecture(architecture, said, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    assert said in render(tmp_path, make_record())


@pytest.mark.slow
@pytest.mark.interop
def test_the_trl_snippet_trains_a_step_with_our_rewards(make_model_folder, tmp_path, monkeypatch):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    folder, record = saved_model(make_model_folder, "llama")
    text = render(folder, record)
    code = next(block for block in python_blocks(text) if "GRPOTrainer" in block)
    code = code.replace(f'"{folder.name}"', repr(str(folder))).replace(
        "your/policy", str(make_model_folder("llama", "p"))
    )
    prompts = Dataset.from_list([{"prompt": [{"role": "user", "content": "What is 2 + 2?"}]}] * 2)
    options = {"max_completion_length": 4, "num_generations": 2, "per_device_train_batch_size": 2, "max_steps": 1}
    args = GRPOConfig(output_dir=str(tmp_path / "out"), report_to="none", use_cpu=True, bf16=False, **options)
    names: dict[str, Any] = {"prompts": prompts}
    exec(code.replace("train_dataset", "args=args, train_dataset"), names | {"args": args}, names)
    trainer: GRPOTrainer = names["trainer"]
    seen: list[float] = []
    score = trainer.reward_funcs[0]
    assert isinstance(score, torch.nn.Module)
    score.register_forward_hook(lambda module, given, output: seen.extend(output.logits[:, 0].tolist()))
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "reward" in entry)
    assert seen
    assert logged["reward"] == pytest.approx(sum(seen) / len(seen), rel=1e-4)
