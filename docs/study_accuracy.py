"""README.md's picture: what three ways of training reach on clean, corrupted and
attacked digits.

    # Reads docs/study/digits_v2/report.json, writes docs/study/accuracy.png.
    python docs/study_accuracy.py

A dot is one seed; beside the dots of a method stand its mean and the 95 % interval of
the mean over the seeds, as the report has them.
"""

import json
import pathlib

import matplotlib
from matplotlib.figure import Figure

STUDY = pathlib.Path(__file__).parent / "study"
METHODS = {  # arm → label, color
    "vanilla": ("vanilla", "#5b6573"),
    "adversarial": ("same batch norms", "#c2410c"),
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
        for column, (method, (_, color)) in enumerate(METHODS.items()):
            score = report["arms"][method][metric]
            values = [100 * value for value in score["values"]]
            places = [column - 0.2 + 0.02 * (number % 5) for number in range(len(values))]
            axes.plot(places, values, ".", color=color, alpha=0.45, markersize=5)
            low, high = (100 * end for end in score["interval"])
            mean = 100 * score["mean"]
            axes.errorbar(
                [column + 0.05],
                [mean],
                yerr=[[mean - low], [high - mean]],
                fmt="o",
                color=color,
                capsize=4,
                linewidth=2,
                markersize=5,
            )
            axes.annotate(
                f"{mean:.1f}",
                (column + 0.05, mean),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
                color=color,
            )
        axes.set_title(title, fontsize=10)
        axes.set_xticks(range(len(METHODS)), [label for label, _ in METHODS.values()])
        axes.set_xlim(-0.5, len(METHODS) - 0.4)
        axes.tick_params(length=0, labelsize=8)
        axes.grid(axis="y", color="#e6e9ee")
        axes.spines[["top", "right", "left"]].set_visible(False)
    panels[0].set_ylabel("top-1 accuracy, %", fontsize=9)
    return figure


if __name__ == "__main__":
    matplotlib.use("Agg")
    found = json.loads((STUDY / "digits_v2" / "report.json").read_text())
    draw(found).savefig(STUDY / "accuracy.png", dpi=130, metadata={"Software": None})
