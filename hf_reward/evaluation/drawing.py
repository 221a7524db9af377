"""A figure -> bytes: SVG for a page or a file, and PNG; the same figure gives the same bytes."""

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
    """Whether matplotlib is installed; if not, one line of the log names the extra that installs it."""
    return optional("matplotlib", "audit", "Figures are left out.") is not None


def as_png(figure: "Figure") -> bytes:
    """A figure as PNG on white.

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
    """A figure as an SVG file of its own, in the colours of paper.

    Args:
        figure: The figure.
        name: What makes its ids differ from those of other figures.

    Returns:
        The document: no type declaration, metadata, style sheet, script or address of anything outside.
    """
    return ElementTree.tostring(_tree(figure, name), encoding="unicode") + "\n"


def inline_svg(figure: "Figure", name: str, words: str) -> Markup:
    """A figure as an element of a page, whose style sheet has other colours in dark.

    Args:
        figure: The figure.
        name: Unlike that of any other figure of the page.
        words: What it shows, for those who do not see it.

    Returns:
        The element; text in it is escaped.
    """
    root = _tree(figure, name)
    root.set("role", "img")
    root.set("aria-label", plain_line(words))
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # made here from escaped parts alone


def _tree(figure: "Figure", name: str) -> ElementTree.Element:
    out = io.StringIO()
    with _quiet(), require("matplotlib", "audit").rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(out, format="svg", metadata=_HIDDEN)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _LINK)
    root = ElementTree.fromstring(out.getvalue())
    for parent in list(root.iter()):
        if parent.tag == f"{{{_SVG}}}g":
            parent.attrib.pop("id", None)  # numbers of parts, the same in every figure
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")
    return root


@contextmanager
def _quiet() -> Iterator[None]:
    """Labels are in any script; the font of PNGs lacks some signs, and the reader's own draws those of SVGs."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        warnings.filterwarnings("ignore", message=".*not supported by .*")
        yield
