"""A bare install: with the packages of all extras hidden, a fresh process trains, saves, scores and checks data."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {"scikit-learn": "sklearn"}
"""Distributions whose import name differs."""

SCRIPT = """
import json, logging, sys
from pathlib import Path

model, rows, folder, hidden = sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4:]
for name in hidden:
    sys.modules[name] = None  # as if it were not installed

lines = []
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
logging.getLogger("hf_reward.data.extras").addHandler(handler)

from datasets import load_dataset
from hf_reward import (
    RewardConfig, RewardScorer, RewardTrainer, check_data, fit_length_correction, split_by_prompt, tfidf_bradley_terry
)
from hf_reward.data.preferences import to_preference_row

data = load_dataset("json", data_files=rows, split="train", cache_dir=str(folder / "cache"))
args = RewardConfig(
    str(folder / "run"), use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no", max_steps=1
)
trainer = RewardTrainer(model=model, args=args, train_dataset=data, eval_dataset=data)
trainer.train()
accuracy = trainer.evaluate()["eval_accuracy"]
trainer.save_model(str(folder / "saved"))
reward = float(RewardScorer(str(folder / "saved")).score([data[0]["prompt"]], [data[0]["chosen"]])[0])
report = check_data(rows, eval_data=rows).to_dict()

def refusal(asked):
    try:
        asked()
    except ImportError as error:
        return str(error)

canonical = [to_preference_row(row) for row in data]
refusals = {
    "near duplicates": refusal(lambda: split_by_prompt(data, near_duplicates=True)),
    "baseline": refusal(lambda: tfidf_bradley_terry(canonical, canonical)),
    "length correction": refusal(lambda: fit_length_correction(range(40), range(40))),
}
found = {"accuracy": accuracy, "reward": reward, "report": report, "refusals": refusals, "lines": lines}
(folder / "found.json").write_text(json.dumps(found))
"""


def _name(requirement: str) -> str:
    match = re.match(r"[\w-]+", requirement)
    assert match
    return match[0].lower()


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_a_bare_install_has_what_training_scoring_and_saving_need():
    assert {_name(each) for each in _project()["dependencies"]} == {
        *("accelerate", "datasets", "evaluate", "filelock", "huggingface_hub", "jinja2", "numpy", "peft", "psutil"),
        *("pyyaml", "rich", "safetensors", "scipy", "torch", "transformers", "typer", "xxhash"),
    }


def test_all_is_every_extra_that_users_have():
    extras = _project()["optional-dependencies"]
    (everything,) = extras["all"]
    named = re.findall(r"\w+", everything.partition("[")[2])
    assert set(named) == set(extras) - {"all", "dev", "peers"}
    assert "hf_reward[all,peers]" in extras["dev"]


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> dict[str, Any]:
    """Output of the script without the packages of all extras."""
    folder = tmp_path_factory.mktemp("bare")
    extras = _project()["optional-dependencies"]
    packages = {_name(each) for extra, needed in extras.items() if extra not in ("all", "dev") for each in needed}
    packages -= {"httpx2"}  # huggingface_hub installs it
    hidden = [MODULES.get(name, name.replace("-", "_")) for name in sorted(packages)]
    rows = folder / "rows.jsonl"
    pairs = [
        {"prompt": f"Question {number} about rivers?", "chosen": f"A good answer {number}.", "rejected": "No."}
        for number in range(24)
    ]
    rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    model = ROOT / "tests/support/written_by_0_1/model"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(model), str(rows), str(folder), *hidden],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text()) | {"files": sorted(os.listdir(folder / "run"))}


def test_a_bare_install_trains_saves_and_scores(bare):
    assert 0 <= bare["accuracy"] <= 1
    assert isinstance(bare["reward"], float)


def test_a_bare_install_draws_no_curves_and_logs_this_once(bare):
    assert "training_curves.png" not in bare["files"]
    (line,) = [line for line in bare["lines"] if "curves" in line]
    assert line.startswith("No training curves are drawn. The package matplotlib is required")


def test_a_bare_install_checks_data_without_learned_rules_and_near_duplicates(bare):
    report = bare["report"]
    assert report["shallow_rules"]["length"]["accuracy"] == 1
    assert report["shallow_rules"]["by_prompt"] is None
    assert report["shift"]["verdict"] == "not assessed"
    assert report["settings"]["near_duplicate_jaccard"] is None
    assert report["leakage"]["kinds"] == {"whole row": 24, "prompt group": 24, "prompt": 24, "response": 0}
    for left_out in ("Near duplicates are", "The TF-IDF baseline is", "No classifier compares"):
        (line,) = [line for line in bare["lines"] if line.startswith(left_out)]
        assert line.endswith('pip install "hf_reward[data]"')


@pytest.mark.parametrize(
    ("asked", "extra"), [("near duplicates", "data"), ("baseline", "data"), ("length correction", "audit")]
)
def test_a_bare_install_refuses_what_needs_an_extra_and_names_it(bare, asked, extra):
    assert f'pip install "hf_reward[{extra}]"' in bare["refusals"][asked]
