"""The README's Python and YAML run, with local data in place of its Hub ids, and it stays short."""

import re
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from hf_reward.training.run_arguments import parse_run_arguments

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "docs" / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def pairs_for_the_hub(monkeypatch: pytest.MonkeyPatch, chat_pairs: list[dict[str, Any]]) -> None:
    split = datasets.Dataset.from_list(chat_pairs)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict(train=split, test=split))


@pytest.mark.usefixtures("pairs_for_the_hub")
def test_the_python_trains_and_scores(
    make_model_folder: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("python")
    exec(block.replace("Qwen/Qwen3-0.6B", str(make_model_folder("qwen3"))), {})
    printed = capsys.readouterr().out
    assert "eval_accuracy_ci_low" in printed
    assert "eval_length_baseline" in printed


def test_the_yaml_is_a_run(tmp_path: Path) -> None:
    (block,) = blocks("yaml")
    path = tmp_path / "my.yaml"
    path.write_text(block, encoding="utf-8")
    run, args = parse_run_arguments(["--config", str(path)])
    written = yaml.safe_load(block)
    assert {name: getattr(run, name, None) or getattr(args, name, None) for name in written} == {
        **written,
        "learning_rate": 1e-4,
    }


def test_the_readme_is_short_and_its_links_resolve() -> None:
    assert len(README.splitlines()) <= 170
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", README) if not re.match(r"https?:|\.\./\.\./", link)]
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_file_map_names_every_package() -> None:
    folders = [path.parent.name for path in sorted((ROOT / "hf_reward").glob("*/__init__.py"))]
    assert len(folders) == 10
    assert [name for name in folders if f"  {name}/ " not in CONTRIBUTING] == []
    assert sorted(path.name for path in (ROOT / "hf_reward").glob("*.py")) == ["__init__.py"]


def test_every_recipe_is_described() -> None:
    text = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in (ROOT / "recipes").glob("*.yaml") if path.name not in text] == []
