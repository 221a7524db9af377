"""Fingerprint of a run: hashes and values of its rows, settings and frozen weights.

`CheckpointWriter` writes it into each checkpoint, and refuses to resume from a checkpoint of a different run.
"""

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import xxhash
from datasets import Dataset, IterableDataset
from torch import nn

from hf_reward.data.file_identity import file_identity
from hf_reward.modeling.model_computation import adapter_of, config_of
from hf_reward.modeling.reward_head import unwrap_model
from hf_reward.scoring.bulk.manifest import differences
from hf_reward.training.training_args import RewardConfig

logger = logging.getLogger(__name__)

FILE = "run_fingerprint.json"
"""Name of the file in a checkpoint."""
_VERSION = 1
STREAM_ROWS = 1000
"""Number of first rows of a stream whose content is compared."""
_BATCH = 10_000
_SAMPLED = 1024
"""Number of evenly spaced values of each frozen weight that are hashed: another base model differs everywhere."""

IGNORED_SETTINGS = frozenset(
    {
        # output, logging and reporting
        *("output_dir", "logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "log_level"),
        *("log_level_replica", "logging_nan_inf_filter", "disable_tqdm", "report_to", "run_name", "project"),
        *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "include_num_input_tokens_seen"),
        *("health_checks", "plot_curves", "model_card", "debug", "skip_memory_metrics", "include_for_metrics"),
        # the Hub
        *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
        *("hub_revision", "hub_training_state"),
        # evaluation and saving (unless the best checkpoint is the result, see `_BEST_CHECKPOINT_SETTINGS`)
        *("do_train", "do_eval", "do_predict", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start"),
        *("per_device_eval_batch_size", "eval_accumulation_steps", "eval_do_concat_batches", "batch_eval_metrics"),
        *("eval_use_gather_object", "prediction_loss_only", "bf16_full_eval", "fp16_full_eval", "label_names"),
        *("metric_for_best_model", "greater_is_better"),
        *("save_strategy", "save_steps", "save_total_limit", "save_only_model", "save_on_each_node"),
        *("enable_jit_checkpoint", "resume_from_checkpoint", "allow_changed_run", "ignore_data_skip"),
        *("restore_callback_states_from_checkpoint",),
        # workers, speed and memory: these change rounding at most (workers: unless rows are streamed)
        *("dataset_num_proc", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
        *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order"),
        *("packing", "max_tokens_per_batch", "cache_features", "pad_to_multiple_of", "activation_offloading"),
        *("activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing"),
        *("gradient_checkpointing_kwargs", "torch_compile", "torch_compile_backend", "torch_compile_mode"),
        *("use_liger_kernel", "liger_kernel_config", "use_cache", "torch_empty_cache_steps", "use_cpu", "tf32"),
        *("auto_find_batch_size", "remove_unused_columns", "accelerator_config", "full_determinism"),
        # distribution over processes; their number is compared
        *("parallelism_config", "fsdp", "fsdp_config", "deepspeed", "local_rank", "average_tokens_across_devices"),
        *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph"),
        *("ddp_backend", "ddp_timeout"),
        # the resulting order of rows is compared, as `rows_by_length` and `rows_by_prompt`
        *("length_bucketing", "group_by_prompt"),
        # source of model and tokenizer: their content is compared through the rows and the frozen weights
        *("model_init_kwargs", "trust_remote_code", "chat_template_path", "eos_token", "pad_token"),
    }
)
"""Settings that may change when a run resumes: they do not affect its result, or their effect is compared itself."""
_BEST_CHECKPOINT_SETTINGS = (
    *("metric_for_best_model", "greater_is_better", "eval_strategy", "eval_steps", "eval_delay", "save_strategy"),
    *("save_steps", "bf16_full_eval", "fp16_full_eval"),
)
"""Settings that affect the result if the best checkpoint is loaded at the end."""
_COLUMNS = ("input_ids", "token_type_ids", "ranks", "margin", "probability", "weight")
_COLUMNS_OF_HEADS = ("row", "source")
"""Columns that determine the resampling of several heads."""


def run_fingerprint(
    args: RewardConfig,
    model: nn.Module | None,
    train_data: Any,
    evaluation_data: Any,
    *,
    rows_by_length: bool,
    rows_by_prompt: bool = False,
) -> dict[str, Any]:
    """Describe everything that determines the result of a run.

    Callbacks, collators, optimizers and metrics are the caller's code and are not included. Trainable weights are not
    included, because the checkpoint contains them.

    Args:
        args: Settings of the run.
        model: The model before it is distributed; None in a trial of a hyperparameter search, which makes it later.
        train_data: The prepared training rows.
        evaluation_data: The prepared evaluation rows, or a dict of several; included if they select the best
            checkpoint.
        rows_by_length: Whether batches hold rows of similar length, which changes the order of the rows.
        rows_by_prompt: Whether batches hold several rows of a prompt, which also changes the order.

    Returns:
        JSON values, nested.
    """
    heads = args.num_reward_heads > 1
    content = {
        "version": _VERSION,
        "settings": _settings(args, isinstance(train_data, IterableDataset))
        | {"rows_by_length": rows_by_length, "rows_by_prompt": rows_by_prompt},
        "model": {} if model is None else _model(model),
        "train_data": _rows(train_data, heads),
    }
    if args.load_best_model_at_end:
        several = evaluation_data if isinstance(evaluation_data, Mapping) else {"": evaluation_data}
        content["evaluation_data"] = {name: _rows(data, heads) for name, data in several.items()}
    return json.loads(json.dumps(content, default=str))


def require_same_run(folder: Path, now: Mapping[str, Any], *, allow: bool) -> None:
    """Refuse to resume a run from the checkpoint of a different run.

    Args:
        folder: The checkpoint.
        now: Result of `run_fingerprint`.
        allow: Log a warning instead.

    Raises:
        ValueError: If the fingerprints differ, with both values of each different field, or if the stored fingerprint
            is not valid.
    """
    path = folder / FILE
    if not path.is_file():
        logger.warning(
            "%s has no %s (it was written by an earlier version of hf_reward or by plain `Trainer`), so data and "
            "settings are not compared with those of the earlier run.",
            *(folder, FILE),
        )
        return
    then = stored_fingerprint(folder)
    try:
        found = differences(*_comparable(now, then))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise _not_valid(path, error) from error
    if not found:
        return
    listed = "\n".join(found)
    if allow:
        logger.warning("Resuming from %s with changes, because `allow_changed_run` is set:\n%s", folder, listed)
        return
    raise ValueError(
        f"The checkpoint {folder} belongs to a run with different data or settings:\n{listed}.\nRestore those data and "
        "settings, start a new run in another `output_dir`, or resume with the changes: `--allow_changed_run` "
        "(`allow_changed_run=True`)."
    )


def stored_fingerprint(folder: Path) -> dict[str, Any]:
    """Read the fingerprint in a checkpoint.

    Args:
        folder: The checkpoint.

    Returns:
        The fingerprint; empty if there is none.

    Raises:
        ValueError: If it is not a JSON object.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise _not_valid(path, error) from error


def _not_valid(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} is not a valid fingerprint of a run ({error}). Set `resume_from_checkpoint` to another checkpoint."
    )


def _comparable(now: Mapping[str, Any], then: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return both without fields that only one has: default settings of another version, weights that are sharded."""
    defaults = {each.name: each.default for each in dataclasses.fields(RewardConfig)}
    own = {
        name: value
        for name, value in now["settings"].items()
        if name in _earlier_settings(then) or (name in defaults and value != defaults[name])
    }
    earlier = {name: value for name, value in _earlier_settings(then).items() if name in now["settings"]}
    models = _common_fields(now["model"], then["model"])
    rows = [name for name in ("train_data", "evaluation_data") if name in now and name in then]
    sides = [
        {"settings": settings, "model": model} | {name: side[name] for name in rows}
        for side, settings, model in zip((now, then), (own, earlier), models, strict=True)
    ]
    return sides[0], sides[1]


def _earlier_settings(then: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a checkpoint; earlier versions did not group rows by prompt."""
    return {"rows_by_prompt": False, **then["settings"]}


def _common_fields(now: Mapping[str, Any], then: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return two descriptions of models with the fields that both have, also within their configurations."""
    names = now.keys() & then.keys()
    sides = {name: now[name] for name in names}, {name: then[name] for name in names}
    if "config" in names:
        fields = now["config"].keys() & then["config"].keys()  # they differ between versions of transformers
        for side in sides:
            side["config"] = {name: side["config"][name] for name in fields}
    return sides


# --- settings ---


def _settings(args: RewardConfig, streamed: bool) -> dict[str, Any]:
    left_out = set(IGNORED_SETTINGS)
    if args.load_best_model_at_end:
        left_out -= set(_BEST_CHECKPOINT_SETTINGS)
    if streamed:
        left_out -= {"dataloader_num_workers"}  # each worker reads different files
    decided = {name: value for name, value in args.to_dict().items() if name not in left_out}
    return decided | {"processes": args.world_size}


# --- model ---


def _model(model: nn.Module) -> dict[str, Any]:
    """Describe architecture, names and dtypes of trainable weights, and a hash of samples of frozen weights."""
    trained, frozen = xxhash.xxh3_128(), xxhash.xxh3_128()
    dtypes = {str(weight.dtype).removeprefix("torch.") for weight in model.parameters() if weight.requires_grad}
    available = True
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            trained.update(f"{name} {tuple(weight.shape)}\n".encode())
            continue
        available = available and not weight.is_meta and weight.numel() > 0 and not hasattr(weight, "to_local")
        frozen.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        if available:
            frozen.update(_sample(weight))
    found: dict[str, Any] = {"class": type(unwrap_model(model)).__name__, "trained_weights": trained.hexdigest()}  # type: ignore[arg-type]
    found |= {"trained_dtypes": sorted(dtypes), "config": config_of(model)}
    if available:
        found["frozen_weights"] = frozen.hexdigest()
    adapter = adapter_of(model)
    return found if adapter is None else found | {"adapter": adapter}


def _sample(weight: torch.Tensor) -> bytes:
    values = weight.detach().reshape(-1)
    places = torch.linspace(0, len(values) - 1, min(_SAMPLED, len(values)), dtype=torch.float64).long()
    return values[places.to(values.device)].cpu().contiguous().view(torch.uint8).numpy().tobytes()


# --- rows ---


def _rows(data: Any, heads: bool) -> dict[str, Any]:
    if data is None:
        return {"kind": "none"}
    columns = (*_COLUMNS, *(_COLUMNS_OF_HEADS if heads else ()))
    if isinstance(data, IterableDataset):
        return _stream(data, columns)
    if not isinstance(data, Dataset):
        return {"kind": type(data).__name__}
    known = [name for name in columns if name in data.column_names]
    return {"kind": "rows", "rows": len(data), "content": content_of_rows(data, known)}


def content_of_rows(data: Dataset, columns: Sequence[str]) -> str:
    """Hash the values of some columns in the order of the rows, independently of their layout in memory.

    Args:
        data: Rows.
        columns: Names of the columns.

    Returns:
        XXH3-128, hexadecimal.
    """
    digest = xxhash.xxh3_128(",".join(columns).encode())
    for batch in data.select_columns(list(columns)).with_format("arrow").iter(_BATCH):
        table: Any = batch
        for column in pa.table(table).combine_chunks().columns:
            for chunk in column.chunks:
                _add(digest, chunk)
    return digest.hexdigest()


def _add(digest: Any, values: pa.Array) -> None:
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        digest.update(values.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False).tobytes())
        _add(digest, values.flatten())
    elif pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        digest.update(json.dumps(values.to_pylist()).encode())
    else:
        digest.update(values.to_numpy(zero_copy_only=False).tobytes())  # a null is NaN


def _stream(data: IterableDataset, columns: Sequence[str]) -> dict[str, Any]:
    """Describe the first rows of a stream and its local files."""
    digest = xxhash.xxh3_128()
    count = 0
    for row in data.take(STREAM_ROWS):
        digest.update(json.dumps([row.get(name) for name in columns]).encode())
        count += 1
    files: dict[str, Any] = {}
    for path in sorted(set(_files_of(data._ex_iterable))):
        identity = file_identity(path)
        name = identity.pop("name")
        files[name if name not in files else f"{name} ({len(files)})"] = identity
    return {"kind": "stream", "first_rows": count, "content": digest.hexdigest(), "files": files}


def _files_of(examples: Any) -> Iterator[Path]:
    """Yield the local files of a stream; `datasets` stores them in the arguments of its innermost generators."""
    arguments = getattr(examples, "kwargs", None) or {}
    for name in ("original_files", "base_files", "files"):
        for entry in arguments.get(name) or []:
            if isinstance(entry, str) and Path(entry).is_file():
                yield Path(entry).absolute()
    inner = getattr(examples, "ex_iterable", None)
    for part in [*([] if inner is None else [inner]), *(getattr(examples, "ex_iterables", None) or [])]:
        yield from _files_of(part)
