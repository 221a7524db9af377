"""Page and table show all findings; text from the data is escaped."""

import io
import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from hf_reward.evaluation.data_check import check_data, print_report, render_page
from hf_reward.evaluation.data_check.report_text import sections

CONTROLS = "\x1b[2J\u202egnirts\u2066\x00"
SCRIPT = (
    "<script>alert('x')</script><img src=http://evil.example/x.png onerror=alert(1)> [red]`code`[/red] {{ 7 * 7 }}"
    + CONTROLS
)


class Tags(HTMLParser):
    """Collect elements and attributes."""

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
    assert not set(page) & set("\x1b\u202e\u2066\x00"), "the page would show the text in another order"
    assert "\N{REPLACEMENT CHARACTER}gnirts" in page
    assert "{{ 7 * 7 }}" in page


def test_the_page_loads_nothing(report):
    page = render_page(report)
    assert "default-src 'none'" in page
    assert not re.search(r"""(?:src|href)=(?!"#)|@import|url\((?!#)""", page.replace("src=http://evil", ""))
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
        assert fix.scope in table
        assert fix.remedy in table
    assert [section.title for section in sections(report)] == [
        *("Rows", "Repetition", "Contradictions", "Leakage", "Distance from training", "Length and format"),
        *("Trivial baselines", "Suspect labels", "Votes"),
    ]
    assert "[red]`code`[/red]" in table  # not interpreted as markup
    assert "Fix these first" in table


def test_findings_come_first_with_affected_rows_and_a_remedy(report):
    page = render_page(report)
    (start,) = (match.start() for match in re.finditer("<h2[^>]*><bdi>Fix these first", page))
    assert start < page.index("<h2", start + 1)
    for number, fix in enumerate(report.fix_first, start=1):
        place = page.index(f"<h3>{number}. {fix.finding.capitalize()}</h3>")
        assert place > start
        assert fix.scope in page[place : place + 300]
    assert page.count("<b>What to do:</b>") == len(report.fix_first)


def test_each_finding_shows_at_most_three_escaped_rows_with_file_and_line(tmp_path):
    rows = [
        {"prompt": f"{SCRIPT} {i}", "chosen": f"<b>yes</b> {i} " + "word " * 60, "rejected": "no"} for i in range(30)
    ]
    rows += [dict(rows[0], chosen="", rejected="<i>x</i>"), dict(rows[1], prompt=" "), *rows[:4]]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken <u>\n", encoding="utf-8")
    found = check_data(str(path))
    examples = {fix.finding: fix.examples for fix in found.fix_first}
    assert {"unusable rows", "duplicate rows", "length imbalance", "blank prompts"} <= set(examples)
    assert all(len(shown) <= 3 for shown in examples.values())
    assert [each.place for each in examples["unusable rows"]] == ["rows.jsonl, line 31", "rows.jsonl, line 37"]
    assert examples["unusable rows"][0].texts == {"prompt": f"{SCRIPT} 0", "chosen": "(empty)", "rejected": "<i>x</i>"}
    assert [each.row for each in examples["duplicate rows"]] == [32, 33, 34]
    (blank,) = examples["blank prompts"]
    assert list(blank.texts) == ["prompt", "chosen", "rejected"]
    assert blank.texts["chosen"].endswith("\u2026 (313 characters)")
    page = render_page(found)
    assert "Row 32 (rows.jsonl, line 33)" in page
    assert "&lt;b&gt;yes&lt;/b&gt; 0 word" in page
    assert "<b>yes</b>" not in page
    assert "<i>x</i>" not in page


@pytest.mark.parametrize(("count", "rows"), [(1, "1 row"), (2, "2 rows")])
def test_nouns_agree_with_their_numbers(count: int, rows: str):
    """Check every number before a noun in the terminal and on the page, for data with one and two rows."""
    data = [{"prompt": f"p {i}", "chosen": f"yes {i}", "rejected": "no"} for i in range(count)]
    report, out = check_data(data, eval_data=data[:1]), io.StringIO()
    print_report(report, Console(file=out, width=400, color_system=None))
    visible = re.sub(r"<style.*?</style>|<svg.*?</svg>|<[^>]+>", " ", render_page(report), flags=re.DOTALL)
    for text in (out.getvalue(), visible):
        assert rows in text
        assert not re.findall(rf"\b1 (?:\w+ )?{_PLURALS}\b", text)
        assert not re.findall(rf"\b(?:0|[2-9]|\d\d+) {_SINGULARS}\b", text)


_NOUNS = "row|pair|strict pair|prompt group|group|cluster|cycle|text|vote|token|word|equal pair|example row"
_SINGULARS = f"(?:{_NOUNS})"
_PLURALS = f"(?:{'|'.join(f'{noun}s' for noun in _NOUNS.split('|'))})"


def test_worst_comes_first(report):
    harms = [fix.harm for fix in report.fix_first]
    assert harms == sorted(harms, reverse=True)
    assert report.fix_first[0].finding == "leakage"


def test_every_length_share_states_its_unit_and_ties(report):
    (style,) = [section for section in sections(report) if section.title == "Length and format"]
    assert all(re.search(r"\d+ pairs, [\d,]+ equal", line.note) and "counts " in line.note for line in style.lines)
    assert "left out" in style.intro
    (fix,) = [fix for fix in report.fix_first if fix.finding == "length imbalance"]
    assert re.search(r"% of \d+ pairs \(.*; words; \d+ equal pairs left out\)", fix.found)


def test_clean_data_says_so():
    rows = [{"prompt": f"p {i}", "chosen": f"{'ab'[i % 2]} {i}", "rejected": f"{'ba'[i % 2]} {i}"} for i in range(40)]
    report, out = check_data(rows), io.StringIO()
    print_report(report, Console(file=out, width=200))
    assert report.fix_first == []
    assert "Nothing stands out." in out.getvalue()
    assert "Nothing stands out." in render_page(report)
