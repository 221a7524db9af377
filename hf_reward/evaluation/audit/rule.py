"""The families of probes, and the settings of an audit."""

from dataclasses import dataclass

from hf_reward.evaluation.audit.families.accuracy import ACCURACY
from hf_reward.evaluation.audit.families.calibration import CALIBRATION
from hf_reward.evaluation.audit.families.confidence import CONFIDENCE
from hf_reward.evaluation.audit.families.degenerate import DEGENERATE
from hf_reward.evaluation.audit.families.formatting import FORMAT
from hf_reward.evaluation.audit.families.image import IMAGE
from hf_reward.evaluation.audit.families.length import LENGTH
from hf_reward.evaluation.audit.families.numerical import NUMERICAL
from hf_reward.evaluation.audit.families.persona import PERSONA
from hf_reward.evaluation.audit.families.robustness import ROBUSTNESS
from hf_reward.evaluation.audit.families.selection import SELECTION
from hf_reward.evaluation.audit.families.sycophancy import SYCOPHANCY
from hf_reward.evaluation.audit.family import Family
from hf_reward.evaluation.audit.inputs.audit_inputs import FULL, Profile

FAMILIES = (
    ACCURACY,
    LENGTH,
    CALIBRATION,
    SYCOPHANCY,
    FORMAT,
    DEGENERATE,
    IMAGE,
    ROBUSTNESS,
    CONFIDENCE,
    PERSONA,
    NUMERICAL,
    SELECTION,
)
"""The families in order of importance."""


@dataclass(frozen=True, kw_only=True)
class AuditRule:
    """Settings of an audit."""

    profile: Profile = FULL
    families: tuple[str, ...] = ()
    """Names of the families to run; empty for those of the profile."""
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        known = [family.name for family in FAMILIES]
        unknown = [name for name in self.families if name not in known]
        if unknown:
            raise ValueError(f"Unknown family: {', '.join(unknown)}. Choose from {', '.join(known)}.")
        if self.resamples < 200:
            raise ValueError(f"`resamples` must be 200 or more, but is {self.resamples}.")

    def chosen(self) -> list[Family]:
        """Return the families to run."""
        names = self.families or self.profile.families
        return [family for family in FAMILIES if not names or family.name in names]
