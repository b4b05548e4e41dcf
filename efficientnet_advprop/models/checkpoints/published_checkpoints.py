"""The checkpoints that Google and the authors of Smooth Adversarial Training published:
where each is, how its pixels are normalised, how accurate it is said to be.

    # EfficientNet-Lite and so on: PUBLISHED["lite0"]
    checkpoint = PUBLISHED["b3-advprop"]
    checkpoint.address, checkpoint.normalization, checkpoint.image_size, checkpoint.top1

Source: the official README (tensorflow/tpu, `models/official/efficientnet`), its table
as of March 2020, and the READMEs of its folders `lite`, `edgetpu` and `condconv`. All
have ImageNet's 1000 classes, the EdgeTPU ones a background class before them. Baseline,
AutoAugment and RandAugment were retrained with a hold-out for that table; AdvProp and
NoisyStudent were not. Those of Smooth Adversarial Training (kind "sat"): the README and
the download script of cihangxie/SmoothAdversarialTraining, whose table calls accuracies
"error rate"; three files each on Google Drive, of which the graph is not needed.
EfficientNetV2: the README of google/automl's `efficientnetv2`, commit 6a54c87.
"""

import dataclasses
import re
from typing import Mapping, Optional

from efficientnet_advprop.models import scaling

_ROOT = "https://storage.googleapis.com/cloud-tpu-checkpoints/efficientnet"
_STORAGE = r"https?://storage\.googleapis\.com/"
_ARCHIVE = re.compile(r"\.(tar\.gz|tgz)$")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A row of the official table: how the networks were trained."""

    address: str  # with {variant} for "b0" …
    normalization: str  # of pixels, as `EfficientNet` names it
    # ImageNet validation accuracy in per cent, per variant; None: unpublished.
    top1: dict[str, Optional[float]]
    name: str = "{variant}-{kind}"  # of a checkpoint
    crop: str = "released"  # of evaluation images; see `preprocessing.crop_fraction`
    batch_norm_epsilon: float = 1e-3
    batch_norm_momentum: float = 0.99
    image_size: Optional[int] = None  # pixels; None: the variant's own
    # None: the variant's own. 21843 are those of ImageNet-21k, each with a sigmoid.
    num_classes: Optional[int] = None
    # Networks whose figure is that of their plain weights, whatever averages there are.
    plain: tuple[str, ...] = ()


def _by_size(*top1: float) -> dict[str, float]:
    return {f"b{index}": figure for index, figure in enumerate(top1)}


KINDS = {
    "advprop": Kind(
        f"{_ROOT}/advprop/efficientnet-{{variant}}.tar.gz",
        "advprop",
        _by_size(77.6, 79.6, 80.5, 81.9, 83.3, 84.3, 84.8, 85.2, 85.5),
    ),
    "noisystudent": Kind(
        f"{_ROOT}/noisystudent/noisy_student_efficientnet-{{variant}}.tar.gz",
        "imagenet",
        _by_size(78.8, 81.5, 82.4, 84.1, 85.3, 86.1, 86.4, 86.9) | {"l2_475": 88.2, "l2": 88.4},
    ),
    "randaugment": Kind(
        f"{_ROOT}/randaug/efficientnet-{{variant}}-randaug.tar.gz",
        "imagenet",
        {"b5": 83.7, "b7": 84.7},
    ),
    "autoaugment": Kind(
        f"{_ROOT}/ckptsaug/efficientnet-{{variant}}.tar.gz",
        "imagenet",
        _by_size(77.1, 79.1, 80.1, 81.6, 82.9, 83.6, 84.0, 84.3),
    ),
    "baseline": Kind(
        f"{_ROOT}/ckpts/efficientnet-{{variant}}.tar.gz",
        "imagenet",
        _by_size(76.7, 78.7, 79.8, 81.1, 82.5, 83.1),
    ),
    # Families of their own, each trained in one way: the variant alone names the
    # checkpoint.
    "lite": Kind(
        f"{_ROOT}/lite/efficientnet-{{variant}}.tar.gz",
        "lite",
        {"lite0": 75.1, "lite1": 76.7, "lite2": 77.6, "lite3": 79.8, "lite4": 81.5},
        name="{variant}",
        crop="0.875",
    ),
    "edgetpu": Kind(
        f"{_ROOT}/efficientnet-{{variant}}.tar.gz",
        "lite",
        {"edgetpu-S": 77.23, "edgetpu-M": 78.69, "edgetpu-L": 80.62},
        name="{variant}",
        crop="0.875",
    ),
    "condconv": Kind(
        f"{_ROOT}/condconv/efficientnet-{{variant}}.tar.gz",
        "lite",
        {"condconv-b0-4e": 77.8, "condconv-b0-8e": 78.3, "condconv-b0-8e-depth": 79.5},
        name="{variant}",
        crop="0.875",
    ),
    # Xie et al. 2020, arXiv 2006.14536: trained on adversarial images alone. The
    # published command reads plain weights but for L1-Enhanced.
    "sat": Kind(
        "https://drive.google.com/uc?id={id}",
        "advprop",
        _by_size(65.2, 68.6, 70.3, 73.1, 75.9, 77.8, 79.2, 79.8)
        | {"l1": 80.7, "l1_enhanced": 82.2},
        batch_norm_epsilon=1e-5,
        batch_norm_momentum=0.9,
        plain=("b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "l1"),
    ),
}
_V2 = ("v2-b0", "v2-b1", "v2-b2", "v2-b3", "v2-s", "v2-m", "v2-l", "v2-xl")
# EfficientNetV2, google/automl's `efficientnetv2`: its README has archives and figures.
# Pixels are treated in four ways; see `preprocessing.preprocess_for_eval`.
KINDS |= {
    "v2": Kind(
        f"{_ROOT}/v2/efficientnet{{variant}}.tgz",
        "v2",
        {"v2-s": 83.9, "v2-m": 85.2, "v2-l": 85.7},
        name="{variant}",
        crop="v2",
        batch_norm_momentum=0.9,
    ),
    "v2-b": Kind(
        f"{_ROOT}/v2/efficientnet{{variant}}.tgz",
        "imagenet",
        {"v2-b0": 78.7, "v2-b1": 79.8, "v2-b2": 80.5, "v2-b3": 82.1},
        name="{variant}",
        batch_norm_momentum=0.9,
    ),
    "v2-21k": Kind(
        f"{_ROOT}/v2/efficientnet{{variant}}-21k.tgz",
        "v2",
        dict.fromkeys(_V2),
        name="{variant}-21k",
        crop="v2",
        batch_norm_momentum=0.9,
        image_size=224,
        num_classes=21843,
    ),
    "v2-21k-ft1k": Kind(
        f"{_ROOT}/v2/efficientnet{{variant}}-21k-ft1k.tgz",
        "advprop",
        dict.fromkeys(_V2) | {"v2-s": 84.9, "v2-m": 86.2, "v2-l": 86.9, "v2-xl": 87.2},
        name="{variant}-21k-ft1k",
        crop="v2-ft",
        batch_norm_momentum=0.9,
    ),
}
_SUFFIXES = (".data-00000-of-00001", ".index")  # of the files with these ids
_DRIVE_IDS = {
    "b0": ("1NVEtGO0l15r2Dc5FBzOKlWr2lqJ11WQD", "1ZTFo5RHQYy9zCKghFrQyACFQOsg4srr4"),
    "b1": ("12EWVkLi0_4Ep6Du933MV1vCwIKAActzT", "1Z5oKE9oYLMcl16uK_FOWjY_sbeFhljRp"),
    "b2": ("1QkDEm6OSgeeRwYd9suXtQbu-3yC9ebmu", "1-_GlLOlIhwnhu1lnT1rv9aleTR1VmXAs"),
    "b3": ("1zlCLPKaX4i9_ikuJzusY4aV9kTGzXLqF", "1BeyzyFYA43CwGvlXyNNG-2EswH4DLQNt"),
    "b4": ("17cMDXEqNjzXpPcvhSWAA7pDfTxGl3I9Q", "1O5N_WD-ofuSG5n5OOiNiZRpcBIhh0Ykg"),
    "b5": ("1EWF0H_26zj6_kvdxQD1mYjjLzW9K7qHz", "1QG81MOXKF1MpUYV9nTECfOimmGCQuiH2"),
    "b6": ("1iA-XyCRmXzyvHr-IP21xvHxD2y4lesyK", "14y9VCC7mHSE6cX10hkof5-vFA2bkjd31"),
    "b7": ("1koh9au89VJR6sB1b4ep2azbUmNiDmblj", "1SAZt2Ald7MVWsxz_Hpe7F1bTEZW7nQdF"),
    "l1": ("1jGniWU77jQtjxjRqnd4GRoefCaJ9dnzr", "1MZr3Vx1E7qICamwpV_CFs1i2BZ40O6oq"),
    "l1_enhanced": ("1ceFsUZYWYh2usgVZV9uDnn9zc6NgWFty", "1CJvhOkKaEaPvNqe_ZZelsMzJpuitysAv"),
}
_DRIVE = r"https://drive\.(?:google|usercontent\.google)\.com/.*?(?:id=|/d/)([\w-]+)"
# Answers with the file itself, where the published address of a large one answers with
# a page that asks whether it may.
_DRIVE_DOWNLOAD = "https://drive.usercontent.google.com/download?id={id}&export=download&confirm=t"
_IMAGE_SIZES = {"l2_475": 475}  # pixels, where it is not the variant's own


@dataclasses.dataclass(frozen=True)
class PublishedCheckpoint:
    """One file of the table."""

    name: str  # "b3-advprop", "lite0"
    kind: str  # a key of `KINDS`
    variant: str  # a key of `scaling.VARIANTS`
    address: str  # of an archive, or, where there are `files`, of the largest one's page
    normalization: str  # of pixels: "advprop" (x·2/255 − 1), "imagenet" or "lite" ((x − 127) / 128)
    image_size: int  # pixels, at which `top1` was measured
    crop: str  # of evaluation images
    top1: Optional[float]  # published ImageNet validation accuracy, per cent
    use_ema: bool = True  # whether `top1` is of averages, where the file has any
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)  # suffix → address


def _rows():
    for kind, row in KINDS.items():
        for column, top1 in row.top1.items():
            variant = column.split("_")[0]
            image_size = row.image_size or scaling.VARIANTS[variant].image_size
            ids = _DRIVE_IDS[column] if kind == "sat" else ()
            files = {s: _DRIVE_DOWNLOAD.format(id=id) for s, id in zip(_SUFFIXES, ids)}
            yield PublishedCheckpoint(
                name=row.name.format(variant=column, kind=kind),
                kind=kind,
                variant=variant,
                address=row.address.format(variant=column, id=ids[0] if ids else ""),
                normalization=row.normalization,
                image_size=_IMAGE_SIZES.get(column, image_size),
                crop=row.crop,
                top1=top1,
                use_ema=column not in row.plain,
                files=files,
            )


PUBLISHED = {checkpoint.name: checkpoint for checkpoint in _rows()}


def find_published(source: str) -> Optional[PublishedCheckpoint]:
    """Returns the row of the table that `source` names or whose place it is, or None.

    The place may be written as https:// or gs://, of the archive or of the folder
    beside it, or end in a file of that folder; on Google Drive, of any of the files.
    """
    on_drive = re.match(_DRIVE, source)
    if on_drive:
        found = (column for column, ids in _DRIVE_IDS.items() if on_drive[1] in ids)
        column = next(found, None)
        return None if column is None else PUBLISHED[f"{column}-sat"]
    place = re.match(rf"(?:{_STORAGE}|gs://)([^?]*)", source)
    stem = place and f"{_ARCHIVE.sub('', place[1].rstrip('/'))}/"
    for row in PUBLISHED.values():
        folder = _ARCHIVE.sub("", re.sub(_STORAGE, "", row.address))  # not so on Drive
        if source == row.name or (stem and stem.startswith(f"{folder}/")):
            return row
    return None


def kinds_of(variant: str, num_classes: Optional[int] = None) -> tuple[str, ...]:
    """Returns the kinds that a variant's checkpoints can be of, in the table's order.

    EfficientNet-Lite, -EdgeTPU and -CondConv have one each, which no other network has;
    ResNets have none. Of EfficientNetV2's the number of classes tells one.
    """
    if variant not in scaling.VARIANTS:
        return ()
    design = scaling.VARIANTS[variant].design
    designs = {
        kind: {scaling.VARIANTS[column.split("_")[0]].design for column in row.top1}
        for kind, row in KINDS.items()
    }
    possible = [kind for kind, found in designs.items() if design in found]
    by_classes = [kind for kind in possible if KINDS[kind].num_classes == (num_classes or -1)]
    return tuple(by_classes or [kind for kind in possible if not KINDS[kind].num_classes])


def prefers_averages(source: str, kind: Optional[str]) -> bool:
    """Returns whether the network that was published is the one of the averages, where a
    file has both: always, but for those of SAT, of which that is L1-Enhanced alone.
    """
    published = find_published(source)
    return kind != "sat" if published is None else published.use_ema
