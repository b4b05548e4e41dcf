"""The EfficientNets of Smooth Adversarial Training: the authors' code's numbers, by
name and by address.
"""

import dataclasses
import functools
import math
import re

import numpy as np
import pytest

from efficientnet_advprop.config.experiment import ConfigError
from efficientnet_advprop.models import (
    CheckpointError,
    EfficientNet,
    load_released_checkpoint,
    save_released_checkpoint,
    scaling,
)
from efficientnet_advprop.models.checkpoints import published_checkpoints
from efficientnet_advprop.models.checkpoints.architecture import recognize
from efficientnet_advprop.models.checkpoints.checkpoint_contents import read_contents
from efficientnet_advprop.models.checkpoints.checkpoint_sources import find_checkpoint
from efficientnet_advprop.models.checkpoints.checkpoint_summary import list_tensors
from efficientnet_advprop.models.checkpoints.published_checkpoints import PUBLISHED, find_published
from efficientnet_advprop.serving.trained_network import restore_network
from tests.conftest import DATA, golden, make_tiny
from tests.released_format import (
    AVERAGE,
    full_images,
    read_checkpoint,
    trained_value,
    write_checkpoint,
)
from tests.servers import serve

# Produced by cihangxie/SmoothAdversarialTraining, commit 988c080, as its published
# command runs it.
FACTS = golden("smooth_adversarial.json.gz")
OURS = {"efficientnet-b0": "b0", "efficientnet-b4": "b4", "efficientnet-bL1": "l1"}


def shapes_in_file(network: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape, _ in FACTS[network]["variables"]}


@functools.lru_cache(maxsize=1)
def official_values(network: str) -> dict[str, np.ndarray]:
    """What the authors' code had when it gave its logits, in the shapes of its evaluation graph."""
    shapes = shapes_in_file(network)
    statistics = golden("smooth_adversarial.npz")[f"statistics/{network}"].astype(np.float32)
    sizes = [shape[-1] if "moving_" in name else 0 for name, shape in shapes.items()]
    parts = np.split(statistics, np.cumsum(sizes)[:-1])
    return {
        name: part.reshape(shape) if part.size else trained_value(name, shape, "raw")
        for (name, shape), part in zip(shapes.items(), parts)
    }


@pytest.fixture(scope="module")
def b0_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drive") / "efficientnet-b0"
    return write_checkpoint(folder / "efficientnet-b0", official_values("efficientnet-b0"))


def assert_logits(model, network):
    wanted = golden("smooth_adversarial.npz")[f"logits/{network}"]
    logits = model(full_images(96, 21))
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=2e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("network, variant", OURS.items())
def test_every_block_and_coefficient_is_the_authors(network, variant):
    facts, row = FACTS[network], scaling.VARIANTS[variant]
    assert row == scaling.Scaling(
        facts["width_coefficient"],
        facts["depth_coefficient"],
        facts["resolution"],
        facts["dropout_rate"],
    )
    assert scaling.end_filters(row.design, row.width_coefficient) == (
        facts["stem_filters"],
        facts["head_filters"],
    )
    blocks = scaling.scaled_blocks(row.width_coefficient, row.depth_coefficient, 0.8)
    assert len(blocks) == facts["num_blocks"]
    for block, fact in zip(blocks, facts["blocks"]):
        for ours, official in (
            ("kernel_size", "kernel_size"),
            ("strides", "strides"),
            ("expand_ratio", "expand_ratio"),
            ("input_filters", "input_filters"),
            ("output_filters", "output_filters"),
            ("squeeze_filters", "se_reduced_filters"),
        ):
            assert getattr(block, ours) == fact[official], (ours, block, fact)
    kind = published_checkpoints.KINDS["sat"]
    assert kind.batch_norm_epsilon == facts["batch_norm_epsilon"]
    assert kind.batch_norm_momentum == facts["batch_norm_momentum"]


@pytest.mark.parametrize("network, variant", OURS.items())
def test_a_file_of_the_evaluation_graph_is_recognized_and_counted(network, variant):
    """Also L1's 272,630,564 parameters, without building them."""
    facts = FACTS[network]
    shapes = {
        name.removeprefix(f"{network}/"): tuple(shape[-1:] if len(shape) == 5 else shape)
        for name, shape, _ in facts["variables"]
    }
    architecture = recognize(shapes, shapes.get)
    assert str(architecture) == f"efficientnet-{variant}" and architecture.num_classes == 1000
    trained = sum(math.prod(shape) for _, shape, is_trained in facts["variables"] if is_trained)
    assert trained == facts["num_trainable_parameters"]
    assert FACTS["efficientnet-bL1"]["num_trainable_parameters"] == 272_630_564


def test_b0_gives_the_authors_logits(b0_file):
    contents = read_contents(b0_file)
    gamma = "efficientnet-b0/stem/tpu_batch_normalization/gamma"
    assert contents.has_grouped_norms and contents.shapes[gamma] == (32,)
    assert (gamma, "[1, 1, 1, 1, 32]", "plain weight") in list_tensors(contents)
    network = restore_network(b0_file)
    assert "kind: sat (by its name, address, network or form)" in network.description
    assert network.published is PUBLISHED["b0-sat"] and network.published.top1 == 65.2
    assert (network.image_size, network.crop) == (224, "released")
    config = network.model.get_config()
    assert (config["batch_norm_epsilon"], config["batch_norm_momentum"]) == (1e-5, 0.9)
    assert config["normalization"] == "advprop" and network.model.activation.name == "swish"
    count = sum(int(np.prod(v.shape)) for v in network.model.trainable_variables)
    assert count == FACTS["efficientnet-b0"]["num_trainable_parameters"] == 5_288_548
    assert_logits(network.model, "efficientnet-b0")


@pytest.mark.slow
def test_l1_gives_the_authors_logits():
    network = "efficientnet-bL1"
    model = EfficientNet("l1", aux_branches=0, batch_norm_epsilon=1e-5, name=network)
    count = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert count == FACTS[network]["num_trainable_parameters"]
    shapes = {variable.name.split(":")[0]: tuple(variable.shape) for variable in model.variables}
    values = official_values(network)
    assert shapes.keys() == values.keys()
    for variable in model.variables:
        name = variable.name.split(":")[0]
        variable.assign(values[name].reshape(shapes[name]))
    assert_logits(model, network)


def tiny_tensors(with_averages: bool) -> dict[str, np.ndarray]:
    tensors = {}
    for variable in make_tiny(aux_branches=0).variables:
        name = variable.name.split(":")[0]
        is_norm = "batch_normalization" in name
        shape = [1, 1, 1, 1, *variable.shape] if is_norm else list(variable.shape)
        tensors[name] = np.full(shape, 0.25, np.float32)
        if with_averages:
            tensors[name + AVERAGE] = np.full(shape, 0.5, np.float32)
    return tensors


@pytest.mark.parametrize("use_ema, wanted", [(None, 0.25), (True, 0.5)])
def test_plain_weights_unless_asked(tmp_path, use_ema, wanted):
    """The published figures of all but L1-Enhanced are those of plain weights."""
    source = write_checkpoint(tmp_path / "model.ckpt", tiny_tensors(with_averages=True))
    model = make_tiny(aux_branches=1)
    report = load_released_checkpoint(model, source, use_ema=use_ema)
    assert report.weights == ("averaged" if wanted == 0.5 else "plain")
    for variable in model.variables:
        assert np.all(variable.numpy() == wanted), variable.name
    restored = restore_network(source, use_ema=use_ema, image_size=64)
    assert all(np.all(variable.numpy() == wanted) for variable in restored.model.variables)


def test_written_again_the_batch_norms_are_vectors(tmp_path):
    source = write_checkpoint(tmp_path / "a" / "model.ckpt", tiny_tensors(with_averages=False))
    model = restore_network(source, image_size=64).model
    prefix = str(tmp_path / "b" / "model.ckpt")
    save_released_checkpoint(model, prefix)
    assert not read_contents(prefix).has_grouped_norms
    gamma = "efficientnet-b0/stem/tpu_batch_normalization/gamma"
    assert read_checkpoint(prefix)[gamma].shape == (8,)
    again = restore_network(prefix, image_size=64)  # nothing in the file itself says ε
    assert again.model.get_config()["batch_norm_epsilon"] == 1e-5


def test_another_kind_than_the_shapes_say_is_refused(b0_file):
    with pytest.raises(ConfigError, match=r"`--kind` is 'advprop', but .*\[1, 1, 1, 1, C\].*sat"):
        restore_network(b0_file, kind="advprop")


@pytest.mark.parametrize(
    "source, name",
    [
        ("b0-sat", "b0-sat"),
        ("https://drive.google.com/uc?id=1NVEtGO0l15r2Dc5FBzOKlWr2lqJ11WQD", "b0-sat"),
        (
            "https://drive.google.com/file/d/1CJvhOkKaEaPvNqe_ZZelsMzJpuitysAv/view",
            "l1_enhanced-sat",
        ),
        (
            "https://drive.usercontent.google.com/download?id=1MZr3Vx1E7qICamwpV_CFs1i2BZ40O6oq&confirm=t",
            "l1-sat",
        ),
        ("https://drive.google.com/uc?id=another", None),
    ],
)
def test_found_by_name_and_by_address(source, name):
    assert find_published(source) is (None if name is None else PUBLISHED[name])


def test_table_has_the_published_figures():
    rows = [row for row in PUBLISHED.values() if row.kind == "sat"]
    assert [row.top1 for row in rows] == [
        *(65.2, 68.6, 70.3, 73.1, 75.9, 77.8, 79.2, 79.8),
        *(80.7, 82.2),
    ]
    assert [row.image_size for row in rows[-2:]] == [600, 600]
    assert [row.use_ema for row in rows] == [False] * 9 + [True]
    assert len({address for row in rows for address in row.files.values()}) == 20


def test_single_files_are_downloaded_once(tmp_path, monkeypatch):
    source = write_checkpoint(tmp_path / "a" / "x", tiny_tensors(with_averages=False))
    suffixes = (".data-00000-of-00001", ".index")
    files = {suffix: open(source + suffix, "rb").read() for suffix in suffixes}
    cache = str(tmp_path / "cache")

    def publish(address):
        row = dataclasses.replace(
            PUBLISHED["b0-sat"], files={suffix: address + suffix for suffix in suffixes}
        )
        monkeypatch.setitem(PUBLISHED, "b0-sat", row)

    with serve(files) as (address, _):
        publish(address)
        prefix = find_checkpoint("b0-sat", cache)
    assert find_checkpoint("b0-sat", cache) == prefix  # without the server
    for name, value in read_checkpoint(source).items():
        np.testing.assert_array_equal(read_checkpoint(prefix)[name], value)
    with serve(files, content_type="text/html; charset=utf-8") as (address, _):
        publish(address)
        with pytest.raises(CheckpointError, match="'b0-sat': .* answers with a page.*one folder"):
            find_checkpoint("b0-sat", str(tmp_path / "other"))
    assert not list((tmp_path / "other").iterdir())
    with serve({**files, ".index": files[".index"][:-9]}) as (address, _):
        publish(address)
        with pytest.raises(CheckpointError, match="b0-sat|cannot be read"):
            find_checkpoint("b0-sat", str(tmp_path / "other"))
    assert not list((tmp_path / "other").iterdir())


def test_a_released_checkpoint_of_ours_brings_its_activation(tmp_path):
    """By the file beside it, and, of a trained α, by its tensors."""
    images = full_images(64, 3)
    model = make_tiny(
        aux_branches=0, activation="smooth_relu", activation_alpha=9.0, normalization="imagenet"
    )
    for variable in model.variables:
        if "root_of_alpha" in variable.name:
            variable.assign(2.0)
    prefix = str(tmp_path / "efficientnet-b0" / "model.ckpt")
    save_released_checkpoint(model, prefix)
    restored = restore_network(prefix, image_size=64).model
    assert restored.activation.name == "smooth_relu" and restored.normalization == "imagenet"
    np.testing.assert_allclose(restored(images), model(images), rtol=1e-5, atol=1e-5)
    with pytest.raises(CheckpointError, match="`activation` is 'swish', not 'smooth_relu'"):
        load_released_checkpoint(make_tiny(aux_branches=0), prefix)
    settings = tmp_path / "efficientnet-b0" / "model.ckpt.settings.json"
    settings.unlink()
    restored = restore_network(prefix, image_size=64, normalization="imagenet").model
    np.testing.assert_allclose(restored(images), model(images), rtol=1e-5, atol=1e-5)
    for text in ("{", "[]", '{"x": 1}', '{"activation": "mish"}', '{"batch_norm_epsilon": "1"}'):
        settings.write_text(text)
        with pytest.raises(CheckpointError, match="settings.json', which says what network"):
            restore_network(prefix, image_size=64)


def test_the_page_has_the_table():
    page = (DATA.parents[1] / "docs/adversarial_training.md").read_text()
    rows = re.findall(r"^\| `(\w+-sat)` \| ([\d.]+) \| (\d+) \| (plain|averages) \|$", page, re.M)
    assert rows == [
        (row.name, str(row.top1), str(row.image_size), "averages" if row.use_ema else "plain")
        for row in PUBLISHED.values()
        if row.kind == "sat"
    ]
