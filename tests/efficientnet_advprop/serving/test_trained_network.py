"""Which network a file holds, and which pre-processing goes with it."""

import json
import shutil

import numpy as np
import pytest

from efficientnet_advprop.config.experiment import ConfigError
from efficientnet_advprop.models import (
    CheckpointError,
    EfficientNet,
    load_weights,
    save_released_checkpoint,
)
from efficientnet_advprop.models.checkpoints.architecture import recognize
from efficientnet_advprop.models.checkpoints.published_checkpoints import PUBLISHED, find_published
from efficientnet_advprop.runtime.errors import UsageError
from efficientnet_advprop.serving.trained_network import restore_network
from efficientnet_advprop.training import build, checkpoints, run_directory
from tests.conftest import DATA, golden
from tests.efficientnet_advprop.training import tiny_run
from tests.released_format import (
    AVERAGE,
    full_images,
    official_logits,
    official_models,
    read_checkpoint,
    synthetic_values,
    write_checkpoint,
    write_full_checkpoint,
)

TINY = str(DATA / "tiny_ckpt")
BUCKET = "https://storage.googleapis.com/cloud-tpu-checkpoints/efficientnet"


def test_network_outside_of_the_table_is_built_from_its_shapes():
    with pytest.raises(ConfigError, match="`--kind` is missing.*advprop.noisystudent.*sat"):
        restore_network(TINY, image_size=64)
    network = restore_network(TINY, kind="advprop", image_size=64)
    wanted = golden("logits.npz")
    np.testing.assert_allclose(
        network.model(wanted["images_a"]), wanted["logits_a_ema_advprop"], rtol=0, atol=1e-4
    )
    assert (network.image_size, network.crop, network.published) == (64, "released", None)
    assert (
        "kind: advprop (given)" in network.description
        and "normalization advprop" in network.description
    )


def test_kind_chooses_the_normalization_and_can_be_overridden(tmp_path):
    shutil.copytree(TINY, tmp_path / "efficientnet-b0-advprop")  # anybody's name for it
    source = str(tmp_path / "efficientnet-b0-advprop")
    wanted = golden("logits.npz")
    network = restore_network(source, kind="autoaugment", use_ema=False)
    np.testing.assert_allclose(
        network.model(wanted["images_a"]), wanted["logits_a_raw_standard"], rtol=0, atol=1e-4
    )
    network = restore_network(source, normalization="advprop", crop="0.875")
    assert (network.model.normalization, network.crop, network.image_size) == (
        "advprop",
        "0.875",
        224,
    )


@pytest.mark.parametrize(
    "source, kind",
    [
        ("b3-advprop", "advprop"),
        # The published places, however they are written.
        (f"{BUCKET}/ckpts/efficientnet-b5.tar.gz", "baseline"),
        ("gs://cloud-tpu-checkpoints/efficientnet/ckptsaug/efficientnet-b0", "autoaugment"),
        ("gs://cloud-tpu-checkpoints/efficientnet/advprop/efficientnet-b8/model.ckpt", "advprop"),
        (f"{BUCKET}/noisystudent/noisy_student_efficientnet-l2_475.tar.gz", "noisystudent"),
        (f"{BUCKET}/ckpts/efficientnet-b1.tar.gz?alt=media".replace("https", "http"), "baseline"),
        # Any other name or place says nothing.
        ("/mnt/cloud-tpu-checkpoints/efficientnet/ckpts/efficientnet-b1", None),
        ("/data/noisy_student_efficientnet-b0/model.ckpt", None),
        ("/data/efficientnet-b5-randaug.tar.gz", None),
        ("https://example.com/advprop/efficientnet-b0.tar.gz", None),
        ("gs://bucket/advprop/efficientnet-b0", None),
        ("/data/b3-advprop", None),
    ],
)
def test_official_names_and_places(source, kind):
    found = find_published(source)
    assert (found.kind if found else None) == kind


def test_table_has_the_published_figures():
    assert len(PUBLISHED) == 9 + 10 + 2 + 8 + 6 + 5 + 3 + 3 + 10 + 23
    b8, l2 = PUBLISHED["b8-advprop"], PUBLISHED["l2_475-noisystudent"]
    assert (b8.top1, b8.normalization, b8.image_size) == (85.5, "advprop", 672)
    assert (l2.top1, l2.normalization, l2.image_size, l2.variant) == (88.2, "imagenet", 475, "l2")
    assert l2.address.endswith("noisystudent/noisy_student_efficientnet-l2_475.tar.gz")
    assert PUBLISHED["b7-randaugment"].address.endswith("randaug/efficientnet-b7-randaug.tar.gz")


@pytest.mark.parametrize("name", official_models())
def test_every_official_file_is_recognized_by_its_shapes(name):
    variables = official_models()[name]["variables"]
    shapes = {
        variable.split(":")[0].removeprefix(f"{name}/"): tuple(shape)
        for variable, shape, *_ in variables
        if variable.startswith(name)
    }
    architecture = recognize(shapes, shapes.get)
    assert str(architecture) == name and architecture.width_coefficient is None
    assert architecture.num_classes == (1001 if "edgetpu" in name else 1000)


def test_the_23_of_efficientnetv2_are_the_official_ones():
    facts, ways = golden("model_facts_v2.json.gz"), {"(x-128)/128": "v2", "(x/255": "advprop"}
    suffixes = {"imagenet": "", "imagenet21k": "-21k", "imagenet21k-ft1k": "-21k-ft1k"}
    rows = {row.address: row for row in PUBLISHED.values() if row.kind.startswith("v2")}
    assert len(facts["released"]) == len(rows) == 23
    for released in facts["released"]:
        row = rows[released["url"]]
        prepared = facts["models"][released["model"]]["eval_preprocessing"][released["weights"]]
        assert row.name == row.variant + suffixes[released["weights"]]
        assert released["model"] == f"efficientnet{row.variant}"
        assert row.image_size == prepared["image_size"]
        normalisation = prepared["normalisation"]
        assert row.normalization == next(
            (way for start, way in ways.items() if normalisation.startswith(start)), "imagenet"
        )
        of_v2 = "v2-ft" if prepared["crop"] == "none at any size" else "v2"
        assert row.crop == ("released" if "bicubic" in prepared["resize"] else of_v2)
        assert find_published(released["url"]) is row


def test_a_file_of_21k_is_known_by_its_classes(tmp_path):
    tensors = synthetic_values("v2-b0", "ema")
    head = "efficientnetv2-b0/head/dense"
    tensors[f"{head}/kernel"] = np.zeros([1280, 21843], np.float32)
    tensors[f"{head}/bias"] = np.zeros([21843], np.float32)
    network = restore_network(write_checkpoint(tmp_path / "model.ckpt", tensors))
    assert (network.image_size, network.crop, network.model.normalization) == (224, "v2", "v2")
    assert network.serving_resize == "bilinear"
    assert network.published is PUBLISHED["v2-b0-21k"] and "sigmoid" in network.description
    model = EfficientNet("v2-b0", num_classes=7, aux_branches=1)
    assert load_weights(model, str(tmp_path / "model.ckpt")).skipped  # the classifier is replaced


def test_efficientnetv2_as_its_graph_saves_it(tmp_path):
    """Averages, slots and a classifier whose scope is counted."""
    values = synthetic_values("v2-b0", "ema")
    rename = {name: name.replace("/head/dense/", "/head_1/dense/") for name in values}
    tensors = {}
    for name, value in values.items():
        tensors[rename[name]] = np.zeros_like(value)
        tensors[rename[name] + AVERAGE] = value
        tensors[rename[name] + "/RMSProp"] = tensors[rename[name] + "/RMSProp_1"] = value
    prefix = write_checkpoint(tmp_path / "model.ckpt", tensors)
    with pytest.raises(ConfigError, match="--kind=v2-b.v2-21k-ft1k, or"):
        restore_network(prefix)
    network = restore_network(prefix, kind="v2-b")
    config = network.model.get_config()
    assert (config["batch_norm_momentum"], network.crop) == (0.9, "released")
    key = "efficientnetv2-b0/96/ema/41"
    wanted = official_logits()[key]
    logits = network.model(full_images(96, 41))
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=2e-3 * np.abs(wanted).max())
    # What is written here keeps the pre-processing.
    released = str(tmp_path / "released" / "model.ckpt")
    save_released_checkpoint(
        network.model, released, preprocessing={"crop": "v2-ft", "image_size": 192}
    )
    again = restore_network(released)
    assert (again.crop, again.image_size, again.model.normalization) == ("v2-ft", 192, "imagenet")
    assert "efficientnetv2-b0/head/dense/kernel" in read_checkpoint(released)


def test_relatives_are_published_under_their_own_names():
    for name, folder, top1 in (
        ("lite0", "/lite", 75.1),
        ("lite4", "/lite", 81.5),
        ("edgetpu-S", "", 77.23),
        ("edgetpu-L", "", 80.62),
        ("condconv-b0-8e-depth", "/condconv", 79.5),
    ):
        row = PUBLISHED[name]
        assert row.address == f"{BUCKET}{folder}/efficientnet-{name}.tar.gz"
        assert (row.variant, row.normalization, row.crop, row.top1) == (name, "lite", "0.875", top1)


def test_a_file_of_lite_brings_its_own_pre_processing(tmp_path):
    prefix = write_full_checkpoint(tmp_path / "mine" / "model.ckpt", "lite0")
    network = restore_network(prefix)
    assert network.published is PUBLISHED["lite0"]
    assert (network.model.normalization, network.image_size) == ("lite", 224)
    assert (network.crop, network.serving_resize) == ("0.875", "bilinear")
    for words in ("efficientnet-lite0", "kind: lite (by", "bicubic (exports: bilinear)"):
        assert words in network.description
    key = "efficientnet-lite0/96/ema/21"
    wanted = official_logits()[key]
    logits = network.model(full_images(96, 21))
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=2e-3 * np.abs(wanted).max())
    with pytest.raises(ConfigError, match="`--kind` is 'advprop', but .*efficientnet-lite0"):
        restore_network(prefix, kind="advprop")


def test_arguments_that_do_not_go_together(tmp_path):
    for arguments in (
        {},
        {"checkpoint": TINY, "model_dir": "x"},
        {"model_dir": "x", "kind": "advprop"},
        {"model_dir": "x", "use_ema": False},
        {"checkpoint": TINY, "kind": "x"},
        {"checkpoint": TINY, "which": "last"},
        {"checkpoint": "x.keras", "use_ema": True},
    ):
        with pytest.raises(ConfigError, match="--checkpoint|--kind|--which|--use_ema"):
            restore_network(**arguments)
    with pytest.raises(ConfigError, match="`crop` is '2'"):
        restore_network(TINY, kind="advprop", crop="2")
    prefix = write_checkpoint(tmp_path / "model.ckpt", {"resnet/kernel": np.zeros(3, np.float32)})
    with pytest.raises(CheckpointError, match="another network altogether"):
        restore_network(prefix)


def test_class_names_come_from_the_run(tmp_path):
    """Through the checkpoint of a run, its release, and what an evaluation is told."""
    config = tiny_run.make_config("vanilla")
    names = ["1", "2", "Käfer", "10"]
    model_dir = tmp_path / "run [1]"
    run_directory.initialize_run_dir(str(model_dir), config, names)
    state = build.make_state(config)
    saved = checkpoints.Checkpoints(str(model_dir), state, keep_last=1)
    saved.save()
    saved.wait()

    network = restore_network(model_dir=str(model_dir))
    assert list(network.class_names) == names and "class names: " in network.description
    assert list(network.classifier().class_names) == names
    prefix = str(tmp_path / "released" / "model.ckpt")
    checkpoints.write_released_checkpoint(str(model_dir), prefix)
    assert list(restore_network(prefix).class_names) == names

    other = tmp_path / "other.txt"
    other.write_text(json.dumps({str(i): f"c{i}" for i in range(4)}))
    network = restore_network(prefix, labels_map_file=str(other))
    assert list(network.class_names) == ["c0", "c1", "c2", "c3"]
    other.write_text(json.dumps({str(i): f"c{i}" for i in range(5)}))
    with pytest.raises(UsageError, match="has 5 names, but the network has 4"):
        restore_network(prefix, labels_map_file=str(other))

    # A run that goes on with data of other classes is refused, with the first that
    # differs.
    run_directory.check_run_dir(str(model_dir), config, names)
    with pytest.raises(UsageError, match="class 1, '2' there and '3' here"):
        run_directory.check_run_dir(str(model_dir), config, ["1", "3", "Käfer", "10"])
