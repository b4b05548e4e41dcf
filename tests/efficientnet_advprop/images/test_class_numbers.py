"""Which number a class folder has: for a new data set, and for a network that has its own."""

import pytest

from efficientnet_advprop.data.records import DataError
from efficientnet_advprop.images.class_numbers import imagenet_ids, match_classes, number_classes


@pytest.mark.parametrize(
    "folders, classes",
    [
        (["b", "a", "C"], ["C", "a", "b"]),
        (["10", "9", "1", "2"], ["1", "2", "9", "10"]),
        (["007", "10", "08"], ["007", "08", "10"]),
        (["10", "9", "x"], ["10", "9", "x"]),  # not all are numbers: as text
        (["a\u0308", "z"], ["z", "\u00e4"]),  # macOS's spelling of "ä"
    ],
)
def test_a_new_data_set_is_numbered_by_name(folders, classes):
    assert number_classes(folders, "here") == classes


@pytest.mark.parametrize("folders", [["1", "01"], ["a\u0308", "\u00e4"]])
def test_two_folders_of_one_class_are_refused(folders):
    with pytest.raises(DataError, match="several folders for one class"):
        number_classes(folders, "here")


IDS = ["n01440764", "n02099601", "n15075141"]  # tench, golden retriever, toilet tissue


@pytest.mark.parametrize(
    "folders, num_classes, names, labels",
    [
        (["b", "a"], 2, None, [1, 0]),
        (["10", *map(str, range(10))], 11, None, [10, *range(10)]),
        (["00", "01", "10", *(f"0{i}" for i in range(2, 10))], 11, None, [0, 1, 10, *range(2, 10)]),
        (IDS, 1000, None, [0, 207, 999]),
        (IDS, 3, None, [0, 1, 2]),
        (["cat", "ant"], 3, ["dog", "cat", "ant"], [1, 2]),  # by name, though some are missing
        (["2", "1"], 2, ["2", "1"], [0, 1]),  # the network's own order
        (["1", "2", "3"], 3, ["1", "2", "3"], [0, 1, 2]),
        (["a\u0308"], 2, ["b", "\u00e4"], [1]),
        (["1", "0"], 2, ["cat", "dog"], [1, 0]),  # labels, since no class has such a name
        (IDS, 1000, ["tench, Tinca tinca"] * 1000, [0, 207, 999]),
    ],
)
def test_the_classes_of_a_network(folders, num_classes, names, labels):
    assert match_classes(folders, "here", num_classes, names) == dict(zip(folders, labels))


@pytest.mark.parametrize(
    "folders, num_classes, names, words",
    [
        (["1", "2", "3"], 3, None, "named by numbers, 1 to 3, but the labels .* are 0 to 2"),
        ([str(i + 1) for i in range(1000)], 1000, None, "1 to 1000, but .* 0 to 999"),
        (["0", "2"], 2, None, "named by numbers"),
        (["0", "1"], 2, ["1", "2"], "holds 0, which is no class of the network: 1, 2"),
        (["a", "x"], 2, ["a", "b"], "holds x, which is no class of the network: a, b"),
        (["a"], 2, ["a", "a"], "holds a, which is no class"),  # which of the two?
        (["a", "b"], 3, None, "2 folders, but the network has 3"),
        (["a", IDS[0]], 1000, None, "2 folders, but the network has 1000"),
        (["n99999999", IDS[0]], 1000, None, "n99999999, which is none of ImageNet's"),
        ([], 2, None, "no folders"),
    ],
)
def test_where_there_is_no_telling(folders, num_classes, names, words):
    with pytest.raises(DataError, match=words):
        match_classes(folders, "here", num_classes, names)


def test_ids_are_those_of_tfds():
    tfds = pytest.importorskip("tensorflow_datasets")
    # The same classes, in another order.
    path = tfds.core.tfds_path("image_classification/imagenet_resized_labels.txt")
    assert sorted(imagenet_ids()) == sorted(path.read_text().split())
    assert len(set(imagenet_ids())) == 1000
