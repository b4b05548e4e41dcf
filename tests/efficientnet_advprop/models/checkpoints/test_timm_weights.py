"""timm's files against its own logits: `timm_tiny.npz` is a small random
`tf_efficientnet` of timm 1.0.31 with its logits.
"""

import numpy as np
import pytest
import safetensors.numpy

from efficientnet_advprop.models import CheckpointError, EfficientNet, load_timm_weights
from tests.conftest import golden, make_tiny


@pytest.fixture(scope="module")
def port():
    arrays = dict(golden("timm_tiny.npz"))
    return arrays.pop("images"), arrays.pop("logits"), arrays


@pytest.fixture(scope="module")
def model():
    return make_tiny()


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_logits_are_timms(model, port, tmp_path, suffix):
    images, logits, state = port
    file = str(tmp_path / f"model.{suffix}")
    if suffix == "npz":
        np.savez(file, **state)
    else:
        safetensors.numpy.save_file(state, file)
    report = load_timm_weights(model, file)
    assert report.num_plain + report.num_aux == len(model.variables)
    for branch in ("main", "aux"):
        np.testing.assert_allclose(
            model(images, branch=branch), logits, rtol=0, atol=1e-5 * np.abs(logits).max()
        )


def test_other_head_is_left_alone(port, tmp_path):
    np.savez(tmp_path / "x.npz", **port[2])
    model = make_tiny(num_classes=7)
    before = model.head.classifier.kernel.numpy()
    assert load_timm_weights(model, str(tmp_path / "x.npz")).skipped == [
        "head/dense/kernel",
        "head/dense/bias",
    ]
    np.testing.assert_array_equal(model.head.classifier.kernel, before)


def test_every_misfit_is_named_and_nothing_is_loaded(model, port, tmp_path):
    state = dict(port[2])
    del state["blocks.1.0.bn2.running_var"]
    state["extra.weight"] = np.zeros(2, np.float32)
    state["conv_stem.weight"] = np.zeros([8, 3, 5, 5], np.float32)
    state["bn1.bias"] = np.full(8, np.nan, np.float32)
    np.savez(tmp_path / "x.npz", **state)
    before = [variable.numpy() for variable in model.variables]
    with pytest.raises(CheckpointError) as error:
        load_timm_weights(model, str(tmp_path / "x.npz"))
    for name in (
        "blocks.1.0.bn2.running_var",
        "extra.weight",
        "conv_stem.weight [5, 5, 3, 8] instead of [3, 3, 3, 8]",
        "finite: bn1.bias",
    ):
        assert name in str(error.value)
    for variable, value in zip(model.variables, before):
        np.testing.assert_array_equal(variable, value)


@pytest.mark.parametrize("name", ["missing.npz", "garbage.npz", "garbage.safetensors", "model.pth"])
def test_files_that_cannot_be_read(model, tmp_path, name):
    if "missing" not in name:
        (tmp_path / name).write_bytes(b"\x01garbage")
    with pytest.raises(CheckpointError, match=name):
        load_timm_weights(model, str(tmp_path / name))


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
    load_timm_weights(model, str(tmp_path / "x.npz"))
    wanted = arrays[f"{family}__logits"]
    for branch in ("main", "aux"):
        logits = model(arrays["images"], branch=branch)
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
