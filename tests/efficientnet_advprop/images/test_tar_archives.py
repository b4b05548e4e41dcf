"""Members of tar archives, links among them."""

import io
import tarfile

import pytest

from efficientnet_advprop.data.records import DataError
from efficientnet_advprop.images.tar_archives import index_members, read_tar_index


def add(archive, name, contents=b"", kind=tarfile.REGTYPE, target=""):
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(contents), kind, target
    archive.addfile(member, io.BytesIO(contents))


def read(path):
    with open(path, "rb") as file:
        found = {}
        for member in read_tar_index(str(path)):
            file.seek(member.offset)
            found[member.name] = file.read(member.size)
    return found


def test_links_are_the_files_that_they_stand_for(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        add(archive, "./c/1.png", b"one")
        add(archive, "./c/2.png", kind=tarfile.LNKTYPE, target="./c/1.png")
        add(archive, "d/3.png", kind=tarfile.LNKTYPE, target="c/2.png")  # a link to a link
        add(archive, "d/4.png", kind=tarfile.SYMTYPE, target="../c/1.png")
        add(archive, "d/5.png", b"five")
        add(archive, "e", kind=tarfile.DIRTYPE)
        add(archive, "f", kind=tarfile.SYMTYPE, target="e")  # to a folder
        add(archive, "README", kind=tarfile.SYMTYPE, target="/usr/share/readme")  # no image
    names = ["c/1.png", "c/2.png", "d/3.png", "d/4.png"]
    assert read(path) == {**dict.fromkeys(names, b"one"), "d/5.png": b"five"}


def test_of_two_members_with_one_name_the_last_holds(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        add(archive, "./c/1.png", b"one")
        add(archive, "c/2.png", b"two")
        add(archive, "c/hard.png", kind=tarfile.LNKTYPE, target="c/1.png")
        add(archive, "c/soft.png", kind=tarfile.SYMTYPE, target="1.png")
    with tarfile.open(path, "a") as archive:
        add(archive, "c/1.png", b"repaired")
    assert read(path) == {
        "c/2.png": b"two",
        "c/hard.png": b"one",  # shares what the other was then
        "c/soft.png": b"repaired",
        "c/1.png": b"repaired",
    }
    assert len(read_tar_index(str(path))) == 4


@pytest.mark.parametrize("target", ["c/9.png", "c/2.png", "/etc/passwd"])
def test_a_link_to_nothing_is_named(tmp_path, target):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "c/2.png", kind=tarfile.LNKTYPE, target=target)
    with pytest.raises(DataError, match="a.tar: its member 'c/2.png' is a link to"):
        read_tar_index(str(tmp_path / "a.tar"))


def test_an_archive_in_an_archive(tmp_path):
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as archive:
        add(archive, "1.png", b"one")
        add(archive, "2.png", kind=tarfile.LNKTYPE, target="1.png")
    contents = inner.getvalue()
    with tarfile.open(tmp_path / "outer.tar", "w") as archive:
        add(archive, "a.tar", contents)
        add(archive, "cut.tar", contents[: 2 * tarfile.BLOCKSIZE])
    members = {member.name: member for member in read_tar_index(str(tmp_path / "outer.tar"))}
    with open(tmp_path / "outer.tar", "rb") as file:
        file.seek(members["a.tar"].offset)
        found = index_members(file, "outer.tar", members["a.tar"].size)
        for member in found:
            file.seek(member.offset)
            assert file.read(member.size) == b"one"
        assert [member.name for member in found] == ["1.png", "2.png"]
        file.seek(members["cut.tar"].offset)
        with pytest.raises((tarfile.ReadError, DataError)):
            index_members(file, "outer.tar", members["cut.tar"].size)
