"""Frozen backbone -> its features on disk, once -> batches that train the head alone.

Features are the final hidden states at the positions where rewards are read. With a frozen backbone they are the same
in every epoch, so after the first computation an epoch costs next to nothing. They lie memory-mapped beside the
dataset's own cache, in a folder named by a fingerprint of the model and of every token id; tokenizer, chat template and
rows act on a feature through the token ids alone.

Shapes: R rows, S sequences (all responses of all rows), H hidden size.
"""

import json
import logging
import os
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers
import xxhash
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from datasets import config as datasets_config
from peft import PeftModel
from torch import Tensor, nn

from hf_reward.data.atomic_file import replacing, write_whole
from hf_reward.modeling.dropout import has_dropout
from hf_reward.modeling.reward_head import ReadsLastToken, trains_head_alone
from hf_reward.preprocessing.data_collator import group_columns

logger = logging.getLogger(__name__)

_FORMAT = 2
_MANIFEST = "manifest.json"
_NOT_THE_MODEL = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")


def why_not_cached(model: nn.Module, data: Any) -> str | None:
    """Why the features of a model cannot be computed once and for all, or None if they can.

    Args:
        model: The reward model, perhaps wrapped by PEFT.
        data: Prepared rows.

    Returns:
        The reason, in a few words.
    """
    if isinstance(model, PeftModel):
        return "the model has an adapter"
    if not isinstance(model, ReadsLastToken):
        return "the model is an encoder, whose pooling belongs to the head"
    if not trains_head_alone(model):
        return "the backbone is trained"
    if has_dropout(model.base_model):  # type: ignore[arg-type]
        return "the backbone's dropout is on"
    if not isinstance(data, Dataset):
        return "the data is a stream"
    return None


# --- what the features depend on -------------------------------------------------------------------------------------


def feature_fingerprint(model: Any, data: Dataset, precision: str) -> str:
    """Fingerprint of everything that decides the features of some rows.

    Args:
        model: A decoder reward model; its head does not count.
        data: Prepared rows.
        precision: The mixed precision of the run, such as "bf16" or "no".

    Returns:
        32 hexadecimal digits.
    """
    digest = xxhash.xxh3_128()
    config = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_THE_MODEL}
    versions = (_FORMAT, torch.__version__, transformers.__version__, precision, str(model.dtype))
    digest.update(json.dumps([versions, config], sort_keys=True, default=str).encode())
    for name, tensor in model.base_model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    for batch in data.select_columns("input_ids").with_format("arrow").iter(10_000):
        table: Any = batch
        for rows in pa.table(table).column("input_ids").chunks:
            for part in (rows.value_lengths(), rows.flatten().value_lengths(), rows.flatten().flatten()):
                digest.update(part.to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()


def cache_folder(data: Dataset, fingerprint: str) -> Path:
    """Where the features of some rows belong: beside the rows' own cache file, else in the cache of `datasets`.

    Args:
        data: Prepared rows.
        fingerprint: Fingerprint of the features.

    Returns:
        The folder, which may not exist yet.
    """
    shared = Path(datasets_config.HF_DATASETS_CACHE) / "hf_reward"
    beside = Path(data.cache_files[0]["filename"]).parent if data.cache_files else shared
    return (beside if os.access(beside, os.W_OK) else shared) / f"features-{fingerprint}"


# --- on disk ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeaturePart:
    """The features that one process wrote: a raw file of consecutive sequences."""

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
        # A worker process maps the files again instead of getting a copy of them.
        return {name: value for name, value in self.__dict__.items() if name != "_maps"}

    def read(self, start: int, end: int) -> Tensor:
        """A copy of the features of the sequences from `start` to `end`, shape `(end - start, H)`."""
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
    """Open stored features if they are whole.

    Args:
        folder: What `cache_folder` returns.
        sequences: How many sequences there must be.

    Returns:
        The features, or None if there are none, the writing was interrupted or a file was changed since.
    """
    if not (folder / _MANIFEST).exists():
        return None
    store = None
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        parts = [FeaturePart(**part) for part in manifest["parts"]]
        whole = manifest["checksum"] == _checksum_of_parts(parts) and sum(part.sequences for part in parts) == sequences
        if whole and all(_checksum(folder / part.file) == part.checksum for part in parts):
            store = FeatureStore(folder, parts)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # unreadable is damaged
    if store is None:
        logger.warning("The cached features in %s are damaged or incomplete; they are computed again.", folder)
    return store


def write_part(folder: Path, file: str, features: Iterable[Tensor]) -> FeaturePart:
    """Write the features of one process; the file appears under its name when it is whole.

    Args:
        folder: The cache folder.
        file: Name of the file.
        features: Features of consecutive sequences, each of shape `(N, H)`.

    Returns:
        What was written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digest, sequences, batch = xxhash.xxh3_128(), 0, torch.empty(0, 0)
    with replacing(folder / file) as temporary, temporary.open("wb") as out:
        for batch in features:
            data = _bytes(batch)
            out.write(data)
            digest.update(data)
            sequences += len(batch)
    return FeaturePart(file, sequences, digest.hexdigest(), batch.shape[1], str(batch.dtype).removeprefix("torch."))


def write_manifest(folder: Path, parts: Sequence[FeaturePart]) -> None:
    """Declare the parts in `folder` whole: the last thing that is written.

    Args:
        folder: The cache folder.
        parts: Its parts, in the order of their sequences.
    """
    manifest = {"checksum": _checksum_of_parts(parts), "parts": [vars(part) for part in parts]}
    write_whole(folder / _MANIFEST, json.dumps(manifest, indent=1))


def _bytes(tensor: Tensor) -> memoryview:
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
    """Number of sequences up to the end of each row, shape `(R,)`, int64."""
    counts = [len(ranks) for ranks in data["ranks"][:]]
    return np.cumsum(counts, dtype=np.int64)


class FeatureRows(torch.utils.data.Dataset):
    """Prepared rows, each with the features of its responses."""

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
    """The rows themselves, without features if they have any."""
    return data.data if isinstance(data, FeatureRows) else data


@dataclass
class DataCollatorForFeatures:
    """Collates rows with features for the head alone; rows without any go to another collator."""

    collator: Callable[..., Any]

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows.

        Args:
            rows: Rows of `FeatureRows`, or rows as `prepare_preferences` makes them.

        Returns:
            What `group_columns` returns and `features` `(N, H)`; or what the other collator returns.
        """
        if "features" not in rows[0]:
            return self.collator(rows)
        return {**group_columns(rows), "features": torch.cat([row["features"] for row in rows])}


def stored_features(
    data: Dataset, fingerprint: str, compute: Callable[[range], Generator[Tensor]], accelerator: Accelerator
) -> FeatureStore:
    """Features of some rows, read from the cache or computed now, each process a share of them.

    Args:
        data: Prepared rows.
        fingerprint: What `feature_fingerprint` returns.
        compute: Gives the features of consecutive rows, batch by batch.
        accelerator: Of the run.

    Returns:
        The features of all responses, row by row.

    Raises:
        OSError: If the processes do not see the same folder.
    """
    sequences = int(sequence_ends(data)[-1])
    folder, store = cache_folder(data, fingerprint), None
    if accelerator.is_main_process:
        store = open_features(folder, sequences)
    [folder, found] = broadcast_object_list([folder, store is not None])  # all write where the main process does
    if not found:
        process, processes = accelerator.process_index, accelerator.num_processes
        mine = range(len(data) * process // processes, len(data) * (process + 1) // processes)
        logger.info("Computing the features of %s rows once, into %s.", len(data), folder)
        with closing(compute(mine)) as features:
            part = write_part(folder, f"part-{process}-of-{processes}.bin", features)
        parts = gather_object([part])
        if accelerator.is_main_process:
            write_manifest(folder, parts)
        accelerator.wait_for_everyone()
    store = store or open_features(folder, sequences)
    if store is None:
        raise OSError(
            f"The features in {folder} cannot be read. With several machines that folder has to be on a disk that all "
            "of them share: set HF_DATASETS_CACHE to one, or set `cache_features=False`."
        )
    return store
