"""Figures: content, themes, hostile labels and determinism."""

import io
import re
from xml.etree import ElementTree

import pytest
from audit_reports import HOSTILE, audit_report
from PIL import Image, ImageColor

from hf_reward.evaluation.audit.report.curves import curve_figure
from hf_reward.evaluation.audit.report.figures import PALETTE, effects_figure, headlines
from hf_reward.evaluation.audit.report.wording import VERDICT_WORDS, scale_of
from hf_reward.evaluation.drawing import as_png, as_svg, inline_svg
from hf_reward.evaluation.page import THEME, Page, render
from hf_reward.evaluation.plain_text import plain_line

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def report():
    return audit_report().to_dict()


@pytest.fixture(scope="module")
def titles(report):
    return {name: family["title"] for name, family in report["families"].items()}


@pytest.fixture(scope="module")
def curves(report):
    return [curve for family in report["families"].values() for curve in family["curves"]]


def words(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_every_effect_is_drawn_with_its_label_and_family(report, titles):
    svg = as_svg(effects_figure(report["probes"], titles), "all")
    text = words(svg)
    shown = [probe for probe in report["probes"] if not probe["screen_only"]]
    for probe in shown:
        assert any(plain_line(probe["label"])[:8] in line for line in text), probe["label"]
    assert {titles[probe["family"]] for probe in shown} <= set(text)
    assert set(VERDICT_WORDS.values()) <= set(text)
    for unit in {probe["unit"] for probe in shown}:
        assert sum(scale_of(unit).words in line and "too small to matter" in line for line in text) == 1
    assert "Words of the best of 16 against a random answer" not in text  # observational
    assert "no estimate" in text


def test_headlines_are_the_largest_biases_and_one_of_each_other_family(report):
    picked = headlines(report["probes"])
    drawable = [each for each in report["probes"] if each["estimate"] is not None and not each["screen_only"]]
    assert {each["family"] for each in picked} == {each["family"] for each in drawable}
    for family in {each["family"] for each in picked}:
        biased = [each for each in drawable if each["family"] == family and each["verdict"] == "biased"]
        own = [each for each in picked if each["family"] == family]
        assert len(own) == min(4, len(biased)) or (not biased and len(own) == 1)
        assert all(each["verdict"] == "biased" for each in own) or not biased
        largest = max(biased, key=lambda each: abs(each["estimate"]) / each["delta"], default=None)
        assert largest is None or largest in own
    assert headlines([]) == []


def test_headlines_start_with_the_largest_biases(report):
    sizes: dict[str, list[float]] = {}
    for each in headlines(report["probes"]):
        if each["verdict"] == "biased":
            sizes.setdefault(each["family"], []).append(abs(each["estimate"]) / each["delta"])
    assert all(own == sorted(own, reverse=True) for own in sizes.values())
    largest = [own[0] for own in sizes.values()]
    assert largest == sorted(largest, reverse=True)


def test_the_figure_for_phones_has_the_same_numbers_in_half_the_width(report, titles):
    shown = headlines(report["probes"])
    wide, narrow = (effects_figure(shown, titles, narrow=each) for each in (False, True))
    assert narrow.get_figwidth() < wide.get_figwidth() / 2
    numbers = [[word for word in words(as_svg(each, "x")) if "[" in word] for each in (wide, narrow)]
    assert numbers[0] == numbers[1] != []


def test_nothing_to_draw_gives_no_figure(report):
    assert effects_figure([], {}) is None
    assert effects_figure([each for each in report["probes"] if each["screen_only"]], {}) is None
    assert effects_figure([each for each in report["probes"] if each["estimate"] is None], {}) is None


def test_extreme_numbers_are_drawn():
    base = {"family": "f", "label": "l", "unit": "", "delta": None, "ci_low": None, "ci_high": None}
    probes = [{**base, "estimate": value, "verdict": "biased"} for value in (0.0, 1e-12, -1e9, 3)]
    probes += [{**base, "estimate": 0.1, "ci_low": -1e6, "ci_high": 1e6, "verdict": "inconclusive", "unit": "x"}]
    assert as_png(effects_figure(probes, {}))
    zero = [{**base, "estimate": 0.0, "ci_low": 0.0, "ci_high": 0.0, "verdict": "equivalent"}]
    assert as_svg(effects_figure(zero, {}), "zero")


def test_svgs_are_self_contained_xml(report, titles, curves):
    figures = {"effects": effects_figure(report["probes"], titles)}
    figures |= {f"curve-{place}": curve_figure(curve) for place, curve in enumerate(curves)}
    ids: list[str] = []
    for name, figure in figures.items():
        svg = as_svg(figure, name)
        assert "<!DOCTYPE" not in svg
        root = ElementTree.fromstring(svg)
        for element in root.iter():
            tag = element.tag.removeprefix(SVG)
            assert tag not in ("script", "style", "image", "foreignObject", "metadata", "a")
            for key, value in element.attrib.items():
                key = key.rpartition("}")[2]
                assert not key.startswith("on")
                assert key != "href" or value.startswith("#")
                assert "url(" not in value or "url(#" in value
                ids += [value] if key == "id" else []
    assert len(ids) == len(set(ids))


def test_the_same_figure_gives_the_same_bytes(report, titles, curves):
    for draw in (lambda: effects_figure(report["probes"][-20:], titles), lambda: curve_figure(curves[0])):
        assert as_svg(draw(), "a") == as_svg(draw(), "a")
        assert as_png(draw()) == as_png(draw())
        assert inline_svg(draw(), "a", "words") == inline_svg(draw(), "a", "words")
    assert not re.search(r"\b20\d\d-\d\d-\d\d\b", as_svg(curve_figure(curves[0]), "a"))


def test_labels_are_never_parsed_as_mathematics_or_markup(report, titles):
    slices = [probe for probe in report["probes"] if probe["family"] == "slices"]
    svg = as_svg(effects_figure(slices, titles), "slices")
    assert "<script>" not in svg
    text = "".join(words(svg))
    assert HOSTILE[0] in text
    assert "$x^2$" in text
    assert "\x1b" not in text
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in text
    assert "مرحبا" in text


def test_a_page_gives_figures_its_own_colours_in_both_themes(report, titles):
    figure = effects_figure(report["probes"], titles)
    svg = inline_svg(figure, "x", 'words "quoted" <b>')
    root = ElementTree.fromstring(svg)
    assert (root.get("role"), root.get("aria-label")) == ("img", 'words "quoted" <b>')
    page = render(Page(title="t", heading="h"))
    dark = page[page.index("prefers-color-scheme: dark") : page.index("box-sizing")]
    drawn = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg))
    assert drawn <= set(PALETTE.values())
    assert {PALETTE[name] for name in ("text", "biased", "equivalent", "band")} <= drawn
    for name, colour in PALETTE.items():
        assert f"--{name}: {THEME[name][1]};" in dark
        for part in ("fill", "stroke"):  # the style of an element matches the rule for it
            assert f'[style*="{part}: {colour}"] {{ {part}: var(--{name}) !important; }}' in page
    assert len(set(PALETTE.values())) == len(PALETTE)


def test_curves_have_labels_gaps_and_the_diagonal(curves):
    dose, reliability, hostile = curves
    text = words(as_svg(curve_figure(dose), "dose"))
    assert {dose["title"], dose["x_label"], dose["y_label"], "at the start", "at the middle", "at the end"} <= set(text)
    assert dose["title"] not in words(as_svg(curve_figure(dose, titled=False), "dose"))
    figure = curve_figure(reliability)
    lines = figure.axes[0].get_lines()
    assert lines[0].get_slope() == 1
    assert sum(value != value for value in lines[1].get_ydata()) == 1  # a bin without pairs
    assert len(figure.axes[0].collections) == 1
    assert words(as_svg(curve_figure(hostile), "hostile")).count(hostile["title"]) == 1
    assert [tick.get_text() for tick in curve_figure(dose).axes[0].get_xticklabels()] == ["1", "1.25", "1.5", "2", "3"]
    bare = {**dose, "series": []}
    assert dose["x_label"] in words(as_svg(curve_figure(bare), "bare"))
    twelve = [{"label": str(place), "x": [1, 2], "y": [0, place]} for place in range(12)]
    drawn = [(line.get_color(), line.get_marker()) for line in curve_figure({**dose, "series": twelve}).axes[0].lines]
    assert len(set(drawn)) == 12
    blank = {**dose, "series": [{"label": "_hidden", "x": [], "y": []}, {"label": "", "x": [1], "y": [2]}]}
    assert any("_hidden" in line for line in words(as_svg(curve_figure(blank), "blank")))


def test_pngs_are_on_white_and_have_the_colours_of_series_and_verdicts(report, titles, curves):
    figures = {
        curve_figure(curves[0]): ("line-1", "line-2", "line-3", "text"),
        effects_figure(report["probes"], titles): VERDICT_WORDS.keys() - {"not_assessed"},
    }
    for figure, names in figures.items():
        image = Image.open(io.BytesIO(as_png(figure))).convert("RGB")
        assert image.getpixel((0, 0)) == (255, 255, 255)
        assert image.width > 500
        drawn = {colour for _, colour in image.getcolors(1 << 24)}
        assert {ImageColor.getrgb(PALETTE[name]) for name in names} <= drawn
