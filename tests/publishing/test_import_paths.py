"""Names in a checkpoint of another library never lead outside of its folder or the new folder."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_layouts import LAYOUTS, TEXTS, Foreign, check_rewards, trl
from safetensors.torch import load_file
from saved_models import edit_json

from hf_reward.publishing.importers import detect_format, read_foreign
from hf_reward.publishing.importers.stock_folder import import_reward_model


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_no_importer_follows_an_index_out_of_the_folder(layout, chat_tokenizer, tmp_path):
    write_layout, name, _ = LAYOUTS[layout]
    folder = write_layout(tmp_path / "foreign", Foreign("llama", chat_tokenizer))
    outside = tmp_path / "outside"  # whole and sound: only its place is wrong
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, outside.with_suffix(".bin"))
    (folder / "model.safetensors").rename(outside.with_suffix(".safetensors"))
    for suffix, index in ((".safetensors", "model.safetensors.index.json"), (".bin", "pytorch_model.bin.index.json")):
        target = outside.with_suffix(suffix)
        up = "/".join([".."] * len(folder.relative_to(tmp_path).parts))
        for shard in (
            f"{up}/{target.name}",
            f"a/../{up}/{target.name}",
            str(target),
            f"file://{target}",
            f"..\\{target.name}",
        ):
            (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, shard)}))
            for read in (detect_format, read_foreign, partial(read_foreign, format=name)):
                with pytest.raises(ValueError, match="in the same folder"):
                    read(folder, allow_pickle=True)
        (folder / index).unlink()
    outside.with_suffix(".safetensors").rename(folder / "model.safetensors")
    assert read_foreign(folder).format == name


def test_settings_that_name_files_elsewhere_change_nothing_in_the_weights_read(chat_tokenizer, tmp_path):
    model = Foreign("llama", chat_tokenizer)
    folder = trl(tmp_path / "foreign", model)
    edit_json(folder / "config.json", _name_or_path="../outside")
    edit_json(folder / "tokenizer_config.json", tokenizer_file="../outside.json", vocab_file="/etc/passwd")
    check_rewards(read_foreign(folder), model.rewards(TEXTS, bias=0.75))
    for name in ("../outside.safetensors", str(tmp_path / "outside.safetensors"), "outside.bin", 3):
        edit_json(folder / "config.json", transformers_weights=name)
        with pytest.raises(ValueError, match="`transformers_weights`"):
            read_foreign(folder)


@pytest.mark.parametrize("name", ["../../evil", "{place}/evil", "a/../../../evil"])
def test_a_template_of_the_tokenizer_is_not_written_elsewhere(name, chat_tokenizer, tmp_path):
    folder = trl(tmp_path / "in" / "foreign", Foreign("llama", chat_tokenizer))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    templates = {"default": chat_tokenizer.chat_template, name.format(place=tmp_path): "evil"}
    named = [{"name": key, "template": each} for key, each in templates.items()]
    edit_json(folder / "tokenizer_config.json", chat_template=named)
    before = _files(tmp_path)
    with pytest.raises(ValueError, match="Invalid chat template name"):
        import_reward_model(folder, tmp_path / "deep" / "er" / "out")
    assert _files(tmp_path) == before


def _files(folder: Path) -> dict[str, Any]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
