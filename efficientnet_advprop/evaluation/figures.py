"""Charts and pictures as text that an HTML page can hold: inline SVG by matplotlib, PNG as data URIs.

    curve = Curve("AdvProp", "#0b6bcb", [0.97, 0.95, 0.9])
    svg = line_chart([1, 2, 3], [curve], x_label="severity", y_label="top-1, %", scale=100)
    uri = png_uri(image)                                          # for <img src="…">
"""

import base64
import dataclasses
import html
import io
from typing import Optional, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

_INK, _GRID = "#5b6573", "#e6e9ee"
_STYLE = {
    "svg.fonttype": "none",  # text stays text: small, and in the page's own font
    "svg.hashsalt": "efficientnet_advprop",  # the same figures give the same bytes
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


@dataclasses.dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Args:
        label: for screen readers and the SVG's source; the page has the legend.
        color: CSS.
        values: y, one per x of the chart or of `x`.
        intervals: (low, high) per value, drawn as a band.
        x: its own x values.
        dashed: for the second of two kinds of lines.
    """

    label: str
    color: str
    values: Sequence[float]
    intervals: Optional[Sequence[tuple[float, float]]] = None
    x: Optional[Sequence[float]] = None
    dashed: bool = False


def line_chart(
    x: Sequence[float],
    curves: Sequence[Curve],
    *,
    x_label: str = "",
    y_label: str = "",
    size: tuple[float, float] = (4.6, 2.6),
    scale: float = 100.0,
    y_range: Optional[tuple[float, float]] = (0.0, 100.0),
    markers: bool = True,
    ticks: Optional[Sequence[float]] = None,
) -> str:
    """A line chart as an `<svg>` element of flexible width.

    Args:
        x: common x values.
        curves: what to draw, the first one lowest.
        x_label, y_label: of the axes; empty for none.
        size: inches, for the proportions.
        scale: factor on all y values: 100 for percentages.
        y_range: after scaling; None fits the values.
        markers: a dot at each value.
        ticks: of the x axis; None takes `x`, or matplotlib's choice where there are more than eight.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0.0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0.0)
        for curve in curves:
            own_x = x if curve.x is None else curve.x
            style = dict(marker="o", markersize=3.2) if markers else {}
            line = "--" if curve.dashed else "-"
            axes.plot(
                own_x, np.multiply(curve.values, scale), line, color=curve.color, linewidth=1.8, label=curve.label, **style
            )
            if curve.intervals is not None:
                low, high = np.multiply(curve.intervals, scale).T
                axes.fill_between(own_x, low, high, color=curve.color, alpha=0.14, linewidth=0)
        axes.set(xlabel=x_label, ylabel=y_label)
        if y_range is not None:
            axes.set_ylim(y_range[0], y_range[1] * 1.03)
        if ticks is not None or len(x) <= 8:
            axes.set_xticks(x if ticks is None else ticks)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    label = html.escape(f"{y_label or 'chart'} of {', '.join(curve.label for curve in curves)}")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def png_uri(image: np.ndarray) -> str:
    """An image as a `data:` URI. `image`: uint8 [height, width, 3] or [height, width]."""
    image = np.asarray(image)
    if image.ndim == 3 and (image == image[..., :1]).all():
        image = image[..., 0]  # gray: a third of the bytes
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
