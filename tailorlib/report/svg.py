"""A matplotlib figure as SVG that is part of an HTML page.

The text stays text. Colours of the palette become CSS variables, so that it suits a page in light and dark. There
are no style attributes or elements, so that a page may forbid them; ids are renamed, so that several figures can
stand in one page and the same figure always gives the same text.
"""

from __future__ import annotations

import io
import re
import warnings
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from tailorlib.report import palette
from tailorlib.report.names import clean

SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
NAMED = ("BLUE", "ORANGE", "VERMILION", "GREY", "LIGHT", "GREEN", "PURPLE", "SKY", "INK")
COLOURS = {
    **{getattr(palette, name).lower(): f"var(--{name.lower()})" for name in NAMED},
    "#000000": "var(--ink)",
    "#ffffff": "var(--paper)",
    "#808080": "var(--grey)",
    "#b0b0b0": "var(--light)",  # matplotlib's grids and frames
    "#cccccc": "var(--light)",
}
"""CSS variable of each colour that figures use."""
ATTRIBUTES = (
    *("fill", "fill-opacity", "fill-rule", "opacity", "font-size", "font-style", "font-weight", "text-anchor"),
    *("stroke", "stroke-dasharray", "stroke-dashoffset", "stroke-linecap", "stroke-linejoin", "stroke-miterlimit"),
    *("stroke-opacity", "stroke-width"),
)
"""What is kept of a style."""
PIXELS = 4 / 3
"""Pixels of CSS in a point."""
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def to_svg(figure: Figure, name: str, title: str, description: str) -> Markup:
    """Return a figure as an ``<svg>`` element.

    Args:
        figure: The figure.
        name: A word that no other figure of the page has.
        title: What it is, for those who can't see it.
        description: What it shows.
    """
    for axes in figure.axes:
        axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    out = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Glyph.*missing from font.*")  # the browser has others
        figure.savefig(out, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(out.getvalue())
    for parent in list(root.iter()):
        for child in [c for c in parent if c.tag in (f"{SVG}style", f"{SVG}metadata")]:
            parent.remove(child)
    _rename(root, name)
    for element in root.iter():
        _plain(element)
    width, height = (float(v) for v in root.attrib["viewBox"].split()[2:])
    root.attrib.clear()
    root.attrib["viewBox"] = f"0 0 {width:g} {height:g}"
    root.attrib |= {"width": f"{width * PIXELS:.0f}", "height": f"{height * PIXELS:.0f}"}
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title {name}-desc", "class": "plot"}
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag, {"id": f"{name}-{tag}"})
        element.text = clean(text)
        root.insert(place, element)
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # escapes text and attributes


def _rename(root: ElementTree.Element, name: str) -> None:
    """Number the ids that something refers to, and drop the others."""
    used = {ref for e in root.iter() for v in e.attrib.values() for ref in _REFERENCE.findall(v)}
    used |= {e.attrib[key][1:] for e in root.iter() for key in (f"{XLINK}href", "href") if key in e.attrib}
    ids = [e.attrib["id"] for e in root.iter() if e.attrib.get("id") in used]
    names = {old: f"{name}-{i}" for i, old in enumerate(ids)}
    for element in root.iter():
        old = element.attrib.pop("id", None)
        if old in names:
            element.attrib["id"] = names[str(old)]
        for key, value in element.attrib.items():
            element.attrib[key] = _REFERENCE.sub(lambda m: f"url(#{names[m[1]]})", value)
        target = element.attrib.pop(f"{XLINK}href", None)
        if target is not None:
            element.attrib["href"] = f"#{names[target[1:]]}"


def _plain(element: ElementTree.Element) -> None:
    """Turn a style attribute into presentation attributes."""
    element.tag = element.tag.removeprefix(SVG)
    style = element.attrib.pop("style", "")
    for declaration in filter(None, map(str.strip, style.split(";"))):
        key, _, value = declaration.partition(":")
        key, value = key.strip(), value.strip()
        if key == "font":  # such as: bold 12px 'DejaVu Sans', sans-serif
            size = re.search(r"([\d.]+)px", value)
            element.attrib |= {"font-size": size[1]} if size else {}
            element.attrib |= {"font-weight": "bold"} if "bold" in value.split("px")[0] else {}
        elif key in ATTRIBUTES:
            element.attrib[key] = COLOURS.get(value.lower(), value)
    for key in ("fill", "stroke"):
        if element.attrib.get(key, "").lower() in COLOURS:
            element.attrib[key] = COLOURS[element.attrib[key].lower()]
    for child in element:
        child.tail = None
    if element.tag not in ("text", "tspan"):
        element.text = None
