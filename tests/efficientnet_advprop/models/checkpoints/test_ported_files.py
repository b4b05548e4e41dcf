"""timm's and Keras's files, read and written: against the libraries' own logits, and around.

`timm_tiny.npz` is a small random `tf_efficientnet` of timm 1.0.31 with its logits.
"""

import dataclasses
import functools
import json
import os

import h5py
import numpy as np
import pytest
import safetensors.numpy

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import CheckpointError, EfficientNet, load_weights
from efficientnet_advprop.models.checkpoints import hub
from efficientnet_advprop.models.checkpoints.keras_weights import keras_function, write_keras_file
from efficientnet_advprop.models.checkpoints.published_checkpoints import PUBLISHED
from efficientnet_advprop.models.checkpoints.timm_weights import CONFIG, write_timm_files
from efficientnet_advprop.models.checkpoints.weight_loading import read_checkpoint
from efficientnet_advprop.serving import releasing
from efficientnet_advprop.serving.trained_network import restore_network
from tests.conftest import golden, make_tiny
from tests.servers import make_hub

# Small networks of each kind of block.
SIZES = {
    "b0": (0.25, 0.3),
    "v2-b0": (0.25, 0.5),
    "lite0": (0.1, 0.3),
    "edgetpu-S": (0.1, 0.3),
    "condconv-b0-4e": (0.1, 0.3),
}
PREPARED = dict(image_size=64, crop="released")


@functools.lru_cache(maxsize=None)
def small(variant, normalization="advprop"):
    width, depth = SIZES[variant]
    model = EfficientNet(
        variant,
        num_classes=10,
        aux_branches=0,
        width_coefficient=width,
        depth_coefficient=depth,
        normalization=normalization,
    )
    random = np.random.default_rng(0)
    for variable in model.variables:
        scale = 1 / np.sqrt(np.prod(variable.shape[:-1])) if "kernel" in variable.name else 0.3
        centre = 1.0 if "gamma" in variable.name or "variance" in variable.name else 0.0
        low, high = (centre - scale, centre + scale)
        variable.assign(random.uniform(low, high, variable.shape).astype(np.float32))
    return model


def write(library, model, folder):
    if library == "timm":
        file = str(folder / "model.safetensors")
        write_timm_files(model, file, **PREPARED, crop_fraction=2 / 3, resize="bicubic")
    else:
        file = str(folder / "model.weights.h5")
        write_keras_file(model, file, **PREPARED)
    return file


def keras_model(variant, **arguments):
    """Keras's own network of the size, from the module that its public functions call."""
    width, depth = SIZES[variant]
    module = __import__(
        f"{keras.Model.__module__.split('.')[0]}.src.applications."
        f"{'efficientnet_v2' if variant.startswith('v2') else 'efficientnet'}",
        fromlist=["x"],
    )
    sizes = dict(width_coefficient=width, depth_coefficient=depth, default_size=64)
    if variant.startswith("v2"):
        sizes |= {"model_name": "efficientnetv2-b0"}
        build = module.EfficientNetV2
    else:
        build = module.EfficientNet
    return build(
        **sizes,
        weights=None,
        classes=10,
        classifier_activation=None,
        input_shape=(64, 64, 3),
        **arguments,
    )


def assert_equal(model, other):
    for variable, value in zip(other.variables, model.variables, strict=True):
        np.testing.assert_array_equal(variable, value)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, [2, 64, 64, 3]).astype(np.float32)


@pytest.fixture(scope="module")
def port():
    arrays = dict(golden("timm_tiny.npz"))
    return arrays.pop("images"), arrays.pop("logits"), arrays


@pytest.fixture(scope="module")
def tiny():
    return make_tiny()


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_logits_are_timms(tiny, port, tmp_path, suffix):
    images, logits, state = port
    file = str(tmp_path / f"model.{suffix}")
    if suffix == "npz":
        np.savez(file, **state)
    else:
        safetensors.numpy.save_file(state, file)
    report = load_weights(tiny, file)
    assert report.num_plain + report.num_aux == len(tiny.variables)
    for branch in ("main", "aux"):
        np.testing.assert_allclose(
            tiny(images, branch=branch), logits, rtol=0, atol=1e-5 * np.abs(logits).max()
        )


def test_other_head_is_left_alone(port, tmp_path):
    np.savez(tmp_path / "x.npz", **port[2])
    model = make_tiny(num_classes=7)
    before = model.head.classifier.kernel.numpy()
    assert load_weights(model, str(tmp_path / "x.npz")).skipped == [
        "head/dense/kernel",
        "head/dense/bias",
    ]
    np.testing.assert_array_equal(model.head.classifier.kernel, before)


def test_every_misfit_is_named_and_nothing_is_loaded(tiny, port, tmp_path):
    state = dict(port[2])
    del state["blocks.1.0.bn2.running_var"]
    state["extra.weight"] = np.zeros(2, np.float32)
    state["conv_stem.weight"] = np.zeros([8, 3, 5, 5], np.float32)
    state["bn1.bias"] = np.full(8, np.nan, np.float32)
    np.savez(tmp_path / "x.npz", **state)
    before = [variable.numpy() for variable in tiny.variables]
    with pytest.raises(CheckpointError) as error:
        load_weights(tiny, str(tmp_path / "x.npz"))
    for name in (
        "blocks.1.0.bn2.running_var",
        "extra.weight",
        "conv_stem.weight [5, 5, 3, 8] instead of [3, 3, 3, 8]",
        "finite: bn1.bias",
    ):
        assert name in str(error.value)
    for variable, value in zip(tiny.variables, before):
        np.testing.assert_array_equal(variable, value)


@pytest.mark.parametrize("name", ["missing.npz", "garbage.npz", "garbage.safetensors", "model.pth"])
def test_files_that_cannot_be_read(tiny, tmp_path, name):
    if "missing" not in name:
        (tmp_path / name).write_bytes(b"\x01garbage")
    with pytest.raises(CheckpointError, match=name):
        load_weights(tiny, str(tmp_path / name))


# timm's `tf_efficientnet_lite0`, `_es` and `_cc_b0_4e` at a tenth of the width and
# three tenths of the depth; weights rounded to float16, from pixels normalised as (x −
# 127) / 128.
@pytest.mark.parametrize(
    "family, variant", [("lite", "lite0"), ("edgetpu", "edgetpu-S"), ("condconv", "condconv-b0-4e")]
)
def test_logits_of_the_relatives_are_timms(family, variant, tmp_path):
    arrays, prefix = golden("timm_relatives.npz"), f"{family}__state__"
    state = {
        key.removeprefix(prefix): arrays[key].astype(np.float32)
        for key in arrays.files
        if key.startswith(prefix)
    }
    np.savez(tmp_path / "x.npz", **state)
    model = EfficientNet(variant, 10, width_coefficient=0.1, depth_coefficient=0.3)
    load_weights(model, str(tmp_path / "x.npz"))
    wanted = arrays[f"{family}__logits"]
    for branch in ("main", "aux"):
        logits = model(arrays["images"], branch=branch)
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize(
    "library, variant",
    [("timm", variant) for variant in SIZES] + [("keras", "b0"), ("keras", "v2-b0")],
)
def test_round_trips_are_equal_to_the_last_bit(library, variant, tmp_path):
    model = small(variant)
    file = write(library, model, tmp_path)
    restored = restore_network(file)
    assert_equal(model, restored.model)
    assert (restored.image_size, restored.crop) == (64, "released")
    assert restored.model.normalization == "advprop"
    assert restored.model.get_config()["variant"] == variant
    assert read_checkpoint(file).unknown == []


@pytest.mark.parametrize(
    "variant, normalization", [("b0", "advprop"), ("b0", "imagenet"), ("v2-b0", "imagenet")]
)
def test_keras_gives_our_logits_for_pixels(variant, normalization, images, tmp_path):
    model = small(variant, normalization)
    file = write("keras", model, tmp_path)
    theirs = keras_model(variant)
    theirs.load_weights(file)
    wanted = model(images).numpy()
    found = theirs(images).numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    # And back, from Keras's older file; for the newer one, which numbers layers, see below.
    theirs.save_weights(str(tmp_path / "again.h5"))
    again = restore_network(str(tmp_path / "again.h5"), image_size=64)
    assert_equal(model, again.model)
    assert again.model.normalization == normalization


def test_keras_without_its_top_takes_the_same_file(images, tmp_path):
    model = small("b0")
    theirs = keras_model("b0", include_top=False)
    theirs.load_weights(write("keras", model, tmp_path))
    wanted = model.features(images)["head_1x1"].numpy()
    found = theirs(images).numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.slow
@pytest.mark.parametrize("variant, normalization", [("b0", "advprop"), ("v2-b0", "imagenet")])
def test_at_full_width(variant, normalization, tmp_path):
    model = EfficientNet(variant, aux_branches=0, normalization=normalization)
    file = write("keras", model, tmp_path)
    theirs = getattr(keras.applications, keras_function(variant))(
        weights=None, classifier_activation=None
    )
    theirs.load_weights(file)
    images = np.random.default_rng(1).integers(0, 256, [1, 224, 224, 3]).astype(np.float32)
    np.testing.assert_allclose(theirs(images), model(images), rtol=0, atol=1e-4)
    theirs.save_weights(str(tmp_path / "numbered.weights.h5"))
    again = restore_network(str(tmp_path / "numbered.weights.h5"))
    assert_equal(model, again.model)
    assert again.model.normalization == normalization


@pytest.mark.slow
@pytest.mark.parametrize("variant, normalization", [("b0", "advprop"), ("v2-b0", "imagenet")])
def test_timms_own_network_at_full_width(variant, normalization, tmp_path):
    timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    model = EfficientNet(variant, aux_branches=0, normalization=normalization)
    file = write("timm", model, tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    theirs = timm.create_model(config["architecture"], checkpoint_path=file).eval()
    images = np.random.default_rng(1).integers(0, 256, [1, 224, 224, 3]).astype(np.float32)
    mean, deviation = (np.array(config["pretrained_cfg"][name]) for name in ("mean", "std"))
    pixels = ((images / 255 - mean) / deviation).astype(np.float32).transpose(0, 3, 1, 2)
    with torch.no_grad():
        logits = theirs(torch.tensor(pixels)).numpy()
    np.testing.assert_allclose(logits, model(images), rtol=0, atol=1e-4)


def test_qubvels_files_have_no_layer_for_pixels(tmp_path):
    theirs = keras_model("b0")
    theirs.save_weights(str(tmp_path / "x.h5"))
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file.move("predictions/predictions", "predictions/probs")
        file.move("predictions", "probs")
        (layer,) = (name for name in file if name.startswith("normalization"))
        del file[layer]
    restored = restore_network(str(tmp_path / "x.h5"), image_size=64)
    assert restored.model.normalization == "imagenet"
    kernel = theirs.get_layer("predictions").kernel
    np.testing.assert_array_equal(restored.model.head.classifier.kernel, kernel)


def test_writing_what_timm_wrote_gives_its_tensors(port, tmp_path):
    state = port[2]
    np.savez(tmp_path / "x.npz", **state)
    model = make_tiny(aux_branches=0)
    load_weights(model, str(tmp_path / "x.npz"))
    written = safetensors.numpy.load_file(write("timm", model, tmp_path))
    written = {name: value for name, value in written.items() if "num_batches" not in name}
    assert written.keys() == {name for name in state if "num_batches" not in name}
    for name, value in written.items():
        np.testing.assert_array_equal(value, state[name])


CONFIG_OF_TIMM = """{{"architecture": "{}", "num_classes": {}, "pretrained_cfg": {{
 "input_size": [3, 300, 300], "test_input_size": [3, 384, 384], "crop_pct": 1.0,
 "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}}}"""


def test_timms_config_is_believed_and_must_not_contradict(tmp_path):
    file = write("timm", small("b0", "imagenet"), tmp_path)
    config = tmp_path / CONFIG
    config.write_text(CONFIG_OF_TIMM.format("", 10))
    restored = restore_network(file)
    assert (restored.model.normalization, restored.image_size) == ("advprop", 384)
    assert float(restored.crop) == 1.0
    for arguments in ({"normalization": "imagenet"}, {"kind": "baseline"}):
        with pytest.raises(ValueError, match="imagenet"):
            restore_network(file, **arguments)
    for text in (
        CONFIG_OF_TIMM.format("tf_efficientnet_b0", 10),  # this is none
        CONFIG_OF_TIMM.format("efficientnet_b0", 10),
        CONFIG_OF_TIMM.format("", 10).replace("0.5", "0.3"),
        '{"architecture": "tf_efficientnet_b0", "pretrained_cfg": 3}',
    ):
        config.write_text(text)
        with pytest.raises(CheckpointError):
            restore_network(file)
    config.unlink()
    with pytest.raises(ValueError, match="--kind"):  # as of any copy
        restore_network(file)
    assert (
        restore_network(file, kind="noisystudent", image_size=64).model.normalization == "imagenet"
    )


def test_a_network_that_the_other_library_computes_otherwise_is_refused(tmp_path):
    model = make_tiny(aux_branches=0, batch_norm_epsilon=1e-5)
    for library in ("timm", "keras"):
        with pytest.raises(CheckpointError, match="batch_norm_epsilon"):
            write(library, model, tmp_path)
    with pytest.raises(CheckpointError):
        write("keras", small("lite0"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file_format", ["released", "timm", "keras-applications"])
def test_conversion_with_a_card(file_format, tmp_path):
    network = restore_network(write("timm", small("b0"), tmp_path))
    network = dataclasses.replace(network, class_names=tuple("abcdefghij"))
    output = str(tmp_path / "out" / ("model.ckpt" if file_format == "released" else ""))
    file, note = releasing.write_weights(network, file_format, output)
    card = releasing.write_model_card(network, file_format, file, "hf://me/it", note)
    text = open(card, encoding="utf-8").read()
    name = os.path.basename(file)
    assert f"`{name}`" in text and '"normalization": "advprop"' in text
    assert {"timm": "hf-hub:me/it", "keras-applications": f'load_weights("{name}")'}.get(
        file_format, "hf://me/it"
    ) in text
    again = restore_network(file)
    assert_equal(small("b0"), again.model)
    assert (again.image_size, again.crop) == (64, "released")
    written = set(os.listdir(tmp_path / "out"))
    assert {name for name in releasing.files_of(file)} >= written - {"labels_map.txt"}
    if file_format != "released":  # nothing is replaced
        with pytest.raises(CheckpointError):
            releasing.write_weights(network, file_format, output)


def test_mirrors_are_timms_names():
    """As `timm.list_pretrained("tf_efficientnet*")` of timm 1.0.31 has them."""
    mirrors = {name: hub.mirror(row) for name, row in PUBLISHED.items()}
    assert mirrors["b3-advprop"] == "hf://timm/tf_efficientnet_b3.ap_in1k"
    assert mirrors["l2_475-noisystudent"] == "hf://timm/tf_efficientnet_l2.ns_jft_in1k_475"
    assert mirrors["condconv-b0-8e-depth"] == "hf://timm/tf_efficientnet_cc_b1_8e.in1k"
    assert mirrors["v2-xl-21k-ft1k"] == "hf://timm/tf_efficientnetv2_xl.in21k_ft_in1k"
    assert mirrors["v2-b1-21k"] is None and mirrors["b0-sat"] is None
    places = [place for place in mirrors.values() if place]
    assert len(set(places)) == len(places) == 63


@pytest.fixture(scope="module")
def hub_here(tmp_path_factory):
    """A hub on this machine with timm's file of a small network, and its server."""
    root = tmp_path_factory.mktemp("hub")
    folder = root / "somebody" / "small.ap_in1k"
    folder.mkdir(parents=True)
    write("timm", small("b0"), folder)
    server = make_hub(root)
    with pytest.MonkeyPatch.context() as patch:  # before the library's first import
        patch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("cache")))
        pytest.importorskip("huggingface_hub")
        yield root, server
    server.shutdown()
    server.server_close()


def test_the_hub(hub_here, tmp_path):
    root, server = hub_here
    (root / "somebody" / "empty").mkdir()
    (root / "somebody" / "small.ap_in1k" / "README.md").write_text("---\nlicense: other\n---\n")
    for missing in (
        *("hf://somebody/none", "hf://somebody", "hf://somebody/empty"),
        "hf://somebody/small.ap_in1k/x.h5",
    ):
        with pytest.raises(CheckpointError):
            restore_network(missing)
    server.cut = 500
    with pytest.raises(CheckpointError, match="size"):
        restore_network("hf://somebody/small.ap_in1k")
    server.cut = 0
    address = hub.push(
        str(root / "somebody" / "small.ap_in1k"),
        "hf://me/copied",
        ["model.safetensors", CONFIG, "README.md"],
    )
    assert address.endswith("/me/copied") and (root / "me" / "copied" / CONFIG).exists()
    for source in ("hf://me/copied", "hf://me/copied/model.safetensors"):
        restored = restore_network(source)
        assert_equal(small("b0"), restored.model)
        assert (restored.image_size, restored.model.normalization) == (64, "advprop")
    server.shutdown()
    server.server_close()
    assert_equal(small("b0"), restore_network("hf://me/copied").model)  # cached
