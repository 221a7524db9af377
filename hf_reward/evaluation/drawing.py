"""Figures -> SVG for a page or a file, and PNG; the output is deterministic."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

from hf_reward.data.extras import optional, require
from hf_reward.evaluation.plain_text import plain_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_HIDDEN = {"Date": None, "Creator": None, "Format": None, "Type": None}


def can_draw() -> bool:
    """Return whether matplotlib is installed; if not, one log message names the extra that installs it."""
    return optional("matplotlib", "audit", "Figures are left out.") is not None


def as_png(figure: "Figure") -> bytes:
    """Return a figure as PNG on white.

    Args:
        figure: The figure.

    Returns:
        Content of the file.
    """
    out = io.BytesIO()
    with _quiet():
        box = figure.bbox_inches.padded(0.15)
        figure.savefig(out, format="png", dpi=130, bbox_inches=box, metadata={"Software": None})
    return out.getvalue()


def as_svg(figure: "Figure", name: str) -> str:
    """Return a figure as a standalone SVG file in light colours.

    Args:
        figure: The figure.
        name: Salt that makes its ids differ from those of other figures.

    Returns:
        The document, without type declaration, metadata, style sheet, script or external references.
    """
    return ElementTree.tostring(_tree(figure, name), encoding="unicode") + "\n"


def inline_svg(figure: "Figure", name: str, words: str) -> Markup:
    """Return a figure as an element of a page, whose style sheet replaces the colours in dark mode.

    Args:
        figure: The figure.
        name: Unique name within the page.
        words: Text alternative.

    Returns:
        The element; its text is escaped.
    """
    root = _tree(figure, name)
    root.set("role", "img")
    root.set("aria-label", plain_line(words))
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # all parts are escaped


def _tree(figure: "Figure", name: str) -> ElementTree.Element:
    out = io.StringIO()
    with _quiet(), require("matplotlib", "audit").rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(out, format="svg", metadata=_HIDDEN)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _LINK)
    root = ElementTree.fromstring(out.getvalue())
    for parent in list(root.iter()):
        if parent.tag == f"{{{_SVG}}}g":
            parent.attrib.pop("id", None)  # ids of parts, which repeat in every figure
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")
    return root


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings about missing glyphs: labels can be in any script, and viewers of SVGs use their own fonts."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        warnings.filterwarnings("ignore", message=".*not supported by .*")
        yield
