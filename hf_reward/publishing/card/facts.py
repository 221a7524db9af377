"""Inputs of a model card: the record and the result files of the model folder."""

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
    """Inputs of a model card."""

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
    """Name that the snippets load."""
    has_id: bool
    """Whether `model_id` is a Hub id; otherwise it is the name of the folder."""

    @property
    def is_adapter(self) -> bool:
        """Whether the folder contains an adapter and no complete model."""
        return (self.folder / "adapter_config.json").is_file() and not (self.folder / "config.json").is_file()

    @property
    def values(self) -> dict[str, float]:
        """The finite metrics of the evaluation."""
        found = {name: number(value) for name, value in self.record.evaluation.items()}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def probes(self) -> list[dict[str, Any]]:
        """The probes of the audit."""
        return list(self.audit.get("probes") or [])


def read_json(path: Path, kind: type) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        kind: Required type of the content, `dict` or `list`.

    Returns:
        The content; empty if there is no file.

    Raises:
        ValueError: If the file is not JSON or contains another type.
    """
    if not path.is_file():
        return kind()
    remedy = "Run the command that wrote it again, or remove the file."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}). {remedy}") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} must contain a JSON {'list' if kind is list else 'object'}. {remedy}")
    return content
