"""Settings, counts and report of a bulk run."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

FORMATS = ("jsonl", "parquet")


@dataclass(frozen=True, kw_only=True)
class BulkSettings:
    """Settings of a bulk run."""

    columns: Mapping[str, str] | None = None
    """Standard column name -> column name in the data."""
    rank: bool = False
    """Rank the `responses` of each row: add `rank` and `best` to the rewards."""
    reward_column: str = "reward"
    rank_column: str = "rank"
    best_column: str = "best"
    allow_empty: bool = False
    """Score empty responses instead of rejecting them."""
    split: str = "train"
    """Split of a Hub id."""
    input_format: str = "jsonl"
    """Format of standard input: jsonl, csv or parquet."""
    output_format: str = ""
    """Format of the shards in an output folder: jsonl or parquet; by default parquet for Parquet inputs, else jsonl."""
    rows_per_shard: int = 10_000
    """Maximum number of rows in a shard, which is the most that an interruption loses."""
    requests_per_pass: int = 10_000
    """Maximum number of responses per call of the scorer, unless one row has more. Duplicates are found within a
    call."""
    bytes_per_pass: int = 32 * 2**20
    """Maximum size of their texts, which bounds memory for long texts."""
    resume: bool = False
    """Resume an interrupted run; start a new one if there is none."""
    overwrite: bool = False
    """Replace an earlier run's output."""
    part: tuple[int, int] | None = None
    """`(i, n)`: score shards i, i + n, i + 2n, ... (i from 0). The other parts share the output folder and may run
    on other machines and at other times."""
    show_progress: bool | None = None
    """Show a progress bar; by default on a terminal."""

    def __post_init__(self) -> None:
        for name in ("rows_per_shard", "requests_per_pass", "bytes_per_pass"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, but is {getattr(self, name)}.")
        if self.output_format not in ("", *FORMATS):
            raise ValueError(f"`output_format` must be {' or '.join(FORMATS)}, but is {self.output_format!r}.")
        if self.input_format not in ("csv", *FORMATS):
            raise ValueError(f"`input_format` must be csv, {' or '.join(FORMATS)}, but is {self.input_format!r}.")
        if self.resume and self.overwrite:
            raise ValueError("`resume` keeps an earlier output and `overwrite` removes it. Choose one.")
        if self.part is not None and not 0 <= self.part[0] < self.part[1]:
            raise ValueError(f"`part` must be i/n with i from 0 to n - 1, but is {self.part[0]}/{self.part[1]}.")
        if self.part is not None and self.overwrite:
            raise ValueError(
                "`overwrite` with `part` would remove the shards of other parts. Remove the folder yourself."
            )
        if len({*self.added_columns, "id"}) != len(self.added_columns) + 1:
            raise ValueError(
                f"The added columns must have distinct names, other than `id`, but are {', '.join(self.added_columns)}."
            )

    @property
    def added_columns(self) -> tuple[str, ...]:
        """Columns that are added to the output, except `id`."""
        return (self.reward_column, self.rank_column, self.best_column) if self.rank else (self.reward_column,)

    def for_identity(self) -> dict[str, Any]:
        """Return the settings that affect the bytes of the output, as JSON values."""
        outside = ("resume", "overwrite", "part", "show_progress", "split", "input_format", "output_format")
        return {name: value for name, value in asdict(self).items() if name not in outside}


def parse_part(text: str) -> tuple[int, int]:
    """Parse a part `i/n` of the command line.

    Args:
        text: For example "0/8"; i counts from 0.

    Returns:
        i and n.

    Raises:
        ValueError: If the text has another form.
    """
    number, slash, count = text.partition("/")
    if not (slash and number.strip().isdecimal() and count.strip().isdecimal()):
        raise ValueError(f"A part must have the form i/n with i from 0 to n - 1, for example 0/8, but is {text!r}.")
    return int(number), int(count)


@dataclass(kw_only=True)
class Counts:
    """Counts of one shard or of a run."""

    rows_in: int = 0
    rows_out: int = 0
    quarantined: dict[str, int] = field(default_factory=dict)
    """Reason -> number of rejected rows."""
    responses: int = 0
    """Responses in all valid rows."""
    distinct: int = 0
    """Responses passed to the scorer; the others are duplicates within a pass."""
    cut: int = 0
    """Distinct responses whose prompt was truncated to fit the model."""
    tokens: int = 0
    """Tokens of the distinct responses."""

    def add(self, other: "Counts") -> None:
        """Add the counts of another shard."""
        for name in ("rows_in", "rows_out", "responses", "distinct", "cut", "tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for reason, rows in other.quarantined.items():
            self.quarantine(reason, rows)

    def quarantine(self, reason: str, rows: int = 1) -> None:
        """Count rejected rows."""
        known = reason in self.quarantined or len(self.quarantined) < 50
        reason = reason if known else "other reasons"
        self.quarantined[reason] = self.quarantined.get(reason, 0) + rows


@dataclass(frozen=True, kw_only=True)
class BulkReport:
    """Report of a bulk run."""

    out: str
    """The output file or folder."""
    quarantine: str | None
    """The file or folder with rejected rows, None if there are none."""
    complete: bool
    """Whether all shards are finished, including those of other processes."""
    shards: int
    """Number of shards of the run."""
    finished_before: int
    """Number of this process's shards that were finished before and not scored again."""
    counts: Counts
    """Counts of all finished shards; with several processes, of this process's shards."""
    seconds: float
    """Duration of this execution."""
    rows_per_second: float
    """Speed of this execution, reading and writing included."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)
