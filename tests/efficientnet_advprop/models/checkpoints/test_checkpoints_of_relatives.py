"""EfficientNet-Lite, -EdgeTPU and -CondConv in the released format: read, written, told apart."""

import numpy as np
import pytest

from efficientnet_advprop.models import (
    CheckpointError,
    EfficientNet,
    load_released_checkpoint,
    save_released_checkpoint,
)
from efficientnet_advprop.models.checkpoints.checkpoint_contents import read_contents
from tests.conftest import DATA, make_tiny
from tests.relatives import official_name
from tests.released_format import AVERAGE, read_checkpoint, trained_value

# One small network of each family.
SMALL = {
    "lite0": dict(width_coefficient=0.35, depth_coefficient=0.5),
    "edgetpu-S": dict(width_coefficient=0.35, depth_coefficient=0.5, num_classes=11),
    "condconv-b0-8e": dict(width_coefficient=0.25, depth_coefficient=0.4),
}
# As the official code said; it is the same for any number of experts.
NUM_VARIABLES = {"lite0": 157, "edgetpu-S": 142, "condconv-b0-8e": 207}


def make_small(variant, aux_branches=0):
    return EfficientNet(variant, **{"num_classes": 10, **SMALL[variant]}, aux_branches=aux_branches)


@pytest.fixture(scope="module", params=SMALL)
def written(request, tmp_path_factory):
    """(variant, prefix of a file with plain weights and averages, the averages by their names)."""
    variant = request.param
    model = make_small(variant)
    averages = {}
    for variable in model.variables:
        name = official_name(variable)
        shape = tuple(variable.shape)
        variable.assign(np.abs(trained_value(name, shape, "raw")))
        averages[name] = np.abs(trained_value(name, shape, "ema"))
    prefix = str(tmp_path_factory.mktemp(variant) / "model.ckpt")
    save_released_checkpoint(model, prefix, averages=averages, global_step=5)
    return variant, prefix, averages


def test_written_back_under_the_official_names(written):
    variant, prefix, averages = written
    tensors = read_checkpoint(prefix)
    assert len(averages) == NUM_VARIABLES[variant]
    assert len(tensors) == 2 * len(averages) + 1
    for name, value in averages.items():
        np.testing.assert_array_equal(tensors[name + AVERAGE], value)
        np.testing.assert_array_equal(
            tensors[name], np.abs(trained_value(name, value.shape, "raw"))
        )


def test_read_into_all_branches(written):
    variant, prefix, averages = written
    model = make_small(variant, aux_branches=1)
    report = load_released_checkpoint(model, prefix)
    assert (report.weights, report.step, report.skipped, report.mixed) == ("averaged", 5, [], [])
    assert report.num_averages == len(averages)
    for variable in model.variables:
        np.testing.assert_array_equal(variable, averages[official_name(variable)])


def test_recognized_at_any_width_and_depth(written):
    variant, prefix, _ = written
    architecture = read_contents(prefix).architecture
    again = EfficientNet(
        architecture.variant,
        num_classes=architecture.num_classes,
        aux_branches=0,
        width_coefficient=architecture.width_coefficient,
        depth_coefficient=architecture.depth_coefficient,
    )
    load_released_checkpoint(again, prefix)
    assert architecture.variant == variant
    assert f"like efficientnet-{variant}" in str(architecture)


def test_another_family_is_named_and_nothing_changes(written):
    variant, prefix, _ = written
    model = make_tiny(aux_branches=0)
    before = [variable.numpy() for variable in model.variables]
    with pytest.raises(CheckpointError, match=f"looks like a network like efficientnet-{variant}"):
        load_released_checkpoint(model, prefix)
    for variable, value in zip(model.variables, before):
        np.testing.assert_array_equal(variable, value)
    with pytest.raises(CheckpointError, match="looks like an EfficientNet of width 0.25"):
        load_released_checkpoint(make_small(variant), str(DATA / "tiny_ckpt"))
