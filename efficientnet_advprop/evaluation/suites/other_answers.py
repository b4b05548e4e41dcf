"""Test sets whose right answer is not just one of ImageNet's 1,000 classes, or which
are a part of another set: ReaL, ObjectNet, cue conflict, RobustBench's images.

    other_answers.SUITES["objectnet"](settings, "objectnet")      # its test sets
"""

import functools
import hashlib
import json
import os
from typing import Callable, Mapping, Sequence

import tensorflow as tf

from efficientnet_advprop.attacks import AutoAttack
from efficientnet_advprop.data import preprocessing
from efficientnet_advprop.data.image_formats import is_image
from efficientnet_advprop.data.records import DataError
from efficientnet_advprop.evaluation.suites import imagenet_suites
from efficientnet_advprop.evaluation.suites.test_sets import (
    SuiteError,
    SuiteSettings,
    TestSet,
    attack_stages,
    common,
)
from efficientnet_advprop.evaluation.test_set_name import TestSetName
from efficientnet_advprop.images import image_folders, robustness_sets
from efficientnet_advprop.images.ground_truth import NUM_VALIDATION, validation_number
from efficientnet_advprop.images.labeled_images import FileImages

FOLDERS = {
    "objectnet": ("objectnet-1.0/images", "objectnet/images", "objectnet-1.0", "objectnet"),
    "cue_conflict": (
        "cue-conflict",
        "style-transfer-preprocessed-512",
        "texture-vs-shape/stimuli/style-transfer-preprocessed-512",
    ),
}
REAL_FILES = ("real.json", "imagenet/real.json", "reassessed-imagenet/real.json")
_NUM_OBJECTNET_FOLDERS, _NUM_OBJECTNET_IMAGES = 313, 18_574  # images: of the 113 categories
_OBJECTNET_BORDER = 2  # pixels of red that are drawn around every image
_NUM_CUE_CONFLICT_IMAGES = 1_280
# RobustBench: L∞ within 4/255, images at 256 → 224 pixels; its pre-processing
# "Res256Crop224", with which all but some of its newest models are measured.
_ROBUSTBENCH_ATTACK = AutoAttack(4.0, "linf", num_classes=imagenet_suites.NUM_CLASSES)
_ROBUSTBENCH_SIZE, _ROBUSTBENCH_CROP = 224, preprocessing.TORCHVISION
_NUM_IMAGES_PER_CLASS = 50  # of ImageNet's validation set


def _require_network(settings: SuiteSettings, suite: str, looked_for: str) -> None:
    """Raises what `imagenet_suites.open_sets` raises."""
    if settings.num_classes != imagenet_suites.NUM_CLASSES:
        raise SuiteError(
            f"`--suite` names {suite!r}, which is about ImageNet's 1,000 classes, but the network "
            f"has {settings.num_classes:,} outputs."
        )
    if not settings.data_dir:
        raise SuiteError(
            f"`--data_dir` is missing; {suite} needs the folder that holds {looked_for}."
        )
    if not tf.io.gfile.isdir(settings.data_dir):
        raise DataError(f"`--data_dir` is {settings.data_dir!r}, but there is no such folder.")


def _find_folder(settings: SuiteSettings, suite: str) -> str:
    looked_for = ", ".join(f"{folder}/<category>/" for folder in FOLDERS[suite])
    _require_network(settings, suite, looked_for)
    for folder in FOLDERS[suite]:
        path = imagenet_suites.resolve(settings.data_dir, folder)
        if path is not None and tf.io.gfile.isdir(path):
            return path
    raise DataError(
        f"`--data_dir` is {settings.data_dir!r}, which lacks {suite}. Looked for: {looked_for}."
    )


def _list_categories(path: str, labels: Mapping[str, int]) -> FileImages:
    """The images in some of a folder's folders."""
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
    """ObjectNet's images without the border that tells them from training images."""
    del position
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    border = _OBJECTNET_BORDER
    return tf.io.encode_png(image[border:-border, border:-border])


def open_objectnet(settings: SuiteSettings, wanted: str) -> list[TestSet]:
    """ObjectNet's 113 categories that ImageNet has, by the logits of their ImageNet
    classes; any class of a category is right.
    """
    path = _find_folder(settings, wanted)
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
            TestSetName(wanted),
            path,
            functools.partial(_list_categories, path, labels),
            kept_classes=tuple(sorted(label for own in classes.values() for label in own)),
            change=_cut_border,
            right_answers=lambda image_id: classes[image_id.split(os.sep)[0]],
            **common(settings, expected_num_images=_NUM_OBJECTNET_IMAGES),
        )
    ]


def open_cue_conflict(settings: SuiteSettings, wanted: str) -> list[TestSet]:
    """Geirhos et al.'s images of one category's shape in another one's texture; a
    category's probability is the mean of its classes', and shape is what counts as
    right.
    """
    path = _find_folder(settings, wanted)
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
            TestSetName(wanted),
            path,
            functools.partial(_list_categories, path, labels),
            categories=tuple(categories.values()),
            **common(settings, expected_num_images=_NUM_CUE_CONFLICT_IMAGES),
        )
    ]


def _require_files(images, source: str, suite: str) -> None:
    if not isinstance(images, FileImages):
        raise DataError(
            f"{source} does not name its images, among which {suite} chooses; give them as "
            "files, ILSVRC2012_val_00000001.JPEG …, in a folder for each class."
        )


def _some_of(images, is_wanted: Callable[[int], bool], source: str, suite: str) -> FileImages:
    """Those validation images whose number is wanted."""
    _require_files(images, source, suite)
    numbers = [validation_number(path, source) for path in images.paths]
    rows = [row for row, number in enumerate(numbers) if is_wanted(number)]
    return images.subset(rows)


def _open_part(
    settings: SuiteSettings, suite: str, is_wanted: Callable[[int], bool], **fields
) -> TestSet:
    """A test set of some validation images."""
    (clean,) = imagenet_suites.open_sets(settings, "imagenet")
    return TestSet(
        TestSetName(suite),
        clean.source,
        lambda: _some_of(clean.find_images(), is_wanted, clean.source, suite),
        **{**common(settings), **fields},
    )


def open_classes(settings: SuiteSettings, wanted: str) -> list[TestSet]:
    """ImageNet's validation images of the 200 classes of ImageNet-A or -R, answered
    among these: what accuracies on those sets are compared with (Taori et al., NeurIPS
    2020).
    """
    (clean,) = imagenet_suites.open_sets(settings, "imagenet")
    labels = imagenet_suites.subset(wanted.removesuffix("_classes"))

    def find_images():
        images = clean.find_images()
        _require_files(images, clean.source, wanted)
        held = set(labels)
        return images.subset([row for row, label in enumerate(images.labels) if label in held])

    return [
        TestSet(
            TestSetName(wanted),
            clean.source,
            find_images,
            kept_classes=labels,
            **common(settings, expected_num_images=_NUM_IMAGES_PER_CLASS * len(labels)),
        )
    ]


def open_robustbench(settings: SuiteSettings, wanted: str) -> list[TestSet]:
    """RobustBench's protocol for ImageNet (Croce et al., NeurIPS 2021 datasets and
    benchmarks): 5,000 fixed images, AutoAttack standard, L∞ within 4/255.
    """
    images = _open_part(
        settings,
        wanted,
        robustness_sets.robustbench_numbers().__contains__,
        image_size=_ROBUSTBENCH_SIZE,
        crop=_ROBUSTBENCH_CROP,
        expected_num_images=len(robustness_sets.robustbench_numbers()),
    )
    return attack_stages(images, wanted, _ROBUSTBENCH_ATTACK, settings.seed, with_clean=True)


def read_real_labels(path: str) -> list[list[int]]:
    """The right answers of each validation image, in the order of their numbers.

    Raises:
        DataError: it is another file, or one of another number of images.
    """
    try:
        with tf.io.gfile.GFile(path) as file:
            answers = json.load(file)
        is_list = all(
            isinstance(label, int) and 0 <= label < imagenet_suites.NUM_CLASSES
            for own in answers
            for label in own
        )
    except (ValueError, TypeError, tf.errors.OpError) as error:
        raise DataError(f"it cannot be read as lists of labels ({error})", path) from error
    if not is_list:
        raise DataError("it must hold a list of labels (0 to 999) for each image", path)
    if len(answers) != NUM_VALIDATION:
        raise DataError(
            f"it holds the labels of {len(answers):,} images, but ImageNet's validation set has "
            f"{NUM_VALIDATION:,}",
            path,
        )
    return answers


def open_real(settings: SuiteSettings, wanted: str) -> list[TestSet]:
    """ImageNet's validation images by the reassessed labels (Beyer et al., 2020): any
    of an image's labels is right, and images without one are left out.
    """
    _require_network(settings, wanted, f"{', '.join(REAL_FILES)} and ImageNet's validation images")
    paths = [imagenet_suites.resolve(settings.data_dir, name) for name in REAL_FILES]
    path = next((path for path in paths if path is not None), None)
    if path is None:
        raise DataError(
            f"`--data_dir` is {settings.data_dir!r}, which lacks the labels of {wanted}. Looked "
            f"for: {', '.join(REAL_FILES)}, as published in google-research/reassessed-imagenet."
        )
    answers = read_real_labels(path)
    num_labelled = sum(map(bool, answers))
    return [
        _open_part(
            settings,
            wanted,
            lambda number: bool(answers[number - 1]),
            expected_num_images=num_labelled,
            right_answers=lambda image_id: answers[validation_number(image_id, path) - 1],
            answers_digest=hashlib.sha256(json.dumps(answers).encode()).hexdigest(),
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


def describe_layouts() -> str:
    """The suites and where their data are looked for, a line each."""
    lines = [
        f"{suite:17}{', '.join(f'{folder}/<category>/' for folder in folders)}"
        for suite, folders in FOLDERS.items()
    ]
    lines.append(f"{'imagenet_real':17}{', '.join(REAL_FILES)}; the images of imagenet, as files")
    lines.append("robustbench, imagenet_a_classes, imagenet_r_classes: those of imagenet, as files")
    return "\n".join(lines)
