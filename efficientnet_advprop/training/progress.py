"""Reports the progress of a run: on the console, in `metrics.jsonl`, for TensorBoard.

    <model_dir>/metrics.jsonl   one JSON object per report, with "step", "epoch" and the metrics
    <model_dir>/summaries/      the same for TensorBoard, and pictures of the attack

Losses are cross-entropies (in training with label smoothing, never with weight decay), and
accuracies lie in [0, 1]. Training metrics are those of the network in training mode, as means over
all images since the last report.
"""

import concurrent.futures
import contextlib
import json
import math
import os
import time
from typing import Callable, Iterator, Mapping

import tensorflow as tf
from absl import logging

from efficientnet_advprop.evaluation.metrics import MIN_CLASSES_FOR_TOP5, Score
from efficientnet_advprop.runtime.errors import brief_message
from efficientnet_advprop.runtime.files import (
    format_duration,
    list_folder,
    temporary_path,
    to_json,
    write_atomically,
)

METRICS_FILE = "metrics.jsonl"
_SUMMARIES = "summaries"
_PERTURBATION_GAIN = 16  # a perturbation of one pixel unit would be invisible


class Progress:
    """Reports the progress of one run.

    Args:
        model_dir: the folder for `metrics.jsonl` and `summaries/`.
        start_step: the number of updates before this start. Reports of later steps are
            removed; a run that ended after its last checkpoint has left them.
        total_steps: the number of updates at the end of the run.
        steps_per_epoch: may be fractional.
        global_batch_size: clean images per update.
        num_classes: of the network; for fewer than ten the console leaves out top-5.
        log: a function that prints a line on the console.
        writes: False in processes that leave all reports to another process.
    """

    def __init__(
        self,
        model_dir: str,
        *,
        start_step: int,
        total_steps: int,
        steps_per_epoch: float,
        global_batch_size: int,
        num_classes: int,
        log: Callable[[str], None],
        writes: bool = True,
    ):
        self.log = log if writes else lambda line: None
        self._writes = writes
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._global_batch_size = global_batch_size
        self._has_top5 = num_classes >= MIN_CLASSES_FOR_TOP5
        self._path = os.path.join(model_dir, METRICS_FILE)
        # A thread of its own writes the files, because writing to a remote file system
        # would delay the training.
        self._background = concurrent.futures.ThreadPoolExecutor(1, "reports")
        self._pending: list[concurrent.futures.Future] = []
        if writes:
            _drop_later_reports(model_dir, start_step)
            self._writer = tf.summary.create_file_writer(os.path.join(model_dir, _SUMMARIES))
        self._timed_steps = 0
        self._timed_seconds = 0.0
        self._has_timed = False

    @contextlib.contextmanager
    def timing(self, num_steps: int) -> Iterator[None]:
        """Takes the time of a device loop, the body; says before the first why it takes long."""
        if not self._has_timed:
            self.log("tracing the training step, which takes seconds to minutes …")
        started = time.perf_counter()
        yield
        self.add_time(num_steps, time.perf_counter() - started)

    def expect_tracing(self) -> None:
        """Says that the next device loop is traced anew."""
        self._has_timed = False

    def add_time(self, num_steps: int, seconds: float) -> None:
        """Counts the time of a device loop, but not of the first, which includes tracing."""
        if self._has_timed:
            self._timed_steps += num_steps
            self._timed_seconds += seconds
        self._has_timed = True

    def report_training(
        self, step: int, metrics: Mapping[str, float], learning_rate: float
    ) -> None:
        """Reports the means since the last report: `<view>_loss` and `<view>_accuracy` of
        each kind of images, such as `clean_loss`. The console shows clean and adversarial.
        """
        line = f"step {step}/{self._total_steps}  epoch {step / self._steps_per_epoch:.2f}"
        figures = {**metrics, "learning_rate": learning_rate}
        line += "  loss" + _by_view(metrics, "loss", "{:.3f}", 1.0)
        line += "  accuracy" + _by_view(metrics, "accuracy", "{:.1f} %", 100.0)
        line += f"  lr {learning_rate:.3g}"
        if self._timed_steps:
            seconds_per_step = self._timed_seconds / self._timed_steps
            figures["images_per_second"] = self._global_batch_size / seconds_per_step
            line += f"  {figures['images_per_second']:.0f} images/s"
            line += f"  ETA {format_duration((self._total_steps - step) * seconds_per_step)}"
            self._timed_steps = 0
            self._timed_seconds = 0.0
        self.log(line)
        self._record(step, figures)

    def report_evaluation(self, step: int, score: Score, is_best: bool) -> None:
        """Reports the validation loss and accuracy of the averaged weights."""
        note = ", the best so far" if is_best else ""
        # Among five of a few classes the right one is found by chance.
        top5 = f"  top-5 {100 * score.top5:.2f} %" if self._has_top5 else ""
        self.log(
            f"step {step}/{self._total_steps}  validation loss {score.loss:.3f}"
            f"  top-1 {100 * score.top1:.2f} %{top5} of {score.num_images}{note}"
        )
        figures = {"loss": score.loss, "top1": score.top1, "top5": score.top5}
        figures["num_images"] = score.num_images
        self._record(step, {f"eval_{name}": value for name, value in figures.items()})

    def show_pictures(self, step: int, images: tf.Tensor, adversarial_images: tf.Tensor) -> None:
        """Shows `picture_grid` of the images, float [n, height, width, 3]."""
        self._submit(self._write_pictures, step, images, adversarial_images)

    def _write_pictures(self, step, images, adversarial_images):
        grid = picture_grid(images, adversarial_images)
        with self._writer.as_default(step=step):
            tf.summary.image(
                f"clean | perturbation x{_PERTURBATION_GAIN} | adversarial", grid[tf.newaxis]
            )
        self._writer.flush()

    def _record(self, step: int, figures: Mapping[str, float]) -> None:
        self._submit(self._write_figures, step, figures)

    def _write_figures(self, step, figures):
        entry = {"step": step, "epoch": step / self._steps_per_epoch, **figures}
        with tf.io.gfile.GFile(self._path, "a") as file:
            file.write(to_json(entry, indent=None) + "\n")
        with self._writer.as_default(step=step):
            for name, value in figures.items():
                group, _, rest = name.partition("_")
                tf.summary.scalar(
                    f"{group}/{rest}"
                    if group in ("clean", "adversarial", "eval")
                    else f"run/{name}",
                    value,
                )
        self._writer.flush()

    def _submit(self, write: Callable, *arguments) -> None:
        """Lets the thread write; the error of an earlier write is raised here."""
        if self._writes:
            self._pending.append(self._background.submit(write, *arguments))
            while self._pending and self._pending[0].done():
                self._pending.pop(0).result()

    def close(self) -> None:
        """Waits until everything is written; raises an `OSError` or `OpError` if it cannot be."""
        self._background.shutdown()
        if self._writes:
            self._writer.close()
        for future in self._pending:
            future.result()


def _by_view(metrics: Mapping[str, float], name: str, form: str, factor: float) -> str:
    """Returns a metric of the clean and, after that word, of the adversarial images."""
    words = {"clean": " ", "adversarial": " adversarial "}
    return "".join(
        word + form.format(factor * metrics[f"{view}_{name}"])
        for view, word in words.items()
        if f"{view}_{name}" in metrics
    )


def picture_grid(images: tf.Tensor, adversarial_images: tf.Tensor) -> tf.Tensor:
    """Returns a row per image: clean, 127.5 + 16 · perturbation, adversarial.

    uint8 [n·height, 3·width, 3].
    """
    images = tf.cast(images, tf.float32)
    adversarial_images = tf.cast(adversarial_images, tf.float32)
    perturbations = 127.5 + _PERTURBATION_GAIN * (adversarial_images - images)
    rows = tf.concat([images, perturbations, adversarial_images], axis=2)
    rows = tf.reshape(rows, [-1, *rows.shape[2:]])
    return tf.saturate_cast(tf.round(tf.clip_by_value(rows, 0.0, 255.0)), tf.uint8)


def read_metrics(model_dir: str) -> list[dict]:
    """Returns all reports of a run, in order, but a line that a dying process left unfinished."""
    path = os.path.join(model_dir, METRICS_FILE)
    if not tf.io.gfile.exists(path):
        return []
    with tf.io.gfile.GFile(path, "rb") as file:
        lines = file.read().splitlines()
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            # JSON has no NaN: what was none is null there.
            numbers = {name: math.nan if value is None else value for name, value in entry.items()}
            entries.append(numbers)
    return entries


def _drop_later_reports(model_dir: str, start_step: int) -> None:
    """Drops what a dead process reported after its last checkpoint: those steps come again."""
    kept = [entry for entry in read_metrics(model_dir) if entry["step"] <= start_step]
    text = "".join(to_json(entry, indent=None) + "\n" for entry in kept)
    write_atomically(os.path.join(model_dir, METRICS_FILE), text.encode())
    directory = os.path.join(model_dir, _SUMMARIES)
    for name in list_folder(directory) if tf.io.gfile.isdir(directory) else []:
        if ".tfevents." in name and not name.endswith(".tmp"):
            try:
                _drop_later_events(os.path.join(directory, name), start_step)
            except (tf.errors.OpError, OSError) as error:
                logging.warning("%s still shows later steps: %s", name, brief_message(error))


def _drop_later_events(path: str, last_step: int) -> None:
    rows = []
    with contextlib.suppress(tf.errors.DataLossError):  # killed while it was writing the last
        for row in tf.data.TFRecordDataset(path).as_numpy_iterator():
            rows.append(row)
    events = map(tf.compat.v1.Event.FromString, rows)
    kept = [row for row, event in zip(rows, events) if event.step <= last_step]
    if len(kept) == len(rows):
        return
    temporary = temporary_path(path)
    with tf.io.TFRecordWriter(temporary) as writer:
        for row in kept:
            writer.write(row)
    tf.io.gfile.rename(temporary, path, overwrite=True)
