"""Images from files, archives and records: every one once on any number of hosts, the
same pixels, broken ones named.
"""

import io
import tarfile

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.data import preprocessing, records
from efficientnet_advprop.data.records import DataError
from efficientnet_advprop.images import labeled_images, tar_archives
from efficientnet_advprop.images.labeled_images import FileImages, RecordImages, TarImages

NUM_IMAGES = 11
KINDS = ("files", "tar", "records")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """kind → the same images, of gray level 20·i and label i // 4; and their encoded files."""
    root = tmp_path_factory.mktemp("images")
    encoded = [
        tf.io.encode_png(np.full([9 + i, 12, 3], 20 * i, np.uint8)).numpy()
        for i in range(NUM_IMAGES)
    ]
    labels = [i // 4 for i in range(NUM_IMAGES)]
    names = [f"class{label}/{i:02d}.png" for i, label in enumerate(labels)]
    for name, contents in zip(names, encoded):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(contents)
    with tarfile.open(root / "set.tar", "w") as archive:
        for name, contents in zip(names, encoded):
            member = tarfile.TarInfo(f"./set/{name}")
            member.size = len(contents)
            archive.addfile(member, io.BytesIO(contents))
    for shard in range(3):
        with records.ShardWriter(str(root / records.shard_name("validation", shard, 3))) as writer:
            for i in range(shard, NUM_IMAGES, 3):
                writer.write(records.make_example(encoded[i], labels[i]))
    path = str(root / "set.tar")
    return {
        "files": FileImages([str(root / name) for name in names], labels, str(root)),
        "tar": TarImages(path, tar_archives.read_tar_index(path), labels, "set"),
        "records": RecordImages(records.open_split(str(root), "validation"), 3),
    }, encoded


def read(images, num_hosts=1, num_replicas=1, global_batch_size=4, **options):
    """(gray level, label, position) of every image of all hosts; and the numbers of
    batches by host.
    """
    found, numbers = [], set()
    for host in range(num_hosts):
        context = tf.distribute.InputContext(num_hosts, host, num_replicas)
        batches = list(
            labeled_images.make_dataset(
                images,
                image_size=8,
                crop="none",
                global_batch_size=global_batch_size,
                input_context=context,
                **options,
            )
        )
        numbers.add(len(batches))
        for batch in batches:
            assert batch["images"].shape == [global_batch_size // num_replicas, 8, 8, 3]
            rows = zip(*(batch[name].numpy() for name in ("images", "labels", "positions", "mask")))
            found += [
                (round(float(pixels.mean())), label, position)
                for pixels, label, position, mask in rows
                if mask
            ]
    return found, numbers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "num_hosts, num_replicas, global_batch_size", [(1, 1, 4), (3, 3, 6), (2, 4, 8), (1, 1, 100)]
)
def test_every_image_comes_once(images, kind, num_hosts, num_replicas, global_batch_size):
    found, numbers = read(images[0][kind], num_hosts, num_replicas, global_batch_size)
    assert len(numbers) == 1
    assert sorted((level, label) for level, label, _ in found) == [
        (20 * i, i // 4) for i in range(NUM_IMAGES)
    ]
    assert sorted(position for *_, position in found) == list(range(NUM_IMAGES))


@pytest.mark.parametrize("kind", KINDS)
def test_a_position_is_an_image(images, kind):
    of_kind, encoded = images[0][kind], images[1]
    for level, _, position in read(of_kind)[0]:
        assert of_kind.encoded(position) == encoded[level // 20]
    ids = [of_kind.image_id(position) for position in range(NUM_IMAGES)]
    shards = [
        f"validation-0000{shard}-of-00003:{record}"
        for shard, count in ((0, 4), (1, 4), (2, 3))
        for record in range(count)
    ]
    assert ids == (
        shards if kind == "records" else [f"class{i // 4}/{i:02d}.png" for i in range(NUM_IMAGES)]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_some_are_drawn_evenly(images, kind):
    positions = sorted(position for *_, position in read(images[0][kind], num_drawn=4)[0])
    assert len(positions) == 4 and positions[0] <= 2 and positions[-1] >= 8
    assert max(np.diff(positions)) <= 3


def test_digests_tell_sets_apart(images):
    assert len({of_kind.digest() for of_kind in images[0].values()}) == 3
    files = images[0]["files"]
    assert (
        FileImages(files.paths, [1 + label for label in files.labels], "/").digest()
        != files.digest()
    )
    assert FileImages(files.paths[1:], files.labels[1:], files._root).digest() != files.digest()


def test_pixels_are_those_of_the_evaluation(images):
    of_kind, encoded = images[0]["files"], images[1]
    (batch,) = labeled_images.make_dataset(
        of_kind, image_size=8, crop="0.5", global_batch_size=NUM_IMAGES
    )
    for pixels, position in zip(batch["images"], batch["positions"].numpy()):
        np.testing.assert_array_equal(
            pixels, preprocessing.preprocess_for_eval(encoded[position], 8, "0.5")
        )


def test_what_cannot_be_read_is_named(tmp_path):
    good = tf.io.encode_png(np.zeros([3, 3, 3], np.uint8)).numpy()
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for path, contents in zip(paths, (good, good, b"broken")):
        with open(path, "wb") as file:
            file.write(contents)
    images = FileImages([*paths, str(tmp_path / "gone.png")], [0] * 4, str(tmp_path))
    with pytest.raises(tf.errors.InvalidArgumentError):
        read(images)
    error = labeled_images.find_unreadable(images)
    assert "2.png" in str(error) and "no JPEG" in str(error) and "{{" not in str(error)
    assert "gone.png" in str(labeled_images.find_unreadable(images, start=3))
    assert labeled_images.find_unreadable(FileImages(paths[:2], [0, 0], str(tmp_path))) is None


def test_a_label_that_there_is_not_is_named(images, tmp_path):
    split = records.open_split(str(images[0]["files"]._root), "validation")
    images = RecordImages(split, 2)
    with pytest.raises(tf.errors.InvalidArgumentError):
        read(images)
    assert "its label 3 is outside 1…2" in str(labeled_images.find_unreadable(images))


def test_archives_that_cannot_be_used(images, tmp_path):
    (tmp_path / "none.tar").write_bytes(b"x" * 2000)
    with tarfile.open(tmp_path / "small.tar.gz", "w:gz"):
        pass
    whole = open(images[0]["tar"]._path, "rb").read()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2 + 100])
    for name, words in (
        ("none.tar", "copy it again"),
        ("small.tar.gz", "unpack it"),
        ("cut.tar", "copy it again"),
    ):
        with pytest.raises(
            DataError, match=f"{name}: the archive cannot be read in place.*{words}"
        ):
            tar_archives.read_tar_index(str(tmp_path / name))
