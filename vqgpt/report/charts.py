"""Curves as SVG, drawn by matplotlib: text stays text, colours are those of the page, each point knows its values.

    Chart (titles, series of numbers)  ->  an <svg> element to stand in a page

Points are elements with `data-value`, which the page shows on hover and focus; the first of each series can be reached
by Tab, the others with the arrow keys. Must not import torch.
"""

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

MOST_POINTS = 120  # of a series; more are too near to each other to be chosen
WIDTH, HEIGHT = 6.4, 3.0  # inches of 72 points
SERIES = tuple(f"#0000{number:02x}" for number in range(1, 7))  # which the page gives colours that suit its background
INK, FAINT = "#010000", "#020000"
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


@dataclass(frozen=True, kw_only=True)
class Series:
    """Numbers y at x, in rising order of x."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]

    def thinned(self, most: int) -> "Series":
        """At most so many of its points, evenly spaced, the last among them."""
        step = math.ceil(len(self.x) / most)
        kept = range((len(self.x) - 1) % step, len(self.x), step) if self.x else range(0)
        return Series(name=self.name, x=tuple(self.x[i] for i in kept), y=tuple(self.y[i] for i in kept))


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves over one axis. `unit` belongs to y; `logarithmic` is for positive numbers over several decades."""

    title: str
    x_title: str
    unit: str
    series: tuple[Series, ...]
    logarithmic: bool = False


def svg(chart: Chart) -> str:
    """The chart as an <svg> element, the same bytes for the same chart."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": chart.title, "font.size": 9.0}
    settings["text.parse_math"] = False  # names may have a $ in them
    settings |= dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    settings |= dict.fromkeys(("axes.edgecolor", "grid.color"), FAINT)
    with mpl.rc_context(settings):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        shown = [series.thinned(MOST_POINTS) for series in chart.series]
        for number, series in enumerate(shown):
            color = SERIES[number % len(SERIES)]
            dash = ("-", "--", ":", "-.")[number % 4]  # series differ without colour too
            (line,) = axes.plot(
                series.x, series.y, dash, color=color, marker="o", markersize=3.5, label=f"\u200b{series.name}"
            )
            line.set_gid(f"series-{number}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(chart.x_title)
        axes.set_ylabel(chart.unit)
        if chart.logarithmic:
            axes.set_yscale("log")
        axes.grid(visible=True)
        axes.spines[["top", "right"]].set_visible(False)
        if len(shown) > 1:
            axes.legend(frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_a_page(buffer.getvalue(), chart, shown)


def _for_a_page(drawn: str, chart: Chart, shown: Iterable[Series]) -> str:
    """The drawing without what only files need, with a name, and with the values of its points."""
    for name, uri in (("", SVG), ("xlink", XLINK)):
        ElementTree.register_namespace(name, uri)
    root = ElementTree.fromstring(drawn.encode())
    for element in root.findall(f"{{{SVG}}}metadata"):
        root.remove(element)
    del root.attrib["width"], root.attrib["height"]
    root.attrib |= {"role": "group", "aria-label": f"{chart.title}, {chart.unit}, by {chart.x_title}", "class": "chart"}
    for number, series in enumerate(shown):
        group = root.find(f".//{{{SVG}}}g[@id='series-{number}']")
        assert group is not None
        del group.attrib["id"]  # a page has several charts
        for index, (point, x, y) in enumerate(zip(group.iter(f"{{{SVG}}}use"), series.x, series.y, strict=True)):
            said = f"{series.name}, {chart.x_title} {x:g}: {y:.4g}"
            point.attrib |= {"role": "img", "aria-label": said, "data-value": said}
            point.attrib["tabindex"] = "-1" if index else "0"
    text = ElementTree.tostring(root, encoding="unicode")
    of_the_page = {INK: "ink", FAINT: "line", **{color: f"series-{number}" for number, color in enumerate(SERIES, 1)}}
    for color, name in of_the_page.items():
        text = text.replace(color, f"var(--{name})")
    return text
