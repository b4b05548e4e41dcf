"""Test suites by name: what `--suite=imagenet,imagenet_c/fog,folder:/data/pets` means.

    for test_set in open_suites(["imagenet_c", "digits_pgd"], settings): ...

A suite is a set of images and a condition: as they are, corrupted here, or attacked.
"imagenet_c/fog" and "imagenet_c/fog/3" are the test sets of that name alone; what
follows a colon is a folder.
"""

import dataclasses
import functools
import itertools
import os
import re
from typing import Sequence

from efficientnet_advprop.config import suites
from efficientnet_advprop.config.suites import split_condition
from efficientnet_advprop.data import builtin_datasets, corruptions, records
from efficientnet_advprop.evaluation.suites import imagenet_suites, label_variants
from efficientnet_advprop.evaluation.suites.test_sets import (
    SuiteSettings,
    TestSet,
    attack_stages,
    corrupted_here,
    square_alone,
    with_attack,
)
from efficientnet_advprop.evaluation.test_set_name import corrupted_name, is_part_of
from efficientnet_advprop.images import image_folders
from efficientnet_advprop.images.labeled_images import RecordImages
from efficientnet_advprop.runtime.errors import UsageError


def open_folder(settings: SuiteSettings, path: str) -> list[TestSet]:
    """Opens any folder with a sub-folder of images per class."""

    find_images = functools.partial(
        image_folders.label_folder,
        path,
        settings.num_classes,
        class_names=settings.class_names,
        allow_empty=settings.allow_incomplete,
    )
    return [TestSet(_folder_name(path), path, find_images, **settings.own_fields())]


def _folder_name(path: str) -> str:
    """Returns "photos-test" for "/home/ada/Photos/test": short, and legal in any file's name.
    Underscores and slashes would be the parts of a name.
    """
    parts = (path.rstrip("/") if "://" in path else os.path.abspath(path)).split("/")
    return re.sub(r"[\W_]+", "-", "-".join(parts[-2:])).strip("-").lower() or "folder"


def open_builtin(settings: SuiteSettings, wanted: str) -> list[TestSet]:
    """Opens a built-in data set, clean or corrupted ("digits_c"), written when first read."""
    builtin = builtin_datasets.of_suite(wanted.split("/")[0])
    if settings.num_classes != builtin.num_classes:
        raise UsageError(
            f"`--suite` names {wanted!r}, but the network has {settings.num_classes} classes, not"
            f" {builtin.num_classes}."
        )
    builtin.ensure(settings.data_dir)
    folders = {builtin.name: lambda: settings.data_dir}
    for corruption, severity in itertools.product(corruptions.CORRUPTIONS, corruptions.SEVERITIES):
        make = functools.partial(builtin.ensure_corrupted, settings.data_dir, corruption, severity)
        folders[corrupted_name(builtin.corrupted_name, corruption, severity)] = make

    def find_images(name):
        return RecordImages(records.open_split(folders[name](), "validation"), builtin.num_classes)

    fields = settings.own_fields(expected_num_images=builtin.num_validation)
    return [
        TestSet(name, settings.data_dir, functools.partial(find_images, name), **fields)
        for name in folders
        if is_part_of(name, wanted)
    ]


_OPENERS = {
    **label_variants.SUITES,
    **{
        suite: open_builtin
        for builtin in builtin_datasets.BUILTIN_DATASETS.values()
        for suite in (builtin.name, builtin.corrupted_name)
    },
}
# Suites of ImageNet's validation images whose names do not follow "<images>_<condition>".
_OF_IMAGENET = {"imagenet_c_made": "_c", "pgd": "_pgd", "autoattack": "_autoattack"}


def _open_changed(
    settings: SuiteSettings, asked_for: str, clean: TestSet, suite: str, condition: str
) -> list[TestSet]:
    """Opens the test sets that `condition` makes of a clean one."""
    if condition == "_pgd":
        restarts, seed = settings.num_restarts, settings.seed
        return [with_attack(clean, settings.attack, num_restarts=restarts, seed=seed, suite=suite)]
    if condition == "_autoattack":
        if clean.categories is not None:
            raise UsageError(f"`--suite` is {asked_for!r}, but AutoAttack takes no categories.")
        try:
            autoattack = dataclasses.replace(settings.autoattack, num_classes=settings.num_classes)
        except ValueError as error:
            raise UsageError(
                f"`--suite` is {asked_for!r}, but the attack (--attack_targets, …) does not go with"
                f" the network: {error}"
            ) from error
        if asked_for == f"{suite}/square":
            return [square_alone(clean, suite, autoattack, settings.seed)]
        return attack_stages(clean, suite, autoattack, settings.seed)
    # ImageNet-C's images are stored at 224 pixels; of others only the network knows the size.
    size = settings.stored_size if suite == "imagenet_c_made" else settings.image_size
    return corrupted_here(clean, suite, size, settings.seed)


def _open_suite(settings: SuiteSettings, asked_for: str) -> list[TestSet]:
    head, _, argument = asked_for.partition(":")
    name = head.split("/")[0]
    clean_suite, condition = split_condition(name)
    if name in _OF_IMAGENET:
        clean_suite, condition = "imagenet", _OF_IMAGENET[name]
    if clean_suite == "folder":
        test_sets = open_folder(settings, argument)
        suite = test_sets[0].name + condition
    else:
        wanted, suite = (clean_suite if condition else head), name
        if clean_suite in suites.LAYOUTS:
            test_sets = imagenet_suites.open_sets(settings, wanted, head)
        else:
            test_sets = _OPENERS[clean_suite](settings, wanted)
    if not condition:
        return [test_set for test_set in test_sets if argument or is_part_of(test_set.name, head)]
    if len(test_sets) != 1:
        raise UsageError(
            f"`--suite` names {name!r}, but {clean_suite} has {len(test_sets)} test sets; only a"
            " suite of one can be corrupted or attacked."
        )
    changed = _open_changed(settings, asked_for, test_sets[0], suite, condition)
    is_whole = argument or (condition == "_autoattack" and head in (name, f"{name}/square"))
    return [test_set for test_set in changed if is_whole or is_part_of(test_set.name, head)]


def open_suites(names: Sequence[str], settings: SuiteSettings) -> list[TestSet]:
    """Opens the test sets of several suites, each once, in the order of the names.

    Raises:
        UsageError: there is no such suite, its argument or `data_dir` is missing, or
            the network has another number of classes.
        DataError: its data are not there.
    """
    suites.check(names)
    test_sets: dict[str, TestSet] = {}
    folders: dict[str, str] = {}  # by the name of the test set, which is of two of its parts
    for asked_for in names:
        chosen = _open_suite(settings, asked_for)
        if not chosen:
            raise UsageError(
                f"`--suite` names {asked_for!r}, but {asked_for.split('/')[0]} has no such set."
            )
        _, colon, path = asked_for.partition(":")
        other = folders.setdefault(chosen[0].name, path) if colon else path
        if os.path.abspath(other) != os.path.abspath(path):
            raise UsageError(
                f"`--suite` names folder:{other} and folder:{path}, whose results would have the"
                " same name; evaluate them one after the other, each into an --out_dir of its own."
            )
        if colon:
            chosen = [dataclasses.replace(one, asked_for=asked_for) for one in chosen]
        test_sets.update((test_set.name, test_set) for test_set in chosen)
    return list(test_sets.values())
