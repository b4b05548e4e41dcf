"""Small stand-ins of ImageNet's test sets, in the layout of the originals, with
accuracies that can be checked by hand.

    python tests/stand_ins.py stand_ins [--form=folder|tar|tfrecords|tfds]
    python -m efficientnet_advprop.evaluate --saved_model=stand_ins/reader --data_dir=stand_ins --allow_incomplete \
        --suite=imagenet,imagenet_c,imagenet_a,imagenet_r,imagenet_v2,imagenet_sketch,stylized,pgd

Every image is of one colour, which is a class: hundreds, tens and ones are the levels
of red, green and blue. The `reader`, a SavedModel, answers with the class of the
colour; next come the classes one and two beside it. So an image whose colour is its
label's is right; one that shows the next class is wrong but among the five; one that
shows a class far away is neither. Each set has NUM_IMAGES images, of which `num_wrong`
are not right, the first of them not among the five either. `expected.json` holds what
must come out. The sets are of course smaller than the originals, hence
--allow_incomplete.
"""

import argparse
import io
import json
import os
import pathlib
import sys
import tarfile

import numpy as np
from PIL import Image

if __name__ == "__main__":
    # Instead of tests/, whose folder `efficientnet_advprop` would be taken for the package.
    sys.path[0] = str(pathlib.Path(__file__).parents[1])

from efficientnet_advprop.config import suites
from efficientnet_advprop.data import corruptions, records
from efficientnet_advprop.evaluation.suites import imagenet_suites
from efficientnet_advprop.images import class_numbers

NUM_IMAGES = 12
_STEP, _FIRST = 25, 12  # levels: 12, 37, …, 237
_WEIGHTS = (9.0, 3.0, 1.0)  # of hundreds, tens and ones: the nearest classes differ in the ones
_NUM_WRONG = {
    "imagenet": 2,
    "imagenet_a": 9,
    "imagenet_r": 6,
    "imagenet_v2": 3,
    "imagenet_sketch": 7,
    "stylized": 10,
}
_ARCHIVE_OF = {name: archive for archive, names in suites.C_ARCHIVES.items() for name in names}


def num_wrong(name: str) -> int:
    """How many of a set's images are not right."""
    parts = name.split("/")
    if parts[0] == "imagenet_c":
        return int(parts[2]) + list(corruptions.CORRUPTIONS).index(parts[1]) % 3
    return _NUM_WRONG[parts[0]]


def num_not_in_five(name: str) -> int:
    """How many of a set's images do not have their label among the five."""
    return num_wrong(name) // 2


def colour_of(label: int) -> tuple[int, int, int]:
    return tuple(_FIRST + _STEP * int(digit) for digit in f"{label:03d}")


def read_logits(colours, xp=np):
    """[n, 3] mean colours → logits [n, 1000]: minus the weighted distance of the digits."""
    levels = np.array([colour_of(label) for label in range(1000)], np.float32)
    distances = xp.abs(colours[:, None, :] - levels[None]) / _STEP * np.array(_WEIGHTS, np.float32)
    return -(distances.sum(-1) if xp is np else xp.reduce_sum(distances, -1))


def read_classes(images: np.ndarray) -> np.ndarray:
    """The reader as a plain function: uint8 [n, h, w, 3] → logits [n, 1000]."""
    return read_logits(images.astype(np.float32).mean((1, 2)))


def list_images(name: str) -> list[tuple[int, int]]:
    """(label, class that the colour shows) of a set's images."""
    kept = imagenet_suites.subset(name) if name in ("imagenet_a", "imagenet_r") else range(1000)
    # Not every class's neighbours in the ones' place exist; and of the 200 classes,
    # those that have a stranger beside them.
    candidates = [
        label
        for label in kept
        if 2 <= label % 10 <= 6 and (len(kept) == 1000 or label + 1 not in kept)
    ]
    labels = candidates[:: len(candidates) // NUM_IMAGES][:NUM_IMAGES]
    wrong, far = num_wrong(name), num_not_in_five(name)
    images = []
    for index, label in enumerate(labels):
        if index < far:
            shown = (label + 500) % 1000
        elif index < wrong:
            shown = label + 1 if len(kept) == 1000 else _neighbour(label, kept)
        else:
            # With the 200-class rule the reader's first choice, a class that is none of
            # them, does not count.
            shown = label if len(kept) == 1000 else label + 1
        images.append((label, shown))
    return images


def _neighbour(label: int, kept) -> int:
    """Another one of the kept classes, next to which `label` is among the five nearest of them."""
    for other in sorted(kept, key=lambda other: abs(other - label))[1:]:
        logits = read_logits(np.array([colour_of(other)], np.float32))[0]
        if (
            logits[label] > np.sort(logits[list(kept)])[-6] + 0.5
        ):  # clearly: JPEG may change a level by one
            return other
    raise AssertionError(label)


def encode(shown: int, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour_of(shown)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def make_files(name: str) -> dict[str, bytes]:
    """<class folder>/<file> → contents."""
    ids = class_numbers.imagenet_ids()
    size = (224, 224) if name.split("/")[0] in ("imagenet_c", "stylized") else (50, 40)
    files = {}
    for index, (label, shown) in enumerate(list_images(name)):
        folder = str(label) if name.startswith("imagenet_v2/") else ids[label]
        files[f"{folder}/image_{index:08d}.JPEG"] = encode(shown, size)
    return files


def write_folder(root: pathlib.Path, name: str) -> None:
    """As the archives unpack."""
    directory = root / imagenet_suites.LAYOUTS[name].folders[0]
    for path, contents in make_files(name).items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(contents)


def write_archive(root: pathlib.Path, name: str) -> None:
    """As they are downloaded: ImageNet-C's hold all severities of some corruptions."""
    archive = root / imagenet_suites.LAYOUTS[name].archives[0]
    archive.parent.mkdir(parents=True, exist_ok=True)
    inside = "/".join(name.split("/")[1:]) if name.startswith("imagenet_c/") else archive.stem
    with tarfile.open(archive, "a") as file:
        for path, contents in make_files(name).items():
            member = tarfile.TarInfo(f"{inside}/{path}")
            member.size = len(contents)
            file.addfile(member, io.BytesIO(contents))


def write_records(root: pathlib.Path, name: str, num_shards: int = 3) -> None:
    """The official converter's shards."""
    directory = root / imagenet_suites.LAYOUTS[name].records[0]
    directory.mkdir(parents=True, exist_ok=True)
    images = list_images(name)
    for shard in range(num_shards):
        with records.ShardWriter(
            str(directory / records.shard_name("validation", shard, num_shards))
        ) as writer:
            for label, shown in images[shard::num_shards]:
                writer.write(records.make_example(encode(shown, (50, 40)), label))


def write_tfds(root: pathlib.Path, name: str) -> None:
    """What `tfds build` leaves, by the data set's own builder fed with our images."""
    import tensorflow_datasets as tfds

    tfds_name, split = imagenet_suites.LAYOUTS[name].tfds
    builder = tfds.builder(tfds_name, data_dir=str(root))
    size = (224, 224) if name.startswith("imagenet_c/") else (50, 40)

    def generate():
        for index, (label, shown) in enumerate(list_images(name)):
            pixels = np.full([size[1], size[0], 3], colour_of(shown), np.uint8)
            example = {"image": pixels, "label": label, "file_name": f"{index}.JPEG"}
            yield str(index), {key: example[key] for key in builder.info.features}

    builder._split_generators = lambda manager: [tfds.core.SplitGenerator(name=split)]
    builder._generate_examples = generate
    builder.download_and_prepare()


WRITERS = {
    "folder": write_folder,
    "tar": write_archive,
    "tfrecords": write_records,
    "tfds": write_tfds,
}


def can_write(name: str, form: str) -> bool:
    layout = imagenet_suites.LAYOUTS[name]
    fields = {
        "folder": layout.folders,
        "tar": layout.archives,
        "tfrecords": layout.records,
        "tfds": layout.tfds,
    }
    return bool(fields[form])


def write_reader(directory: str) -> None:
    """The reader as a SavedModel: float32 pixels [n, h, w, 3] → logits [n, 1000]."""
    import tensorflow as tf

    module = tf.Module()
    module.read = tf.function(
        lambda images: {"logits": read_logits(tf.reduce_mean(images, [1, 2]), tf)},
        input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32, "images")],
    )
    tf.saved_model.save(module, directory, {"serving_default": module.read})


def expected(name: str) -> dict[str, int]:
    """The counts that must come out."""
    num_top1, num_top5 = NUM_IMAGES - num_wrong(name), NUM_IMAGES - num_not_in_five(name)
    return {"num_images": NUM_IMAGES, "num_top1": num_top1, "num_top5": num_top5}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument(
        "--form", choices=list(WRITERS), default="folder", help="other sets are written as folders"
    )
    arguments = parser.parse_args()
    names = [
        name
        for name in imagenet_suites.LAYOUTS
        if name.split("/")[0] in ("imagenet_c", *_NUM_WRONG)
    ]
    for name in names:
        form = arguments.form if can_write(name, arguments.form) else "folder"
        WRITERS[form](arguments.directory, name)
    write_reader(os.path.join(arguments.directory, "reader"))
    figures = {name: expected(name) for name in names}
    (arguments.directory / "expected.json").write_text(json.dumps(figures, indent=1))
    print(
        f"{len(figures)} test sets of {NUM_IMAGES} images each, and their reader:"
        f" {arguments.directory}"
    )


if __name__ == "__main__":
    main()
