"""Released checkpoints against the official code's numbers, and against everything a
file can have wrong.
"""

import os

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.models import (
    CheckpointError,
    EfficientNet,
    ResNet,
    load_released_checkpoint,
    save_released_checkpoint,
)
from efficientnet_advprop.models.checkpoints.variable_names import variable_name
from tests.conftest import DATA, golden, make_tiny
from tests.released_format import (
    AVERAGE,
    full_images,
    read_checkpoint,
    write_checkpoint,
    write_full_checkpoint,
)

TINY = str(DATA / "tiny_ckpt")
SCOPE = "efficientnet-b0"


@pytest.fixture(scope="module")
def model():
    return make_tiny()


@pytest.fixture
def scrambled(model):
    """The model with every variable at 0.5, so that whatever a load leaves alone is seen."""
    for variable in model.variables:
        variable.assign(tf.fill(variable.shape, 0.5))
    return model


@pytest.fixture(scope="module")
def tensors():
    return read_checkpoint(DATA / "tiny_ckpt" / "model.ckpt-1234")


def is_untouched(model):
    return all(np.all(variable.numpy() == 0.5) for variable in model.variables)


@pytest.mark.parametrize("use_ema, weights", [(True, "ema"), (False, "raw")])
def test_logits_are_the_official_ones(scrambled, use_ema, weights):
    report = load_released_checkpoint(scrambled, TINY, use_ema=use_ema)
    assert report.weights == ("averaged" if use_ema else "plain")
    wanted = golden("logits.npz")
    for batch in "abc":
        logits = wanted[f"logits_{batch}_{weights}_advprop"]
        for branch in ("main", "aux"):  # the file has no auxiliary batch norms: copies
            np.testing.assert_allclose(
                scrambled(wanted[f"images_{batch}"], branch=branch),
                logits,
                rtol=0,
                atol=1e-4 * max(1, np.abs(logits).max()),
            )


def test_imagenet_normalization_gives_the_official_logits():
    model, wanted = make_tiny(normalization="imagenet", aux_branches=0), golden("logits.npz")
    load_released_checkpoint(model, TINY)
    np.testing.assert_allclose(
        model(wanted["images_c"]), wanted["logits_c_ema_standard"], rtol=0, atol=1e-4
    )


def test_report_says_what_was_done(scrambled, tensors):
    report = load_released_checkpoint(scrambled, TINY)
    assert (report.step, report.num_plain, report.skipped, report.mixed) == (1234, 0, [], [])
    # Of the 319 tensors of the file: as many plain ones, and the step.
    assert report.num_averages == 159
    assert report.num_averages + report.num_aux == len(scrambled.variables)
    pairs = [
        (tensors[name + AVERAGE], tensors[name]) for name in tensors if name + AVERAGE in tensors
    ]
    assert report.difference.num_tensors == report.difference.num_different == len(pairs)
    assert report.difference.max_absolute == pytest.approx(
        max(np.abs(a - b).max() for a, b in pairs)
    )
    norm = np.sqrt(
        sum(np.sum((a - b) ** 2.0) for a, b in pairs) / sum(np.sum(b**2.0) for _, b in pairs)
    )
    assert report.difference.relative == pytest.approx(norm, rel=1e-5)
    assert "width 0.25 and depth 0.3" in str(report) and "step 1234" in str(report)


@pytest.mark.parametrize("kept, use_ema", [("averages", True), ("plain", True), ("plain", False)])
def test_files_with_only_averages_or_only_plain_weights(
    scrambled, tensors, tmp_path, kept, use_ema
):
    subset = {
        name: value
        for name, value in tensors.items()
        if name.endswith(AVERAGE) == (kept == "averages")
    }
    subset["global_step"] = tensors["global_step"]
    report = load_released_checkpoint(
        scrambled, write_checkpoint(tmp_path / "model.ckpt", subset), use_ema=use_ema
    )
    assert report.weights == {"averages": "averaged", "plain": "plain"}[kept]
    assert report.difference is None
    for variable in scrambled.variables:
        name = variable.name.split(":")[0].replace("/aux/", "/")
        np.testing.assert_array_equal(
            variable, subset[name + (AVERAGE if kept == "averages" else "")]
        )


def test_plain_weights_that_are_not_there_are_an_error(scrambled, tensors, tmp_path):
    averages = {name: value for name, value in tensors.items() if name.endswith(AVERAGE)}
    with pytest.raises(CheckpointError, match="only averages"):
        load_released_checkpoint(
            scrambled, write_checkpoint(tmp_path / "model.ckpt", averages), use_ema=False
        )
    assert is_untouched(scrambled)


def test_variables_without_average_get_plain_values_and_are_named(scrambled, tensors, tmp_path):
    """`tf.train.ExponentialMovingAverage` over the trainable variables alone, as other
    trainers have it.
    """
    subset = {
        name: value
        for name, value in tensors.items()
        if not (name.endswith(AVERAGE) and "moving_" in name)
    }
    report = load_released_checkpoint(scrambled, write_checkpoint(tmp_path / "model.ckpt", subset))
    assert report.weights == "mixed" and report.mixed == [
        name for name in report.mixed if "moving_" in name
    ]
    assert (
        len(report.mixed)
        == report.num_plain
        == sum("moving_" in name and not name.endswith(AVERAGE) for name in tensors)
    )


def test_slots_and_bookkeeping_are_ignored(scrambled, tensors, tmp_path):
    names = [
        f"{SCOPE}/stem/conv2d/kernel/{slot}"
        for slot in ("RMSProp", "RMSProp_1", "Momentum", "Adam")
    ]
    slots = {name: np.zeros(3, np.float32) for name in names}
    prefix = write_checkpoint(
        tmp_path / "model.ckpt", {**tensors, **slots, "beta1_power": np.float32(0.9)}
    )
    assert len(load_released_checkpoint(scrambled, prefix).ignored) == 6


def test_missing_left_over_and_misshapen_are_one_error_with_all_names(scrambled, tensors, tmp_path):
    changed = dict(tensors)
    for suffix in ("", AVERAGE):
        del (
            changed[f"{SCOPE}/blocks_2/se/conv2d/bias{suffix}"],
            changed[f"{SCOPE}/stem/tpu_batch_normalization/beta{suffix}"],
        )
        changed[f"{SCOPE}/head/conv2d/kernel{suffix}"] = np.zeros([1, 1, 80, 8], np.float32)
    changed[f"{SCOPE}/blocks_2/routing/kernel"] = changed["something/else"] = np.zeros(
        3, np.float32
    )
    prefix = write_checkpoint(tmp_path / "model.ckpt", changed)
    with pytest.raises(CheckpointError) as error:
        load_released_checkpoint(scrambled, prefix)
    text = str(error.value)
    for part in (
        "2 missing",
        "blocks_2/se/conv2d/bias",
        "stem/tpu_batch_normalization/beta",
        "1 of another shape",
        "[1, 1, 80, 8] instead of [1, 1, 80, 320]",
        "2 in the file but not in the model",
        "blocks_2/routing/kernel",
        "something/else",
    ):
        assert part in text
    assert is_untouched(scrambled)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_an_error(scrambled, tensors, tmp_path, bad):
    changed = dict(tensors)
    names = [f"{SCOPE}/head/dense/bias{AVERAGE}", f"{SCOPE}/blocks_3/conv2d/kernel{AVERAGE}"]
    for name in names:
        changed[name] = changed[name].copy()
        changed[name].flat[-1] = bad
    with pytest.raises(CheckpointError, match="not finite") as error:
        load_released_checkpoint(scrambled, write_checkpoint(tmp_path / "model.ckpt", changed))
    assert all(name in str(error.value) for name in names) and is_untouched(scrambled)


def test_damaged_data_is_an_error_that_names_the_tensor(scrambled, tensors, tmp_path):
    prefix = write_checkpoint(tmp_path / "model.ckpt", tensors)
    data = bytearray(open(f"{prefix}.data-00000-of-00001", "rb").read())
    data[1000] ^= 1
    open(f"{prefix}.data-00000-of-00001", "wb").write(data)
    with pytest.raises(
        CheckpointError, match=r"1 cannot be read, the file is damaged: efficientnet-b0/\w+/"
    ):
        load_released_checkpoint(scrambled, prefix)
    open(f"{prefix}.data-00000-of-00001", "wb").write(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_released_checkpoint(scrambled, prefix)
    os.remove(f"{prefix}.data-00000-of-00001")
    with pytest.raises(CheckpointError, match="model.ckpt.data-00000-of-00001 is missing"):
        load_released_checkpoint(scrambled, prefix)
    assert is_untouched(scrambled)


def test_another_variant_is_named_in_few_words(scrambled, tmp_path):
    shapes = {name: shape for name, (shape, _) in _shapes_of("b3").items()}
    prefix = write_checkpoint(
        tmp_path / "of b3" / "model.ckpt",
        {name: np.zeros(shape, np.float32) for name, shape in shapes.items()},
    )
    with pytest.raises(CheckpointError) as error:
        load_released_checkpoint(scrambled, prefix)
    text, problems = str(error.value), error.value.problems
    assert is_untouched(scrambled)
    assert (
        "The file looks like efficientnet-b3, but the model is an EfficientNet of width 0.25"
        in text
    )
    assert 'EfficientNet("b3")' in text
    # Counted without the code under test: names of one and not of the other, or of
    # other shapes.
    own = {
        v.name.split(":")[0]: tuple(v.shape) for v in scrambled.variables if "/aux/" not in v.name
    }
    file = {name.replace("-b3/", "-b0/"): tuple(shape) for name, shape in shapes.items()}
    counts = {
        "missing in the file": len(own.keys() - file.keys()),
        "of another shape in the file": sum(
            file.get(n, shape) != shape for n, shape in own.items()
        ),
        "in the file but not in the model": len(file.keys() - own.keys()),
    }
    assert {what: len(names) for what, names in problems.items()} == counts
    for what, count in counts.items():
        assert f"{count} {what}: {problems[what][0]}, " in text
        assert f" and {count - 3} more" in text
    assert f"inspect_checkpoint --tensors '{prefix}'" in text
    assert len(text.splitlines()) == 6 and len(text) < 1500


def test_the_kind_of_a_misfit_is_told(tensors, tmp_path):
    averages = {name: value for name, value in tensors.items() if name.endswith(AVERAGE)}
    whole = write_checkpoint(tmp_path / "whole" / "model.ckpt", averages)
    with pytest.raises(
        CheckpointError, match="width 0.25 and .*, but the model is no EfficientNet"
    ):
        load_released_checkpoint(_tiny_resnet(), whole)
    for name in list(averages):
        if "/moving_" in name:
            del averages[name]
    part = write_checkpoint(tmp_path / "part" / "model.ckpt", averages)
    with pytest.raises(
        CheckpointError, match="as the model is, but not all of its tensors"
    ) as error:
        load_released_checkpoint(make_tiny(aux_branches=0), part)
    (missing,) = error.value.problems.values()
    assert len(missing) == sum("moving_" in v.name for v in make_tiny(aux_branches=0).variables)
    assert all("/moving_" in name for name in missing)


def _tiny_resnet():
    return ResNet("resnet50", num_classes=10, width_coefficient=0.25, depth_coefficient=0.1)


def _shapes_of(variant):
    rows = golden("variables.json.gz")["models"][f"efficientnet-{variant}"]["variables"]
    return {
        name.split(":")[0]: (shape, dtype)
        for name, shape, dtype, _ in rows
        if name.startswith("eff")
    }


@pytest.mark.parametrize(
    "names, words",
    [
        (
            ["resnet_model/conv2d/kernel", "resnet_model/dense/bias"],
            "another network altogether.*resnet_model",
        ),
        (
            ["model/layer/.ATTRIBUTES/VARIABLE_VALUE", "_CHECKPOINTABLE_OBJECT_GRAPH"],
            "object-based",
        ),
        (
            ["efficientnet-lite0/stem/conv2d/kernel", "efficientnet-lite0/head/conv2d/kernel"],
            "relative of Eff.*efficientnet-lite0",
        ),
    ],
)
def test_another_architecture_is_named(scrambled, tmp_path, names, words):
    prefix = write_checkpoint(
        tmp_path / "model.ckpt", {name: np.zeros([1, 1, 3, 8], np.float32) for name in names}
    )
    with pytest.raises(CheckpointError, match=words):
        load_released_checkpoint(scrambled, prefix)
    assert is_untouched(scrambled)


@pytest.mark.parametrize("num_classes, include_head", [(12, True), (10, False)])
def test_another_head_keeps_its_values(tensors, num_classes, include_head):
    model = make_tiny(num_classes=num_classes)
    before = {variable.name: variable.numpy() for variable in model.variables}
    report = load_released_checkpoint(model, TINY, include_head=include_head)
    assert report.skipped == [
        "head/dense/kernel",
        "head/dense/bias",
    ] and "head/dense/kernel" in str(report)
    for variable in model.variables:
        name = variable.name.split(":")[0].replace("/aux/", "/")
        wanted = before[variable.name] if "/dense/" in name else tensors[name + AVERAGE]
        np.testing.assert_array_equal(variable, wanted)


def test_round_trip_is_bit_exact(model, tensors, tmp_path):
    """Plain weights and averages, in the official names, shapes and dtypes and nothing else."""
    load_released_checkpoint(model, TINY, use_ema=False)
    averages = {
        name.removesuffix(AVERAGE): value
        for name, value in tensors.items()
        if name.endswith(AVERAGE)
    }
    save_released_checkpoint(
        model, str(tmp_path / "out" / "model.ckpt"), averages=averages, global_step=1234
    )
    written = read_checkpoint(tmp_path / "out")  # by the state file
    assert written.keys() == tensors.keys()
    for name, value in tensors.items():
        assert written[name].dtype == value.dtype
        np.testing.assert_array_equal(written[name], value)


def test_without_averages_both_names_hold_the_weights(scrambled, tmp_path):
    prefix = save_released_checkpoint(scrambled, str(tmp_path / "model.ckpt"))
    written = read_checkpoint(prefix)
    assert len(written) == 2 * 159 and all(np.all(value == 0.5) for value in written.values())


def test_auxiliary_batch_norms_are_written_on_demand_and_read_back(model, tmp_path):
    load_released_checkpoint(model, TINY)
    model.stem.norm.variables_of("aux").gamma.assign_add(tf.ones([8]))
    before = [variable.numpy() for variable in model.variables]
    prefix = save_released_checkpoint(model, str(tmp_path / "model.ckpt"), include_aux=True)
    report = load_released_checkpoint(model, prefix)
    assert report.num_aux == 0
    for variable, value in zip(model.variables, before):
        np.testing.assert_array_equal(variable, value)
    plain = load_released_checkpoint(make_tiny(aux_branches=0), prefix)
    assert any("/aux/" in name for name in plain.ignored)


def test_what_the_file_says_of_pixels_and_norms_is_compared(model, tmp_path):
    trained = make_tiny(aux_branches=0, normalization="imagenet", batch_norm_epsilon=1e-5)
    prefix = save_released_checkpoint(trained, str(tmp_path / "model.ckpt"))
    report = load_released_checkpoint(model, prefix)
    assert report.normalization == "imagenet" and len(report.warnings) == 2
    assert "`normalization` 'imagenet', the model has 'advprop'" in str(report)
    assert not load_released_checkpoint(trained, prefix).warnings


def test_checkpoints_of_others_are_not_replaced(model, tensors, tmp_path):
    prefix = write_checkpoint(tmp_path / "theirs" / "model.ckpt", tensors)
    before = sorted((path, path.read_bytes()) for path in (tmp_path / "theirs").iterdir())
    for name in (prefix, str(tmp_path / "theirs" / "mine")):  # its `checkpoint` file, too
        with pytest.raises(CheckpointError, match="model.ckpt.index"):
            save_released_checkpoint(model, name)
    assert before == sorted((path, path.read_bytes()) for path in (tmp_path / "theirs").iterdir())
    for _ in range(2):  # its own are
        save_released_checkpoint(model, str(tmp_path / "ours" / "model.ckpt"))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "checkpoint").write_text("mine")
    with pytest.raises(CheckpointError, match="holds checkpoint,"):
        save_released_checkpoint(model, str(tmp_path / "notes" / "model.ckpt"))


def test_a_bad_model_is_not_written(scrambled, tmp_path):
    scrambled.variables[0].assign(tf.fill(scrambled.variables[0].shape, np.nan))
    with pytest.raises(CheckpointError, match=variable_name(scrambled, scrambled.variables[0])):
        save_released_checkpoint(scrambled, str(tmp_path / "model.ckpt"))
    with pytest.raises(CheckpointError, match="`averages` lacks .* and 156 more"):  # of 159
        save_released_checkpoint(scrambled, str(tmp_path / "model.ckpt"), averages={})
    assert not list(tmp_path.iterdir())


def test_loads_under_a_strategy(tensors, two_replicas):
    with two_replicas.scope():
        model = make_tiny()
    load_released_checkpoint(model, TINY)
    for variable in model.variables:
        name = variable.name.split(":")[0].replace("/aux/", "/")
        for copy in variable.values:
            np.testing.assert_array_equal(copy, tensors[name + AVERAGE])


def _check_full_size(variant, tmp_path, salts):
    wanted = golden("full_logits.npz")
    prefix = write_full_checkpoint(
        tmp_path / f"efficientnet-{variant}" / "model.ckpt", variant, salts
    )
    model = EfficientNet(variant, aux_branches=0)
    keys = [key for key in wanted.files if key.startswith(f"efficientnet-{variant}/")]
    assert len(keys) == len(salts)
    for key in keys:
        _, pixels, salt, seed = key.split("/")
        load_released_checkpoint(model, os.path.dirname(prefix), use_ema=salt == "ema")
        logits = model(full_images(int(pixels), int(seed)))
        np.testing.assert_allclose(
            logits, wanted[key], rtol=0, atol=2e-3 * np.abs(wanted[key]).max()
        )


def test_full_size_b0_gives_the_official_logits(tmp_path):
    _check_full_size("b0", tmp_path, ("ema", "raw"))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["b1", "b2", "b3", "b4", "b5", "b6", "b7", "b8"])
def test_full_size_gives_the_official_logits(tmp_path, variant):
    _check_full_size(variant, tmp_path, ("ema",))
