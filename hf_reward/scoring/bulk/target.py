"""Where outputs go: what lies there already, what may be replaced, and what each file is called."""

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
    """The output, a file or a folder of shards, and the names of all files of a run.

    Names that readers of folders should not take for data begin with an underscore.
    """

    out: Path
    format: str
    """jsonl or parquet."""
    is_file: bool

    @property
    def folder(self) -> Path:
        """Where shards are: the output itself, or a working folder beside the file."""
        return self.out.with_name(f"{self.out.name}.parts") if self.is_file else self.out

    @property
    def manifest(self) -> Path:
        """What the run is, while it runs."""
        return self.folder / "_manifest.json"

    @property
    def record(self) -> Path:
        """What made the file, once it is there."""
        return self.out.with_name(f"{self.out.name}.manifest.json")

    @property
    def quarantine(self) -> Path:
        """Rows without a reward: a file beside the file, or a folder of them."""
        return self.out.with_suffix(".quarantine.jsonl") if self.is_file else self.out / "_quarantine"

    def shard(self, shard: Shard) -> Path:
        """The rows of a shard."""
        return self.folder / f"{shard.name}.{self.format}"

    def marker(self, shard: Shard) -> Path:
        """What says that a shard is finished."""
        return self.folder / "_done" / f"{shard.name}.json"

    def put_aside(self, shard: Shard) -> Path:
        """The rows of a shard that have no reward."""
        return self.folder / "_quarantine" / f"{shard.name}.jsonl"

    def make_folders(self) -> None:
        """Make the folders of a run."""
        for folder in (self.folder, self.folder / "_done", self.folder / "_quarantine"):
            folder.mkdir(parents=True, exist_ok=True)

    def remove_temporaries(self, shards: Sequence[Shard]) -> None:
        """Remove what killed writers of these shards left behind."""
        for name in (self.shard, self.marker, self.put_aside):
            paths = [name(shard) for shard in shards]
            if paths:
                remove_temporaries(paths[0].parent, {path.name for path in paths})

    def remove_joined(self) -> None:
        """Remove the working folder beside a file, at once for everybody who looks."""
        trash = self.out.with_name(f".{self.out.name}.{secrets.token_hex(4)}.parts")
        self.folder.rename(trash)
        sync_folder(trash.parent)
        self.remove_leftovers()

    def remove_leftovers(self) -> None:
        """Remove what a start that was killed while it joined shards left beside the file."""
        remove_temporaries(self.out.parent, {self.out.name, self.record.name, self.quarantine.name})
        trash = re.compile(rf"\.{re.escape(self.out.name)}\.[0-9a-f]{{8}}\.parts")
        for path in [path for path in self.out.parent.iterdir() if trash.fullmatch(path.name)]:
            shutil.rmtree(path, ignore_errors=True)


def choose_target(out: str | Path, output_format: str, tables: Sequence[Table], data: Any = None) -> Target:
    """Decide what an output's name means.

    Args:
        out: A file whose suffix is .jsonl or .parquet, or a folder.
        output_format: What a folder is to hold, if it is not what the inputs suggest.
        tables: The inputs.
        data: What named them.

    Returns:
        The target.

    Raises:
        ValueError: If the name is that of a file of another kind, or of one of the inputs.
    """
    path = Path(out)
    if str(out) == "-":
        raise ValueError("The output '-' is no file: only `hf-reward score` and `rank` write to standard output.")
    if path.suffix in _NO_OUTPUT and not path.is_dir():
        raise ValueError(f"The output {path} must be a .jsonl or .parquet file, or a folder of such files.")
    sources = [Path(source) for table in tables if (source := getattr(table, "path", None)) is not None]
    kinds = {".jsonl": "jsonl", ".parquet": "parquet"}
    is_file = path.suffix in kinds and not path.is_dir()
    if path.is_file() and not is_file:
        raise FileExistsError(
            f"The output {path} is a file of unknown kind. Name a .jsonl or .parquet file or a folder."
        )
    arrow = not sources or sources[0].suffix == ".parquet"
    wanted = output_format or ("parquet" if arrow else "jsonl")
    if is_file and output_format not in ("", kinds[path.suffix]):
        raise ValueError(f"The output {path} is named as a {path.suffix} file, but is to hold {output_format}.")
    target = Target(path, kinds[path.suffix] if is_file else wanted, is_file=is_file)
    _require_apart(target, {source.resolve() for source in sources}, data)
    return target


def _require_apart(target: Target, sources: set[Path], data: Any) -> None:
    """Stop before an output takes an input's place, or becomes an input of the next start."""
    outputs = {path.resolve() for path in (target.out, target.record, target.quarantine)}
    folders = {source.parent for source in sources}
    if outputs & sources or target.out.resolve() in folders:
        raise ValueError(f"The output {target.out} is also an input, or the folder of one. Name another place.")
    whole = isinstance(data, (str, Path)) and Path(data).is_dir() and target.is_file
    if whole and target.out.resolve().parent in folders:
        raise ValueError(
            f"The output {target.out} lies among the inputs, and would be one the next time. Name another."
        )


def find_earlier(target: Target, *, resume: bool, overwrite: bool) -> Manifest | None:
    """Look for an earlier run's output, and clear it away or refuse, as asked for.

    Args:
        target: The output.
        resume: Whether to go on with it.
        overwrite: Whether to replace it. A finished file stays until the new one takes its place.

    Returns:
        The manifest of the run to go on with, None to begin.

    Raises:
        FileExistsError: If there is something, and neither was asked for, or it is no run of ours.
    """
    if target.manifest.is_file():
        if resume:
            return Manifest.load(target.manifest)
        if not overwrite:
            what = "an unfinished run" if target.is_file else "a scoring run"
            raise FileExistsError(f"The folder {target.folder} holds {what}. {_choice()}")
        _clear(target)
    elif target.folder.is_dir():
        others = sorted(path.name for path in target.folder.iterdir() if not _OWN.fullmatch(path.name))
        if others and target.manifest.is_file():  # another part has just begun
            return find_earlier(target, resume=resume, overwrite=overwrite)
        if others:
            raise FileExistsError(
                f"The folder {target.folder} holds no scoring run, but {', '.join(others[:3])}. It is left as it is: "
                "name another output, or empty the folder yourself."
            )
    if target.is_file and not overwrite:
        if target.out.exists() and not resume:
            raise FileExistsError(f"The output {target.out} exists. {_choice()}")
        if target.quarantine.exists() and not target.out.exists():
            raise FileExistsError(
                f"{target.quarantine} exists, which this run may write. Name another output, or replace it with "
                f"`{setting('overwrite', True)}`."
            )
    return None


def _choice() -> str:
    return f"Go on with `{setting('resume', True)}`, or replace it with `{setting('overwrite', True)}`."


def _clear(target: Target) -> None:
    """Remove the files of a run, its manifest last: whatever is left can still be told to be ours."""
    manifest = Manifest.load(target.manifest)
    target.remove_temporaries(manifest.shards)
    for shard in manifest.shards:
        for kind in ("jsonl", "parquet"):
            (target.folder / f"{shard.name}.{kind}").unlink(missing_ok=True)
        target.marker(shard).unlink(missing_ok=True)
        target.put_aside(shard).unlink(missing_ok=True)
    target.manifest.unlink()
    sync_folder(target.folder)
