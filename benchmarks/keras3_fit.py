"""What AdvProp costs with Keras 3: its step (PGD1) beside plain `train_on_batch`.

    KERAS_BACKEND=jax python benchmarks/keras3_fit.py
    python benchmarks/keras_fit.py --keras=3 --backend=jax        # the same

MobileNetV3Small; the steps take turns, and the ratio is that of the medians of one run.
The target is at most (2·1 + 6)/3 = 2.67: of forward and backward, AdvProp makes 8 thirds.
"""

import harness  # first: it keeps TensorFlow quiet  # isort: skip

import keras
import numpy as np

from efficientnet_advprop.keras3 import PGD, AdvPropModel, add_auxiliary_batch_norms


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
    arguments = harness.parse(
        __doc__,
        image_size=(224, "pixels"),
        batch_size=(16, "images"),
        rounds=(7, "timed runs of each step"),
    )
    random, size = np.random.default_rng(0), arguments.image_size
    images = random.uniform(0, 255, (arguments.batch_size, size, size, 3)).astype("float32")
    labels = random.integers(0, 1000, arguments.batch_size)
    steps = {name: make_step(name == "AdvProp", images, labels) for name in ("plain", "AdvProp")}
    medians = harness.median_by_turns(steps, arguments.rounds)
    for name, median in medians.items():
        print(f"{name:8s} {median:6.3f} s a step")
    ratio = medians["AdvProp"] / medians["plain"]
    print(f"{keras.config.backend()}: {ratio:.3f} × plain ({harness.verdict(ratio, 8 / 3)})")


if __name__ == "__main__":
    main()
