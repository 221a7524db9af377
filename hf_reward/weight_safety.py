"""Folder or Hub id -> are its weights safetensors that lie beside each other, and finite? All else is refused."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils.hub import cached_file

from hf_reward.path_safety import is_plain_name

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_QUIET: dict[str, Any] = {
    f"_raise_exceptions_for_{name}": False for name in ("gated_repo", "missing_entries", "connection_errors")
}


def refuse_pickles(folder: str | Path) -> None:
    """Stop at a folder whose weights are pickles, which can run code when they are loaded.

    Args:
        folder: A model folder.

    Raises:
        ValueError: If it holds weights as pickles and none as safetensors.
    """
    folder = Path(folder)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES and "model" in path.name)
    if pickles and not any(folder.glob("*model*.safetensors")):
        raise ValueError(
            f"The weights in {folder} are pickles ({', '.join(pickles[:3])}), which can run code when they are loaded. "
            "If you trust their origin, load them with `allow_pickle=True` (only tensors are read), or convert them "
            "with `hf-reward export FROM TO --allow-pickle`."
        )


def refuse_pickled_adapter(name: str, **hub: Any) -> None:
    """Stop at an adapter without safetensors: PEFT would turn to the pickle beside it, whatever it was told.

    Args:
        name: Folder or Hub id of an adapter.
        **hub: `revision`, `token`, `cache_dir`, `subfolder`.

    Raises:
        ValueError: If it has no `adapter_model.safetensors`.
    """
    if cached_file(name, "adapter_model.safetensors", **hub, **_QUIET) is None:
        raise ValueError(
            f"The adapter {name} has no adapter_model.safetensors, or it cannot be reached. If its weights are a "
            "pickle (adapter_model.bin) whose origin you trust, load it with `allow_pickle=True` (only tensors are "
            "read)."
        )


def require_plain_shards(name: str, *, variant: str | None = None, explicit: str | None = None, **hub: Any) -> None:
    """Stop at an index of shards that names other files than safetensors beside it.

    transformers joins the names to the folder as they are, and unpickles what does not end in `.safetensors`.

    Args:
        name: Folder or Hub id of a model.
        variant: As in `from_pretrained`: a part of the index' name.
        explicit: The file that the model's configuration names as its weights.
        **hub: `revision`, `token`, `cache_dir`, `subfolder`.

    Raises:
        ValueError: If the index cannot be read, or a name in it leads elsewhere.
    """
    default = f"model.safetensors.index.{variant}.json" if variant else "model.safetensors.index.json"
    for index in (default, explicit):
        if index is not None and index.endswith(".json"):
            path = cached_file(name, index, **hub, **_QUIET)
            if path is not None:
                shard_names(Path(path), suffixes=(".safetensors",))


def shard_names(index: Path, *, suffixes: tuple[str, ...]) -> list[str]:
    """Read which files an index of shards names.

    Args:
        index: The index.
        suffixes: How those files may end.

    Returns:
        The names, sorted.

    Raises:
        ValueError: If it is no index, or a name is not that of such a file beside it.
    """
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{index} is no index of weights ({error!r}). Take it from a fresh copy.") from error
    stray = sorted(str(name) for name in names if not is_plain_name(name) or not name.endswith(suffixes))
    if stray:
        raise ValueError(
            f"{index} names files that are not beside it, or no {' or '.join(suffixes)} files: {', '.join(stray[:5])}. "
            "Do not load this model; take it from a source that you trust."
        )
    return sorted(names)


def non_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Find tensors that hold a NaN or an infinity.

    Args:
        tensors: Names and tensors; of a sharded one (DTensor) the part of this process is looked at.

    Returns:
        The names of those that do; integers and tensors without memory (`meta`) cannot.
    """
    return [name for name, tensor in tensors if not _is_finite(tensor)]


@torch.no_grad()
def _is_finite(tensor: Tensor) -> bool:
    local = getattr(tensor, "to_local", None)
    tensor = local() if local is not None else tensor.detach()
    if tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() == 0:
        return True
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.element_size() == 1:  # float8 has no such operations
        tensor = tensor.float()
    low, high = torch.aminmax(tensor)  # NaN propagates; unlike `isfinite` this needs no memory
    return bool(torch.isfinite(low) & torch.isfinite(high))


def non_finite_in_file(path: Path) -> list[str]:
    """Find tensors of a safetensors file that hold a NaN or an infinity, reading one after the other.

    Args:
        path: The file.

    Returns:
        Their names.
    """
    with safe_open(path, "pt") as file:
        return non_finite((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118 - no mapping


def refuse_adapter_loop(folder: str) -> None:
    """Stop at adapters that name each other, or themselves, as their base.

    Args:
        folder: Folder of an adapter.

    Raises:
        ValueError: If following the bases leads back.
    """
    seen: list[Path] = []
    place = Path(folder)
    while (place / "adapter_config.json").is_file():
        if place.resolve() in seen:
            raise ValueError(f"The adapter {folder} is, over its base models, its own base. Take a fresh copy.")
        seen.append(place.resolve())
        content = adapter_settings(place)
        place = Path(str(content.get("base_model_name_or_path")))


def adapter_settings(folder: str | Path) -> dict[str, Any]:
    """Read `adapter_config.json`.

    Args:
        folder: Folder of an adapter.

    Returns:
        Its content.

    Raises:
        ValueError: If it is no JSON object, or its base is no name.
    """
    path = Path(folder) / "adapter_config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}). Take it from a fresh copy.") from error
    base = content.get("base_model_name_or_path") if isinstance(content, dict) else 0
    if not isinstance(base, str | None) or (base and "\0" in base):
        raise ValueError(f"{path} is no configuration of an adapter. Take it from a fresh copy.")
    return content
