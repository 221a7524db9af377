"""Foreign folder -> stock folder, written and verified as every export is."""

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
    """Turn a reward model of another library into a stock folder with the same rewards.

    Args:
        source: Its folder.
        folder: Where to.
        format: One of `importers.FORMATS`, or `auto` to find out.
        rule: How to write it.
        base_model: The model that it was made from, for what the folder lacks.
        allow_pickle: Read weights that are pickles, tensors only.
        overwrite: Replace a folder that is there.

    Returns:
        What was written, verified. A bias that stock decoders cannot hold is in the record as `origin["offset"]`:
        the foreign reward is ours plus that.

    Raises:
        ValueError: If the folder is damaged, or in a layout that stock classifiers cannot hold.
        FileExistsError: If the target is there and not empty.
    """
    require_free(Path(folder), overwrite)
    foreign = read_foreign(source, format, base_model=base_model, allow_pickle=allow_pickle)
    notes = [f"Read as {foreign.format}.", *foreign.notes]
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
