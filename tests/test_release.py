"""One version everywhere, and a changelog that has a section for it."""

import re
from pathlib import Path

import yaml

import hf_reward

ROOT = Path(__file__).parents[1]


def test_the_version_is_the_same_in_code_citation_and_changelog() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(\d[^\]]*)\] - (\d{4}-\d\d-\d\d)$", changelog, re.MULTILINE)
    assert newest is not None
    assert newest[1] == citation["version"] == hf_reward.__version__
    assert newest[2] == str(citation["date-released"])
