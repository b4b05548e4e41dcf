"""Test suites by name: what `--suite=imagenet,imagenet_c,folder:/data/pets/val` means.

    for test_set in open_suites(["imagenet_c", "imagenet_a"], settings):
        images = test_set.find_images()
        # `evaluation_run.run` does the rest
        ...

A suite is a name in `SUITES` and a function from the settings to its test sets.
"imagenet_c/fog" and "imagenet_c/fog/3" are the test sets of that name alone; what
follows a colon is the suite's argument.
"""

import functools
import itertools
import os
from typing import Sequence

from efficientnet_advprop.data import builtin_datasets, corruptions, records
from efficientnet_advprop.evaluation.suites import imagenet_suites, other_answers
from efficientnet_advprop.evaluation.suites.test_sets import (
    SuiteError,
    SuiteSettings,
    TestSet,
    common,
)
from efficientnet_advprop.evaluation.test_set_name import TestSetName
from efficientnet_advprop.images import image_folders
from efficientnet_advprop.images.labeled_images import FileImages, RecordImages


def open_folder(settings: SuiteSettings, argument: str) -> list[TestSet]:
    """Any folder with a sub-folder of images per class."""
    if not argument:
        raise SuiteError("`--suite` is 'folder', but must say which: folder:/data/imagenet/val.")

    def find_images():
        folder = image_folders.ImageFolder(
            argument,
            settings.num_classes,
            class_names=settings.class_names,
            allow_empty=settings.allow_incomplete,
        )
        return FileImages(folder.paths, folder.labels, argument, folder.skipped.describe())

    return [
        TestSet(
            TestSetName(f"folder:{argument.strip('/').replace('/', ':')}"),
            argument,
            find_images,
            **common(settings),
        )
    ]


def open_builtin(settings: SuiteSettings, wanted: str) -> list[TestSet]:
    """The test images of a built-in data set, clean ("digits") or corrupted ("digits_c");
    written into `data_dir` when first read.
    """
    builtin = builtin_datasets.of_suite(TestSetName(wanted).suite)
    if settings.num_classes != builtin.num_classes:
        raise SuiteError(
            f"`--suite` names {wanted!r}, but the network has {settings.num_classes} classes, not"
            f" {builtin.num_classes}."
        )
    builtin.ensure(settings.data_dir)
    folders = {TestSetName(builtin.name): lambda: settings.data_dir}
    for corruption, severity in itertools.product(corruptions.CORRUPTIONS, corruptions.SEVERITIES):
        make = functools.partial(builtin.ensure_corrupted, settings.data_dir, corruption, severity)
        folders[TestSetName.corrupted(builtin.corrupted_name, corruption, severity)] = make

    def find_images(name):
        return RecordImages(records.open_split(folders[name](), "validation"), builtin.num_classes)

    fields = common(settings, expected_num_images=builtin.num_validation)
    return [
        TestSet(name, settings.data_dir, functools.partial(find_images, name), **fields)
        for name in folders
        if name.is_part_of(wanted)
    ]


# Name → (settings, the name as it was given; of "folder", its argument) → test sets.
SUITES = {
    **imagenet_suites.SUITES,
    **other_answers.SUITES,
    "folder": open_folder,
    **{
        suite: open_builtin
        for builtin in builtin_datasets.BUILTIN_DATASETS.values()
        for suite in (builtin.name, builtin.corrupted_name)
    },
}


def open_suites(names: Sequence[str], settings: SuiteSettings) -> list[TestSet]:
    """The test sets of several suites, each once, in the order of the names.

    Raises:
        SuiteError: there is no such suite, its argument or `data_dir` is missing, or
            the network has another number of classes.
        DataError: its data are not there.
    """
    test_sets: dict[str, TestSet] = {}
    folders: dict[str, str] = {}  # by the name of the test set, which has no leading slash
    for text in names:
        name, _, argument = text.partition(":")
        suite = TestSetName(name).suite
        if suite not in SUITES:
            raise SuiteError(f"`--suite` names {suite!r}, but there are only {', '.join(SUITES)}.")
        if argument and suite != "folder":
            raise SuiteError(
                f"`--suite` is {text!r}, but {suite} takes no argument; its data are found below"
                " --data_dir."
            )
        chosen = SUITES[suite](settings, argument if suite == "folder" else name)
        if not chosen:
            raise SuiteError(f"`--suite` names {name!r}, but {suite} has no such test set.")
        if suite == "folder":
            other = folders.setdefault(str(chosen[0].name), argument)
            if os.path.abspath(other) != os.path.abspath(argument):
                raise SuiteError(
                    f"`--suite` names folder:{other} and folder:{argument}, whose results would "
                    "have the same name; evaluate them one after the other, each into an "
                    "--out_dir of its own."
                )
        test_sets.update((test_set.name, test_set) for test_set in chosen)
    return list(test_sets.values())
