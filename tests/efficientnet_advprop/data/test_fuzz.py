"""Two thousand damaged images and records among good ones: every bad one is found, the
first one ends the stream, nothing hangs.
"""

import io
import os

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from efficientnet_advprop.config.experiment import DataConfig
from efficientnet_advprop.data import pipeline, records

DATA = DataConfig(
    image_size=16, crop="none", eval_crop="none", horizontal_flip=False, shuffle_buffer=64
)


def jpeg(number):
    """Sixteen 4×4 blocks that spell the number in two grays."""
    bits = np.array([(number >> bit) & 1 for bit in range(16)], np.uint8).reshape(4, 4) * 96 + 80
    buffer = io.BytesIO()
    Image.fromarray(np.kron(bits, np.ones([4, 4], np.uint8))[..., None].repeat(3, -1)).save(
        buffer, "JPEG", quality=95
    )
    return buffer.getvalue()


def mutate(encoded, rng):
    contents = bytearray(encoded)
    kind = rng.randint(5)
    if kind == 0:
        return bytes(contents[: rng.randint(len(contents))])  # cut off
    if kind == 1:
        start = rng.randint(len(contents))
        return bytes(contents[:start] + contents[start + rng.randint(1, 40) :])  # a piece missing
    if kind == 2:
        for _ in range(rng.randint(1, 30)):
            contents[rng.randint(len(contents))] = rng.randint(256)
        return bytes(contents)
    if kind == 3:
        return rng.bytes(rng.randint(200))  # noise
    return bytes(contents[: rng.randint(20)]) + rng.bytes(rng.randint(300))  # a header and noise


@pytest.mark.slow
def test_two_thousand_mutations(tmp_path):
    rng = np.random.RandomState(0)
    num_shards, num_records = 8, 4000
    good, decodable, flipped = set(), set(), set()
    for shard in range(num_shards):
        path = os.path.join(tmp_path, records.shard_name("train", shard, num_shards))
        with records.ShardWriter(path) as writer:
            for number in range(shard, num_records, num_shards):
                row = records.make_example(jpeg(number), number % 10)
                draw = rng.rand()
                if draw < 0.35:
                    row = records.make_example(mutate(jpeg(number), rng), number % 10)
                elif draw < 0.45:
                    row = mutate(row, rng)
                elif draw < 0.49:
                    row = records.make_example(jpeg(number), int(rng.randint(10, 100)))
                else:
                    good.add(number)
                writer.write(row)
        # A damaged payload here and there: its checksum no longer fits, and only it may
        # be lost.
        offsets = records.scan_file(path)[0]
        contents = bytearray(open(path, "rb").read())
        for index in rng.choice(len(offsets), 6, replace=False):
            contents[offsets[index] + 14 + rng.randint(20)] ^= 1 << rng.randint(8)
            flipped.add(shard + num_shards * int(index))
        open(path, "wb").write(contents)
    good -= flipped
    split = records.open_split(str(tmp_path), "train")
    bad = set()
    for shard, path in enumerate(split.files):
        for index in range(split.counts[shard]):
            number = shard + num_shards * index
            try:
                reason = records.explain_bad_record(records.read_record(path, index), split, 10)
            except records.DataError as error:
                reason = str(error)
            (decodable if reason is None else bad).add(number)
    assert good <= decodable and flipped <= bad and len(bad) > 1000
    errors = records.check_folder(str(tmp_path), "train", 10)
    assert {(error.path, error.record) for error in errors} == {
        (split.files[number % num_shards], number // num_shards) for number in bad
    }
    for seed in range(3):
        stream = pipeline.make_train_dataset(
            DATA, split, global_batch_size=50, seed=seed, num_classes=10
        )
        with pytest.raises(tf.errors.OpError) as error:
            list(stream.take(80))
        found = records.explain_data_error(error.value)
        assert found.reason.split(":")[0] in {
            error.path + f", record {error.record}" for error in errors
        }
