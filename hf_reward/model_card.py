"""Results and settings -> README.md of a model folder. The template speaks; what it says is computed here."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from hf_reward.checkpoint_record import CheckpointRecord

TEMPLATE = "model_card_template.md"


def template_path() -> Path:
    """Where the card's template is: in the wheel beside this file, in a checkout at the repository's root."""
    packaged = Path(str(files("hf_reward"))) / TEMPLATE
    return packaged if packaged.is_file() else Path(__file__).parent.parent / TEMPLATE


def write_model_card(
    folder: str | Path,
    record: CheckpointRecord,
    log_history: list[dict[str, Any]],
    *,
    model_name: str | None = None,
    license: str | None = None,
    language: str | list[str] | None = None,
    dataset: str | list[str] | None = None,
    tags: str | list[str] | None = None,
    **extra: Any,
) -> Path:
    """Render the card of a model folder.

    Args:
        folder: The folder.
        record: What travels with the model.
        log_history: `TrainerState.log_history`, whose last evaluation is shown.
        model_name: Title; by default the folder's name.
        license: Licence of the model.
        language: Its language or languages.
        dataset: Hub ids of its training data.
        tags: Tags beside our own.
        **extra: Further metadata keys that the Hub knows; what the Trainer passes on besides is left out.

    Returns:
        The file.
    """
    data = ModelCardData(
        license=license,
        language=language,
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=sorted({"reward-model", "hf_reward", "rlhf", *_as_list(tags)}),
        datasets=_as_list(dataset) or _as_list(extra.get("dataset_tags")) or None,
        metrics=["accuracy"],
        base_model=_hub_id(record.base_model),
    )
    card = ModelCard.from_template(
        data,
        template_path=str(template_path()),
        title=model_name or Path(folder).resolve().name,
        record=record,
        results=last_evaluation(log_history),
    )
    path = Path(folder) / "README.md"
    card.save(path)
    return path


def last_evaluation(log_history: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The last whole evaluation that was logged, without its `eval_` prefix, or None."""
    for entry in reversed(log_history):
        if "eval_accuracy_ci_low" in entry:
            return {key.removeprefix("eval_"): value for key, value in entry.items()}
    return None


def _as_list(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def _hub_id(name: str | None) -> str | None:
    """A base model's Hub id; a local path says nothing to others and would be refused by the Hub."""
    is_id = (
        name is not None and name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()
    )
    return name if is_id else None
