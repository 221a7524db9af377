"""The type of arrays of real numbers."""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]
