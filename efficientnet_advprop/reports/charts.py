"""Charts, drawn by matplotlib, and images as text for HTML pages.

The same values give the same bytes.
"""

import base64
import contextlib
import dataclasses
import html
import io
from typing import Any, Iterator, Optional, Sequence

import matplotlib
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from PIL import Image

from efficientnet_advprop.data import image_formats
from efficientnet_advprop.runtime.errors import DataError

_INK = "#5b6573"
_GRID = "#e6e9ee"
_STYLE = {
    "svg.fonttype": "none",  # text stays text: the file is smaller and uses the font of the page
    "svg.hashsalt": "efficientnet_advprop",  # a fixed salt, so that the bytes are reproducible
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
    """One line of a chart."""

    label: str  # for screen readers and the source of the SVG; the page has the legend
    color: str  # of CSS
    values: Sequence[float]  # one for each x value
    intervals: Optional[Sequence[tuple[float, float]]] = None  # of each value, drawn as a band
    x: Optional[Sequence[float]] = None  # None: that of the chart
    dashed: bool = False
    markers: bool = True  # a dot at each value, if the chart has dots


@contextlib.contextmanager
def _axes(size: tuple[float, float], **style: str) -> Iterator[Any]:
    with matplotlib.rc_context({**_STYLE, **style}):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0.0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0.0)
        yield axes


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
) -> str:
    """Draws lines as an `<svg>` element of flexible width, the first one at the bottom.

    Args:
        x: the common x values; up to eight of them are the ticks.
        size: inches, for the proportions.
        scale: factor on all y values: 100 for percentages.
        y_range: of the y axis after scaling; None fits the values.
    """
    with _axes(size) as axes:
        for curve in curves:
            own_x = x if curve.x is None else curve.x
            style = dict(marker="o", markersize=3.2) if markers and curve.markers else {}
            axes.plot(
                own_x,
                np.multiply(curve.values, scale),
                "--" if curve.dashed else "-",
                color=curve.color,
                linewidth=1.8,
                label=curve.label,
                **style,
            )
            if curve.intervals is not None:
                low, high = np.multiply(curve.intervals, scale).T
                axes.fill_between(own_x, low, high, color=curve.color, alpha=0.14, linewidth=0)
        axes.set(xlabel=x_label, ylabel=y_label)
        if y_range is not None:
            axes.set_ylim(y_range[0], y_range[1] * 1.03)
        if len(x) <= 8:
            axes.set_xticks(x)
        return _as_svg(axes, y_label or "chart", curves)


def _as_svg(axes: Any, what: str, drawn: Sequence[Any]) -> str:
    buffer = io.StringIO()
    axes.figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    label = html.escape(f"{what} of {', '.join(one.label for one in drawn)}")
    return svg[svg.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def png_uri(image: np.ndarray) -> str:
    """Returns uint8 [height, width, 3] or [height, width] as a `data:` URI."""
    image = np.asarray(image)
    if image.ndim == 3 and (image == image[..., :1]).all():
        image = image[..., 0]  # a gray image needs a third of the bytes
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def bar_chart(
    groups: Sequence[str],
    curves: Sequence[Curve],
    *,
    x_label: str = "",
    scale: float = 100.0,
    mark: Optional[float] = None,
) -> str:
    """Draws groups, top to bottom, of one horizontal bar per curve, as an `<svg>`.

    `mark`, before scaling, is where a vertical line is drawn.
    """
    thickness = 0.76 / len(curves)
    size = (4.8, 0.6 + len(groups) * (0.1 + 0.12 * len(curves)))
    with _axes(size, **{"axes.grid.axis": "x"}) as axes:
        rows = np.arange(len(groups))
        for number, curve in enumerate(curves):
            middles = rows + (number + 0.5) * thickness - 0.38
            lengths = np.multiply(curve.values, scale)
            bars = axes.barh(middles, lengths, thickness * 0.86, color=curve.color)
            axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=7, color=_INK)
        if mark is not None:
            axes.axvline(mark * scale, color=_INK, linewidth=1, linestyle=":")
        axes.set_yticks(rows, groups)
        axes.invert_yaxis()
        axes.margins(x=0.08)
        axes.set_xlabel(x_label)
        return _as_svg(axes, x_label or "bars", curves)


def matrix_chart(counts: np.ndarray, names: Sequence[str]) -> str:
    """Draws a confusion matrix (int [classes, classes]) as an `<svg>`, each row in shades of its
    own sum.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 1.8 + 0.32 * len(names)
    with _axes((side + 0.6, side)) as axes:
        axes.grid(False)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (label, taken), count in np.ndenumerate(counts):
            if count:
                color = "white" if shares[label, taken] > 0.5 else "black"
                axes.text(taken, label, str(count), ha="center", va="center", color=color)
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("predicted")
        return _as_svg(axes, "confusion", [Curve(name, "", []) for name in names])


def reliability_chart(curves: Sequence[Curve], *, size: tuple[float, float] = (3.6, 3.2)) -> str:
    """Draws accuracies (`values`) over confidences (`x`), both fractions of 1, and the diagonal
    of perfect calibration.
    """
    perfect = Curve(
        "perfect calibration", _INK, (0.0, 1.0), x=(0.0, 1.0), dashed=True, markers=False
    )
    in_percent = [
        dataclasses.replace(curve, x=np.multiply(curve.x, 100.0)) for curve in (perfect, *curves)
    ]
    return line_chart(
        [0, 25, 50, 75, 100], in_percent, x_label="confidence, %", y_label="accuracy, %", size=size
    )


@dataclasses.dataclass(frozen=True)
class Interval:
    """One row of a chart of intervals: a mean, the ends of its interval, and the single
    values, drawn as faint dots.
    """

    label: str
    mean: float
    span: tuple[float, float]
    values: Sequence[float] = ()
    color: str = _INK


def draw_intervals(
    axes: Any,
    intervals: Sequence[Interval],
    rows: Sequence[float],
    x_range: Optional[tuple[float, float]] = None,
) -> None:
    """Draws intervals in per cent into matplotlib's axes, from top to bottom.

    Without `x_range` they are around a line at zero, and the axis holds 96 % of all
    numbers; a mean outside is written at the edge, a single value is left out.
    """
    scale, is_around_zero = 100.0, x_range is None
    if x_range is None:
        ends = [abs(scale * end) for one in intervals for end in (*one.span, one.mean, *one.values)]
        reach = 1.1 * float(np.quantile(ends, 0.96)) or 1.0 if ends else 1.0
        x_range = (-reach, reach)
        axes.axvline(0.0, color=_INK, linewidth=0.8, linestyle=":")
    axes.set_xlim(*x_range)
    for one, row in zip(intervals, rows):
        axes.plot(
            np.multiply(one.values, scale), [row] * len(one.values), ".",
            color=one.color, alpha=0.35, markersize=3, clip_on=is_around_zero,
        )  # fmt: skip
        axes.plot(np.multiply(one.span, scale), [row, row], color=one.color, linewidth=1.4)
        mean = scale * one.mean
        if x_range[0] <= mean <= x_range[1]:
            axes.plot([mean], [row], "o", color=one.color, markersize=4, clip_on=False)
            continue
        text = f"◂ {mean:+.1f}" if mean < 0 else f"{mean:+.1f} ▸"
        align = "left" if mean < 0 else "right"
        axes.text(
            x_range[mean > 0], row - 0.25, text,
            color=one.color, ha=align, va="bottom", fontsize=7,
        )  # fmt: skip
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=_GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def interval_chart(
    intervals: Sequence[Interval],
    *,
    x_label: str = "percentage points",
    x_range: Optional[tuple[float, float]] = None,
    size: Optional[tuple[float, float]] = None,
) -> str:
    """Draws means with their intervals, one per row, as an `<svg>` of flexible width."""
    with _axes(size or (6.4, 0.7 + 0.26 * len(intervals))) as axes:
        rows = range(len(intervals))
        draw_intervals(axes, intervals, rows, x_range)
        axes.set_yticks(rows, [one.label for one in intervals])
        axes.set_ylim(len(intervals) - 0.3, -0.7)
        axes.set_xlabel(x_label)
        return _as_svg(axes, x_label, intervals)


def thumbnail_uri(encoded: bytes, size: int = 160) -> Optional[str]:
    """Returns an encoded image as a small JPEG, at most `size` pixels long, in a `data:` URI.

    Images of at most 64 pixels become PNGs; None: it cannot be decoded.
    """
    try:
        pixels = image_formats.decode(image_formats.as_decodable(encoded))
    except (DataError, tf.errors.OpError):
        return None
    image = Image.fromarray(pixels.numpy())
    if max(image.size) <= 64:
        return png_uri(np.asarray(image))
    image.thumbnail((size, size))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
