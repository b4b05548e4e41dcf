"""Draws the claims of a study as one picture: every contrast with its interval."""

import io

import matplotlib
from matplotlib.figure import Figure

from advprop_experiments.report import Summary, as_interval
from efficientnet_advprop.reports.charts import draw_intervals

_OTHER = "#5b6573"
_GRID = "#e6e9ee"
_ROW_INCHES = 0.21
_STYLE = {
    "font.size": 8,
    "axes.edgecolor": _GRID,
    "xtick.color": _OTHER,
    "ytick.major.size": 0,
    "xtick.major.size": 0,
}


def draw_claims(summary: Summary) -> bytes:
    """The mean of each contrast, its 95 % interval and the values of the seeds, per
    metric.

    Dark green means shown as claimed, light green suggested, red opposite to the claim
    (or different where no difference is claimed), and gray neither; `estimates.verdict`
    defines these words. Means that are much larger than the others are written as
    numbers at the edge of the picture. The same summary gives the same bytes.
    """
    rows = {}  # (claim, contrast) → row from the top, with a gap between claims
    for number, claim in enumerate(summary.study.claims):
        for finding in summary.findings_of(claim):
            rows.setdefault((claim.key, finding.contrast.name), len(rows) + number)
    metrics = summary.study.metrics()
    bottom = max(rows.values(), default=0) + 1
    with matplotlib.rc_context(_STYLE):
        figure = Figure(
            figsize=(4.0 + 2.6 * len(metrics), 0.9 + _ROW_INCHES * bottom),
            layout="constrained",
        )
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axes, metric in zip(panels, metrics):
            shown = {
                rows[finding.claim.key, finding.contrast.name]: as_interval(finding)
                for finding in summary.findings
                if finding.metric == metric and finding.estimate is not None
            }
            draw_intervals(axes, list(shown.values()), list(shown))
            axes.set_title(f"{metric}, percentage points", fontsize=8, color=_OTHER)
        panels[0].set_yticks(list(rows.values()), [f"({key}) {name}" for key, name in rows])
        panels[0].set_ylim(bottom - 0.3, -0.7)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=140, metadata={"Software": None})
    return buffer.getvalue()
