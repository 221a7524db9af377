"""The values of each case behind the findings of an audit, stored so that two audits can be compared."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_reward.data.atomic_file import write_atomic
from hf_reward.evaluation.audit.inference import Evidence

EVIDENCE_FILE = "evidence.json"


def write_evidence(evidence: Mapping[str, Evidence], folder: str | Path) -> Path:
    """Write the values behind the findings.

    Args:
        evidence: Name of a finding -> its values and clusters.
        folder: The audit's folder.

    Returns:
        The file.
    """
    path = Path(folder) / EVIDENCE_FILE
    names: dict[str, int] = {}
    content = {
        name: {
            "values": each.values.tolist(),
            "clusters": [names.setdefault(cluster, len(names)) for cluster in each.clusters],
            "in_margins": each.in_margins,
            "part": each.part,
            **({} if each.plain is None else {"plain": each.plain.tolist()}),
        }
        for name, each in evidence.items()
    }
    write_atomic(path, json.dumps({"clusters": list(names), "findings": content}))
    return path


def read_evidence(folder: str | Path) -> dict[str, Evidence]:
    """Read the values that `write_evidence` wrote.

    Args:
        folder: The audit's folder.

    Returns:
        Name of a finding -> its values and clusters.

    Raises:
        ValueError: If the file is missing or damaged.
    """
    path = Path(folder) / EVIDENCE_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = content["clusters"]
        found = content["findings"]
        return {name: _evidence(each, names) for name, each in found.items()}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{path} cannot be read ({error!r}). `hf-reward audit --out {folder}` writes it; run the audit again."
        ) from error


def _evidence(each: Mapping[str, Any], names: Sequence[str]) -> Evidence:
    clusters = [str(names[place]) for place in each["clusters"]]
    values, plain = (None if each.get(key) is None else np.array(each[key], np.float64) for key in ("values", "plain"))
    if values is None:
        raise KeyError("values")
    return Evidence(values, clusters, each["in_margins"], each["part"], plain)
