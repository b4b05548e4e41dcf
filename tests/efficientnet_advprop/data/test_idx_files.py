"""IDX files, and the data set that is made of them."""

import gzip
import io
import struct

import numpy as np
import pytest
from PIL import Image

from efficientnet_advprop.config import ConfigError, ExperimentConfig
from efficientnet_advprop.data import records, sources
from efficientnet_advprop.data.builtin_datasets import FASHION_MNIST, load_fashion_mnist
from efficientnet_advprop.data.idx_files import read_idx
from efficientnet_advprop.images.labeled_images import RecordImages
from efficientnet_advprop.runtime.errors import DataError
from tests.conftest import run_program


def idx(values: np.ndarray) -> bytes:
    """By the format's definition: big-endian sizes after two zeros, the type, the axes."""
    head = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    return head + values.tobytes()


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for split, count in (("train", 240), ("t10k", 8)):
        images = generator.integers(0, 256, (count, 28, 28), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        (tmp_path / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def test_values_are_read_gzipped_or_not(tmp_path):
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    for name, contents in (("plain", idx(values)), ("zipped", gzip.compress(idx(values)))):
        (tmp_path / name).write_bytes(contents)
        np.testing.assert_array_equal(read_idx(str(tmp_path / name)), values)


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"\0\0\x0d\1\0\0\0\1\0\0\0\0",  # of floats
        idx(np.zeros((2, 3), np.uint8))[:-1],
        idx(np.zeros((2, 3), np.uint8)) + b"\0",
        gzip.compress(idx(np.zeros(9, np.uint8)), mtime=0)[:-9],
        b"\0\0\x08\xff\0\0\0\1",
    ],
    ids=["empty", "floats", "short", "long", "cut gzip", "sizes"],
)
def test_other_files_are_refused_by_name(tmp_path, contents):
    (tmp_path / "file").write_bytes(contents)
    with pytest.raises(DataError, match="file"):
        read_idx(str(tmp_path / "file"))


def test_images_get_a_black_frame(folder):
    images, labels = load_fashion_mnist("validation", str(folder))
    assert images.shape == (8, 32, 32, 3) and images.dtype == np.uint8
    raw = read_idx(str(folder / "t10k-images-idx3-ubyte.gz"))
    np.testing.assert_array_equal(images[:, 2:30, 2:30, 1], raw)
    assert images[:, :2].sum() == images[:, :, 30:].sum() == 0
    assert labels.tolist() == list(range(8))


def test_each_seed_draws_other_training_images(folder):
    """240 images in as many files: a file is an image."""
    config = ExperimentConfig()
    config.data.source = FASHION_MNIST.name
    config.data.num_train_examples = 20
    drawn = []
    for seed in (1, 1, 2):
        config.data.subset_seed = seed
        split = sources.open_split(config.data, str(folder), "train")
        assert sum(split.counts) == split.num_records == 20
        drawn.append(split.files)
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 20
    assert len(set(drawn[0]) & set(drawn[2])) < 10
    config.data.num_train_examples = None
    with pytest.raises(ConfigError, match="subset_seed"):
        config.validate()


def test_prepare_writes_the_pixels_and_names(folder, tmp_path):
    names = "a,b,c,d,e,f,g,h,i,j"
    done = run_program(
        "prepare", f"--idx_dir={folder}", f"--output_dir={tmp_path}/r", f"--class_names={names}"
    )
    assert done.returncode == 0, done.stderr
    images = RecordImages(records.open_split(f"{tmp_path}/r", "validation"), 10)
    raw = read_idx(str(folder / "t10k-images-idx3-ubyte.gz"))
    assert images.num_images == len(raw)
    for position, expected in enumerate(raw):
        pixels = np.asarray(Image.open(io.BytesIO(images.encoded(position))))
        np.testing.assert_array_equal(pixels, expected)
    assert (tmp_path / "r" / "labels_map.txt").read_text().count('"j"') == 1


def test_missing_files_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "efficientnet_advprop.data.builtin_datasets._FASHION_MNIST_DIR", str(tmp_path / "no")
    )
    with pytest.raises(DataError, match="dataset-fashion-mnist"):
        FASHION_MNIST.ensure(str(tmp_path / "records"))
