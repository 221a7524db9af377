"""Convert a reward model from another library to the standard transformers format, and verify the result."""

from dataclasses import replace
from pathlib import Path

from hf_reward.data.atomic_folder import require_free
from hf_reward.modeling.checkpoint_record import describe
from hf_reward.publishing.export import ExportReport, ExportRule, write_verified
from hf_reward.publishing.importers import read_foreign
from hf_reward.publishing.saved_model import RewardChanges, SavedModel


def import_reward_model(
    source: str | Path,
    folder: str | Path,
    *,
    format: str = "auto",
    rule: ExportRule | None = None,
    base_model: str | Path | None = None,
    allow_pickle: bool = False,
    overwrite: bool = False,
) -> ExportReport:
    """Convert a reward model from another library to the standard transformers format with the same rewards.

    Args:
        source: Folder of the model.
        folder: Output folder.
        format: One of `importers.FORMATS`, or `auto` to detect it.
        rule: Options of the export.
        base_model: The model that it was fine-tuned from, if the folder has no configuration or tokenizer.
        allow_pickle: Read pickled weights (tensors only).
        overwrite: Replace an existing folder.

    Returns:
        Report on the written and verified folder. A bias of the head, which stock decoders do not support, is recorded
        as `origin["offset"]`: the original reward is the reward of the new model plus this offset.

    Raises:
        ValueError: If the folder is damaged or its layout is not supported.
        FileExistsError: If the output folder exists and is not empty.
    """
    require_free(Path(folder), overwrite)
    foreign = read_foreign(source, format, base_model=base_model, allow_pickle=allow_pickle)
    notes = [f"Format: {foreign.format}.", *foreign.notes]
    origin = {
        "imported_from": foreign.format,
        "offset": foreign.offset,
        "read_at": foreign.reads,
        "notes": foreign.notes,
        **foreign.facts,
    }
    record = replace(describe(foreign.model, foreign.tokenizer, probes={}), origin=origin)
    saved = SavedModel(foreign.model, foreign.tokenizer, record, RewardChanges(notes=notes))
    return write_verified(saved, folder, rule or ExportRule())
