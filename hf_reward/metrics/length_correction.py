"""Estimate the part of a reward that length explains, and subtract it.

A smooth curve of reward over length is fitted to scored responses and subtracted from rewards. No training and no
preference labels are needed. The correction also removes differences in quality that correlate with length.

Shapes: R responses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_reward.metrics.arrays import FloatArray

MAX_KNOTS = 64
MIN_RESPONSES = 20
UNIT = "characters"
_DELTA = 0.01
"""Share of the range of log lengths within which the curve is taken to be straight: 100 local fits are enough."""


@dataclass(frozen=True, kw_only=True)
class LengthCorrection:
    """A piecewise linear function of response length that is subtracted from the reward.

    Raises:
        ValueError: If the knots and values do not define such a function.
    """

    knots: tuple[float, ...]
    """Lengths in characters, ascending."""
    values: tuple[float, ...]
    """Correction at each knot, in reward units; its mean over the fitted responses is 0."""
    frac: float
    """Share of the responses in each local fit."""
    num_responses: int
    """Number of responses in the fit."""
    data: str = ""
    """A note on the source of the responses."""

    def __post_init__(self) -> None:
        knots, values = np.asarray(self.knots, dtype=float), np.asarray(self.values, dtype=float)
        if len(knots) < 2 or knots.shape != values.shape or knots.ndim != 1:
            raise ValueError(
                f"A length correction needs at least two `knots` and one value per knot, but has {len(self.knots)} "
                f"knots and {len(self.values)} values. Fit it again."
            )
        finite = bool(np.isfinite(knots).all() and np.isfinite(values).all())
        if not (finite and knots[0] >= 0 and (np.diff(knots) > 0).all()):
            raise ValueError(
                "The `knots` of a length correction must be 0 or more and strictly increasing, and all numbers must be "
                f"finite, but `knots` are {self.knots} and `values` are {self.values}. Fit it again."
            )

    def at(self, lengths: ArrayLike) -> FloatArray:
        """Return the correction at given lengths; it is constant beyond the outermost knots.

        Args:
            lengths: Characters of each response, shape `(R,)`.

        Returns:
            The correction, in reward units, shape `(R,)`, float64.
        """
        return np.interp(_scale(np.asarray(lengths, dtype=float)), _scale(np.asarray(self.knots)), self.values)

    def apply(self, rewards: ArrayLike, lengths: ArrayLike) -> FloatArray:
        """Subtract the correction from rewards.

        Args:
            rewards: Rewards, shape `(R,)`.
            lengths: Characters of each response, shape `(R,)`.

        Returns:
            reward - f(length), shape `(R,)`; float32 if the rewards are float32, else float64.
        """
        found = np.asarray(rewards)
        corrected = found - self.at(lengths)
        return corrected.astype(np.float32) if found.dtype == np.float32 else corrected

    def to_dict(self) -> dict[str, Any]:
        """Return the correction as JSON values."""
        return {"unit": UNIT, **vars(self), "knots": list(self.knots), "values": list(self.values)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "LengthCorrection":
        """Create a correction from the JSON values of `to_dict`.

        Args:
            content: The JSON values.

        Returns:
            The correction.

        Raises:
            ValueError: If the content is not a length correction, or its unit is not characters.
        """
        unit = content.get("unit")
        if unit != UNIT:
            raise ValueError(f"The `unit` of a length correction must be {UNIT!r}, but is {unit!r}. Fit it again.")
        try:
            return cls(
                knots=tuple(map(float, content["knots"])),
                values=tuple(map(float, content["values"])),
                frac=float(content["frac"]),
                num_responses=int(content["num_responses"]),
                data=str(content.get("data", "")),
            )
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(
                "A length correction must have numbers in `knots`, `values`, `frac` and `num_responses`, but reading "
                f"them failed with {error!r}. Fit it again."
            ) from error


def fit_length_correction(
    rewards: ArrayLike, lengths: ArrayLike, *, frac: float = 0.5, data: str = ""
) -> LengthCorrection:
    """Fit reward as a function of length: LOWESS of reward over log(1 + characters), with three robust passes.

    Args:
        rewards: Rewards of responses to many prompts, shape `(R,)`.
        lengths: Characters of each response, shape `(R,)`.
        frac: Share of the responses in each local fit, in (0, 1]; larger is smoother.
        data: A note on the source of the responses.

    Returns:
        The curve at up to 64 quantiles of the lengths, shifted to mean 0 over these responses, so that their mean
        reward does not change.

    Raises:
        ValueError: If shapes differ, numbers are not finite, or there are too few lengths or too many equal ones.
        ImportError: If statsmodels is not installed.

    Source:
        Huang et al. (2024), "Post-hoc reward calibration: a case study on length bias", section 3, its locally weighted
        regression; Cleveland (1979) for LOWESS.
    """
    found, sizes = _checked(rewards, lengths)
    if not 0 < frac <= 1:
        raise ValueError(f"`frac`, the share of the responses in each local fit, must be in (0, 1], but is {frac}.")
    _require_different_lengths(sizes, frac)
    scaled = _scale(sizes)
    curve = _smooth(found, scaled, frac, passes=3)
    curve = curve[np.isfinite(curve[:, 1])]  # if all residuals are 0, the robust weights are 0 / 0
    if not len(curve):
        curve = _smooth(found, scaled, frac, passes=0)
    knots = np.unique(np.quantile(sizes, np.linspace(0, 1, MAX_KNOTS)))
    values = np.interp(_scale(knots), curve[:, 0], curve[:, 1])
    values = values - np.interp(scaled, _scale(knots), values).mean()
    return LengthCorrection(
        knots=tuple(knots.tolist()), values=tuple(values.tolist()), frac=frac, num_responses=len(found), data=data
    )


def _smooth(rewards: FloatArray, scaled: FloatArray, frac: float, passes: int) -> FloatArray:
    """Return the sorted lengths and the LOWESS of the rewards at each, shape `(R, 2)`."""
    try:
        from statsmodels.nonparametric.smoothers_lowess import lowess  # noqa: PLC0415 - not part of a bare install
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "statsmodels":
            raise
        remedy = 'Install it with: pip install "hf_reward[audit]"'
        raise ImportError(
            f"Fitting a length correction requires statsmodels, which is not installed. {remedy}"
        ) from error
    return np.asarray(lowess(rewards, scaled, frac=frac, it=passes, delta=_DELTA * float(np.ptp(scaled))), dtype=float)


def cross_fitted_correction(
    rewards: ArrayLike,
    lengths: ArrayLike,
    groups: Sequence[Any] | NDArray[Any],
    folds: int = 5,
    seed: int = 0,
    *,
    frac: float = 0.5,
) -> FloatArray:
    """Correct each response with a curve that was fitted to the other folds, for an unbiased accuracy.

    Args:
        rewards: Rewards, shape `(R,)`.
        lengths: Characters of each response, shape `(R,)`.
        groups: Prompt of each response, shape `(R,)`.
        folds: Number of random parts of the prompts.
        seed: Random seed of the parts.
        frac: As in `fit_length_correction`.

    Returns:
        Corrected rewards, shape `(R,)`, float64. Compare them only within a prompt, because each fold has its own
        curve.

    Raises:
        ValueError: As in `fit_length_correction`, or if there are fewer prompts than folds.
    """
    found, sizes = _checked(rewards, lengths)
    if len(groups) != len(found):
        raise ValueError(
            f"`groups` must have one prompt per reward, but has {len(groups)} entries for {len(found)} rewards. Pass "
            "the prompt of each response."
        )
    names, place = np.unique(np.asarray(groups), return_inverse=True)
    if not 2 <= folds <= len(names):
        raise ValueError(f"`folds` must be between 2 and the number of prompts ({len(names)}), but is {folds}.")
    fold_of_name = np.random.default_rng(seed).permutation(len(names)) % folds
    fold = fold_of_name[place]
    corrected = np.empty_like(found)
    for number in range(folds):
        held_out = fold == number
        curve = fit_length_correction(found[~held_out], sizes[~held_out], frac=frac)
        corrected[held_out] = curve.apply(found[held_out], sizes[held_out])
    return corrected


def _scale(lengths: FloatArray) -> FloatArray:
    """Scale lengths so that doubling a length is the same distance at any length."""
    return np.log1p(lengths)


def _checked(rewards: ArrayLike, lengths: ArrayLike) -> tuple[FloatArray, FloatArray]:
    found, sizes = np.asarray(rewards, dtype=np.float64), np.asarray(lengths, dtype=np.float64)
    if found.ndim != 1 or found.shape != sizes.shape:
        raise ValueError(
            f"`rewards` and `lengths` must both have shape (R,), but have {found.shape} and {sizes.shape}."
        )
    if not np.isfinite(found).all() or not np.isfinite(sizes).all() or (sizes < 0).any():
        raise ValueError(
            "`rewards` must be finite and `lengths` must be finite and 0 or more, but some are not. Leave out "
            "responses without a reward."
        )
    return found, sizes


def _require_different_lengths(lengths: FloatArray, frac: float) -> None:
    """Refuse data in which one length fills a local fit: the slope is then undefined and LOWESS returns noise."""
    if len(lengths) < MIN_RESPONSES:
        raise ValueError(
            f"A length correction needs at least {MIN_RESPONSES} responses (hundreds are recommended), but "
            f"the data has {len(lengths)}. Add scored responses."
        )
    commonest = int(np.unique(lengths, return_counts=True)[1].max())
    if commonest > frac * len(lengths) / 2:
        raise ValueError(
            f"At most {frac / 2:.0%} of the responses may have the same length with `frac={frac}`, but {commonest} of "
            f"{len(lengths)} do. Add responses of different lengths or increase `frac`."
        )
