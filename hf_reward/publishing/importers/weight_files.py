"""Weight files -> tensors by key, loaded lazily."""

import pickle
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from hf_reward.modeling.weight_safety import require_complete_file, shard_names

_MAIN_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_PICKLES = (".bin", ".pt", ".pth")
# Other files in model folders: adapters, heads, optimizer state.
_NOT_WEIGHTS = ("adapter_", "value_head.", "training_args", "optimizer", "scheduler", "scaler", "rng_state")


class WeightFiles(Mapping[str, Tensor]):
    """Tensors of weight files by key. Safetensors are read tensor by tensor, pickles are mapped into memory.

    Args:
        paths: The files.
        allow_pickle: Whether to read pickles; PyTorch unpickles only tensors.
    """

    def __init__(self, paths: Iterable[Path], *, allow_pickle: bool = False) -> None:
        self._holders: dict[str, Any] = {}
        for path in paths:
            holder = _open_safetensors(path) if path.suffix == ".safetensors" else _open_pickle(path, allow_pickle)
            self._holders.update(dict.fromkeys(holder.keys(), holder))

    def __getitem__(self, key: str) -> Tensor:
        """Load a tensor."""
        holder = self._holders[key]
        return holder[key] if isinstance(holder, dict) else holder.get_tensor(key)

    def __contains__(self, key: object) -> bool:
        """Return whether a file contains the key, without loading the tensor."""
        return key in self._holders

    def __iter__(self) -> Iterator[str]:
        return iter(self._holders)

    def __len__(self) -> int:
        return len(self._holders)

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of a tensor. For safetensors, only the header is read."""
        holder = self._holders[key]
        return tuple(holder[key].shape if isinstance(holder, dict) else holder.get_slice(key).get_shape())


def main_weight_files(folder: Path) -> list[Path]:
    """Return the files with the weights of a model folder, without adapters and value heads.

    Args:
        folder: The folder.

    Returns:
        The files, with shards in order; empty if the folder has no weights.

    Raises:
        ValueError: If a shard is missing, or there are several files without an index.
    """
    for name in _MAIN_FILES:
        path = folder / name
        if path.is_file():
            return _shards(path) if path.suffix == ".json" else [path]
    others = [path for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", *_PICKLES)]
    others = [path for path in others if not path.name.startswith(_NOT_WEIGHTS)]
    if len(others) > 1:
        names = ", ".join(path.name for path in others[:5])
        raise ValueError(
            f"{folder} contains several weight files without an index ({names}). Keep only one of these files."
        )
    return others


def _shards(index: Path) -> list[Path]:
    suffixes = (".safetensors",) if ".safetensors." in index.name else (".bin",)
    paths = [index.parent / name for name in shard_names(index, suffixes=suffixes)]
    lost = [path.name for path in paths if not path.is_file()]
    if lost:
        raise ValueError(f"{index} names missing files: {', '.join(lost[:5])}. Copy the complete model.")
    return paths


def _open_safetensors(path: Path) -> Any:
    require_complete_file(path)
    return safe_open(str(path), framework="pt")


def _open_pickle(path: Path, allow_pickle: bool) -> dict[str, Tensor]:
    if not allow_pickle:
        raise ValueError(
            f"{path} is a pickle, a file format that can contain code. If you trust its source, allow it with "
            "`allow_pickle=True` (`--allow-pickle`); only tensors are unpickled."
        )
    try:
        # Only files in torch's newer format, a zip archive, can be mapped into memory.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is not a file with tensors ({error}).") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):  # checkpoints of MMEngine
        content = content["state_dict"]
    tensors = {str(key): value for key, value in dict(content).items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path} contains no named tensors.")
    return tensors
