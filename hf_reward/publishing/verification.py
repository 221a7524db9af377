"""What a verification looked at and found, check by check."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    passed: bool
    detail: str
    difference: float | None = None
    """Largest difference of rewards relative to max(1, |reward|)."""
    allowed: float | None = None


@dataclass(kw_only=True)
class Verification:
    """What `verify_checkpoint` found."""

    folder: str
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether everything that was looked at is as it was saved."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def failures(self) -> list[Check]:
        """The checks that did not pass."""
        return [check for check in self.checks if not check.passed]

    def largest_difference(self, *names: str) -> float:
        """Of the checks whose names start so (by default of all rewards); infinite where a reward is not finite."""
        found = [check.difference for check in self.checks if check.name.startswith(names or ("rewards, ",))]
        return max((math.inf if each is None else each for each in found), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"equal": self.equal, **asdict(self)}

    def __str__(self) -> str:
        if self.equal:
            largest = self.largest_difference("rewards, float32")
            return f"{self.folder}: equal (largest difference in float32 {largest:.1e})"
        return f"{self.folder}: differs: " + "; ".join(f"{each.name}: {each.detail}" for each in self.failures)


class VerificationError(ValueError):
    """A folder does not give the rewards that it should."""

    def __init__(self, message: str, verification: Verification | None = None) -> None:
        super().__init__(message)
        self.verification = verification
