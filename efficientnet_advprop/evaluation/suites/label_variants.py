"""Test sets whose right answer is not just one class of ImageNet's, or which are a part of
another set: ReaL, ObjectNet, cue conflict, RobustBench's images.
"""

import functools
import hashlib
import json
import os
from typing import Callable, Mapping, Sequence

import tensorflow as tf

from efficientnet_advprop.attacks import AutoAttack
from efficientnet_advprop.config.suites import CATEGORY_FOLDERS, REAL_FILES
from efficientnet_advprop.data import preprocessing
from efficientnet_advprop.data.image_formats import decode, is_image
from efficientnet_advprop.evaluation.suites import imagenet_suites
from efficientnet_advprop.evaluation.suites.test_sets import SuiteSettings, TestSet, attack_stages
from efficientnet_advprop.images import image_folders, robustness_sets
from efficientnet_advprop.images.ground_truth import NUM_VALIDATION, read_text, validation_number
from efficientnet_advprop.images.labeled_images import FileImages, LabeledImages
from efficientnet_advprop.runtime.errors import DataError

_NUM_OBJECTNET_FOLDERS, _NUM_OBJECTNET_IMAGES = 313, 18_574  # images: of the 113 categories
_OBJECTNET_BORDER = 2  # pixels of red that are drawn around every image
_NUM_CUE_CONFLICT_IMAGES = 1_280
# RobustBench: L∞ within 4/255, images at 256 → 224 pixels; its pre-processing
# "Res256Crop224", with which all but some of its newest models are measured.
_ROBUSTBENCH_ATTACK = AutoAttack(4.0, "linf", num_classes=imagenet_suites.NUM_CLASSES)
_ROBUSTBENCH_SIZE, _ROBUSTBENCH_CROP = 224, preprocessing.TORCHVISION
_NUM_IMAGES_PER_CLASS = 50  # of ImageNet's validation set


def _find(settings: SuiteSettings, suite: str, names: Sequence[str], what: str = "") -> str:
    """Returns where the first of `names` is that exists; those that end in "/" are folders."""
    looked_for = ", ".join(f"{name}<category>/" if name.endswith("/") else name for name in names)
    imagenet_suites.require_imagenet(settings, suite, looked_for)
    for name in names:
        path = imagenet_suites.resolve(settings.data_dir, name.rstrip("/"))
        if path is not None and (tf.io.gfile.isdir(path) or not name.endswith("/")):
            return path
    raise DataError(
        f"`--data_dir` is {settings.data_dir!r}, which lacks {what or suite}. Looked for:"
        f" {looked_for}."
    )


def _list_categories(path: str, labels: Mapping[str, int]) -> FileImages:
    """Lists the images in some of a folder's folders."""
    paths, own_labels = [], []
    for folder, label in labels.items():
        names = sorted(tf.io.gfile.listdir(os.path.join(path, folder)))
        found = [os.path.join(path, folder, name) for name in names if is_image(name)]
        paths += found
        own_labels += [label] * len(found)
    if not paths:
        raise DataError(f"{path!r} holds no image in {len(labels)} folders.")
    return FileImages(paths, own_labels, path)


def _cut_border(encoded: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
    """Cuts off ObjectNet's border, which tells its images from training images."""
    del position
    image = decode(encoded)
    border = _OBJECTNET_BORDER
    return tf.io.encode_png(image[border:-border, border:-border])


def open_objectnet(settings: SuiteSettings, wanted: str) -> list[TestSet]:
    """Opens ObjectNet's 113 categories that ImageNet has; any class of a category is right."""
    path = _find(settings, wanted, [f"{name}/" for name in CATEGORY_FOLDERS[wanted]])
    folders = image_folders.list_folders(path)
    if len(folders) != _NUM_OBJECTNET_FOLDERS:
        raise DataError(
            f"{path!r} holds {len(folders)} folders, but ObjectNet has {_NUM_OBJECTNET_FOLDERS} "
            "categories, which are known by their alphabetical order; unpack all of them."
        )
    classes = {folders[number]: own for number, own in robustness_sets.objectnet_classes().items()}
    labels = {folder: own[0] for folder, own in classes.items()}
    return [
        TestSet(
            wanted,
            path,
            functools.partial(_list_categories, path, labels),
            class_subset=tuple(sorted(label for own in classes.values() for label in own)),
            change=_cut_border,
            label_variants=lambda image_id: classes[image_id.split(os.sep)[0]],
            **settings.own_fields(expected_num_images=_NUM_OBJECTNET_IMAGES),
        )
    ]


def open_cue_conflict(settings: SuiteSettings, wanted: str) -> list[TestSet]:
    """Opens Geirhos et al.'s images of one category in another's texture; shape is right."""
    path = _find(settings, wanted, [f"{name}/" for name in CATEGORY_FOLDERS[wanted]])
    categories = robustness_sets.cue_conflict_categories()
    folders = image_folders.list_folders(path)
    if folders != list(categories):
        missing = [category for category in categories if category not in folders]
        strange = [folder for folder in folders if folder not in categories]
        raise DataError(
            f"{path!r} must hold a folder for each of {len(categories)} categories, but "
            f"{'lacks ' + ', '.join(missing[:4]) if missing else 'has ' + ', '.join(strange[:4])}."
        )
    labels = {category: number for number, category in enumerate(categories)}
    return [
        TestSet(
            wanted,
            path,
            functools.partial(_list_categories, path, labels),
            categories=tuple(categories.values()),
            **settings.own_fields(expected_num_images=_NUM_CUE_CONFLICT_IMAGES),
        )
    ]


def _as_files(images: LabeledImages, source: str, suite: str) -> FileImages:
    if not isinstance(images, FileImages):
        raise DataError(
            f"{source} does not name its images, among which {suite} chooses; give them as "
            "files, ILSVRC2012_val_00000001.JPEG …, in a folder for each class."
        )
    return images


def _open_part(
    settings: SuiteSettings, suite: str, is_wanted: Callable[[str, int], bool], **fields
) -> TestSet:
    """Opens the validation images for whose (path, label) `is_wanted` holds."""
    (clean,) = imagenet_suites.open_sets(settings, "imagenet", suite)

    def find_images():
        images = _as_files(clean.find_images(), clean.source, suite)
        pairs = enumerate(zip(images.paths, images.labels))
        return images.subset([row for row, pair in pairs if is_wanted(*pair)])

    return TestSet(suite, clean.source, find_images, **{**settings.own_fields(), **fields})


def open_classes(settings: SuiteSettings, wanted: str) -> list[TestSet]:
    """Opens ImageNet's validation images of the 200 classes of ImageNet-A or -R, classified
    among these: what accuracies on those sets are compared with (Taori et al., NeurIPS 2020).
    """
    labels = imagenet_suites.subset(wanted.removesuffix("_classes"))
    held = set(labels)
    return [
        _open_part(
            settings,
            wanted,
            lambda path, label: label in held,
            class_subset=labels,
            expected_num_images=_NUM_IMAGES_PER_CLASS * len(labels),
        )
    ]


def open_robustbench(settings: SuiteSettings, wanted: str) -> list[TestSet]:
    """Opens RobustBench's protocol for ImageNet (Croce et al., NeurIPS 2021 datasets and
    benchmarks): 5,000 fixed images, AutoAttack standard, L∞ within 4/255.
    """
    numbers = robustness_sets.robustbench_numbers()
    images = _open_part(
        settings,
        wanted,
        lambda path, label: validation_number(path, settings.data_dir) in numbers,
        image_size=_ROBUSTBENCH_SIZE,
        crop=_ROBUSTBENCH_CROP,
        expected_num_images=len(numbers),
    )
    return attack_stages(images, wanted, _ROBUSTBENCH_ATTACK, settings.seed, with_clean=True)


def read_real_labels(path: str) -> list[list[int]]:
    """Reads the classes that count as right for each validation image, by number."""
    text = read_text(path)
    try:
        variants = json.loads(text)
        is_list = all(
            isinstance(label, int) and 0 <= label < imagenet_suites.NUM_CLASSES
            for own in variants
            for label in own
        )
    except (ValueError, TypeError) as error:
        raise DataError(f"it cannot be read as lists of labels ({error})", path) from error
    if not is_list:
        raise DataError("it must hold a list of labels (0 to 999) for each image", path)
    if len(variants) != NUM_VALIDATION:
        raise DataError(
            f"it holds the labels of {len(variants):,} images, but ImageNet's validation set has "
            f"{NUM_VALIDATION:,}",
            path,
        )
    return variants


def open_real(settings: SuiteSettings, wanted: str) -> list[TestSet]:
    """Opens ImageNet's validation images with the reassessed labels (Beyer et al., 2020):
    any of an image's labels is right, and images without one are left out.
    """
    what = f"the labels of {wanted}, as published in google-research/reassessed-imagenet"
    path = _find(settings, wanted, REAL_FILES, what)
    variants = read_real_labels(path)

    def variants_of(image_id: str) -> Sequence[int]:
        return variants[validation_number(image_id, settings.data_dir) - 1]

    return [
        _open_part(
            settings,
            wanted,
            lambda path, label: bool(variants_of(path)),
            expected_num_images=sum(map(bool, variants)),
            label_variants=variants_of,
            label_variants_digest=hashlib.sha256(json.dumps(variants).encode()).hexdigest(),
        )
    ]


SUITES: Mapping[str, Callable[[SuiteSettings, str], Sequence[TestSet]]] = {
    "imagenet_real": open_real,
    "objectnet": open_objectnet,
    "cue_conflict": open_cue_conflict,
    "robustbench": open_robustbench,
    "imagenet_a_classes": open_classes,
    "imagenet_r_classes": open_classes,
}
