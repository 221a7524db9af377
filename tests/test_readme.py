"""The README's Python runs, with local data in place of its Hub ids, and its tree names every package."""

import re
from pathlib import Path
from typing import Any

import datasets
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def pairs_for_the_hub(monkeypatch: pytest.MonkeyPatch, chat_pairs: list[dict[str, Any]]) -> None:
    split = datasets.Dataset.from_list(chat_pairs)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict(train=split, test=split))


@pytest.mark.usefixtures("pairs_for_the_hub")
def test_the_python_of_the_readme_runs(
    make_model_folder: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train, stock, score = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(train.replace("Qwen/Qwen3-0.6B", str(make_model_folder("qwen3"))), scope)
    assert "preferring the longer response" in capsys.readouterr().out
    exec(stock, scope)
    exec(score, scope)
    assert scope["rewards"][0] == pytest.approx(scope["reward"], abs=1e-5)
    assert 0 < scope["probability"] < 1


def test_the_tree_names_every_package() -> None:
    folders = [path.parent.name for path in sorted((ROOT / "hf_reward").glob("*/__init__.py"))]
    assert len(folders) == 10
    assert [name for name in folders if f"  {name}/ " not in README] == []
    assert sorted(path.name for path in (ROOT / "hf_reward").glob("*.py")) == ["__init__.py"]


def test_every_recipe_is_in_the_readme() -> None:
    assert [path.name for path in (ROOT / "recipes").glob("*.yaml") if f"`{path.name}`" not in README] == []
