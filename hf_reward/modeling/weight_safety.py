"""Folder or Hub id -> are its weights whole safetensors beside each other, and finite? All else is refused.

`require_safe_weights` is the one rule for every place that loads, checks or publishes weights.
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

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_LONGEST_HEADER = 100_000_000
"""Bytes; safetensors itself reads no longer header."""
_QUIET: dict[str, Any] = {
    f"_raise_exceptions_for_{name}": False for name in ("gated_repo", "missing_entries", "connection_errors")
}


def optional_file(name: str | Path, file: str, **hub: Any) -> Path | None:
    """A file of a folder or of a model on the Hub, None if it is not there or cannot be reached.

    Args:
        name: Folder or Hub id.
        file: Name of the file.
        **hub: `revision`, `token`, `cache_dir`, `subfolder`.

    Returns:
        The file; of a Hub id that of the cache, downloaded if need be.
    """
    found = cached_file(str(name), file, **hub, **_QUIET)
    return None if found is None else Path(found)


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
            f"If you trust their origin, load them with `{setting('allow_pickle', True)}` (only tensors are read), or "
            "convert them with `hf-reward export FROM TO --allow-pickle`."
        )


def require_safe_weights(
    name: str | Path, *, allow_pickle: bool = False, variant: str | None = None, **hub: Any
) -> list[Path]:
    """Stop at weights that must not be loaded, before anything is.

    Weights are safetensors, an index names only such files beside it, and each file of a folder, or of the Hub's cache,
    has the size that its header states (huggingface_hub checks that of what it downloads, and not again later).
    transformers joins the names of an index to the folder as they are, and unpickles what does not end in
    `.safetensors`.

    Args:
        name: Folder or Hub id of a model or adapter.
        allow_pickle: Accept pickles, also those that an index names.
        variant: As in `from_pretrained`: a part of the files' names.
        **hub: `revision`, `token`, `cache_dir`, `subfolder`.

    Returns:
        The files that loading would read (with `allow_pickle` pickles too, if there are no safetensors); of a Hub id
        those that are in the cache already.

    Raises:
        ValueError: If the weights are pickles, an index cannot be read or leads elsewhere, or a file is not whole.
    """
    folder = Path(name) / (hub.get("subfolder") or "")
    if not allow_pickle and folder.is_dir():
        refuse_pickles(folder)
    if not allow_pickle and (folder / "adapter_config.json").is_file():
        refuse_pickled_adapter(str(name), **hub)
    files = _named_weights(str(name), folder, variant, **hub)
    for path in files:
        require_whole(path)
    return _named_pickles(str(name), folder, **hub) if allow_pickle and not files else files


def _named_pickles(name: str, folder: Path, **hub: Any) -> list[Path]:
    """The pickles that transformers or PEFT would read from a folder; those of an index lie beside it."""
    index = optional_file(name, "pytorch_model.bin.index.json", **hub)
    shards = [] if index is None else shard_names(index, suffixes=(".bin", ".safetensors"))
    names = ["pytorch_model.bin", *shards, "adapter_model.bin"]
    return [folder / each for each in names if (folder / each).is_file()]


def _named_weights(name: str, folder: Path, variant: str | None, **hub: Any) -> list[Path]:
    """The safetensors files that transformers or PEFT would read, as far as they are on this machine."""
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
                raise ValueError(
                    f"{index} names files that are not there: {', '.join(lost[:5])}. Copy the whole model."
                )
            files += [place / shard for shard in shards if place is not None]
        elif place is not None:
            files.append(place / each)
    return [path for path in files if path.is_file()]


def _snapshot(name: str, config: Path | None, **hub: Any) -> Path | None:
    """The folder of the Hub's cache that a model or adapter is read from, None if it has no configuration."""
    known = config or optional_file(name, "adapter_config.json", **hub)
    return None if known is None else known.parent


def _explicit_name(path: Path) -> str | None:
    """The file that a model's configuration names as its weights, if it does."""
    try:
        explicit = json.loads(path.read_bytes()).get("transformers_weights")
    except (ValueError, AttributeError, RecursionError):  # loading the configuration says so better
        return None
    if explicit is None or (is_plain_name(explicit) and explicit.endswith((".safetensors", ".safetensors.index.json"))):
        return explicit
    raise ValueError(
        f"{path} names {explicit!r} as its weights (`transformers_weights`), which is no safetensors file beside it. "
        "Do not load this model; take it from a source that you trust."
    )


def refuse_pickled_adapter(name: str, **hub: Any) -> None:
    """Stop at an adapter without safetensors: PEFT would turn to the pickle beside it, whatever it was told.

    Args:
        name: Folder or Hub id of an adapter.
        **hub: `revision`, `token`, `cache_dir`, `subfolder`.

    Raises:
        ValueError: If it has no `adapter_model.safetensors`.
    """
    if optional_file(name, "adapter_model.safetensors", **hub) is None:
        raise ValueError(
            f"The adapter {name} has no adapter_model.safetensors, or it cannot be reached. If its weights are a "
            f"pickle (adapter_model.bin) whose origin you trust, load it with `{setting('allow_pickle', True)}` (only "
            "tensors are read)."
        )


def require_whole(path: Path) -> None:
    """Stop at a safetensors file that is cut off or damaged.

    Args:
        path: The file.

    Raises:
        ValueError: If it is; the message states the expected and the actual size.
    """
    problem = why_not_whole_file(path)
    if problem:
        remedy = "Take a fresh copy."
        if path.is_symlink() and path.resolve().parent.name == "blobs":  # else the Hub's cache links to it again
            remedy = f"Delete {path.resolve()}; loading then downloads it again."
        raise ValueError(f"{path} cannot be read: {problem}. {remedy}")


def why_not_whole_file(path: Path) -> str | None:
    """What is wrong with a safetensors file, None if it has the size that its header states. Tensors are not read.

    Args:
        path: The file.

    Returns:
        A clause with the expected and the actual size in bytes.

    Source:
        The format's documentation: 8 bytes with the header's length, the header as JSON with `data_offsets` of each
        tensor, the tensors.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            return f"it is a Git LFS pointer of {size} bytes and not the file itself (`git lfs pull` fetches it)"
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


def refuse_non_finite(name: str | Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Stop at weights that give no rewards.

    Args:
        name: What to call the model.
        tensors: Names and tensors.

    Raises:
        ValueError: If one of them holds a NaN or an infinity.
    """
    broken = non_finite(tensors)
    if broken:
        raise ValueError(
            f"{name} holds weights that are not finite ({', '.join(broken[:3])}; {len(broken)} tensors), so its "
            "rewards would be no numbers. Take a fresh copy or an earlier checkpoint; if they overflowed in float16, "
            "load it in bfloat16 or float32."
        )


def non_finite_in_file(path: Path) -> list[str]:
    """Find tensors of a file that hold a NaN or an infinity, reading those of safetensors one after the other.

    Args:
        path: A safetensors file, or a pickle, of which only tensors are read.

    Returns:
        Their names.
    """
    if path.suffix != ".safetensors":
        content = torch.load(path, map_location="cpu", weights_only=True)
        return non_finite((name, each) for name, each in content.items() if isinstance(each, Tensor))
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
