"""A push publishes the complete verified version or nothing, for any failing request, and never any other file."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DECODERS, randomize_head
from hub_client import Client
from hub_server import (
    ACCOUNTS,
    OTHER_TOKEN,
    OWNER_TOKEN,
    READ_TOKEN,
    HubServer,
    hub_environment,
    run_python,
)
from hub_store import Account
from peft import LoraConfig
from pushes import (
    ENTRY,
    KINDS,
    ONE_FILE,
    REPO,
    SECRET,
    SHARDS,
    TOKENIZER,
    FaultTable,
    Models,
    World,
    done,
    races,
    refused,
    rewards_of,
    step_of,
)
from transformers import AutoModelForCausalLM

from hf_reward import AutoModelForRewardScoring, prepare_tokenizer
from hf_reward.modeling.checkpoint_record import describe
from hf_reward.publishing.export import ExportRule, save_adapter, save_merged, write_verified
from hf_reward.publishing.push import PushRule
from hf_reward.publishing.saved_model import SavedModel


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, _chat_tokenizer: Any) -> Models:
    """Reward models `old` and `other` (two shards) and `new` (one file); an `adapter` of `base`; `merged` with it."""
    place = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(DECODERS["llama"](len(_chat_tokenizer))).save_pretrained(place / "base")
    _chat_tokenizer.save_pretrained(place / "base")
    tokenizer = prepare_tokenizer(_chat_tokenizer)
    for seed, (name, size) in enumerate({"old": "60KB", "new": "5GB", "other": "60KB"}.items()):
        model = AutoModelForRewardScoring.from_pretrained(place / "base")
        randomize_head(model, seed)
        rule = ExportRule(max_shard_size=size)
        write_verified(SavedModel(model, tokenizer, describe(model, tokenizer)), place / name, rule, verify=False)
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model = AutoModelForRewardScoring.from_pretrained(place / "base", peft_config=lora)
    randomize_head(model)
    save_adapter(SavedModel(model, tokenizer, describe(model, tokenizer)), place / "adapter")
    save_merged(model, tokenizer, place / "merged", verify=False)
    return Models(place, tokenizer)


@pytest.fixture(scope="module")
def _world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("hub")
    (folder / "tmp").mkdir()
    with ExitStack() as stack:
        hub = stack.enter_context(HubServer(lfs=True, accounts={**ACCOUNTS, SECRET: Account("user")}))
        client = Client({**hub_environment(hub, folder), "TMPDIR": str(folder / "tmp")})
        yield World(hub, stack.enter_context(client), folder, hub.snapshot())


@pytest.fixture
def world(request: pytest.FixtureRequest, _world: World) -> World:
    """An empty Hub that stores weights as LFS or, where a test asks for that, as regular files."""
    _world.hub.restore(_world.empty)
    _world.hub.lfs = getattr(request, "param", "lfs") == "lfs"
    return _world


both_storages = pytest.mark.parametrize("world", ["lfs", "regular"], indirect=True)


# --- a push that succeeds -------------------------------------------------------------------------------------------

STOCK = """
import json, torch
from huggingface_hub import hf_hub_download
from transformers import AutoModelForSequenceClassification, AutoTokenizer
torch.set_num_threads(1)
name = "user/model"
tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModelForSequenceClassification.from_pretrained(name).eval()
found = []
for probe in json.load(open(hf_hub_download(name, "reward_config.json")))["probes"]["conversations"]:
    text = tokenizer.apply_chat_template(probe["messages"], tokenize=False)
    with torch.no_grad():
        inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        found.append(model(**inputs).logits.item())
print(json.dumps(found))
"""


@pytest.mark.parametrize("world", ["lfs", pytest.param("regular", marks=pytest.mark.slow)], indirect=True)
def test_what_was_pushed_is_the_allow_list_and_gives_the_same_rewards_by_its_name(world, models, tmp_path):
    folder = models.copy("old", tmp_path / "mine")
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth", "events.out.tfevents.1", "train.jsonl", "x.py"):
        (folder / name).write_bytes(b"private")
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "model.safetensors").write_bytes(b"private")
    outcome = done(world.push(folder, verified=True))
    assert outcome.out.startswith(f"Pushed to {world.hub.endpoint}/{REPO} (commit {world.hub.head(REPO)[:8]}, 9 files)")
    tree = world.hub.tree(REPO)
    assert set(tree) == SHARDS
    assert list(world.refs()) == ["refs/heads/main"]
    if world.hub.lfs:
        assert len(world.hub.stored_as_lfs(REPO)) == 2
        child = run_python(STOCK, hub_environment(world.hub, tmp_path, token=None))
        assert child.returncode == 0, child.stderr
        assert json.loads(child.stdout) == pytest.approx(rewards_of(folder), rel=1e-5, abs=1e-5)
        assert "hf_reward" not in STOCK


@both_storages
def test_the_same_push_again_makes_no_commit(world, models):
    done(world.push(models.old))
    head = world.hub.head(REPO)
    outcome = done(world.push(models.old, "--json"))
    assert outcome.checked == 2, "what is on the Hub is verified again"
    assert outcome.report["commit"] == head == world.hub.head(REPO)
    assert list(world.refs()) == ["refs/heads/main"]


@both_storages
def test_an_update_is_one_commit_that_removes_old_shards_and_keeps_what_others_put_there(world, models):
    done(world.push(models.old))
    extra = {"notes.md": b"mine", "gguf/model.gguf": b"theirs", ".eval_results/community.yaml": ENTRY}
    stale = {
        ".eval_results/hf_reward--old.yaml": ENTRY,
        "adapter_config.json": b"{}",  # transformers would put this adapter on top of the model
        "adapter_model.safetensors": b"1",
        "pytorch_model.bin": b"2",
        "adapter/adapter_config.json": b"{}",
        "additional_chat_templates/tool.jinja": b"3",
    }
    world.hub.put(REPO, {**extra, **stale})
    before = len(world.hub.history(REPO))
    done(world.push(models.new, "--message", "Better"))
    tree = world.hub.tree(REPO)
    assert set(tree) == {*ONE_FILE, *extra}
    assert {name: tree[name] for name in extra} == extra
    assert [commit.title for commit in world.hub.history(REPO)[:2]] == ["Better", "By hand"]
    assert len(world.hub.history(REPO)) == before + 1
    assert tree["model.safetensors"] == (models.new / "model.safetensors").read_bytes()


def test_a_push_does_not_change_the_folder(world, models, tmp_path):
    folder = models.copy("old", tmp_path / "mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done(world.push(folder))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine"], "nothing is left behind"
    assert list((world.folder / "tmp").iterdir()) == []


# --- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.faults
@both_storages
def test_whichever_request_fails_the_branch_is_the_old_version_or_the_new_one(world, models):
    table = FaultTable(world, models)
    # downloads are the same in both storages
    steps = [each for each in table.steps if world.hub.lfs or "/resolve/" not in each[0] or "config.json" in each[0]]
    for step, at in steps:
        for kind in KINDS:
            table.try_fault(step, at, kind)
    table.write("lfs" if world.hub.lfs else "regular")
    assert len(table.rows) == len(steps) * len(KINDS) > 100


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("world", ["lfs"], indirect=True)  # the steps of regular storage are among these
def test_whenever_the_process_is_killed_the_branch_is_the_old_version_or_the_new_one(world, models):
    table = FaultTable(world, models)
    for step, at in table.steps:
        for after in (False, True):
            table.try_kill(step, at, after)
    table.write("killed, " + ("lfs" if world.hub.lfs else "regular"))
    assert {row[3] for row in table.rows} == {"killed, main old", "killed, main new"}
    left = list(models.place.glob(".hf-reward-push-*"))
    assert left, "a killed process cannot tidy up"
    for path in left:
        shutil.rmtree(path)


@pytest.mark.slow
def test_faults_at_the_requests_that_write_leave_the_old_version_or_the_new_one(world, models):
    table = FaultTable(world, models)
    for step, at in [each for each in table.steps if re.search(r"/(commit|branch|refs)|DELETE", each[0])]:
        for kind in ("500", "reset_after"):
            table.try_fault(step, at, kind)
        table.try_kill(step, at, after=True)
    left = list(models.place.glob(".hf-reward-push-*"))
    assert left, "a killed process cannot tidy up"
    for path in left:
        shutil.rmtree(path)
    assert len(table.rows) >= 15


def test_the_step_that_moves_the_branch_counts_although_its_answer_was_lost(world, models):
    table = FaultTable(world, models)
    for kind in ("500_after", "reset_after", "truncate"):
        table.try_fault("POST /models/…/commit/main", 0, kind)
    assert {row[3] for row in table.rows} == {"exit 0, main new"}


@pytest.mark.parametrize("kind", ["corrupt", "truncate"])
@both_storages
def test_a_file_that_comes_back_changed_stops_the_push(world, models, kind):
    done(world.push(models.old))
    before = (world.hub.tree(REPO), world.refs())
    world.hub.fail_where(lambda record: record.method == "GET" and "resolve" in record.path, kind, times=None)
    line = refused(world.push(models.new))
    assert "missing or changed in the download from user/model" in line or "was not changed" in line
    assert (world.hub.tree(REPO), world.refs()) == before


def test_weights_that_do_not_give_the_recorded_rewards_stop_the_push_where_they_are_noticed(world, models, tmp_path):
    folder = models.copy("new", tmp_path / "damaged")
    record = json.loads((folder / "reward_config.json").read_text())
    record["probes"]["rewards"]["float32"][0] += 0.5
    (folder / "reward_config.json").write_text(json.dumps(record))
    refused(world.push(folder, verified=True), "Nothing was pushed", "has changed since", "float32, each alone")
    assert world.hub.requests == []
    done(world.push(folder))  # only with the mocked check


# --- others at the same time ----------------------------------------------------------------------------------------


@both_storages
def test_another_commit_stops_the_push_and_is_kept(world, models):
    done(world.push(models.old))
    world.hub.when(
        lambda record: step_of(record) == "POST /models/…/commit/main",
        lambda: world.hub.put(REPO, {"README.md": b"theirs", "notes.md": b"theirs"}),
    )
    refused(world.push(models.new), "another commit was pushed in the meantime", "Run the same command again")
    tree = world.hub.tree(REPO)
    assert set(tree) == {*SHARDS, "notes.md"}
    assert tree["README.md"] == b"theirs"
    assert list(world.refs()) == ["refs/heads/main"]
    done(world.push(models.new))
    assert set(world.hub.tree(REPO)) == {*ONE_FILE, "notes.md"}


@pytest.fixture(scope="module")
def second_client(_world: World) -> Iterator[Client]:
    """Somebody else with the same rights."""
    with Client(_world.client.environment) as client:
        yield client


@pytest.mark.slow
def test_of_two_pushes_at_once_one_wins_wholly(world, models, second_client):
    table = FaultTable(world, models)
    chosen = ("GET /models/…/refs", "POST /models/…/commit/STAGING", "POST /models/…/commit/main")
    winners = races(world, models, second_client, [(step, 0) for step in chosen], table.start)
    assert winners == ["first", "second", "second"]


@pytest.mark.slow
@pytest.mark.faults
def test_of_two_pushes_one_wins_wholly_wherever_they_meet(world, models, second_client):
    table = FaultTable(world, models)
    winners = races(world, models, second_client, table.steps, table.start)
    assert winners.count("second") > 5 < winners.count("first") + 2


# --- options --------------------------------------------------------------------------------------------------------


def settings_at_the_first_upload(world: World) -> list[dict[str, Any]]:
    """Filled with the repository's settings when the first file comes."""
    found: list[dict[str, Any]] = []
    world.hub.when(
        lambda record: "/preupload/" in record.path, lambda: found.append(world.hub.settings(REPO))
    )  # fmt: skip
    return found


def test_a_repository_is_closed_before_the_new_version_can_be_seen_and_opened_after(world, models):
    done(world.push(models.old))
    assert world.hub.settings(REPO) == {"private": False, "gated": False}
    found = settings_at_the_first_upload(world)
    done(world.push(models.new, "--private", "--gated", "manual"))
    assert found == [{"private": True, "gated": "manual"}] == [world.hub.settings(REPO)]
    done(world.push(models.old))
    assert world.hub.settings(REPO) == {"private": True, "gated": "manual"}, "what is not said stays"
    world.hub.requests.clear()
    world.hub.clear_faults()
    found = settings_at_the_first_upload(world)
    done(world.push(models.new, "--public", "--gated", "off"))
    assert found == [{"private": True, "gated": "manual"}]
    assert world.hub.settings(REPO) == {"private": False, "gated": False}
    refused(world.push(models.new, "--gated", "perhaps"), "'auto', 'manual'")


def test_an_error_reports_that_the_visibility_was_not_changed(world, models):
    done(world.push(models.old, "--private"))
    world.hub.fail_where(lambda record: "/settings" in record.path, "500")
    refused(world.push(models.new, "--public"), "The new version is on the branch 'main'", "Run the same command again")
    assert set(world.hub.tree(REPO)) == ONE_FILE
    done(world.push(models.new, "--public"))
    assert world.hub.settings(REPO)["private"] is False


def test_a_new_private_repository_is_never_public(world, models):
    found: list[bool] = []
    world.hub.when(
        lambda record: "/repos/create" in record.path,
        lambda: found.append(world.hub.settings(REPO)["private"]),
        after=True,
    )
    done(world.push(models.new, "--private"))
    assert found == [True]


def test_a_branch_is_created_and_updated_in_one_commit(world, models):
    done(world.push(models.old))
    main = world.hub.head(REPO)
    world.hub.fail_where(lambda record: "/resolve/" in record.path and record.method == "GET", "500", times=None)
    refused(world.push(models.new, "--branch", "v2"), "branch 'v2' was not changed")
    assert world.refs() == {"refs/heads/main": main}
    world.hub.clear_faults()
    done(world.push(models.new, "--branch", "v2"))
    assert set(world.hub.tree(REPO, "v2")) == ONE_FILE
    done(world.push(models.old, "--branch", "v2"))
    assert set(world.hub.tree(REPO, "v2")) == SHARDS
    assert world.hub.head(REPO) == main
    assert set(world.refs()) == {"refs/heads/main", "refs/heads/v2"}


@pytest.mark.parametrize("kind", ["500", "500_after", "reset_after"])
def test_a_new_branch_is_there_wholly_or_not_whichever_answer_is_lost(world, models, kind):
    done(world.push(models.old))
    world.hub.fail_where(lambda record: record.path.endswith("/branch/v2"), kind)
    outcome = world.push(models.new, "--branch", "v2")
    assert outcome.code == int(kind == "500"), outcome
    assert ("refs/heads/v2" in world.refs()) == (kind != "500")
    done(world.push(models.new, "--branch", "v2"))
    assert set(world.hub.tree(REPO, "v2")) == ONE_FILE


@both_storages
def test_a_pull_request_has_the_files_and_leaves_the_branch_alone(world, models):
    done(world.push(models.old))
    before = (world.hub.head(REPO), world.hub.settings(REPO))
    outcome = done(world.push(models.new, "--create-pr", "--json", token=OTHER_TOKEN))
    assert outcome.report["pull_request"] == f"{world.hub.endpoint}/{REPO}/discussions/1"
    assert set(world.hub.tree(REPO, "refs/pr/1")) == ONE_FILE
    assert (world.hub.head(REPO), world.hub.settings(REPO)) == before
    assert set(world.refs()) == {"refs/heads/main", "refs/pr/1"}
    world.hub.fail_where(lambda record: "/resolve/" in record.path and record.method == "GET", "corrupt")
    line = refused(world.push(models.new, "--create-pr", token=OTHER_TOKEN), "The pull request")
    assert f"{REPO}/discussions/2" in line
    assert world.hub.head(REPO) == before[0]


def paths_in(world: World, models: Models, tmp_path: Path) -> list[str]:
    """The published files that name a place on this machine."""
    places = (str(models.place), str(tmp_path), str(world.folder), str(Path.cwd()), str(Path.home()) + "/")
    return [name for name, data in world.hub.tree(REPO).items() if any(each.encode() in data for each in places)]


def test_the_adapter_is_published_with_the_hub_id_of_its_base(world, models, tmp_path):
    refused(world.push(models.merged, "--adapter"), "the local folder", "--base-model ORG/NAME")
    refused(world.push(models.new, "--adapter"), "requires the folder", "Leave the option out")
    assert world.hub.requests == []
    done(world.push(models.merged, "--adapter", "--base-model", "org/base"))
    tree = world.hub.tree(REPO)
    adapter = {"adapter_config.json", "adapter_model.safetensors", "reward_config.json", "README.md", *TOKENIZER}
    assert set(tree) == {*ONE_FILE, *(f"adapter/{name}" for name in adapter)}
    assert json.loads(tree["adapter/adapter_config.json"])["base_model_name_or_path"] == "org/base"
    assert paths_in(world, models, tmp_path) == []
    done(world.push(models.merged))
    assert set(world.hub.tree(REPO)) == ONE_FILE, "an adapter of another version would not fit"


def test_an_adapter_of_another_training_is_not_published_with_the_model(world, models, tmp_path):
    folder = models.copy("new", tmp_path / "mixed")
    shutil.copytree(models.merged / "adapter", folder / "adapter")
    refused(world.push(folder, "--adapter", "--base-model", "org/base"), "give different rewards")


def test_a_folder_with_an_adapter_is_merged_and_keeps_its_card(world, models, tmp_path):
    folder = models.copy("adapter", tmp_path / "mine")
    done(world.push(folder))
    assert set(world.hub.tree(REPO)) == ONE_FILE
    assert paths_in(world, models, tmp_path) == []
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\nMy words.\n")
    done(world.push(folder, "--adapter", "--base-model", "org/base"))
    tree = world.hub.tree(REPO)
    assert b"My words." in tree["README.md"]
    assert "adapter/adapter_model.safetensors" in tree


def test_the_base_of_an_adapter_may_be_on_the_hub(world, models, tmp_path):
    done(world.client.run("push", models.new, "user/base-of-it"))
    world.hub.put("user/base-of-it", {each.name: each.read_bytes() for each in models.base.iterdir()})
    folder = models.copy("adapter", tmp_path / "mine")
    named = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**named, "base_model_name_or_path": "/gone/base"}))
    refused(world.push(folder), "/gone/base", "--base-model")
    done(world.push(folder, "--base-model", "user/base-of-it"))
    assert set(world.hub.tree(REPO)) == ONE_FILE


def test_a_generated_card_names_the_repository_and_an_edited_card_is_kept(world, models, tmp_path):
    folder = models.copy("new", tmp_path / "mine")
    done(world.push(folder))
    assert b"user/model" in world.hub.tree(REPO)["README.md"]
    done(world.client.run("push", folder, "model"))
    assert b'"user/model"' in world.hub.tree(REPO)["README.md"], "the owner is the token's"
    (folder / "README.md").write_text("---\nlicense: mit\nlibrary_name: transformers\n---\nMy own words.\n")
    done(world.push(folder))
    assert world.hub.tree(REPO)["README.md"] == (folder / "README.md").read_bytes()


def test_training_state_is_published_only_by_name_and_without_paths(world, models, tmp_path):
    folder = models.copy("new", tmp_path / "checkpoint-5")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (folder / name).write_bytes(b"state")
    (folder / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": f"{tmp_path}/run/checkpoint-5"}))
    done(world.push(folder))
    assert set(world.hub.tree(REPO)) == ONE_FILE
    done(world.push(folder, "--training-state", "last-checkpoint"))
    state = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "model.safetensors"}
    published = {*state, "config.json", "reward_config.json", *TOKENIZER}
    assert set(world.hub.tree(REPO)) == {*ONE_FILE, *(f"last-checkpoint/{name}" for name in published)}
    assert paths_in(world, models, tmp_path) == []
    (folder / "scheduler.pt").unlink()
    done(world.push(folder, "--training-state", "last-checkpoint"))
    assert "last-checkpoint/scheduler.pt" not in world.hub.tree(REPO)


# --- what is refused ------------------------------------------------------------------------------------------------


def unusable(name: str, models: Models, target: Path) -> tuple[Path, list[str]]:
    """A folder that cannot be pushed, and words of the reason."""
    if name == "absent":
        return target, ["There is no folder", str(Path.cwd())]
    if name == "empty":
        target.mkdir()
        return target, ["is not a saved model"]
    folder = models.copy("adapter" if name == "no base" else "new", target)
    if name == "no record":
        (folder / "reward_config.json").unlink()
        return folder, ["reward_config.json", "hf-reward export"]
    if name == "broken record":
        (folder / "reward_config.json").write_text("{")
        return folder, ["is not a valid record of hf_reward"]
    if name == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        return folder, ["are pickles", "--allow-pickle"]
    if name == "bad card":
        (folder / "README.md").write_text("---\nlicense: [unclosed\n---\n")
        return folder, ["card's metadata is not valid", "README.md"]
    assert name == "no base"
    named = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**named, "base_model_name_or_path": "/gone/base"}))
    return folder, ["/gone/base", "--base-model"]


UNUSABLE = ("absent", "empty", "no record", "broken record", "pickle", "bad card", "no base")


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_folder_that_cannot_be_published_is_refused_before_anything_is_written(world, models, tmp_path, name):
    folder, words = unusable(name, models, tmp_path / "mine")
    refused(world.push(folder), *words)
    assert world.written() == []
    assert not world.hub.exists(REPO)
    assert list((world.folder / "tmp").iterdir()) == []


def test_a_checkpoint_without_its_head_is_refused(world, models, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = models.copy("new", tmp_path / "mine")
    weights = load_file(folder / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(world.push(folder, verified=True), "Nothing was pushed", "score.weight")
    assert world.hub.requests == []


def test_metadata_that_the_hub_refuses_is_explained_and_nothing_is_made(world, models, tmp_path):
    folder = models.copy("new", tmp_path / "mine")
    (folder / "README.md").write_text("---\nlicense: no-such-license\n---\nMine.\n")
    refused(world.push(folder), "metadata is not valid", "license", "Correct README.md")
    assert not world.hub.exists(REPO)


@pytest.mark.parametrize(
    ("token", "repo", "words"),
    [
        (OTHER_TOKEN, REPO, ["no write access", "403", "hf auth login"]),
        (READ_TOKEN, REPO, ["no write access", "403", "hf auth login"]),
        ("hf_unknown", REPO, ["no write access", "401", "hf auth login"]),
        ("", REPO, ["no token was found", "hf auth login"]),
        (OWNER_TOKEN, "user//model", ["is not a Hub id"]),
        (OWNER_TOKEN, "a/b/c", ["is not a Hub id"]),
        (OWNER_TOKEN, "someone/model", ["no write access", "someone"]),
    ],
)
@pytest.mark.parametrize("exists", [False, True])
def test_a_token_without_write_access_is_an_error_and_changes_nothing(world, models, token, repo, words, exists):
    if exists:
        done(world.push(models.old))
    before = world.hub.snapshot()
    line = refused(world.push(models.new, repo=repo, token=token), *words)
    assert token not in line or not token
    after = world.hub.snapshot()
    assert after.keys() == before.keys()
    for key in after:
        assert after[key].refs == before[key].refs
    assert not any("commit" in each for each in world.written()[4 if exists else 0 :] if not exists)


def test_a_repository_with_other_content_is_left_alone_unless_it_is_to_be_replaced(world, models):
    done(world.push(models.old))
    foreign = {"config.json": b"{}", "pytorch_model.bin": b"x", "adapter_config.json": b"{}", "notes.md": b"mine"}
    world.hub._store.repositories["model", REPO].commits[world.hub.head(REPO)].files.pop("reward_config.json")
    world.hub.put(REPO, foreign)
    before = world.refs()
    refused(world.push(models.new), "already contains another model", "--branch", "--replace")
    assert world.refs() == before
    done(world.push(models.new, "--branch", "reward"))
    assert set(world.hub.tree(REPO, "reward")) == {*ONE_FILE, "notes.md"}
    done(world.push(models.new, "--replace"))
    assert set(world.hub.tree(REPO)) == {*ONE_FILE, "notes.md"}


# --- secrets --------------------------------------------------------------------------------------------------------


def test_a_token_is_nowhere(world, models, tmp_path):
    folder = models.copy("new", tmp_path / "mine")
    record = json.loads((folder / "reward_config.json").read_text())
    record["training"] = {"command": f"HF_TOKEN={SECRET} train --hub_token {SECRET} --data {tmp_path}/rows.jsonl"}
    (folder / "reward_config.json").write_text(json.dumps(record))
    outcome = done(world.push(folder, token=SECRET))
    said = [outcome.out + outcome.error]
    for kind in ("500", "reset"):
        world.hub.fail_where(lambda record: "/commit/" in record.path, kind)
        said.append(world.push(models.old, token=SECRET).error)
    assert all(said)
    assert SECRET not in "".join(said)
    assert not [name for name, data in world.hub.tree(REPO).items() if SECRET.encode() in data]
    assert paths_in(world, models, tmp_path) == []


def test_a_rule_is_checked_when_it_is_made():
    with pytest.raises(ValueError, match="auto"):
        PushRule(gated="always")
