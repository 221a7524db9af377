"""Models that bring code of their own (`auto_map`): which they are, and the class of their classifier.

Their code runs only where `trust_remote_code=True` was given.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_AUTO_CLASS = "AutoModelForSequenceClassification"


def brings_code(folder: str | Path) -> bool:
    """Whether a folder's model can be loaded with code from that folder only, or that of an adapter's base.

    Args:
        folder: A saved model, or an adapter whose base is a folder or was downloaded before.

    Returns:
        True if transformers has no such architecture and the configuration names classes in `auto_map`.
    """
    name, seen = str(folder), set[str]()
    while (Path(name) / "adapter_config.json").is_file() and name not in seen:
        seen.add(name)
        name = str(_settings(Path(name) / "adapter_config.json").get("base_model_name_or_path") or folder)
    is_hub_id = not Path(name).is_dir() and _HUB_ID.fullmatch(name)
    found = try_to_load_from_cache(name, "config.json") if is_hub_id else None
    config = _settings(Path(found) if isinstance(found, str) else Path(name) / "config.json")
    return bool(config.get("auto_map")) and config.get("model_type") not in CONFIG_MAPPING


def _settings(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where it cannot be read, which is refused with its reason where it is loaded."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def require_trust(folder: str | Path, trust_remote_code: bool) -> None:
    """Stop where a folder's own code would have to run without permission.

    Args:
        folder: A saved model.
        trust_remote_code: Whether its code may run.

    Raises:
        ValueError: If it may not.
    """
    if brings_code(folder) and not trust_remote_code:
        raise ValueError(
            f"{folder} contains custom code (or its base does), which has to run to load the model. Read it first; "
            "then pass `trust_remote_code=True` (`--trust-remote-code`)."
        )


def custom_classifier(config: PretrainedConfig, name: str, **hub: Any) -> type[PreTrainedModel] | None:
    """Load the classifier class that a model's own code defines, None if it defines none. Runs that code.

    Args:
        config: The model's configuration, loaded with its own code.
        name: Folder or Hub id of the model.
        **hub: `revision`, `token`, `cache_dir`.

    Returns:
        The class, known to `AutoModelForSequenceClassification` from then on.

    Raises:
        ValueError: If the code has a configuration but no sequence classifier.
    """
    reference = (getattr(config, "auto_map", None) or {}).get(_AUTO_CLASS)
    if reference is None:
        if not is_custom(type(config)):
            return None
        raise ValueError(
            f"The code of {name} has no sequence classifier: `auto_map` in its config.json names no {_AUTO_CLASS}. Add "
            "one that reads a bias-free `score` at the last token, or start from another model."
        )
    cls: Any = get_class_from_dynamic_module(reference, name, **hub)
    cls.register_for_auto_class(_AUTO_CLASS)
    AutoModelForSequenceClassification.register(type(config), cls, exist_ok=True)
    return cls


def is_custom(cls: type) -> bool:
    """Whether a class comes neither from transformers nor from a running script, so that its file can be saved."""
    return cls.__module__.split(".")[0] not in ("transformers", "__main__") and hasattr(
        sys.modules.get(cls.__module__), "__file__"
    )


def saving_code(stock: type[PreTrainedModel]) -> dict[str, Any]:
    """What a subclass of a custom class needs so that `save_pretrained` writes the class's file beside the weights.

    `from_pretrained` of an auto class sees to it; a model made from its class directly would be saved without.
    """
    return {"_auto_class": _AUTO_CLASS} if is_custom(stock) and not stock.is_remote_code() else {}


def save_config_code(config: PretrainedConfig) -> None:
    """Let `save_pretrained` write the code of a custom configuration too, in place."""
    if is_custom(type(config)) and config._auto_class is None:
        config._auto_class = "AutoConfig"  # pyright: ignore[reportAttributeAccessIssue]
