"""The output of a run: names of its files, and earlier outputs in the same place."""

import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_reward.data.atomic_file import remove_temporaries, sync_folder
from hf_reward.data.interface import setting
from hf_reward.data.tables.input_row import Table
from hf_reward.scoring.bulk.manifest import Manifest, Shard

_NO_OUTPUT = {".csv", ".tsv", ".json", ".ndjson", ".txt", ".gz", ".zst", ".arrow"}
_OWN = re.compile(r"_done|_quarantine|\.(plan|part-\d+-of-\d+)\.lock|\._manifest\.json\.[0-9a-f]{8}\.tmp")


@dataclass(frozen=True)
class Target:
    """The output, a file or a folder of shards, and the paths of all files of a run.

    Names of files that are not data start with an underscore, so that readers of folders skip them.
    """

    out: Path
    format: str
    """jsonl or parquet."""
    is_file: bool

    @property
    def folder(self) -> Path:
        """Folder of the shards: the output itself, or a working folder next to the output file."""
        return self.out.with_name(f"{self.out.name}.parts") if self.is_file else self.out

    @property
    def manifest(self) -> Path:
        """Manifest of the run."""
        return self.folder / "_manifest.json"

    @property
    def record(self) -> Path:
        """Record of the run, next to a finished output file."""
        return self.out.with_name(f"{self.out.name}.manifest.json")

    @property
    def quarantine(self) -> Path:
        """Rejected rows: a file next to the output file, or a folder in the output folder."""
        return self.out.with_suffix(".quarantine.jsonl") if self.is_file else self.out / "_quarantine"

    def shard(self, shard: Shard) -> Path:
        """Path of a shard."""
        return self.folder / f"{shard.name}.{self.format}"

    def marker(self, shard: Shard) -> Path:
        """Path of the marker of a shard."""
        return self.folder / "_done" / f"{shard.name}.json"

    def shard_quarantine(self, shard: Shard) -> Path:
        """Path of the rejected rows of a shard."""
        return self.folder / "_quarantine" / f"{shard.name}.jsonl"

    def make_folders(self) -> None:
        """Create the folders of a run."""
        for folder in (self.folder, self.folder / "_done", self.folder / "_quarantine"):
            folder.mkdir(parents=True, exist_ok=True)

    def remove_temporaries(self, shards: Sequence[Shard]) -> None:
        """Remove temporary files of these shards left by killed processes."""
        for name in (self.shard, self.marker, self.shard_quarantine):
            paths = [name(shard) for shard in shards]
            if paths:
                remove_temporaries(paths[0].parent, {path.name for path in paths})

    def remove_joined(self) -> None:
        """Remove the working folder; it is renamed first, so that it disappears atomically."""
        trash = self.out.with_name(f".{self.out.name}.{secrets.token_hex(4)}.parts")
        self.folder.rename(trash)
        sync_folder(trash.parent)
        self.remove_leftovers()

    def remove_leftovers(self) -> None:
        """Remove files left by a process that was killed while it joined shards."""
        remove_temporaries(self.out.parent, {self.out.name, self.record.name, self.quarantine.name})
        trash = re.compile(rf"\.{re.escape(self.out.name)}\.[0-9a-f]{{8}}\.parts")
        for path in [path for path in self.out.parent.iterdir() if trash.fullmatch(path.name)]:
            shutil.rmtree(path, ignore_errors=True)


def choose_target(out: str | Path, output_format: str, tables: Sequence[Table], data: Any = None) -> Target:
    """Determine the kind and format of an output.

    Args:
        out: A .jsonl or .parquet file, or a folder.
        output_format: Format of the shards in a folder; "" for that of the inputs.
        tables: The inputs.
        data: The data argument.

    Returns:
        The target.

    Raises:
        ValueError: If the output has another suffix, or is one of the inputs.
    """
    path = Path(out)
    if str(out) == "-":
        raise ValueError(
            "The output must be a file or folder, but is '-'. Only `hf-reward score` and `rank` can write to stdout."
        )
    if path.suffix in _NO_OUTPUT and not path.is_dir():
        raise ValueError(f"The output {path} must be a .jsonl or .parquet file, or a folder of such files.")
    sources = [Path(source) for table in tables if (source := getattr(table, "path", None)) is not None]
    kinds = {".jsonl": "jsonl", ".parquet": "parquet"}
    is_file = path.suffix in kinds and not path.is_dir()
    if path.is_file() and not is_file:
        raise FileExistsError(
            f"The output {path} is a file of unknown format. Use a .jsonl or .parquet file or a folder."
        )
    arrow = not sources or sources[0].suffix == ".parquet"
    wanted = output_format or ("parquet" if arrow else "jsonl")
    if is_file and output_format not in ("", kinds[path.suffix]):
        raise ValueError(f"The output {path} has the suffix {path.suffix}, but the output format is {output_format}.")
    target = Target(path, kinds[path.suffix] if is_file else wanted, is_file=is_file)
    _require_separate(target, {source.resolve() for source in sources}, data)
    return target


def _require_separate(target: Target, sources: set[Path], data: Any) -> None:
    """Raise an error if an output would replace an input, or be read as an input by the next run."""
    outputs = {path.resolve() for path in (target.out, target.record, target.quarantine)}
    folders = {source.parent for source in sources}
    if outputs & sources or target.out.resolve() in folders:
        raise ValueError(f"The output {target.out} is also an input, or the folder of one. Use another output.")
    is_folder = isinstance(data, (str, Path)) and Path(data).is_dir() and target.is_file
    if is_folder and target.out.resolve().parent in folders:
        raise ValueError(
            f"The output {target.out} is in the folder of the inputs; the next run would read it. Use another output."
        )


def find_earlier_run(target: Target, *, resume: bool, overwrite: bool) -> Manifest | None:
    """Look for the output of an earlier run, and resume it, remove it or raise an error.

    Args:
        target: The output.
        resume: Whether to resume it.
        overwrite: Whether to replace it. A finished file stays until the new one replaces it.

    Returns:
        The manifest of the run to resume, None for a new run.

    Raises:
        FileExistsError: If the output exists and neither was requested, or it is not a scoring run.
    """
    if target.manifest.is_file():
        if resume:
            return Manifest.load(target.manifest)
        if not overwrite:
            what = "an unfinished run" if target.is_file else "a scoring run"
            raise FileExistsError(f"The folder {target.folder} contains {what}. {_choice()}")
        _clear(target)
    elif target.folder.is_dir():
        others = sorted(path.name for path in target.folder.iterdir() if not _OWN.fullmatch(path.name))
        if others and target.manifest.is_file():  # another part has just started
            return find_earlier_run(target, resume=resume, overwrite=overwrite)
        if others:
            raise FileExistsError(
                f"The folder {target.folder} is not a scoring run, but contains {', '.join(others[:3])}. Use another "
                "output, or empty the folder yourself."
            )
    if target.is_file and not overwrite:
        if target.out.exists() and not resume:
            raise FileExistsError(f"The output {target.out} exists. {_choice()}")
        if target.quarantine.exists() and not target.out.exists():
            raise FileExistsError(
                f"{target.quarantine} exists, and this run may write that file. Use another output, or set "
                f"`{setting('overwrite', True)}` to replace the file."
            )
    return None


def _choice() -> str:
    return f"Set `{setting('resume', True)}` to resume the run, or `{setting('overwrite', True)}` to replace it."


def _clear(target: Target) -> None:
    """Remove the files of a run, its manifest last, so that an interrupted removal can be repeated."""
    manifest = Manifest.load(target.manifest)
    target.remove_temporaries(manifest.shards)
    for shard in manifest.shards:
        for kind in ("jsonl", "parquet"):
            (target.folder / f"{shard.name}.{kind}").unlink(missing_ok=True)
        target.marker(shard).unlink(missing_ok=True)
        target.shard_quarantine(shard).unlink(missing_ok=True)
    target.manifest.unlink()
    sync_folder(target.folder)
