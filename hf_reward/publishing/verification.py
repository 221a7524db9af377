"""Result of a verification: a list of checks."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Check:
    """Result of one check."""

    name: str
    passed: bool
    detail: str
    difference: float | None = None
    """Largest difference of rewards relative to max(1, |reward|)."""
    allowed: float | None = None


@dataclass(kw_only=True)
class Verification:
    """Result of `verify_checkpoint`."""

    folder: str
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether all checks passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def failures(self) -> list[Check]:
        """The failed checks."""
        return [check for check in self.checks if not check.passed]

    def largest_difference(self, *names: str) -> float:
        """Return the largest difference of the checks whose names start with `names` (default: all rewards).

        Infinite if a reward is not finite.
        """
        found = [check.difference for check in self.checks if check.name.startswith(names or ("rewards, ",))]
        return max((math.inf if each is None else each for each in found), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {"equal": self.equal, **asdict(self)}

    def __str__(self) -> str:
        if self.equal:
            largest = self.largest_difference("rewards, float32")
            return f"{self.folder}: equal (largest difference in float32 {largest:.1e})"
        return f"{self.folder}: differs: " + "; ".join(f"{each.name}: {each.detail}" for each in self.failures)


class VerificationError(ValueError):
    """A folder does not give the expected rewards."""

    def __init__(self, message: str, verification: Verification | None = None) -> None:
        super().__init__(message)
        self.verification = verification
