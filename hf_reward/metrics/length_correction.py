"""Rewards and lengths of many responses -> the part of a reward that length explains, and rewards without it.

Nothing is trained: a smooth curve of reward over length is fitted and taken off. It knows no labels, so any responses
that the model has scored will do. It takes off the good that goes with length too.

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
    """What to take off a reward because of the length of its response: straight lines between knots.

    Raises:
        ValueError: If it is no such curve; the message says what is wrong.
    """

    knots: tuple[float, ...]
    """Lengths in characters, ascending."""
    values: tuple[float, ...]
    """What is taken off at each knot, in reward units; the mean over the fitted responses is 0."""
    frac: float
    """Share of the responses that each local fit reads."""
    num_responses: int
    """Responses it was fitted on."""
    data: str = ""
    """A note on where those came from."""

    def __post_init__(self) -> None:
        knots, values = np.asarray(self.knots, dtype=float), np.asarray(self.values, dtype=float)
        if len(knots) < 2 or knots.shape != values.shape or knots.ndim != 1:
            raise ValueError(
                f"A length correction needs two or more `knots` and as many `values`, but has {len(self.knots)} and "
                f"{len(self.values)}. Fit it again."
            )
        finite = bool(np.isfinite(knots).all() and np.isfinite(values).all())
        if not (finite and knots[0] >= 0 and (np.diff(knots) > 0).all()):
            raise ValueError(
                "The `knots` of a length correction must ascend from 0 or more, and all its numbers be finite. Fit it "
                "again."
            )

    def at(self, lengths: ArrayLike) -> FloatArray:
        """What is taken off a reward; beyond the outermost knots it stays as it is there.

        Args:
            lengths: Characters of each response, shape `(R,)`.

        Returns:
            The correction, in reward units, shape `(R,)`, float64.
        """
        return np.interp(_scale(np.asarray(lengths, dtype=float)), _scale(np.asarray(self.knots)), self.values)

    def apply(self, rewards: ArrayLike, lengths: ArrayLike) -> FloatArray:
        """Take the correction off rewards.

        Args:
            rewards: Rewards, shape `(R,)`.
            lengths: Characters of each response, shape `(R,)`.

        Returns:
            reward - f(length), shape `(R,)`, float32 where the rewards are, else float64.
        """
        found = np.asarray(rewards)
        corrected = found - self.at(lengths)
        return corrected.astype(np.float32) if found.dtype == np.float32 else corrected

    def to_dict(self) -> dict[str, Any]:
        """The correction as JSON values."""
        return {"unit": UNIT, **vars(self), "knots": list(self.knots), "values": list(self.values)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "LengthCorrection":
        """Read what `to_dict` made.

        Args:
            content: The JSON values.

        Returns:
            The correction.

        Raises:
            ValueError: If it is no correction, or counts lengths in another unit.
        """
        unit = content.get("unit")
        if unit != UNIT:
            raise ValueError(f"A length correction must count {UNIT}, but `unit` is {unit!r}. Fit it again.")
        try:
            return cls(
                knots=tuple(map(float, content["knots"])),
                values=tuple(map(float, content["values"])),
                frac=float(content["frac"]),
                num_responses=int(content["num_responses"]),
                data=str(content.get("data", "")),
            )
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"This is no length correction ({error!r}). Fit it again.") from error


def fit_length_correction(
    rewards: ArrayLike, lengths: ArrayLike, *, frac: float = 0.5, data: str = ""
) -> LengthCorrection:
    """Fit how reward goes with length: LOWESS of reward over log(1 + characters), with three robust passes.

    Args:
        rewards: Rewards of responses to many prompts, shape `(R,)`.
        lengths: Characters of each response, shape `(R,)`.
        frac: Share of the responses that each local fit reads, in (0, 1]; larger is smoother.
        data: A note on where the responses came from.

    Returns:
        The curve at up to 64 quantiles of the lengths, shifted so that its mean over these responses is 0: their mean
        reward stays.

    Raises:
        ValueError: If shapes differ, numbers are not finite, or the lengths are too few or too equal for a curve.
        ImportError: If statsmodels is not installed.

    Source:
        Huang et al. (2024), "Post-hoc reward calibration: a case study on length bias", section 3, its locally weighted
        regression; Cleveland (1979) for LOWESS.
    """
    found, sizes = _checked(rewards, lengths)
    if not 0 < frac <= 1:
        raise ValueError(f"`frac={frac}` must be in (0, 1]: the share of the responses that each local fit reads.")
    _require_variety(sizes, frac)
    scaled = _scale(sizes)
    curve = _smooth(found, scaled, frac, passes=3)
    curve = curve[np.isfinite(curve[:, 1])]  # where nothing is left to explain, the robust weights are 0 / 0
    if not len(curve):
        curve = _smooth(found, scaled, frac, passes=0)
    knots = np.unique(np.quantile(sizes, np.linspace(0, 1, MAX_KNOTS)))
    values = np.interp(_scale(knots), curve[:, 0], curve[:, 1])
    values = values - np.interp(scaled, _scale(knots), values).mean()
    return LengthCorrection(
        knots=tuple(knots.tolist()), values=tuple(values.tolist()), frac=frac, num_responses=len(found), data=data
    )


def _smooth(rewards: FloatArray, scaled: FloatArray, frac: float, passes: int) -> FloatArray:
    """Sorted lengths and the LOWESS of the rewards at them, shape `(R, 2)`."""
    try:
        from statsmodels.nonparametric.smoothers_lowess import lowess  # noqa: PLC0415 - not part of a bare install
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "statsmodels":
            raise
        remedy = 'Run pip install "hf_reward[audit]".'
        raise ImportError(f"A length correction is fitted by statsmodels, which is not installed. {remedy}") from error
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
    """Correct each response by a curve that was fitted without any response to its prompt, for honest accuracy.

    Args:
        rewards: Rewards, shape `(R,)`.
        lengths: Characters of each response, shape `(R,)`.
        groups: Prompt of each response, shape `(R,)`.
        folds: Into how many parts the prompts are divided, at random.
        seed: Of that division.
        frac: As in `fit_length_correction`.

    Returns:
        Corrected rewards, shape `(R,)`, float64. Compare them within a prompt only: each fold has a curve of its own.

    Raises:
        ValueError: As `fit_length_correction`, or if there are fewer prompts than folds.
    """
    found, sizes = _checked(rewards, lengths)
    if len(groups) != len(found):
        raise ValueError(f"There are {len(groups)} groups for {len(found)} rewards. Give the prompt of each response.")
    names, place = np.unique(np.asarray(groups), return_inverse=True)
    if not 2 <= folds <= len(names):
        raise ValueError(f"`folds={folds}` must be from 2 to the number of prompts, {len(names)}.")
    fold_of_name = np.random.default_rng(seed).permutation(len(names)) % folds
    fold = fold_of_name[place]
    corrected = np.empty_like(found)
    for number in range(folds):
        mine = fold == number
        curve = fit_length_correction(found[~mine], sizes[~mine], frac=frac)
        corrected[mine] = curve.apply(found[mine], sizes[mine])
    return corrected


def _scale(lengths: FloatArray) -> FloatArray:
    """Twice as long is as far at any length."""
    return np.log1p(lengths)


def _checked(rewards: ArrayLike, lengths: ArrayLike) -> tuple[FloatArray, FloatArray]:
    found, sizes = np.asarray(rewards, dtype=np.float64), np.asarray(lengths, dtype=np.float64)
    if found.ndim != 1 or found.shape != sizes.shape:
        raise ValueError(
            f"`rewards` and `lengths` must both have shape (R,), but have {found.shape} and {sizes.shape}."
        )
    if not np.isfinite(found).all() or not np.isfinite(sizes).all() or (sizes < 0).any():
        raise ValueError("Rewards must be finite and lengths 0 or more. Leave out responses that have no reward.")
    return found, sizes


def _require_variety(lengths: FloatArray, frac: float) -> None:
    """Where one length fills a local fit there is no slope, and LOWESS returns whatever it finds there."""
    if len(lengths) < MIN_RESPONSES:
        raise ValueError(
            f"A length correction needs {MIN_RESPONSES} responses or more, and hundreds to be worth something, but "
            f"there are {len(lengths)}."
        )
    commonest = int(np.unique(lengths, return_counts=True)[1].max())
    if commonest > frac * len(lengths) / 2:
        raise ValueError(
            f"{commonest} of {len(lengths)} responses have the same length, so a curve with `frac={frac}` would not be "
            "told from noise there. Give responses of more different lengths, or a larger `frac`."
        )
