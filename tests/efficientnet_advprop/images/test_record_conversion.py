"""Archives, folders and TFDS data sets into records: what is written, and that nothing
is lost or mixed.
"""

import hashlib
import io
import os
import resource
import tarfile

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from efficientnet_advprop.config.experiment import DataConfig
from efficientnet_advprop.data import image_formats, pipeline, records, sources
from efficientnet_advprop.images import image_sources, labeled_images, record_conversion
from tests.conftest import run_program

CLASSES = ("n01", "n02", "n03")


def picture(number, kind="JPEG", mode="RGB"):
    rng = np.random.RandomState(number)
    buffer = io.BytesIO()
    smooth = Image.fromarray(rng.randint(0, 256, [2, 2, 3]).astype(np.uint8)).resize(
        (10, 12), Image.Resampling.BILINEAR
    )
    smooth.convert(mode).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """train: 5 images of each of 3 classes, one a PNG and one CMYK in disguise; validation: 2 each."""
    for split, count in (("train", 5), ("validation", 2)):
        for label, name in enumerate(CLASSES):
            os.makedirs(tmp_path / split / name)
            for i in range(count):
                kind, mode = {1: ("PNG", "RGB"), 2: ("JPEG", "CMYK")}.get(i, ("JPEG", "RGB"))
                (tmp_path / split / name / f"{name}_{i}.JPEG").write_bytes(
                    picture(10 * label + i, kind, mode)
                )
    return tmp_path


def read(path, prefix):
    features = []
    for file in records.open_split(str(path), prefix).files:
        features += [
            tf.train.Example.FromString(row).features.feature
            for row in tf.data.TFRecordDataset(file).as_numpy_iterator()
        ]
    return {f["image/filename"].bytes_list.value[0].decode(): f for f in features}, len(features)


def test_folder_becomes_the_official_layout(folder):
    sources = image_sources.list_image_folder(str(folder / "train"))
    told = record_conversion.convert(sources, str(folder / "out"), "train", num_shards=4)
    assert told == (3, [])
    found, number = read(folder / "out", "train")
    assert number == len(found) == 15
    for label, name in enumerate(CLASSES):
        for i in range(5):
            feature = found[f"{name}_{i}.JPEG"]
            assert feature["image/class/label"].int64_list.value[0] == label + 1
            assert feature["image/class/synset"].bytes_list.value[0].decode() == name
            assert (
                feature["image/height"].int64_list.value[0],
                feature["image/width"].int64_list.value[0],
            ) == (12, 10)
            encoded = feature["image/encoded"].bytes_list.value[0]
            image = Image.open(io.BytesIO(encoded))
            kind = "PNG" if i in (1, 2) else "JPEG"
            assert (image.format, image.mode) == (kind, "RGB")
            assert feature["image/format"].bytes_list.value[0].decode() == kind
            original = (folder / "train" / name / f"{name}_{i}.JPEG").read_bytes()
            if i == 2:  # CMYK, encoded anew without loss
                np.testing.assert_array_equal(np.asarray(image), image_formats.decode(original))
            else:
                assert encoded == original  # untouched
    order = [list(read(folder / "out", "train")[0])]
    assert order[0] != sorted(order[0])  # shuffled


def test_killed_conversion_goes_on(folder):
    sources = image_sources.list_image_folder(str(folder / "train"))
    record_conversion.convert(sources, str(folder / "whole"), "train", num_shards=4)
    record_conversion.convert(sources, str(folder / "out"), "train", num_shards=4)
    os.remove(folder / "out" / "train-00001-of-00004")
    (folder / "out" / f"train-00003-of-00004.{'0123' * 8}.tmp").write_bytes(b"left behind")
    stamp = (folder / "out" / "train-00000-of-00004").stat().st_mtime_ns
    record_conversion.convert(sources, str(folder / "out"), "train", num_shards=4)
    assert stamp == (folder / "out" / "train-00000-of-00004").stat().st_mtime_ns
    assert sorted(os.listdir(folder / "out")) == sorted(os.listdir(folder / "whole"))
    for name in os.listdir(folder / "out"):
        assert (folder / "out" / name).read_bytes() == (folder / "whole" / name).read_bytes()


def test_a_full_disk_is_one_message_and_no_loss(folder):
    """No file may grow beyond what the largest shard needs but for a byte."""
    sources = image_sources.list_image_folder(str(folder / "train"))
    record_conversion.convert(sources, str(folder / "whole"), "train", num_shards=4)
    sizes = {
        name: (folder / "whole" / name).stat().st_size
        for name in os.listdir(folder / "whole")
        if "-of-" in name
    }
    largest = max(sizes, key=sizes.get)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[largest] - 1, limit[1]))
    try:
        with pytest.raises(
            records.DataError,
            match=f"{largest}: the file cannot be written.* the same command goes on",
        ):
            record_conversion.convert(
                sources, str(folder / "out"), "train", num_shards=4, num_workers=1
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    written = [name for name in os.listdir(folder / "out") if "-of-" in name]
    assert all(name in sizes for name in written) and largest not in written  # nothing half-written
    record_conversion.convert(sources, str(folder / "out"), "train", num_shards=4)
    for name in sizes:
        assert (folder / "out" / name).read_bytes() == (folder / "whole" / name).read_bytes()


def test_other_sets_are_not_mixed(folder):
    sources = image_sources.list_image_folder(str(folder / "train"))
    record_conversion.convert(sources, str(folder / "out"), "train", num_shards=4)
    with pytest.raises(records.DataError, match="number of files"):
        record_conversion.convert(sources, str(folder / "out"), "train", num_shards=3)
    with pytest.raises(records.DataError, match="Nothing is overwritten"):
        record_conversion.convert(sources[:9], str(folder / "out"), "train", num_shards=4)
    with pytest.raises(records.DataError, match="`--train_shards` is 16"):
        record_conversion.convert(sources, str(folder / "other"), "train", num_shards=16)
    os.makedirs(folder / "validation" / "n99")
    (folder / "validation" / "n99" / "x.jpg").write_bytes(picture(0))
    with pytest.raises(records.DataError, match="holds n99, which is no class of the training set"):
        image_sources.list_image_folder(str(folder / "validation"), CLASSES)


def add(archive, name, contents):
    member = tarfile.TarInfo(name)
    member.size = len(contents)
    archive.addfile(member, io.BytesIO(contents))


def test_imagenet_archives_are_read_in_place(tmp_path):
    with tarfile.open(tmp_path / "ILSVRC2012_img_train.tar", "w") as outer:
        for label, name in enumerate(CLASSES):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as archive:
                for i in range(4):
                    add(archive, f"{name}_{i}.JPEG", picture(10 * label + i))
            add(outer, f"{name}.tar", inner.getvalue())
    with tarfile.open(tmp_path / "ILSVRC2012_img_val.tar", "w") as archive:
        for i in (3, 1, 2):  # in folders of classes, as scripts sort them
            add(archive, f"val/c{i}/ILSVRC2012_val_0000000{i}.JPEG", picture(100 + i))
    (tmp_path / "synset_labels.txt").write_text("n02\nn01\nn03\n")
    places = [f"--imagenet_dir={tmp_path}", f"--output_dir={tmp_path}/out"]
    done = run_program("prepare", *places, "--train_shards=2", "--validation_shards=1")
    assert done.returncode == 0, done.stderr
    assert "12 images of 3 classes, 0 encoded anew" in done.stdout
    found, number = read(tmp_path / "out", "train")
    assert number == 12
    for label, name in enumerate(CLASSES):
        for i in range(4):
            feature = found[f"{name}_{i}.JPEG"]
            assert feature["image/encoded"].bytes_list.value[0] == picture(10 * label + i)
            assert feature["image/class/label"].int64_list.value[0] == label + 1
    found, _ = read(tmp_path / "out", "validation")
    assert [
        found[f"ILSVRC2012_val_0000000{i}.JPEG"]["image/class/label"].int64_list.value[0]
        for i in (1, 2, 3)
    ] == [2, 1, 3]
    assert all(
        found[f"ILSVRC2012_val_0000000{i}.JPEG"]["image/encoded"].bytes_list.value[0]
        == picture(100 + i)
        for i in (1, 2, 3)
    )
    (tmp_path / "synset_labels.txt").write_text("n02\nn01\n")
    with pytest.raises(
        records.DataError, match=r"holds 'val/c3/ILSVRC2012_val_00000003.JPEG'.* to …_00000002"
    ):
        image_sources.list_imagenet_validation(
            str(tmp_path / "ILSVRC2012_img_val.tar"), str(tmp_path / "synset_labels.txt"), CLASSES
        )
    with pytest.raises(records.DataError, match="ILSVRC2012_img_val.tar: it holds no archives"):
        image_sources.list_imagenet_train(str(tmp_path / "ILSVRC2012_img_val.tar"))


def write_archive(path, members):
    """`members`: name → contents, or the name that it is a hard link to."""
    with tarfile.open(path, "w") as archive:
        for name, contents in members.items():
            if isinstance(contents, bytes):
                add(archive, name, contents)
            else:
                member = tarfile.TarInfo(name)
                member.type, member.linkname = tarfile.LNKTYPE, contents
                archive.addfile(member)
    return path.read_bytes()


def test_links_and_hidden_members_of_the_archives(tmp_path):
    """`tar` stores a second name of the same file as a link; macOS adds `._` files."""
    inner = {
        "n02": {"n02_0.JPEG": picture(0), "n02_1.JPEG": "n02_0.JPEG", "._n02_0.JPEG": b"Mac OS X"},
        "n01": {"n01_0.JPEG": picture(1), "README": b"read me"},
    }
    outer = {
        f"{name}.tar": write_archive(tmp_path / "inner.tar", members)
        for name, members in inner.items()
    }
    path = tmp_path / "train.tar"
    write_archive(path, {**outer, "._n01.tar": b"Mac OS X", "n03.tar": "n01.tar"})
    lines = []
    sources = image_sources.list_imagenet_train(str(path), log=lines.append)
    assert [(source.synset, source.label, source.name) for source in sources] == [
        ("n01", 0, "n01_0.JPEG"),
        ("n02", 1, "n02_0.JPEG"),
        ("n02", 1, "n02_1.JPEG"),
        ("n03", 2, "n01_0.JPEG"),
    ]
    contents = [source.read() for source in sources]
    assert contents == [picture(1), picture(0), picture(0), picture(1)]
    assert any("no archives of a class: ._n01.tar" in line for line in lines)
    assert any(
        "3 in its archives that are no images: ._n02_0.JPEG, README" in line for line in lines
    )

    write_archive(path, {**outer, "n00.tar": write_archive(tmp_path / "e.tar", {"x.txt": b"x"})})
    with pytest.raises(records.DataError, match="archives without an image: n00"):
        image_sources.list_imagenet_train(str(path))


def test_an_image_that_is_too_large_is_named_and_the_others_converted(tmp_path):
    """More than 2^29 bytes when decoded, by its header; Pillow would raise what nobody expects."""
    size = (30000).to_bytes(4, "big")
    huge = picture(0, "PNG").replace(
        (10).to_bytes(4, "big") + (12).to_bytes(4, "big"), size + size, 1
    )
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "huge.png").write_bytes(huge)
    (tmp_path / "a" / "good.png").write_bytes(picture(0, "PNG"))
    sources = image_sources.list_image_folder(str(tmp_path))
    _, failures = record_conversion.convert(
        sources, str(tmp_path / "out"), "validation", num_shards=2, shuffle=False
    )
    assert len(failures) == 1
    assert failures[0].startswith(str(tmp_path / "a" / "huge.png"))


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyPictures(tfds.core.GeneratorBasedBuilder):
        """Nine numbered pictures of three classes."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=CLASSES),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(range(9)),
                "test": self._generate_examples(range(9, 12)),
            }

        def _generate_examples(self, numbers):
            for number in numbers:
                yield (
                    number,
                    {"image": np.full([12, 10, 3], number * 10, np.uint8), "label": number % 3},
                )

    folder = str(tmp_path_factory.mktemp("tfds"))
    TinyPictures(data_dir=folder).download_and_prepare()
    return folder


def test_tfds_is_read_as_it_is(tfds_dir):
    data = DataConfig(source="tfds:tiny_pictures", image_size=10, crop="none", eval_crop="none")
    train, validation = (
        sources.open_split(data, tfds_dir, split) for split in ("train", "validation")
    )
    assert (train.num_records, validation.num_records) == (9, 3)
    batch = next(
        iter(pipeline.make_train_dataset(data, train, global_batch_size=9, seed=0, num_classes=3))
    )
    numbers = batch["images"].numpy()[:, 5, 5, 0] // 10
    assert sorted(numbers) == list(range(9))
    np.testing.assert_array_equal(batch["labels"], numbers % 3)
    (batch,) = labeled_images.make_eval_dataset(data, validation, global_batch_size=3)
    assert sorted(batch["images"].numpy()[:, 5, 5, 0]) == [90, 100, 110]
    for wrong, message in (
        ("tfds:cifar11", "has no data set 'cifar11', nor .* did you mean 'cifar10"),
        ("tfds:mnist", "is not prepared in"),
    ):
        with pytest.raises(records.DataError, match=message):
            sources.open_split(DataConfig(source=wrong), tfds_dir, "train")


def test_tfds_becomes_records(tfds_dir, tmp_path):
    names = sources.tfds_class_names("tiny_pictures", tfds_dir)
    images = image_sources.list_tfds(
        sources.open_tfds_split("tiny_pictures", tfds_dir, "train"), names
    )
    told = record_conversion.convert(images, str(tmp_path), "train", num_shards=2)
    # PNGs stay.
    assert told == (0, [])
    found, _ = read(tmp_path, "train")
    for feature in found.values():
        level = tf.io.decode_png(feature["image/encoded"].bytes_list.value[0]).numpy().mean()
        assert feature["image/class/label"].int64_list.value[0] == round(level / 10) % 3 + 1


def test_show_input(tmp_path, folder):
    record_conversion.convert(
        image_sources.list_image_folder(str(folder / "train")),
        str(folder / "out"),
        "train",
        num_shards=1,
    )
    flags = "--config=configs/advprop.py:b0 --config.data.image_size=32 --rows=3 --columns=4"
    places = [f"--data_dir={folder}/out", f"--out={tmp_path}/grid.png"]
    done = run_program("show_input", *flags.split(), *places)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "grid.png").size == (5 * 34, 3 * 34)
    assert run_program("show_input", *flags.split(), *places).returncode == 2  # it is there


def test_a_list_of_names_becomes_minival_and_leaves_training(folder):
    images = image_sources.list_image_folder(str(folder / "train"))
    names = folder / "minival.txt"
    names.write_text("\ufefftrain/n02/n02_3.JPEG\r\nn01_0.JPEG\n\n")
    kept, held = image_sources.hold_out(images, str(names))
    assert sorted(source.name.rsplit("/", 1)[-1] for source in held) == ["n01_0.JPEG", "n02_3.JPEG"]
    assert len(kept) == 13 and not set(kept) & set(held)
    for prefix, part in (("train", kept), ("minival", held)):
        record_conversion.convert(part, str(folder / "out"), prefix, num_shards=1)
    data = DataConfig(validation_prefix="minival")
    for split, count in (("train", 13), ("validation", 2)):
        assert sources.open_split(data, str(folder / "out"), split).num_records == count


@pytest.mark.parametrize(
    "contents, words",
    [
        (None, "cannot be read"),
        ("", "which is empty"),
        ("n01_0.JPEG\nn09_9.JPEG\n", "not all among the 15 training images: n09_9.JPEG"),
        ("n02/n01_0.JPEG\n", "not all among the 15 training images: n02/n01_0.JPEG"),
        ("n01_0.JPEG\n".encode("utf-16"), "no text in UTF-8"),
    ],
)
def test_lists_that_do_not_fit_are_refused(folder, contents, words):
    names = folder / "minival.txt"
    if contents is not None:
        names.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    images = image_sources.list_image_folder(str(folder / "train"))
    with pytest.raises(records.DataError, match=f"minival.txt.*{words}"):
        image_sources.hold_out(images, str(names))


def test_a_name_in_two_classes_needs_its_folder(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "1.png").write_bytes(picture(0, "PNG"))
    images = image_sources.list_image_folder(str(tmp_path / "images"))
    names = tmp_path / "minival.txt"
    names.write_text("1.png\n")
    with pytest.raises(records.DataError, match="fits several images: 1.png"):
        image_sources.hold_out(images, str(names))
    names.write_text("cat/1.png\n")
    kept, held = image_sources.hold_out(images, str(names))
    assert [image.synset for image in kept] == ["dog"] and [i.synset for i in held] == ["cat"]


def test_what_has_changed_since_is_not_mixed(folder):
    def convert():
        images = image_sources.list_image_folder(str(folder / "train"))
        return record_conversion.convert(images, str(folder / "out"), "train", num_shards=2)

    convert()
    before = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    image, other = (folder / "train" / name / f"{name}_0.JPEG" for name in ("n01", "n02"))
    moved = folder / "train" / "n02" / image.name
    image.rename(moved)
    with pytest.raises(records.DataError, match="Nothing is overwritten"):
        convert()
    moved.rename(image)
    convert()
    contents = bytearray(other.read_bytes())
    contents[-9] ^= 1
    other.write_bytes(contents)
    with pytest.raises(records.DataError, match="Nothing is overwritten"):
        convert()
    assert before == {path.name: path.read_bytes() for path in (folder / "out").iterdir()}


def test_an_image_that_fails_leaves_a_gap_that_is_named_until_it_is_repaired(folder):
    image = folder / "train" / "n02" / "n02_3.JPEG"
    whole = image.read_bytes()
    for contents, num_failures in ((whole[:-100], 1), (whole, 0)):
        image.write_bytes(contents)
        images = image_sources.list_image_folder(str(folder / "train"))
        _, failed = record_conversion.convert(images, str(folder / "out"), "train", num_shards=4)
        assert len(failed) == num_failures and all("n02_3.JPEG" in line for line in failed)
        if failed:
            with pytest.raises(records.DataError, match="it lacks train-0000"):
                records.open_split(str(folder / "out"), "train")
    assert read(folder / "out", "train")[1] == 15


def test_parts_follow_from_the_contents(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(10):
            (tmp_path / name / f"{i}.jpg").write_bytes(picture(i + 20 * (name == "b")))
    (tmp_path / "a" / "copy.jpg").write_bytes(picture(0))

    def divide():
        groups = image_sources.group_equal_files(image_sources.list_image_folder(str(tmp_path)))
        parts = image_sources.divide(groups, {"validation": 0.2, "test": 0.1})
        return [{(image.synset, image.read()) for image in part} for part in parts.values()]

    parts = divide()
    assert sum(map(len, parts)) == len(set.union(*parts)) == 20  # equal files on one side
    assert all({name for name, _ in part} == {"a", "b"} for part in parts)
    for i in range(10):
        (tmp_path / "b" / f"{i}.jpg").rename(tmp_path / "b" / f"z{9 - i}.jpg")
    assert divide() == parts
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "1.jpg").write_bytes(picture(99))
    with pytest.raises(records.DataError, match="class 'c' has 1 different images"):
        divide()


def test_parts_have_their_shares_however_large_the_groups_are():
    """Within four standard deviations of the binomial distribution."""
    digests = [hashlib.sha256(bytes([i % 256, i // 256])).hexdigest() for i in range(4000)]
    single = {
        ("c", digest): [image_sources.ImageSource(digest, digest, 0, "c")] for digest in digests
    }
    # Of many near copies the smallest digest names the group, and is small.
    of_ten = {("c", min(digests[i : i + 10])): digests[i : i + 10] for i in range(0, 4000, 10)}
    large = {key: [image_sources.ImageSource(key[1], key[1], 0, "c")] for key in of_ten}
    for groups in (single, large):
        parts = image_sources.divide(groups, {"validation": 0.2, "test": 0.1})
        for part, share in (("train", 0.7), ("validation", 0.2), ("test", 0.1)):
            deviation = (len(groups) * share * (1 - share)) ** 0.5
            assert abs(len(parts[part]) - share * len(groups)) < 4 * deviation


def test_shards_are_chosen_by_size():
    def count(*sizes):
        rows = [image_sources.ImageSource("x", "x", 0, "c", 0, size) for size in sizes]
        return record_conversion.count_shards(rows)

    assert [count(10), count(10**8, 10**8, 10**8), count(10**9)] == [1, 3, 1]
