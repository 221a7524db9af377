"""Names in a record -> Hub ids. A name that is a path on this machine is never published."""

from typing import Any

from hf_reward.modeling.checkpoint_record import CheckpointRecord
from hf_reward.publishing.card.text import hub_id, is_local
from hf_reward.publishing.card.values import as_list


def said_base(record: CheckpointRecord) -> Any:
    """The name of the base model, or several: the user's if there is one, else the recorded one."""
    return record.card.get("base_model") or record.card.get("finetuned_from") or record.base_model


def base_models(record: CheckpointRecord) -> list[str]:
    """Hub ids of what the model was made of: the published parts of an average, else its base model."""
    return averaged_models(record) or [name for name in map(hub_id, as_list(said_base(record))) if name]


def averaged_models(record: CheckpointRecord) -> list[str]:
    """Hub ids of the models whose weights were averaged."""
    return [name for name in map(hub_id, as_list(record.origin.get("averaged"))) if name]


def hub_datasets(record: CheckpointRecord) -> list[str]:
    """Hub ids of the datasets that the user names.

    Args:
        record: The model's record.

    Returns:
        The ids in order; paths are left out.

    Raises:
        ValueError: If a name is neither a Hub id nor a path.
    """
    found: list[str] = []
    for field in ("dataset", "dataset_tags"):
        for name in as_list(record.card.get(field)):
            if not isinstance(name, str) or (hub_id(name) is None and not is_local(name)):
                raise refusal(field, name, "a Hub id such as 'org/name' (a path is left out of the card), or a list")
            if hub_id(name) and name not in found:
                found.append(name)
    return found


def refusal(field: str, value: Any, allowed: str) -> ValueError:
    """The error for something that the user says of the model and that cannot stand in its card."""
    return ValueError(
        f"`{field}` of the model card must be {allowed}, but is {value!r}. Correct it in `model_card` (`record.card`)."
    )
