"""Features on disk: damaged, incomplete or outdated features are recomputed; files are memory-mapped."""

import json
import logging
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cached_runs import cached_trainer, close, computed_tokens, frozen, rewards, stored, uncached_rewards
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_trainer import ranked_lists
from training_runs import largest_difference, weights
from transformers import AutoTokenizer

from hf_reward.training.feature_cache import (
    FeatureStore,
    cache_folder,
    feature_fingerprint,
    open_features,
    write_manifest,
    write_part,
)

pytestmark = pytest.mark.usefixtures("cache")


# --- damage ----------------------------------------------------------------------------------------------------------


def flip_a_byte(folder: Path) -> None:
    [part] = folder.glob("*.bin")
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 0x40
    part.write_bytes(data)


def truncate(folder: Path) -> None:
    [part] = folder.glob("*.bin")
    part.write_bytes(part.read_bytes()[:-4])


def delete_the_part(folder: Path) -> None:
    [part] = folder.glob("*.bin")
    part.unlink()


def edit_manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / "manifest.json").read_text())
        change(content["parts"][0])
        (folder / "manifest.json").write_text(json.dumps(content))

    return edit


def halve_the_hidden_size(part: dict[str, Any]) -> None:
    part["hidden_size"] //= 2


def double_the_hidden_size(part: dict[str, Any]) -> None:
    part["hidden_size"] *= 2


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "a flipped byte": flip_a_byte,
    "a truncated part": truncate,
    "a deleted part": delete_the_part,
    "an empty manifest": lambda folder: (folder / "manifest.json").write_text(""),
    "a manifest cut short": lambda folder: (folder / "manifest.json").write_text('{"parts": [{"file": "part-0'),
    "a manifest that is no text": lambda folder: (folder / "manifest.json").write_bytes(b"\xff\x00\xfe"),
    "a manifest of another kind": lambda folder: (folder / "manifest.json").write_text("[1, 2]"),
    "a manifest without parts": lambda folder: (folder / "manifest.json").write_text('{"parts": []}'),
    "a wrong number of sequences": edit_manifest(lambda part: part.update(sequences=part["sequences"] - 1)),
    "a missing field": edit_manifest(lambda part: part.pop("dtype")),
    "a text as a number": edit_manifest(lambda part: part.update(sequences="24")),
    "an unknown type": edit_manifest(lambda part: part.update(dtype="float33")),
    "another type of the same size": edit_manifest(lambda part: part.update(dtype="int32")),
    "another type of half the size": edit_manifest(lambda part: part.update(dtype="bfloat16")),
    "half the hidden size": edit_manifest(halve_the_hidden_size),
    "twice the hidden size": edit_manifest(double_the_hidden_size),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_cache_is_detected_and_recomputed(make_model_folder, tmp_path, cache, caplog, name):
    folder = make_model_folder("llama")
    expected = rewards(cached_trainer(folder, ranked_lists(), tmp_path / "run"))
    [features] = stored(cache)
    DAMAGE[name](features)
    with caplog.at_level(logging.WARNING):
        trainer = cached_trainer(folder, ranked_lists(), tmp_path / "run")
        assert computed_tokens(trainer) > 0
    close(rewards(trainer), expected)
    assert "damaged or incomplete" in caplog.text
    assert str(features) in caplog.text
    assert stored(cache) == [features]
    assert open_features(features, sum(map(len, trainer.eval_dataset["ranks"]))) is not None


def leave_unfinished_files(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    [part] = folder.glob("*.bin")
    for number in ("0a1b2c3d", "4e5f6071"):
        (folder / f".{part.name}.{number}.tmp").write_bytes(b"half")
        (folder / f".manifest.json.{number}.tmp").write_text('{"parts"')
    part.unlink()


@pytest.mark.parametrize("interrupt", [lambda folder: (folder / "manifest.json").unlink(), leave_unfinished_files])
def test_an_incomplete_cache_is_recomputed(make_model_folder, tmp_path, cache, interrupt):
    folder = make_model_folder("llama")
    expected = rewards(cached_trainer(folder, ranked_lists(), tmp_path / "run"))
    [features] = stored(cache)
    interrupt(features)
    trainer = cached_trainer(folder, ranked_lists(), tmp_path / "run")
    assert computed_tokens(trainer) > 0
    close(rewards(trainer), expected)
    assert computed_tokens(cached_trainer(folder, ranked_lists(), tmp_path / "run")) == 0


def test_an_exception_while_computing_leaves_no_files(make_model_folder, tmp_path, cache):
    trainer = cached_trainer(
        make_model_folder("llama"), ranked_lists(), tmp_path / "run", per_device_eval_batch_size=3, num_train_epochs=2
    )  # fmt: skip
    trainer.checks.done = True
    trainer.model.train()
    before, calls = trainer.model.config._attn_implementation, []

    def interrupt(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt

    handle = trainer.model.base_model.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.evaluate()
    handle.remove()
    assert [path for path in cache.rglob("*") if path.is_file()] == []
    assert trainer.model.config._attn_implementation == before
    assert trainer.model.training
    assert torch.is_grad_enabled()
    trainer.train()
    assert computed_tokens(trainer) == 0
    close(rewards(trainer), uncached_rewards(trainer))


def test_a_full_disk_does_not_change_the_model_or_torch(make_model_folder, tmp_path, cache, monkeypatch):
    trainer = cached_trainer(
        make_model_folder("llama"), ranked_lists(), tmp_path / "run", per_device_eval_batch_size=3, num_train_epochs=2
    )  # fmt: skip
    trainer.checks.done = True
    trainer.model.train()
    before, open_file = trainer.model.config._attn_implementation, Path.open

    def full(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return open("/dev/full", "wb", buffering=0) if mode == "wb" else open_file(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left") as caught:
        trainer.evaluate()
    monkeypatch.undo()
    after = (torch.is_grad_enabled(), trainer.model.training, trainer.model.config._attn_implementation)
    del caught
    torch.set_grad_enabled(True)
    assert after == (True, True, before)


# --- on disk ---------------------------------------------------------------------------------------------------------


@hypothesis_settings(deadline=None, max_examples=30)
@given(
    st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=5).filter(any),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.integers(1, 5),
)
def test_reads_across_parts_equal_one_tensor(parts: list[list[int]], dtype: torch.dtype, hidden: int) -> None:
    generator = torch.Generator().manual_seed(len(parts))
    batches = [[torch.randn(size, hidden, generator=generator).to(dtype) for size in part] for part in parts]
    expected = torch.cat([batch for part in batches for batch in part])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written = [write_part(folder, f"part-{place}.bin", iter(part)) for place, part in enumerate(batches)]
        write_manifest(folder, written)
        store = open_features(folder, len(expected))
        assert store is not None
        assert len(store) == len(expected)
        for start in range(len(expected)):
            for end in range(start + 1, len(expected) + 1):
                found = store.read(start, end)
                assert found.dtype == dtype
                assert torch.equal(found, expected[start:end])
        assert open_features(folder, len(expected) + 1) is None
        del store


@pytest.fixture
def large_store(tmp_path):
    values = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    parts = [write_part(tmp_path / "large", f"{place}.bin", iter([values[place::2]])) for place in (0, 1)]
    return FeatureStore(tmp_path / "large", parts), torch.cat([values[::2], values[1::2]])


def test_pickled_features_do_not_contain_their_data(large_store):
    store, values = large_store
    assert torch.equal(store.read(1990, 2010), values[1990:2010])
    pickled = pickle.dumps(store)
    assert len(pickled) < 2000
    assert torch.equal(pickle.loads(pickled).read(1990, 2010), values[1990:2010])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs a list of what the process has mapped")
def test_features_are_memory_mapped(large_store):
    store, _ = large_store
    store.read(0, 1)
    maps = Path("/proc/self/maps").read_text()
    assert all(str(store.folder / part.file) in maps for part in store.parts)


def test_changing_a_read_tensor_does_not_change_the_store(large_store):
    store, values = large_store
    store.read(5, 9).zero_()
    assert torch.equal(store.read(5, 9), values[5:9])


def test_features_of_a_bfloat16_backbone_are_stored_in_bfloat16(make_model_folder, tmp_path, cache):
    trainer = cached_trainer(frozen(make_model_folder("llama"), dtype="bfloat16"), ranked_lists(), tmp_path / "run")
    trainer.evaluate()
    [features] = stored(cache)
    [part] = json.loads((features / "manifest.json").read_text())["parts"]
    assert part["dtype"] == "bfloat16"
    assert (features / part["file"]).stat().st_size == part["sequences"] * part["hidden_size"] * 2
    [batch] = trainer.get_eval_dataloader()
    assert batch["features"].dtype == torch.bfloat16
    found = trainer.model.score(batch["features"])
    assert found.dtype == torch.float32
    assert torch.equal(rewards(trainer)[batch["ranks"] != -100], found.detach().ravel())


def test_features_are_stored_next_to_the_cache_file_of_the_rows(make_model_folder, tmp_path, cache):
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ranked_lists()))
    folder = make_model_folder("llama")
    trainer = cached_trainer(folder, str(source), tmp_path / "run")
    assert computed_tokens(trainer) > 0
    [features] = stored(cache)
    assert features.parent == Path(trainer.eval_dataset.cache_files[0]["filename"]).parent
    assert computed_tokens(cached_trainer(folder, str(source), tmp_path / "run")) == 0


def test_the_folder_is_named_by_the_fingerprint(make_model_folder, tmp_path, cache):
    trainer = cached_trainer(make_model_folder("llama"), ranked_lists(), tmp_path / "run")
    trainer.evaluate()
    fingerprint = feature_fingerprint(trainer.model, trainer.eval_dataset, "no")
    assert stored(cache) == [cache_folder(trainer.eval_dataset, fingerprint)]


# --- a backbone that changes -----------------------------------------------------------------------------------------


def add_in_place(model: Any) -> None:
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.add_(0.3)


def add_to_data(model: Any) -> None:
    model.model.layers[0].mlp.up_proj.weight.data.add_(0.3)


def assign_data(model: Any) -> None:
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.data = weight.data + 0.3


def replace_parameter(model: Any) -> None:
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(layer.weight.detach() + 0.3, requires_grad=False)


def load_other_state(model: Any) -> None:
    model.load_state_dict({name: value + 0.3 for name, value in model.state_dict().items()})


@pytest.mark.parametrize(
    "change", [add_in_place, add_to_data, assign_data, replace_parameter, load_other_state], ids=lambda f: f.__name__
)
def test_features_of_changed_weights_are_recomputed(make_model_folder, tmp_path, change):
    trainer = cached_trainer(make_model_folder("llama"), ranked_lists(), tmp_path / "run")
    first = rewards(trainer)
    for _ in range(4):
        change(trainer.model)
        found = rewards(trainer)
        assert not torch.allclose(found, first, atol=1e-3)
        close(found, uncached_rewards(trainer))
        first = found


@pytest.mark.slow
def test_persistent_workers_do_not_return_features_of_changed_weights(make_model_folder, tmp_path):
    trainer = cached_trainer(
        make_model_folder("llama"), ranked_lists(), tmp_path / "run", dataloader_num_workers=1,
        dataloader_persistent_workers=True,
    )  # fmt: skip
    close(rewards(trainer), uncached_rewards(trainer))
    add_in_place(trainer.model)
    close(rewards(trainer), uncached_rewards(trainer))


@pytest.mark.parametrize("choice", [True, "auto"])
def test_an_unfrozen_backbone_runs_again(make_model_folder, tmp_path, choice):
    trainer = cached_trainer(
        make_model_folder("llama"), ranked_lists(), tmp_path / "run", num_train_epochs=2, cache_features=choice
    )  # fmt: skip
    trainer.evaluate()
    assert computed_tokens(trainer) == 0
    trainer.model.requires_grad_(True)
    if choice is True:
        with pytest.raises(ValueError, match="the backbone is trained"):
            trainer.evaluate()
        return
    assert computed_tokens(trainer) > 0
    before = weights(trainer.model)
    trainer.train()
    close(rewards(trainer), uncached_rewards(trainer))
    assert largest_difference(before, weights(trainer.model)) > 0
    assert not torch.equal(before["model.embed_tokens.weight"], trainer.model.model.embed_tokens.weight)


def test_each_model_of_model_init_has_its_own_features(make_model_folder, tmp_path):
    folders = [make_model_folder("llama", name=f"llama-{seed}", seed=seed) for seed in range(6)]
    made = iter(folders)
    trainer = cached_trainer(
        None, ranked_lists(), tmp_path / "run", model_init=lambda: frozen(next(made)), num_train_epochs=2,
        processing_class=AutoTokenizer.from_pretrained(folders[0]),
    )  # fmt: skip
    for _ in folders[1:]:
        trainer.train()
        close(rewards(trainer), uncached_rewards(trainer))
