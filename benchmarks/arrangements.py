"""Measures AdvProp steps with two passes or one joint batch: time and peak memory.

    # EfficientNet-B0, 224 pixels, 16 + 16 images, float32, PGD1
    python benchmarks/arrangements.py
    # by the TPU's compiler
    python benchmarks/arrangements.py --topology=v3:2x2 --compute_dtype=bfloat16 --batch_size=128

The trainer makes two passes. The other arrangement, one batch of clean and adversarial
images that the batch norms split, exists only here. For a fair comparison it has the
same layers, attack and update. Each arrangement runs in its own process.
"""

import harness  # first: it keeps TensorFlow quiet  # isort: skip

import json
import resource
import sys

import tensorflow as tf

from advprop_preflight import tpu_compiler
from efficientnet_advprop.attacks import PGD
from efficientnet_advprop.models import EfficientNet, layers
from efficientnet_advprop.training import losses, optimizers, passes, steps
from efficientnet_advprop.training.schedules import LearningRate
from efficientnet_advprop.training.state import (
    ExponentialMovingAverage,
    TrainState,
    averaged_variables,
)

ARRANGEMENTS = ("two_passes", "one_batch")


def normalize_halves(convolution, norm, inputs, training):
    """Applies `layers.convolve_and_normalize` to a batch whose first half is clean and whose
    second is adversarial.
    """
    if not training:
        return convolution(inputs, *norm.affine())
    clean, adversarial = tf.split(convolution(inputs), 2)
    return tf.concat(
        [
            norm(clean, training=True, branch="main"),
            norm(adversarial, training=True, branch="aux"),
        ],
        0,
    )


def make_one_batch_step(state, learning_rate, attack, batch_size):
    def train_step(batch):
        images, labels = tf.cast(batch["images"], tf.float32), batch["labels"]
        adversarial_images = attack(
            passes.attacked_network(state.model, "aux", "running"), images, labels
        )
        with tf.GradientTape() as tape:
            logits = state.model(tf.concat([images, adversarial_images], 0), training=True)
            per_image = losses.cross_entropy(tf.concat([labels, labels], 0), logits, 0.1)
            loss = tf.reduce_sum(per_image) / batch_size
        trained = state.model.trainable_variables
        gradients = tape.gradient(loss, trained)
        decayed = set(map(id, losses.decayed_variables(state.model)))
        gradients = [g + 1e-5 * v if id(v) in decayed else g for g, v in zip(gradients, trained)]
        state.optimizer.apply(gradients, learning_rate(state.step))
        state.step.assign_add(1)
        state.ema.update(state.step)
        return loss

    return train_step


def measure(arguments) -> dict:
    """Returns median seconds and the process's peak memory in MB; of a TPU, the scheduled
    seconds and a core's memory.
    """
    model = EfficientNet(arguments.variant, compute_dtype=arguments.compute_dtype)
    state = TrainState(
        model,
        optimizers.RMSProp(model.trainable_variables),
        ExponentialMovingAverage(averaged_variables(model)),
    )
    attack = PGD(float(arguments.num_steps), 1.0, arguments.num_steps, num_classes=1000)
    rate = LearningRate(0.016, 100.0)
    if arguments.only == "one_batch":
        layers.convolve_and_normalize = normalize_halves
        step = make_one_batch_step(state, rate, attack, arguments.batch_size)
    else:
        step = steps.make_train_step(
            "advprop", state, rate, global_batch_size=arguments.batch_size, attack=attack
        )
    size = arguments.image_size
    if arguments.topology:
        specs = [
            tf.TensorSpec([arguments.batch_size, size, size, 3], tf.uint8),
            tf.TensorSpec([arguments.batch_size], tf.int32),
        ]
        hlo = tpu_compiler.lower(
            lambda images, labels: step({"images": images, "labels": labels}), specs
        )
        compiler = tpu_compiler.TPUCompiler(arguments.compiler_python, arguments.topology)
        program = tpu_compiler.program_of(compiler.compile(hlo, num_replicas=1))
        return {"seconds": program.scheduled_seconds, "megabytes": program.memory_bytes / 2**20}
    step, batch = tf.function(step), harness.random_batch(arguments.batch_size, size)
    seconds = harness.median_by_turns(
        {"step": lambda: harness.wait_for(step(batch))}, arguments.rounds
    )["step"]
    return {
        "seconds": seconds,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main():
    arguments = harness.parse(
        __doc__,
        variant=("b0", "row of the scaling table"),
        image_size=(224, "pixels"),
        batch_size=(16, "clean images per step"),
        num_steps=(1, "iterations of PGD"),
        rounds=(7, "timed runs"),
        compute_dtype=("float32", "of activations", dict(choices=("float32", "bfloat16"))),
        topology=(
            None,
            "of a TPU: compile for one core of it, by docs/launching.md, instead of running here",
        ),
        compiler_python=(".venv-preflight/bin/python", "with --topology: as in preflight"),
        only=(None, "this one, in this process; prints JSON", dict(choices=ARRANGEMENTS)),
    )
    if arguments.only:
        print(json.dumps(measure(arguments)))
        return
    for arrangement in ARRANGEMENTS:
        _, result = harness.run_alone(*sys.argv[1:], f"--only={arrangement}")
        print(
            f"{arrangement:12s} {result['seconds']:6.3f} s   peak {result['megabytes']:7.0f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
