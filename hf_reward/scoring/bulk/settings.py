"""What a bulk run is told, and what it reports."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

FORMATS = ("jsonl", "parquet")


@dataclass(frozen=True, kw_only=True)
class BulkSettings:
    """How tables are scored."""

    columns: Mapping[str, str] | None = None
    """Our name -> the data's own column name."""
    rank: bool = False
    """Whether rows hold `responses` to be ranked: `rank` and `best` are added to their rewards."""
    reward_column: str = "reward"
    rank_column: str = "rank"
    best_column: str = "best"
    allow_empty: bool = False
    """Whether empty responses are scored rather than put aside."""
    split: str = "train"
    """Split of a Hub id."""
    input_format: str = "jsonl"
    """What standard input holds: jsonl, csv or parquet."""
    output_format: str = ""
    """What a folder of outputs holds: jsonl or parquet; by default parquet for Parquet inputs, else jsonl."""
    rows_per_shard: int = 10_000
    """Rows of an output shard, at most: what a kill can cost."""
    requests_per_pass: int = 10_000
    """Responses that are handed to the scorer at once, at most, unless one row has more; equal ones are found among
    these."""
    bytes_per_pass: int = 32 * 2**20
    """The same for their texts: with long texts memory stays bounded."""
    resume: bool = False
    """Go on with what an interrupted run left; starts anew if there is nothing."""
    overwrite: bool = False
    """Replace an earlier run's output."""
    part: tuple[int, int] | None = None
    """`(i, n)`: this process scores every n-th shard from the i-th on, i from 0, and shares the folder with the other
    n - 1, which may run anywhere and at any time."""
    show_progress: bool | None = None
    """Show a bar; by default where there is a terminal."""

    def __post_init__(self) -> None:
        for name in ("rows_per_shard", "requests_per_pass", "bytes_per_pass"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, but is {getattr(self, name)}.")
        if self.output_format not in ("", *FORMATS):
            raise ValueError(f"`output_format` must be {' or '.join(FORMATS)}, but is {self.output_format!r}.")
        if self.input_format not in ("csv", *FORMATS):
            raise ValueError(f"`input_format` must be csv, {' or '.join(FORMATS)}, but is {self.input_format!r}.")
        if self.resume and self.overwrite:
            raise ValueError("`resume` keeps what is there and `overwrite` removes it. Choose one.")
        if self.part is not None and not 0 <= self.part[0] < self.part[1]:
            raise ValueError(f"`part` must be i/n with i from 0 to n - 1, but is {self.part[0]}/{self.part[1]}.")
        if self.part is not None and self.overwrite:
            raise ValueError("`overwrite` with `part` would remove what other parts wrote. Remove the folder yourself.")
        if len({*self.added_columns, "id"}) != len(self.added_columns) + 1:
            raise ValueError(f"The added columns need different names, and not `id`: {', '.join(self.added_columns)}.")

    @property
    def added_columns(self) -> tuple[str, ...]:
        """Columns that the output has beside `id` and those of the input."""
        return (self.reward_column, self.rank_column, self.best_column) if self.rank else (self.reward_column,)

    def deciding(self) -> dict[str, Any]:
        """What decides the bytes of the output, as JSON values."""
        outside = ("resume", "overwrite", "part", "show_progress", "split", "input_format", "output_format")
        return {name: value for name, value in asdict(self).items() if name not in outside}


def parse_part(text: str) -> tuple[int, int]:
    """Read `i/n` as a command line states it.

    Args:
        text: Such as "0/8", i from 0.

    Returns:
        i and n.

    Raises:
        ValueError: If it is no such text.
    """
    number, slash, count = text.partition("/")
    if not (slash and number.strip().isdecimal() and count.strip().isdecimal()):
        raise ValueError(f"A part is i/n with i from 0 to n - 1, as 0/8, but this is {text!r}.")
    return int(number), int(count)


@dataclass(kw_only=True)
class Counts:
    """What was counted in one shard or in all."""

    rows_in: int = 0
    rows_out: int = 0
    quarantined: dict[str, int] = field(default_factory=dict)
    """Reason -> rows."""
    responses: int = 0
    """Responses that a reward was wanted for."""
    distinct: int = 0
    """Those of them that were handed to the scorer; the others are equal to one of the same pass."""
    cut: int = 0
    """Those of the distinct whose prompt was cut to fit the model."""
    tokens: int = 0
    """Tokens of the distinct."""

    def add(self, other: "Counts") -> None:
        """Add the counts of another shard."""
        for name in ("rows_in", "rows_out", "responses", "distinct", "cut", "tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for reason, rows in other.quarantined.items():
            self.quarantine(reason, rows)

    def quarantine(self, reason: str, rows: int = 1) -> None:
        """Count rows that were put aside."""
        known = reason in self.quarantined or len(self.quarantined) < 50
        reason = reason if known else "other reasons"
        self.quarantined[reason] = self.quarantined.get(reason, 0) + rows


@dataclass(frozen=True, kw_only=True)
class BulkReport:
    """What a bulk run did."""

    out: str
    """The file or folder of outputs."""
    quarantine: str | None
    """The file or folder with rows that have no reward, None if there is none."""
    complete: bool
    """Whether every shard is finished, those of other processes too, as far as this process sees."""
    shards: int
    """Shards of the whole run."""
    finished_before: int
    """Shards that an earlier start had finished and that were not done again, of this process."""
    counts: Counts
    """Of all finished shards; of its own for one of several processes."""
    seconds: float
    """Of this start."""
    rows_per_second: float
    """Of this start, reading and writing included."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)
