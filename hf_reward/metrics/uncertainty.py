"""Rewards of several heads -> mean, spread and lower bound.

Pure numpy: nothing here knows about models. Shapes: R responses, M heads.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class UncertainRewards:
    """Rewards of some responses by each of several heads."""

    heads: np.ndarray
    """Rewards, NaN where there is none, shape `(R, M)`, float32."""
    beta: float = 1.0
    """Standard deviations that `lower_bound` takes off."""

    @property
    def mean(self) -> np.ndarray:
        """Mean over heads, the reward of the saved model but for rounding, shape `(R,)`, float32."""
        return self.heads.mean(1, dtype=np.float64).astype(np.float32)

    @property
    def std(self) -> np.ndarray:
        """Standard deviation over heads with M - 1 degrees of freedom, in reward units, shape `(R,)`, float32."""
        return self.heads.std(1, ddof=1, dtype=np.float64).astype(np.float32)

    @property
    def lower_bound(self) -> np.ndarray:
        """`mean - beta * std`, shape `(R,)`, float32.

        A policy or a best-of-n choice that maximises it is drawn less to responses on which the heads disagree.

        Source:
            Coste et al. (2024), "Reward model ensembles help mitigate overoptimization", section 3.2, subtract a
            weighted variance over members; here the standard deviation, which has the unit of the reward.
        """
        return (self.mean - self.beta * self.std).astype(np.float32)


def check_beta(name: str, beta: float) -> None:
    """Refuse a number of standard deviations that is none.

    Args:
        name: Name of the setting.
        beta: Its value.

    Raises:
        ValueError: If it is below 0 or not finite.
    """
    if not (np.isfinite(beta) and beta >= 0):
        raise ValueError(
            f"`{name}` is the number of standard deviations below the mean: a finite number of 0 or more, "
            f"but is {beta!r}."
        )
