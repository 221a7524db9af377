"""Checks of weight files: complete safetensors in the model folder, with finite values. Other weights are refused.

All code that loads, checks or publishes weights calls `require_safe_weights`.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils.hub import cached_file

from hf_reward.data.interface import setting
from hf_reward.data.path_safety import is_plain_name

_COPY_AGAIN = "Copy the model again from its source."
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_LONGEST_HEADER = 100_000_000
"""Bytes; the limit of safetensors itself."""
_QUIET: dict[str, Any] = {
    f"_raise_exceptions_for_{name}": False for name in ("gated_repo", "missing_entries", "connection_errors")
}


def optional_file(name: str | Path, file: str, **hub: Any) -> Path | None:
    """Return a file of a folder or a Hub model, None if it is missing or not reachable.

    Args:
        name: Folder or Hub id.
        file: Name of the file.
        **hub: `revision`, `token`, `cache_dir`, `subfolder`.

    Returns:
        The path; for a Hub id, the path of the cached download.
    """
    found = cached_file(str(name), file, **hub, **_QUIET)
    return None if found is None else Path(found)


def refuse_pickles(folder: str | Path) -> None:
    """Refuse a folder with pickled weights, which can run code when they are loaded.

    Args:
        folder: A model folder.

    Raises:
        ValueError: If the folder contains pickled weights and no safetensors.
    """
    folder = Path(folder)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES and "model" in path.name)
    if pickles and not any(folder.glob("*model*.safetensors")):
        raise ValueError(
            f"The weights in {folder} are pickles ({', '.join(pickles[:3])}), which can run code when they are loaded. "
            f"If you trust their source, load them with `{setting('allow_pickle', True)}` (only tensors are read), or "
            "convert them with `hf-reward export FROM TO --allow-pickle`."
        )


def require_safe_weights(
    name: str | Path, *, allow_pickle: bool = False, variant: str | None = None, **hub: Any
) -> list[Path]:
    """Refuse unsafe weights before they are loaded.

    Weights must be safetensors, an index may only name such files in the same folder, and each file in a folder or in
    the Hub cache must have the size in its header (huggingface_hub only checks downloads). transformers does not check
    the names in an index, and unpickles files that do not end in `.safetensors`.

    Args:
        name: Folder or Hub id of a model or adapter.
        allow_pickle: Accept pickles, also in an index.
        variant: Part of the file names, as in `from_pretrained`.
        **hub: `revision`, `token`, `cache_dir`, `subfolder`.

    Returns:
        The files that loading would read (with `allow_pickle`, pickles if there are no safetensors); for a Hub id, only
        cached files.

    Raises:
        ValueError: If the weights are pickles, an index is damaged or names other files, or a file is incomplete.
    """
    folder = Path(name) / (hub.get("subfolder") or "")
    if not allow_pickle and folder.is_dir():
        refuse_pickles(folder)
    if not allow_pickle and (folder / "adapter_config.json").is_file():
        refuse_pickled_adapter(str(name), **hub)
    files = _named_weights(str(name), folder, variant, **hub)
    for path in files:
        require_complete_file(path)
    return _named_pickles(str(name), folder, **hub) if allow_pickle and not files else files


def _named_pickles(name: str, folder: Path, **hub: Any) -> list[Path]:
    """Return the pickles in a folder that transformers or PEFT would load."""
    index = optional_file(name, "pytorch_model.bin.index.json", **hub)
    shards = [] if index is None else shard_names(index, suffixes=(".bin", ".safetensors"))
    names = ["pytorch_model.bin", *shards, "adapter_model.bin"]
    return [folder / each for each in names if (folder / each).is_file()]


def _named_weights(name: str, folder: Path, variant: str | None, **hub: Any) -> list[Path]:
    """Return the local safetensors files that transformers or PEFT would load."""
    infix = f".{variant}" if variant else ""
    names = [f"model{infix}.safetensors", f"model.safetensors.index{infix}.json", "adapter_model.safetensors"]
    config = optional_file(name, "config.json", **hub)
    explicit = None if config is None else _explicit_name(config)
    place = folder if folder.is_dir() else _snapshot(name, config, **hub)
    files: list[Path] = []
    for each in [*names, *([explicit] if explicit else [])]:
        if each.endswith(".json"):
            index = optional_file(name, each, **hub)
            shards = [] if index is None else shard_names(index, suffixes=(".safetensors",))
            if folder.is_dir() and (lost := [shard for shard in shards if not (folder / shard).is_file()]):
                raise ValueError(f"{index} names missing files: {', '.join(lost[:5])}. Copy the complete model.")
            files += [place / shard for shard in shards if place is not None]
        elif place is not None:
            files.append(place / each)
    return [path for path in files if path.is_file()]


def _snapshot(name: str, config: Path | None, **hub: Any) -> Path | None:
    """Return the folder of a model or adapter in the Hub cache, None if it has no configuration."""
    known = config or optional_file(name, "adapter_config.json", **hub)
    return None if known is None else known.parent


def _explicit_name(path: Path) -> str | None:
    """Return the weight file in a model's configuration, if it names one."""
    try:
        explicit = json.loads(path.read_bytes()).get("transformers_weights")
    except (ValueError, AttributeError, RecursionError):  # loading the configuration gives a better error
        return None
    if explicit is None or (is_plain_name(explicit) and explicit.endswith((".safetensors", ".safetensors.index.json"))):
        return explicit
    raise ValueError(
        f"`transformers_weights` in {path} must name a safetensors file in the same folder, but is {explicit!r}. Do "
        "not load this model; use a source that you trust."
    )


def refuse_pickled_adapter(name: str, **hub: Any) -> None:
    """Refuse an adapter without safetensors. PEFT would load its pickle, even with `use_safetensors`.

    Args:
        name: Folder or Hub id of an adapter.
        **hub: `revision`, `token`, `cache_dir`, `subfolder`.

    Raises:
        ValueError: If it has no `adapter_model.safetensors`.
    """
    if optional_file(name, "adapter_model.safetensors", **hub) is None:
        raise ValueError(
            f"The adapter {name} has no adapter_model.safetensors, or is not reachable. If its weights are a pickle "
            f"(adapter_model.bin) and you trust their source, load it with `{setting('allow_pickle', True)}` (only "
            "tensors are read)."
        )


def require_complete_file(path: Path) -> None:
    """Refuse a safetensors file that is truncated or damaged.

    Args:
        path: The file.

    Raises:
        ValueError: If it is damaged; the message states the expected and the actual size.
    """
    problem = safetensors_problem(path)
    if problem:
        remedy = _COPY_AGAIN
        if path.is_symlink() and path.resolve().parent.name == "blobs":  # otherwise the cache reuses the file
            remedy = f"Delete {path.resolve()} to download it again."
        raise ValueError(f"{path} cannot be read: {problem}. {remedy}")


def safetensors_problem(path: Path) -> str | None:
    """Return the problem of a safetensors file, None if it has the size in its header. Tensors are not read.

    Args:
        path: The file.

    Returns:
        A clause with the expected and the actual size in bytes.

    Source:
        Documentation of the format: 8 bytes with the length of the header, the header as JSON with `data_offsets` of
        each tensor, the tensors.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            return f"it is a Git LFS pointer of {size} bytes (`git lfs pull` downloads the file)"
        length = int.from_bytes(start, "little")
        if len(start) < 8 or 8 + length > size:
            return f"it has {size} bytes, but {8 + length if len(start) == 8 else 8} or more are expected"
        header = file.read(length) if length <= _LONGEST_HEADER else b""
    try:
        parts = json.loads(header)
        end = max((part["data_offsets"][1] for name, part in parts.items() if name != "__metadata__"), default=0)
        expected = 8 + length + int(end)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError):
        return "its header is damaged"
    if size != expected:
        return f"it has {size} bytes instead of {expected}"
    try:
        with safe_open(path, "pt"):
            return None
    except (SafetensorError, OSError) as error:
        return f"its header is damaged ({error})"


def shard_names(index: Path, *, suffixes: tuple[str, ...]) -> list[str]:
    """Read the file names in an index of shards.

    Args:
        index: The index.
        suffixes: Allowed file endings.

    Returns:
        The names, sorted.

    Raises:
        ValueError: If the file is not an index, or names files in other folders or with other endings.
    """
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{index} is not an index of weights ({error!r}). {_COPY_AGAIN}") from error
    stray = sorted(str(name) for name in names if not is_plain_name(name) or not name.endswith(suffixes))
    if stray:
        raise ValueError(
            f"{index} may only name {' or '.join(suffixes)} files in the same folder, but names "
            f"{', '.join(stray[:5])}. Do not load this model; use a source that you trust."
        )
    return sorted(names)


def non_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Find tensors that contain NaN or infinity.

    Args:
        tensors: Names and tensors. For a sharded tensor (DTensor), the local part is checked.

    Returns:
        Their names. Integers and tensors on the meta device are skipped.
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
    if tensor.element_size() == 1:  # float8 does not support these operations
        tensor = tensor.float()
    low, high = torch.aminmax(tensor)  # propagates NaN and, unlike `isfinite`, allocates no memory
    return bool(torch.isfinite(low) & torch.isfinite(high))


def refuse_non_finite(name: str | Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse weights that are not finite.

    Args:
        name: Name of the model for messages.
        tensors: Names and tensors.

    Raises:
        ValueError: If a tensor contains NaN or infinity.
    """
    broken = non_finite(tensors)
    if broken:
        raise ValueError(
            f"All weights must be finite, but {len(broken)} tensors of {name} contain NaN or infinity "
            f"({', '.join(broken[:3])}). Use an undamaged copy or an earlier checkpoint. If the weights overflowed in "
            "float16, load the model in bfloat16 or float32."
        )


def non_finite_in_file(path: Path) -> list[str]:
    """Find tensors in a file that contain NaN or infinity. Safetensors are read one tensor at a time.

    Args:
        path: A safetensors file, or a pickle (only tensors are read).

    Returns:
        Their names.
    """
    if path.suffix != ".safetensors":
        content = torch.load(path, map_location="cpu", weights_only=True)
        return non_finite((name, each) for name, each in content.items() if isinstance(each, Tensor))
    with safe_open(path, "pt") as file:
        return non_finite((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118 - not a mapping


def refuse_adapter_loop(folder: str) -> None:
    """Refuse adapters with a circular chain of bases.

    Args:
        folder: Folder of an adapter.

    Raises:
        ValueError: If an adapter is its own base, directly or through other adapters.
    """
    seen: list[Path] = []
    place = Path(folder)
    while (place / "adapter_config.json").is_file():
        if place.resolve() in seen:
            raise ValueError(f"The chain of base models of the adapter {folder} is circular. {_COPY_AGAIN}")
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
        ValueError: If it is not a JSON object, or its base is not a name.
    """
    path = Path(folder) / "adapter_config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}). {_COPY_AGAIN}") from error
    base = content.get("base_model_name_or_path") if isinstance(content, dict) else 0
    if not isinstance(base, str | None) or (base and "\0" in base):
        raise ValueError(f"{path} is not the configuration of an adapter. {_COPY_AGAIN}")
    return content
