"""The messages that the troubleshooting page quotes are messages of the package."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
OF_OTHERS = {"Out of memory", "Tokenizer class TokenizersBackend does not exist"}
QUOTED = [line.removeprefix("### ") for line in PAGE.splitlines() if line.startswith("### ")]


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(value) for value in node.values)
    return "\0"


@pytest.fixture(scope="module")
def messages() -> list[str]:
    paths = [*(ROOT / "hf_reward").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    return [" ".join(_text(node).split()) for node in nodes if isinstance(node, ast.Constant | ast.JoinedStr)]


@pytest.mark.parametrize("quoted", [each for each in QUOTED if each not in OF_OTHERS])
def test_a_quoted_message_is_in_the_source(quoted: str, messages: list[str]) -> None:
    pattern = re.compile(".*".join(re.escape(part.strip()) for part in quoted.split("...")), re.DOTALL)
    assert any(pattern.search(message) for message in messages)


def test_every_entry_has_a_cause_and_a_remedy() -> None:
    entries = re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]
    assert len(entries) == len(set(QUOTED)) >= 30
    assert [each for each in entries if "**Cause.**" not in each or "**Remedy.**" not in each] == []
