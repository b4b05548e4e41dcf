r"""Turns ImageNet's archives, a folder of images by class, or a TFDS data set into
TFRecords in the official layout.

Usage:

    python -m efficientnet_advprop.prepare --imagenet_dir=/downloads --output_dir=gs://…/imagenet
    python -m efficientnet_advprop.prepare --image_folder=/data/flowers --output_dir=/data/records \
        --train_shards=64 --validation_shards=8
    python -m efficientnet_advprop.prepare --tfds=oxford_iiit_pet --tfds_dir=/data/tfds \
        --output_dir=/data/records --train_shards=32 --validation_shards=32

`--imagenet_dir` holds ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and synset_labels.txt (the
class of each validation image, one a line); the archives are read in place. `--image_folder` holds
train/CLASS/… and validation/CLASS/….

The classes are numbered from 0 in the order of the folders' names, or of the numbers that these
are, in both splits alike; `labels_map.txt` beside the records has their names. A class without
images is an error. What is passed over (other formats, images beside or below the class folders) is
counted and named.

Started again after a kill, it goes on with the shards that are missing. Ends with the number of
images of each class; exits with 1 and names the files if any image could not be converted.
"""

import sys

import tqdm
from absl import flags

from efficientnet_advprop.command_line import program
from efficientnet_advprop.config.experiment import ConfigError

_IMAGENET_DIR = flags.DEFINE_string(
    "imagenet_dir", None, "folder of the two ILSVRC2012 archives and of synset_labels.txt"
)
_IMAGE_FOLDER = flags.DEFINE_string(
    "image_folder", None, "folder of train/CLASS/image and validation/CLASS/image"
)
_TFDS = flags.DEFINE_string(
    "tfds", None, "name of a data set that TensorFlow Datasets has prepared in --tfds_dir"
)
_TFDS_DIR = flags.DEFINE_string("tfds_dir", None, "folder of the prepared data sets")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "folder of the TFRecords, local or gs://")
_TRAIN_SHARDS = flags.DEFINE_integer(
    "train_shards", 1024, "number of training files", lower_bound=1
)
_VALIDATION_SHARDS = flags.DEFINE_integer(
    "validation_shards", 128, "number of validation files", lower_bound=1
)
_MINIVAL_LIST = flags.DEFINE_string(
    "minival_list",
    None,
    "file with the names of training images that are to be left out of the training files and"
    " become minival-… files, for --config.data.validation_prefix=minival",
)
_MINIVAL_SHARDS = flags.DEFINE_integer(
    "minival_shards", 20, "number of files for --minival_list", lower_bound=1
)
_NUM_SHOWN = 20  # of the images that cannot be converted
_NUM_WORKERS = flags.DEFINE_integer("num_workers", 16, "files written at a time", lower_bound=1)


def _list_images():
    """{prefix: images} of the flags' source, and the names of the classes by label."""
    from efficientnet_advprop.data import sources
    from efficientnet_advprop.images import conversion

    if _IMAGENET_DIR.value:
        folder = _IMAGENET_DIR.value.rstrip("/")
        train = conversion.list_imagenet_train(f"{folder}/ILSVRC2012_img_train.tar", log=print)
        names = conversion.list_class_names(train)
        validation = conversion.list_imagenet_validation(
            f"{folder}/ILSVRC2012_img_val.tar", f"{folder}/synset_labels.txt", names
        )
        return {"train": train, "validation": validation}, names
    if _IMAGE_FOLDER.value:
        folder = _IMAGE_FOLDER.value.rstrip("/")
        train = conversion.list_image_folder(f"{folder}/train", log=print)
        names = conversion.list_class_names(train)
        validation = conversion.list_image_folder(f"{folder}/validation", names, log=print)
        return {"train": train, "validation": validation}, names
    opened = {
        split: sources.open_tfds_split(_TFDS.value, _TFDS_DIR.value, split)
        for split in ("train", "validation")
    }
    names = sources.tfds_class_names(_TFDS.value, _TFDS_DIR.value)
    return {split: conversion.list_tfds(opened[split], names) for split in opened}, names


def _convert(images, prefix: str, num_shards: int):
    """Writes one split's files, with a progress bar on stderr; a `conversion.Report`."""
    from efficientnet_advprop.images import conversion

    seconds_between_updates = 0.1 if sys.stderr.isatty() else 30.0
    with tqdm.tqdm(
        total=num_shards, unit=" files", dynamic_ncols=True, mininterval=seconds_between_updates
    ) as bar:

        def show(num_done: int, num_files: int) -> None:
            if bar.n == 0:
                bar.initial = num_done  # files of an earlier call say nothing of the speed
            bar.total = num_files
            bar.update(num_done - bar.n)

        return conversion.convert(
            images,
            _OUTPUT_DIR.value,
            prefix,
            num_shards=num_shards,
            num_workers=_NUM_WORKERS.value,
            shuffle=prefix == "train",
            progress=show,
        )


def main(argv):
    del argv
    if sum(bool(flag.value) for flag in (_IMAGENET_DIR, _IMAGE_FOLDER, _TFDS)) != 1:
        raise ConfigError("give one of `--imagenet_dir`, `--image_folder` and `--tfds`.")
    if _TFDS.value and not _TFDS_DIR.value:
        raise ConfigError(
            "`--tfds_dir` is missing; give the folder in which TensorFlow Datasets has prepared"
            " `--tfds`."
        )
    if not _OUTPUT_DIR.value:
        raise ConfigError("`--output_dir` is missing; give a folder for the TFRecords.")
    # Imported here, so that --help and a wrong flag do not wait for TensorFlow.
    from efficientnet_advprop.data import records
    from efficientnet_advprop.data.class_names import claim_class_names
    from efficientnet_advprop.images import conversion
    from efficientnet_advprop.images.class_numbers import are_numbers

    failures = []
    images_of, names = _list_images()
    if are_numbers(names) and list(map(int, names)) != list(range(len(names))):
        print(
            f"the classes are named by numbers, but not 0 to {len(names) - 1}: {names[0]!r} becomes"
            f" label 0, {names[-1]!r} label {len(names) - 1}"
        )
    claim_class_names(_OUTPUT_DIR.value, names, "records")
    if _MINIVAL_LIST.value:
        images_of["train"], images_of["minival"] = conversion.hold_out(
            images_of["train"], _MINIVAL_LIST.value
        )
    shards = {
        "train": _TRAIN_SHARDS,
        "validation": _VALIDATION_SHARDS,
        "minival": _MINIVAL_SHARDS,
    }
    for prefix, images in images_of.items():
        num_shards = shards[prefix].value
        print(f"{prefix}: {len(images)} images into {num_shards} files")
        report = _convert(images, prefix, num_shards)
        for name in names:
            print(f"  {name:20s} {report.num_per_class.get(name, 0):8d}")
        print(
            f"  {report.num_images} images of {len(report.num_per_class)} classes,"
            f" {report.num_reencoded} encoded anew as JPEG"
        )
        failures += report.failures
    if failures:
        shown = "".join(f"\n  {failure}" for failure in failures[:_NUM_SHOWN])
        more = len(failures) - _NUM_SHOWN
        shown += f"\n  and {more} more" if more > 0 else ""
        print(f"These cannot be converted:{shown}", file=sys.stderr)
        raise records.DataError(
            f"{len(failures)} images cannot be converted, and the TFRecords that they belong to are"
            " not written. Repair them and start again; or remove them and start again with an"
            " empty `--output_dir`, for the order changes."
        )


if __name__ == "__main__":
    program.run(main)
