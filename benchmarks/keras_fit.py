"""What `fit` costs: `AdvPropModel`'s step against the trainer's, a conversion, a first
step.

    python benchmarks/keras_fit.py                     # all three, some minutes on two cores
    python benchmarks/keras_fit.py --keras=3 --backend=jax     # keras3_fit.py
    python benchmarks/keras_fit.py --parts=step --image_size=224 --batch_size=16 --rounds=7

- step: EfficientNet-B0 of this project, converted and trained by SGD inside
  `AdvPropModel`, against the same network in the trainer's own step. They take turns,
  and the ratio is that of the medians of one run. The target is at most 1.05.
- conversion: `add_auxiliary_batch_norms` of Keras's EfficientNetB7; at most 10 s.
- first: conversion, tracing and the first step of `fit` of Keras's MobileNetV3Small, in
  a new process; at most 20 s.
"""

import harness  # first: it keeps TensorFlow quiet  # isort: skip

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import tensorflow as tf

from efficientnet_advprop.attacks import PGD
from efficientnet_advprop.keras import AdvPropModel, add_auxiliary_batch_norms
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import EfficientNet
from efficientnet_advprop.training import optimizers, steps
from efficientnet_advprop.training.state import TrainState

TARGETS = {"step": 1.05, "conversion": 10.0, "first": 20.0}
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def time_steps(arguments) -> float:
    """Returns the ratio of the two steps' medians."""
    size, batch_size = arguments.image_size, arguments.batch_size
    random = np.random.default_rng(0)
    images = tf.constant(random.uniform(0, 255, (batch_size, size, size, 3)).astype("float32"))
    labels = tf.constant(random.integers(0, 1000, batch_size).astype("int32"))
    attack = PGD(num_steps=arguments.num_steps, num_classes=1000)
    own = EfficientNet("b0", aux_branches=1)
    state = TrainState(own, optimizers.SGD(own.trainable_variables))
    own_step = tf.function(
        steps.make_train_step(
            "advprop",
            state,
            lambda step: tf.constant(1e-3),
            global_batch_size=batch_size,
            attack=attack,
            label_smoothing=0.0,
            weight_decay=0.0,
        )
    )
    trainer = AdvPropModel(add_auxiliary_batch_norms(EfficientNet("b0", aux_branches=0)), attack)
    trainer.compile(keras.optimizers.SGD(1e-3), LOSS)
    trainer.build_network(images)
    batches = iter(tf.data.Dataset.from_tensors((images, labels)).repeat())
    fit_step = trainer.make_train_function()
    runs = {
        "the trainer": lambda: own_step({"images": images, "labels": labels}),
        "AdvPropModel": lambda: fit_step(batches),
    }
    for name, run in runs.items():
        started = time.perf_counter()
        harness.wait_for(run())
        print(f"{name:12s} traced in {time.perf_counter() - started:5.1f} s", flush=True)
    waiting = {name: lambda run=run: harness.wait_for(run()) for name, run in runs.items()}
    medians = harness.median_by_turns(waiting, arguments.rounds, warm_up=0)
    for name, median in medians.items():
        print(f"{name:12s} {median:6.3f} s a step", flush=True)
    return medians["AdvPropModel"] / medians["the trainer"]


def time_conversion(_) -> float:
    """Returns the seconds of a conversion of EfficientNetB7."""
    model = keras.applications.EfficientNetB7(weights=None)
    started = time.perf_counter()
    add_auxiliary_batch_norms(model)
    return time.perf_counter() - started


def time_first_step(_) -> float:
    """Returns the seconds from a MobileNetV3Small to its first trained batch."""
    model = keras.applications.MobileNetV3Small(weights=None, classifier_activation=None)
    random = np.random.default_rng(0)
    images = random.uniform(0, 255, (4, 224, 224, 3)).astype("float32")
    started = time.perf_counter()
    trainer = AdvPropModel(add_auxiliary_batch_norms(model), PGD(num_classes=1000))
    trainer.compile(keras.optimizers.SGD(1e-3), LOSS)
    trainer.fit(images, np.arange(4), verbose=0)
    return time.perf_counter() - started


PARTS = {"step": time_steps, "conversion": time_conversion, "first": time_first_step}
UNITS = {"step": "× the trainer's step", "conversion": "s", "first": "s"}


def main() -> None:
    arguments = harness.parse(
        __doc__,
        parts=(list(PARTS), "what to measure", dict(choices=PARTS)),
        image_size=(224, "pixels, of the steps"),
        batch_size=(16, "images, of the steps"),
        num_steps=(1, "iterations of PGD"),
        rounds=(7, "timed runs of each step"),
        one=(None, "one part in this process; prints JSON", dict(choices=PARTS)),
        keras=(2, "which Keras", dict(choices=(2, 3))),
        backend=("tensorflow", "of Keras 3"),
    )
    if arguments.one:
        print(json.dumps(PARTS[arguments.one](arguments)))
        return
    names = ("image_size", "batch_size", "rounds")
    sizes = [f"--{name}={getattr(arguments, name)}" for name in names]
    if arguments.keras == 3:
        script = str(pathlib.Path(__file__).with_name("keras3_fit.py"))
        environment = {**os.environ, "KERAS_BACKEND": arguments.backend}
        subprocess.run([sys.executable, script, *sizes], check=True, env=environment)
        return
    sizes.append(f"--num_steps={arguments.num_steps}")
    for part in arguments.parts:
        lines, value = harness.run_alone(*sizes, f"--one={part}")
        told = harness.verdict(value, TARGETS[part])
        print("\n".join([*lines, f"{part}: {value:.3f} {UNITS[part]} ({told})"]))


if __name__ == "__main__":
    main()
