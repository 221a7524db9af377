"""Isolated environments of the downstream programs: one virtual environment for each file in `requirements/`.

A file lists the complete environment, with exact versions, so nothing is resolved: `pip install --no-deps`. PyPI's own
wheels of torch for Linux need CUDA libraries, which are not listed. On a machine without another source of CPU wheels,
set `PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu`.
"""

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACE = ROOT / ".interop"
REQUIREMENTS = Path(__file__).parent / "requirements"


def python_of(name: str) -> Path:
    """Return the Python of an environment, which is created if it is missing or its requirements have changed."""
    folder, requirements = PLACE / name, REQUIREMENTS / f"{name}.txt"
    python, stamp = folder / "bin" / "python", folder / "requirements.sha256"
    digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    if not stamp.is_file() or stamp.read_text() != digest:
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", str(requirements)]
        subprocess.run(install, check=True)
        stamp.write_text(digest)
    return python
