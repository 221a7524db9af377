"""Compute the features of a frozen backbone once, store them on disk, and train only the head.

Features are the final hidden states at the reward positions. With a frozen backbone they are the same in every epoch,
so only the first epoch runs the backbone. They are memory-mapped from a folder next to the dataset's cache. The name
of the folder is a fingerprint of the model and of all token ids, and so depends on tokenizer, chat template and rows.

Shapes: R rows, S sequences (all responses of all rows), H hidden size.
"""

import json
import logging
import os
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import transformers
import xxhash
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, send_to_device
from datasets import Dataset
from datasets import config as datasets_config
from huggingface_hub.utils import tqdm
from peft import PeftModel
from torch import Tensor, nn

from hf_reward.data.interface import setting
from hf_reward.modeling.dropout import has_dropout
from hf_reward.modeling.reward_head import ReadsLastToken, trains_only_head, unwrap_model
from hf_reward.modeling.rewards import compute_features
from hf_reward.preprocessing.token_budget import consecutive_batches
from hf_reward.training.collators import inner_collator, is_builtin_collator, packed_if
from hf_reward.training.feature_store import (
    FeatureRows,
    FeatureStore,
    open_features,
    sequence_ends,
    tensor_bytes,
    write_manifest,
    write_part,
)
from hf_reward.training.training_args import RewardConfig

logger = logging.getLogger(__name__)

_FORMAT = 2
_NOT_THE_MODEL = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")


class FeatureCache:
    """Decides whether a run uses cached features, and provides them.

    Args:
        args: Settings of the run.
        accelerator: Of the run.
    """

    def __init__(self, args: RewardConfig, accelerator: Accelerator) -> None:
        self.args, self.accelerator = args, accelerator
        self._stores: dict[str, FeatureStore] = {}
        self._reason_logged = False

    def rows(self, data: Any, model: nn.Module, collator: Any, *, passes: float, sharded: bool) -> Any:
        """Return rows with features if the run caches them, else the unchanged rows.

        Args:
            data: Prepared rows.
            model: The reward model without accelerate's wrappers.
            collator: The run's collator.
            passes: Number of passes over the training rows.
            sharded: Whether FSDP or DeepSpeed shards the model.

        Returns:
            `FeatureRows`, or `data`.

        Raises:
            ValueError: If `cache_features` is True and the features cannot be cached.
        """
        if not self._wanted(data, model, collator, passes=passes, sharded=sharded):
            return data
        fingerprint = ""
        if self.accelerator.is_main_process:
            # Computed from the weights each time: features of other weights would silently give wrong rewards.
            fingerprint = feature_fingerprint(unwrap_model(model), data, self.accelerator.mixed_precision)
        [fingerprint] = broadcast_object_list([fingerprint])
        if fingerprint not in self._stores:
            compute = partial(self._features_of_share, data, model, collator)
            self._stores[fingerprint] = stored_features(data, fingerprint, compute, self.accelerator)
        return FeatureRows(data, self._stores[fingerprint])

    def _wanted(self, data: Any, model: nn.Module, collator: Any, *, passes: float, sharded: bool) -> bool:
        choice = self.args.choice("cache_features")
        if choice is False:
            return False
        reason = why_not_cached(model, data) or self._why_not_in_this_run(collator, sharded)
        if choice is True:
            if reason is not None:
                raise ValueError(
                    f"`{setting('cache_features', True)}` is not possible: {reason}. Use "
                    f"`{setting('cache_features', 'auto')}`."
                )
            return True
        if passes > 1 and reason is not None and not self._reason_logged:
            self._reason_logged = True
            if trains_only_head(model):  # otherwise the user does not expect a cache
                logger.warning("The frozen backbone runs in every epoch: %s.", reason)
        return reason is None and passes > 1

    def _why_not_in_this_run(self, collator: Any, sharded: bool) -> str | None:
        reasons = {
            "the model is sharded over processes": sharded,
            "the data collator is a custom one": not is_builtin_collator(collator),
            "the model is cast for evaluation": self.args.bf16_full_eval or self.args.fp16_full_eval,
            "NEFTune changes its input": self.args.neftune_noise_alpha is not None,
        }
        return next((reason for reason, holds in reasons.items() if holds), None)

    def _features_of_share(self, data: Dataset, model: nn.Module, collator: Any, share: range) -> Generator[Tensor]:
        """Yield the features of consecutive rows of a dataset, batch by batch."""
        collate: Any = inner_collator(collator)
        size, budget = self.args.eval_batch_size, self.args.max_tokens_per_batch
        with tqdm(total=len(share), desc="Computing features", disable=self.args.disable_tqdm) as progress:
            for rows in consecutive_batches(data, share, collate.tokens, size, budget):
                yield self._features_of_batch(model, collator, collate(rows))
                progress.update(len(rows))

    @torch.no_grad()
    def _features_of_batch(self, model: nn.Module, collator: Any, batch: dict[str, Any]) -> Tensor:
        bare = unwrap_model(model)
        training = bare.training
        bare.eval()
        try:
            with packed_if(collator, model), self.accelerator.autocast():
                return compute_features(bare, send_to_device(batch, self.args.device))
        finally:
            bare.train(training)


def why_not_cached(model: nn.Module, data: Any) -> str | None:
    """Return the reason why the features of a model cannot be cached, None if they can.

    Args:
        model: The reward model, with or without an adapter.
        data: Prepared rows.

    Returns:
        A clause.
    """
    if isinstance(model, PeftModel):
        return "the model has an adapter"
    if not isinstance(model, ReadsLastToken):
        return "the model is an encoder, whose pooling belongs to the head"
    if not trains_only_head(model):
        return "the backbone is trained"
    if has_dropout(model.base_model):  # type: ignore[arg-type]
        return "the backbone's dropout is on"
    if not isinstance(data, Dataset):
        return "the data is a stream"
    return None


# --- fingerprint and storage -----------------------------------------------------------------------------------------


def feature_fingerprint(model: Any, data: Dataset, precision: str) -> str:
    """Return a fingerprint of everything that determines the features of the rows.

    Args:
        model: A decoder reward model; its head is not included.
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
        digest.update(tensor_bytes(tensor))
    for batch in data.select_columns("input_ids").with_format("arrow").iter(10_000):
        table: Any = batch
        for rows in pa.table(table).column("input_ids").chunks:
            for part in (rows.value_lengths(), rows.flatten().value_lengths(), rows.flatten().flatten()):
                digest.update(part.to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()


def cache_folder(data: Dataset, fingerprint: str) -> Path:
    """Return the folder of the features: next to the rows' cache file, or in the cache of `datasets`.

    Args:
        data: Prepared rows.
        fingerprint: Fingerprint of the features.

    Returns:
        The folder, which may not exist yet.
    """
    shared = Path(datasets_config.HF_DATASETS_CACHE) / "hf_reward"
    beside = Path(data.cache_files[0]["filename"]).parent if data.cache_files else shared
    return (beside if os.access(beside, os.W_OK) else shared) / f"features-{fingerprint}"


def stored_features(
    data: Dataset, fingerprint: str, compute: Callable[[range], Generator[Tensor]], accelerator: Accelerator
) -> FeatureStore:
    """Return the features of the rows from the cache, or compute them, a share on each process.

    Args:
        data: Prepared rows.
        fingerprint: Result of `feature_fingerprint`.
        compute: Yields the features of consecutive rows, batch by batch.
        accelerator: Of the run.

    Returns:
        The features of all responses, in the order of the rows.

    Raises:
        OSError: If the processes do not share the folder.
    """
    sequences = int(sequence_ends(data)[-1])
    folder, store = cache_folder(data, fingerprint), None
    if accelerator.is_main_process:
        store = open_features(folder, sequences)
    [folder, found] = broadcast_object_list([folder, store is not None])  # all use the folder of the main process
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
            f"The features in {folder} cannot be read. With several machines, the folder must be on a shared file "
            "system: set HF_DATASETS_CACHE to one, or set `cache_features=False`."
        )
    return store
