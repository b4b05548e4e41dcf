"""Writes images as records: shuffled shards in the official layout.

    images = list_image_folder("/data/flowers/train")
    convert(images, "/data/records", "train", num_shards=64, num_workers=8)

Shards are written in parallel, each whole or not at all, so that a killed conversion
goes on where it was. RGB or gray JPEGs and PNGs of eight bits stay as they are, byte
for byte; what else there is (GIF, BMP, WebP, CMYK, whatever its name says) becomes a PNG
of the pixels that every other reader sees (`image_formats`).
"""

import collections
import concurrent.futures
import os
import random
import sys
from typing import Callable, Dict, List, Mapping, Sequence, Tuple

import tensorflow as tf
import tqdm

from efficientnet_advprop.data import class_names, image_formats, records
from efficientnet_advprop.data.digests import digest_files, file_states
from efficientnet_advprop.images.image_sources import ImageSource
from efficientnet_advprop.runtime import files
from efficientnet_advprop.runtime.errors import DataError, brief_message

_SHUFFLE_SEED = 0
_SHARD_BYTES = 100e6
_NUM_SHOWN = 20  # of the images that cannot be converted


class _ImagesFailed(Exception):
    """Images of a shard cannot be converted, and it is not written: what is wrong with each."""


def count_shards(sources: Sequence[ImageSource]) -> int:
    """Returns how many shards of about 100 MB images make; at least one."""
    whole = [source.path for source in sources if source.offset is None]
    num_bytes = sum(source.size for source in sources)
    num_bytes += sum(size for size, _ in file_states(whole).values())
    return min(len(sources), max(1, round(num_bytes / _SHARD_BYTES)))


def without_loss(encoded: bytes) -> bytes:
    """Returns an image in a form that all readers take, with the same pixels: an RGB or
    gray JPEG or PNG of eight bits as it is, anything else as a PNG.
    """
    encoded = image_formats.as_decodable(encoded)
    if bool(image_formats.is_jpeg(encoded)):
        is_plain = int(tf.image.extract_jpeg_shape(encoded)[2]) in (1, 3)
    else:
        # Of 16 bits, of a palette or with transparency, readers differ.
        is_plain = bool(image_formats.is_png(encoded)) and encoded[24:26] in (b"\x08\0", b"\x08\2")
    return encoded if is_plain else tf.io.encode_png(image_formats.decode(encoded)).numpy()


def _to_record(source: ImageSource) -> "tuple[bytes, bool]":
    """Returns an image's record, and whether it had to be encoded anew."""
    contents = source.read()
    encoded = without_loss(contents)
    height, width = image_formats.decode(encoded).shape[:2]
    record = records.make_example(
        encoded,
        source.label,
        height=height,
        width=width,
        image_format="JPEG" if bool(image_formats.is_jpeg(encoded)) else "PNG",
        synset=source.synset,
        filename=source.name,
    )
    return record, encoded != contents


def _write_shard(path: str, sources: Sequence[ImageSource], bar: tqdm.tqdm) -> int:
    """Writes one file; returns how many images were encoded anew."""
    num_reencoded, failures = 0, []
    with records.ShardWriter(path) as writer:
        for source in sources:
            with bar.get_lock():
                bar.update()
            try:
                record, is_new = _to_record(source)
            except (OSError, ValueError, tf.errors.OpError) as error:
                where = source.path if source.offset is None else f"{source.path} ({source.name})"
                failures.append(f"{where}: {brief_message(error)}")
                continue
            num_reencoded += is_new
            writer.write(record)
        if failures:
            raise _ImagesFailed(failures)
    return num_reencoded


def convert_splits(
    images_of: Mapping[str, Sequence[ImageSource]],
    names: Sequence[str],
    output_dir: str,
    *,
    num_shards: Mapping[str, int] = {},
    num_workers: int = 16,
    log: Callable[[str], None] = lambda line: None,
) -> None:
    """Writes all splits and the names of their classes.

    Args:
        images_of: "train", "validation", … → images.
        names: of the classes, by label.
        output_dir, num_workers: see `convert`.
        num_shards: of splits with a given number of files.
        log: takes lines about what was written.

    Raises:
        DataError: images cannot be converted, or the folder holds those of others.
    """
    class_names.require_same_names(output_dir, names, "records")
    failures: List[str] = []
    for prefix, images in images_of.items():
        number = num_shards.get(prefix) or count_shards(images)
        print(f"{prefix}: {len(images)} images, files of records: {number}", flush=True)
        num_reencoded, failed = convert(
            images,
            output_dir,
            prefix,
            num_shards=number,
            num_workers=num_workers,
            shuffle=prefix == "train",
        )
        of_class = collections.Counter(source.synset for source in images)
        for name in names:
            log(f"  {name:20s} {of_class[name]:8d}")
        log(
            f"  {len(images) - len(failed)} images of {len(of_class)} classes,"
            f" {num_reencoded} encoded anew as PNG"
        )
        failures += failed
        # Not before: where the folder's files are of others, nothing may be left in it.
        if class_names.find_class_names(output_dir) is None:
            class_names.write_class_names(output_dir, names)
    if failures:
        shown = "".join(f"\n  {failure}" for failure in failures[:_NUM_SHOWN])
        more = len(failures) - _NUM_SHOWN
        shown += f"\n  and {more} more" if more > 0 else ""
        print(f"These cannot be converted:{shown}", file=sys.stderr)
        raise DataError(
            f"{len(failures)} images cannot be converted, and the TFRecords that they belong to are"
            " not written. Repair them and start again; or remove them and start again with an"
            " empty folder for the records, for the order changes."
        )


def convert(
    sources: Sequence[ImageSource],
    output_dir: str,
    prefix: str,
    *,
    num_shards: int,
    num_workers: int = 8,
    shuffle: bool = True,
) -> Tuple[int, List[str]]:
    """Writes `<prefix>-00000-of-<num_shards>` …, with a progress bar on stderr; whole files that
    are there already stay, and what killed calls have left half-written is removed at the end.

    Args:
        sources: the images.
        output_dir: local or remote; is made.
        prefix: "train" or "validation".
        num_shards: how many files.
        num_workers: threads; decoding and reading release Python's lock.
        shuffle: in an order that depends on nothing but the number of sources. Training
            files must be, to mix the classes.

    Returns:
        How many images were encoded anew, and a line for each that could not be read. Where
        one failed, its shard is missing: the set is never silently short.
    """
    if not 1 <= num_shards <= len(sources):
        raise DataError(
            f"`--{prefix}_shards` is {num_shards}, but must be between 1 and the {len(sources)}"
            f" images of {prefix!r}."
        )
    order = list(range(len(sources)))
    if shuffle:
        random.Random(_SHUFFLE_SEED).shuffle(order)
    parts: Dict[str, List[ImageSource]] = {}
    for shard in range(num_shards):
        start, end = (len(order) * number // num_shards for number in (shard, shard + 1))
        name = records.shard_name(prefix, shard, num_shards)
        parts[name] = [sources[i] for i in order[start:end]]
    digests = {
        name: digest_files(
            [
                (image.path, f"{image.synset}/{image.name}", image.label, image.offset, image.size)
                for image in part
            ]
        )
        for name, part in parts.items()
    }
    there = records.claim_shards(output_dir, prefix, digests, f"these {len(sources):,} images")
    paths = {name: os.path.join(output_dir, name) for name in parts}
    wanted = {paths[name]: part for name, part in parts.items() if name not in there}
    num_reencoded, failures = _write_shards(wanted, num_workers)
    if not failures:
        files.remove_temporaries(list(paths.values()))  # of killed calls
        records.save_counts(output_dir, prefix, list(map(len, parts.values())))
    return num_reencoded, failures


def _write_shards(wanted: Dict[str, List[ImageSource]], num_workers: int) -> Tuple[int, List[str]]:
    """Writes the files in parallel; returns what `convert` does."""
    num_reencoded, failures = 0, []
    bar = tqdm.tqdm(
        total=sum(map(len, wanted.values())),  # a small set is one file
        unit=" images",
        disable=not wanted,
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else 30.0,
    )
    with concurrent.futures.ThreadPoolExecutor(num_workers) as pool, bar:
        tasks = {pool.submit(_write_shard, path, part, bar): path for path, part in wanted.items()}
        try:
            for task in concurrent.futures.as_completed(tasks):
                try:
                    num_reencoded += task.result()
                except _ImagesFailed as error:
                    failures += error.args[0]
                except (OSError, tf.errors.OpError) as error:
                    raise DataError(
                        f"the file cannot be written: {error}. The whole files stay; the same"
                        " command goes on from them.",
                        tasks[task],
                    ) from error
        except BaseException:
            for task in tasks:
                task.cancel()
            raise
    return num_reencoded, failures
