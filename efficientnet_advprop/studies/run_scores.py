"""What is kept of a study's runs: which are done, with which scores, and how long the others take.

    read_scores("runs/study", "advprop/seed_3")     # {"clean": 0.97, …, "processor_seconds": 71.2}
    seconds_left(study, "runs/study", num_parallel=2)

<output_dir>/runs/<arm>/seed_<n>/scores.json holds the accuracies of a run; where it is, the run is
done. Nothing here imports TensorFlow, so that a study is listed at once.
"""

import dataclasses
import glob
import json
import os
import statistics
from typing import Optional

from efficientnet_advprop import files
from efficientnet_advprop.studies.plan import Run, Study

SCORES_FILE = "scores.json"


def run_dir(output_dir: str, name: str) -> str:
    """The folder of a run."""
    return os.path.join(output_dir, "runs", name)


def read_scores(output_dir: str, name: str) -> Optional[dict]:
    """A run's accuracies by metric, in [0, 1], and its "processor_seconds"; None: it is not done."""
    path = os.path.join(run_dir(output_dir, name), SCORES_FILE)
    return json.loads(files.read_text(path)) if files.exists(path) else None


@dataclasses.dataclass(frozen=True)
class RunProgress:
    """How far a run is.

    Args:
        run: which.
        scores: see `read_scores`; None: it is not done.
        seconds: processor time that it took or will take: the mean of its arm's, else what the study expects of it, scaled by
            how wrong that was about the others.
    """

    run: Run
    scores: Optional[dict]
    seconds: float


def progress(study: Study, output_dir: str) -> list[RunProgress]:
    """Every run of a study, in its order."""
    runs = study.runs()
    scores = {run.name: read_scores(output_dir, run.name) for run in runs}
    by_arm: dict[str, list[float]] = {}
    for run in runs:
        if scores[run.name]:
            by_arm.setdefault(run.arm, []).append(scores[run.name]["processor_seconds"])
    measured = sum(map(sum, by_arm.values()))
    expected_of_measured = sum(run.expected_seconds for run in runs if scores[run.name])
    ratio = measured / expected_of_measured if expected_of_measured else 1.0

    def seconds(run):
        return statistics.fmean(by_arm.get(run.arm, [ratio * run.expected_seconds]))

    return [RunProgress(run, scores[run.name], seconds(run)) for run in runs]


def seconds_left(study: Study, output_dir: str, num_parallel: int) -> float:
    """Until a study is done, with so many runs at a time and a processor for each."""
    return (
        sum(entry.seconds for entry in progress(study, output_dir) if entry.scores is None)
        / num_parallel
    )


def visible_gpus() -> list[str]:
    """The GPUs that a process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    found = glob.glob("/proc/driver/nvidia/gpus/*")  # one folder each, by NVIDIA's driver
    return [str(index) for index in range(len(found))]


def default_num_parallel() -> int:
    """One run per GPU or, without one, per CPU core.

    The networks are too small to keep more busy.
    """
    return len(visible_gpus()) or os.cpu_count() or 1
