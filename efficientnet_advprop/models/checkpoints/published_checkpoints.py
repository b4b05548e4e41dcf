"""The checkpoints that Google published: where each is, how its pixels are normalised,
how accurate it is said to be.

    checkpoint = PUBLISHED["b3-advprop"]                          # EfficientNet-Lite and so on: PUBLISHED["lite0"]
    checkpoint.address, checkpoint.normalization, checkpoint.image_size, checkpoint.top1

Source: the official README (tensorflow/tpu, `models/official/efficientnet`), its table
as of March 2020, and the READMEs of its folders `lite`, `edgetpu` and `condconv`. All
have ImageNet's 1000 classes, the EdgeTPU ones a background class before them. Baseline,
AutoAugment and RandAugment were retrained with a hold-out for that table; AdvProp and
NoisyStudent were not.
"""

import dataclasses
import re
from typing import Optional, Sequence

from efficientnet_advprop.models import scaling

_ROOT = "https://storage.googleapis.com/cloud-tpu-checkpoints/efficientnet"
_STORAGE = r"https?://storage\.googleapis\.com/"
_ARCHIVE = ".tar.gz"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A row of the official table: how the networks were trained."""

    address: str  # with {variant} for "b0" …
    normalization: str  # of pixels, as `EfficientNet` names it
    top1: dict[str, float]  # ImageNet validation accuracy in per cent, per variant
    words: str  # a regular expression for what in a name gives the kind away
    name: str = "{variant}-{kind}"  # of a checkpoint
    crop: str = "released"  # of evaluation images; see `preprocessing.crop_fraction`


KINDS = {
    "advprop": Kind(
        f"{_ROOT}/advprop/efficientnet-{{variant}}.tar.gz",
        "advprop",
        {
            "b0": 77.6,
            "b1": 79.6,
            "b2": 80.5,
            "b3": 81.9,
            "b4": 83.3,
            "b5": 84.3,
            "b6": 84.8,
            "b7": 85.2,
            "b8": 85.5,
        },
        r"adv-?_?prop",
    ),
    "noisystudent": Kind(
        f"{_ROOT}/noisystudent/noisy_student_efficientnet-{{variant}}.tar.gz",
        "imagenet",
        {
            "b0": 78.8,
            "b1": 81.5,
            "b2": 82.4,
            "b3": 84.1,
            "b4": 85.3,
            "b5": 86.1,
            "b6": 86.4,
            "b7": 86.9,
        }
        | {"l2_475": 88.2, "l2": 88.4},
        r"noisy-?_?student",
    ),
    "randaugment": Kind(
        f"{_ROOT}/randaug/efficientnet-{{variant}}-randaug.tar.gz",
        "imagenet",
        {"b5": 83.7, "b7": 84.7},
        r"rand-?_?aug(ment)?",
    ),
    "autoaugment": Kind(
        f"{_ROOT}/ckptsaug/efficientnet-{{variant}}.tar.gz",
        "imagenet",
        {
            "b0": 77.1,
            "b1": 79.1,
            "b2": 80.1,
            "b3": 81.6,
            "b4": 82.9,
            "b5": 83.6,
            "b6": 84.0,
            "b7": 84.3,
        },
        r"ckptsaug|auto-?_?augment",
    ),
    "baseline": Kind(
        f"{_ROOT}/ckpts/efficientnet-{{variant}}.tar.gz",
        "imagenet",
        {"b0": 76.7, "b1": 78.7, "b2": 79.8, "b3": 81.1, "b4": 82.5, "b5": 83.1},
        r"baseline",
    ),
    # Families of their own, each trained in one way: the variant alone names the
    # checkpoint.
    "lite": Kind(
        f"{_ROOT}/lite/efficientnet-{{variant}}.tar.gz",
        "lite",
        {"lite0": 75.1, "lite1": 76.7, "lite2": 77.6, "lite3": 79.8, "lite4": 81.5},
        r"lite[0-4]?",
        name="{variant}",
        crop="0.875",
    ),
    "edgetpu": Kind(
        f"{_ROOT}/efficientnet-{{variant}}.tar.gz",
        "lite",
        {"edgetpu-S": 77.23, "edgetpu-M": 78.69, "edgetpu-L": 80.62},
        r"edge-?_?tpu",
        name="{variant}",
        crop="0.875",
    ),
    "condconv": Kind(
        f"{_ROOT}/condconv/efficientnet-{{variant}}.tar.gz",
        "lite",
        {"condconv-b0-4e": 77.8, "condconv-b0-8e": 78.3, "condconv-b0-8e-depth": 79.5},
        r"cond-?_?conv",
        name="{variant}",
        crop="0.875",
    ),
}
_IMAGE_SIZES = {"l2_475": 475}  # pixels, where it is not the variant's own


@dataclasses.dataclass(frozen=True)
class PublishedCheckpoint:
    """One file of the table."""

    name: str  # "b3-advprop", "lite0"
    kind: str  # a key of `KINDS`
    variant: str  # a key of `scaling.VARIANTS`
    address: str
    normalization: str  # of pixels: "advprop" (x·2/255 − 1), "imagenet" or "lite" ((x − 127) / 128)
    image_size: int  # pixels, at which `top1` was measured
    crop: str  # of evaluation images
    top1: float  # published ImageNet validation accuracy, per cent


def _rows():
    for kind, row in KINDS.items():
        for column, top1 in row.top1.items():
            variant = column.split("_")[0]
            image_size = _IMAGE_SIZES.get(column, scaling.VARIANTS[variant].image_size)
            address = row.address.format(variant=column)
            yield PublishedCheckpoint(
                name=row.name.format(variant=column, kind=kind),
                kind=kind,
                variant=variant,
                address=address,
                normalization=row.normalization,
                image_size=image_size,
                crop=row.crop,
                top1=top1,
            )


PUBLISHED = {checkpoint.name: checkpoint for checkpoint in _rows()}


def find_published(source: str) -> Optional[PublishedCheckpoint]:
    """The row of the table that `source` names or whose place it is; None if it is
    neither.

    The place may be written as https:// or gs://, of the archive or of the folder
    beside it, or end in a file of that folder.
    """
    place = re.match(rf"(?:{_STORAGE}|gs://)([^?]*)", source)
    stem = place and f"{place[1].rstrip('/').removesuffix(_ARCHIVE)}/"
    for row in PUBLISHED.values():
        folder = re.sub(_STORAGE, "", row.address).removesuffix(_ARCHIVE)
        if source == row.name or (stem and stem.startswith(f"{folder}/")):
            return row
    return None


def kinds_of(variant: str) -> tuple[str, ...]:
    """The kinds that a variant's checkpoints can be of, in the table's order.

    EfficientNet-Lite, -EdgeTPU and -CondConv have one each, which no other network has;
    ResNets have none.
    """
    if variant not in scaling.VARIANTS:
        return ()
    design = scaling.VARIANTS[variant].design
    designs = {
        kind: {scaling.VARIANTS[column.split("_")[0]].design for column in row.top1}
        for kind, row in KINDS.items()
    }
    return tuple(kind for kind, found in designs.items() if design in found)


def guess_kind(source: str, variant: Optional[str] = None) -> Optional[str]:
    """The kind that a checkpoint's own name or published place gives away, or None.

    The files of B0 to B8 and L2 themselves do not tell: all kinds have the same names
    and shapes. Nor do the folders above them: whoever clones this project as "advprop"
    has everything below a folder of that name. Its own name is that of the archive, of
    the directory or of the files; for files of a name like "model.ckpt", also that of
    their directory if it says which network it holds, as those of the release do
    ("noisy_student_efficientnet-b0").

    Args:
        source: of the checkpoint.
        variant: the network that it holds, if that is known; then no other network's
            kind is guessed, and a network that has but one kind needs no guess.
    """
    published = find_published(source)
    if published:
        return published.kind
    possible = tuple(KINDS) if variant is None else kinds_of(variant)
    if len(possible) == 1:
        return possible[0]
    *folders, name = re.split(r"[/\\]", source.lower().split("?")[0].rstrip("/\\"))
    kind = _kind_in(name, possible)
    is_of_files = "ckpt" in name and folders
    if kind is None and is_of_files and re.search(r"efficientnet-?(b\d|l2)(?!\d)", folders[-1]):
        return _kind_in(folders[-1], possible)
    return kind


def _kind_in(name: str, possible: Sequence[str]) -> Optional[str]:
    """The one possible kind that a file's or folder's name, in lower case, has a word
    of.
    """
    found = [
        kind for kind in possible if re.search(rf"(?<![a-z])({KINDS[kind].words})(?![a-z])", name)
    ]
    return found[0] if len(found) == 1 else None
