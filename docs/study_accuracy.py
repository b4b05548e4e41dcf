"""README.md's picture: what three ways of training reach on clean, corrupted and
attacked digits.

    # Reads docs/study/report.json, writes docs/study/accuracy.png.
    python docs/study_accuracy.py

A dot is one seed, a bar the 95 % interval of the mean over the seeds, as the report has
it.
"""

import json
import pathlib

import matplotlib
from matplotlib.figure import Figure

STUDY = pathlib.Path(__file__).parent / "study"
SIZES = ("small", "medium", "large")
METHODS = {  # name of the arm before its size → label, color
    "vanilla": ("vanilla", "#5b6573"),
    "adversarial": ("adversarial, same batch norms", "#c2410c"),
    "advprop": ("AdvProp", "#0b6bcb"),
}
TITLES = {"clean": "clean images", "corrupted": "corrupted images", "attacked": "attacked images"}


def draw(report: dict) -> Figure:
    """A panel for each metric of the study's report, the parsed `report.json`; top-1 in
    percent.
    """
    figure = Figure(figsize=(9.0, 2.9), layout="constrained")
    panels = figure.subplots(1, len(TITLES))
    for axes, (metric, title) in zip(panels, TITLES.items()):
        for place, (method, (label, color)) in enumerate(METHODS.items()):
            for column, size in enumerate(SIZES):
                score = report["arms"][f"{method}_{size}"][metric]
                x = column + 0.24 * (place - 1)
                values = [100 * value for value in score["values"]]
                axes.plot([x] * len(values), values, ".", color=color, alpha=0.35, markersize=4)
                axes.plot(
                    [x, x], [100 * end for end in score["interval"]], color=color, linewidth=2
                )
                first = {"label": label} if column == 0 else {}
                axes.plot([x], [100 * score["mean"]], "o", color=color, markersize=5, **first)
        axes.set_title(title, fontsize=10)
        axes.set_xticks(range(len(SIZES)), [f"{size} network" for size in SIZES], fontsize=8)
        axes.tick_params(length=0, labelsize=8)
        axes.grid(axis="y", color="#e6e9ee")
        axes.spines[["top", "right", "left"]].set_visible(False)
    panels[0].set_ylabel("top-1 accuracy, %", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    matplotlib.use("Agg")
    found = json.loads((STUDY / "report.json").read_text())
    draw(found).savefig(STUDY / "accuracy.png", dpi=130, metadata={"Software": None})
