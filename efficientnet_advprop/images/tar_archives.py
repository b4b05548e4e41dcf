"""What an uncompressed tar archive holds and where, so that its members can be read in
place.

    for member in read_tar_index("imagenet-a.tar"):
        member.name, member.offset, member.size

A link within the archive, which `tar` writes for files that share their contents,
stands for the member that it points to. Of two members with one name the last one
holds, as `tar` itself unpacks them: `tar -r` puts a repaired file behind the others.
"""

import posixpath
import tarfile
from typing import BinaryIO, Mapping, NamedTuple, Optional

import tensorflow as tf

from efficientnet_advprop.data.image_formats import is_image
from efficientnet_advprop.runtime.errors import DataError
from efficientnet_advprop.runtime.files import printable


class TarMember(NamedTuple):
    """Where a file lies in an archive."""

    name: str
    offset: int
    size: int


def read_tar_index(path: str) -> list[TarMember]:
    """Lists the files in an uncompressed tar archive, in its order."""
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
    """Lists the files of the archive at the present position of an open file, with offsets
    from its beginning; an archive that is itself a member of another one has a `size`.
    """
    start = file.tell()
    with tarfile.open(fileobj=file, mode="r:") as archive:
        infos, end = [], start
        by_name: dict[str, tarfile.TarInfo] = {}
        hard: dict[int, Optional[tarfile.TarInfo]] = {}
        for info in archive:
            if info.issparse():
                raise DataError(
                    f"its member {info.name!r} is stored with holes (sparse) and cannot be read in "
                    "place; unpack it.",
                    path,
                )
            end = info.offset_data + (info.size if info.isfile() else 0)
            infos.append(info)
            if info.islnk():
                # It shares the contents that its target had then, whatever replaced that.
                hard[id(info)] = by_name.get(posixpath.normpath(info.linkname))
            by_name[posixpath.normpath(info.name)] = info
    # `tarfile` takes an archive that is cut off between two members for a whole one;
    # but that ends with empty blocks.
    end = start + -(-(end - start) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    file.seek(end)
    is_cut_off = size is not None and end + tarfile.BLOCKSIZE > start + size
    if is_cut_off or file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("unexpected end of data")
    members = []
    for info in infos:
        if by_name[posixpath.normpath(info.name)] is not info:
            continue
        name, target = info.name.removeprefix("./"), _follow(info, by_name, hard)
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


def _follow(
    info: tarfile.TarInfo,
    by_name: Mapping[str, tarfile.TarInfo],  # the last one of each name
    hard: Mapping[int, Optional[tarfile.TarInfo]],  # by `id`, what hard links stand for
) -> Optional[tarfile.TarInfo]:
    """Returns the member itself or the one that a link stands for; None if there is none."""
    seen = set()
    while info.issym() or info.islnk():
        if id(info) in seen:
            return None
        seen.add(id(info))
        # A symbolic link names its target from its own folder.
        path = posixpath.join(posixpath.dirname(info.name), info.linkname)
        target = by_name.get(posixpath.normpath(path)) if info.issym() else hard[id(info)]
        if target is None:
            return None
        info = target
    return info
