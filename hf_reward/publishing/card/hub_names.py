"""Names in a record -> Hub ids. Local paths are never published."""

from typing import Any

from hf_reward.modeling.checkpoint_record import CheckpointRecord
from hf_reward.publishing.card.text import hub_id, is_local
from hf_reward.publishing.card.values import as_list


def stated_base(record: CheckpointRecord) -> Any:
    """Return the name (or names) of the base model: the user's if there is one, else the recorded one."""
    return record.card.get("base_model") or record.card.get("finetuned_from") or record.base_model


def base_models(record: CheckpointRecord) -> list[str]:
    """Return Hub ids of the averaged models, or of the base model if nothing was averaged."""
    return averaged_models(record) or [name for name in map(hub_id, as_list(stated_base(record))) if name]


def averaged_models(record: CheckpointRecord) -> list[str]:
    """Return Hub ids of the models whose weights were averaged."""
    return [name for name in map(hub_id, as_list(record.origin.get("averaged"))) if name]


def hub_datasets(record: CheckpointRecord) -> list[str]:
    """Return Hub ids of the datasets that the user names.

    Args:
        record: The model's record.

    Returns:
        The ids in order, without local paths.

    Raises:
        ValueError: If a name is neither a Hub id nor a path.
    """
    found: list[str] = []
    for field in ("dataset", "dataset_tags"):
        for name in as_list(record.card.get(field)):
            if not isinstance(name, str) or (hub_id(name) is None and not is_local(name)):
                allowed = "a Hub id such as 'org/name', or a list of them (local paths are left out of the card)"
                raise refusal(field, name, allowed)
            if hub_id(name) and name not in found:
                found.append(name)
    return found


def refusal(field: str, value: Any, allowed: str) -> ValueError:
    """Return the error for a value of `model_card` that is not allowed in a card."""
    return ValueError(
        f"`{field}` of the model card must be {allowed}, but is {value!r}. Correct it in `model_card` (`record.card`)."
    )
