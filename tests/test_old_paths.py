"""Import paths and files of version 0.1, which are supported for one release.

`support/written_by_0_1` was written by commit 64e3a95, the last one before the modules moved: a base model, a trained
model and an adapter with the rewards that it gave (`rewards.json`), a checkpoint of step 2 of 4 with the final weights
of the same run undisturbed (`end.safetensors`), and a bulk run that stopped after the first of two shards.
"""

import importlib
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from safetensors.torch import load_file
from training_runs import make_trainer

import hf_reward
from hf_reward import RewardConfig, RewardScorer
from hf_reward.modeling.adapters import RewardPeftModel
from hf_reward.scoring.bulk import BulkSettings, score_files

WRITTEN = Path(__file__).parent / "support" / "written_by_0_1"


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A copy of the folder as the current directory, because its file names are relative."""
    shutil.copytree(WRITTEN, tmp_path / "written")
    monkeypatch.chdir(tmp_path / "written")
    return tmp_path / "written"


@pytest.mark.parametrize("old", sorted(hf_reward._new_paths()))
def test_an_old_path_gives_the_module_of_the_new_one(old):
    new = f"hf_reward.{hf_reward._new_paths()[old]}"
    sys.modules.pop(f"hf_reward.{old}", None)
    with pytest.warns(DeprecationWarning, match=rf"hf_reward\.{old} has moved to {new}; .* 0\.3"):
        module = importlib.import_module(f"hf_reward.{old}")
    assert module is importlib.import_module(new)
    assert module.__name__ == module.__spec__.name == new


def test_a_module_within_an_old_package_is_found_too():
    sys.modules.pop("hf_reward.audit.effects", None)
    with pytest.warns(DeprecationWarning, match="hf_reward.evaluation.audit.effects"):
        module = importlib.import_module("hf_reward.audit.effects")
    assert module is importlib.import_module("hf_reward.evaluation.audit.effects")


@pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package, names in hf_reward._MOVED_NAMES.items() for name in names]
)
def test_names_of_a_module_that_became_a_package_are_found_once_warned(package, name):
    module = importlib.import_module(f"hf_reward.{package}")
    module.__dict__.pop(name, None)
    with pytest.warns(DeprecationWarning, match=f"hf_reward.{package}.{name} has moved") as warned:
        exec(f"from hf_reward.{package} import {name}", {})
    assert len(warned) == 1
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_no_name_of_todays_package_is_an_old_path():
    packages = {path.parent.name for path in Path(hf_reward.__file__).parent.glob("*/__init__.py")}
    assert packages & hf_reward._new_paths().keys() == set()


def test_modules_of_the_same_names_in_other_packages_are_left_alone(tmp_path, monkeypatch):
    for name in ("modeling", "scoring", "trainer"):
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / f"{name}.py").write_text("own = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("modeling", "scoring", "trainer"):
        assert importlib.import_module(f"mine.{name}").own
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("json.scoring")


def test_the_warning_names_the_callers_line_and_importing_hf_reward_stays_cheap(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, warnings\n"
        "import hf_reward\n"
        "assert 'torch' not in sys.modules\n"
        "warnings.simplefilter('error')\n"
        "try:\n"
        "    from hf_reward.fields import text_of\n"
        "except (DeprecationWarning, ImportError) as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("DeprecationWarning hf_reward.fields has moved to hf_reward.data.fields")


def test_classes_pickled_under_their_old_paths_are_read():
    args = torch.load(WRITTEN / "run" / "checkpoint-2" / "training_args.bin", weights_only=False)
    assert type(args) is RewardConfig
    assert args.learning_rate == 1e-2
    renamed = pickle.dumps(RewardPeftModel, protocol=0).replace(b"hf_reward.modeling.adapters", b"hf_reward.modeling")
    assert pickle.loads(renamed) is RewardPeftModel


@pytest.mark.parametrize("name", ["model", "adapter"])
def test_a_saved_model_gives_the_same_rewards(written, name):
    rows = [json.loads(line) for line in Path("texts.jsonl").read_text().splitlines()]
    scorer = RewardScorer(name, device="cpu")
    rewards = scorer.score([row["prompt"] for row in rows], [row["response"] for row in rows])
    assert list(rewards) == pytest.approx(json.loads(Path("rewards.json").read_text())[name], abs=1e-6)


def test_a_checkpoint_resumes_and_ends_where_the_undisturbed_run_ended(written):
    rows = load_dataset("json", data_files="rows.jsonl", split="train")
    settings = {"per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
    trainer = make_trainer(Path("base"), rows, Path("run"), **settings)
    trainer.train(resume_from_checkpoint="auto")
    assert trainer.state.global_step == 4
    end, now = load_file("end.safetensors"), load_file("run/checkpoint-4/model.safetensors")
    assert end.keys() == now.keys()
    torch.testing.assert_close(now, end, rtol=0, atol=1e-6)


def test_a_bulk_run_resumes_with_its_missing_shard(written, caplog):
    scorer = RewardScorer("model", device="cpu")
    before = json.loads(Path("bulk/_manifest.json").read_text())
    if before["scorer"]["versions"] != scorer.fingerprint()["versions"]:
        pytest.skip("written with other versions of torch or transformers, which a bulk run refuses to mix")
    first = Path("bulk/texts-00000.jsonl").stat().st_mtime_ns
    settings = BulkSettings(rows_per_shard=4, show_progress=False, resume=True)
    report = score_files(scorer, "texts.jsonl", "bulk", settings)
    assert "did not record the configuration of its model. Changes to such settings are not detected" in caplog.text
    assert (report.complete, report.finished_before, report.counts.rows_out) == (True, 1, 8)
    assert Path("bulk/texts-00000.jsonl").stat().st_mtime_ns == first
    rewards = [json.loads(line)["reward"] for path in sorted(Path("bulk").glob("*.jsonl")) for line in path.open()]
    assert rewards == pytest.approx(json.loads(Path("rewards.json").read_text())["model"], abs=1e-6)
