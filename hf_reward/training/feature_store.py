"""Memory-mapped features of responses on disk, and dataset rows with their features.

Each process writes one raw file of consecutive sequences. A manifest with checksums is written last and marks all
files as complete.

Shapes: R rows, S sequences (all responses of all rows), H hidden size.
"""

import json
import logging
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from datasets import Dataset
from torch import Tensor

from hf_reward.data.atomic_file import replacing, write_atomic
from hf_reward.preprocessing.data_collator import group_columns

logger = logging.getLogger(__name__)

_MANIFEST = "manifest.json"


# --- on disk ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeaturePart:
    """Features written by one process: a raw file of consecutive sequences."""

    file: str
    sequences: int
    checksum: str
    hidden_size: int
    dtype: str


class FeatureStore:
    """Features of consecutive sequences, memory-mapped."""

    def __init__(self, folder: Path, parts: Sequence[FeaturePart]) -> None:
        self.folder = folder
        self.parts = [part for part in parts if part.sequences]
        self._ends = np.cumsum([part.sequences for part in self.parts]).tolist()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getstate__(self) -> dict[str, Any]:
        # A worker process maps the files again instead of receiving a copy of them.
        return {name: value for name, value in self.__dict__.items() if name != "_maps"}

    def read(self, start: int, end: int) -> Tensor:
        """Return a copy of the features of the sequences from `start` to `end`, shape `(end - start, H)`."""
        pieces = []
        while start < end:
            part = bisect_right(self._ends, start)
            first = self._ends[part] - self.parts[part].sequences
            stop = min(end, self._ends[part])
            pieces.append(self._maps[part][start - first : stop - first])
            start = stop
        return torch.cat(pieces)

    @cached_property
    def _maps(self) -> list[Tensor]:
        return [self._map(part) for part in self.parts]

    def _map(self, part: FeaturePart) -> Tensor:
        size, dtype = part.sequences * part.hidden_size, getattr(torch, part.dtype)
        flat = torch.from_file(str(self.folder / part.file), shared=False, size=size, dtype=dtype)
        return flat.view(-1, part.hidden_size)


def open_features(folder: Path, sequences: int) -> FeatureStore | None:
    """Open stored features if they are complete.

    Args:
        folder: Result of `cache_folder`.
        sequences: Expected number of sequences.

    Returns:
        The features; None if there are none, writing was interrupted or a file has changed.
    """
    if not (folder / _MANIFEST).exists():
        return None
    store = None
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        parts = [FeaturePart(**part) for part in manifest["parts"]]
        is_listed = manifest["checksum"] == _checksum_of_parts(parts)
        is_complete = is_listed and sum(part.sequences for part in parts) == sequences
        if is_complete and all(_checksum(folder / part.file) == part.checksum for part in parts):
            store = FeatureStore(folder, parts)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # an unreadable cache counts as damaged
    if store is None:
        logger.warning("The cached features in %s are damaged or incomplete. Recomputing them.", folder)
    return store


def write_part(folder: Path, file: str, features: Iterable[Tensor]) -> FeaturePart:
    """Write the features of one process atomically.

    Args:
        folder: The cache folder.
        file: Name of the file.
        features: Features of consecutive sequences, each of shape `(N, H)`.

    Returns:
        The description of the file for the manifest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digest, sequences, batch = xxhash.xxh3_128(), 0, torch.empty(0, 0)
    with replacing(folder / file) as temporary, temporary.open("wb") as out:
        for batch in features:
            data = tensor_bytes(batch)
            out.write(data)
            digest.update(data)
            sequences += len(batch)
    return FeaturePart(file, sequences, digest.hexdigest(), batch.shape[1], str(batch.dtype).removeprefix("torch."))


def write_manifest(folder: Path, parts: Sequence[FeaturePart]) -> None:
    """Write the manifest, which marks the files in `folder` as complete.

    Args:
        folder: The cache folder.
        parts: Descriptions of the files, in the order of their sequences.
    """
    manifest = {"checksum": _checksum_of_parts(parts), "parts": [vars(part) for part in parts]}
    write_atomic(folder / _MANIFEST, json.dumps(manifest, indent=1))


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the raw bytes of a tensor's values, in row-major order."""
    values: Any = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(values)


def _checksum_of_parts(parts: Sequence[FeaturePart]) -> str:
    return xxhash.xxh3_128(json.dumps([vars(part) for part in parts], sort_keys=True).encode()).hexdigest()


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    return digest.hexdigest()


# --- rows with their features ----------------------------------------------------------------------------------------


def sequence_ends(data: Dataset) -> np.ndarray:
    """Return the cumulative number of sequences at the end of each row, shape `(R,)`, int64."""
    counts = [len(ranks) for ranks in data["ranks"][:]]
    return np.cumsum(counts, dtype=np.int64)


class FeatureRows(torch.utils.data.Dataset):
    """Dataset of prepared rows with the features of their responses."""

    def __init__(self, data: Dataset, store: FeatureStore) -> None:
        self.data, self.store, self._ends = data, store, sequence_ends(data)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[int]) -> list[dict[str, Any]]:
        rows = self.data.__getitems__(list(places))
        return [{**row, "features": self._features(place, row)} for place, row in zip(places, rows, strict=True)]

    def _features(self, place: int, row: dict[str, Any]) -> Tensor:
        end = int(self._ends[place])
        return self.store.read(end - len(row["ranks"]), end)


def without_features(data: Any) -> Any:
    """Return the rows without features."""
    return data.data if isinstance(data, FeatureRows) else data


@dataclass
class DataCollatorForFeatures:
    """Collates rows with features for the head; rows without features are passed to another collator."""

    collator: Callable[..., Any]

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows.

        Args:
            rows: Rows of `FeatureRows`, or of `prepare_preferences`.

        Returns:
            The result of `group_columns` with `features` `(N, H)`; or the result of the other collator.
        """
        if "features" not in rows[0]:
            return self.collator(rows)
        return {**group_columns(rows), "features": torch.cat([row["features"] for row in rows])}
