"""Everything that a card is made of: the record, the results beside it and what else the folder tells."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_reward.modeling.checkpoint_record import CheckpointRecord
from hf_reward.publishing.card.values import number
from hf_reward.publishing.compatibility import Verdict

AUDIT_FILE = "audit_summary.json"
BENCHMARKS_FILE = "benchmark_results.json"


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """Everything that a card is made of."""

    folder: Path
    record: CheckpointRecord
    audit: dict[str, Any]
    """Content of `audit_summary.json`, empty without one."""
    benchmarks: list[dict[str, Any]]
    """Content of `benchmark_results.json`, empty without one."""
    compatibility: Sequence[Verdict]
    """Programs, and whether each loads the model with the same reward."""
    title: str
    model_id: str
    """What to load in the snippets."""
    has_id: bool
    """Whether that is a Hub id, and not the folder's name in its place."""

    @property
    def is_adapter(self) -> bool:
        """Whether the folder holds an adapter and no whole model."""
        return (self.folder / "adapter_config.json").is_file() and not (self.folder / "config.json").is_file()

    @property
    def values(self) -> dict[str, float]:
        """The metrics of the evaluation that are numbers."""
        found = {name: number(value) for name, value in self.record.evaluation.items()}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def probes(self) -> list[dict[str, Any]]:
        """The probes of the audit."""
        return list(self.audit.get("probes") or [])


def read_json(path: Path, kind: type) -> Any:
    """Content of a JSON file, empty without one.

    Args:
        path: The file.
        kind: `dict` or `list`, which it must hold.

    Returns:
        What it holds.

    Raises:
        ValueError: If the file is damaged.
    """
    if not path.is_file():
        return kind()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}). Run its command again, or remove it.") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} must hold a JSON {'list' if kind is list else 'object'}. Run its command again.")
    return content
