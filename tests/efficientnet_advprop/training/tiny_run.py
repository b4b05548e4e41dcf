"""A run so small that a test can afford it: 40 pictures of four classes, a network of a
quarter of B0's width, six updates.
"""

import os

import numpy as np
import tensorflow as tf

from efficientnet_advprop.config.experiment import ExperimentConfig
from efficientnet_advprop.data import records
from efficientnet_advprop.training import loop
from tpu_utils.strategy import make_strategy

NUM_TRAIN, NUM_VALIDATION, NUM_CLASSES, IMAGE_SIZE = 40, 37, 4, 32


def make_config(method="advprop", changes=()) -> ExperimentConfig:
    """`changes` are fields and their values: {"training.num_epochs": 3.0}."""
    config = ExperimentConfig()
    config.model.num_classes = NUM_CLASSES
    config.model.width_coefficient = 0.25
    config.model.depth_coefficient = 0.3
    config.model.compute_dtype = "float32"
    config.model.batch_norm_momentum = 0.9
    config.attack.epsilon, config.attack.step_size = 8.0, 8.0
    config.data.image_size, config.data.crop, config.data.eval_crop = IMAGE_SIZE, "none", "none"
    config.data.shuffle_buffer = 16
    config.optimizer.warmup_epochs, config.optimizer.ema_decay = 0.5, 0.9
    config.training.num_epochs = 1.5  # 40 images, 10 a step: 6 steps
    config.training.global_batch_size, config.training.eval_batch_size = 10, 16
    config.training.steps_per_loop = 2
    config.training.checkpoint_every_steps, config.training.summary_every_steps = 2, 3
    config.training.evaluate_every_epochs = 1.0
    config.use_method(method)
    for name, value in dict(changes).items():
        section, field = name.split(".")
        setattr(getattr(config, section), field, value)
    return config


def make_small_config(method="advprop", changes=()) -> ExperimentConfig:
    """The same run of a Keras model of two batch norms, for what no network of more layers
    shows better: its steps are traced in a tenth of the time.
    """
    own = {
        "model.variant": "keras:tests.efficientnet_advprop.models.keras_functions:small",
        "model.width_coefficient": None,
        "model.depth_coefficient": None,
        "model.normalization": "none",
        "model.batch_norm_momentum": 0.99,
    }
    return make_config(method, {**own, **dict(changes)})


def picture(label: int, rng: np.random.RandomState) -> np.ndarray:
    """Noise, brighter in the quarter that the class stands for."""
    image = rng.randint(0, 100, [IMAGE_SIZE, IMAGE_SIZE, 3])
    half = IMAGE_SIZE // 2
    image[half * (label // 2) :, half * (label % 2) :][:half, :half] += 150
    return image.astype(np.uint8)


def examples(num_examples: int, seed: int) -> list[bytes]:
    rng = np.random.RandomState(seed)
    labels = [index % NUM_CLASSES for index in range(num_examples)]
    return [
        records.make_example(tf.io.encode_png(picture(label, rng)).numpy(), label)
        for label in labels
    ]


def write_data(folder, train_records=None) -> str:
    """Two training files and one for validation."""
    parts = {
        "train-00000-of-00002": examples(NUM_TRAIN // 2, 0),
        "train-00001-of-00002": examples(NUM_TRAIN // 2, 1),
    }
    parts["validation-00000-of-00001"] = examples(NUM_VALIDATION, 2)
    if train_records is not None:
        parts["train-00000-of-00002"] = train_records
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        with records.ShardWriter(str(folder / name)) as shard:
            for row in rows:
                shard.write(row)
    return str(folder)


def train(config, data_dir, model_dir, strategy=None, log=lambda line: None):
    strategy, model_dir = strategy or make_strategy(), str(model_dir)
    return loop.train(config, data_dir=data_dir, model_dir=model_dir, strategy=strategy, log=log)


def last_checkpoint(model_dir):
    return tf.train.latest_checkpoint(os.path.join(model_dir, "checkpoints"))


def saved_values(path: str) -> dict[str, bytes]:
    """Every number that a checkpoint holds, but how often its writer has saved."""
    reader = tf.train.load_checkpoint(path)
    names = [
        name
        for name in reader.get_variable_to_shape_map()
        if not name.startswith(("save_counter", "_CHECKPOINTABLE"))
    ]
    return {name: np.asarray(reader.get_tensor(name)).tobytes() for name in names}
