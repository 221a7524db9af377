"""The results of a data check as one object that becomes JSON."""

import warnings
from dataclasses import asdict, dataclass, field
from typing import Any

from hf_reward.data.python_values import json_value
from hf_reward.evaluation.data_check.consistency import Contradictions
from hf_reward.evaluation.data_check.duplicates import Duplicates
from hf_reward.evaluation.data_check.histograms import Histogram
from hf_reward.evaluation.data_check.imbalance import Imbalance
from hf_reward.evaluation.data_check.label_noise import LabelNoise
from hf_reward.evaluation.data_check.leakage import Leakage
from hf_reward.evaluation.data_check.shift import DomainShift
from hf_reward.evaluation.data_check.token_fit import TokenFit
from hf_reward.evaluation.data_check.trivial_baselines import TrivialBaselines
from hf_reward.evaluation.data_check.votes import VoteAgreement
from hf_reward.metrics.counts import counted


@dataclass(frozen=True, kw_only=True)
class RowCounts:
    """Numbers of rows of one data set."""

    name: str
    rows: int
    usable: int
    strict_pairs: int
    """Pairs of responses to one prompt, one of which is strictly preferred."""
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
    """`blank_prompt`: usable rows with a blank prompt; `repeated_prompt`: usable rows whose sides repeat the prompt."""
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
    """`prompt`, `chosen`, `rejected` (or another response or column) -> the start of its text."""


@dataclass(frozen=True, kw_only=True)
class Fix:
    """One problem to fix before any number of a model is trusted."""

    finding: str
    harm: float
    """Share of affected rows times a weight, for the order of the list only; see `fix_first`."""
    affected: int
    """Number of affected rows (or of another `unit`)."""
    total: int
    """All rows that were checked."""
    unit: str = "row"
    found: str
    remedy: str
    examples: list[Example] = field(default_factory=list)

    @property
    def cure(self) -> str:
        """Deprecated name of `remedy`, removed in version 0.3."""
        message = "`Fix.cure` is now `remedy`; the old name will be removed in version 0.3"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return self.remedy

    @property
    def scope(self) -> str:
        """The affected rows in words, such as `3 of 40 rows (7.5%)`."""
        total = counted(self.total, self.unit)
        return f"{self.affected:,} of {total} ({self.affected / max(self.total, 1):.1%})"


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """Results of `check_data`. Row numbers start at 0 and continue through the sources of a mixture."""

    data: RowCounts
    eval_data: RowCounts | None
    duplicates: Duplicates
    contradictions: Contradictions
    leakage: Leakage | None
    """None without evaluation data."""
    shift: DomainShift | None
    """None without evaluation data."""
    histograms: list[Histogram]
    """Lengths and gaps, in tokens if a tokenizer was given."""
    imbalances: list[Imbalance]
    shallow_rules: TrivialBaselines | None
    """None without a strict preference."""
    label_noise: LabelNoise | None
    """None without scikit-learn, or with strict preferences in fewer than two prompt groups."""
    votes: VoteAgreement | None
    """None if no row has two votes."""
    tokens: TokenFit | None
    """None without a tokenizer."""
    fix_first: list[Fix]
    """Worst first; empty if nothing stands out."""
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values; a missing number is None."""
        content = json_value(asdict(self))
        for fix in content["fix_first"]:
            fix["cure"] = fix["remedy"]  # name of the key before 0.2
        return content

    def length(self, feature: str = "words") -> Imbalance:
        """Return the imbalance of one feature.

        Args:
            feature: One of `style_features.FEATURES`.

        Returns:
            How often the response with more of it is preferred.

        Raises:
            KeyError: If there is no such feature.
        """
        return {found.feature: found for found in self.imbalances}[feature]
