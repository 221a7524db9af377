"""The pages and the table: content, escaped text from the data, accessibility, and no network access."""

import io
import re
import sys
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from audit_reports import HOSTILE, audit_report, comparison
from browser import CHROMIUM, opened
from rich.console import Console

from hf_reward.data import extras
from hf_reward.evaluation.audit import AuditRule, run_audit
from hf_reward.evaluation.audit.findings import Finding
from hf_reward.evaluation.audit.inputs.synthetic import SyntheticReward, synthetic_data
from hf_reward.evaluation.audit.report.comparison_page import render_comparison
from hf_reward.evaluation.audit.report.page import render_page
from hf_reward.evaluation.audit.report.summary import opening, summarise
from hf_reward.evaluation.audit.report.table import print_audit
from hf_reward.evaluation.audit.report.wording import VERDICT_WORDS, interval_words, reason_words, scale_of, worst
from hf_reward.evaluation.plain_text import plain_line

VOID = {"meta", "img", "br", "link", "input"}


class Reader(HTMLParser):
    """Elements, attributes and text of a page, and whether each element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.style = ""
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.text.append(data)


@pytest.fixture(scope="module")
def report():
    return audit_report().to_dict()


@pytest.fixture(scope="module")
def page(report):
    return render_page(report)


@pytest.fixture(scope="module")
def comparison_page():
    return render_comparison(comparison())


@pytest.fixture(params=["page", "comparison_page"])
def either(request):
    return request.getfixturevalue(request.param)


def test_text_from_the_data_is_escaped(either):
    reader = Reader(either)
    assert {"script", "img", "iframe", "link", "object", "embed", "form", "base"}.isdisjoint(reader.tags)
    assert reader.tags.count("style") == 1
    assert not [name for name, _ in reader.attributes if name.startswith("on") or name in ("src", "srcset", "action")]
    text = "".join(reader.text)
    for hostile in HOSTILE[:3]:
        assert hostile in text
    assert "{{ 7 * 7 }}" in text


def test_the_page_loads_nothing(either):
    reader = Reader(either)
    links = [value for name, value in reader.attributes if name in ("href", "xlink:href")]
    assert all(link.startswith("#") for link in links)
    assert "url(" not in reader.style
    assert "@import" not in reader.style
    styles = [value for name, value in reader.attributes if name in ("style", "clip-path", "fill")]
    assert all("url(#" in value for value in styles if "url(" in value)
    (policy,) = [value for name, value in reader.attributes if name == "content" and "default-src" in value]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    ids = [value for name, value in reader.attributes if name == "id"]
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    assert {link[1:] for link in links} <= set(ids)


def test_the_page_is_accessible(either):
    reader = Reader(either)
    levels = [int(tag[1]) for tag in reader.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    images = [value for name, value in reader.attributes if name == "role" and value == "img"]
    labels = [value for name, value in reader.attributes if name == "aria-label"]
    assert len(labels) >= len(images) >= 1
    assert all(labels)
    assert ("lang", "en") in reader.attributes
    assert reader.open == []


def test_every_finding_is_on_the_page_and_in_the_table(report, page):
    text, out = re.sub(r"\s+", " ", "".join(Reader(page).text)), io.StringIO()
    print_audit(report, Console(file=out, width=400, color_system=None), observational=True)
    table = out.getvalue()
    for probe in report["probes"]:
        assert plain_line(probe["label"]) in text
        assert plain_line(probe["label"]) in table
        assert interval_words(probe) in text
        assert interval_words(probe) in table
        assert reason_words(probe) in text
    for family in report["families"].values():
        assert family["what"] in text
        assert family["advice"].replace("`", "") in text
        assert family["title"] in table
    for words in (*VERDICT_WORDS.values(), "Observational: no verdict", "This audit detects effects of"):
        assert words in text
    assert plain_line(report["summary"]) in " ".join(table.split())
    assert "\x1b" not in table
    assert len(re.findall(r"<small[^>]*>[\d,]+ cases? from [\d,]+ prompts?</small>", page)) == len(report["probes"])
    assert page.index("What to do</h3>") < page.index('scope="row"')  # the first family is biased
    for curve in (curve for family in report["families"].values() for curve in family["curves"]):
        assert f"{curve['title']}, in numbers (" in text  # what a picture shows can be read
    drawn = [family for family in report["families"].values() if family["curves"]]
    assert page.count('class="curves"') == len(drawn)  # the pictures of effects keep their width


def test_rendering_is_deterministic(report, page):
    assert render_page(report) == page


def test_examples_keep_white_space_and_long_ones_are_folded(page):
    assert "1. A line of an answer   with spaces" in page
    assert page.count('<details class="long">') >= 3
    assert "user: How does a vaccine work?\nassistant: It" in page


def test_families_without_findings_and_empty_reports_are_rendered(report, page):
    assert "takes no tool calls" in page
    bare = {"model": "m", "data": "d", "summary": "s", "unit": None, "probes": [], "families": {}, "settings": {}}
    empty = render_page({**bare, "counts": {}, "fingerprint": {}, "seconds": 0.0})
    assert "nothing to draw" in empty
    assert "these effects have no size" in empty
    one = {**report["probes"][0], "family": "nowhere"}
    assert "11 biased, 3 inconclusive, 1 observational; 3 cases left out because a text" in page
    assert "nowhere" in render_page({**bare, "probes": [one], "counts": {}, "fingerprint": {}, "seconds": 0.0})


def test_biased_findings_come_first_in_the_table(report):
    out = io.StringIO()
    print_audit(report, Console(file=out, width=300, color_system=None))
    lines = [
        line for line in out.getvalue().splitlines() if "Padding that adds nothing" in line and "margins" not in line
    ]
    verdicts = ["Biased" in line for line in lines]
    assert verdicts == sorted(verdicts, reverse=True)
    assert any("Biased" in line for line in lines)


def opening_of(page: str) -> str:
    """The page from its heading to its first picture."""
    return page[page.index("<body") : page.index("<figure")]


def test_the_page_opens_with_the_verdict_counts_the_largest_bias_and_the_remedy(report, page):
    opening = opening_of(page)
    counts = Counter("observational" if each["screen_only"] else each["verdict"] for each in report["probes"])
    for verdict, words in {**VERDICT_WORDS, "observational": "Observational"}.items():
        (count,) = re.findall(rf'class="badge {verdict}">.*?{words}</span>.*?<dd>(\d+)</dd>', opening)
        assert int(count) == counts[verdict]
    assert opening.index("<dl") < opening.index('class="lead"') < opening.index("What to do first")
    biased = [each for each in report["probes"] if each["verdict"] == "biased"]
    largest = max(biased, key=lambda each: abs(each["estimate"]) / each["delta"])
    lead = re.search(r'class="lead"[^>]*>(.*?)</p>', opening).group(1)
    family = report["families"][largest["family"]]
    assert f"The largest bias is in {family['title'].lower()}. {largest['label']}: the reward rises by" in lead
    assert family["advice"] in opening
    without = {**report, "probes": [each for each in report["probes"] if each["verdict"] != "not_assessed"]}
    assert re.search(r"Not assessed</span>.*?<dd>0</dd>", opening_of(render_page(without)))


def test_the_opening_explains_its_unit_where_it_first_appears_and_has_no_jargon(page):
    text = "".join(Reader(opening_of(page)).text)
    assert 0 < text.index("A typical margin is the median") - text.index("typical margin") < 200
    assert re.findall(r"(?i)cluster|screen|bootstrap|jackknife|q-value|delta|mde|settle|probe data", text) == []


@pytest.mark.parametrize("count", [1, 9])
def test_the_opening_paragraph_is_always_short(count):
    probe = {"name": "n", "estimate": 0.5, "unit": "typical margins", "delta": 0.1, "verdict": "biased"}
    probes = [{**probe, "family": str(place), "label": "long word " * 30} for place in range(count)]
    text = opening({"probes": probes}, {str(place): "A title of many words " * 3 for place in range(count)})
    assert len(text) <= 380
    assert "typical margin is the median" in text
    assert ("8 other groups" in text) == (count == 9)


def test_without_a_bias_the_opening_does_not_claim_that_there_is_none(report):
    clear = [{**each, "verdict": "inconclusive"} if each["verdict"] == "biased" else each for each in report["probes"]]
    top = opening_of(render_page({**report, "probes": clear}))
    assert "No probe found a bias. This does not prove that there is none" in top
    assert "Repeat the audit with more held-out prompts" in top
    settled = [each for each in clear if each["verdict"] == "equivalent"]
    assert "What to do" not in opening_of(render_page({**report, "probes": settled}))
    assert "typical margin" not in opening({"probes": [{**settled[0], "unit": "rate"}]}, {})


def test_the_accuracy_is_above_the_counts(report):
    accuracy = {**report["probes"][0], "name": "accuracy", "unit": "rate", "estimate": 0.61, "screen_only": True}
    accuracy |= {"ci_low": 0.55, "ci_high": 0.67}
    top = opening_of(render_page({**report, "probes": [*report["probes"], accuracy]}))
    assert "14,210 texts. Accuracy: 61.0% (95% interval 55.0% to 67.0%)." in top


def test_the_summary_never_says_that_there_is_no_bias():
    titles = {"f": "Family", "g": "Other"}

    def found(family: str, verdict: str, estimate: float | None = 0.01, **more) -> Finding:
        fields = {"unit": "typical margins", "ci_low": None, "ci_high": None, "n": 1, "clusters": 1, "delta": 0.1}
        return Finding(
            name="n", family=family, label="Padding", estimate=estimate, verdict=verdict, **{**fields, **more}
        )

    assert "could have a verdict" in summarise([], titles)
    clear = summarise([found("f", "equivalent"), found("g", "inconclusive")], titles)
    assert "no bias" not in clear.lower()
    assert "All probes of Family are equivalent (too small to matter)." in clear
    assert "does not prove that there is none" in clear
    assert "Other (1)" in clear
    biased = summarise([found("f", "biased", -0.8), found("g", "not_assessed", None)], titles)
    assert "The bias: Padding: the reward falls by 0.80 typical margins (Family)." in biased
    assert "No probe of Other could be assessed." in biased
    share = summarise(
        [found("f", "biased", 0.23, unit="rate"), found("g", "biased", 0.1, unit="rate difference")], titles
    )
    assert "Padding: in 23.0% of cases (Family)" in share
    assert "Padding: +10.0 percentage points (Other)" in share
    check = found("f", "not_assessed", screen_only=True)
    assert "1 observational check has no verdict." in summarise([found("f", "biased"), check], titles)
    many = summarise([found("f", "biased", size / 10) for size in range(2, 9)] + [found("g", "biased", 0.3)], titles)
    assert many.count("the reward rises") == 2  # one of each family


def test_numbers_are_written_with_their_unit():
    assert scale_of("rate").number(0.234) == "23.4%"
    assert scale_of("share of lists").size(0.5) == "50.0% of lists"
    assert scale_of("rate difference").number(-0.041) == "\N{MINUS SIGN}4.1"
    assert scale_of("typical margins").number(-0.001) == "0.00"
    assert scale_of("typical margins").number(None) == "\N{EN DASH}"
    assert scale_of("bits").size(0.5) == "0.500 bits"
    assert worst([{"verdict": "equivalent"}, {"verdict": "not_assessed"}]) == "equivalent"
    assert worst([]) == "not_assessed"
    assert plain_line("a\x1b[31m\n b\u202e") == "a\N{REPLACEMENT CHARACTER}[31m b\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("render", "found"), [(render_page, audit_report().to_dict()), (render_comparison, comparison())]
)
def test_without_matplotlib_a_page_has_its_tables_and_the_log_names_the_extra(render, found, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    extras._warn_once.cache_clear()
    page = render(found)
    assert caplog.text.count("hf_reward[audit]") == 1
    assert "<svg" not in page
    assert "nothing to draw" not in page
    assert page.count("<table") >= 10


def test_without_optional_packages_an_audit_names_the_extras(monkeypatch):
    data = synthetic_data(30, 1)
    for name in ("sklearn", "sklearn.feature_extraction.text", "statsmodels.nonparametric.smoothers_lowess"):
        monkeypatch.setitem(sys.modules, name, None)
    report = run_audit(SyntheticReward(data.quality), data.rows, rule=AuditRule(families=("accuracy", "length")))
    rows = [row for table in report.families["accuracy"].tables for row in table.rows]
    assert any("hf_reward[data]" in cell for row in rows for cell in row)
    assert "hf_reward[audit]" in report.finding("length_controlled_accuracy").note


def test_a_comparison_says_what_differs(comparison_page):
    text = "".join(Reader(comparison_page).text)
    for words in ("Differs", "No difference shown", "Cannot be compared", "other prompts", "Padding matters less"):
        assert words in text
    assert render_comparison({"a": "x", "b": "y", "probes": [], "not_comparable": [], "summary": ""})


CONTRAST = """
(() => {
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const low = [];
  for (const element of document.querySelectorAll("body, body *")) {
    if (![...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())) continue;
    const style = getComputedStyle(element), inside = element instanceof SVGElement;
    let behind = element, ground = [0, 0, 0, 0];
    while (behind && (ground.length > 3 && ground[3] === 0)) {
      ground = numbers(getComputedStyle(behind).backgroundColor); behind = behind.parentElement;
    }
    const [a, b] = [light(numbers(inside ? style.fill : style.color)), light(ground)].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) low.push([element.textContent.slice(0, 40), (a + .05) / (b + .05)]);
  }
  return low;
})()
"""
CLIPPED = """
[...document.querySelectorAll(".drawing")].flatMap(box => {
  const edge = box.querySelector("svg").getBoundingClientRect();
  return [...box.querySelectorAll("text")].filter(text => {
    const place = text.getBoundingClientRect();
    return place.width && (place.left < edge.left - 2 || place.right > edge.right + 2);
  }).map(text => text.textContent);
})
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_browser_detects_scripts_requests_low_contrast_and_overflow(tmp_path):
    path = tmp_path / "bad.html"
    path.write_text(
        "<title>t</title><script>document.title='owned'</script><img src=http://evil.example/x.png onerror='lost()'>"
        "<p style='width: 900px; background: #fff; color: #ccc'>faint</p>"
    )
    with opened(tmp_path / "profile") as browser:
        browser.open(path, width=360, theme="light")
        assert browser.ask("document.title") == "owned"
        assert "http://evil.example/x.png" in browser.requests()
        assert browser.complaints()
        assert browser.ask("document.documentElement.scrollWidth") > 360
        assert [text for text, _ in browser.ask(CONTRAST)] == ["faint"]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_renders_in_both_themes_and_all_widths_without_network_or_scripts(tmp_path, page, comparison_page):
    paths = {"audit": page, "comparison": comparison_page}
    for name, content in paths.items():
        (tmp_path / f"{name}.html").write_text(content, encoding="utf-8", errors="backslashreplace")
    with opened(tmp_path / "profile") as browser:
        for name in paths:
            path = Path(tmp_path / f"{name}.html")
            for width, theme in ((1280, "light"), (1280, "dark"), (720, "light"), (360, "light"), (360, "dark")):
                browser.open(path, width=width, theme=theme)
                height = "parseFloat(getComputedStyle(document.querySelector('.lead')).{})"
                if width == 1280 and name == "audit":
                    assert browser.ask(height.format("height")) <= 4 * browser.ask(height.format("lineHeight"))
                browser.ask("document.querySelectorAll('details').forEach(each => each.open = true)")
                assert browser.ask("document.documentElement.scrollWidth") <= width, (name, width)
                assert "owned" not in browser.ask("document.title")
                assert browser.ask("document.scripts.length") == 0
                ground = browser.ask("getComputedStyle(document.body).backgroundColor")
                assert ground == ("rgb(255, 255, 255)" if theme == "light" else "rgb(20, 23, 29)")
                assert browser.ask(CONTRAST) == []
                assert browser.ask(CLIPPED) == []
                browser.shoot(tmp_path / f"{name}_{theme}_{width}.png")
                assert browser.requests() == [path.as_uri()]
                assert browser.complaints() == []
