"""What AdvProp costs with Keras 3: its step (PGD1) beside plain `train_on_batch`.

    KERAS_BACKEND=jax python benchmarks/keras3_fit.py
    python benchmarks/keras_fit.py --keras=3 --backend=jax        # the same

MobileNetV3Small; the steps take turns, and the ratio is that of the medians of one run.
The target is at most (2·1 + 6)/3 = 2.67: of forward and backward, AdvProp makes 8 thirds.
"""

import argparse
import statistics
import time

import keras
import numpy as np

from efficientnet_advprop.keras3 import PGD, AdvPropModel, add_auxiliary_batch_norms

TARGET = 8 / 3


def make_step(is_advprop: bool, images, labels):
    """Returns a function that trains on one batch."""
    model = keras.applications.MobileNetV3Small(
        weights=None, input_shape=images.shape[1:], classes=1000, classifier_activation=None
    )
    if is_advprop:
        model = AdvPropModel(add_auxiliary_batch_norms(model), PGD(num_classes=1000))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-3), loss)
    if is_advprop:
        model.fit(images, labels, batch_size=len(images), verbose=0)  # what it checks first
    return lambda: model.train_on_batch(images, labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image_size", type=int, default=224, help="pixels")
    parser.add_argument("--batch_size", type=int, default=16, help="images")
    parser.add_argument("--rounds", type=int, default=7, help="timed runs of each step")
    arguments = parser.parse_args()
    random, size = np.random.default_rng(0), arguments.image_size
    images = random.uniform(0, 255, (arguments.batch_size, size, size, 3)).astype("float32")
    labels = random.integers(0, 1000, arguments.batch_size)
    steps = {name: make_step(name == "AdvProp", images, labels) for name in ("plain", "AdvProp")}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(arguments.rounds + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if index:  # the first one traces
                times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    for name, median in medians.items():
        print(f"{name:8s} {median:6.3f} s a step")
    ratio = medians["AdvProp"] / medians["plain"]
    verdict = "reached" if ratio <= TARGET else "missed"
    print(f"{keras.config.backend()}: {ratio:.3f} × plain (≤ {TARGET:.2f}: {verdict})")


if __name__ == "__main__":
    main()
