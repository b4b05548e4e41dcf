"""Measures AdvProp steps with two passes or one joint batch: time and peak memory.

Usage:

    # EfficientNet-B0, 224 pixels, 16 + 16 images, float32, PGD1
    python benchmarks/arrangements.py
    # by the TPU's compiler
    python benchmarks/arrangements.py --topology=v3:2x2 --compute_dtype=bfloat16 --batch_size=128

The trainer makes two passes. The other arrangement, one batch of clean and adversarial
images that the batch norms split, exists only here. For a fair comparison it has the
same layers, attack and update. Each arrangement runs in its own process.
"""

import json
import resource
import statistics
import subprocess
import sys
import time

import tensorflow as tf
from absl import app, flags

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
FLAGS = flags.FLAGS
flags.DEFINE_string("variant", "b0", "Row of the scaling table.")
flags.DEFINE_integer("image_size", 224, "Pixels.")
flags.DEFINE_integer("batch_size", 16, "Clean images per step.")
flags.DEFINE_integer("num_steps", 1, "Iterations of PGD.")
flags.DEFINE_integer("rounds", 7, "Timed runs.")
flags.DEFINE_enum("compute_dtype", "float32", ("float32", "bfloat16"), "Of activations.")
flags.DEFINE_string(
    "topology",
    None,
    "Of a TPU: compile for one core of it, by docs/launching.md, instead of running here.",
)
flags.DEFINE_string(
    "compiler_python",
    ".venv-preflight/bin/python",
    "With --topology: as in preflight.",
)
flags.DEFINE_enum("only", None, ARRANGEMENTS, "Measure this one, in this process, and print JSON.")


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


def make_one_batch_step(state, learning_rate, attack):
    def train_step(batch):
        images, labels = tf.cast(batch["images"], tf.float32), batch["labels"]
        adversarial_images = attack(
            passes.attacked_network(state.model, "aux", "running"), images, labels
        )
        with tf.GradientTape() as tape:
            logits = state.model(tf.concat([images, adversarial_images], 0), training=True)
            per_image = losses.cross_entropy(tf.concat([labels, labels], 0), logits, 0.1)
            loss = tf.reduce_sum(per_image) / FLAGS.batch_size
        trained = state.model.trainable_variables
        gradients = tape.gradient(loss, trained)
        decayed = set(map(id, losses.decayed_variables(state.model)))
        gradients = [g + 1e-5 * v if id(v) in decayed else g for g, v in zip(gradients, trained)]
        state.optimizer.apply(gradients, learning_rate(state.step))
        state.step.assign_add(1)
        state.ema.update(state.step)
        return loss

    return train_step


def measure(arrangement: str) -> dict:
    """Returns median seconds and the process's peak memory in MB; of a TPU, the scheduled
    seconds and a core's memory.
    """
    model = EfficientNet(FLAGS.variant, compute_dtype=FLAGS.compute_dtype)
    state = TrainState(
        model,
        optimizers.RMSProp(model.trainable_variables),
        ExponentialMovingAverage(averaged_variables(model)),
    )
    attack = PGD(float(FLAGS.num_steps), 1.0, FLAGS.num_steps, num_classes=1000)
    rate = LearningRate(0.016, 100.0)
    if arrangement == "one_batch":
        layers.convolve_and_normalize = normalize_halves
        step = make_one_batch_step(state, rate, attack)
    else:
        step = steps.make_train_step(
            "advprop", state, rate, global_batch_size=FLAGS.batch_size, attack=attack
        )
    size = FLAGS.image_size
    if FLAGS.topology:
        specs = [
            tf.TensorSpec([FLAGS.batch_size, size, size, 3], tf.uint8),
            tf.TensorSpec([FLAGS.batch_size], tf.int32),
        ]
        hlo = tpu_compiler.lower(
            lambda images, labels: step({"images": images, "labels": labels}), specs
        )
        program = tpu_compiler.TPUCompiler(FLAGS.compiler_python, FLAGS.topology).compile(
            hlo, num_replicas=1
        )
        return {"seconds": program.scheduled_seconds, "megabytes": program.memory_bytes / 2**20}
    step = tf.function(step)
    batch = {
        "images": tf.cast(
            tf.random.uniform([FLAGS.batch_size, size, size, 3], maxval=256, dtype=tf.int32),
            tf.uint8,
        ),
        "labels": tf.random.uniform([FLAGS.batch_size], maxval=1000, dtype=tf.int32),
    }
    times = []
    for _ in range(FLAGS.rounds + 1):
        start = time.perf_counter()
        tf.nest.map_structure(lambda value: value.numpy(), step(batch))
        times.append(time.perf_counter() - start)
    return {
        "seconds": statistics.median(times[1:]),
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main(_):
    if FLAGS.only:
        print(json.dumps(measure(FLAGS.only)))
        return
    for arrangement in ARRANGEMENTS:
        command = [sys.executable, *sys.argv, f"--only={arrangement}"]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        result = json.loads(output.strip().splitlines()[-1])
        print(
            f"{arrangement:12s} {result['seconds']:6.3f} s   peak {result['megabytes']:7.0f} MB",
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
