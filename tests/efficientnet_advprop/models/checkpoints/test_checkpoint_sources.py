"""Where checkpoints come from: directories, prefixes, archives, servers; and archives
that are not to be trusted.
"""

import dataclasses
import hashlib
import io
import os
import shutil
import tarfile

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from efficientnet_advprop.models import CheckpointError
from efficientnet_advprop.models.checkpoints import published_checkpoints
from efficientnet_advprop.models.checkpoints.checkpoint_sources import (
    find_checkpoint,
    open_checkpoint,
    verify,
)
from efficientnet_advprop.runtime.files import without_pattern
from tests.conftest import DATA
from tests.servers import serve

TINY = DATA / "tiny_ckpt"
BASE = "model.ckpt-1234"


def write_archive(path, members) -> bytes:
    """A .tar.gz of (name, bytes or a prepared TarInfo)."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path.read_bytes()


@pytest.fixture(scope="module")
def members():
    return [
        (f"efficientnet-b0/{name}", (TINY / name).read_bytes()) for name in sorted(os.listdir(TINY))
    ]


@pytest.fixture
def archive(tmp_path, members):
    path = tmp_path / "efficientnet-b0.tar.gz"
    write_archive(path, [("efficientnet-b0/model.ckpt.meta", b"a graph"), *members])
    return path


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache")


def entries(cache):
    return os.listdir(cache) if os.path.isdir(cache) else []


@pytest.mark.parametrize(
    "source", [TINY, TINY / BASE, TINY / f"{BASE}.index", TINY / f"{BASE}.data-00000-of-00001"]
)
def test_directories_and_prefixes(source):
    assert find_checkpoint(str(source)) == str(TINY / BASE)


def folder_with(path, *names, state=None):
    path.mkdir(exist_ok=True)
    for name in names:
        (path / f"{name}.index").touch()
    if state is not None:
        (path / "checkpoint").write_bytes(state)
    return str(path)


@pytest.mark.parametrize(
    "state", [b'model_checkpoint_path: "other"\n', b"", b"\xff\xfe", b"nonsense"]
)
def test_a_state_file_names_the_checkpoint_or_is_refused(tmp_path, state):
    folder = folder_with(tmp_path, "model.ckpt-100", state=state)
    with pytest.raises(CheckpointError, match="`checkpoint` names (other|none)") as error:
        find_checkpoint(folder)
    assert f"{folder}/model.ckpt-100" in str(error.value)
    assert find_checkpoint(f"{folder}/model.ckpt-100") == f"{folder}/model.ckpt-100"


def test_state_file_from_elsewhere_chooses_among_several(tmp_path):
    for name in ("model.ckpt-1", "model.ckpt-2"):
        (tmp_path / f"{name}.index").touch()
    with pytest.raises(CheckpointError, match="holds model.ckpt-1, model.ckpt-2, but"):
        find_checkpoint(str(tmp_path))
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/cns/somebody/model.ckpt-2"\n')
    assert find_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-2")


def test_remote_file_systems(tmp_path):
    tf.raw_ops.SaveV2(
        prefix="ram://bucket/1/model.ckpt",
        tensor_names=["a"],
        shape_and_slices=[""],
        tensors=[tf.ones([3])],
    )
    prefix = find_checkpoint("ram://bucket/1")
    assert prefix == "ram://bucket/1/model.ckpt"
    verify(prefix)


@pytest.mark.parametrize(
    "source", ["b3-advprp", "", "/no/such/directory", "https://127.0.0.1/efficientnet-b0"]
)
def test_sources_that_are_not_there(source, cache):
    with pytest.raises(CheckpointError, match="`source`"):
        find_checkpoint(source, cache)


def test_archive_is_unpacked_once(archive, cache):
    prefix = find_checkpoint(str(archive), cache)
    assert os.path.basename(prefix) == BASE and prefix.startswith(cache)
    for name in os.listdir(TINY):
        assert (
            open(os.path.join(os.path.dirname(prefix), name), "rb").read()
            == (TINY / name).read_bytes()
        )
    assert not os.path.exists(os.path.join(os.path.dirname(prefix), "model.ckpt.meta"))
    os.utime(prefix + ".index", (1, 1))
    assert find_checkpoint(str(archive), cache) == prefix
    assert os.stat(prefix + ".index").st_mtime == 1


def test_archive_on_a_remote_file_system(archive, cache):
    with tf.io.gfile.GFile("ram://archives/b0.tar.gz", "wb") as file:
        file.write(archive.read_bytes())
    verify(find_checkpoint("ram://archives/b0.tar.gz", cache))


def test_download_is_cached(archive, cache):
    with serve(archive.read_bytes()) as (address, requests):
        prefix = find_checkpoint(address, cache)
        assert find_checkpoint(address, cache) == prefix and len(requests) == 1
    assert find_checkpoint(address, cache) == prefix  # without the server


@pytest.mark.parametrize("cut", [100, 0.5, -30, -5])
def test_truncated_download_leaves_nothing_behind(archive, cache, cut):
    body = archive.read_bytes()
    part = body[: int(cut * len(body)) if isinstance(cut, float) else cut]
    for announced in (len(body), len(part)):
        with (
            serve(part, announced=announced) as (address, _),
            pytest.raises(CheckpointError, match="truncated or damaged"),
        ):
            find_checkpoint(address, cache)
        assert not entries(cache)


def test_answers_other_than_a_file(cache):
    with serve(b"no", status=404) as (address, _), pytest.raises(CheckpointError, match="404"):
        find_checkpoint(address, cache)
    with pytest.raises(CheckpointError, match="does not answer"):
        find_checkpoint(address, cache)  # the server is gone
    with (
        serve(b"<html>not an archive</html>") as (address, _),
        pytest.raises(CheckpointError, match="truncated or damaged"),
    ):
        find_checkpoint(address, cache)
    assert not entries(cache)


def test_flipped_bit_is_noticed(archive, cache):
    body = bytearray(archive.read_bytes())
    body[len(body) // 2] ^= 4
    archive.write_bytes(body)
    with pytest.raises(CheckpointError, match="damaged"):
        find_checkpoint(str(archive), cache)
    assert not entries(cache)


def test_damage_from_before_packing_is_noticed(tmp_path, cache, members):
    damaged = [
        (name, content[:-1] + b"x" if ".data-" in name else content) for name, content in members
    ]
    write_archive(tmp_path / "x.tar.gz", damaged)
    with pytest.raises(CheckpointError, match="is damaged; these tensors cannot be read: "):
        find_checkpoint(str(tmp_path / "x.tar.gz"), cache)
    without_data = [(name, content) for name, content in members if ".data-" not in name]
    write_archive(tmp_path / "y.tar.gz", without_data)
    with pytest.raises(CheckpointError, match="data-00000-of-00001 is missing"):
        find_checkpoint(str(tmp_path / "y.tar.gz"), cache)
    assert not entries(cache)


@pytest.mark.parametrize(
    "name", ["../outside.index", "/tmp/outside.index", "a/../../outside.index", "..\\outside.index"]
)
def test_archive_that_leads_out_of_itself(tmp_path, cache, members, name):
    write_archive(tmp_path / "x.tar.gz", [*members, (name, b"x")])
    with pytest.raises(CheckpointError, match="leads out of it"):
        find_checkpoint(str(tmp_path / "x.tar.gz"), cache)
    assert not entries(cache) and not (tmp_path / "outside.index").exists()


def test_links_are_not_followed(tmp_path, cache, members):
    link = tarfile.TarInfo("efficientnet-b0/evil.index")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    write_archive(tmp_path / "x.tar.gz", [("", link), *members])
    prefix = find_checkpoint(str(tmp_path / "x.tar.gz"), cache)
    assert "evil.index" not in os.listdir(os.path.dirname(prefix))


def test_archive_of_none_or_several(tmp_path, cache, members):
    write_archive(tmp_path / "none.tar.gz", [("readme.txt", b"x")])
    with pytest.raises(CheckpointError, match="holds none"):
        find_checkpoint(str(tmp_path / "none.tar.gz"), cache)
    write_archive(
        tmp_path / "two.tar.gz",
        [*members, *((name.replace("b0", "b1"), content) for name, content in members)],
    )
    with pytest.raises(CheckpointError, match="several, in efficientnet-b0, efficientnet-b1"):
        find_checkpoint(str(tmp_path / "two.tar.gz"), cache)


def test_no_room(archive, cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(CheckpointError, match="make room"):
        find_checkpoint(str(archive), cache)
    assert not entries(cache)


@pytest.mark.parametrize("name", ["run[1] *?", "ein Lauf (ä) [zwei]"])
def test_a_path_that_tensorflow_takes_for_a_pattern(name, tmp_path):
    shutil.copytree(TINY, tmp_path / name)
    prefix = find_checkpoint(str(tmp_path / name))
    verify(prefix)
    tensor = "efficientnet-b0/stem/conv2d/kernel"
    wanted = tf.train.load_checkpoint(without_pattern(str(TINY))).get_tensor(tensor)
    np.testing.assert_array_equal(open_checkpoint(prefix).get_tensor(tensor), wanted)
    with open(f"{prefix}.index", "wb") as file:
        file.write(b"no index")
    with pytest.raises(CheckpointError, match="seems damaged"):
        open_checkpoint(prefix)


def test_a_name_beside_it_that_is_no_text(tmp_path):
    shutil.copytree(TINY, tmp_path / "run")
    with open(os.fsencode(tmp_path / "run") + b"/caf\xe9", "wb"):
        pass
    verify(find_checkpoint(str(tmp_path / "run")))


@pytest.mark.parametrize(
    "source, wanted",
    [
        ("b3_advprop", "'b3-advprop'"),
        ("B3-AdvProp", "'b3-advprop'"),
        ("efficientnet-b3-advprop", "'b3-advprop'"),
        ("edgetpu-s", "'edgetpu-S'"),
        ("l2-475-noisystudent", "'l2_475-noisystudent'"),
    ],
)
def test_a_similar_name_is_offered(source, wanted):
    with pytest.raises(CheckpointError, match=f"did you mean .*{wanted}"):
        find_checkpoint(source)


def test_a_folder_called_like_a_published_checkpoint(tmp_path, monkeypatch):
    """Either may be meant: neither is taken in silence."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(TINY, "lite0")
    shutil.copy(TINY / f"{BASE}.index", "b3-advprop.index")
    for name in ("lite0", "b3-advprop"):
        with pytest.raises(CheckpointError, match=rf"'\./{name}'.*storage.googleapis.com"):
            find_checkpoint(name)
    assert find_checkpoint("./lite0") == f"./lite0/{BASE}"


@pytest.mark.parametrize(
    "contents, is_known",
    [(b"\x89HDF\r\n\x1a\n", True), (b"\x10\0\0\0\0\0\0\0{}", True), (b"x", False)],
)
def test_files_of_other_libraries_are_told_by_their_first_bytes(tmp_path, contents, is_known):
    path = tmp_path / "model.pth"
    path.write_bytes(contents)
    if is_known:
        assert find_checkpoint(str(path)) == str(path)
        path.rename(tmp_path / "the only one.h5")
        assert find_checkpoint(str(tmp_path)) == str(tmp_path / "the only one.h5")
        return
    with pytest.raises(CheckpointError, match="model.pth.*damaged or of another format"):
        find_checkpoint(str(path))


def test_downloaded_files_have_their_length_and_the_hash_of_their_name(cache):
    body = safetensors.numpy.save({"x": np.zeros(3, np.float32)})
    right, wrong = hashlib.sha256(body).hexdigest()[:8], "0" * 8

    def fetch(hexadecimal, **answer):
        with serve(**{"body": body, **answer}) as (address, _):
            name = f"tf_efficientnet_b0_ap-{hexadecimal}.safetensors"
            return find_checkpoint(f"{os.path.dirname(address)}/{name}", cache)

    for arguments in ((wrong, {}), (right, {"body": body[:-1]}), (right, {"announced": 999})):
        with pytest.raises(CheckpointError):
            fetch(arguments[0], **arguments[1])
        assert not entries(cache)
    assert open(fetch(right), "rb").read() == body


def test_where_an_address_fails_a_mirror_is_named(cache, monkeypatch):
    row = published_checkpoints.PUBLISHED["b3-advprop"]
    with serve(b"no", status=404) as (address, _):
        monkeypatch.setitem(
            published_checkpoints.PUBLISHED, row.name, dataclasses.replace(row, address=address)
        )
        with pytest.raises(CheckpointError, match="404.*hf://timm/tf_efficientnet_b3.ap_in1k"):
            find_checkpoint(row.name, cache)


def test_a_member_that_is_there_twice(tmp_path, cache, members):
    """As `tar --append` makes it: the last one holds."""
    stale = [(name, b"stale") for name, _ in members]
    write_archive(tmp_path / "x.tar.gz", [*stale, *members])
    verify(find_checkpoint(str(tmp_path / "x.tar.gz"), cache))


def test_a_proxy_is_not_asked_for_this_machine(archive, cache, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serve(archive.read_bytes()) as (address, _):
        assert find_checkpoint(address.replace("127.0.0.1", "localhost"), cache)
    with pytest.raises(CheckpointError, match="127.0.0.1:9"):
        find_checkpoint("http://example.invalid/x.tar.gz", cache)


@pytest.mark.parametrize("inside", ["", "/", "/checkpoints", "/best/", "/checkpoints/ckpt-200"])
def test_the_folder_of_a_run_is_no_released_checkpoint(tmp_path, inside):
    run = tmp_path / "b3"
    for part in ("", "checkpoints", "best"):
        folder_with(run / part, *(["ckpt-200"] if part else []))
    (run / "config.json").write_text("{}")
    with pytest.raises(CheckpointError) as error:
        find_checkpoint(f"{run}{inside}")
    assert "belongs to a training run" in str(error.value)
    assert f"release --model_dir={run} --output=PREFIX" in str(error.value)


def test_a_released_checkpoint_below_a_run_is_one(tmp_path):
    run = tmp_path / "b3"
    folder_with(run, "model.ckpt")
    folder_with(run / "checkpoints", "ckpt-200")
    (run / "config.json").write_text("{}")
    assert find_checkpoint(str(run)) == f"{run}/model.ckpt"
    assert (
        find_checkpoint(folder_with(run / "released", "model.ckpt")) == f"{run}/released/model.ckpt"
    )
