"""Files of weights -> tensors by key, read when they are asked for."""

import pickle
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from hf_reward.modeling.weight_safety import require_whole, shard_names

_MAIN_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_PICKLES = (".bin", ".pt", ".pth")
# What trainers leave beside the weights: adapters, heads, optimisers.
_NOT_WEIGHTS = ("adapter_", "value_head.", "training_args", "optimizer", "scheduler", "scaler", "rng_state")


class WeightFiles(Mapping[str, Tensor]):
    """The tensors of some files by key. Safetensors are read tensor by tensor, pickles mapped into memory.

    Args:
        paths: The files.
        allow_pickle: Whether to open pickles; PyTorch unpickles nothing but tensors then.
    """

    def __init__(self, paths: Iterable[Path], *, allow_pickle: bool = False) -> None:
        self._holders: dict[str, Any] = {}
        for path in paths:
            holder = _open_safetensors(path) if path.suffix == ".safetensors" else _open_pickle(path, allow_pickle)
            self._holders.update(dict.fromkeys(holder.keys(), holder))

    def __getitem__(self, key: str) -> Tensor:
        """The tensor, read now."""
        holder = self._holders[key]
        return holder[key] if isinstance(holder, dict) else holder.get_tensor(key)

    def __contains__(self, key: object) -> bool:
        """Whether a file holds it; nothing is read."""
        return key in self._holders

    def __iter__(self) -> Iterator[str]:
        return iter(self._holders)

    def __len__(self) -> int:
        return len(self._holders)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor; of safetensors only the header is read."""
        holder = self._holders[key]
        return tuple(holder[key].shape if isinstance(holder, dict) else holder.get_slice(key).get_shape())


def main_weight_files(folder: Path) -> list[Path]:
    """The files with the weights of a model folder, without adapters and value heads.

    Args:
        folder: The folder.

    Returns:
        The files, shards in their order; none if the folder holds no weights of its own.

    Raises:
        ValueError: If a shard is missing, or several files could be meant.
    """
    for name in _MAIN_FILES:
        path = folder / name
        if path.is_file():
            return _shards(path) if path.suffix == ".json" else [path]
    others = [path for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", *_PICKLES)]
    others = [path for path in others if not path.name.startswith(_NOT_WEIGHTS)]
    if len(others) > 1:
        names = ", ".join(path.name for path in others[:5])
        raise ValueError(f"{folder} holds several files of weights and no index ({names}). Leave one of them there.")
    return others


def _shards(index: Path) -> list[Path]:
    suffixes = (".safetensors",) if ".safetensors." in index.name else (".bin",)
    paths = [index.parent / name for name in shard_names(index, suffixes=suffixes)]
    lost = [path.name for path in paths if not path.is_file()]
    if lost:
        raise ValueError(f"{index} names files that are not beside it: {', '.join(lost[:5])}. Copy the whole model.")
    return paths


def _open_safetensors(path: Path) -> Any:
    require_whole(path)
    return safe_open(str(path), framework="pt")


def _open_pickle(path: Path, allow_pickle: bool) -> dict[str, Tensor]:
    if not allow_pickle:
        raise ValueError(
            f"{path} is a pickle, a file format that can carry code. If you trust where it comes from, give "
            "`allow_pickle=True` (`--allow-pickle`); only tensors are unpickled then."
        )
    try:
        # Only files in torch's newer format, a zip archive, can be mapped into memory.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} cannot be read as a file of tensors ({error}).") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):  # checkpoints of MMEngine
        content = content["state_dict"]
    tensors = {str(key): value for key, value in dict(content).items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no tensors by name.")
    return tensors
