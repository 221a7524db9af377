"""A figure -> bytes: SVG for a page or a file, and PNG; the same figure gives the same bytes."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageColor, ImageOps

from hf_reward.evaluation.audit.report.figures import PALETTE
from hf_reward.evaluation.audit.report.wording import plain_line

_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_DPI, _MARGIN = 130, 20
_HIDDEN = {"Date": None, "Creator": None, "Format": None, "Type": None}
_THEMED = {colour: f"var(--{name}, {colour})" for name, colour in PALETTE.items()}
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


def as_png(figure: Figure) -> bytes:
    """A figure as PNG on white.

    Args:
        figure: The figure.

    Returns:
        Content of the file.
    """
    canvas = FigureCanvasAgg(figure)
    with _quiet():
        figure.set_dpi(_DPI)
        canvas.draw()
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    few = ImageOps.expand(drawn, _MARGIN, PALETTE["page"]).quantize(palette=_inks(), dither=Image.Dither.NONE)
    out = io.BytesIO()
    few.save(out, format="PNG")
    return out.getvalue()


def _inks() -> Image.Image:
    """The palette, each colour from the page's own to its full strength: a file of bytes is a quarter of the size."""
    page = np.array(ImageColor.getrgb(PALETTE["page"]))
    colours = [np.array(ImageColor.getrgb(colour)) for colour in PALETTE.values()]
    blends = [page + (colour - page) * share for colour in colours for share in np.linspace(1, 0, 255 // len(colours))]
    shades = [page, *[blend for blend in blends if np.abs(blend - page).max() > 12]]  # Pillow takes what is near enough
    image = Image.new("P", (1, 1))
    image.putpalette(np.round(shades).astype(np.uint8).tobytes())
    return image


def as_svg(figure: Figure, name: str) -> str:
    """A figure as an SVG file of its own, in the colours of paper.

    Args:
        figure: The figure.
        name: What its ids begin with.

    Returns:
        The document: no type declaration, metadata, style sheet, script or address of anything outside.
    """
    return ElementTree.tostring(_tree(figure, name), encoding="unicode") + "\n"


def inline_svg(figure: Figure, name: str, words: str) -> Markup:
    """A figure as an element of a page, in the page's colours and font.

    Args:
        figure: The figure.
        name: What its ids begin with; unlike that of any other figure of the page.
        words: What it shows, for those who do not see it.

    Returns:
        The element; text in it is escaped.
    """
    root = _tree(figure, name)
    root.set("role", "img")
    root.set("aria-label", plain_line(words))
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    for element in root.iter():
        style = element.get("style")
        if style:
            element.set("style", re.sub(r"#[0-9a-f]{6}", lambda found: _THEMED.get(found[0], found[0]), style))
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # made here from escaped parts alone


def _tree(figure: Figure, name: str) -> ElementTree.Element:
    out = io.StringIO()
    with _quiet(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(out, format="svg", metadata=_HIDDEN)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _LINK)
    root = ElementTree.fromstring(out.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")
    for element in root.iter():
        _tidy(element, name)
    return root


def _tidy(element: ElementTree.Element, name: str) -> None:
    """Make ids the figure's own, and let the reader's font take the place of the one that was measured."""
    if "id" in element.attrib:
        element.set("id", f"{name}-{element.attrib['id']}")
    for key, value in element.attrib.items():
        if key in ("href", f"{{{_LINK}}}href") and value.startswith("#"):
            element.set(key, f"#{name}-{value[1:]}")
        elif "url(#" in value:
            element.set(key, value.replace("url(#", f"url(#{name}-"))
    style = element.get("style", "")
    if element.tag == f"{{{_SVG}}}text":
        style = re.sub(r"(font:[^;]*?px) [^;]*", rf"\1 {_FONT}", style)
        element.set("style", re.sub(r"font-family:[^;]*", f"font-family: {_FONT}", style))


@contextmanager
def _quiet() -> Iterator[None]:
    """Labels are in any script; the font of PNGs lacks some signs, and the reader's own draws those of SVGs."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        warnings.filterwarnings("ignore", message=".*not supported by .*")
        yield
