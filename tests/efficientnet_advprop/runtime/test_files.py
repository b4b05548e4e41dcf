"""What folders hold, paths that look like patterns, durations in words."""

import json
import os

import pytest

from efficientnet_advprop.runtime import files


def test_json_holds_no_nan_and_no_infinity():
    value = {"a": [float("nan"), (1.5, float("inf"))], "ä": {"b": -float("inf")}, "n": None}
    text = files.to_json(value)
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": [None, [1.5, None]], "ä": {"b": None}, "n": None,
    }  # fmt: skip


@pytest.mark.parametrize("folder", ["run [1]", "a*b", "c?", "d\\e"])
def test_a_path_that_looks_like_a_pattern(tmp_path, folder):
    (tmp_path / folder).mkdir()
    for name in ("ckpt-1.index", "ckpt-1.data-00000-of-00001", "ckpt-10.index"):
        (tmp_path / folder / name).write_text(name)
    prefix = files.without_pattern(str(tmp_path / folder / "ckpt-1"))
    assert not set(prefix) & set("*?[\\")
    held = [name for name in os.listdir(os.path.dirname(prefix))]
    assert sorted(held) == ["files.data-00000-of-00001", "files.index"]
    with open(f"{prefix}.index") as file:
        assert file.read() == "ckpt-1.index"
    directory = files.without_pattern(str(tmp_path / folder))
    assert sorted(os.listdir(directory)) == sorted(os.listdir(tmp_path / folder))
    missing = str(tmp_path / folder / "other")
    assert files.without_pattern(missing) == missing  # so that messages name it
    assert files.without_pattern("gs://a/[b]") == "gs://a/[b]"


def test_names_that_are_no_text_are_listed(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb"):
        pass
    (tmp_path / "folder").mkdir()
    names = files.list_folder(str(tmp_path))
    assert [files.printable(name) for name in names] == ["caf\\xe9.png", "folder"]
    assert files.printable("Käfer") == "Käfer"


@pytest.mark.parametrize(
    "seconds, text",
    [(0.4, "0 s"), (59, "59 s"), (60, "1 min 00 s"), (3599.9, "1 h 00 min"), (11220, "3 h 07 min")],
)
def test_durations(seconds, text):
    assert files.format_duration(seconds) == text
