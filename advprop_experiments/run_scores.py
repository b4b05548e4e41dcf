"""Reads which runs of a study are done, their scores, and the time that the others need.

A run is done if <output_dir>/runs/<arm>/seed_<n>/scores.json exists. This module does
not import TensorFlow, so that `--list` answers at once.
"""

import base64
import glob
import json
import os
import statistics
from typing import Mapping, Optional

import numpy as np

from advprop_experiments.plan import Run, Study
from efficientnet_advprop.runtime import files

SCORES_FILE = "scores.json"


def run_dir(output_dir: str, name: str) -> str:
    """Returns the folder of a run."""
    return os.path.join(output_dir, "runs", name)


def read_scores(output_dir: str, name: str) -> Optional[dict]:
    """Returns a run's accuracies by metric, its "processor_seconds", and of studies that keep
    them "images": metric → test set → `pack_images`; None: it is not done.
    """
    path = os.path.join(run_dir(output_dir, name), SCORES_FILE)
    return json.loads(files.read_text(path)) if files.exists(path) else None


def pack_images(is_right: np.ndarray) -> dict:
    """Returns bool [n], whether each test image is classified correctly, as JSON takes it."""
    bits = base64.b64encode(np.packbits(is_right).tobytes()).decode()
    return {"num_images": len(is_right), "is_right": bits}


def unpack_images(packed: Mapping) -> np.ndarray:
    """Returns what `pack_images` packed: bool [n]."""
    bits = np.frombuffer(base64.b64decode(packed["is_right"]), np.uint8)
    return np.unpackbits(bits, count=packed["num_images"]).astype(bool)


def read_all_scores(study: Study, output_dir: str) -> dict[str, Optional[dict]]:
    """Returns each run's name → its `read_scores`, in the order of the study."""
    return {run.name: read_scores(output_dir, run.name) for run in study.runs()}


def progress(study: Study, output_dir: str) -> list[tuple[Run, bool, float]]:
    """Returns every run, whether it is done, and the processor time that it took or will take.

    That is the mean over runs of its arm. If none is done, it is the time that the study
    expects, scaled by the ratio of measured to expected time of all finished runs.
    """
    runs = study.runs()
    scores = read_all_scores(study, output_dir)
    by_arm: dict[str, list[float]] = {}
    for run in runs:
        if scores[run.name]:
            by_arm.setdefault(run.arm, []).append(scores[run.name]["processor_seconds"])
    expected = sum(run.expected_seconds for run in runs if scores[run.name])
    ratio = sum(map(sum, by_arm.values())) / expected if expected else 1.0
    return [
        (
            run,
            scores[run.name] is not None,
            statistics.fmean(by_arm.get(run.arm, [ratio * run.expected_seconds])),
        )
        for run in runs
    ]


def seconds_left(study: Study, output_dir: str, num_parallel: int) -> float:
    """Returns the time until a study is done with `num_parallel` runs at a time."""
    entries = progress(study, output_dir)
    return sum(seconds for _, is_done, seconds in entries if not is_done) / num_parallel


def visible_gpus() -> list[str]:
    """Returns the GPUs that a process may use, by CUDA_VISIBLE_DEVICES's names."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    gpu_folders = glob.glob("/proc/driver/nvidia/gpus/*")  # NVIDIA's driver makes one per GPU
    return [str(index) for index in range(len(gpu_folders))]


def default_num_parallel() -> int:
    """Returns one run per GPU or CPU core: the networks are too small to use more."""
    return len(visible_gpus()) or os.cpu_count() or 1
