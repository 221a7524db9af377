"""Let torchvision be imported without its compiled operators, as from a wheel for CUDA on a machine without CUDA.

Image processors use its transforms only, which are written in Python.
"""

import sys
import types

sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
