"""Program of test_same_numbers: a few steps on so many replicas, with everything random
switched off; keeps what came out.

python replica_run.py METHOD NUM_REPLICAS OUTPUT.npz
"""

import sys

import numpy as np
import tensorflow as tf

from efficientnet_advprop.config.experiment import ExperimentConfig
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.training import build
from tpu_utils.strategy import make_strategy

GLOBAL_BATCH_SIZE, IMAGE_SIZE, NUM_STEPS = 8, 32, 3


def main(method: str, num_replicas: int, output: str) -> None:
    config = ExperimentConfig()
    config.model.num_classes, config.model.compute_dtype = 4, "float32"
    config.model.width_coefficient, config.model.depth_coefficient = 0.25, 0.3
    config.model.dropout_rate, config.model.survival_prob = 0.0, 1.0
    config.model.batch_norm_group_size = (
        num_replicas  # moments over the whole batch, however it is cut
    )
    # Each replica draws random numbers of its own, so there must be none: no targets,
    # no starts.
    config.attack.targeted, config.attack.random_start, config.attack.epsilon = False, 0.0, 4.0
    config.training.method, config.training.global_batch_size = method, GLOBAL_BATCH_SIZE
    config.optimizer.warmup_epochs = 0.0
    strategy = (
        make_strategy("mirrored", num_logical_devices=num_replicas)
        if num_replicas > 1
        else make_strategy()
    )
    keras.utils.set_random_seed(1)
    with strategy.scope():
        state = build.make_state(config)
    train_step = build.make_step(
        config, state, build.make_learning_rate(config, steps_per_epoch=10.0, total_steps=100)
    )

    rng = np.random.RandomState(0)
    images = rng.randint(0, 256, [NUM_STEPS, GLOBAL_BATCH_SIZE, IMAGE_SIZE, IMAGE_SIZE, 3]).astype(
        np.uint8
    )
    labels = rng.randint(0, 4, [NUM_STEPS, GLOBAL_BATCH_SIZE]).astype(np.int32)
    share = GLOBAL_BATCH_SIZE // num_replicas

    @tf.function
    def update(images, labels):
        sums = strategy.run(train_step, ({"images": images, "labels": labels},))
        return {
            name: strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None)
            for name, value in sums.items()
        }

    def cut(values):
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(values[context.replica_id_in_sync_group * share :][:share])
        )

    results = {}
    for step in range(NUM_STEPS):
        for name, value in update(cut(images[step]), cut(labels[step])).items():
            results[f"step {step} {name}"] = value.numpy()
    for variable in state.variables:
        copies = [copy.numpy() for copy in strategy.experimental_local_results(variable)]
        assert all(copy.tobytes() == copies[0].tobytes() for copy in copies), (
            f"{variable.name} differs between replicas"
        )
        results[variable.name] = copies[0]
    np.savez(output, **{name.replace("/", "|"): value for name, value in results.items()})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
