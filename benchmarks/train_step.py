r"""Measures training steps relative to `tf.keras.applications`, and AdvProp to vanilla.

Usage:

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

import json
import os
import re
import statistics
import subprocess
import sys
import time

import tensorflow as tf
from absl import app, flags

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

FLAGS = flags.FLAGS
flags.DEFINE_string("variant", "b0", "Of an EfficientNet (b0 …) or a ResNet (resnet50 …).")
flags.DEFINE_integer("image_size", 224, "Pixels.")
flags.DEFINE_integer("batch_size", 16, "Images per step.")
flags.DEFINE_integer("rounds", 7, "Timed runs of each step.")
flags.DEFINE_list(
    "steps",
    ["keras", "vanilla", "fast_advprop", "pgd1", "pgd5"],
    f"Which to time; any of keras, pgd<n> (AdvProp) and {', '.join(METHODS)}, of ours with "
    "an activation behind a colon (vanilla:silu).",
)

flags.DEFINE_string(
    "other_python", None, "Python of another stack, which takes turns with this one."
)


@flags.validator("steps")
def _are_known(names):
    for name in names:
        if not re.fullmatch(rf"keras|(?:pgd[1-9]\d*|{'|'.join(METHODS)})(?::\w+)?", name):
            raise flags.ValidationError(
                f"{name!r} is none of keras, pgd<n> and {', '.join(METHODS)}; all but keras may "
                "have an activation behind a colon, as in vanilla:silu"
            )
    return True


flags.DEFINE_bool("serve", False, "Runs as that other one: a step's name per line in, seconds out.")

LEARNING_RATE = LearningRate(0.016, 100.0)


def make_optimizer(model):
    """Makes what the family is trained by: RMSProp, or momentum for ResNets."""
    kind = optimizers.RMSProp if FLAGS.variant in scaling.VARIANTS else optimizers.Momentum
    return kind(model.trainable_variables)


def make_our_step(name: str):
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
        FLAGS.variant, aux_branches=method.aux_branches, activation=activation or None
    )
    state = TrainState(
        model, make_optimizer(model), ExponentialMovingAverage(averaged_variables(model))
    )
    return tf.function(
        steps.make_train_step(
            method, state, LEARNING_RATE, global_batch_size=FLAGS.batch_size, **more
        ),
        autograph=False,  # as in the trainer
    )


def make_keras_step():
    """Makes the same vanilla step with `tf.keras.applications.EfficientNetB0` or `ResNet50`:
    optimizer, weight decay, EMA and, in an EfficientNet, dropout and stochastic depth.
    """
    keras_name = (
        f"EfficientNet{FLAGS.variant.upper()}"
        if FLAGS.variant in scaling.VARIANTS
        else FLAGS.variant
    )
    model = getattr(keras.applications, keras_name.replace("resnet", "ResNet"))(
        weights=None,
        classifier_activation=None,
        input_shape=(FLAGS.image_size, FLAGS.image_size, 3),
    )
    trained = model.trainable_variables
    averaged = [v for v in model.weights if v.trainable or "moving" in v.name]
    optimizer, average = make_optimizer(model), ExponentialMovingAverage(averaged)
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


class OtherStack:
    """This program in the Python of another stack: the same steps, one at a time as
    they are asked for.
    """

    def __init__(self, python: str):
        ours = [f"--{name}={FLAGS[name].value}" for name in ("variant", "image_size", "batch_size")]
        ours.append(f"--steps={','.join(FLAGS.steps)}")
        self._process = subprocess.Popen(
            [python, __file__, *ours, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.tensorflow = self._answer()

    def seconds(self, name: str) -> float:
        print(name, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"error: {self._process.args[0]} ended with code {self._process.wait()}.")
        return json.loads(line)


def seconds_of(step, batch) -> float:
    start = time.perf_counter()
    tf.nest.map_structure(lambda value: value.numpy(), step(batch))
    return time.perf_counter() - start


def serve(chosen, batch, answers) -> None:
    print(json.dumps(tf.__version__), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(seconds_of(chosen[line.strip()], batch)), file=answers, flush=True)


def main(_):
    if FLAGS.serve:
        answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever a library prints must not get between the answers
    size, batch_size = FLAGS.image_size, FLAGS.batch_size
    batch = {
        "images": tf.cast(
            tf.random.uniform([batch_size, size, size, 3], maxval=256, dtype=tf.int32), tf.uint8
        ),
        "labels": tf.random.uniform([batch_size], maxval=1000, dtype=tf.int32),
    }
    batch["augmented_images"] = batch["images"]  # for fine_grained
    chosen = {}
    for name in FLAGS.steps:
        start = time.perf_counter()
        step = make_keras_step() if name == "keras" else make_our_step(name)
        step.get_concrete_function(batch)
        traced = time.perf_counter()
        step(batch)
        print(
            f"{name:20s} built and traced in {traced - start:6.1f} s, first run"
            f" {time.perf_counter() - traced:6.1f} s",
            flush=True,
        )
        chosen[name] = step
    if FLAGS.serve:
        serve(chosen, batch, answers)
        return
    other = OtherStack(FLAGS.other_python) if FLAGS.other_python else None
    times = {name: [] for name in chosen}
    other_times = {name: [] for name in chosen}
    for _ in range(FLAGS.rounds):
        for name, step in chosen.items():
            times[name].append(seconds_of(step, batch))
            if other:
                other_times[name].append(other.seconds(name))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        ratios = "".join(
            f"   {median / medians[other_name]:5.2f} × {other_name}"
            for other_name in ("keras", "vanilla", "vanilla:relu")
            if other_name in medians
        )
        print(
            f"{name:20s} {median:6.3f} s   {batch_size / median:6.1f} images/s{ratios}", flush=True
        )
    if other:
        for name, median in medians.items():
            other_median = statistics.median(other_times[name])
            print(
                f"{name:20s} TensorFlow {other.tensorflow} {other_median:6.3f} s, {tf.__version__}"
                f" {median:6.3f} s: {other_median / median:5.3f} ×",
                flush=True,
            )


if __name__ == "__main__":
    app.run(main)
