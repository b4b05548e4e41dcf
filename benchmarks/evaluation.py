"""Measures the speed of evaluations, relative to pure inference of the same network.

    # EfficientNet-B0, 224 pixels, batch 64, generated JPEG files
    python benchmarks/evaluation.py

The evaluation is complete: reading and decoding JPEG files or TFRecords, preprocessing,
the network, and the five best classes of every image with their probabilities on the
host. Pure inference gets pixels in memory. The candidates take turns for several
rounds; the speeds are medians. The target is 90 % of the speed of pure inference. The
processor time per image gives the same information and is hardly affected by other
processes on the machine.
"""

import harness  # first: it keeps TensorFlow quiet  # isort: skip

import os
import pathlib
import platform
import statistics
import tempfile
import time

import input_pipeline
import numpy as np
import tensorflow as tf

from efficientnet_advprop.data import records
from efficientnet_advprop.evaluation.classifiers import as_classifier
from efficientnet_advprop.images import labeled_images
from efficientnet_advprop.models import EfficientNet

_TARGET = 90  # per cent


def write_files(folder: pathlib.Path) -> dict[str, labeled_images.LabeledImages]:
    """Writes the same pictures as records and as files."""
    input_pipeline.write_pictures(str(folder))
    of_records = labeled_images.RecordImages(records.open_split(str(folder), "train"), 1000)
    paths = []
    for position in range(of_records.num_images):
        paths.append(str(folder / f"{position}.jpg"))
        pathlib.Path(paths[-1]).write_bytes(of_records.encoded(position))
    return {
        "JPEG files": labeled_images.FileImages(paths, [0] * len(paths), str(folder)),
        "TFRecords": of_records,
    }


def time_batches(batches, num_batches: int, batch_size: int) -> tuple[float, float]:
    """Returns the seconds per image on the clock and of the processors, from the end of the first
    batch to that of the last.
    """
    batches = iter(batches)
    next(batches)
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(num_batches):
        next(batches)
    num_images = num_batches * batch_size
    return (time.perf_counter() - start) / num_images, (time.process_time() - cpu) / num_images


def main():
    arguments = harness.parse(
        __doc__,
        variant=("b0", "of EfficientNet"),
        batch_size=(64, "images"),
        num_batches=(8, "in each measurement, after a first one that is not timed"),
        rounds=(5, "of all measurements"),
    )
    classifier = as_classifier(EfficientNet(arguments.variant, aux_branches=0))
    size, batch_size = classifier.image_size, arguments.batch_size
    infer = tf.function(classifier.function, [tf.TensorSpec([batch_size, size, size, 3])])
    pixels = tf.constant(
        np.random.default_rng(0).uniform(0, 255, [batch_size, size, size, 3]), tf.float32
    )

    def infer_again_and_again():
        while True:
            yield infer(pixels).numpy()

    with tempfile.TemporaryDirectory() as folder:
        sets = write_files(pathlib.Path(folder))

        def evaluate(images):
            dataset = labeled_images.make_dataset(
                images, image_size=size, crop=classifier.crop, global_batch_size=batch_size
            )
            return classifier.predict(dataset.repeat())

        contenders = {"pure inference": infer_again_and_again}
        for name, images in sets.items():
            contenders[f"evaluation, {name}"] = lambda images=images: evaluate(images)
        timings = {name: [] for name in contenders}
        for _ in range(arguments.rounds + 1):  # the first round traces, and is dropped
            for name, start in contenders.items():
                timings[name].append(time_batches(start(), arguments.num_batches, batch_size))
    print(
        f"EfficientNet-{arguments.variant.upper()}, {size} px, batch {batch_size}, TensorFlow"
        f" {tf.__version__}, ",
        end="",
    )
    print(f"{platform.machine()}, {os.cpu_count()} CPUs")
    print(f"{'':28}{'images/s':>10}{'of inference':>14}{'CPU ms/image':>14}{'inference / it':>16}")
    reference = None
    for name, values in timings.items():
        seconds = statistics.median(wall for wall, _ in values[1:])
        cpu = min(cpu for _, cpu in values[1:])
        reference = reference or (seconds, cpu)
        share = 100 * reference[0] / seconds
        note = "" if name == "pure inference" else f"   target {_TARGET} %"
        print(
            f"{name:28}{1 / seconds:10.1f}{share:12.0f}"
            f" %{1e3 * cpu:14.2f}{100 * reference[1] / cpu:14.0f} %{note}"
        )


if __name__ == "__main__":
    main()
