import sys

import pytest

from hf_reward.data.extras import MissingExtraError, optional, require


def test_an_installed_module_is_returned():
    assert require("json.decoder", "audit") is sys.modules["json.decoder"]
    assert optional("json.decoder", "audit", "Nothing is left out.") is sys.modules["json.decoder"]


@pytest.mark.parametrize("module", ["absent_package", "absent_package.part"])
def test_an_absent_package_names_its_extra(module):
    with pytest.raises(
        MissingExtraError,
        match=r'absent_package is required .* pip install "hf_reward\[audit\]"',
    ):
        require(module, "audit")


def test_a_feature_skipped_without_a_package_is_logged_once(caplog):
    for _ in range(2):
        assert optional("absent_package", "data", "No baseline is fitted.") is None
    (line,) = caplog.messages
    assert line.startswith("No baseline is fitted. The package absent_package is required for")
    assert line.endswith('pip install "hf_reward[data]"')


@pytest.mark.parametrize("load", [lambda name: require(name, "data"), lambda name: optional(name, "data", "Nothing.")])
def test_an_installed_package_without_one_of_its_requirements_raises_its_own_error(load, tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import its_requirement\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="its_requirement"):
        load("half_installed")
