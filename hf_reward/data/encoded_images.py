"""Image columns of `datasets` -> the encoded bytes or paths. Imported for all data, so it loads no image library."""

from dataclasses import replace
from typing import Any

import datasets


def undecoded(data: Any) -> Any:
    """Return a dataset whose images are read as encoded bytes or paths, not decoded by `datasets`.

    `datasets` decodes an image without a limit of its size and stops at a broken one.

    Args:
        data: A dataset or a stream of `datasets`.

    Returns:
        The dataset; the same object if it has no column of images.
    """
    for name, feature in (data.features or {}).items():
        if (encoded := _undecoded(feature)) != feature:
            data = data.cast_column(name, encoded)
    return data


def _undecoded(feature: Any) -> Any:
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, dict):
        return {name: _undecoded(part) for name, part in feature.items()}
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        return replace(feature, feature=_undecoded(feature.feature))
    return feature
