"""From a config and a split of TFRecords to training batches: the seam between the data and
the trainer.

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
`DataError`. It costs nothing until it comes: no image is checked twice.

Images to be evaluated come from `images.labeled_images`.
"""

import functools
import os
import typing
from typing import Callable, Dict, Optional, Tuple

import numpy as np
import tensorflow as tf

from efficientnet_advprop.data import augmentation, preprocessing, records, synthetic
from efficientnet_advprop.data.python_calls import call_python
from efficientnet_advprop.data.record_streams import RecordStream, derive_seed
from efficientnet_advprop.runtime.errors import DataError

if typing.TYPE_CHECKING:
    from efficientnet_advprop.config.experiment import DataConfig

Batch = Dict[str, tf.Tensor]
# Nothing here needs AutoGraph, whose conversion takes most of the time until the first
# batch.
_as_it_is = tf.autograph.experimental.do_not_convert


def make_options() -> tf.data.Options:
    """Returns how `tf.data` is to run our input pipelines: in order, and each as it is,
    since it picks its own part of the data already.
    """
    options = tf.data.Options()
    options.deterministic = True
    # Images are processed in parallel already; an operation split over threads only
    # costs more.
    options.threading.max_intra_op_parallelism = 1
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options


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
    if paired_views and data.augment == "none":
        raise ValueError(
            "`config.data.augment` is 'none', but training on pairs of plain and augmented views"
            " needs an augmentation; use 'autoaugment' or 'randaugment'."
        )
    augment = make_augmentation(data)
    make = functools.partial(
        preprocessing.preprocess_views_for_train,
        augmentations=[None, augment] if paired_views else [augment],
        image_size=data.image_size,
        crop=data.crop,
        crop_padding=data.crop_padding,
        horizontal_flip=data.horizontal_flip,
    )
    return lambda encoded, seed: dict(zip(("images", "augmented_images"), make(encoded, seed=seed)))


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


def _make_processing(
    data: "DataConfig",
    stream: RecordStream,
    seed: int,
    pipeline_id: int,
    num_classes: Optional[int],
    paired_views: bool,
) -> Tuple[Callable, Callable]:
    """Makes (position, record) → (position, what training sees of it), and the same of batches."""
    make_views, mix = _make_views(data, paired_views), _make_mixing(data, num_classes)

    def seed_at(purpose: str, position: tf.Tensor) -> tf.Tensor:
        own = derive_seed(seed, f"{purpose} of input pipeline {pipeline_id}")
        return tf.stack([tf.constant(own, tf.int64), position])

    def process(position, address):
        file, record, row = address
        # A record missing from its file's stream is asked for once more by its address:
        # a neighbour, or the network, may have been at fault.
        row = tf.cond(
            tf.equal(tf.strings.length(row), 0),
            lambda: call_python(stream.reread, [file, record], row=tf.TensorSpec([], tf.string))[0],
            lambda: row,
        )
        encoded, label = records.parse(row, stream.split, num_classes)
        views = make_views(encoded, seed_at("augmentation", position))
        return position, {**views, "labels": label}

    def process_batch(positions, batch):
        batch = batch if mix is None else mix(batch, seed_at("mixing", positions[0]))
        return positions[0], batch

    return process, process_batch


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
    context = input_context or tf.distribute.InputContext()
    replica_batch = context.get_per_replica_batch_size(global_batch_size)
    if not split.files:
        return synthetic.make_train_dataset(
            data.image_size,
            replica_batch,
            num_classes,
            has_shares=bool(data.mixup_alpha or data.cutmix_alpha),
            paired_views=paired_views,
        )
    stream = RecordStream(
        split.for_network(num_classes), context, seed, data.shuffle_buffer, cache=data.cache
    )
    process, process_batch = _make_processing(
        data, stream, seed, context.input_pipeline_id, num_classes, paired_views
    )
    # This host's part of a global batch.
    host_batch = replica_batch * (context.num_replicas_in_sync // context.num_input_pipelines)
    first_position = start_batch * host_batch
    batches = (
        stream.elements(tf.constant(first_position, tf.int64))
        .map(_as_it_is(process), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(replica_batch, drop_remainder=True)
        .map(_as_it_is(process_batch), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .prefetch(tf.data.AUTOTUNE)
    )

    def complain(first: np.ndarray) -> bool:
        raise _find_bad_record(stream, num_classes, int(first), int(first) + replica_batch)

    watched = _until_failure(batches, first_position, replica_batch, complain)
    return watched.prefetch(tf.data.AUTOTUNE).with_options(make_options())


def _until_failure(
    batches: tf.data.Dataset, first_position: int, batch_size: int, complain: Callable
) -> tf.data.Dataset:
    """Takes (first position, batch), yields the batches; calls `complain(its position)` where
    one fails.

    TensorFlow's datasets do not say which element failed. So a marker, which cannot
    fail, follows every batch: two markers in a row mean a failure between them. Without
    one, this costs a comparison per batch.
    """
    nothing = tf.nest.map_structure(
        lambda spec: tf.zeros(spec.shape, spec.dtype), batches.element_spec
    )
    markers = tf.data.Dataset.from_tensors((tf.constant(-1, tf.int64), nothing[1])).repeat()
    turns = tf.data.Dataset.from_tensor_slices(tf.constant([0, 1], tf.int64)).repeat()
    both = tf.data.Dataset.choose_from_datasets(
        [batches, markers], turns, stop_on_empty_dataset=True
    ).ignore_errors()

    def watch(state, element):
        expected, after_marker = state
        position, batch = element
        is_marker = position < 0
        # A batch that starts elsewhere than where the last one ended has lost elements:
        # it counts as failed too.
        failed = tf.where(is_marker, after_marker, tf.not_equal(position, expected))
        is_good = tf.cond(
            failed,
            lambda: call_python(complain, [expected], is_good=tf.TensorSpec([], tf.bool))[0],
            lambda: tf.constant(True),
        )
        with tf.control_dependencies([is_good]):
            is_marker = tf.identity(is_marker)
        return (tf.where(is_marker, expected, expected + batch_size), is_marker), (is_marker, batch)

    start = (tf.constant(first_position, tf.int64), tf.constant(False))
    watched = both.scan(start, _as_it_is(watch)).filter(lambda is_marker, batch: ~is_marker)
    return watched.map(lambda is_marker, batch: batch)


def _find_bad_record(
    stream: RecordStream, num_classes: Optional[int], first: int, last: int
) -> DataError:
    """Returns what is wrong with the first bad record at the positions first … last − 1."""
    split = stream.split
    for file, record in stream.identify(first, last - first):
        error = records.find_problem(split, file, record, num_classes)
        if error is not None:
            hint = ""
            if split.is_official:
                command = f"prepare --check={os.path.dirname(split.files[file])}"
                hint = f" `python -m efficientnet_advprop.{command}` finds all such records."
            return DataError(f"{error.reason.rstrip('.')}.{hint}", error.path, error.record)
    return DataError(
        f"records {first} to {last - 1} of the stream could not be processed, "
        "yet each is good by itself."
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
    data, split = data.stages()[-1], split.for_network(num_classes)
    make_views, mix = _make_views(data, paired_views), _make_mixing(data, num_classes)
    # The first record of each file, then the second, …
    addresses = sorted(
        (record, file)
        for file, count in enumerate(split.counts)
        for record in range(min(count, num_images))
    )
    examples = []
    for record, file in addresses[:num_images]:
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
