"""Records, audits and benchmarks for model cards, and checks for every card; shared by the tests of the card."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from hf_reward import CheckpointRecord
from hf_reward.publishing.card.facts import AUDIT_FILE, BENCHMARKS_FILE
from hf_reward.publishing.card.render import is_generated, write_model_card

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
        "not_verified": "data and arithmetic",
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
    path = write_model_card(folder, record, **options)
    assert is_generated(path)
    text = path.read_text(encoding="utf-8")
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
