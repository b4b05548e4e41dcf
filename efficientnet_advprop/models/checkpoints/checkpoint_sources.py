"""Where checkpoints come from: a name, a folder, a prefix or an archive, here, on gs://
or on https://, becomes a prefix.

    # downloaded once, then from the cache
    prefix = find_checkpoint("b3-advprop")
    prefix = find_checkpoint("gs://bucket/efficientnet-b3")

An archive is unpacked as it streams in, into a folder beside its final place; only when
it has come in whole and every tensor's checksum fits is the folder renamed. What is in
the cache is therefore whole.
"""

import functools
import gzip
import hashlib
import http.client
import os
import posixpath
import re
import shlex
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from typing import BinaryIO, Callable, Mapping, Optional, Sequence

import tensorflow as tf
from absl import logging

from efficientnet_advprop.models.checkpoints import published_checkpoints
from efficientnet_advprop.models.checkpoints.state_files import STATE_FILE, list_checkpoints
from efficientnet_advprop.runtime.errors import NUM_NAMES, UserError, list_names
from efficientnet_advprop.runtime.files import list_folder, without_pattern
from tpu_utils.errors import brief_message

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz")
_CHECKPOINT_FILE = re.compile(r"(checkpoint|.*\.index|.*\.data-\d{5}-of-\d{5}|.*\.settings\.json)")
_TIMEOUT_SECONDS = 60  # without a byte
_CHUNK_BYTES = 1 << 20
_PROGRESS_SECONDS = 5


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be had, read or written, or does not fit.

    The message says which, why and what to do.

    Attributes:
        problems: of a checkpoint that does not fit, all names by the kind of what is
            wrong with them; the message shows only the first few.
    """

    problems: Mapping[str, Sequence[str]] = {}


def require_no_problems(
    headline: str, problems: Mapping[str, Sequence[str]], source: Optional[str] = None
) -> None:
    """Raises a `CheckpointError` if any kind of problem has names.

    Args:
        headline: what is the matter with the whole.
        problems: what is wrong → the names of which it is.
        source: of a checkpoint in the released format, where `inspect_checkpoint` finds
            it.
    """
    found = {what: tuple(names) for what, names in problems.items() if names}
    if not found:
        return
    lines = [f"  {len(names)} {what}: {list_names(names)}" for what, names in found.items()]
    if any(len(names) > NUM_NAMES for names in found.values()):
        where = "this error's `problems`, in Python"
        if source is not None:
            where = (
                "python -m efficientnet_advprop.inspect_checkpoint --tensors "
                f"{shlex.quote(source)}; or {where}"
            )
        lines.append(f"  all names: {where}")
    error = CheckpointError("\n".join([headline, *lines]))
    error.problems = found
    raise error


def default_cache_dir() -> str:
    """`$XDG_CACHE_HOME/efficientnet_advprop`, by default under `~/.cache`."""
    return os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "efficientnet_advprop"
    )


def find_checkpoint(source: str, cache_dir: Optional[str] = None) -> str:
    """The prefix of a checkpoint's files ("…/model.ckpt" of "…/model.ckpt.index").

    Args:
        source: a name of `published_checkpoints.PUBLISHED` ("b3-advprop"); a directory
            with one checkpoint or with a `checkpoint` state file; a prefix; or a
            `.tar.gz` of such a directory. Paths are local or gs://; archives may be
            http(s):// too.
        cache_dir: a local folder, for what is downloaded or unpacked; default
            `default_cache_dir()`.

    Raises:
        CheckpointError: there is no such checkpoint, its address does not answer, or it
            is not whole.
    """
    source = os.fspath(source)
    if not source:
        raise CheckpointError(
            "The checkpoint's `source` is empty; give a directory, a prefix, a .tar.gz or a"
            " published name."
        )
    published = published_checkpoints.find_published(source)
    address = published.address if published and source == published.name else source
    is_web = bool(re.match(r"https?://", address))
    if published and published.files and (source == published.name or is_web):
        return _find_in_cache(
            published.name,
            cache_dir or default_cache_dir(),
            lambda: f"{published.name}-{_digest(' '.join(published.files.values()))}",
            functools.partial(_download, published),
        )
    if address.lower().split("?")[0].endswith(ARCHIVE_SUFFIXES):
        return _find_in_archive(address, is_web, cache_dir or default_cache_dir())
    if is_web:
        raise CheckpointError(
            f"`source` is {source!r}, but over http(s) only archives can be had; give that of a"
            " .tar.gz."
        )
    prefix = re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", address)
    try:
        if tf.io.gfile.isdir(address):
            _refuse_run(source, address)
            return find_in_directory(address)
        if tf.io.gfile.exists(f"{prefix}.index"):
            _refuse_run(source, os.path.dirname(prefix))
            return prefix
    except tf.errors.OpError as error:
        raise CheckpointError(
            f"`source` is {source!r}, which cannot be reached: {brief_message(error)}"
        ) from error
    names = ", ".join(published_checkpoints.PUBLISHED)
    raise CheckpointError(
        f"`source` is {source!r}, but there is no such directory and no file {source}.index; give a"
        f" directory, the prefix of a checkpoint, a .tar.gz, or one of the published {names}."
    )


def _refuse_run(source: str, directory: str) -> None:
    """Raises a `CheckpointError` if a folder is a training run's, or the one of its
    checkpoints.

    Those hold the optimizer, the averages and the weights by names of their own.
    """
    run = directory.rstrip("/") or "."
    if os.path.basename(run) in ("checkpoints", "best"):
        run = os.path.dirname(run) or "."
    elif any(name.endswith(".index") for name in list_folder(run)):
        return  # a released checkpoint that was written into the run's folder
    if all(tf.io.gfile.exists(os.path.join(run, part)) for part in ("config.json", "checkpoints")):
        raise CheckpointError(
            f"`source` is {source!r}, which belongs to a training run, but must be a checkpoint in "
            f"the released format. Give --model_dir={run} instead, where there is that flag; or "
            f"write one by `python -m efficientnet_advprop.release --model_dir={run} "
            "--output=PREFIX` and give its PREFIX."
        )


def find_in_directory(directory: str) -> str:
    """The prefix of the checkpoint that a directory's state file names, or of the only
    one there is.

    Raises:
        CheckpointError: there is none, no telling which, or the named one is not there.
    """
    found = list_checkpoints(directory)
    names = sorted(posixpath.basename(prefix) for prefix in found.prefixes)
    if not names:
        raise CheckpointError(
            f"{directory!r} holds no checkpoint: there is no file that ends in .index."
        )
    if found.is_named_there:
        return os.path.join(directory, found.named)
    if found.named:
        raise CheckpointError(
            f"The file `{STATE_FILE}` in {directory!r} names {found.named!r}, which is not there,"
            f" but {list_names(names)}. Copy the missing files, or give the prefix of one that is"
            f" there, such as {found.prefixes[0]!r}."
        )
    if len(names) == 1:
        if found.problem and STATE_FILE in list_folder(directory):
            logging.warning(
                "The file %s in %s is passed over: %s. %s is the only checkpoint there.",
                STATE_FILE, directory, found.problem, names[0],
            )  # fmt: skip
        return found.prefixes[0]
    raise CheckpointError(
        f"{directory!r} holds several checkpoints ({list_names(names)}), and its file"
        f" `{STATE_FILE}` does not say which is meant: {found.problem}. Give the prefix of one,"
        f" such as {found.prefixes[0]!r}."
    )


def check_shards(prefix: str) -> None:
    """Checks that no data file of a numbered set is missing.

    Raises:
        CheckpointError: with the names of those that are.
    """
    directory, base = os.path.split(prefix)
    pattern = re.compile(re.escape(base) + r"\.data-(\d{5})-of-(\d{5})")
    found = [match for match in map(pattern.fullmatch, list_folder(directory)) if match]
    total = max((int(match[2]) for match in found), default=1)
    present = {int(match[1]) for match in found if int(match[2]) == total}
    missing = [
        f"{base}.data-{index:05d}-of-{total:05d}" for index in range(total) if index not in present
    ]
    if missing:
        raise CheckpointError(
            f"The checkpoint {prefix!r} is not whole: {list_names(missing)} is missing; copy it"
            " again."
        )


def open_checkpoint(prefix: str) -> "tf.compat.v1.train.CheckpointReader":
    """A reader of a V2 checkpoint.

    Raises:
        CheckpointError: the index is damaged, or a data file missing.
    """
    check_shards(prefix)
    try:
        return tf.compat.v1.train.NewCheckpointReader(without_pattern(prefix))
    except READ_ERRORS as error:
        raise CheckpointError(
            f"The checkpoint {prefix!r} cannot be read, it seems damaged: {brief_message(error)}"
        ) from error


READ_ERRORS = (
    tf.errors.OpError,
    IndexError,
    RuntimeError,
    ValueError,
)  # what a checkpoint reader answers to damaged files


class _Progress:
    """A stream that counts what is read from it, and says so every few seconds."""

    def __init__(self, stream: BinaryIO, what: str, total_bytes: Optional[int]):
        self.stream, self.what, self.total_bytes = stream, what, total_bytes
        self.num_bytes, self.next_report = 0, time.monotonic() + _PROGRESS_SECONDS

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size)
        self.num_bytes += len(data)
        if time.monotonic() > self.next_report:
            share = (
                f" ({100 * self.num_bytes / self.total_bytes:.0f} %)" if self.total_bytes else ""
            )
            logging.info("%s: %.0f MB%s", self.what, self.num_bytes / 1e6, share)
            self.next_report = time.monotonic() + _PROGRESS_SECONDS
        return data


def _open_address(address: str) -> tuple[BinaryIO, Optional[int]]:
    """A stream of the archive's bytes, and how many there will be."""
    if re.match(r"https?://", address):
        response = urllib.request.urlopen(address, timeout=_TIMEOUT_SECONDS)
        length = response.headers.get("Content-Length")
        return response, int(length) if length and length.isdigit() else None
    if not tf.io.gfile.exists(address):
        raise CheckpointError(f"There is no archive {address!r}.")
    return tf.io.gfile.GFile(address, "rb"), tf.io.gfile.stat(address).length


def cache_key(address: str, is_web: bool) -> str:
    identity = address
    if not is_web:
        stat = tf.io.gfile.stat(address)  # an archive that was replaced is another one
        path = os.path.abspath(address) if "://" not in address else address
        identity = f"{path}:{stat.length}:{stat.mtime_nsec}"
    name = posixpath.basename(address.split("?")[0])
    stem = next(
        name[: -len(suffix)] for suffix in ARCHIVE_SUFFIXES if name.lower().endswith(suffix)
    )
    return f"{stem}-{_digest(identity)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _find_in_archive(address: str, is_web: bool, cache_dir: str) -> str:
    def make_key():
        if not is_web and not tf.io.gfile.exists(address):
            raise CheckpointError(f"There is no archive {address!r}.")
        return cache_key(address, is_web)

    return _find_in_cache(address, cache_dir, make_key, functools.partial(_unpack, address))


def _find_in_cache(
    address: str, cache_dir: str, make_key: Callable[[], str], fetch: Callable[[str], None]
) -> str:
    """The prefix of a checkpoint that `fetch` brings into a folder, unless it is there.

    Args:
        address: what the checkpoint is called in messages.
        cache_dir: a local folder.
        make_key: says what the folder is called there.
        fetch: fills the folder that it is given.
    """
    try:
        folder = os.path.join(cache_dir, make_key())
        if os.path.isdir(folder):
            return _find_in_tree(folder, address)
        os.makedirs(cache_dir, exist_ok=True)
        temporary = tempfile.mkdtemp(
            prefix=f"{os.path.basename(folder)}.", suffix=".part", dir=cache_dir
        )
        try:
            fetch(temporary)
            verify(_find_in_tree(temporary, address))
            try:
                os.rename(temporary, folder)
            except OSError:  # another process was faster
                if not os.path.isdir(folder):
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except CheckpointError:
        raise
    except (
        EOFError,
        gzip.BadGzipFile,
        zlib.error,
        tarfile.TarError,
        http.client.IncompleteRead,
    ) as error:
        reason = brief_message(error)
        raise CheckpointError(
            f"The archive or file {address!r} is truncated or damaged ({reason}); get it again."
        ) from error
    except urllib.error.HTTPError as error:
        raise CheckpointError(
            f"{address!r} answers {error.code} {error.reason}; check the address."
        ) from error
    except urllib.error.URLError as error:
        raise CheckpointError(
            f"{address!r} does not answer ({error.reason}); check the address and the network."
        ) from error
    except (OSError, http.client.HTTPException, tf.errors.OpError) as error:
        reason = f"{type(error).__name__}: {brief_message(error)}"
        raise CheckpointError(
            f"The archive or file {address!r} cannot be brought into {cache_dir!r} ({reason}); try"
            " again."
        ) from error
    logging.info("%s is cached in %s; delete that folder to get it again.", address, folder)
    return _find_in_tree(folder, address)


def _unpack(address: str, folder: str) -> None:
    """Streams the checkpoint's files out of an archive into `folder`; what else is in
    it (graphs, logs) is not kept.
    """
    stream, total_bytes = _open_address(address)
    with stream:
        progress = _Progress(stream, f"Reading {address}", total_bytes)
        # Not tarfile's own "r|gz", which checks neither the end of the stream nor its
        # checksum.
        with (
            gzip.GzipFile(fileobj=progress) as unzipped,
            tarfile.open(fileobj=unzipped, mode="r|") as archive,
        ):
            for member in archive:
                parts = member.name.split("/")
                if member.name.startswith("/") or ".." in parts or "\\" in member.name:
                    raise CheckpointError(
                        f"The archive {address!r} holds {member.name!r}, a path that leads out of"
                        " it; do not trust it."
                    )
                if not member.isfile() or not _CHECKPOINT_FILE.fullmatch(parts[-1]):
                    continue
                free = shutil.disk_usage(folder).free
                if member.size > free:
                    raise CheckpointError(
                        f"{member.name} of {address!r} needs {member.size / 1e6:.0f} MB, but"
                        f" {free / 1e6:.0f} MB are left in {os.path.dirname(folder)!r}; make room"
                        " or give another `cache_dir`."
                    )
                path = os.path.join(folder, *parts)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "xb") as file:
                    shutil.copyfileobj(archive.extractfile(member), file, _CHUNK_BYTES)
            while unzipped.read(_CHUNK_BYTES):  # to the end, where the checksum is
                pass
        if total_bytes is not None and progress.num_bytes < total_bytes:
            raise EOFError(f"{progress.num_bytes} of {total_bytes} bytes came")


def _download(published: published_checkpoints.PublishedCheckpoint, folder: str) -> None:
    """Fetches a checkpoint that is published as single files."""
    by_hand = (
        f"open {published.address} and its neighbours in a browser, put the files that end in "
        f"{' and '.join(published.files)} into one folder under one name, and give that folder"
    )
    for suffix, address in published.files.items():
        stream, total_bytes = _open_address(address)
        with stream:
            # Google Drive answers so where a file is asked for too often, or is gone.
            if stream.headers.get_content_type() == "text/html":
                raise CheckpointError(
                    f"{published.name!r}: {address} answers with a page and not with the file; try"
                    f" again later, or {by_hand}."
                )
            progress = _Progress(stream, f"Reading {published.name}{suffix}", total_bytes)
            with open(os.path.join(folder, f"model.ckpt{suffix}"), "xb") as file:
                shutil.copyfileobj(progress, file, _CHUNK_BYTES)
        if total_bytes is not None and progress.num_bytes < total_bytes:
            raise EOFError(f"{progress.num_bytes} of {total_bytes} bytes came")


def _find_in_tree(folder: str, address: str) -> str:
    directories = sorted(
        {
            path
            for path, _, names in os.walk(folder)
            if any(name.endswith(".index") for name in names)
        }
    )
    if len(directories) != 1:
        found = (
            f"several, in {list_names([os.path.relpath(path, folder) for path in directories])}"
            if directories
            else "none"
        )
        raise CheckpointError(
            f"The archive {address!r} must hold one checkpoint, but holds {found}."
        )
    return find_in_directory(directories[0])


def verify(prefix: str) -> None:
    """Reads every tensor of a checkpoint, which checks its checksum.

    Raises:
        CheckpointError: with the names of those that cannot be read.
    """
    reader = open_checkpoint(prefix)
    damaged = []
    for name in sorted(reader.get_variable_to_shape_map()):
        try:
            reader.get_tensor(name)
        except READ_ERRORS as error:
            damaged.append(f"{name} ({brief_message(error)})")
    if damaged:
        names = list_names(damaged)
        raise CheckpointError(
            f"The checkpoint {os.path.basename(prefix)!r} is damaged; these tensors cannot be read:"
            f" {names}."
        )
