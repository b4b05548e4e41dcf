"""ImageNet's validation set and its relatives, from the files that people have, found
below `data_dir` by their usual names.

    imagenet_suites.SUITES["imagenet_a"](settings)                # its test sets

`LAYOUTS` says what lies where, for --help and docs/evaluation.md too. Labels come from
the class folders' WordNet ids (in ImageNet-V2, from their numbers), never from their
order. Numbers of images are those of the data sets' authors.
"""

import dataclasses
import functools
import itertools
import json
import os
import pathlib
from typing import Callable, Mapping, Optional, Sequence

import tensorflow as tf

from efficientnet_advprop.data import corruptions, records, sources
from efficientnet_advprop.data.image_formats import is_image
from efficientnet_advprop.data.records import DataError
from efficientnet_advprop.evaluation.suites.test_sets import (
    SuiteError,
    SuiteSettings,
    TestSet,
    attack_stages,
    common,
    square_alone,
    with_attack,
)
from efficientnet_advprop.evaluation.test_set_name import TestSetName
from efficientnet_advprop.images import (
    corrupted_images,
    ground_truth,
    image_folders,
    robustness_sets,
)
from efficientnet_advprop.images.class_numbers import imagenet_ids, require_known
from efficientnet_advprop.images.labeled_images import (
    FileImages,
    LabeledImages,
    RecordImages,
    TarImages,
)
from efficientnet_advprop.images.tar_archives import TarMember, read_tar_index

NUM_CLASSES = 1000
# D. Hendrycks et al.: which 200 classes ImageNet-A (arXiv 1907.07174) and ImageNet-R
# (arXiv 2006.16241) have.
SUBSETS = ("imagenet_a", "imagenet_r")
_SUBSETS_FILE = pathlib.Path(__file__).with_name("imagenet_subsets.json")
# The archives that ImageNet-C comes in, and what each holds (the fifth, extra.tar, is
# not part of the benchmark).
ARCHIVES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
# Suites of corrupted images that are laid out alike → the folders that may hold theirs.
CORRUPTED_LIKE_C = {
    "imagenet_c_extra": ("imagenet-c", "imagenet-c/extra", "imagenet-c-extra"),
    "imagenet_c_bar": ("imagenet-c-bar", "imagenet_c_bar"),
    "imagenet_3dcc": ("imagenet-3dcc", "3dcc"),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a data set may look like below `data_dir`; the first that is there counts.

    Capital letters make no difference in any name of these.

    Args:
        folders: with a sub-folder per class; of "imagenet" also flat, see
            `ground_truth`.
        archives: uncompressed tar archives of such a folder.
        records: folders of TFRecords `validation-*`.
        tfds: the data set's name, prepared by TensorFlow Datasets, and its split.
        num_images: how many there must be.
        is_stored_at_224: cut to 224 pixels by its authors, and fed whole.
    """

    folders: Sequence[str]
    num_images: int
    archives: Sequence[str] = ()
    records: Sequence[str] = ()
    tfds: Optional[tuple[str, str]] = None
    is_stored_at_224: bool = False

    def describe(self) -> str:
        """All of it, for messages."""
        parts = [f"{folder}/<class>/" for folder in self.folders] + list(self.archives)
        parts += [os.path.join(folder, "validation-?????-of-?????") for folder in self.records]
        return ", ".join(parts + ([f"{self.tfds[0]}/ of TFDS"] if self.tfds else []))


_V2 = {
    "matched-frequency": "matched-frequency",
    "threshold-0.7": "threshold0.7",
    "topimages": "top-images",
}
LAYOUTS = {
    "imagenet": Layout(
        (
            "imagenet/val",
            "imagenet/validation",
            "ILSVRC/Data/CLS-LOC/val",
            "val",
            "ILSVRC2012_img_val",
        ),
        50_000,
        records=("imagenet", "."),
        tfds=("imagenet2012", "validation"),
    ),
    "imagenet_a": Layout(("imagenet-a",), 7_500, ("imagenet-a.tar",), tfds=("imagenet_a", "test")),
    "imagenet_r": Layout(("imagenet-r",), 30_000, ("imagenet-r.tar",), tfds=("imagenet_r", "test")),
    **{
        f"imagenet_v2/{name}": Layout(
            (f"imagenetv2-{official}-format-val",),
            10_000,
            (f"imagenetv2-{official}.tar",),
            tfds=(f"imagenet_v2/{name}", "test"),
        )
        for name, official in _V2.items()
    },
    "imagenet_sketch": Layout(
        ("sketch", "imagenet-sketch"),
        50_889,
        ("imagenet-sketch.tar",),
        tfds=("imagenet_sketch", "test"),
    ),
    "stylized": Layout(
        ("stylized-imagenet/val", "imagenet-stylized/val"),
        50_000,
        ("stylized-imagenet.tar",),
        is_stored_at_224=True,
    ),
    **{
        TestSetName.corrupted("imagenet_c", corruption, severity): Layout(
            tuple(
                f"{root}{corruption}/{severity}"
                for root in ("imagenet-c/", f"imagenet-c/{archive}/")
            ),
            50_000,
            (f"imagenet-c/{archive}.tar", f"{archive}.tar"),
            tfds=(f"imagenet2012_corrupted/{corruption}_{severity}", "validation"),
            is_stored_at_224=True,
        )
        for archive, names in ARCHIVES.items()
        for corruption in names
        for severity in corruptions.SEVERITIES
    },
    **{
        TestSetName.corrupted(suite, corruption, severity): Layout(
            tuple(f"{folder}/{corruption}/{severity}" for folder in folders),
            50_000,
            ("imagenet-c/extra.tar", "extra.tar") if suite == "imagenet_c_extra" else (),
            is_stored_at_224=True,
        )
        for suite, folders in CORRUPTED_LIKE_C.items()
        for corruption in robustness_sets.corruptions_of(suite)
        for severity in corruptions.SEVERITIES
    },
    "imagenet_w": Layout(("imagenet-w", "imagenet-w/val"), 50_000, ("imagenet-w.tar",)),
}


@functools.cache
def subset(name: str) -> tuple[int, ...]:
    """The labels of the 200 classes of "imagenet_a" or "imagenet_r"."""
    return tuple(json.loads(_SUBSETS_FILE.read_text())[name])


def class_labels(name: str) -> dict[str, int]:
    """Class folder → label, for the folders that a data set may have."""
    if name.startswith("imagenet_v2/"):
        return {str(label): label for label in range(NUM_CLASSES)}
    ids = imagenet_ids()
    return {
        ids[label]: label for label in (subset(name) if name in SUBSETS else range(NUM_CLASSES))
    }


def resolve(data_dir: str, path: str) -> Optional[str]:
    """Where `path` is below `data_dir`, in whatever letters it is written there; None
    if nowhere.

    "imagenet-c/fog/1" is found as "ImageNet-C/fog/1". A name that is there as written
    comes first.
    """
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


@functools.lru_cache(maxsize=1)  # of ImageNet-C's, one holds a million members
def _tar_index(path: str) -> list[TarMember]:
    return read_tar_index(path)


def find(
    name: str, data_dir: str, *, allow_empty: bool = False
) -> Optional[tuple[str, Callable[[], LabeledImages]]]:
    """Where a data set is and what lists its images; None if it is not there.

    Args:
        name: a key of `LAYOUTS`.
        data_dir: local or remote.
        allow_empty: class folders may be without images.
    """
    layout = LAYOUTS[name]
    for folder in layout.folders:
        path = resolve(data_dir, folder)
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
        path = (
            os.path.normpath(os.path.join(data_dir, folder))
            if "://" not in data_dir
            else os.path.join(data_dir, folder)
        )
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


def _holds_classes(name: str, path: str) -> bool:
    """Whether a folder is that of the images, not the one above: imagenet-w/ may hold
    val/.
    """
    return name != "imagenet_w" or resolve(path, "val") is None


def _list_records(path: str) -> RecordImages:
    return RecordImages(records.open_split(path, "validation"), NUM_CLASSES)


def _list_folder(name: str, path: str, allow_empty: bool) -> FileImages:
    if name == "imagenet" and ground_truth.is_flat(path):
        paths, labels = ground_truth.list_flat_validation(path)
        return FileImages(paths, labels, path)
    folder = image_folders.ImageFolder(
        path, NUM_CLASSES, class_labels(name), _what_is_wrong(name), allow_empty=allow_empty
    )
    return FileImages(folder.paths, folder.labels, path, folder.skipped.describe())


def _list_archive(name: str, path: str) -> TarImages:
    members, labels = [], class_labels(name)
    # "imagenet_c/fog/3" is "fog/3/…" in its archive; the other archives hold one
    # folder.
    root = TestSetName(name).variant if TestSetName(name).is_corrupted else ""
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


def open_sets(settings: SuiteSettings, wanted: str) -> list[TestSet]:
    """The test sets of that name, or of a suite or corruption of that name, in the
    order of `LAYOUTS`.

    Raises:
        SuiteError: the network has another number of classes, or `data_dir` is missing.
        DataError: one of them is not there, unless `allow_incomplete`; or none is.
    """
    suite, names = (
        wanted.split("/")[0],
        [name for name in LAYOUTS if f"{name}/".startswith(f"{wanted}/")],
    )
    if not names:
        names = ", ".join(name for name in LAYOUTS if name.startswith(f"{suite}/"))
        raise SuiteError(f"`--suite` names {wanted!r}, but there are only {names or suite}.")
    if settings.num_classes != NUM_CLASSES:
        raise SuiteError(
            f"`--suite` names {suite!r}, which is about ImageNet's {NUM_CLASSES:,} classes, but the"
            f" network has {settings.num_classes:,} outputs"
            + (
                "; its background class must be cut off first."
                if settings.num_classes == NUM_CLASSES + 1
                else "."
            )
        )
    if not settings.data_dir:
        raise SuiteError(
            f"`--data_dir` is missing; {wanted} needs the folder that holds"
            f" {LAYOUTS[names[0]].describe()}."
        )
    if not tf.io.gfile.isdir(settings.data_dir):
        raise DataError(f"`--data_dir` is {settings.data_dir!r}, but there is no such folder.")
    found = {
        name: find(name, settings.data_dir, allow_empty=settings.allow_incomplete) for name in names
    }
    missing = [name for name in names if found[name] is None]
    if len(missing) == len(names) or (missing and not settings.allow_incomplete):
        shown = ", ".join(missing[:6]) + (
            f" and {len(missing) - 6} more" if len(missing) > 6 else ""
        )
        what = (
            f"{len(missing)} of the {len(names)} sets of {wanted}: {shown}"
            if len(names) > 1
            else wanted
        )
        raise DataError(
            f"`--data_dir` is {settings.data_dir!r}, which lacks {what}. Looked for:"
            f" {LAYOUTS[missing[0]].describe()}."
            + (
                " What is there is scored with `--allow_incomplete`."
                if len(missing) < len(names)
                else ""
            )
        )
    return [
        _make_test_set(name, *found[name], settings) for name in names if found[name] is not None
    ]


def _make_test_set(
    name: str, source: str, find_images: Callable[[], LabeledImages], settings: SuiteSettings
) -> TestSet:
    layout = LAYOUTS[name]
    fields = common(settings, expected_num_images=layout.num_images)
    if layout.is_stored_at_224:
        fields.update(image_size=settings.stored_size, crop="none")
    return TestSet(
        name, source, find_images, kept_classes=subset(name) if name in SUBSETS else None, **fields
    )


def _open_made(settings: SuiteSettings, wanted: str) -> list[TestSet]:
    """ImageNet-C made here from the clean images."""
    (clean,) = open_sets(settings, "imagenet")
    test_sets = []
    for corruption, severity in itertools.product(corruptions.CORRUPTIONS, corruptions.SEVERITIES):
        name = TestSetName.corrupted("imagenet_c_made", corruption, severity)
        if f"{name}/".startswith(f"{wanted}/"):
            change = corrupted_images.corrupter(corruption, severity, settings.seed)
            fields = dict(
                image_size=settings.stored_size,
                crop="none",
                made_from=clean.name,
                seed=settings.seed,
            )
            test_sets.append(dataclasses.replace(clean, name=name, change=change, **fields))
    return test_sets


def _open_attacked(settings: SuiteSettings, wanted: str) -> list[TestSet]:
    (clean,) = open_sets(settings, "imagenet")
    return [with_attack(clean, settings)] if wanted == "pgd" else []


def _open_autoattack(settings: SuiteSettings, wanted: str) -> list[TestSet]:
    """AutoAttack on the validation images; "autoattack/square" is Square alone."""
    if wanted not in ("autoattack", "autoattack/square"):
        return []
    (clean,) = open_sets(settings, "imagenet")
    try:
        autoattack = dataclasses.replace(settings.autoattack, num_classes=settings.num_classes)
    except ValueError as error:
        message = str(error).replace("`num_targets`", "`num_targets` (--attack_targets)", 1)
        raise SuiteError(message) from error
    if wanted == "autoattack/square":
        return [square_alone(clean, autoattack, settings.seed)]
    return attack_stages(clean, "autoattack", autoattack, settings.seed)


# Name → (settings, the suite's name or the beginning of its test sets' names) → test
# sets.
SUITES: Mapping[str, Callable[[SuiteSettings, str], list[TestSet]]] = {
    "imagenet": open_sets,
    "imagenet_c": open_sets,
    "imagenet_c_made": _open_made,
    "imagenet_a": open_sets,
    "imagenet_r": open_sets,
    "imagenet_v2": open_sets,
    "imagenet_sketch": open_sets,
    "stylized": open_sets,
    "pgd": _open_attacked,
    "autoattack": _open_autoattack,
    **dict.fromkeys([*CORRUPTED_LIKE_C, "imagenet_w"], open_sets),
}


def describe_layouts() -> str:
    """The suites and where their data are looked for, a line each."""
    suites = {name.split("/")[0]: layout for name, layout in reversed(LAYOUTS.items())}
    lines = [f"{name:17}{suites[name].describe()}" for name in SUITES if name in suites]
    return "\n".join([*lines, "imagenet_c_made, pgd, autoattack: the images of imagenet"])
