"""What a data check found, as one object that becomes JSON."""

from dataclasses import asdict, dataclass, field
from typing import Any

from hf_reward.data.python_values import json_value
from hf_reward.evaluation.data_check.consistency import Contradictions
from hf_reward.evaluation.data_check.duplicates import Duplicates
from hf_reward.evaluation.data_check.imbalance import Imbalance
from hf_reward.evaluation.data_check.leakage import Leakage
from hf_reward.evaluation.data_check.shallow_rules import ShallowRules
from hf_reward.evaluation.data_check.shift import DomainShift
from hf_reward.evaluation.data_check.token_fit import TokenFit
from hf_reward.evaluation.data_check.votes import VoteAgreement


@dataclass(frozen=True, kw_only=True)
class RowCounts:
    """What the rows of one data set are."""

    name: str
    rows: int
    usable: int
    strict_pairs: int
    """Pairs of responses of a usable row of which one is strictly preferred."""
    tied_rows: int
    """Usable rows without a strict preference."""
    layouts: dict[str, int]
    """Layout -> usable rows."""
    unusable: dict[str, int]
    """Reason -> rows."""
    unusable_rows: dict[str, list[int]]
    """Reason -> the first few of them."""
    prompts_differed: int
    """Rows whose two sides came with different prompts; the turns that both share are the prompt."""
    prompts_differed_rows: list[int]
    remarks: dict[str, int]
    """`blank_prompt`: usable rows whose prompt says nothing; `repeated_prompt`: whose sides hold the prompt too."""
    remark_rows: dict[str, list[int]]
    """Remark -> the first of these rows."""
    transcripts: int
    """Rows read as plain text that look like `Human:` and `Assistant:` transcripts."""
    places: dict[int, str] = field(default_factory=dict)
    """Number of a row that is named here -> its file and line."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row of a finding, shortened for reading."""

    row: int
    place: str
    """File and line, or the row's number again."""
    texts: dict[str, str]
    """What is shown -> its beginning."""


@dataclass(frozen=True, kw_only=True)
class Fix:
    """One thing to mend before a number of a model is trusted."""

    finding: str
    harm: float
    """For the order only: affected share of the rows, times how wrong they are (`fix_first`)."""
    found: str
    cure: str
    examples: list[Example] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What `check_data` found. Row numbers count from 0, through the sources of a mixture one after the other."""

    data: RowCounts
    eval_data: RowCounts | None
    duplicates: Duplicates
    contradictions: Contradictions
    leakage: Leakage | None
    """None without evaluation data."""
    shift: DomainShift | None
    """None without evaluation data."""
    imbalances: list[Imbalance]
    shallow_rules: ShallowRules | None
    """None without a strict preference."""
    votes: VoteAgreement | None
    """None if no row has two votes."""
    tokens: TokenFit | None
    """None without a tokenizer."""
    fix_first: list[Fix]
    """Worst first; empty if nothing stands out."""
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values; a number that does not exist is None."""
        return json_value(asdict(self))

    def length(self, feature: str = "words") -> Imbalance:
        """The imbalance of one feature.

        Args:
            feature: One of `style_features.FEATURES`.

        Returns:
            How often the response with more of it is preferred.

        Raises:
            KeyError: If there is no such feature.
        """
        return {found.feature: found for found in self.imbalances}[feature]
