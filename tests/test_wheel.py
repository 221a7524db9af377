"""The built wheel works without the checkout."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SCRIPT = """
import hf_reward
from hf_reward.modeling.checkpoint_record import CheckpointRecord
from hf_reward.cli.app import recipe
from hf_reward.publishing.card.render import template_path, write_model_card
from hf_reward.data.sources import as_sources, load_source

assert "site" in hf_reward.__file__, hf_reward.__file__
assert "site" in str(template_path())
assert recipe("train.py").is_file() and recipe("quickstart.yaml").is_file()
assert len(load_source(as_sources("demonstration")[0])) > 400
record = CheckpointRecord(format={}, reads="last_token", pad_token_id=0, template_hash=None, tokenizer_hash="x")
print(write_model_card(".", record).read_text()[:40])
"""


def test_every_recipe_that_users_run_is_in_the_wheel() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    shipped = {source for source in build["force-include"] if source.startswith("recipes/")}
    here = {f"recipes/{path.name}" for path in (ROOT / "recipes").iterdir() if not path.name.startswith("__")}
    # The docs of a checkout refer to the studies; the other recipe prepares the checkout's quick start.
    assert here - shipped == {"recipes/studies", "recipes/smollm2_from_wheel.py"}
    assert shipped - here == set()


@pytest.mark.slow
def test_the_wheel_carries_template_recipes_and_data(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next(tmp_path.glob("*.whl"))
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    # -P removes the working folder from the path; PYTHONPATH puts the wheel before the editable install.
    result = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "---" in result.stdout
