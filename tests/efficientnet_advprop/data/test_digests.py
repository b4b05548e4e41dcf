"""Digests of data: whatever changes a label or an image changes them, nothing else does."""

import os
import shutil
import tempfile

import hypothesis
import hypothesis.strategies as st
import pytest

from efficientnet_advprop.data import builtin_datasets, records
from efficientnet_advprop.data.digests import digest_files
from efficientnet_advprop.runtime.errors import DataError


def write(folder, rows, num_shards):
    for shard in range(num_shards):
        path = os.path.join(folder, records.shard_name("train", shard, num_shards))
        with records.ShardWriter(path) as writer:
            for image, label in rows[shard::num_shards]:
                writer.write(records.make_example(image, label))


def digest(folder):
    return records.open_split(folder, "train").digest()


ROWS = st.lists(
    st.tuples(st.binary(min_size=3, max_size=3), st.integers(0, 5)), min_size=2, max_size=6
)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(ROWS, st.integers(1, 2), st.data())
def test_records(rows, num_shards, data):
    with tempfile.TemporaryDirectory() as root:
        folder, copy = (os.path.join(root, name) for name in ("one", "two"))
        os.mkdir(folder)
        write(folder, rows, num_shards)
        first = digest(folder)
        # A copy, and other times, are the same data; so they are without the kept counts.
        shutil.copytree(folder, copy, copy_function=shutil.copyfile)
        os.utime(os.path.join(copy, records.shard_name("train", 0, num_shards)), (9, 9))
        assert digest(copy) == first
        os.remove(os.path.join(copy, "record_counts_train.json"))
        assert digest(copy) == first
        # Other images or labels are others, though sizes, numbers and times are the same.
        number = data.draw(st.integers(0, len(rows) - 1))
        changed = list(rows)
        changed[number] = data.draw(st.tuples(st.binary(min_size=3, max_size=3), st.integers(0, 5)))
        states = {name: os.stat(os.path.join(folder, name)) for name in os.listdir(folder)}
        write(folder, changed, num_shards)
        for name, state in states.items():
            os.utime(os.path.join(folder, name), ns=(state.st_atime_ns, state.st_mtime_ns))
            assert os.stat(os.path.join(folder, name)).st_size == state.st_size
        assert (digest(folder) == first) == (changed == rows)


def test_image_files(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path in paths:
        path.write_bytes(b"abc")

    def now(labels=(0, 1), names=("a", "b")):
        return digest_files(list(zip(map(str, paths), names, labels)))

    first = now()
    assert now() == first
    assert len({first, now(labels=(1, 0)), now(names=("b", "a"))}) == 3
    os.utime(paths[0], ns=(5, 5))
    paths[1].write_bytes(b"abd")
    assert now() != first
    os.remove(paths[0])
    with pytest.raises(DataError, match="0.png"):
        now()


@pytest.mark.parametrize("name", ["train-00000-of-00008", "validation-00001-of-00002"])
def test_the_digits_overwrite_nobodys_records(tmp_path, name):
    """Neither files of the same name nor others beside which theirs would lie."""
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(DataError, match=f"{name}.* Nothing is overwritten"):
        builtin_datasets.DIGITS.ensure(str(tmp_path))
    assert (tmp_path / name).read_bytes() == b"mine"
    below = tmp_path / "corrupted" / "fog" / "1"
    below.mkdir(parents=True)
    (below / "validation-00000-of-00004").write_bytes(b"mine")
    with pytest.raises(DataError, match="Nothing is overwritten"):
        builtin_datasets.DIGITS.ensure_corrupted(str(tmp_path), "fog", 1)
