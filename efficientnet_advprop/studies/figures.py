"""A study's claims in one picture: every contrast with its interval, a column for each metric.

Usage:

    png = draw_claims(summary)                                    # a `report.Summary`; bytes of a PNG file
"""

import io
import math

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from efficientnet_advprop.studies.report import Summary

_COLORS = {
    "shown": "#0e8a6d",
    "suggested": "#5cb8a2",
    "opposite": "#c2410c",
    "different": "#c2410c",
}
_OTHER, _GRID, _ROW_INCHES = "#5b6573", "#e6e9ee", 0.21
_STYLE = {
    "font.size": 8,
    "axes.edgecolor": _GRID,
    "xtick.color": _OTHER,
    "ytick.major.size": 0,
    "xtick.major.size": 0,
}


def draw_claims(summary: Summary) -> bytes:
    """The mean of each contrast in percentage points, its 95 % interval and the seeds' own values.

    Dark green is shown as claimed, light green suggested, red opposite to the claim or different where no difference is
    claimed, gray neither; the words are `estimates.verdict`'s. The few that are much larger than the others leave the picture
    at its edge, with their mean in figures. The same summary gives the same bytes.
    """
    rows = {}  # (claim, contrast) → row from the top, with a gap between claims
    for number, claim in enumerate(summary.claims):
        for finding in claim.findings:
            rows.setdefault((claim.key, finding.name), len(rows) + number)
    bottom = max(rows.values(), default=0) + 1
    with matplotlib.rc_context(_STYLE):
        figure = Figure(
            figsize=(4.0 + 2.6 * len(summary.metrics), 0.9 + _ROW_INCHES * bottom),
            layout="constrained",
        )
        panels = figure.subplots(1, len(summary.metrics), sharey=True, squeeze=False)[0]
        for axes, metric in zip(panels, summary.metrics):
            reach = _reach(summary, metric)
            axes.set_xlim(-reach, reach)
            for claim in summary.claims:
                for finding in claim.findings:
                    if finding.metric == metric and finding.estimate is not None:
                        _draw_interval(axes, rows[claim.key, finding.name], finding)
            axes.axvline(0.0, color=_OTHER, linewidth=0.8, linestyle=":")
            axes.set_title(f"{metric}, percentage points", fontsize=8, color=_OTHER)
            axes.grid(axis="x", color=_GRID)
            axes.set_axisbelow(True)
            axes.spines[["top", "right", "left"]].set_visible(False)
        panels[0].set_yticks(list(rows.values()), [f"({key}) {name}" for key, name in rows])
        panels[0].set_ylim(bottom - 0.3, -0.7)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=140, metadata={"Software": None})
    return buffer.getvalue()


def _reach(summary: Summary, metric: str) -> float:
    """What 24 of 25 ends of intervals stay within, in points."""
    ends = [
        abs(100 * end)
        for claim in summary.claims
        for finding in claim.findings
        if finding.metric == metric and finding.estimate is not None
        for end in (*finding.estimate.span, finding.estimate.mean)
    ]
    return 1.1 * float(np.quantile(ends, 0.96)) or 1.0 if ends else 1.0


def _draw_interval(axes, row: int, finding) -> None:
    color, estimate = _COLORS.get(finding.verdict, _OTHER), finding.estimate
    low, high = (100 * end for end in estimate.span)
    values = [100 * value for value in estimate.values]
    axes.plot(values, [row] * len(values), ".", color=color, alpha=0.35, markersize=3)
    axes.plot([low, high], [row, row], color=color, linewidth=1.4)
    mean, reach = 100 * estimate.mean, axes.get_xlim()[1]
    if abs(mean) <= reach:
        axes.plot([mean], [row], "o", color=color, markersize=4)
    else:
        side = math.copysign(1.0, mean)
        text = f"◂ {mean:+.1f}" if side < 0 else f"{mean:+.1f} ▸"
        axes.text(
            side * reach,
            row - 0.25,
            text,
            color=color,
            ha="left" if side < 0 else "right",
            va="bottom",
            fontsize=7,
        )
