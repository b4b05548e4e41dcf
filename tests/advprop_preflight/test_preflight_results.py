"""Answers are asked for once, found again by what matters to the program, and told in words."""

import dataclasses

import pytest
import tensorflow as tf

from advprop_preflight import preflight_results, tpu_compiler
from efficientnet_advprop.config.experiment import ExperimentConfig

PROGRAM = tpu_compiler.CompiledProgram(
    argument_bytes=2**30,
    output_bytes=2**30,
    alias_bytes=2**30,
    temporary_bytes=9 * 2**30,
    code_bytes=2**28,
    flops=2e12,
    bytes_accessed=3e11,
    scheduled_seconds=0.5,
    loop_flops=1e12,
    loop_seconds=0.2,
    collectives={"all-reduce": 3},
    unknown_loops=0,
    compile_seconds=100.0,
    versions={"libtpu": "0.0.52"},
)


class FakeCompiler:
    """Fits up to 8 images; counts what it is asked."""

    topology, chip, asked = "v3:2x2", tpu_compiler.CHIPS["v3"], 0

    def compile(self, hlo, num_replicas):
        self.asked += 1
        if int(hlo) > 8:
            return {"fits": False, "message": "full", "needed_bytes": 20 * 2**30}
        return {"fits": True, "program": dataclasses.asdict(PROGRAM)}


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(
        tpu_compiler, "lower", lambda function, specs, num_replicas: str(specs[0].shape[0]).encode()
    )

    def make_step(config, batch, num_replicas):
        return (None, [tf.TensorSpec([batch])])

    monkeypatch.setattr(preflight_results, "training_step", make_step)
    return preflight_results.PreflightResults(str(tmp_path / "new"), FakeCompiler(), 8)


def test_an_answer_is_asked_for_once(results):
    config = ExperimentConfig()
    first = results.compile_step(config, 8)
    config.training.num_epochs = 7.0  # nothing that the program depends upon
    assert results.compile_step(config, 8) == first
    assert results.compiler.asked == 1
    config.attack.num_steps = 5
    assert results.compile_step(config, 8)["config"]["attack"]["num_steps"] == 5
    assert results.compiler.asked == 2


def test_a_failure_is_kept_too_and_says_the_way_out(results):
    assert results.try_step(ExperimentConfig(), 9) == (False, 20 * 2**30)
    record = results.compile_step(ExperimentConfig(), 9)
    assert results.compiler.asked == 1
    text = preflight_results.describe(record, None, results.compiler)
    assert "does not fit" in text and "20.00 GiB of 16" in text and "recomputed_blocks" in text


def test_the_description_has_the_figures(results):
    config = ExperimentConfig()
    config.attack.num_steps, config.data.image_size = 5, 600
    record = results.compile_step(config, 8)
    vanilla = {
        **record,
        "program": dataclasses.asdict(
            dataclasses.replace(PROGRAM, flops=4e11, scheduled_seconds=0.1)
        ),
    }
    text = preflight_results.describe(record, vanilla, results.compiler)
    for figure in (
        "600 px",
        "5 attack steps",
        "10.25 GiB of 16",
        "2,000 GFLOP",
        "50% in loops",
        "500 ms",
        "16 per core, 128",
    ):
        assert figure in text, figure
    assert (
        "5.00 times vanilla training's arithmetic, 5.00 times its time; (2K + 6)/3 = 5.33" in text
    )
    absurd = {
        **record,
        "program": dataclasses.asdict(dataclasses.replace(PROGRAM, scheduled_seconds=-1.0)),
    }
    assert "not credible" in preflight_results.describe(absurd, None, results.compiler)
