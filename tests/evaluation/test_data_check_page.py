"""The page and the table say what was found; what comes from the data stays text."""

import io
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from hf_reward.evaluation.data_check import check_data, print_report, render_page
from hf_reward.evaluation.data_check.report_text import sections

SCRIPT = "<script>alert('x')</script><img src=http://evil.example/x.png onerror=alert(1)> [red]`code`[/red] {{ 7 * 7 }}"


class Tags(HTMLParser):
    """Collects elements and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


@pytest.fixture(scope="module")
def report():
    rows = [
        {"prompt": f"{SCRIPT} {i}", "chosen": f"{SCRIPT} yes {i}", "rejected": f"no {i}", "group": f"{SCRIPT} {i}"}
        for i in range(25)
    ]
    rows += [{**rows[0], "chosen": rows[0]["rejected"], "rejected": rows[0]["chosen"]}]
    rows += [{**rows[1], "chosen": ""}]
    rows += [rows[2]] * 3
    for place, row in enumerate(rows):
        row["votes_chosen"], row["votes_rejected"] = 2 + place % 2, 1
    return check_data({"data": rows, "name": SCRIPT}, eval_data={"data": rows[:2], "name": "held"})


def test_a_script_in_a_row_stays_text(report):
    page = render_page(report)
    parser = Tags()
    parser.feed(page)
    assert {"script", "img", "iframe", "link"}.isdisjoint(parser.tags)
    assert not [name for name in parser.attributes if name.startswith("on") or name in ("src", "href")]
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page
    assert "{{ 7 * 7 }}" in page


def test_the_page_needs_nothing_else(report):
    page = render_page(report)
    assert "default-src 'none'" in page
    assert not re.search(r"""(?:src|href)=|@import|url\(""", page.replace("src=http://evil", ""))
    for part in ('name="viewport"', "prefers-color-scheme: dark", "overflow-x: auto", 'lang="en"'):
        assert part in page


def test_every_finding_is_on_the_page_and_in_the_table(report):
    page, out = render_page(report), io.StringIO()
    print_report(report, Console(file=out, width=400, color_system=None))
    table = out.getvalue()
    for section in sections(report):
        assert section.title in page
        assert section.title in table
        for line in section.lines:
            assert line.value in table
    for fix in report.fix_first:
        assert fix.cure in table
    assert [section.title for section in sections(report)] == [
        *("Rows", "Repetition", "Contradictions", "Leakage", "Distance from training", "Length and format"),
        *("Rules that never read", "Votes"),
    ]
    assert "[red]`code`[/red]" in table  # no markup of the table's own
    assert "Fix these first" in table


def test_worst_comes_first(report):
    harms = [fix.harm for fix in report.fix_first]
    assert harms == sorted(harms, reverse=True)
    assert report.fix_first[0].finding == "leakage"


def test_every_number_of_length_says_its_unit_and_how_ties_count(report):
    (style,) = [section for section in sections(report) if section.title == "Length and format"]
    assert all(re.search(r"\d+ pairs, [\d,]+ equal", line.note) and "counts " in line.note for line in style.lines)
    assert "left out" in style.intro
    (fix,) = [fix for fix in report.fix_first if fix.finding == "length imbalance"]
    assert re.search(r"; words; \d+ pairs, \d+ equal ones left out\)", fix.found)


def test_clean_data_says_so():
    rows = [{"prompt": f"p {i}", "chosen": f"{'ab'[i % 2]} {i}", "rejected": f"{'ba'[i % 2]} {i}"} for i in range(40)]
    report, out = check_data(rows), io.StringIO()
    print_report(report, Console(file=out, width=200))
    assert report.fix_first == []
    assert "Nothing stands out." in out.getvalue()
    assert "Nothing stands out." in render_page(report)
