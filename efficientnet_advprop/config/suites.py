"""The test suites: where their images are looked for, how many there are, and the usual
attacks on them.

Names in braces stand for the sets of a suite: {corruption}, {severity}, {archive} (the
archive that holds the corruption), {variant}.
"""

import dataclasses
import difflib
from typing import Mapping, Optional, Sequence

from efficientnet_advprop.config.tables import BUILTIN
from efficientnet_advprop.runtime.errors import UsageError

# The archives that ImageNet-C comes in, and what each holds (the fifth, extra.tar, is
# not part of the benchmark).
C_ARCHIVES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
# The variants of ImageNet-V2, as TFDS and as its authors name them.
V2_VARIANTS = {
    "matched-frequency": "matched-frequency",
    "threshold-0.7": "threshold0.7",
    "topimages": "top-images",
}
STORED_SIZE = 224  # pixels: of the images of ImageNet-C and Stylized-ImageNet
PGD_EPSILON, PGD_STEP_SIZE, PGD_STEPS = 4.0, 1.0, 10  # pixels of 255
AUTOATTACK_NORM, AUTOATTACK_EPSILON = "linf", 4.0
AUTOATTACK_VERSION, AUTOATTACK_TARGETS = "standard", 9


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a data set may look like below `data_dir`; the first that is there counts.

    Capital letters make no difference in any of these names.

    Args:
        folders: with a sub-folder per class; of "imagenet" also flat, see
            `ground_truth`.
        num_images: how many there must be.
        archives: uncompressed tar archives of such a folder.
        records: folders of TFRecords `validation-*`.
        tfds: the data set's name, prepared by TensorFlow Datasets, and its split.
        is_stored_at_224: cut to 224 pixels by its authors, and fed whole.
    """

    folders: Sequence[str]
    num_images: int
    archives: Sequence[str] = ()
    records: Sequence[str] = ()
    tfds: Optional[tuple[str, str]] = None
    is_stored_at_224: bool = False

    def filled(self, **parts) -> "Layout":
        """Returns the layout of one set, with the names in braces filled in."""
        tfds = None if self.tfds is None else (self.tfds[0].format(**parts), self.tfds[1])
        folders, archives = (
            tuple(dict.fromkeys(name.format(**parts) for name in names))
            for names in (self.folders, self.archives)
        )
        return dataclasses.replace(self, folders=folders, archives=archives, tfds=tfds)

    def describe(self) -> str:
        """Lists all of it, for messages."""
        parts = [f"{folder}/<class>/" for folder in self.folders] + list(self.archives)
        parts += [f"{folder}/validation-?????-of-?????" for folder in self.records]
        return ", ".join(parts + ([f"{self.tfds[0]}/ of TFDS"] if self.tfds else []))


def _corrupted(*folders: str, archives: Sequence[str] = (), tfds: Optional[str] = None) -> Layout:
    return Layout(
        tuple(f"{folder}/{{corruption}}/{{severity}}" for folder in folders),
        50_000,
        archives,
        tfds=None if tfds is None else (tfds, "validation"),
        is_stored_at_224=True,
    )


_VALIDATION = ("imagenet/val", "imagenet/validation", "ILSVRC/Data/CLS-LOC/val", "val")
# Suites whose images lie in class folders of ImageNet's.
LAYOUTS: Mapping[str, Layout] = {
    "imagenet": Layout(
        (*_VALIDATION, "ILSVRC2012_img_val"),
        50_000,
        records=("imagenet", "."),
        tfds=("imagenet2012", "validation"),
    ),
    "imagenet_c": _corrupted(
        "imagenet-c",
        "imagenet-c/{archive}",
        archives=("imagenet-c/{archive}.tar", "{archive}.tar"),
        tfds="imagenet2012_corrupted/{corruption}_{severity}",
    ),
    "imagenet_a": Layout(("imagenet-a",), 7_500, ("imagenet-a.tar",), tfds=("imagenet_a", "test")),
    "imagenet_r": Layout(("imagenet-r",), 30_000, ("imagenet-r.tar",), tfds=("imagenet_r", "test")),
    "imagenet_v2": Layout(
        ("imagenetv2-{official}-format-val",),
        10_000,
        ("imagenetv2-{official}.tar",),
        tfds=("imagenet_v2/{variant}", "test"),
    ),
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
    "imagenet_c_extra": _corrupted(
        "imagenet-c",
        "imagenet-c/extra",
        "imagenet-c-extra",
        archives=("imagenet-c/extra.tar", "extra.tar"),
    ),
    "imagenet_c_bar": _corrupted("imagenet-c-bar", "imagenet_c_bar"),
    "imagenet_3dcc": _corrupted("imagenet-3dcc", "3dcc"),
    "imagenet_w": Layout(("imagenet-w", "imagenet-w/val"), 50_000, ("imagenet-w.tar",)),
}
# Suites with a folder per category.
CATEGORY_FOLDERS = {
    "objectnet": ("objectnet-1.0/images", "objectnet/images", "objectnet-1.0", "objectnet"),
    "cue_conflict": (
        "cue-conflict",
        "style-transfer-preprocessed-512",
        "texture-vs-shape/stimuli/style-transfer-preprocessed-512",
    ),
}
REAL_FILES = ("real.json", "imagenet/real.json", "reassessed-imagenet/real.json")
# Suites of ImageNet's validation images, changed or in part.
OF_IMAGENET = ("imagenet_c_made", "pgd", "autoattack")
PARTS_OF_IMAGENET = ("imagenet_real", "robustbench", "imagenet_a_classes", "imagenet_r_classes")
# What any suite of one test set can be followed by, as in "digits_pgd" or "folder_c:PATH".
CONDITIONS = {"_c": "corrupted here", "_pgd": "attacked", "_autoattack": "attacked"}
SUITES = (
    *LAYOUTS,
    *OF_IMAGENET,
    *CATEGORY_FOLDERS,
    *PARTS_OF_IMAGENET,
    "folder",
    *BUILTIN,
    *(f"{name}_c" for name in BUILTIN),
)


def split_condition(suite: str) -> tuple[str, str]:
    """Splits "folder_pgd" into "folder" and "_pgd"; a suite of its own has no condition."""
    for condition in CONDITIONS:
        clean = suite.removesuffix(condition)
        if suite not in SUITES and clean != suite and clean in {*SUITES} - {*OF_IMAGENET}:
            return clean, condition
    return suite, ""


def check(names: Sequence[str]) -> None:
    """Raises a `UsageError` for the first name that is no suite or part of one."""
    if not names:
        raise UsageError("`--suite` is empty; name at least one, such as imagenet.")
    for wanted in names:
        head, colon, argument = wanted.partition(":")
        suite = head.split("/")[0]
        clean, _ = split_condition(suite)
        if clean not in SUITES:
            known = [*SUITES, *(f"folder{condition}" for condition in CONDITIONS)]
            close = difflib.get_close_matches(suite, known, 1, 0.8)
            guess = f" (did you mean {close[0]!r}?)" if close else ""
            raise UsageError(
                f"`--suite` names {suite!r}{guess}, but there are only {', '.join(SUITES)}."
            )
        if clean == "folder" and (not argument or suite != head):
            raise UsageError(
                f"`--suite` is {wanted!r}, but must say which folder: {suite}:/data/pets/val."
            )
        if colon and clean != "folder":
            raise UsageError(
                f"`--suite` is {wanted!r}, but {suite} takes no path; its data are found below"
                " --data_dir."
            )


def describe_layouts() -> str:
    """Lists the suites and where their data are looked for, a line each."""
    lines = [f"{name:17}{layout.describe()}" for name, layout in LAYOUTS.items()]
    for name, folders in CATEGORY_FOLDERS.items():
        lines.append(f"{name:17}{', '.join(f'{folder}/<category>/' for folder in folders)}")
    lines.append(f"{'imagenet_real':17}{', '.join(REAL_FILES)}; the images of imagenet, as files")
    lines.append(f"{', '.join(OF_IMAGENET)}: the images of imagenet")
    lines.append(f"{', '.join(PARTS_OF_IMAGENET[1:])}: those of imagenet, as files")
    lines.append(
        f"{', '.join(f'SUITE{condition}' for condition in CONDITIONS)}: the images of another"
        " suite, corrupted here or attacked, such as digits_pgd or folder_c:PATH"
    )
    return "\n".join(lines).replace("{official}", "{variant}").translate({123: "<", 125: ">"})
