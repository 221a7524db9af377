"""Name and Hub options of a model -> the folder to load, and the options for loading from it.

An adapter and its base are in two repositories. The caller's `revision` and `subfolder` apply to the adapter; the
revision of the base is stated in the adapter's configuration.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers.utils.peft_utils import find_adapter_config_file

from hf_reward.modeling.checkpoint_record import stated_revision
from hf_reward.modeling.head_ensemble import HEADS_FILE

_ADAPTER_FILES = ("adapter_model.*", HEADS_FILE, "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_HUB_OPTIONS = ("revision", "cache_dir", "token", "subfolder", "local_files_only")


def hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that select files on the Hub: `revision`, `cache_dir`, `token`, `subfolder`, ..."""
    return {name: options[name] for name in _HUB_OPTIONS if name in options}


def is_adapter(name: str, **options: Any) -> bool:
    """Return whether a folder or Hub repository contains an adapter and no complete model."""
    if Path(name).is_dir():
        return (Path(name) / "adapter_config.json").is_file()
    try:
        return find_adapter_config_file(name, **hub_options(options)) is not None
    except OSError:  # not reachable; loading the model gives a better error
        return False


def resolve_model(name: str, **options: Any) -> tuple[str, dict[str, Any]]:
    """Find the folder of a model, and the options for loading from it.

    Args:
        name: Folder or Hub id.
        **options: As for `AutoModelForRewardScoring.from_pretrained`.

    Returns:
        For a folder with `subfolder`: the subfolder, and the options without `subfolder`. For an adapter: its folder
        (the cached download of a Hub id), and the options for its base, with the `revision` in `adapter_config.json`.
        The caller's `revision` applies to the named Hub repository, or to the base if a local adapter is named.
        Otherwise name and options are unchanged.
    """
    options = dict(options)
    if Path(name).is_dir():
        name = str(Path(name) / (options.pop("subfolder", None) or ""))
    elif is_adapter(name, **options):
        name = _downloaded(name, options.pop("subfolder", None) or "", options.pop("revision", None), options)
    else:
        return name, options
    if is_adapter(name) and not options.get("revision"):
        options.pop("revision", None)
        options |= stated_revision(name, options.get("base_model_name_or_path"))
    return name, options


def _downloaded(name: str, subfolder: str, revision: str | None, options: dict[str, Any]) -> str:
    """Download the files of an adapter, without checkpoints in the same repository."""
    prefix = f"{subfolder}/" if subfolder else ""
    snapshot = snapshot_download(
        name,
        revision=revision,
        allow_patterns=[f"{prefix}{pattern}" for pattern in _ADAPTER_FILES],
        ignore_patterns=[f"{prefix}checkpoint-*/*"],
        **{key: options[key] for key in ("cache_dir", "token", "local_files_only") if key in options},
    )
    return str(Path(snapshot) / subfolder)
