"""Measures each stage of the input pipeline, relative to decoding and cropping alone.

    python benchmarks/input_pipeline.py    # 512 generated JPEG files, two threads
    python benchmarks/input_pipeline.py --data_dir=/data/imagenet --threads=96

The stages take turns for several rounds. The images per second are medians; the
processor times are minima. The percentages compare processor times, because all threads
are always busy and other processes affect these times less. There are many images
because the buffers of a pipeline contain hundreds.
"""

import harness  # first: it keeps TensorFlow quiet  # isort: skip

import io
import os
import platform
import re
import statistics
import tempfile
import time

import numpy as np
import tensorflow as tf
from PIL import Image

from efficientnet_advprop.config.experiment import DataConfig
from efficientnet_advprop.data import augmentation, pipeline, preprocessing, records

_BATCH, _WARM_UP_BATCHES = 64, 6
# Of each picture in its file: with ImageNet's 1,251 records in each, beginning a file
# costs next to nothing.
_COPIES = 8
# What accelerators would eat: a vanilla step on an image is three passes of 2 · 0.39
# GFLOP for B0, AdvProp with PGD1 2.67 of them. The share of the peak is a guess on the
# high side; depthwise convolutions reach less.
_CHIPS = {
    "one TPU v3-8 (420 TFLOP/s bfloat16)": 420e12,
    "eight V100 (1000 TFLOP/s float16)": 1000e12,
}
_UTILIZATION = 0.3
_TARGETS = {
    "": 60,
    ", AutoAugment": 45,
    ", RandAugment (2, 10)": 40,
}  # of the training's stages and of the whole pipeline


def write_pictures(folder: str, number: int = 512) -> float:
    """Writes JPEGs of smooth colours and noise in eight files; returns their mean size in bytes."""
    rng = np.random.RandomState(0)
    sizes = []
    for shard in range(8):
        with records.ShardWriter(
            os.path.join(folder, records.shard_name("train", shard, 8))
        ) as writer:
            encoded = []
            for i in range(number // 8):
                width, height = (500, 375) if i % 3 else (375, 500)
                coarse, fine = (
                    Image.fromarray(rng.randint(0, 256, [h, w, 3]).astype(np.uint8)).resize(
                        (width, height), Image.Resampling.BICUBIC
                    )
                    for h, w in ((12, 12), (height // 2, width // 2))
                )
                pixels = np.clip(
                    np.asarray(coarse, float) + 0.3 * (np.asarray(fine, float) - 128), 0, 255
                ).astype(np.uint8)
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "JPEG", quality=88)
                sizes.append(len(buffer.getvalue()))
                encoded.append(records.make_example(buffer.getvalue(), i))
            for example in encoded * _COPIES:
                writer.write(example)
    return statistics.mean(sizes)


def decode_and_crop(encoded: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Runs the bound: what no pipeline of whole JPEGs can go without."""
    window = preprocessing.inception_window(tf.image.extract_jpeg_shape(encoded), seed, 0.875)
    return tf.image.decode_and_crop_jpeg(encoded, window, channels=3)


def make_stages(folder: str, size: int, threads: int) -> dict:
    """Returns datasets by name; those of single elements, of their encoded bytes from memory."""
    files = [
        os.path.join(folder, name)
        for name in sorted(tf.io.gfile.listdir(folder))
        if name.startswith("train-")
    ]
    rows = tf.data.Dataset.from_tensor_slices(files[:8]).flat_map(
        lambda file: tf.data.TFRecordDataset(file).take(128)
    )
    encoded = (
        rows.map(lambda row: records.parse(row, records.Split([], []))[0])
        .cache()
        .repeat()
        .enumerate()
    )

    def mapped(function):
        return encoded.map(
            lambda i, image: function(image, tf.stack([i, i])),
            num_parallel_calls=threads,
            deterministic=True,
        )

    def train(augment=None):
        return mapped(
            lambda image, seed: preprocessing.preprocess_for_train(
                image, size, seed=seed, augment=augment
            )
        )

    split = records.open_split(folder, "train")

    def whole(**changes):
        data = DataConfig(image_size=size, shuffle_buffer=256, **changes)
        return pipeline.make_train_dataset(
            data, split, global_batch_size=_BATCH, seed=0, num_classes=1000
        )

    return {
        "decode + random crop (the bound)": mapped(decode_and_crop),
        "read TFRecords": tf.data.TFRecordDataset(files).repeat(),
        "decode + crop + resize": mapped(
            lambda image, seed: preprocessing.resize(decode_and_crop(image, seed), size)
        ),
        "train": train(),
        "train, AutoAugment": train(augmentation.autoaugment),
        "train, RandAugment (2, 10)": train(
            lambda image, seed: augmentation.randaugment(image, seed, 2, 10)
        ),
        "evaluation": mapped(lambda image, seed: preprocessing.preprocess_for_eval(image, size)),
        "whole pipeline": whole(),
        "whole pipeline, AutoAugment": whole(augment="autoaugment"),
        "whole pipeline, RandAugment (2, 10)": whole(augment="randaugment"),
        "whole pipeline, MixUp": whole(mixup_alpha=0.2),
        "whole pipeline, CutMix": whole(cutmix_alpha=1.0),
    }


def consume(dataset: tf.data.Dataset, num_images: int) -> tuple[float, float]:
    """Returns the seconds on the clock and of the processors for so many images, once the buffers
    are full and the threads are busy.
    """
    if not isinstance(dataset.element_spec, dict):
        # Single images: as often as a batch, one of them comes to Python.
        dataset = dataset.shard(_BATCH, _BATCH - 1)
    elements = iter(dataset)
    for _ in range(_WARM_UP_BATCHES):
        next(elements)
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(num_images // _BATCH):
        next(elements)
    return time.perf_counter() - start, time.process_time() - cpu


def main():
    arguments = harness.parse(
        __doc__,
        data_dir=(None, "TFRecords to read; default: random pictures of some 500×375 and 70 kB"),
        threads=(2, "of the pipeline"),
        image_size=(224, "pixels"),
        num_images=(2048, f"in each measurement, a multiple of {_BATCH}"),
        rounds=(3, "of all measurements"),
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.data_dir or temporary
        if not arguments.data_dir:
            print(f"512 JPEGs of {write_pictures(folder) / 1000:.0f} kB on average")
        options = tf.data.Options()
        options.threading.private_threadpool_size = arguments.threads
        options.threading.max_intra_op_parallelism = 1
        stages = make_stages(folder, arguments.image_size, arguments.threads)
        seconds = {name: [] for name in stages}
        for _ in range(arguments.rounds):
            for name, dataset in stages.items():
                dataset = dataset.with_options(options)
                seconds[name].append(consume(dataset, arguments.num_images))
    report(seconds, arguments)


def report(seconds: dict, arguments) -> None:
    rates, cpu = {}, {}
    for name, values in seconds.items():
        walls, of_processors = zip(*values)
        rates[name] = arguments.num_images / statistics.median(walls)
        cpu[name] = min(of_processors) / arguments.num_images
    bound = next(iter(cpu.values()))
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, {arguments.threads} threads,"
        f" {arguments.image_size} px, TensorFlow {tf.__version__}"
    )
    for name, rate in rates.items():
        what = re.fullmatch("(?:train|whole pipeline)(.*)", name)
        target = f"  (to reach: {_TARGETS[what[1]]} %)" if what and what[1] in _TARGETS else ""
        print(
            f"{name:34s} {rate:7.0f} images/s {1e6 * cpu[name]:6.0f} µs of CPU"
            f" {100 * bound / cpu[name]:6.0f} %{target}"
        )
    per_image = 2.67 * 3 * 2 * 0.39e9
    for chips, flops in _CHIPS.items():
        needed = _UTILIZATION * flops / per_image
        print(
            f"AdvProp B0, PGD1, on {chips} at {100 * _UTILIZATION:.0f} % of the peak eats"
            f" {needed:,.0f} images/s: {needed * cpu['whole pipeline, AutoAugment']:.0f} such CPUs"
        )


if __name__ == "__main__":
    main()
