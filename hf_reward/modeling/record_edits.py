"""What is found out about a model after training -> its `reward_config.json`, in which all else stays as it is.

The file's own JSON is edited, not a `CheckpointRecord`, so that fields of a later version survive.
"""

import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hf_reward.metrics.length_correction import LengthCorrection
from hf_reward.modeling.checkpoint_record import FILE_NAME, CheckpointRecord


def store_length_correction(folder: str | Path, correction: LengthCorrection | None) -> Path:
    """Store a length correction with a model; `RewardScorer(..., length_correction=True)` applies it.

    Args:
        folder: A folder that was saved by this package.
        correction: The correction; None removes the one that is there.

    Returns:
        The file that was rewritten.

    Raises:
        FileNotFoundError: If the folder has no record.
        ValueError: If its record cannot be read.
    """
    return _rewrite(folder, "length_correction", {} if correction is None else correction.to_dict())


def store_temperature(folder: str | Path, temperature: float, **notes: Any) -> Path:
    """Store by what reward differences have to be divided to become log-odds; `RewardScorer.compare` does so.

    Args:
        folder: A folder that was saved by this package.
        temperature: The divisor, above 0; see `calibration.fit_slope`.
        **notes: What else to keep beside it, as JSON values: the data, its number of pairs, an interval, ...

    Returns:
        The file that was rewritten.

    Raises:
        FileNotFoundError: If the folder has no record.
        ValueError: If the temperature is no number above 0, or the record cannot be read.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"`temperature={temperature}` must be a finite number above 0. A model whose slope is 0 or less has none."
        )
    return _rewrite(folder, "calibration", {"temperature": float(temperature), **notes})


def _rewrite(folder: str | Path, name: str, value: Any) -> Path:
    """Replace one field; the file is the old or the new one at any moment."""
    path = Path(folder) / FILE_NAME
    if CheckpointRecord.load(folder) is None:
        raise FileNotFoundError(
            f"{folder} has no {FILE_NAME}, in which this is stored. Name a folder that was saved or imported by this "
            "package (`hf-reward import`)."
        )
    content = json.loads(path.read_text(encoding="utf-8")) | {name: value}
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{FILE_NAME}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(path, aside)  # temporary files are closed to others
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    return path
