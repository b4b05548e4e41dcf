"""The labels map: what is written can be read, and what does not fit the network is refused."""

import json

import pytest

from efficientnet_advprop.data.class_names import (
    find_class_names,
    read_class_names,
    write_class_names,
)
from efficientnet_advprop.runtime.errors import UsageError


def test_names_are_kept(tmp_path):
    names = ["tench, Tinca tinca", "Käfer", '"quoted"', "crane", "crane"]
    assert find_class_names(str(tmp_path)) is None
    write_class_names(str(tmp_path), names)
    assert find_class_names(str(tmp_path)) == names
    table = json.loads((tmp_path / "labels_map.txt").read_text("utf-8"))
    assert table == {str(label): name for label, name in enumerate(names)}  # the official form


def test_order_and_byte_order_mark_do_not_matter(tmp_path):
    path = tmp_path / "map.txt"
    path.write_text('\ufeff{"1": "goldfish", "0": "tench"}', "utf-8")
    assert read_class_names(str(path), 2) == ["tench", "goldfish"]


@pytest.mark.parametrize(
    "content, num_classes, words",
    [
        # A background class first, as older networks have it, would shift every name by one.
        (json.dumps({str(i): "background" if i == 0 else f"c{i}" for i in range(11)}), 10,
         "has 11 names, but the network has 10 classes.*without a background"),
        ('{"0": "a"}', 2, "has 1 names, but the network has 2"),
        ('{"1": "a", "2": "b"}', 2, 'names a class .2., but labels run from "0" to "1"'),
        ('{"0": "a", "0": "b"}', 1, "names class '0' more than once"),
        ('{"0": 1}', 1, "another form"),
        ('{"0": null}', 1, "another form"),
        ('["a"]', 1, "another form"),
        ('[["0", "a"]]', 1, "another form"),
        ("{}", 1, "another form"),
        ("tench\ngoldfish\n", 2, "must be a JSON object"),
        ("", 2, "must be a JSON object"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(tmp_path, content, num_classes, words):
    path = tmp_path / "map.txt"
    path.write_text(content)
    with pytest.raises(UsageError, match=f"map.txt.*{words}") as error:
        read_class_names(str(path), num_classes)
    assert error.value.exit_code == 2


def test_what_is_no_text_or_not_there_is_refused(tmp_path):
    path = tmp_path / "map.txt"
    path.write_bytes('{"0": "é"}'.encode("latin-1"))
    for wrong in (path, tmp_path / "missing"):
        with pytest.raises(UsageError, match="must be a JSON object"):
            read_class_names(str(wrong), 1)
