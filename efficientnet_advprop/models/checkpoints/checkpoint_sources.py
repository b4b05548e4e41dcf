"""Where checkpoints come from: a published name, a folder, a prefix, a file or an archive,
here, on gs://, on https:// or on hf://, becomes a prefix or a file.

An archive is unpacked as it streams in, into a folder beside its final place; only when
it has come in whole and every tensor's checksum fits is the folder renamed. What is in
the cache is therefore whole.
"""

import difflib
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
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from typing import BinaryIO, Callable, Mapping, Optional, Sequence

import safetensors
import tensorflow as tf
import tqdm
from absl import logging

from efficientnet_advprop.models.checkpoints import hub
from efficientnet_advprop.models.checkpoints.published_checkpoints import (
    PUBLISHED,
    PublishedCheckpoint,
    find_published,
)
from efficientnet_advprop.runtime.errors import (
    NUM_NAMES,
    CheckpointError,
    brief_message,
    list_names,
)
from efficientnet_advprop.runtime.files import is_remote, list_folder, without_pattern

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz")
# Of single files of other libraries, where they have no first bytes yet to be told by.
FILE_SUFFIXES = (".safetensors", ".h5", ".npz")
# What readers of checkpoints and files answer to damaged ones.
READ_ERRORS = (
    *(tf.errors.OpError, IndexError, RuntimeError, ValueError, OSError, KeyError, TypeError),
    *(zipfile.BadZipFile, safetensors.SafetensorError),
)
_DAMAGE = (EOFError, zlib.error, tarfile.TarError, gzip.BadGzipFile, http.client.IncompleteRead)
# What else a download can fail with; an `URLError` is an OSError.
_FETCH_ERRORS = (*_DAMAGE, OSError, http.client.HTTPException, tf.errors.OpError)
_CHECKPOINT_FILE = re.compile(r"(checkpoint|.*\.index|.*\.data-\d{5}-of-\d{5}|.*\.settings\.json)")
_TIMEOUT_SECONDS = 60  # without a byte
_CHUNK_BYTES = 1 << 20


def require_no_problems(
    headline: str, problems: Mapping[str, Sequence[str]], inspected: Optional[str] = None
) -> None:
    """Raises a `CheckpointError` if any kind of problem has names.

    Args:
        headline: what is the matter with the whole.
        problems: what is wrong → the names of which it is.
        inspected: the source, where `inspect_checkpoint` reads it.
    """
    found = {what: tuple(names) for what, names in problems.items() if names}
    if not found:
        return
    lines = [f"  {len(names)} {what}: {list_names(names)}" for what, names in found.items()]
    if any(len(names) > NUM_NAMES for names in found.values()):
        program = "python -m efficientnet_advprop.inspect_checkpoint --tensors"
        command = f"{program} {shlex.quote(inspected)}; or " if inspected else ""
        lines.append(f"  all names: {command}this error's `problems`, in Python")
    error = CheckpointError("\n".join([headline, *lines]))
    error.problems = found
    raise error


def default_cache_dir() -> str:
    """Returns `$XDG_CACHE_HOME/efficientnet_advprop`, by default under `~/.cache`."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(cache, "efficientnet_advprop")


def find_checkpoint(source: str, cache_dir: Optional[str] = None) -> str:
    """Returns the prefix of a checkpoint's files ("…/model.ckpt" of "…/model.ckpt.index"), or
    the path of timm's or Keras's file.

    Args:
        source: a name of `PUBLISHED` ("b3-advprop"); a repository, see `hub.fetch`; a
            directory with one checkpoint or file, or with a `checkpoint` file that
            names one; a prefix; a file; or a `.tar.gz` of such a directory. Paths are
            local or gs://; archives and files may be http(s):// too.
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
    if source.startswith(hub.SCHEME):
        source = hub.fetch(source)
    published, address = find_published(source), source
    if published and source == published.name:
        _refuse_namesake(source)
        address = published.address
    is_web = bool(re.match(r"https?://", address))
    cache_dir = cache_dir or default_cache_dir()
    if published and published.files and (source == published.name or is_web):
        key = f"{published.name}-{_digest(' '.join(published.files.values()))}"
        row = published
        return _find_in_cache(
            source, source, cache_dir, key, lambda _, folder: _download(row, folder)
        )
    path = address.lower().split("?")[0]
    if is_web and path.endswith(FILE_SUFFIXES):
        key = cache_key(address, is_web)
        return _find_in_cache(source, address, cache_dir, key, _fetch_file)
    if path.endswith(ARCHIVE_SUFFIXES):
        if not is_web and not tf.io.gfile.exists(address):
            raise CheckpointError(f"There is no archive {address!r}.")
        key = cache_key(address, is_web)
        return _find_in_cache(source, address, cache_dir, key, _unpack)
    if is_web:
        raise CheckpointError(
            f"`source` is {source!r}, but over http(s) only archives and files can be had; give the"
            f" address of one that ends in {', '.join((*ARCHIVE_SUFFIXES, *FILE_SUFFIXES))}."
        )
    try:
        prefix = _find_here(source)
    except tf.errors.OpError as error:
        raise CheckpointError(
            f"`source` is {source!r}, which cannot be reached: {brief_message(error)}"
        ) from error
    if prefix is None:
        raise CheckpointError(
            f"`source` is {source!r}, but there is no such directory and no file {source}.index;"
            f" {_suggest(source)}"
        )
    return prefix


def _find_here(path: str) -> Optional[str]:
    prefix = re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", path)
    if tf.io.gfile.isdir(path):
        _refuse_run(path, path)
        return find_in_directory(path)
    if tf.io.gfile.exists(f"{prefix}.index"):
        _refuse_run(path, os.path.dirname(prefix))
        return prefix
    if format_of(path):
        return path
    if tf.io.gfile.exists(path):
        raise CheckpointError(
            f"`source` is {path!r}, a file that is damaged or of another format; of PyTorch's,"
            " .safetensors is read; a Keras model's file must end in .keras."
        )
    return None


def format_of(path: str) -> Optional[str]:
    """Returns "timm" (safetensors or .npz) or "keras" (HDF5) by a file's first bytes, or None."""
    try:
        if tf.io.gfile.isdir(path) or not tf.io.gfile.exists(path):
            return None
        with tf.io.gfile.GFile(path, "rb") as file:
            head = file.read(9)
    except (tf.errors.OpError, ValueError):
        return None
    if head.startswith(b"\x89HDF"):
        return "keras"
    return "timm" if head.startswith(b"PK") or head[8:] == b"{" else None


def _suggest(source: str) -> str:
    """Returns the way out for a source that is not there: similar names, or all of them."""
    if not re.search(r"[/\\]", source):
        name = re.sub(r"^efficientnet-?", "", source.lower().replace("_", "-"))
        names = {published.lower().replace("_", "-"): published for published in PUBLISHED}
        similar = difflib.get_close_matches(name, names, cutoff=0.7)
        if similar:
            return f"did you mean {' or '.join(repr(names[found]) for found in similar)}?"
    return (
        "give a directory, the prefix of a checkpoint, a .tar.gz, or one of the published"
        f" {', '.join(PUBLISHED)}."
    )


def _refuse_namesake(name: str) -> None:
    """Raises a `CheckpointError` if a checkpoint or run here has a published one's name."""
    entries = list_folder(name) if os.path.isdir(name) else []
    is_checkpoint = any(entry.endswith(".index") or entry == "config.json" for entry in entries)
    if is_checkpoint or os.path.exists(f"{name}.index"):
        raise CheckpointError(
            f"`source` is {name!r}, the name of a published checkpoint, and also of"
            f" {'a folder' if entries else 'files'} here. Give './{name}' for that one, or"
            f" {PUBLISHED[name].address!r} for the published one."
        )


def _refuse_run(source: str, directory: str) -> None:
    """Raises a `CheckpointError` if a folder is a training run's, or that of its checkpoints."""
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
    """Returns the prefix that a directory's file `checkpoint` names, or the only one."""
    entries = list_folder(directory)
    names = [name.removesuffix(".index") for name in entries if name.endswith(".index")]
    files = [name for name in entries if name.endswith(FILE_SUFFIXES)]
    if not names and len(files) == 1:
        return os.path.join(directory, files[0])
    if not names:
        found = (
            f"several files, {list_names(files)}; give one of them"
            if files
            else (f"no checkpoint: no file ends in .index, {', '.join(FILE_SUFFIXES)}")
        )
        raise CheckpointError(f"{directory!r} holds {found}.")
    named, problem = names[0], "there is no file `checkpoint` that names one"
    if "checkpoint" in entries:
        named = _named_in(directory)
        problem = f"its file `checkpoint` names {named or 'none'}"
    if named not in names or ("checkpoint" not in entries and len(names) > 1):
        raise CheckpointError(
            f"{directory!r} holds {list_names(names)}, but {problem}. Give the prefix of the one"
            f" that is meant, such as {os.path.join(directory, names[0])!r}."
        )
    return os.path.join(directory, named)


def _named_in(directory: str) -> str:
    """Returns the checkpoint that a state file names; "" where it is damaged."""
    try:
        state = tf.train.get_checkpoint_state(directory)
    except (tf.errors.OpError, ValueError):  # not UTF-8, for one
        return ""
    # Folders are copied and moved: of a path only the last part still counts.
    return posixpath.basename(state.model_checkpoint_path) if state else ""


def open_checkpoint(prefix: str) -> "tf.compat.v1.train.CheckpointReader":
    """Returns a reader of a V2 checkpoint; a `CheckpointError` where it is not whole."""
    directory, base = os.path.split(prefix)
    pattern = re.compile(re.escape(base) + r"\.data-(\d{5})-of-(\d{5})")
    found = [match for match in map(pattern.fullmatch, list_folder(directory)) if match]
    total = max((int(match[2]) for match in found), default=1)
    wanted = [f"{base}.data-{index:05d}-of-{total:05d}" for index in range(total)]
    missing = [name for name in wanted if name not in {match[0] for match in found}]
    if missing:
        raise CheckpointError(
            f"The checkpoint {prefix!r} is not whole: {list_names(missing)} is missing; copy it"
            " again."
        )
    try:
        return tf.compat.v1.train.NewCheckpointReader(without_pattern(prefix))
    except READ_ERRORS as error:
        raise CheckpointError(
            f"The checkpoint {prefix!r} cannot be read, it seems damaged: {brief_message(error)}"
        ) from error


def verify(prefix: str) -> None:
    """Reads every tensor, which checks its checksum; a `CheckpointError` names the damaged."""
    reader = open_checkpoint(prefix)
    damaged = []
    for name in sorted(reader.get_variable_to_shape_map()):
        try:
            reader.get_tensor(name)
        except READ_ERRORS as error:
            damaged.append(f"{name} ({brief_message(error)})")
    if damaged:
        raise CheckpointError(
            f"The checkpoint {os.path.basename(prefix)!r} is damaged; these tensors cannot be read:"
            f" {list_names(damaged)}."
        )


def cache_key(address: str, is_web: bool) -> str:
    """Returns the name of an archive's folder in the cache."""
    identity = address
    if not is_web:
        stat = tf.io.gfile.stat(address)  # an archive that was replaced is another one
        path = address if is_remote(address) else os.path.abspath(address)
        identity = f"{path}:{stat.length}:{stat.mtime_nsec}"
    name = posixpath.basename(address.split("?")[0])
    return f"{re.sub(r'(?i)[.](tar[.]gz|tgz)$', '', name)}-{_digest(identity)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _find_in_cache(
    source: str, address: str, cache_dir: str, key: str, fetch: Callable[[str, str], None]
) -> str:
    """Returns the prefix in the folder `key` of the cache; `fetch(address, folder)` fills it if it
    is absent.
    """
    folder = os.path.join(cache_dir, key)
    if os.path.isdir(folder):
        return _find_in_tree(folder, address)
    temporary = None
    try:
        os.makedirs(cache_dir, exist_ok=True)
        temporary = tempfile.mkdtemp(prefix=f"{key}.", suffix=".part", dir=cache_dir)
        fetch(address, temporary)
        found = _find_in_tree(temporary, address)
        if format_of(found) is None:
            verify(found)
        try:
            os.rename(temporary, folder)
        except OSError:  # another process was faster
            if not os.path.isdir(folder):
                raise
    except _FETCH_ERRORS as error:
        message = _describe_failure(address, cache_dir, error)
        raise CheckpointError(f"{message}{_name_mirror(source)}") from error
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
    logging.info("%s is cached in %s; delete that folder to get it again.", address, folder)
    return _find_in_tree(folder, address)


def _describe_failure(address: str, cache_dir: str, error: Exception) -> str:
    reason = f"{type(error).__name__}: {brief_message(error)}"
    if isinstance(error, _DAMAGE):
        return f"The archive or file {address!r} is truncated or damaged ({reason}); get it again."
    if isinstance(error, urllib.error.HTTPError):
        return f"{address!r} answers {error.code} {error.reason}; check the address."
    if isinstance(error, urllib.error.URLError):
        return (
            f"{address!r} does not answer ({error.reason}); check the address, the network and the"
            f" proxies ({urllib.request.getproxies() or 'none is set'})."
        )
    return f"{address!r} cannot be brought into {cache_dir!r} ({reason}); try again."


def _name_mirror(address: str) -> str:
    """Returns where else the network is, in words: nobody gets it from there in silence."""
    published = find_published(address)
    place = published and hub.mirror(published)
    return f" timm's port of the same network is {place}." if place else ""


def _open_address(address: str) -> tuple[BinaryIO, Optional[int]]:
    """A stream of a file's bytes, and how many there will be."""
    if not re.match(r"https?://", address):
        return tf.io.gfile.GFile(address, "rb"), tf.io.gfile.stat(address).length
    # A proxy of a company's network knows nothing of a server on this machine.
    is_here = urllib.parse.urlsplit(address).hostname in ("localhost", "127.0.0.1", "::1")
    proxies = urllib.request.ProxyHandler({} if is_here else None)
    response = urllib.request.build_opener(proxies).open(address, timeout=_TIMEOUT_SECONDS)
    length = response.headers.get("Content-Length")
    return response, int(length) if length and length.isdigit() else None


def _showing_progress(stream: BinaryIO, what: str, total_bytes: Optional[int]):
    """A context manager: the stream, whose reading is shown from the fifth second on."""
    return tqdm.tqdm.wrapattr(
        stream, "read", total_bytes, desc=f"Reading {what}", delay=5, mininterval=1, leave=False
    )


def _unpack(address: str, folder: str) -> None:
    """Streams the checkpoint's files, without graphs and logs, out of an archive."""
    stream, total_bytes = _open_address(address)
    # Not tarfile's own "r|gz", which checks neither the end of the stream nor its
    # checksum.
    with (
        stream,
        _showing_progress(stream, address, total_bytes) as shown,
        gzip.GzipFile(fileobj=shown) as unzipped,
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
            with open(path, "wb") as file:
                shutil.copyfileobj(archive.extractfile(member), file, _CHUNK_BYTES)
        while unzipped.read(_CHUNK_BYTES):  # to the end, where the checksum is
            pass


def _fetch_file(address: str, folder: str) -> None:
    """Fetches timm's or Keras's file; its length and the hash in its name must be right."""
    name = posixpath.basename(urllib.parse.urlsplit(address).path)
    path = os.path.join(folder, name)
    stream, total_bytes = _open_address(address)
    with stream:
        _copy(stream, path, address, total_bytes)
    told = re.search(r"^tf_efficientnet.*-([0-9a-f]{8,64})\.", name)
    if told:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""):
                digest.update(chunk)
        found = digest.hexdigest()
        if not found.startswith(told[1]):
            raise CheckpointError(
                f"{address!r} has the SHA-256 {found}, but its name says {told[1]}; get it again."
            )
    if format_of(path) is None:
        raise CheckpointError(f"{address!r} answers with something else than weights.")


def _copy(stream: BinaryIO, path: str, what: str, total_bytes: Optional[int]) -> None:
    with _showing_progress(stream, what, total_bytes) as shown, open(path, "xb") as file:
        shutil.copyfileobj(shown, file, _CHUNK_BYTES)
        length = file.tell()
    if total_bytes not in (None, length):
        raise EOFError(f"{length} of {total_bytes} bytes came")


def _download(published: PublishedCheckpoint, folder: str) -> None:
    """Fetches a checkpoint that is published as single files."""
    for suffix, address in published.files.items():
        stream, total_bytes = _open_address(address)
        with stream:
            # Google Drive answers so where a file is asked for too often, or is gone.
            if stream.headers.get_content_type() == "text/html":
                raise CheckpointError(
                    f"{published.name!r}: {address} answers with a page and not with the file; try"
                    f" again later, or open {published.address} and its neighbours in a browser,"
                    f" put the files that end in {' and '.join(published.files)} into one folder"
                    " under one name, and give that folder."
                )
            path = os.path.join(folder, f"model.ckpt{suffix}")
            _copy(stream, path, f"{published.name}{suffix}", total_bytes)


def _find_in_tree(folder: str, address: str) -> str:
    """Returns the prefix of the only checkpoint below a folder."""
    directories = [
        path
        for path, _, names in sorted(os.walk(folder))
        if any(name.endswith((".index", *FILE_SUFFIXES)) for name in names)
    ]
    if len(directories) != 1:
        found = list_names([os.path.relpath(path, folder) for path in directories])
        raise CheckpointError(
            f"The archive {address!r} must hold one checkpoint, but holds"
            f" {f'several, in {found}' if found else 'none'}."
        )
    return find_in_directory(directories[0])
