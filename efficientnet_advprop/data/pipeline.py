"""From a config and a split of TFRecords to batches: the seam between the data and the
trainer or evaluator.

    split = sources.open_split(config.data, data_dir, "train")
    dataset = make_train_dataset(
        config.data, split, global_batch_size=256, seed=0, start_batch=step
    )
    for batch in dataset:                                # without end
        # uint8 [replica_batch, size, size, 3], int32 [replica_batch]
        batch["images"], batch["labels"]

The training stream is a pure function of (seed, position): the order of files and
records in an epoch comes from (seed, epoch), an image's augmentation from (seed, input
pipeline, position in the stream), a batch's mixing from that of its first image. So
`start_batch=k` gives the very batches that an uninterrupted run sees from batch k on.

The first bad record (damaged, not decodable, label out of range, …) ends the iteration
with an error that names it, and whose text `records.explain_data_error` turns back into a
`DataError`.
"""

import dataclasses
import functools
import typing
from typing import Callable, Dict, Optional

import numpy as np
import tensorflow as tf

from efficientnet_advprop.config.class_labels import background_offset
from efficientnet_advprop.data import augmentation, preprocessing, records, synthetic
from efficientnet_advprop.data.record_batches import batch_records, make_options
from efficientnet_advprop.data.record_streams import InputHost, RecordStream, derive_seed
from efficientnet_advprop.runtime.errors import DataError

if typing.TYPE_CHECKING:
    from efficientnet_advprop.config.experiment import DataConfig

Batch = Dict[str, tf.Tensor]


def _for_network(split: records.Split, num_classes: Optional[int]) -> records.Split:
    """Returns a split whose labels are the network's classes: one more than the data
    set's where class 0 is the background.
    """
    offset = 0 if num_classes is None else background_offset(num_classes)
    return dataclasses.replace(split, label_offset=split.label_offset - offset)


def make_augmentation(data: "DataConfig") -> Optional[preprocessing.Augmentation]:
    """Makes what `data.augment` and `data.cutout_half_size` ask for: `(uint8 image, seed)
    -> uint8 image`, or None for nothing.
    """
    ops = {"official": augmentation.OPS, "meant": augmentation.MEANT_OPS}[data.augment_ops]
    steps = []
    if data.augment == "autoaugment":
        steps.append(functools.partial(augmentation.autoaugment, ops=ops))
    elif data.augment == "randaugment":
        steps.append(
            functools.partial(
                augmentation.randaugment,
                num_layers=data.randaugment_num_layers,
                magnitude=data.randaugment_magnitude,
                ops=ops,
            )
        )
    if data.cutout_half_size:
        steps.append(
            lambda image, seed: augmentation.cutout(
                image, data.cutout_half_size, seed + tf.constant([1, 0], seed.dtype)
            )
        )
    if not steps:
        return None
    return lambda image, seed: functools.reduce(lambda image, step: step(image, seed), steps, image)


def _make_views(data: "DataConfig", paired_views: bool) -> Callable[[tf.Tensor, tf.Tensor], Batch]:
    """Makes (encoded image, seed int64 [2]) → what training sees of it: `images` and, if
    paired, `augmented_images`.
    """
    augment = make_augmentation(data)
    settings = {
        "crop": data.crop,
        "crop_padding": data.crop_padding,
        "horizontal_flip": data.horizontal_flip,
    }
    if not paired_views:
        return lambda encoded, seed: {
            "images": preprocessing.preprocess_for_train(
                encoded, data.image_size, seed=seed, augment=augment, **settings
            )
        }
    if data.augment == "none":
        raise ValueError(
            "`config.data.augment` is 'none', but training on pairs of plain and augmented views"
            " needs an augmentation; use 'autoaugment' or 'randaugment'."
        )

    def make_pair(encoded: tf.Tensor, seed: tf.Tensor) -> Batch:
        pair = preprocessing.preprocess_pair_for_train(
            encoded, data.image_size, seed=seed, augment=augment, **settings
        )
        return dict(zip(("images", "augmented_images"), pair))

    return make_pair


def _make_mixing(
    data: "DataConfig", num_classes: Optional[int]
) -> Optional[Callable[[Batch, tf.Tensor], Batch]]:
    """Makes (batch, seed int64 [2]) → the batch with its images, both views alike, and
    labels mixed; None where nothing is.
    """
    if not (data.mixup_alpha or data.cutmix_alpha):
        return None
    if num_classes is None:
        raise ValueError(
            "`num_classes` is None, but MixUp and CutMix (`config.data.mixup_alpha`,"
            " `cutmix_alpha`) need it."
        )

    def mix(batch: Batch, seed: tf.Tensor) -> Batch:
        one_hot = tf.one_hot(batch["labels"], num_classes)
        mixed = {}
        for name in [name for name in batch if name != "labels"]:
            mixed[name], mixed["labels"] = augmentation.mix(
                batch[name], one_hot, seed, data.mixup_alpha, data.cutmix_alpha
            )
        return mixed

    return mix


def make_train_dataset(
    data: "DataConfig",
    split: records.Split,
    *,
    global_batch_size: int,
    seed: int,
    start_batch: int = 0,
    input_context: Optional[tf.distribute.InputContext] = None,
    num_classes: Optional[int] = None,
    paired_views: bool = False,
) -> tf.data.Dataset:
    """Makes the endless training stream of one input pipeline.

    Args:
        data: what the network sees; of several stages, the last one.
        split: see `sources.open_split`.
        global_batch_size: images over all replicas; divisible by their number.
        seed: of order, augmentation and mixing.
        start_batch: how many global batches to leave out: the number of batches trained
            on so far.
        input_context: given by `strategy.distribute_datasets_from_function`; None is
            one input pipeline for one replica.
        num_classes: labels from it on are bad records; None takes any label. MixUp and
            CutMix need it.
        paired_views: give every image plainly and, with the same crop and flip,
            augmented (fine-grained AdvProp).

    Returns:
        `{"images": uint8 [replica_batch, size, size, 3], "labels": int32
        [replica_batch]}` of static shapes. With MixUp or CutMix the labels are float32
        [replica_batch, num_classes], shares that add up to 1; each replica's batch is
        mixed within itself. With `paired_views` the images are what `data.augment` =
        "none" without Cutout would give, and "augmented_images", of the same form, what
        `data` gives otherwise.

    Raises:
        ValueError: the batch does not divide by the replicas; mixing without
            `num_classes`; paired views without augmentation.
    """
    data = data.stages()[-1]
    host = InputHost.of(input_context)
    replica_batch = host.replica_batch(global_batch_size)
    if not split.files:
        return synthetic.make_train_dataset(
            data.image_size,
            replica_batch,
            num_classes,
            has_shares=bool(data.mixup_alpha or data.cutmix_alpha),
            paired_views=paired_views,
        )
    stream = RecordStream(
        _for_network(split, num_classes),
        host,
        shuffle_seed=seed,
        shuffle_buffer=data.shuffle_buffer,
        cache=data.cache,
    )
    make_views, mix = _make_views(data, paired_views), _make_mixing(data, num_classes)

    def seed_at(purpose: str, position: tf.Tensor) -> tf.Tensor:
        own = derive_seed(seed, f"{purpose} of input pipeline {host.index}")
        return tf.stack([tf.constant(own, tf.int64), position])

    def process(encoded: tf.Tensor, label: tf.Tensor, position: tf.Tensor) -> Batch:
        return {**make_views(encoded, seed_at("augmentation", position)), "labels": label}

    batches = batch_records(
        stream,
        num_classes,
        start_batch * replica_batch * host.num_replicas,
        replica_batch,
        process,
        process_batch=(
            None if mix is None else lambda position, batch: mix(batch, seed_at("mixing", position))
        ),
    )
    return batches.prefetch(tf.data.AUTOTUNE).with_options(make_options())


def make_eval_dataset(
    data: "DataConfig",
    split: records.Split,
    *,
    global_batch_size: int,
    input_context: Optional[tf.distribute.InputContext] = None,
    num_classes: Optional[int] = None,
) -> tf.data.Dataset:
    """Makes one pass over a split: every image once over all input pipelines, and from
    each of them the same number of batches.

    Args: as `make_train_dataset`.

    Returns:
        `{"images": float32 [replica_batch, size, size, 3], "labels": int32
        [replica_batch], "mask": float32 [replica_batch]}` of static shapes; the mask is
        1 for an image and 0 for padding. The images are float because the
        official evaluation feeds the bicubic's overshoots below 0 and above 255 too.
    """
    host = InputHost.of(input_context)
    replica_batch = host.replica_batch(global_batch_size)
    if not split.files:
        num_steps = max(1, synthetic.NUM_EXAMPLES["validation"] // global_batch_size)
        return synthetic.make_eval_dataset(
            data.image_size, replica_batch, num_steps * host.num_replicas, num_classes
        )
    split = _for_network(split, num_classes)
    stream = RecordStream(split, host)
    largest = max(
        RecordStream(split, host._replace(index=index)).epoch_size for index in range(host.count)
    )
    # Of the input pipeline with most images, and so of all.
    num_steps = -(-largest // (replica_batch * host.num_replicas))

    def process(encoded: tf.Tensor, label: tf.Tensor, position: tf.Tensor) -> Batch:
        del position
        image = preprocessing.preprocess_for_eval(encoded, data.image_size, crop=data.eval_crop)
        return {"images": image, "labels": label, "mask": tf.constant(1.0)}

    batches = batch_records(
        stream,
        num_classes,
        0,
        replica_batch,
        process,
        num_examples=stream.epoch_size,
        blank={
            "images": tf.zeros([data.image_size, data.image_size, 3]),
            "labels": tf.constant(0),
            "mask": tf.constant(0.0),
        },
    )
    return (
        batches.take(num_steps * host.num_replicas)
        .prefetch(tf.data.AUTOTUNE)
        .with_options(make_options())
    )


def sample_views(
    data: "DataConfig",
    split: records.Split,
    *,
    num_images: int,
    num_draws: int,
    seed: int,
    num_classes: int,
    paired_views: bool = False,
) -> np.ndarray:
    """Shows the first training images as the evaluation and as several draws of the
    training see them.

    Args: as `make_train_dataset`. The images of a draw are a batch, in which they are
    mixed.

    Returns:
        uint8 [num_images, columns, size, size, 3]: the evaluation's view, then
        `num_draws` of training's; if paired, each of them plainly and then augmented.

    Raises:
        DataError: one of the images is bad.
        ValueError: see `make_train_dataset`.
    """
    if not split.files:
        raise DataError(f"`data_dir` is {synthetic.NAME!r}, which has no images to look at.")
    data, split = data.stages()[-1], _for_network(split, num_classes)
    make_views, mix = _make_views(data, paired_views), _make_mixing(data, num_classes)
    examples = []
    for file, record in RecordStream(split, InputHost.of(None)).identify(0, num_images):
        error = records.find_problem(split, file, record, num_classes)
        if error is not None:
            raise error
        examples.append(records.parse(records.read_record(split.files[file], record), split))
    evaluated = [
        preprocessing.preprocess_for_eval(encoded, data.image_size, crop=data.eval_crop)
        for encoded, _ in examples
    ]
    columns = [tf.clip_by_value(evaluated, 0.0, 255.0)]
    for draw in range(num_draws):
        seeds = [
            tf.constant([derive_seed(seed, "views"), row * num_draws + draw], tf.int64)
            for row in range(num_images)
        ]
        views = [make_views(encoded, seed) for (encoded, _), seed in zip(examples, seeds)]
        batch = {name: tf.stack([view[name] for view in views]) for name in views[0]}
        if mix is not None:
            batch = mix({**batch, "labels": tf.stack([label for _, label in examples])}, seeds[0])
        columns += [batch[name] for name in views[0]]
    return np.stack([np.asarray(column).astype(np.uint8) for column in columns], axis=1)
