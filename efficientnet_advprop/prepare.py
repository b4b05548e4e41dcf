r"""Turns ImageNet's archives, a folder of images by class, IDX files, or a TFDS data set into
TFRecords in the official layout.

    python -m efficientnet_advprop.prepare --imagenet_dir=/downloads --output_dir=gs://…/imagenet
    python -m efficientnet_advprop.prepare --image_folder=/data/flowers --output_dir=/data/records \
        --validation_fraction=0.2
    python -m efficientnet_advprop.prepare --tfds=oxford_iiit_pet --tfds_dir=/data/tfds \
        --output_dir=/data/records
    python -m efficientnet_advprop.prepare --idx_dir=/usr/share/datasets/fashion-mnist \
        --output_dir=/data/records
    python -m efficientnet_advprop.prepare --check=/data/records

The ImageNet archives are read in place; docs/data.md says what each folder must hold, and how the
classes are numbered. `--validation_fraction` and `--test_fraction` draw about such a part of each
class by the files' contents: equal files are drawn together, and adding images moves no other one.
What is passed over (other formats, images beside or below the class folders) is counted and named.

Started again after a kill, it goes on with the files that are missing; where the images or their
labels have changed since, it says so and overwrites nothing. Exits with 1 and names the files if
any image could not be converted. `--check` writes nothing: it names a folder's damaged records.
"""

from absl import flags

from efficientnet_advprop.command_line import program
from efficientnet_advprop.runtime.errors import UsageError

_IMAGENET_DIR = flags.DEFINE_string(
    "imagenet_dir", None, "folder of the two ILSVRC2012 archives and of synset_labels.txt"
)
_IMAGE_FOLDER = flags.DEFINE_string(
    "image_folder",
    None,
    "folder of train/CLASS/image and validation/CLASS/image, or of CLASS/image",
)
_TFDS = flags.DEFINE_string(
    "tfds", None, "name of a data set that TensorFlow Datasets has prepared in --tfds_dir"
)
_TFDS_DIR = flags.DEFINE_string("tfds_dir", None, "folder of the prepared data sets")
_IDX_DIR = flags.DEFINE_string(
    "idx_dir", None, "folder of MNIST's four IDX files, or another set's, gzipped or not"
)
_CLASS_NAMES = flags.DEFINE_list(
    "class_names", None, "names of --idx_dir's classes, by label; left out: the labels"
)
_CHECK = flags.DEFINE_string("check", None, "folder of TFRecords in which to find all bad records")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "folder of the TFRecords, local or gs://")
_VALIDATION_FRACTION = flags.DEFINE_float(
    "validation_fraction",
    None,
    "share of --image_folder's training images that become the validation files",
    lower_bound=0.0,
    upper_bound=1.0,
)
_TEST_FRACTION = flags.DEFINE_float(
    "test_fraction", None, "the same for test files", lower_bound=0.0, upper_bound=1.0
)
_BY_SIZE = "left out: as many as make about 100 MB each; of --imagenet_dir"
_SHARDS = {
    "train": flags.DEFINE_integer(
        "train_shards", None, f"number of training files; {_BY_SIZE}, 1024", lower_bound=1
    ),
    "validation": flags.DEFINE_integer(
        "validation_shards", None, f"number of validation files; {_BY_SIZE}, 128", lower_bound=1
    ),
    "test": flags.DEFINE_integer(
        "test_shards", None, "number of test files; left out: by size", lower_bound=1
    ),
    "minival": flags.DEFINE_integer(
        "minival_shards", None, f"number of files for --minival_list; {_BY_SIZE}, 20", lower_bound=1
    ),
}
_IMAGENET_SHARDS = {"train": 1024, "validation": 128, "minival": 20}  # as the official converter
_MINIVAL_LIST = flags.DEFINE_string(
    "minival_list",
    None,
    "file with the names of training images, such as n01440764_10026.JPEG or cat/1.png, that are to"
    " be left out of the training files and become minival-… files, for"
    " --config.data.validation_prefix=minival",
)
_NUM_WORKERS = flags.DEFINE_integer("num_workers", 16, "files written at a time", lower_bound=1)


def _list_images():
    """Returns {prefix: images} of the flags' source, and the names of the classes by label."""
    from efficientnet_advprop.data import sources
    from efficientnet_advprop.images import image_sources

    if _IMAGENET_DIR.value:
        folder = _IMAGENET_DIR.value.rstrip("/")
        train = image_sources.list_imagenet_train(f"{folder}/ILSVRC2012_img_train.tar", log=print)
        names = image_sources.list_class_names(train)
        validation = image_sources.list_imagenet_validation(
            f"{folder}/ILSVRC2012_img_val.tar", f"{folder}/synset_labels.txt", names
        )
        return {"train": train, "validation": validation}, names
    if _IMAGE_FOLDER.value:
        return _list_image_folder(_IMAGE_FOLDER.value.rstrip("/"))
    if _IDX_DIR.value:
        images_of = {
            split: image_sources.list_idx(_IDX_DIR.value, split, _CLASS_NAMES.value)
            for split in ("train", "validation")
        }
        return images_of, image_sources.list_class_names(images_of["train"])
    opened = {
        split: sources.open_tfds_split(_TFDS.value, _TFDS_DIR.value, split)
        for split in ("train", "validation")
    }
    names = sources.tfds_class_names(_TFDS.value, _TFDS_DIR.value)
    return {split: image_sources.list_tfds(opened[split], names) for split in opened}, names


def _list_image_folder(folder: str):
    """Does what `_list_images` does, of a folder; some splits are drawn from "train"."""
    from efficientnet_advprop.images import image_sources

    fractions = {
        split: flag.value
        for split, flag in (("validation", _VALIDATION_FRACTION), ("test", _TEST_FRACTION))
        if flag.value
    }
    if sum(fractions.values()) >= 1:
        raise UsageError("`--validation_fraction` and `--test_fraction` must be below 1 together.")
    images_of, names = image_sources.list_splits(folder, log=print)
    for split in fractions:
        if split in images_of:
            raise UsageError(
                f"`--{split}_fraction` is {fractions[split]:g}, but {folder!r} holds {split}/"
                " already; leave one of them out."
            )
    if "validation" not in {**images_of, **fractions}:
        raise UsageError(
            f"`--image_folder` is {folder!r}, which holds no train/ and validation/, each with a"
            " folder per class. Make them, or draw the validation images from the others with"
            " `--validation_fraction=0.2`."
        )
    if fractions:
        groups = image_sources.group_equal_files(images_of["train"])
        images_of |= image_sources.divide(groups, fractions)
    return images_of, names


def _check(folder: str) -> None:
    """Names all bad records of a folder."""
    from efficientnet_advprop.data import class_names, records

    names = class_names.find_class_names(folder)
    prefixes = records.find_prefixes(folder)
    errors = []
    for prefix in prefixes:
        found = records.check_folder(folder, prefix, len(names) if names else None)
        print(f"{prefix}: {len(found)} bad records", flush=True)
        errors += found
    for error in errors:
        print(error)
    if errors or not prefixes:
        what = f"{len(errors)} bad records" if prefixes else "no TFRecords"
        raise records.DataError(f"`--check` is {folder!r}, which holds {what}.")


def _require_flags() -> None:
    if sum(bool(flag.value) for flag in (_IMAGENET_DIR, _IMAGE_FOLDER, _IDX_DIR, _TFDS)) != 1:
        raise UsageError(
            "give one of `--imagenet_dir`, `--image_folder`, `--idx_dir` and `--tfds`."
        )
    if _CLASS_NAMES.value and not _IDX_DIR.value:
        raise UsageError("`--class_names` goes with `--idx_dir`; other sources have their own.")
    if _TFDS.value and not _TFDS_DIR.value:
        raise UsageError(
            "`--tfds_dir` is missing; give the folder in which TensorFlow Datasets has prepared"
            " `--tfds`."
        )
    if not _OUTPUT_DIR.value:
        raise UsageError("`--output_dir` is missing; give a folder for the TFRecords.")
    for flag in (_VALIDATION_FRACTION, _TEST_FRACTION):
        if flag.value and not _IMAGE_FOLDER.value:
            raise UsageError(f"`--{flag.name}` is {flag.value:g}, but needs `--image_folder`.")


def main(argv):
    del argv
    if _CHECK.value:
        _check(_CHECK.value)
        return
    _require_flags()
    # Imported here, so that --help and a wrong flag do not wait for TensorFlow.
    from efficientnet_advprop.images import image_sources, record_conversion
    from efficientnet_advprop.images.class_numbers import are_numbers

    images_of, names = _list_images()
    if are_numbers(names) and list(map(int, names)) != list(range(len(names))):
        print(
            f"the classes are named by numbers, but not 0 to {len(names) - 1}: {names[0]!r} becomes"
            f" label 0, {names[-1]!r} label {len(names) - 1}"
        )
    if _MINIVAL_LIST.value:
        images_of["train"], images_of["minival"] = image_sources.hold_out(
            images_of["train"], _MINIVAL_LIST.value
        )
    num_shards = {prefix: flag.value for prefix, flag in _SHARDS.items() if flag.value}
    if _IMAGENET_DIR.value:
        num_shards = {**_IMAGENET_SHARDS, **num_shards}
    record_conversion.convert_splits(
        images_of,
        names,
        _OUTPUT_DIR.value,
        num_shards=num_shards,
        num_workers=_NUM_WORKERS.value,
        log=print,
    )


if __name__ == "__main__":
    program.run(main)
