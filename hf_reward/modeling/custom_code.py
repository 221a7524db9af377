"""Models with custom code (`auto_map`): detection, and the class of their classifier.

Custom code only runs with `trust_remote_code=True`.
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


def has_custom_code(folder: str | Path) -> bool:
    """Return whether loading a model requires code from its folder, or from the folder of an adapter's base.

    Args:
        folder: A saved model, or an adapter whose base is a folder or in the cache.

    Returns:
        True if transformers lacks the architecture and the configuration names classes in `auto_map`.
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
    """Return the content of a JSON file; empty if it is damaged, which is reported when the model is loaded."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def require_trust(folder: str | Path, trust_remote_code: bool) -> None:
    """Refuse a folder with custom code, unless the code is trusted.

    Args:
        folder: A saved model.
        trust_remote_code: Whether custom code may run.

    Raises:
        ValueError: If loading requires custom code that may not run.
    """
    if has_custom_code(folder) and not trust_remote_code:
        raise ValueError(
            f"Loading {folder} requires custom code from the folder or from the base of the adapter. Read the code "
            "first, then allow it with `trust_remote_code=True` (`--trust-remote-code`)."
        )


def custom_classifier(config: PretrainedConfig, name: str, **hub: Any) -> type[PreTrainedModel] | None:
    """Load the classifier class of a model's custom code, which runs that code; None if there is no custom code.

    Args:
        config: Configuration of the model, loaded with its custom code.
        name: Folder or Hub id of the model.
        **hub: `revision`, `token`, `cache_dir`.

    Returns:
        The class, registered with `AutoModelForSequenceClassification`.

    Raises:
        ValueError: If the code has a configuration, but no sequence classifier.
    """
    reference = (getattr(config, "auto_map", None) or {}).get(_AUTO_CLASS)
    if reference is None:
        if not is_custom(type(config)):
            return None
        raise ValueError(
            f"A reward model requires a sequence classifier, but `auto_map` in the config.json of {name} names no "
            f"{_AUTO_CLASS}. Add a class that applies a `score` layer without bias at the last token, or start from "
            "another model."
        )
    cls: Any = get_class_from_dynamic_module(reference, name, **hub)
    cls.register_for_auto_class(_AUTO_CLASS)
    AutoModelForSequenceClassification.register(type(config), cls, exist_ok=True)
    return cls


def is_custom(cls: type) -> bool:
    """Return whether a class is from a module other than transformers and the running script, so it can be saved."""
    return cls.__module__.split(".")[0] not in ("transformers", "__main__") and hasattr(
        sys.modules.get(cls.__module__), "__file__"
    )


def saving_code(stock: type[PreTrainedModel]) -> dict[str, Any]:
    """Return class members with which `save_pretrained` also saves the file of a custom class.

    Auto classes set them in `from_pretrained`; a model that was built directly from its class lacks them.
    """
    return {"_auto_class": _AUTO_CLASS} if is_custom(stock) and not stock.is_remote_code() else {}


def save_config_code(config: PretrainedConfig) -> None:
    """Let `save_pretrained` also save the code of a custom configuration, in place."""
    if is_custom(type(config)) and config._auto_class is None:
        config._auto_class = "AutoConfig"  # pyright: ignore[reportAttributeAccessIssue]
