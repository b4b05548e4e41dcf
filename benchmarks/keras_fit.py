"""What `fit` costs with either Keras: AdvProp's step, a conversion, a first step, inference.

    python benchmarks/keras_fit.py                     # Keras 2, some minutes on two cores
    python benchmarks/keras_fit.py --keras=3 --backend=jax
    python benchmarks/keras_fit.py --parts fit --image_size=224 --batch_size=16 --rounds=7
    python benchmarks/keras_fit.py --clock=processor   # where others compute, too

- fit: MobileNetV3Small's step under `AdvPropModel` (PGD1) against its plain step. Of
  forward and backward AdvProp makes 8 thirds where a plain step makes 3: the target is
  2.67. Eager PyTorch has none.
- trainer: EfficientNet-B0 of this project, converted and trained by SGD inside
  `AdvPropModel`, against the same network in the trainer's own step (Keras 2); at most
  1.05.
- conversion: `add_auxiliary_batch_norms` of Keras's EfficientNetB7; at most 10 s.
- first: conversion, tracing and the first step of `fit` of Keras's MobileNetV3Small, in
  a new process; at most 20 s.
- inference: seconds that Keras's EfficientNetB0 takes for 1 and for 16 images.

Steps take turns, and a ratio is that of the medians of one run.
"""

import harness  # first: it keeps TensorFlow quiet  # isort: skip

import json
import statistics
import time

import numpy as np

TARGETS = {"fit": 8 / 3, "trainer": 1.05, "conversion": 10.0, "first": 20.0}
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def doors(arguments):
    """Returns Keras, this package's door for its models, and the attack of that door."""
    if arguments.keras == 2:
        from efficientnet_advprop import keras as door
        from efficientnet_advprop.attacks import PGD
        from efficientnet_advprop.keras2 import keras
    else:
        import keras

        from efficientnet_advprop import keras3 as door
        from efficientnet_advprop.keras3 import PGD
    return keras, door, PGD


def batch(size: int, count: int):
    """Returns images and labels."""
    random = np.random.default_rng(0)
    images = random.uniform(0, 255, (count, size, size, 3)).astype("float32")
    return images, random.integers(0, 1000, count).astype("int32")


def take_turns(runs: dict, arguments) -> dict[str, float]:
    """Returns each function's median seconds; the first call of each is not counted."""
    clock, times = CLOCKS[arguments.clock], {name: [] for name in runs}
    for index in range(arguments.rounds + 1):
        for name, run in runs.items():
            started = clock()
            run()
            if index:
                times[name].append(clock() - started)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    for name, median in medians.items():
        print(f"{name:12s} {median:6.3f} s of {arguments.clock} time", flush=True)
    return medians


def time_fit(arguments) -> float:
    """Returns AdvProp's step in plain steps."""
    keras, door, PGD = doors(arguments)
    images, labels = batch(arguments.image_size, arguments.batch_size)
    runs = {}
    for name in ("plain", "AdvProp"):
        model = keras.applications.MobileNetV3Small(
            weights=None, input_shape=images.shape[1:], classes=1000, classifier_activation=None
        )
        if name == "AdvProp":
            attack = PGD(num_steps=arguments.num_steps, num_classes=1000)
            model = door.AdvPropModel(door.add_auxiliary_batch_norms(model), attack)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(1e-3), loss)
        if name == "AdvProp":
            model.fit(images, labels, batch_size=len(images), verbose=0)  # what it checks first
        runs[name] = lambda model=model: model.train_on_batch(images, labels)
    medians = take_turns(runs, arguments)
    return medians["AdvProp"] / medians["plain"]


def time_trainer(arguments) -> float:
    """Returns the step of `fit` in steps of the trainer."""
    import tensorflow as tf

    from efficientnet_advprop.models import EfficientNet
    from efficientnet_advprop.training import optimizers, steps
    from efficientnet_advprop.training.state import TrainState

    keras, door, PGD = doors(arguments)
    images, labels = map(tf.constant, batch(arguments.image_size, arguments.batch_size))
    attack = PGD(num_steps=arguments.num_steps, num_classes=1000)
    own = EfficientNet("b0", aux_branches=1)
    state = TrainState(own, optimizers.SGD(own.trainable_variables))
    own_step = tf.function(
        steps.make_train_step(
            "advprop",
            state,
            lambda step: tf.constant(1e-3),
            global_batch_size=arguments.batch_size,
            attack=attack,
            label_smoothing=0.0,
            weight_decay=0.0,
        )
    )
    dual = door.add_auxiliary_batch_norms(EfficientNet("b0", aux_branches=0))
    trainer = door.AdvPropModel(dual, attack)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(keras.optimizers.SGD(1e-3), loss)
    trainer.build_network(images)
    batches = iter(tf.data.Dataset.from_tensors((images, labels)).repeat())
    fit_step = trainer.make_train_function()

    runs = {
        "the trainer": lambda: harness.wait_for(own_step({"images": images, "labels": labels})),
        "AdvPropModel": lambda: harness.wait_for(fit_step(batches)),
    }
    medians = take_turns(runs, arguments)
    return medians["AdvPropModel"] / medians["the trainer"]


def time_conversion(arguments) -> float:
    """Returns the seconds of a conversion of EfficientNetB7."""
    keras, door, _ = doors(arguments)
    model = keras.applications.EfficientNetB7(weights=None)
    clock = CLOCKS[arguments.clock]
    started = clock()
    door.add_auxiliary_batch_norms(model)
    return clock() - started


def time_first_step(arguments) -> float:
    """Returns the seconds from a MobileNetV3Small to its first trained batch."""
    keras, door, PGD = doors(arguments)
    model = keras.applications.MobileNetV3Small(weights=None, classifier_activation=None)
    images, labels = batch(224, 4)
    clock = CLOCKS[arguments.clock]
    started = clock()
    trainer = door.AdvPropModel(door.add_auxiliary_batch_norms(model), PGD(num_classes=1000))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(keras.optimizers.SGD(1e-3), loss)
    trainer.fit(images, labels, verbose=0)
    return clock() - started


def time_inference(arguments) -> float:
    """Returns the seconds that 16 images take."""
    keras, _, _ = doors(arguments)
    model = keras.applications.EfficientNetB0(weights=None)
    images, _ = batch(224, 16)
    runs = {
        "1 image": lambda: model.predict_on_batch(images[:1]),
        "16 images": lambda: model.predict_on_batch(images),
    }
    return take_turns(runs, arguments)["16 images"]


PARTS = {
    "fit": time_fit,
    "trainer": time_trainer,
    "conversion": time_conversion,
    "first": time_first_step,
    "inference": time_inference,
}
UNITS = {"fit": "× the plain step", "trainer": "× the trainer's step"}


def main() -> None:
    arguments = harness.parse(
        __doc__,
        keras=(2, "which Keras", dict(choices=(2, 3))),
        backend=("tensorflow", "of Keras 3", dict(choices=("tensorflow", "jax", "torch"))),
        parts=(list(PARTS), "what to measure", dict(choices=PARTS)),
        image_size=(224, "pixels, of the steps"),
        batch_size=(16, "images, of the steps"),
        num_steps=(1, "iterations of PGD"),
        rounds=(7, "timed runs of each step"),
        clock=("wall", "what is counted", dict(choices=CLOCKS)),
        one=(None, "one part in this process; prints JSON", dict(choices=PARTS)),
    )
    if arguments.one:
        print(json.dumps(PARTS[arguments.one](arguments)))
        return
    names = ("keras", "image_size", "batch_size", "num_steps", "rounds", "clock")
    options = [f"--{name}={getattr(arguments, name)}" for name in names]
    variables = {"KERAS_BACKEND": arguments.backend} if arguments.keras == 3 else {}
    for part in arguments.parts:
        if part == "trainer" and arguments.keras == 3:
            continue  # its networks are Keras 2's
        lines, value = harness.run_alone(*options, f"--one={part}", **variables)
        told = f" ({harness.verdict(value, TARGETS[part])})" if part in TARGETS else ""
        print("\n".join([*lines, f"{part}: {value:.3f} {UNITS.get(part, 's')}{told}"]))


if __name__ == "__main__":
    main()
