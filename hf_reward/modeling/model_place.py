"""Name and Hub options of a model -> the folder that is read, and the options that hold for what is read from there.

An adapter and its base lie in two repositories: `revision` and `subfolder` of a call name the adapter's, while the
base has the revision that the adapter's configuration states.
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
    """Those of some options that say what is read from the Hub: `revision`, `cache_dir`, `token`, `subfolder`, ..."""
    return {name: options[name] for name in _HUB_OPTIONS if name in options}


def is_adapter(name: str, **options: Any) -> bool:
    """Whether a folder or Hub repository holds an adapter and no whole model."""
    if Path(name).is_dir():
        return (Path(name) / "adapter_config.json").is_file()
    try:
        return find_adapter_config_file(name, **hub_options(options)) is not None
    except OSError:  # not reachable; loading the model will say so better
        return False


def resolve_model(name: str, **options: Any) -> tuple[str, dict[str, Any]]:
    """Find the folder of a model, and the options for loading from it.

    Args:
        name: Folder or Hub id.
        **options: As for `AutoModelForRewardScoring.from_pretrained`.

    Returns:
        Of a folder with `subfolder`: the folder inside, and the options without `subfolder`. Of an adapter: its folder
        (of a Hub id that of the cache, downloaded if need be) and the options for its base, whose `revision` is the
        one that `adapter_config.json` states. A call's `revision` is that of the Hub repository it names; with the
        folder of an adapter it is that of the base. Anything else is returned as it is.
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
    """The snapshot of an adapter's repository: its own files, and not those of checkpoints beside it."""
    prefix = f"{subfolder}/" if subfolder else ""
    snapshot = snapshot_download(
        name,
        revision=revision,
        allow_patterns=[f"{prefix}{pattern}" for pattern in _ADAPTER_FILES],
        ignore_patterns=[f"{prefix}checkpoint-*/*"],
        **{key: options[key] for key in ("cache_dir", "token", "local_files_only") if key in options},
    )
    return str(Path(snapshot) / subfolder)
