"""Test suites by their names on the command line: what `evaluate --suite=imagenet,folder:…` means.

    for test_set in open_suite("folder:/data/imagenette/val", settings):
        evaluator(test_set.open_batches())

A suite is a name in `SUITES` (what follows a colon is its argument) and a function from the settings and the argument to its
test sets. Another suite joins by an entry there.
"""

import dataclasses
from typing import Callable, Iterable, Optional

import tensorflow as tf

from efficientnet_advprop.config import DataConfig
from efficientnet_advprop.data import image_folders, pipeline, records

NUM_VALIDATION_IMAGES = 50_000  # of ImageNet
ITERATION_ERRORS = (tf.errors.OpError, records.DataError)  # what reading a test set may raise


class SuiteError(ValueError):
    """A suite that there is not, or that lacks an argument."""


@dataclasses.dataclass(frozen=True)
class SuiteSettings:
    """What all suites share: where the data are and how the network wants its images."""

    data_dir: Optional[str]
    image_size: int  # pixels
    crop: str  # see `preprocessing.crop_fraction`
    num_classes: int
    global_batch_size: int
    strategy: tf.distribute.Strategy


@dataclasses.dataclass(frozen=True)
class NamedTestSet:
    """One set of images with labels."""

    name: str
    num_images: int
    open_batches: Callable[[], Iterable]  # distributed batches, as the `Evaluator` takes them
    explain: Callable[[BaseException], str]  # in words, what one of `ITERATION_ERRORS` means
    is_imagenet: bool = False  # whether these are the images that the published accuracies were measured on


def _imagenet(settings: SuiteSettings, argument: str) -> list[NamedTestSet]:
    """The 50,000 validation images: TFRecords `validation-*` in `--data_dir`."""
    if argument:
        raise SuiteError(f"`--suite` is 'imagenet:{argument}', but imagenet takes no argument; its folder is --data_dir.")
    if not settings.data_dir:
        raise SuiteError("`--data_dir` is missing; the suite imagenet needs the folder of the TFRecords validation-*.")
    data = DataConfig(image_size=settings.image_size, eval_crop=settings.crop)

    def open_pipeline(context):
        return pipeline.make_eval_dataset(
            data,
            settings.data_dir,
            global_batch_size=settings.global_batch_size,
            input_context=context,
            num_classes=settings.num_classes,
        )

    num_images = pipeline.count_examples(data, settings.data_dir, "validation")
    open_batches = lambda: settings.strategy.distribute_datasets_from_function(open_pipeline)  # noqa: E731
    explain = lambda error: str(records.explain_data_error(error) or error)  # noqa: E731
    return [NamedTestSet("imagenet", num_images, open_batches, explain, num_images == NUM_VALIDATION_IMAGES)]


def _folder(settings: SuiteSettings, argument: str) -> list[NamedTestSet]:
    """A folder of images by class."""
    if not argument:
        raise SuiteError("`--suite` is 'folder', but must say which: folder:/data/imagenet/val.")
    folder = image_folders.ImageFolder(argument, settings.num_classes)

    def open_pipeline(context):
        return folder.make_eval_dataset(
            image_size=settings.image_size,
            crop=settings.crop,
            global_batch_size=settings.global_batch_size,
            input_context=context,
        )

    def explain(error):
        unreadable = folder.find_unreadable() if isinstance(error, tf.errors.InvalidArgumentError) else []
        return f"{', '.join(unreadable)} cannot be read as images; repair or remove them." if unreadable else str(error)

    open_batches = lambda: settings.strategy.distribute_datasets_from_function(open_pipeline)  # noqa: E731
    is_imagenet = len(folder.paths) == NUM_VALIDATION_IMAGES and settings.num_classes == 1000
    return [NamedTestSet(f"folder:{argument}", len(folder.paths), open_batches, explain, is_imagenet)]


SUITES = {"imagenet": _imagenet, "folder": _folder}


def open_suite(text: str, settings: SuiteSettings) -> list[NamedTestSet]:
    """The test sets of a suite, "<name>" or "<name>:<argument>".

    Raises:
        SuiteError: there is no such suite, or its argument or `data_dir` is missing.
        DataError: its data are not there or not whole.
    """
    name, _, argument = text.partition(":")
    if name not in SUITES:
        raise SuiteError(f"`--suite` names {name!r}, but there are only {', '.join(SUITES)}.")
    return SUITES[name](settings, argument)
