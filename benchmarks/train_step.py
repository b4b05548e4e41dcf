r"""Measures training steps relative to `tf.keras.applications`, and AdvProp to vanilla.

    python benchmarks/train_step.py    # EfficientNet-B0, 224 pixels, batch 16, float32
    python benchmarks/train_step.py --variant=b3 --image_size=300 --batch_size=8
    python benchmarks/train_step.py --variant=resnet50
    python benchmarks/train_step.py --variant=resnet50 --steps=vanilla:relu,vanilla:silu
    .venv-tf215/bin/python benchmarks/train_step.py --steps=vanilla,pgd5 \
        --other_python=.venv-tf221/bin/python

The steps take turns (A B C A B C …), so that a change of the machine's speed affects
all of them. The results are medians, and ratios within one run. With `--other_python`,
a second process with another stack (docs/stacks.md) takes turns, too, and its ratio is
printed.
"""

import harness  # first: it keeps TensorFlow quiet  # isort: skip

import argparse
import re
import statistics
import time

import tensorflow as tf

from efficientnet_advprop.attacks import PGD
from efficientnet_advprop.config.methods import METHODS
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import make_network, scaling
from efficientnet_advprop.training import optimizers, steps
from efficientnet_advprop.training.schedules import LearningRate
from efficientnet_advprop.training.state import (
    ExponentialMovingAverage,
    TrainState,
    averaged_variables,
)

LEARNING_RATE = LearningRate(0.016, 100.0)


def make_optimizer(model, arguments):
    """Makes what the family is trained by: RMSProp, or momentum for ResNets."""
    kind = optimizers.RMSProp if arguments.variant in scaling.VARIANTS else optimizers.Momentum
    return kind(model.trainable_variables)


def make_our_step(name: str, arguments):
    """Makes a step by name: "pgd<n>" (AdvProp with n iterations), or a method (those with an
    attack by PGD1); with ":" and the activation, where it is not the variant's own.
    """
    name, _, activation = name.partition(":")
    method = METHODS[name if name in METHODS else "advprop"]
    num_steps = int(name[3:]) if name.startswith("pgd") else 1
    more = {}
    if method.adversarial_share is not None:
        more = dict(
            attack=PGD(1.0, 1.0, 1, targeted=False, random_start=1.0), attack_statistics="batch"
        )
    elif method.has_attack:
        more = dict(attack=PGD(float(num_steps), 1.0, num_steps, num_classes=1000))
    model = make_network(
        arguments.variant, aux_branches=method.aux_branches, activation=activation or None
    )
    state = TrainState(
        model, make_optimizer(model, arguments), ExponentialMovingAverage(averaged_variables(model))
    )
    return tf.function(
        steps.make_train_step(
            method, state, LEARNING_RATE, global_batch_size=arguments.batch_size, **more
        ),
        autograph=False,  # as in the trainer
    )


def make_keras_step(arguments):
    """Makes the same vanilla step with `tf.keras.applications.EfficientNetB0` or `ResNet50`:
    optimizer, weight decay, EMA and, in an EfficientNet, dropout and stochastic depth.
    """
    keras_name = (
        f"EfficientNet{arguments.variant.upper()}"
        if arguments.variant in scaling.VARIANTS
        else arguments.variant
    )
    model = getattr(keras.applications, keras_name.replace("resnet", "ResNet"))(
        weights=None,
        classifier_activation=None,
        input_shape=(arguments.image_size, arguments.image_size, 3),
    )
    trained = model.trainable_variables
    averaged = [v for v in model.weights if v.trainable or "moving" in v.name]
    optimizer, average = make_optimizer(model, arguments), ExponentialMovingAverage(averaged)
    step = tf.Variable(0, dtype=tf.int64)

    def train_step(batch):
        with tf.GradientTape() as tape:
            logits = model(tf.cast(batch["images"], tf.float32), training=True)
            loss = tf.reduce_mean(steps.losses.cross_entropy(batch["labels"], logits, 0.1))
        gradients = tape.gradient(loss, trained)
        gradients = [
            g if "/bn" in v.name or "_bn" in v.name else g + 1e-5 * v
            for g, v in zip(gradients, trained)
        ]
        optimizer.apply(gradients, LEARNING_RATE(step))
        step.assign_add(1)
        average.update(step)
        return loss

    return tf.function(train_step, autograph=False)


def step_names(text: str) -> list[str]:
    """Parses --steps."""
    names = text.split(",")
    for name in names:
        if not re.fullmatch(rf"keras|(?:pgd[1-9]\d*|{'|'.join(METHODS)})(?::\w+)?", name):
            raise argparse.ArgumentTypeError(
                f"{name!r} is none of keras, pgd<n> and {', '.join(METHODS)}; all but keras may "
                "have an activation behind a colon, as in vanilla:silu"
            )
    return names


def make_runs(arguments, log) -> dict:
    """Returns a traced call of every step by its name, which waits for the result."""
    batch = harness.random_batch(arguments.batch_size, arguments.image_size)
    batch["augmented_images"] = batch["images"]  # for fine_grained
    runs = {}
    for name in arguments.steps:
        start = time.perf_counter()
        step = make_keras_step(arguments) if name == "keras" else make_our_step(name, arguments)
        step.get_concrete_function(batch)
        traced = time.perf_counter()
        step(batch)
        log(
            f"{name:20s} built and traced in {traced - start:6.1f} s, first run"
            f" {time.perf_counter() - traced:6.1f} s"
        )
        runs[name] = lambda step=step: harness.wait_for(step(batch))
    return runs


def main():
    arguments = harness.parse(
        __doc__,
        variant=("b0", "of an EfficientNet (b0 …) or a ResNet (resnet50 …)"),
        image_size=(224, "pixels"),
        batch_size=(16, "images per step"),
        rounds=(7, "timed runs of each step"),
        steps=(
            "keras,vanilla,fast_advprop,pgd1,pgd5",
            f"which to time; any of keras, pgd<n> (AdvProp) and {', '.join(METHODS)}, of ours with "
            "an activation behind a colon (vanilla:silu)",
            dict(type=step_names),
        ),
        other_python=(None, "Python of another stack, which takes turns with this one"),
        serve=(False, "runs as that other one: a step's name per line in, seconds out"),
    )
    if arguments.serve:

        def prepare():
            runs = make_runs(arguments, log=lambda line: None)
            return tf.__version__, lambda name: harness.seconds_of(runs[name])

        harness.serve(prepare)
        return
    runs = make_runs(arguments, log=lambda line: print(line, flush=True))
    other, other_seconds = None, {name: [] for name in runs}
    if arguments.other_python:
        names = ("variant", "image_size", "batch_size")
        sizes = [f"--{name}={getattr(arguments, name)}" for name in names]
        steps_flag = f"--steps={','.join(arguments.steps)}"
        other = harness.Worker(arguments.other_python, *sizes, steps_flag, "--serve", is_quiet=True)
    seconds = {name: [] for name in runs}
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            seconds[name].append(harness.seconds_of(run))
            if other:
                other_seconds[name].append(other.ask(name))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        ratios = "".join(
            f"   {median / medians[rival]:5.2f} × {rival}"
            for rival in ("keras", "vanilla", "vanilla:relu")
            if rival in medians
        )
        print(f"{name:20s} {median:6.3f} s   {arguments.batch_size / median:6.1f} images/s{ratios}")
    for name, median in medians.items() if other else ():
        theirs = statistics.median(other_seconds[name])
        print(
            f"{name:20s} TensorFlow {other.greeting} {theirs:6.3f} s, {tf.__version__}"
            f" {median:6.3f} s: {theirs / median:5.3f} ×"
        )


if __name__ == "__main__":
    main()
