"""Manifest of a run: model, data and settings. Outputs of different runs are never mixed."""

import base64
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from hf_reward.data.interface import setting
from hf_reward.data.path_safety import is_plain_name
from hf_reward.data.tables.input_row import Span, Table

logger = logging.getLogger(__name__)

_VERSION = 1
_SHOWN = 12
_ADDED_LATER = {
    ".content": "the complete content of its inputs",
    ".modified": "when its inputs were modified",
    "scorer.computation": "the configuration of its model",
}
"""Suffix of a field that manifests of earlier versions lack -> its description."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows of one table that are scored and written together."""

    name: str
    """Name of its files, without suffix."""
    table: int
    """Index of its table among the inputs."""
    span: Span


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Identity and plan of a run."""

    identity: dict[str, Any]
    """`scorer`, `inputs` and `settings`: if any of them differs, it is another run."""
    shards: Sequence[Shard]
    schema: pa.Schema | None
    """Columns of Parquet outputs."""

    @cached_property
    def run(self) -> str:
        """Hexadecimal id of the run. Markers with another id are ignored."""
        content = json.dumps(
            [self.identity, [[shard.name, *astuple(shard.span)] for shard in self.shards]], sort_keys=True
        )
        return xxhash.xxh3_128_hexdigest(content.encode())

    def to_bytes(self) -> bytes:
        """Serialise to JSON, UTF-8."""
        schema = None if self.schema is None else base64.b64encode(self.schema.serialize().to_pybytes()).decode()
        spans = [[s.table, s.span.first, s.span.rows, s.span.offset, s.span.line] for s in self.shards]
        names = [shard.name for shard in self.shards]
        content = {"version": _VERSION, **self.identity, "schema": schema, "names": names, "shards": spans}
        content["checksum"] = _checksum(content)
        return (json.dumps(content, ensure_ascii=False) + "\n").encode("utf-8")

    @classmethod
    def load(cls, path: Path) -> "Manifest":
        """Load a manifest from a file.

        Args:
            path: The file.

        Returns:
            The manifest.

        Raises:
            ValueError: If the file is not a manifest, is damaged, or has a later version.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["version"] != _VERSION:
                raise ValueError(f"its version is {content['version']}, but {_VERSION} is supported")
            if content.pop("checksum", None) not in (None, _checksum(content)):  # earlier manifests have none
                raise ValueError("it was changed or damaged after it was written")
            shards = [
                Shard(name, table, Span(*span))
                for name, (table, *span) in zip(content["names"], content["shards"], strict=True)
            ]
            _require_own_names(shards)
            schema = content["schema"]
            schema = None if schema is None else pa.ipc.read_schema(pa.py_buffer(base64.b64decode(schema)))
            identity = {name: content[name] for name in ("scorer", "inputs", "settings")}
        except (ValueError, TypeError, KeyError, OSError, RecursionError, pa.ArrowException) as error:
            raise ValueError(
                f"{path} is not a valid manifest of a scoring run ({error}). Use another output, or remove its folder."
            ) from error
        return cls(identity=identity, shards=shards, schema=schema)


def _checksum(content: Mapping[str, Any]) -> str:
    """Hash a manifest: with a changed plan, rows could be missing from a run that is reported as complete."""
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def _require_own_names(shards: Sequence[Shard]) -> None:
    """Reject names with path separators: files of shards are replaced and removed."""
    foreign = [shard.name for shard in shards if not is_plain_name(shard.name)]
    if foreign:
        raise ValueError(f"{foreign[0]!r} is not a valid name of a shard")


def identity_of(fingerprint: Mapping[str, Any], tables: Sequence[Table], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Build the identity of a run.

    Args:
        fingerprint: Fingerprint of the scorer.
        tables: The inputs.
        settings: Settings that affect the output.

    Returns:
        The identity, as JSON values.
    """
    inputs = {table.name: table.identity() for table in tables}
    return json.loads(json.dumps({"scorer": dict(fingerprint), "inputs": inputs, "settings": dict(settings)}))


def require_same(identity: Mapping[str, Any], earlier: Mapping[str, Any], path: Path) -> None:
    """Raise an error if outputs of two runs would be mixed.

    Args:
        identity: Identity of this run, or a part of it.
        earlier: Identity of the run whose outputs exist.
        path: Path of those outputs.

    Raises:
        ValueError: If they differ. The message lists each field with both values.
    """
    now, then = _flat(identity), _flat({name: earlier[name] for name in identity})
    unknown = {name for name in now.keys() - then.keys() if name.endswith(tuple(_ADDED_LATER))}
    if unknown:
        missing = [what for end, what in _ADDED_LATER.items() if any(name.endswith(end) for name in unknown)]
        logger.warning(
            "%s was started by an earlier version of hf_reward, which did not record %s. Changes to such "
            "settings are not detected.",
            path,
            " and ".join(missing),
        )
    found = differences({name: value for name, value in now.items() if name not in unknown}, then)
    if not found:
        return
    raise ValueError(
        f"{path} contains outputs of a run with other settings:\n"
        + "\n".join(found)
        + f"\nUse the same settings or another output, or set `{setting('overwrite', True)}` to replace this output."
    )


def differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """List the fields in which two descriptions of a run differ.

    Args:
        now: JSON values, possibly nested.
        then: Those of the earlier run.

    Returns:
        A line with both values for each field, at most 12, and the number of further fields.
    """
    now, then = _flat(now), _flat(then)
    absent = object()  # differs from null
    names = sorted(name for name in now.keys() | then.keys() if now.get(name, absent) != then.get(name, absent))
    lines = [f"  {name}: was {_shown(then, name)}, is {_shown(now, name)}" for name in names[:_SHOWN]]
    return [*lines, *([f"  and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else [])]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {name: value}
    found: dict[str, Any] = {}
    for key, part in value.items():
        found |= _flat(part, f"{name}.{key}" if name else str(key))
    return found


def _shown(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name], ensure_ascii=False)[:200] if name in values else "absent"
