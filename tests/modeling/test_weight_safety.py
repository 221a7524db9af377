"""Weights must be complete, finite safetensors in the model folder, for all code that loads them."""

import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from saved_models import edit_json, edit_weights, reward_model, saved_model, tokenizer_of
from training_runs import make_trainer
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from hf_reward import AutoModelForRewardScoring, RewardScorer
from hf_reward.cli import app as cli
from hf_reward.data.interface import Interface, setting, used_through
from hf_reward.modeling import packing_check
from hf_reward.modeling.checkpoint_record import describe
from hf_reward.modeling.weight_safety import require_safe_weights, safetensors_problem
from hf_reward.publishing.averaging import average_reward_models
from hf_reward.publishing.export import export_reward_model, save_adapter
from hf_reward.publishing.importers import read_foreign
from hf_reward.publishing.saved_model import SavedModel
from hf_reward.publishing.staged_files import PushRule, assemble
from hf_reward.publishing.verify import verify_checkpoint
from hf_reward.scoring import server_check
from hf_reward.scoring.serving import server
from hf_reward.scoring.serving.settings import ServerSettings

FOLDERS: dict[str, Callable[[Path], Any]] = {
    "load": AutoModelForRewardScoring.from_pretrained,
    "score": RewardScorer.from_pretrained,
    "verify": verify_checkpoint,
    "export": lambda folder: export_reward_model(folder, folder.parent / "out"),
    "average": lambda folder: average_reward_models([folder, folder], folder.parent / "out"),
    "push": lambda folder: assemble(folder, folder.parent / "staged", "me/model", PushRule()),
}
ENTRIES = {**FOLDERS, "import": read_foreign}


@pytest.fixture
def folder(make_model_folder, tmp_path) -> Path:
    """A saved reward model."""
    return saved_model(make_model_folder("llama"), tmp_path / "saved")


@pytest.fixture
def adapter(make_model_folder, tmp_path) -> Path:
    """A saved adapter whose base lies in a folder of its own."""
    source = make_model_folder("llama")
    model, tokenizer = reward_model(source, lora=True), tokenizer_of(source)
    save_adapter(SavedModel(model, tokenizer, describe(model, tokenizer)), tmp_path / "adapter")
    return tmp_path / "adapter"


class Trap:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def index_outside(folder: Path) -> str:
    """The weights lie beside the folder, and its index leads there."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    _write_index(folder, tensors, "../elsewhere.safetensors")
    return "in the same folder"


def index_of_a_pickle(folder: Path) -> str:
    """The index names a pickle, beside a file that looks like the model's safetensors."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "other_model.safetensors")
    torch.save(tensors | {"trap": Trap(folder.parent / "ran")}, folder / "shard.bin")
    _write_index(folder, tensors, "shard.bin")
    return r"may only name \.safetensors files"


def _write_index(folder: Path, tensors: dict[str, Any], name: str) -> None:
    content = {"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def pickled(folder: Path) -> str:
    """The weights are a pickle."""
    torch.save(load_file(folder / "model.safetensors") | {"trap": Trap(folder.parent / "ran")}, folder / "model.bin")
    (folder / "model.safetensors").rename(folder / "value_head.safetensors")
    (folder / "model.bin").rename(folder / "pytorch_model.bin")
    return "pickle"


def cut_off(folder: Path) -> str:
    """The file lacks its last 100 bytes."""
    path = folder / "model.safetensors"
    size = path.stat().st_size
    os.truncate(path, size - 100)
    return rf"{path} cannot be read: it has {size - 100} bytes instead of {size}"


def not_finite(folder: Path) -> str:
    """One weight of the backbone is NaN."""

    def change(tensors: dict[str, Any]) -> None:
        tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = math.nan

    edit_weights(folder / "model.safetensors", change)
    return r"must be finite.*layers\.1\.mlp\.down_proj\.weight"


DAMAGES = (index_outside, index_of_a_pickle, pickled, cut_off)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("entry", list(ENTRIES))
def test_every_entry_point_refuses_the_same_weights(entry, damage, folder, tmp_path):
    words = damage(folder)
    with pytest.raises(ValueError, match=words) as caught:
        ENTRIES[entry](folder)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("entry", list(FOLDERS))
def test_every_entry_point_takes_a_sound_folder(entry, folder):
    """Without the damage, each of the calls above succeeds."""
    FOLDERS[entry](folder)


@pytest.mark.parametrize("entry", ["load", "score", "export", "average"])
def test_weights_that_are_not_finite_are_not_loaded(entry, folder, tmp_path):
    words = not_finite(folder)
    with pytest.raises(ValueError, match=words):
        FOLDERS[entry](folder)
    assert not (tmp_path / "out").exists()


def test_a_model_that_overflows_in_half_precision_is_refused_there_alone(folder):
    edit_weights(folder / "model.safetensors", lambda each: each["model.embed_tokens.weight"][0].fill_(1e6))
    AutoModelForRewardScoring.from_pretrained(folder)
    AutoModelForRewardScoring.from_pretrained(folder, dtype="bfloat16")
    with pytest.raises(ValueError, match=r"must be finite.* \(model\.embed_tokens\.weight\).*bfloat16 or float32"):
        AutoModelForRewardScoring.from_pretrained(folder, dtype="float16")


@pytest.mark.parametrize("entry", ["load", "score", "verify"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_the_base_of_an_adapter_is_under_the_same_rule(damage, entry, adapter, tmp_path):
    FOLDERS[entry](adapter)
    base = Path(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"])
    with pytest.raises(ValueError, match=damage(base)):
        FOLDERS[entry](adapter)
    assert not list(tmp_path.rglob("ran"))


@pytest.mark.parametrize("entry", ["load", "score", "verify", "export"])
def test_the_weights_of_an_adapter_are_under_the_same_rule(entry, adapter, tmp_path):
    path = adapter / "adapter_model.safetensors"
    shutil.copyfile(path, tmp_path / "whole")
    os.truncate(path, 300)
    with pytest.raises(ValueError, match=rf"{path} cannot be read: it has 300 bytes"):
        FOLDERS[entry](adapter)
    (tmp_path / "whole").rename(adapter / "decoy_model.safetensors")  # beside it, PEFT would take a pickle
    path.unlink()
    torch.save({"trap": Trap(tmp_path / "ran")}, adapter / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"no adapter_model\.safetensors"):
        FOLDERS[entry](adapter)
    assert not (tmp_path / "ran").exists()


def test_a_nan_in_an_adapter_is_found_where_it_is_loaded_and_verified(adapter):
    edit_weights(adapter / "adapter_model.safetensors", lambda each: next(iter(each.values())).fill_(math.nan))
    with pytest.raises(ValueError, match="must be finite"):
        AutoModelForRewardScoring.from_pretrained(adapter)
    result = verify_checkpoint(adapter)
    assert "finite weights" in {check.name for check in result.failures}


@pytest.mark.parametrize("damage", [index_outside, cut_off, not_finite, pickled])
def test_an_adapter_that_is_imported_is_under_the_same_rule(damage, make_model_folder, tmp_path):
    base = make_model_folder("llama")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "adapter")
    head = {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.zeros(1)}
    save_file(head, tmp_path / "adapter" / "value_head.safetensors")
    read_foreign(tmp_path / "adapter")
    with pytest.raises(ValueError, match=damage(base)):
        read_foreign(tmp_path / "adapter")
    assert not list(tmp_path.rglob("ran"))


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "adapter_model.bin", "shard.bin", 3, ["a"]])
def test_the_configuration_names_no_weights_elsewhere(name, folder):
    shutil.copyfile(folder / "model.safetensors", folder.parent / "elsewhere.safetensors")
    edit_json(folder / "config.json", transformers_weights=name)
    for entry in ("load", "verify", "push"):
        with pytest.raises(ValueError, match="must name a safetensors file in the same folder"):
            FOLDERS[entry](folder)


def test_the_file_that_the_configuration_names_is_read(folder):
    (folder / "model.safetensors").rename(folder / "mine.safetensors")
    edit_json(folder / "config.json", transformers_weights="mine.safetensors")
    assert require_safe_weights(folder) == [folder / "mine.safetensors"]
    AutoModelForRewardScoring.from_pretrained(folder, verify=True)


ALLOWING: dict[str, Callable[[Path], Any]] = {
    "load": lambda folder: AutoModelForRewardScoring.from_pretrained(folder, allow_pickle=True),
    "score": lambda folder: RewardScorer.from_pretrained(folder, allow_pickle=True),
    "verify": lambda folder: verify_checkpoint(folder, allow_pickle=True),
    "export": lambda folder: export_reward_model(folder, folder.parent / "out", allow_pickle=True),
    "average": lambda folder: average_reward_models([folder, folder], folder.parent / "out", allow_pickle=True),
    "push": lambda folder: assemble(folder, folder.parent / "staged", "me/model", PushRule(allow_pickle=True)),
    "serve": lambda folder: server._loaded(folder, ServerSettings(allow_pickle=True)),
}


@pytest.mark.slow
def test_pickles_are_read_where_they_are_allowed_by_the_same_name(adapter):
    """A base that is a pickle, as many on the Hub are; what is written is safetensors."""
    base = Path(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"])
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    for name, load in ALLOWING.items():
        with pytest.raises(ValueError, match="are pickles"):
            FOLDERS.get(name, RewardScorer.from_pretrained)(adapter)
        found = load(adapter)
        assert name != "verify" or (found.equal and "finite weights" not in {each.name for each in found.checks})
        shutil.rmtree(adapter.parent / "out", ignore_errors=True)
    assert not list((adapter.parent / "staged").rglob("*.bin"))
    assert CliRunner().invoke(cli.app, ["verify", str(adapter), "--allow-pickle"]).exit_code == 0
    tensors = torch.load(base / "pytorch_model.bin")
    tensors["model.embed_tokens.weight"][-1] = math.nan  # of a token that no probe has
    torch.save(tensors, base / "pytorch_model.bin")
    assert "finite weights" in {each.name for each in verify_checkpoint(adapter, allow_pickle=True).failures}


def test_a_pickled_adapter_is_verified_where_pickles_are_allowed(adapter):
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    assert verify_checkpoint(adapter, allow_pickle=True).equal


def test_every_command_that_loads_a_model_has_the_option():
    program: Any = typer.main.get_command(cli.app)
    commands = program.commands
    loading = [commands[name] for name in ("score", "rank", "serve", "verify", "export", "import", "push", "audit")]
    loading += [each for name, each in commands["benchmark"].commands.items() if name != "compare"]
    lacking = [each.name for each in loading if "--allow-pickle" not in {o for p in each.params for o in p.opts}]
    assert not lacking
    with used_through(Interface.COMMAND):
        assert setting("allow_pickle", True) == "--allow-pickle"


def test_an_index_of_pickles_may_only_name_files_in_the_folder(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "outside.bin")
    content = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "../outside.bin")}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="in the same folder"):
        AutoModelForRewardScoring.from_pretrained(folder, allow_pickle=True)
    shutil.copyfile(tmp_path / "outside.bin", folder / "inside.bin")
    content["weight_map"] = dict.fromkeys(tensors, "inside.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(content))
    AutoModelForRewardScoring.from_pretrained(folder, allow_pickle=True, verify=True)


def test_every_shard_must_exist_and_be_complete(make_model_folder, tmp_path):
    folder = saved_model(make_model_folder("llama"), tmp_path / "saved", save_options={"max_shard_size": "20KB"})
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert require_safe_weights(folder) == shards
    os.truncate(shards[1], 1000)
    with pytest.raises(ValueError, match=rf"{shards[1]} cannot be read: it has 1000 bytes"):
        RewardScorer.from_pretrained(folder)
    shards[1].unlink()
    for entry in ("score", "verify"):
        with pytest.raises(ValueError, match=f"names missing files: {shards[1].name}"):
            FOLDERS[entry](folder)


def as_cached(folder: Path, cache: Path) -> Path:
    """A folder as the Hub's cache holds `me/model`: links to blobs."""
    repo = cache / "models--me--model"
    for name in ("refs", "blobs", "snapshots/0123"):
        (repo / name).mkdir(parents=True)
    (repo / "refs" / "main").write_text("0123")
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copyfile(path, repo / "blobs" / f"{number}")
        (repo / "snapshots" / "0123" / path.name).symlink_to(f"../../blobs/{number}")
    return repo / "snapshots" / "0123"


@pytest.mark.parametrize("kind", ["whole", "shards", "adapter"])
def test_files_in_the_hub_cache_must_be_complete(kind, make_model_folder, tmp_path):
    source = make_model_folder("llama")
    loads: list[Any] = [AutoModelForRewardScoring.from_pretrained, RewardScorer.from_pretrained]
    if kind == "adapter":
        model, tokenizer = reward_model(source, lora=True), tokenizer_of(source)
        save_adapter(SavedModel(model, tokenizer, describe(model, tokenizer)), tmp_path / "saved")
        loads = [require_safe_weights]  # PEFT reads its own cache only
    else:
        saved_model(source, tmp_path / "saved", save_options={"max_shard_size": "20KB"} if kind == "shards" else {})
    snapshot = as_cached(tmp_path / "saved", tmp_path / "cache")
    for load in loads:
        load("me/model", cache_dir=str(tmp_path / "cache"))
    path = max(snapshot.glob("*.safetensors"))
    size = path.stat().st_size
    os.truncate(path, size - 50)
    remedy = f"Delete {path.resolve()} to download it again"
    words = f"{path} cannot be read: it has {size - 50} bytes instead of {size}. {remedy}"
    for load in loads:
        with pytest.raises(ValueError, match=re.escape(words)) as caught:
            load("me/model", cache_dir=str(tmp_path / "cache"))
        assert "\n" not in str(caught.value)


def test_a_checkpoint_with_a_stray_index_is_not_resumed_from(make_model_folder, chat_pairs, tmp_path):
    def trainer() -> Any:
        options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
        return make_trainer(make_model_folder("llama"), chat_pairs[:4], tmp_path / "run", **options)

    trainer().train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    (checkpoint / "checkpoint_files.json").unlink()  # as `Trainer` itself leaves it
    index_outside(checkpoint)
    with pytest.raises(ValueError, match="in the same folder"):
        trainer().train(resume_from_checkpoint=str(checkpoint))


def test_sizes_are_those_that_the_header_states(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(3), "b": torch.ones(2, 2, dtype=torch.float16)}, path)
    content = path.read_bytes()
    header = int.from_bytes(content[:8], "little")
    assert len(content) == 8 + header + 3 * 4 + 4 * 2
    assert safetensors_problem(path) is None
    cases = {
        content[:-1]: f"it has {len(content) - 1} bytes instead of {len(content)}",
        content + b"\0": f"it has {len(content) + 1} bytes instead of {len(content)}",
        content[:20]: f"it has 20 bytes, but {8 + header} or more are expected",
        content[:5]: "it has 5 bytes, but 8 or more are expected",
        b"": "it has 0 bytes, but 8 or more are expected",
        b"version https://git-lfs.github.com/spec/v1\n": "it is a Git LFS pointer of 43 bytes",
        (2).to_bytes(8, "little") + b"[]": "its header is damaged",
        (60_000).to_bytes(8, "little") + b"[" * 60_000: "its header is damaged",
        _with_header({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, 4): "its header is damaged",
        _with_header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, math.inf]}}, 4): "its header is damaged",
    }
    for damaged, words in cases.items():
        path.write_bytes(damaged)
        assert str(safetensors_problem(path)).startswith(words), words


def _with_header(parts: dict[str, Any], size: int) -> bytes:
    header = json.dumps(parts).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


@pytest.mark.parametrize("damage", [cut_off, not_finite])
def test_score_reports_damaged_weights_in_one_line(damage, folder, tmp_path, monkeypatch, capsys):
    words = damage(folder)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    places = [str(folder), "--data", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["hf-reward", "score", "--model", *places])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    last = capsys.readouterr().err.rstrip().splitlines()[-1]
    assert ended.value.code == 1
    assert re.search(words, last)
    assert last.startswith("hf-reward: ")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sides", ["here", "there", "both"])
def test_rewards_that_are_not_finite_never_match_a_server(value, sides):
    here = np.array([0.5, -1.0, 2.0, 3.0])
    assert server_check._compare(here, here, url="u", kind="vllm", notes=[]).verdict == server_check.SAME
    broken = here.copy()
    broken[2] = value
    one, other = (broken if sides in ("here", "both") else here), (broken if sides in ("there", "both") else here)
    with np.errstate(invalid="ignore"):
        result = server_check._compare(one, other, url="u", kind="vllm", notes=[])
    assert result.verdict == server_check.DIFFERENT
    assert not result.passed


def test_attention_kernels_that_give_nan_are_off(monkeypatch):
    """Python's `max` would pass over a NaN that is not the first."""
    calls: list[int] = []

    def attention(query: Any, key: Any, value: Any, layout: Any, *, sliding_window: int | None) -> Any:
        calls.append(1)
        return query * key.mean() * value.mean() * (math.nan if len(calls) == 4 else 1.0)

    monkeypatch.setattr(packing_check, "packed_attention", attention)
    error = packing_check.kernel_error(torch.device("cpu"), torch.float32, heads=2, key_heads=2, head_size=4)
    assert math.isnan(error)
