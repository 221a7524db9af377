"""The documentation site builds without warnings, has every public name, and loads nothing from other hosts."""

import contextlib
import re
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browser import CHROMIUM, opened

import hf_reward

ROOT = Path(__file__).parents[2]
EXTERNAL = re.compile(r"(?:https?:)?//(?!127\.0\.0\.1)")
UNUSED = {
    "https://unpkg.com/mermaid",  # loaded for an element of the class "mermaid"
    "https://unpkg.com/resize-observer-polyfill",  # loaded by browsers from before 2020
    "https://api.github.com/",  # loaded for a `repo_url` on GitHub
    "https://${e}/api/v4/projects/",  # loaded for a `repo_url` on GitLab
}
"""Other hosts in the scripts of Material for MkDocs."""

pytestmark = pytest.mark.slow  # a build takes 15 seconds


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))  # strict: a warning raises an error
    return folder


class _Loads(HTMLParser):
    """Addresses that a browser loads by itself for a page; links to follow are not among them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.classes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.classes |= set(given.get("class", "").split())
        self.found += [given[name] for name in ("src", "srcset", "data", "poster") if name in given]
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(given.get("href", ""))
        self.found += re.findall(r"url\(([^)]*)\)", given.get("style", ""))


def test_no_page_loads_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        loads = _Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        assert loads.found
        assert [each for each in loads.found if EXTERNAL.match(each.strip("'\" "))] == [], page
        assert not loads.classes & {"mermaid", "md-source"}, page


def test_no_stylesheet_or_script_loads_from_another_host(site: Path) -> None:
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        found = [*re.findall(r"url\(([^)]*)\)", text), *re.findall(r"@import\s+([^;]+)", text)]
        assert [each for each in found if EXTERNAL.match(each.strip("'\" "))] == [], sheet
    for script in site.rglob("*.js"):
        found = re.findall(r"[\"'`](https?://[^\s\"'`)]+)", script.read_text(encoding="utf-8"))
        assert [each for each in found if not each.startswith(tuple(UNUSED))] == [], script


@contextlib.contextmanager
def _served(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("page", ["", "getting-started/", "reference/configuration/", "guides/audit/", "CONTRIBUTING/"])
def test_a_browser_asks_no_other_host(site: Path, tmp_path: Path, page: str) -> None:
    with _served(site) as address, opened(tmp_path) as browser:
        browser.open(address + page, width=1280, theme="light")
        requests = browser.requests()
        errors = [event for event in browser.complaints() if "error" in str(event).lower()]
    assert len(requests) > 3
    assert [each for each in requests if not each.startswith((address, "data:", "blob:"))] == []
    assert errors == []


def test_every_public_name_is_in_the_api_reference(site: Path) -> None:
    page = (site / "reference" / "api" / "index.html").read_text(encoding="utf-8")
    assert [name for name in hf_reward.__all__ if f'id="hf_reward.{name}"' not in page] == []


def test_every_setting_is_in_the_configuration_reference(site: Path) -> None:
    from hf_reward.training.settings_help import describe_settings

    page = (site / "reference" / "configuration" / "index.html").read_text(encoding="utf-8")
    assert [each.name for each in describe_settings() if f'id="{each.name}"' not in page] == []


def test_every_command_is_in_the_command_reference(site: Path) -> None:
    import typer

    from hf_reward.cli.app import app

    page = (site / "reference" / "cli" / "index.html").read_text(encoding="utf-8")
    commands = getattr(typer.main.get_command(app), "commands", {})
    assert len(commands) > 10
    assert [name for name in commands if f'id="hf-reward-{name}"' not in page] == []
