import sys

import pytest

from hf_reward.data.extras import require


def test_an_installed_module_is_returned():
    assert require("json.decoder", "audit") is sys.modules["json.decoder"]


@pytest.mark.parametrize("module", ["absent_package", "absent_package.part"])
def test_an_absent_package_names_its_extra(module):
    with pytest.raises(ImportError, match=r'absent_package is not installed; .* pip install "hf_reward\[audit\]"'):
        require(module, "audit")


def test_an_installed_package_without_one_of_its_requirements_raises_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import its_requirement\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="its_requirement"):
        require("half_installed", "data")
