"""A saved model gives the same rewards in stock transformers, in a process that never imports hf_reward."""

import importlib.util
import json
import os
import resource
import stat
from pathlib import Path

import pytest
import torch
from adapted_models import load
from safetensors.torch import load_file
from saved_models import (
    copied,
    edit_json,
    edit_weights,
    reward_model,
    save,
    saved_model,
    tokenizer_of,
)
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

from hf_reward import (
    CheckpointRecord,
    merge_adapter,
    save_merged,
)
from hf_reward.modeling.checkpoint_record import describe
from hf_reward.modeling.position_limits import longest_sequence
from hf_reward.modeling.probes import format_probes, probe_rewards, relative_differences
from hf_reward.publishing import export as export_module
from hf_reward.publishing import saved_model as saved_model_module
from hf_reward.publishing.export import ExportRule, export_reward_model, save_adapter, write_verified
from hf_reward.publishing.saved_model import SavedModel, load_saved
from hf_reward.publishing.verify import VerificationError, verify_checkpoint

RECIPE = Path(__file__).parents[2] / "tests" / "faults" / "parity.py"


@pytest.fixture
def source(saved_llama, tmp_path) -> Path:
    """A saved reward model."""
    return copied(saved_llama, tmp_path / "source")


def saved_adapter(base: Path, folder: Path, **options) -> Path:
    model, tokenizer = reward_model(base, lora=True, **options), tokenizer_of(base)
    save_adapter(SavedModel(model, tokenizer, describe(model, tokenizer, half=torch.bfloat16)), folder)
    return folder


@pytest.fixture
def adapter(make_model_folder, tmp_path) -> Path:
    """A saved adapter."""
    return saved_adapter(make_model_folder("llama"), tmp_path / "source-adapter")


def recorded(folder: Path, dtype: str = "float32") -> list[float]:
    return CheckpointRecord.load(folder).probes["rewards"][dtype]


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("arch", ["llama", "gpt2", "bert", "deberta_v2", "granite"])
def test_an_adapter_becomes_one_stock_folder(arch, make_model_folder, tmp_path):
    adapter = saved_adapter(make_model_folder(arch), tmp_path / "adapter")
    report = export_reward_model(adapter, tmp_path / "out")
    assert report.verification.equal
    assert report.verification.folder == str(tmp_path / "out") == str(report.folder)
    assert set(report.differences) == {"merge"}
    assert max(relative_differences(recorded(adapter), recorded(tmp_path / "out"))) <= 1e-4
    assert (tmp_path / "out" / "README.md").is_file()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"][0].endswith("Classification")
    assert left_over(tmp_path) == []
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["dtype"] == "float32"


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.05), ("float16", 0.01)])
def test_weights_are_cast_after_the_merge_except_for_the_head(dtype, bound, adapter, tmp_path):
    report = export_reward_model(adapter, tmp_path / "out", ExportRule(dtype=dtype))
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    wanted = getattr(torch, dtype)
    assert {name for name, value in tensors.items() if value.dtype != wanted} == {"score.weight"}
    assert tensors["score.weight"].dtype == torch.float32
    full = load_file(export_reward_model(adapter, tmp_path / "full").folder / "model.safetensors")
    assert torch.equal(full["score.weight"], tensors["score.weight"]), "not rounded on the way"
    assert all(torch.equal(full[name].to(value.dtype), value) for name, value in tensors.items())
    assert 0 < report.differences[f"cast to {dtype}"] < bound
    expected = max(relative_differences(recorded(tmp_path / "full"), recorded(tmp_path / "out")))
    assert report.differences[f"cast to {dtype}"] == pytest.approx(expected, rel=1e-2)
    assert set(CheckpointRecord.load(tmp_path / "out").probes["rewards"]) == {"float32", dtype}
    assert CheckpointRecord.load(tmp_path / "out").dtype == dtype
    allowed = {check.name: check.allowed for check in report.verification.checks}
    half = {check.name: check.difference for check in report.verification.checks if dtype in check.name}
    assert half[f"rewards, {dtype}, each alone"] <= 2.0**-6
    assert allowed[f"rewards, {dtype}, each alone"] is None, "weights are judged in float32"
    assert allowed["rewards, float32, padded on the left"] == 1e-5
    model = load(tmp_path / "out", dtype="auto")
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_a_precision_that_cannot_hold_the_weights_is_refused(make_model_folder, tmp_path):
    base = make_model_folder("llama")
    model = reward_model(base)
    with torch.no_grad():
        model.model.norm.weight *= 1e6
        model.score.weight /= 1e6
    folder = save(model, tokenizer_of(base), tmp_path / "large")
    with pytest.raises(ValueError, match="In float16, the rewards of this model are not finite"):
        export_reward_model(folder, tmp_path / "out", ExportRule(dtype="float16"))
    assert not (tmp_path / "out").exists()
    assert export_reward_model(folder, tmp_path / "out", ExportRule(dtype="bfloat16")).verification.equal


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="`dtype` must be 'float32', 'bfloat16' or 'float16', but is 'int8'"):
        ExportRule(dtype="int8")


def test_weights_are_split_into_shards_of_the_size_asked_for(source, tmp_path):
    export_reward_model(source, tmp_path / "out", ExportRule(max_shard_size="30KB"))
    shards = list((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 2
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
    assert recorded(tmp_path / "out") == recorded(source)


def test_files_can_be_read_by_those_whom_the_umask_lets(source, tmp_path):
    old = os.umask(0o027)
    try:
        export_reward_model(source, tmp_path / "out", ExportRule(max_shard_size="30KB"))
    finally:
        os.umask(old)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert modes == {0o640}, "safetensors writes files for their owner alone"
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750


def test_every_export_has_the_rope_base_of_transformers_4(make_model_folder, tmp_path):
    base = make_model_folder("llama")
    model = reward_model(base)
    model.config.rope_parameters["rope_theta"] = 50.0
    model.model.rotary_emb.__init__(model.config)
    folder = save(model, tokenizer_of(base), tmp_path / "rope")
    export_reward_model(folder, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 50.0
    assert recorded(tmp_path / "out") == recorded(folder)
    assert load(tmp_path / "out", verify=True).config.rope_parameters["rope_theta"] == 50.0
    with pytest.warns(DeprecationWarning, match="every save writes `rope_theta`"):
        assert ExportRule(legacy_rope=True).legacy_rope


def test_a_stripped_export_has_no_record_and_can_be_exported_again(source, tmp_path):
    report = export_reward_model(source, tmp_path / "out", ExportRule(strip=True))
    assert report.verification.equal, "it was verified before the record was left out"
    assert not (tmp_path / "out" / "reward_config.json").exists()
    export_reward_model(tmp_path / "out", tmp_path / "again")
    assert recorded(tmp_path / "again") == recorded(source)


def test_a_record_without_probes_is_given_them_by_an_export(source, tmp_path):
    expected = recorded(source)
    edit_json(source / "reward_config.json", probes={}, loss={"loss_type": "bradley_terry"})
    export_reward_model(source, tmp_path / "out")
    assert recorded(tmp_path / "out") == expected
    assert CheckpointRecord.load(tmp_path / "out").loss == {"loss_type": "bradley_terry"}


@pytest.mark.parametrize("pad", [None, 5, 0], ids=["none", "an ordinary word", "the end of text"])
def test_a_foreign_stock_folder_is_given_a_tokenizer_that_fits(pad, make_model_folder, text_tokenizer, tmp_path):
    """Without record, with a tokenizer that has no pad token and pads on the left, as people publish them."""
    base = make_model_folder("gpt2", tokenizer=text_tokenizer)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.config.pad_token_id = pad
    model.save_pretrained(tmp_path / "foreign")
    text_tokenizer.padding_side = "left"
    text_tokenizer.save_pretrained(tmp_path / "foreign")
    report = export_reward_model(tmp_path / "foreign", tmp_path / "out")
    assert report.verification.equal
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer.pad_token_id, tokenizer.padding_side) == (config["pad_token_id"], "right")
    assert config["pad_token_id"] == (0 if pad == 0 else len(text_tokenizer))
    ids = torch.tensor([[9, 8, 7]])
    with torch.no_grad():
        found = load(tmp_path / "out")(ids).logits
        assert torch.allclose(found, model.eval()(ids).logits, atol=1e-6)
    assert CheckpointRecord.load(tmp_path / "out").base_model is None


def test_the_original_base_is_refused_where_it_makes_no_difference(adapter, tmp_path):
    with pytest.raises(ValueError, match="`original_base` requires an adapter on a quantised base"):
        export_reward_model(adapter, tmp_path / "out", original_base=True)


def test_the_new_location_of_a_base_can_be_given(adapter, tmp_path):
    base = Path(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"])
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"was found neither as a folder nor.*--base-model"):
        export_reward_model(adapter, tmp_path / "out")
    assert export_reward_model(adapter, tmp_path / "out", base_model=str(moved)).verification.equal


def test_pickles_are_converted_when_asked(source, tmp_path):
    weights = source / "model.safetensors"
    torch.save(load_file(weights), source / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ValueError, match="are pickles"):
        export_reward_model(source, tmp_path / "out")
    report = export_reward_model(source, tmp_path / "out", allow_pickle=True)
    assert report.verification.equal
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert not list((tmp_path / "out").glob("*.bin"))


# --- what is refused -----------------------------------------------------------------------------------------------


def test_a_folder_that_holds_something_is_replaced_only_when_asked(source, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    old = copied(source, tmp_path / "old")
    (old / "left.txt").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        export_reward_model(source, tmp_path / "file")
    for folder in (old, tmp_path / "mine"):
        with pytest.raises(FileExistsError, match=r"is not empty.*overwrite=True"):
            export_reward_model(source, folder)
    with pytest.raises(FileExistsError, match="Only a model folder can be overwritten"):
        export_reward_model(source, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years"
    export_reward_model(source, tmp_path / "empty")
    export_reward_model(source, old, overwrite=True)
    assert not (old / "left.txt").exists()
    assert recorded(old) == recorded(source) == recorded(tmp_path / "empty")
    export_reward_model(source, source, ExportRule(dtype="bfloat16"), overwrite=True)
    assert CheckpointRecord.load(source).dtype == "bfloat16"
    assert left_over(tmp_path) == []


def _without_head(model, target, **options):
    state = {name: value for name, value in model.state_dict().items() if name != "score.weight"}
    PreTrainedModel.save_pretrained(model, target, state_dict=state, **options)


def _with_rounded_head(model, target, **options):
    state = {n: v.bfloat16().float() if n == "score.weight" else v for n, v in model.state_dict().items()}
    PreTrainedModel.save_pretrained(model, target, state_dict=state, **options)


def _with_cast_backbone(model, target, **options):
    state = {n: v if n == "score.weight" else v.bfloat16().float() for n, v in model.state_dict().items()}
    PreTrainedModel.save_pretrained(model, target, state_dict=state, **options)


@pytest.mark.parametrize("fault", [_without_head, _with_rounded_head, _with_cast_backbone])
@pytest.mark.parametrize("way", ["export", "save_merged"])
def test_what_fails_verification_never_appears(way, fault, source, tmp_path, monkeypatch):
    old = copied(source, tmp_path / "old")
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    model, tokenizer = load(source), tokenizer_of(source)
    monkeypatch.setattr(LlamaForSequenceClassification, "save_pretrained", fault, raising=False)

    def attempt(folder):
        if way == "save_merged":
            return save_merged(model, tokenizer, folder)
        return export_reward_model(source, folder, overwrite=True)

    for folder in (tmp_path / "new", old):
        with pytest.raises(VerificationError, match="was removed, because its rewards differ") as caught:
            attempt(folder)
        assert not caught.value.verification.equal
        assert str(folder) in str(caught.value)
    assert not (tmp_path / "new").exists()
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("limit", [3_000, 40_000])
@pytest.mark.parametrize("way", ["export", "save_merged", "adapter"])
def test_a_full_disk_leaves_nothing_behind_and_keeps_what_was_there(way, limit, source, adapter, tmp_path):
    old = copied(source, tmp_path / "old")
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    tokenizer = tokenizer_of(source)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def attempt(folder):
        if way == "export":
            return export_reward_model(source, folder, overwrite=True)
        return save_merged(model, tokenizer, folder)

    for folder in (tmp_path / "new", old):
        model = load(adapter if way == "adapter" else source)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # a write beyond it fails as on a full disk
        try:
            with pytest.raises(OSError, match=r"could not be written and is unchanged.*space and permissions"):
                attempt(folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        complete_adapter = {name for name in files if name.startswith("adapter/")}  # written first and not checked
        assert files - complete_adapter == (set(before) if folder == old else set())
        assert bool(complete_adapter) == ((way, limit) == ("adapter", 40_000))
        assert not complete_adapter or verify_checkpoint(folder / "adapter").equal
    assert {path.name: path.read_bytes() for path in old.iterdir() if path.is_file()} == before
    assert left_over(tmp_path) == []
    assert left_over(old) == []


def test_a_model_whose_adapter_is_merged_already_is_not_saved_as_an_adapter(adapter, tmp_path):
    model, tokenizer = load(adapter), tokenizer_of(adapter)
    save_merged(model, tokenizer, tmp_path / "out")
    with pytest.raises(ValueError, match=r"was merged into the model by an earlier save.*from_pretrained"):
        save_merged(model, tokenizer, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_read_only_folder_is_an_error(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"could not be written.*(Not a directory|File exists)"):
        export_reward_model(source, tmp_path / "file" / "out")


def test_architectures_that_no_server_supports_are_refused_by_default(tmp_path, pair_tokenizer):
    from transformers import ElectraConfig, ElectraForSequenceClassification

    config = ElectraConfig(
        vocab_size=len(pair_tokenizer),
        embedding_size=32,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        num_labels=1,
        pad_token_id=0,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    ElectraForSequenceClassification(config).save_pretrained(tmp_path / "electra")
    pair_tokenizer.save_pretrained(tmp_path / "electra")
    with pytest.raises(ValueError, match=r"No server .* can load ElectraForSequenceClassification.*--allow-unserved"):
        export_reward_model(tmp_path / "electra", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = export_reward_model(tmp_path / "electra", tmp_path / "out", ExportRule(allow_unserved=True))
    assert report.verification.equal
    assert {each.program for each in report.compatibility if not each.loads} >= {"vLLM", "SGLang", "TEI"}
    with pytest.warns(DeprecationWarning, match="is now `compatibility`"):
        assert report.consumers == report.compatibility
    with pytest.warns(DeprecationWarning, match="is now `program`"):
        assert report.compatibility[0].consumer == report.compatibility[0].program


def test_a_source_whose_head_was_damaged_is_refused(source, tmp_path):
    for change in (
        lambda tensors: tensors.pop("score.weight"),
        lambda tensors: tensors.update({"score.weight": torch.ones(1, 32)}),
    ):
        damaged = copied(source, tmp_path / "damaged")
        edit_weights(damaged / "model.safetensors", change)
        with pytest.raises(ValueError, match="does not give its recorded rewards"):
            export_reward_model(damaged, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        (damaged / "model.safetensors").unlink()
        damaged.rename(tmp_path / f"used-{id(change)}")


@pytest.mark.parametrize("arch", ["llama", "bert", "deberta_v2"])
def test_a_source_without_a_head_is_refused(arch, make_model_folder, tmp_path):
    base = make_model_folder(arch)
    with pytest.raises(ValueError, match="requires a trained reward head"):
        export_reward_model(base, tmp_path / "out")
    folder = saved_model(base, tmp_path / "headless")
    (folder / "reward_config.json").unlink()
    heads = ("score.", "classifier.")
    edit_weights(
        folder / "model.safetensors",
        lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(heads)],
    )
    with pytest.raises(ValueError, match="requires a trained reward head"):
        export_reward_model(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_source_without_tokenizer_or_with_a_damaged_record_is_refused(source, tmp_path):
    bare = copied(source, tmp_path / "bare")
    for path in (*bare.glob("tokenizer*"), bare / "reward_config.json"):
        path.unlink()
    with pytest.raises(ValueError, match="requires a tokenizer"):
        export_reward_model(bare, tmp_path / "out")
    (source / "reward_config.json").write_text('{"format": {}}')
    with pytest.raises(ValueError, match="is not a valid record of hf_reward"):
        export_reward_model(source, tmp_path / "out")
    with pytest.raises(OSError, match="nowhere"):
        export_reward_model(tmp_path / "nowhere", tmp_path / "out")


def test_a_merge_that_moves_rewards_is_refused(adapter, tmp_path, monkeypatch):
    def wrong(model):
        merged = merge_adapter(model)
        merged.model.layers[0].mlp.up_proj.weight.data += 0.01
        return merged

    monkeypatch.setattr(export_module, "merge_adapter", wrong)
    with pytest.raises(VerificationError, match="Merging the adapter changes rewards"):
        export_reward_model(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mistake_in_the_record_is_found_too(source, tmp_path, monkeypatch):
    """Were rewards recorded of other weights than are written, the fresh process would not agree."""
    real = saved_model_module.probe_record

    def shifted(*args, **options):
        found = real(*args, **options)
        found["rewards"]["float32"][3] += 1e-3
        return found

    monkeypatch.setattr(saved_model_module, "probe_record", shifted)
    with pytest.raises(VerificationError, match="at the probe 'unicode'"):
        write_verified(load_saved(source), tmp_path / "out", ExportRule())


def test_rewards_are_those_of_the_model_that_was_given(source, tmp_path):
    model, tokenizer = load(source), tokenizer_of(source)
    limit = longest_sequence(model, CheckpointRecord.load(source).format["max_length"])
    expected = probe_rewards(model, format_probes(tokenizer, limit=limit))
    saved = SavedModel(model, tokenizer, CheckpointRecord.load(source))
    write_verified(saved, tmp_path / "out", ExportRule(), verify=False)
    assert recorded(tmp_path / "out") == expected


def test_the_rope_scaling_of_transformers_4_is_written(make_model_folder, tmp_path):
    source = make_model_folder("llama")
    config = json.loads((source / "config.json").read_text())
    scaling = {"rope_type": "linear", "factor": 2.0}
    config["rope_parameters"] = {**config["rope_parameters"], **scaling}
    (source / "config.json").write_text(json.dumps(config))
    folder = saved_model(source, tmp_path / "saved")
    export_reward_model(folder, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert {name: written["rope_scaling"][name] for name in scaling} == scaling


def test_overwrite_does_not_take_checkpoints_with_it(make_model_folder, tmp_path):
    folder = saved_model(make_model_folder("llama"), tmp_path / "run")
    saved_model(make_model_folder("llama"), folder / "checkpoint-5")
    with pytest.raises(FileExistsError, match="checkpoint-5"):
        export_reward_model(folder / "checkpoint-5", folder, overwrite=True)
    assert (folder / "checkpoint-5" / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_parity_recipe_finds_no_difference_beyond_rounding(tmp_path):
    spec = importlib.util.spec_from_file_location("parity", RECIPE)
    parity = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(parity)
    for name in ("qwen2", "deberta-v2"):
        found, cast = parity.measure(name, tmp_path)
        assert list(found) == list(parity.KINDS)
        assert all(each.equal for each in found.values())
        assert max(parity.difference(each, "float32") for each in found.values()) <= 1e-5
        assert 1e-5 < cast < 0.1
