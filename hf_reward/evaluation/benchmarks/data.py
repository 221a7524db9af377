"""Load the rows of a benchmark from files, from memory, or from the Hub at a recorded commit."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from huggingface_hub import HfApi

from hf_reward.data.encoded_images import undecoded
from hf_reward.data.path_safety import shown_name
from hf_reward.data.preference_row import PreferenceFormatError, as_mapping
from hf_reward.data.row_locations import RowLocations
from hf_reward.data.sources import DEMONSTRATION, Source, load_source, source_name
from hf_reward.evaluation.benchmarks.base import Benchmark, Comparison, HubSource, LeftOut
from hf_reward.metrics.counts import counted

_HUB_SECONDS = 20.0


class DataUnavailableError(OSError):
    """The data of a benchmark is not available; the message names the local files that can be used instead."""


@dataclass(frozen=True, kw_only=True)
class DataChoice:
    """Selection of a benchmark's data."""

    data: Any = None
    """File, folder, Hub id (`org/name` or `org/name@revision`), several of these, rows, or a dataset; None for the
    benchmark's own data on the Hub."""
    split: str | None = None
    """Split of a Hub id, or of a folder of own data; by default the benchmark's split, `test` for own data."""
    subsets: Sequence[str] = ()
    """Subsets to use; the result is then partial."""
    extra_sets: bool = False
    """Whether to read the optional sets too."""
    layout: str = "auto"
    """Row layout of own data."""
    columns: Mapping[str, str] | None = None
    """Our column name -> column name in own data."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkData:
    """The rows of one benchmark."""

    comparisons: list[Comparison]
    source: str
    """Origin of the rows."""
    dataset_id: str | None
    """Hub id of the data, if it came from the Hub."""
    revision: str
    """Commit of the Hub repository; for other data a hash of the rows' content."""
    content_hash: str
    left_out: int
    """Rows that the benchmark's own rule excludes, such as ties."""
    not_compared: frozenset[str] = frozenset()
    """Ids of rows that are excluded by that rule or because their subset was not chosen."""
    name: str = ""
    """Short name of own data, for cards; empty for a public benchmark."""


def load_benchmark_data(benchmark: Benchmark, choice: DataChoice) -> BenchmarkData:
    """Read a benchmark's rows.

    Args:
        benchmark: The benchmark.
        choice: Selection of the data.

    Returns:
        The comparisons, in the data's order.

    Raises:
        DataUnavailableError: If the Hub cannot be reached or does not have the data.
        FileNotFoundError: If a path does not exist, or a folder has none of the expected files.
        ValueError: If columns are missing, a row is unusable, an id is repeated, or a subset is unknown.
    """
    found = _tables(benchmark, choice)
    comparisons: list[Comparison] = []
    left_out: list[str] = []
    for table in found.tables:
        for read in _read_table(benchmark, table):
            if isinstance(read, LeftOut):
                left_out.append(read.id)
            else:
                comparisons.append(read)
    _require_distinct([*(each.id for each in comparisons), *left_out], benchmark)
    every = {each.id for each in comparisons}
    comparisons = _only(comparisons, choice.subsets, benchmark)
    if not comparisons:
        raise ValueError(
            f"{found.source} holds no row to compare ({len(left_out)} left out). {benchmark.title} needs at least one."
        )
    content = _content_hash(comparisons)
    return BenchmarkData(
        comparisons=comparisons,
        source=found.source,
        dataset_id=found.dataset_id,
        revision=found.revision or f"sha256:{content}",
        content_hash=content,
        left_out=len(left_out),
        not_compared=frozenset(left_out) | every - {each.id for each in comparisons},
        name="" if benchmark.columns else _name(choice.data),
    )


@dataclass(frozen=True)
class _Table:
    rows: Any
    """Iterable of rows."""
    columns: Sequence[str]
    name: str
    """For errors."""
    file: str = ""
    """Path below the given folder, without suffix."""
    folder: Path = Path()
    """Folder to which paths of images are relative."""


@dataclass(frozen=True)
class _Found:
    """Tables from one source, and the name of the source."""

    tables: list[_Table]
    source: str
    dataset_id: str | None = None
    """Hub id."""
    revision: str | None = None
    """Commit on the Hub."""


def _tables(benchmark: Benchmark, choice: DataChoice) -> _Found:
    data = choice.data
    if data is None and not benchmark.hub:
        raise DataUnavailableError(f"{benchmark.title} is not read from the Hub. Set `--data`: {benchmark.local}.")
    if data is None:
        return _from_hub(benchmark, [*benchmark.hub, *(benchmark.extra if choice.extra_sets else ())], None)
    if isinstance(data, str | Path):
        return _from_name(benchmark, str(data), choice)
    if isinstance(data, list | tuple) and data and all(isinstance(each, str | Path) for each in data):
        parts = [_from_name(benchmark, str(each), choice) for each in data]
        if len(parts) == 1:
            return parts[0]
        return _Found([table for part in parts for table in part.tables], ", ".join(part.source for part in parts))
    loaded = load_source(Source(data=data, name="data"))
    return _Found([_table(benchmark, loaded, "the data")], "rows given by the caller")


def _from_name(benchmark: Benchmark, name: str, choice: DataChoice) -> _Found:
    path = Path(name).expanduser()
    split = choice.split or (benchmark.hub[0].split if benchmark.hub else "test")
    if name == DEMONSTRATION or (path.is_dir() and not benchmark.columns):  # own data: the folder's files of one split
        loaded = load_source(Source(data=name if name == DEMONSTRATION else str(path), name=path.name, split=split))
        return _Found([_table(benchmark, loaded, name)], f"{shown_name(name)} ({split})")
    if path.exists():
        return _from_files(benchmark, path, choice)
    repo, _, revision = name.partition("@")
    if not _is_hub_id(repo):
        raise FileNotFoundError(
            f"There is no file or folder {name!r} (in {Path.cwd()}), and the name is not a valid Hub id. "
            f"{benchmark.title} reads {benchmark.local}."
        )
    own = benchmark.hub if len({each.repo for each in benchmark.hub}) == 1 else (HubSource("", split=split),)
    return _from_hub(benchmark, [replace(each, repo=repo, split=split) for each in own], revision or None)


def _name(data: Any) -> str:
    """Return the short name of own data, or all names of several sources."""
    several = isinstance(data, list | tuple) and data and all(isinstance(each, str | Path) for each in data)
    return " + ".join(source_name(each) for each in data) if several else source_name(data)


def _table(benchmark: Benchmark, loaded: Any, name: str, file: str = "", folder: Path = Path()) -> _Table:
    if not isinstance(loaded, Dataset):
        raise ValueError(f"A benchmark reads all of its rows, so {name} cannot be a stream. Pass a table or a file.")
    loaded = undecoded(loaded)
    return _Table(loaded, loaded.column_names, name, file, folder)


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).suffix.startswith(".json")


def _from_files(benchmark: Benchmark, path: Path, choice: DataChoice) -> _Found:
    tables = []
    for file in _files(benchmark, path):
        loaded = load_source(Source(data=str(file), name=file.name, columns=choice.columns))
        below = file.relative_to(path) if path.is_dir() else Path(file.name)
        tables.append(_table(benchmark, loaded, str(below), str(below.with_suffix("")), file.parent))
    return _Found(tables, shown_name(path))


def _files(benchmark: Benchmark, path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    for pattern in benchmark.patterns:
        found = sorted(each for each in path.glob(pattern) if each.is_file())
        if found:
            return found
    raise FileNotFoundError(
        f"{path} holds no {' or '.join(benchmark.patterns)}. {benchmark.title} reads {benchmark.local}."
    )


def _from_hub(benchmark: Benchmark, sources: Sequence[HubSource], revision: str | None) -> _Found:
    commits: dict[str, str] = {}
    tables = []
    for source in sources:
        try:
            if source.repo not in commits:
                info = HfApi().dataset_info(source.repo, revision=revision, timeout=_HUB_SECONDS)
                commits[source.repo] = str(info.sha)
            loaded: Any = load_dataset(source.repo, source.config, split=source.split, revision=commits[source.repo])
        except Exception as error:  # the client and `datasets` raise many types of errors for an unreachable Hub
            reason = (str(error) or type(error).__name__).strip().splitlines()[0]
            raise DataUnavailableError(
                f"{source.repo} (split {source.split}) could not be read from the Hub: {reason}. "
                f"Pass a local copy with `--data`: {benchmark.local}."
            ) from error
        table = _table(benchmark, loaded, f"{source.repo} ({', '.join(filter(None, (source.config, source.split)))})")
        if source.subset is not None:
            named = [{"id": place, **row, "subset": source.subset} for place, row in enumerate(loaded)]
            table = _Table(named, [*table.columns, "id", "subset"], table.name)
        tables.append(table)
    at = ", ".join(f"{repo}@{commit}" for repo, commit in commits.items())
    first = next(iter(commits))
    return _Found(tables, at, first, commits[first] if len(commits) == 1 else at)


def _read_table(benchmark: Benchmark, table: _Table) -> Iterator[Comparison | LeftOut]:
    missing = [name for name in benchmark.columns if name not in table.columns]
    if missing:
        raise ValueError(
            f"{table.name} lacks the columns {', '.join(missing)}, which {benchmark.title} needs. It has: "
            f"{', '.join(table.columns)}. Pass {benchmark.local}."
        )
    places = RowLocations(table.rows)
    for place, row in benchmark.gather(table.rows):
        try:
            as_mapping(row)
            empty = [name for name in benchmark.columns if row[name] is None]
            if empty:
                raise ValueError(f"`{empty[0]}` is empty. Correct the file, or use the official one.")
            row = _with_image(row, benchmark.image, table.folder) if benchmark.image else row
            found = benchmark.read(row, table.file, place)
            where = places.where(place, short=True)
            yield replace(found, place=where) if where and isinstance(found, Comparison) else found
        except PreferenceFormatError as error:
            raise ValueError(f"{_where(table, place)}: {error.message}") from None
        except ValueError as error:
            raise ValueError(f"{_where(table, place)}: {error}") from None


def _with_image(row: Mapping[str, Any], column: str, folder: Path) -> dict[str, Any]:
    from hf_reward.data.image_source import image_source  # noqa: PLC0415 - not for texts

    return {**row, column: image_source(row[column], folder=folder)}


def _where(table: _Table, place: int) -> str:
    return RowLocations(table.rows).where(place) or f"{table.name}, row {place}"


def _require_distinct(ids: Sequence[str], benchmark: Benchmark) -> None:
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        raise ValueError(
            f"Every row needs its own id, but the data has {counted(len(repeated), 'repeated id')}, such as "
            f"{', '.join(repeated[:3])}. For {benchmark.title}: {benchmark.order}. Remove the repeated rows or files."
        )


def _only(comparisons: list[Comparison], subsets: Sequence[str], benchmark: Benchmark) -> list[Comparison]:
    there = sorted({each.subset for each in comparisons if each.subset})
    unknown = [name for name in subsets if name not in there]
    if unknown:
        raise ValueError(
            f"{benchmark.title} has no subset {', '.join(map(repr, unknown))} in this data. Available: "
            f"{', '.join(there) or 'none'}."
        )
    return [each for each in comparisons if each.subset in subsets] if subsets else comparisons


def _content_hash(comparisons: Sequence[Comparison]) -> str:
    digest = hashlib.sha256()
    for each in comparisons:
        content = [each.id, each.prompt, list(each.responses), list(each.ranks), each.subset]
        digest.update(json.dumps(content, sort_keys=True, default=str).encode())  # an image is the hash of its bytes
    return digest.hexdigest()
