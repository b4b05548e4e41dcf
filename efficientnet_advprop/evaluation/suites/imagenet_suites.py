"""ImageNet's validation set and its relatives, from the files that people have, found
below `data_dir` by their usual names (`config.suites`).

Labels come from the class folders' WordNet ids (in ImageNet-V2, from their numbers),
never from their order.
"""

import functools
import json
import os
import pathlib
import re
from typing import Callable, Optional

import tensorflow as tf

from efficientnet_advprop.config import suites
from efficientnet_advprop.config.suites import Layout
from efficientnet_advprop.data import corruptions, records, sources
from efficientnet_advprop.data.image_formats import is_image
from efficientnet_advprop.evaluation.suites.test_sets import SuiteSettings, TestSet
from efficientnet_advprop.evaluation.test_set_name import corrupted_name, is_part_of, parse_name
from efficientnet_advprop.images import ground_truth, image_folders, robustness_sets
from efficientnet_advprop.images.class_numbers import imagenet_ids, require_known
from efficientnet_advprop.images.labeled_images import (
    FileImages,
    LabeledImages,
    RecordImages,
    TarImages,
)
from efficientnet_advprop.images.tar_archives import TarMember, read_tar_index
from efficientnet_advprop.runtime.errors import DataError, UsageError, list_names
from efficientnet_advprop.runtime.files import is_remote

NUM_CLASSES = 1000
# D. Hendrycks et al.: which 200 classes ImageNet-A (arXiv 1907.07174) and ImageNet-R
# (arXiv 2006.16241) have.
SUBSETS = ("imagenet_a", "imagenet_r")
_SUBSETS_FILE = pathlib.Path(__file__).with_name("imagenet_subsets.json")


def _layouts() -> dict[str, Layout]:
    """Returns the layout of every single test set, by its name."""
    archive_of = {name: archive for archive, own in suites.C_ARCHIVES.items() for name in own}
    found = {}
    for suite, layout in suites.LAYOUTS.items():
        if suite == "imagenet_v2":
            for variant, official in suites.V2_VARIANTS.items():
                found[f"{suite}/{variant}"] = layout.filled(variant=variant, official=official)
        elif any("{corruption}" in folder for folder in layout.folders):
            for corruption in robustness_sets.corruptions_of(suite):
                for severity in corruptions.SEVERITIES:
                    found[corrupted_name(suite, corruption, severity)] = layout.filled(
                        corruption=corruption, severity=severity, archive=archive_of.get(corruption)
                    )
        else:
            found[suite] = layout
    return found


LAYOUTS = _layouts()


@functools.cache
def subset(name: str) -> tuple[int, ...]:
    """Returns the labels of the 200 classes of "imagenet_a" or "imagenet_r"."""
    return tuple(json.loads(_SUBSETS_FILE.read_text())[name])


def class_labels(name: str) -> dict[str, int]:
    """Returns class folder → label, for the folders that a data set may have."""
    if name.startswith("imagenet_v2/"):
        return {str(label): label for label in range(NUM_CLASSES)}
    ids = imagenet_ids()
    return {
        ids[label]: label for label in (subset(name) if name in SUBSETS else range(NUM_CLASSES))
    }


def resolve(data_dir: str, path: str) -> Optional[str]:
    """Returns where `path` is below `data_dir`, as written or else in another case."""
    found = data_dir
    for part in path.split("/"):
        exact = os.path.join(found, part)
        if not tf.io.gfile.exists(exact):
            names = sorted(tf.io.gfile.listdir(found)) if tf.io.gfile.isdir(found) else []
            own_names = [name.rstrip("/") for name in names]
            alike = [name for name in own_names if name.casefold() == part.casefold()]
            if not alike:
                return None
            exact = os.path.join(found, alike[0])
        found = exact
    return found


def require_imagenet(settings: SuiteSettings, wanted: str, looked_for: str) -> None:
    """Checks that the network and `data_dir` suit a suite of ImageNet's classes."""
    if settings.num_classes != NUM_CLASSES:
        hint = "."
        if settings.num_classes == NUM_CLASSES + 1:
            hint = "; its background class must be cut off first."
        elif wanted.split("/")[0] in suites.OF_IMAGENET:
            hint = "; for other images there are digits_pgd, folder_pgd:PATH and the like."
        raise UsageError(
            f"`--suite` names {wanted!r}, which is about ImageNet's {NUM_CLASSES:,} classes, but"
            f" the network has {settings.num_classes:,} outputs{hint}"
        )
    if not settings.data_dir:
        raise UsageError(
            f"`--data_dir` is missing; {wanted} needs the folder that holds {looked_for}."
        )
    if not tf.io.gfile.isdir(settings.data_dir):
        raise DataError(f"`--data_dir` is {settings.data_dir!r}, but there is no such folder.")


@functools.lru_cache(maxsize=1)  # of ImageNet-C's, one holds a million members
def _tar_index(path: str) -> list[TarMember]:
    return read_tar_index(path)


def find(
    name: str, data_dir: str, *, allow_empty: bool = False
) -> Optional[tuple[str, Callable[[], LabeledImages]]]:
    """Returns where a data set of `LAYOUTS` is and what lists its images; None if it is not there.

    With `allow_empty`, class folders may be without images.
    """
    layout = LAYOUTS[name]
    for folder in layout.folders:
        path = _find_folder(name, data_dir, folder)
        if path is not None and tf.io.gfile.isdir(path) and _holds_classes(name, path):
            return path, functools.partial(_list_folder, name, path, allow_empty)
    for archive in layout.archives:
        path = resolve(data_dir, archive)
        if path is not None:
            return path, functools.partial(_list_archive, name, path)
        for suffix in (".gz", ".bz2", ".xz"):
            path = resolve(data_dir, archive + suffix)
            if path is not None:
                raise DataError(
                    f"{path} is compressed and cannot be read in place; unpack it there."
                )
    for folder in layout.records:
        path = os.path.join(data_dir, folder)
        path = path if is_remote(path) else os.path.normpath(path)
        if records.has_shards(path, "validation"):
            return path, functools.partial(_list_records, path)
    if layout.tfds is not None:
        tfds_name, split = layout.tfds
        path = os.path.join(data_dir, tfds_name)
        if tf.io.gfile.isdir(path):
            return path, lambda: RecordImages(
                sources.open_tfds_split(tfds_name, data_dir, split), NUM_CLASSES
            )
    return None


def _find_folder(name: str, data_dir: str, folder: str) -> Optional[str]:
    """Returns the folder of a set below `data_dir`; of ImageNet-C-bar also as its authors'
    generator names it, by the corruption's parameter ("0.80") in place of the severity.

    Folders that can be read in both ways are a DataError.
    """
    parts = parse_name(name)
    parameters = robustness_sets.parameters_of(parts.suite, parts.corruption)
    if parameters is None:
        return resolve(data_dir, folder)
    root = resolve(data_dir, folder.rpartition("/")[0])
    numbers = {text: float(text) for text in _list_numbers(root)}
    by_severity = numbers.keys() <= set(map(str, corruptions.SEVERITIES))
    by_parameter = set(numbers.values()) <= set(parameters)
    agree = all(value == parameters.index(value) + 1 for value in numbers.values() if by_parameter)
    if by_severity and by_parameter and not agree:
        raise DataError(
            f"{root} holds {list_names(sorted(numbers))}, which may be severities or the parameters"
            f" {', '.join(f'{value:g}' for value in parameters)}; complete them, or name them by"
            " the parameters with two decimals."
        )
    if by_severity or not by_parameter:
        return resolve(data_dir, folder)
    wanted = parameters[parts.severity - 1]
    return next((os.path.join(root, text) for text in numbers if numbers[text] == wanted), None)


def _list_numbers(folder: Optional[str]) -> list[str]:
    if folder is None or not tf.io.gfile.isdir(folder):
        return []
    names = [name.rstrip("/") for name in tf.io.gfile.listdir(folder)]
    return [name for name in names if re.fullmatch(r"\d+(\.\d+)?", name)]


def _holds_classes(name: str, path: str) -> bool:
    # imagenet-w/ may hold val/, which is then the folder of the classes.
    return name != "imagenet_w" or resolve(path, "val") is None


def _list_records(path: str) -> RecordImages:
    return RecordImages(records.open_split(path, "validation"), NUM_CLASSES)


def _list_folder(name: str, path: str, allow_empty: bool) -> FileImages:
    if name == "imagenet" and ground_truth.is_flat(path):
        paths, labels = ground_truth.list_flat_validation(path)
        return FileImages(paths, labels, path)
    return image_folders.label_folder(
        path, NUM_CLASSES, class_labels(name), _what_is_wrong(name), allow_empty=allow_empty
    )


def _list_archive(name: str, path: str) -> TarImages:
    members, labels = [], class_labels(name)
    # "imagenet_c/fog/3" is "fog/3/…" in its archive; other archives hold one folder.
    parts = parse_name(name)
    root = "" if parts.corruption is None else parts.variant
    skipped = image_folders.Skipped()
    for member in _tar_index(path):
        if f"/{root}/" not in f"/{member.name}" and root:
            continue
        if is_image(member.name):
            members.append(member)
        else:
            skipped.add("that are no images", member.name)
    if not members:
        raise DataError(f"{path} holds no image of {root or name}; copy it again, or unpack it.")
    folders = [member.name.split("/")[-2] if "/" in member.name else "" for member in members]
    require_known(sorted(set(folders)), labels, path, _what_is_wrong(name))
    own_root = members[0].name.rsplit("/", 2)[0] if members[0].name.count("/") > 1 else ""
    return TarImages(
        path, members, [labels[folder] for folder in folders], own_root, skipped.describe()
    )


def _what_is_wrong(name: str) -> str:
    if name.startswith("imagenet_v2/"):
        return "no class: ImageNet-V2's folders are named 0 … 999"
    number = len(class_labels(name))
    return f"no WordNet id of {'ImageNet' if number == NUM_CLASSES else name}'s {number:,} classes"


def open_sets(
    settings: SuiteSettings, wanted: str, asked_for: Optional[str] = None
) -> list[TestSet]:
    """Opens the test sets that `wanted` means, in the order of `LAYOUTS`.

    `wanted` is such as "imagenet_c", "imagenet_c/fog/3"; `asked_for` is what the user named, if
    that is a suite of these images.
    """
    asked_for = asked_for or wanted
    suite = wanted.split("/")[0]
    names = [name for name in LAYOUTS if is_part_of(name, wanted)]
    if not names:
        known = ", ".join(name for name in LAYOUTS if is_part_of(name, suite))
        raise UsageError(f"`--suite` names {wanted!r}, but there are only {known}.")
    require_imagenet(settings, asked_for, LAYOUTS[names[0]].describe())
    found = {
        name: find(name, settings.data_dir, allow_empty=settings.allow_incomplete) for name in names
    }
    missing = [name for name in names if found[name] is None]
    if len(missing) == len(names) or (missing and not settings.allow_incomplete):
        what = wanted if wanted == asked_for else f"{wanted}, whose images {asked_for} takes"
        if len(names) > 1:
            what = f"{len(missing)} of the {len(names)} sets of {wanted}: {list_names(missing, 6)}"
        has_some = len(missing) < len(names)
        rest = " What is there is scored with `--allow_incomplete`." if has_some else ""
        raise DataError(
            f"`--data_dir` is {settings.data_dir!r}, which lacks {what}. Looked for:"
            f" {LAYOUTS[missing[0]].describe()}.{rest}"
        )
    return [
        _make_test_set(name, *found[name], settings) for name in names if found[name] is not None
    ]


def _make_test_set(
    name: str, source: str, find_images: Callable[[], LabeledImages], settings: SuiteSettings
) -> TestSet:
    layout = LAYOUTS[name]
    fields = settings.own_fields(expected_num_images=layout.num_images)
    if layout.is_stored_at_224:
        fields.update(image_size=settings.stored_size, crop="none")
    return TestSet(
        name, source, find_images, class_subset=subset(name) if name in SUBSETS else None, **fields
    )
