"""What an uncompressed tar archive holds and where, so that its members can be read in
place.

    for member in read_tar_index("imagenet-a.tar"):
        member.name, member.offset, member.size

A link within the archive, which `tar` writes for files that share their contents,
stands for the member that it points to.
"""

import posixpath
import tarfile
from typing import BinaryIO, NamedTuple, Optional

import tensorflow as tf

from efficientnet_advprop.data.image_formats import is_image
from efficientnet_advprop.data.records import DataError
from efficientnet_advprop.runtime.files import printable


class TarMember(NamedTuple):
    """Where a file lies in an archive."""

    name: str
    offset: int
    size: int


def read_tar_index(path: str) -> list[TarMember]:
    """The files in an uncompressed tar archive, in its order.

    Args:
        path: local or remote.

    Raises:
        DataError: it is none, is compressed, or ends too early; or it holds a link to
            nothing or a file with holes.
    """
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return index_members(file, path)
    except (tarfile.TarError, tf.errors.OpError, OSError, EOFError) as error:
        compressed = path.endswith(("gz", "bz2", "xz", "zst"))
        way_out = "unpack it" if compressed else "copy it again, or unpack it"
        raise DataError(
            f"the archive cannot be read in place ({error}); {way_out}.", path
        ) from error


def index_members(file: BinaryIO, path: str, size: Optional[int] = None) -> list[TarMember]:
    """The files of the archive at the present position of an open file.

    Args:
        file: seekable.
        path: for messages.
        size: of the archive, where it is itself a member of another one; None: to the
            file's end.

    Returns:
        The files, with offsets from the beginning of `file`.

    Raises:
        DataError: a link to nothing, or a file with holes.
        tarfile.TarError: it is no such archive, or ends too early.
    """
    start = file.tell()
    with tarfile.open(fileobj=file, mode="r:") as archive:
        infos, end = [], start
        for info in archive:
            if info.issparse():
                raise DataError(
                    f"its member {info.name!r} is stored with holes (sparse) and cannot be read in "
                    "place; unpack it.",
                    path,
                )
            end = info.offset_data + (info.size if info.isfile() else 0)
            infos.append(info)
    # `tarfile` takes an archive that is cut off between two members for a whole one;
    # but that ends with empty blocks.
    end = start + -(-(end - start) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    file.seek(end)
    is_cut_off = size is not None and end + tarfile.BLOCKSIZE > start + size
    if is_cut_off or file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("unexpected end of data")
    by_name = {_normal(info.name): info for info in infos}
    members = []
    for info in infos:
        name, target = info.name.removeprefix("./"), _follow(info, by_name)
        is_read = is_image(name) or name.endswith(".tar")
        if is_read and printable(name) != name:
            raise DataError(
                f"the name of its member {printable(name)} is no text in UTF-8; unpack it, rename "
                "the file and make it anew.",
                path,
            )
        if target is None and is_read:
            raise DataError(
                f"its member {name!r} is a link to {info.linkname!r}, which the archive does not "
                "hold; unpack it, or make it anew.",
                path,
            )
        if target is not None and target.isfile():
            members.append(TarMember(name, target.offset_data, target.size))
    return members


def _normal(name: str) -> str:
    return posixpath.normpath(name)


def _follow(
    info: tarfile.TarInfo, by_name: dict[str, tarfile.TarInfo]
) -> Optional[tarfile.TarInfo]:
    """The member itself or the one that a link stands for; None if there is none."""
    seen = set()
    while info.issym() or info.islnk():
        # A hard link names its target from the archive's root, a symbolic one from its
        # own folder.
        folder = posixpath.dirname(info.name) if info.issym() else ""
        target = _normal(posixpath.join(folder, info.linkname))
        if target not in by_name or target in seen:
            return None
        seen.add(target)
        info = by_name[target]
    return info
