"""Noise in the form of the pipeline's batches."""

import pytest
import tensorflow as tf

from efficientnet_advprop.config.experiment import ExperimentConfig
from efficientnet_advprop.data import pipeline, sources, synthetic
from efficientnet_advprop.images import labeled_images


@pytest.fixture
def data():
    config = ExperimentConfig()
    config.data.image_size = 16
    return config.data


def first(dataset):
    return {name: value for name, value in next(iter(dataset)).items()}


def test_an_epoch_is_as_long_as_imagenets(data):
    assert sources.open_split(data, "synthetic", "train").num_records == 1_281_167
    assert sources.open_split(data, "synthetic", "validation").num_records == 50_000


def test_training_batches(data):
    split = synthetic.open_split("train")
    make = pipeline.make_train_dataset
    batch = first(make(data, split, global_batch_size=6, seed=0, num_classes=10, paired_views=True))
    assert set(batch) == {"images", "augmented_images", "labels"}
    assert batch["images"].shape == [6, 16, 16, 3] and batch["images"].dtype == tf.uint8
    assert batch["labels"].dtype == tf.int32
    assert 0 <= min(batch["labels"]) <= max(batch["labels"]) < 10
    assert len(set(batch["images"].numpy().ravel())) > 200  # noise, not one colour
    data.mixup_alpha = 0.2
    batch = first(make(data, split, global_batch_size=6, seed=0, num_classes=10))
    assert batch["labels"].shape == [6, 10] and batch["labels"].dtype == tf.float32


def test_evaluation_batches(data):
    dataset = labeled_images.make_eval_dataset(
        data, synthetic.open_split("validation"), global_batch_size=6000, num_classes=10
    )
    batches = list(dataset)
    assert len(batches) == 8  # 50,000 images, whole batches only
    assert batches[0]["images"].dtype == tf.float32
    assert float(tf.reduce_sum(batches[0]["mask"])) == 6000
