"""Pushes during training: they publish verified versions only, do not change training, and leak no token."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from hub_server import ACCOUNTS, READ_TOKEN, HubServer, hub_environment, run_python
from hub_store import Account
from paths import PATHS, ROOT
from test_trainer_distributed import free_port
from training_runs import settings

from hf_reward.publishing.push import PushRule, push_model
from hf_reward.training.background_push import BackgroundPush, push_command

# ModelCard.validate of huggingface_hub 1 calls huggingface.co even if HF_ENDPOINT is set.
pytestmark = pytest.mark.skipif(huggingface_hub.__version__.startswith("1."), reason="its client ignores our server")

REPO = "user/run"
SECRET = "hf_distinctiveSecret0123456789"
STOCK_FILES = {
    *(".gitattributes", "README.md", "config.json", "reward_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
}

PROGRAM = """
import json, logging, sys
from pathlib import Path
sys.path[:0] = {paths!r}
from training_runs import losses, make_trainer
from peft import LoraConfig
from hf_reward.publishing.push import PushError

out, job = Path(sys.argv[1]), json.loads(sys.argv[2])
lines = []
class Lines(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())
logging.getLogger("hf_reward").addHandler(Lines())
if job.pop("lora", False):
    job["peft_config"] = LoraConfig(r=2, target_modules="all-linear")
push, resume = job.pop("push", None), job.pop("resume", None)
rows = json.loads((out.parent / "rows.json").read_text())
trainer = make_trainer(out.parent / "llama", rows, out, packing="false", learning_rate=0.01, **job)
trainer.train(resume_from_checkpoint=resume)
result = {{"losses": losses(trainer), "rank": trainer.args.process_index}}
if push is not None:
    try:
        report = trainer.push_to_hub(**push)
        result["report"] = getattr(report, "commit", None)
    except PushError as error:
        result["failure"] = str(error)
result["logged"] = lines
(out.parent / f"{{out.name}}-{{trainer.args.process_index}}.json").write_text(json.dumps(result))
"""


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer(lfs=True, accounts={**ACCOUNTS, SECRET: Account("user")}) as server:
        yield server


class Runs:
    """Training runs in separate processes, with the real client."""

    def __init__(self, hub: HubServer, place: Path) -> None:
        self.hub, self.place = hub, place
        self.script = place / "program.py"
        self.script.write_text(PROGRAM.format(paths=PATHS))

    def run(self, name: str, *, processes: int = 1, token: str | None = SECRET, **job: Any) -> dict[str, Any]:
        """Train into a folder, and return the result of the main process."""
        out = self.place / name
        out.mkdir(exist_ok=True)
        for private in ("events.out.tfevents.1", "train.jsonl", "features.bin"):
            (out / private).write_bytes(b"private")
        steps = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 8 // processes}
        launch = [sys.executable]
        if processes > 1:
            launch += ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
        done = subprocess.run(
            [*launch, str(self.script), str(out), json.dumps({**steps, **job})],
            env=self.environment(token),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert SECRET not in done.stdout + done.stderr
        result = json.loads((self.place / f"{name}-0.json").read_text())
        return {**result, "output": done.stdout + done.stderr}

    def environment(self, token: str | None) -> Mapping[str, str]:
        environment = hub_environment(self.hub, self.place, token=token)
        return {**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}

    def leaks(self) -> list[str]:
        """Return files that contain the token, and published files that contain a local path."""
        found = [str(path) for path in self.place.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
        for revision in self.hub.refs(REPO):
            for name, data in self.hub.tree(REPO, revision).items():
                if SECRET.encode() in data or str(self.place).encode() in data or str(ROOT).encode() in data:
                    found.append(f"{revision}:{name}")
        return found


@pytest.fixture
def runs(hub: HubServer, tmp_path: Path, make_model_folder: Any, chat_pairs: list[dict[str, Any]]) -> Runs:
    make_model_folder("llama")
    (tmp_path / "rows.json").write_text(json.dumps(chat_pairs))
    return Runs(hub, tmp_path)


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_strategies_that_publish_the_training_state_need_permission(tmp_path, strategy):
    with pytest.raises(ValueError, match="hub_training_state=True"):
        settings(tmp_path, push_to_hub=True, hub_strategy=strategy)
    assert settings(tmp_path, push_to_hub=True, hub_strategy=strategy, hub_training_state=True).hub_training_state


def test_the_command_of_a_background_push_has_every_option():
    rule = PushRule(
        branch="v2", private=True, gated="auto", create_pr=True, adapter=True, replace=True, base_model="org/base",
        training_state="last-checkpoint", message="Step 5 of --many",
    )  # fmt: skip
    command = push_command(REPO, rule)
    assert command[0] == REPO
    for words in (
        ["--branch", "v2"], ["--message", "Step 5 of --many"], ["--base-model", "org/base"], ["--gated", "auto"],
        ["--training-state", "last-checkpoint"], ["--create-pr"], ["--adapter"], ["--replace"], ["--private"],
    ):  # fmt: skip
        place = command.index(words[0])
        assert command[place : place + len(words)] == words
    assert push_command(REPO, PushRule(private=False, gated=False))[-3:] == ["--gated", "False", "--public"]


@pytest.mark.slow
def test_a_failed_background_push_logs_the_error_and_removes_its_folder(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    folder = tmp_path / ".push-1"
    folder.mkdir()
    push = BackgroundPush(folder, [REPO], SECRET)
    push.wait_until_done()
    assert push.is_done()
    assert not folder.exists()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("A checkpoint was not pushed: ")
    assert "is not a saved model" in caplog.messages[0]


def test_an_unknown_push_option_is_named():
    with pytest.raises(ValueError, match="no option max_shard_size, tags"):
        push_model(None, REPO, tags=["x"], max_shard_size="1GB")


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("lora", [False, True])
def test_pushing_every_checkpoint_does_not_change_training(runs, lora):
    quiet = runs.run("quiet", lora=lora, save_strategy="steps")
    shared = {"push_to_hub": True, "hub_model_id": REPO, "hub_token": SECRET, "hub_always_push": True}
    loud = runs.run(
        "loud", lora=lora, save_strategy="steps", save_total_limit=1, hub_strategy="every_save", push={}, token=None,
        **shared,
    )  # fmt: skip
    assert loud["losses"] == quiet["losses"]
    assert len(set(loud["losses"])) == 4
    titles = [commit.title for commit in runs.hub.history(REPO)]
    assert titles[:2] == ["End of training", "Training in progress, step 4"] or "step 4" in titles[0], titles
    assert "Training in progress, step 2" in titles
    assert set(runs.hub.tree(REPO)) == STOCK_FILES
    assert set(runs.hub.refs(REPO)) == {"refs/heads/main"}
    assert runs.leaks() == []
    assert loud["report"] == runs.hub.head(REPO)
    out = runs.place / "loud"
    assert [each.name for each in out.glob("checkpoint-*")] == ["checkpoint-4"]
    assert list(out.glob(".push-*")) == []
    assert loud["logged"] == []


@pytest.mark.slow
@pytest.mark.faults
def test_a_failed_push_is_logged_and_training_continues(runs):
    quiet = runs.run("quiet", save_strategy="steps")
    runs.hub.fail_where(lambda record: "/commit/" in record.path, "500", times=None)
    loud = runs.run(
        "loud", save_strategy="steps", push_to_hub=True, hub_model_id=REPO, hub_strategy="every_save", push={},
        hub_always_push=True,
    )  # fmt: skip
    assert loud["losses"] == quiet["losses"]
    assert [line.split(":")[0] for line in loud["logged"]] == ["A checkpoint was not pushed"] * 2
    assert "was not changed" in loud["logged"][0]
    assert "was not changed" in loud["failure"]
    assert set(runs.hub.tree(REPO)) == {".gitattributes"}
    assert list((runs.place / "loud").glob(".push-*")) == []
    assert runs.leaks() == []


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("lora", [False, True])
def test_training_resumes_from_a_published_checkpoint(runs, lora):
    complete = runs.run("complete", lora=lora)
    shared = {"lora": lora, "push_to_hub": True, "hub_model_id": REPO, "hub_training_state": True}
    first = runs.run("first", save_strategy="steps", hub_strategy="checkpoint", save_steps=2, max_steps=4, **shared)
    assert first["losses"] == complete["losses"]
    tree = runs.hub.tree(REPO)
    steps = json.loads(tree["last-checkpoint/trainer_state.json"])["global_step"]
    assert steps in (2, 4)
    assert "last-checkpoint/training_args.bin" not in tree
    assert {"last-checkpoint/optimizer.pt", "last-checkpoint/rng_state.pth"} <= set(tree)
    assert set(tree) >= STOCK_FILES
    assert runs.leaks() == []
    titles = {commit.title: commit for commit in runs.hub.history(REPO)}
    downloaded = runs.place / "downloaded"
    for name, blob in titles["Training in progress, step 2"].files.items():
        path = downloaded / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(blob.data)
    resumed = runs.run("resumed", lora=lora, resume=str(downloaded / "last-checkpoint"))
    assert resumed["losses"] == complete["losses"]


@pytest.mark.slow
@pytest.mark.faults
def test_one_of_two_processes_pushes(runs):
    runs.run(
        "two", processes=2, save_strategy="steps", save_steps=4, push_to_hub=True, hub_model_id=REPO, push={},
        hub_strategy="every_save", lora=True,
    )  # fmt: skip
    assert [each.path for each in runs.hub.requests if "repos/create" in each.path][3:] == []
    assert len(runs.hub.history(REPO)) in (2, 3)
    assert set(runs.hub.tree(REPO)) == STOCK_FILES
    assert runs.leaks() == []


@pytest.mark.slow
@pytest.mark.faults
def test_a_background_push_ends_before_the_program_and_uses_its_options(runs):
    choices = {"blocking": False, "private": True, "revision": "trained", "commit_message": "Mine", "license": "mit"}
    runs.run("later", lora=True, hub_model_id=REPO, push=choices)
    assert set(runs.hub.tree(REPO, "trained")) == STOCK_FILES
    assert set(runs.hub.tree(REPO)) == {".gitattributes"}
    assert runs.hub.history(REPO, "trained")[0].title == "Mine"
    assert runs.hub.settings(REPO)["private"] is True
    assert b"license: mit" in runs.hub.tree(REPO, "trained")["README.md"]
    assert list((runs.place / "later").glob(".push-*")) == []
    assert runs.leaks() == []


CONSTRUCT = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from training_runs import make_trainer
from hf_reward.publishing.push import PushError
rows = [{{"prompt": "a", "chosen": "b", "rejected": "c"}}]
try:
    make_trainer(Path({place!r}) / "llama", rows, Path({place!r}) / "out", push_to_hub=True, hub_model_id="user/run")
except PushError as error:
    print("refused:", error)
"""


@pytest.mark.slow
@pytest.mark.faults
def test_a_read_only_repository_is_refused_before_training(runs, hub):
    code = CONSTRUCT.format(paths=PATHS, place=str(runs.place))
    for token, words in ((READ_TOKEN, "no write access"), (None, "401")):
        done = run_python(code, hub_environment(hub, runs.place, token=token))
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("refused: The push to user/run failed"), done.stdout
        assert words in done.stdout
    hub.fail_where(lambda record: "/repos/create" in record.path, "reset")
    done = run_python(code, hub_environment(hub, runs.place))
    assert "refused: " in done.stdout, done.stderr


MODELS = """
import copy, json, os, pickle, sys
import torch, transformers
from pathlib import Path
from peft import LoraConfig
sys.path[:0] = {paths!r}
from conftest import randomize_head
os.environ["HF_HUB_OFFLINE"] = "0"  # the imported file disables it for tests in this process
from hf_reward import AutoModelForRewardScoring
torch.set_num_threads(1)
place = Path({place!r})
lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
cases = {{"llama": {{}}, "bert": {{}}, "lora": {{"peft_config": lora}}, "half": {{"dtype": "bfloat16"}}}}
for name, options in cases.items():
    folder = place / (name if (place / name).is_dir() else "llama")
    model = AutoModelForRewardScoring.from_pretrained(folder, **options)
    randomize_head(model)
    with torch.no_grad():  # keep rewards near one: bfloat16 rounds large ones by more than the check allows
        for key, value in model.named_parameters():
            if "score." in key or "classifier." in key:
                value *= 0.1
    model.train()
    def state():
        return {{key: value.clone() for key, value in [*model.named_parameters(), *model.named_buffers()]}}
    before, config, random = state(), model.config.to_dict(), torch.get_rng_state()
    report = model.push_to_hub(f"user/{{name}}", commit_message="Mine", private=True)
    after = state()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before), name
    assert model.training and before.keys() == after.keys(), name
    assert model.config.to_dict() == config, name
    ids = torch.arange(5, 25).reshape(2, 10)
    with torch.no_grad():
        expected = model.eval()(ids).logits
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other.eval()(ids).logits, expected), name
        assert hasattr(other, "push_to_hub")
        there = AutoModelForRewardScoring.from_pretrained(f"user/{{name}}").eval()
        difference = ((there(ids).logits - expected).abs() / expected.abs().clamp(min=1)).max()
    assert difference <= (0.05 if name == "half" else 1e-4), (name, difference)
    print(name, report.commit)
"""


@pytest.mark.slow
@pytest.mark.faults
def test_a_live_model_is_published_and_not_changed(runs, hub, make_model_folder):
    make_model_folder("bert")
    code = MODELS.format(paths=PATHS, place=str(runs.place))
    done = run_python(code, runs.environment(SECRET), timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    for line in done.stdout.splitlines()[-4:]:
        name, commit = line.split()
        assert hub.head(f"user/{name}") == commit
        assert hub.settings(f"user/{name}")["private"] is True
        assert hub.history(f"user/{name}")[0].title == "Mine"
        for file, data in hub.tree(f"user/{name}").items():
            assert file in STOCK_FILES
            assert str(runs.place).encode() not in data, file
    assert os.environ.get("HF_HUB_OFFLINE") == "1", "the tests' own process never reaches a Hub"
