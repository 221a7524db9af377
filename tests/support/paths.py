"""The folders of `pythonpath` in pyproject.toml, for programs that tests start."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
_TESTS = ROOT / "tests"
PATHS = [
    str(folder)
    for folder in (ROOT, _TESTS, *sorted(each for each in _TESTS.iterdir() if each.is_dir()), ROOT / "recipes")
]
