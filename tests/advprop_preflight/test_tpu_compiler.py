"""Lowering as a TPU would get it, and what becomes of the compiler's answers.

The compiler itself is asked in a slow test.
"""

import json
import os
import pathlib
import re
import sys

import pytest
import tensorflow as tf

from advprop_preflight import preflight_results, tpu_compiler
from efficientnet_advprop.config.experiment import ExperimentConfig
from efficientnet_advprop.config.methods import METHODS
from efficientnet_advprop.runtime.errors import PlatformError
from efficientnet_advprop.training import build
from efficientnet_advprop.training.passes import attacked_network
from tpu_utils import reduction, replica_runtime

NUM_REPLICAS = 16  # of which the official rule makes groups of 8
COMPILER_PYTHON = os.environ.get(
    "COMPILER_PYTHON", str(pathlib.Path(__file__).parents[2] / ".venv-preflight/bin/python")
)
ANSWER = {
    "num_devices": 8,
    "versions": {"libtpu": "x"},
    "argument_bytes": 4,
    "output_bytes": 3,
    "alias_bytes": 2,
    "temporary_bytes": 10,
    "code_bytes": 1,
    "flops": 100.0,
    "bytes_accessed": 50.0,
    "cycles": 940e3,
    "collectives": {"all-reduce": 2},
    "seconds": 5.0,
    "loops": [{"iterations": 5, "cycles": 94e3, "flops": 10.0}],
}


def tiny_config(method, statistics="running"):
    config = ExperimentConfig()
    # Few operations, quickly traced.
    config.model.variant, config.model.num_classes = ("resnet50", 10)
    config.model.width_coefficient, config.model.depth_coefficient = 0.125, 0.1
    config.data.image_size = 32
    config.training.method, config.attack.statistics, config.attack.num_steps = (
        method,
        statistics,
        2,
    )
    return config


def attack(config, batch):
    """The attack of the training step alone, and the specs of its arguments."""
    branch, seed = METHODS[config.training.method].attacked_branch, tf.constant([0, 0])
    make_adversarial = build.make_attack(config)
    network = attacked_network(build.make_model(config), branch, config.attack.statistics, seed)
    specs = preflight_results.batch_specs(config, batch)[:2]
    return lambda images, labels: make_adversarial(network, images, labels, seed), specs


def count_all_reduces(function, specs, num_replicas=NUM_REPLICAS):
    """But for those that stand for random words."""
    text = tpu_compiler.lower(function, specs, num_replicas, stage="hlo")
    assert not re.search(r" (all-gather|all-to-all|reduce-scatter|collective-permute)\(", text)
    return sum(" all-reduce(" in line and "random_words" not in line for line in text.splitlines())


@pytest.mark.slow
def test_the_attack_with_running_statistics_adds_no_collective():
    """Of the lowered step: the attack has none, and AdvProp's are two passes' worth and
    one for each gradient.
    """
    assert count_all_reduces(*attack(tiny_config("advprop"), 2)) == 0
    found, gradients = {}, {}
    for method in ("vanilla", "advprop"):
        step, specs = preflight_results.training_step(tiny_config(method), 2, NUM_REPLICAS)
        found[method] = count_all_reduces(step, specs)
        model = build.make_model(tiny_config(method))
        gradients[method] = len(model.trainable_variables)
    one_pass = found["vanilla"] - gradients["vanilla"]
    assert one_pass > 0  # moments in groups, forward and backward
    assert found["advprop"] == gradients["advprop"] + 2 * one_pass


def test_an_attack_with_batch_statistics_does():
    assert count_all_reduces(*attack(tiny_config("advprop", "batch"), 2)) > 0


def test_planned_replicas_sum_in_groups():
    def function(x):
        sums = reduction.sum_over_replicas([x], group_size=4)
        replicas = replica_runtime.current()
        return sums[0] * tf.cast(replicas.replica_id + replicas.num_replicas, tf.float32)

    text = tpu_compiler.lower(function, [tf.TensorSpec([3])], num_replicas=8, stage="hlo")
    # Where the compiler's process takes the size from.
    assert re.search(r' all-reduce\(.*op_name="sum_in_groups_of_4/', text)


def test_planned_replicas_draw_by_the_devices_generator():
    def draw(seed):
        return replica_runtime.current().random_words(8, seed)

    text = tpu_compiler.lower(draw, [tf.TensorSpec([2], tf.int32)], num_replicas=8, stage="hlo")
    assert re.search(r's32\[8\].* all-reduce\(.*op_name="random_words/', text)


def test_an_operation_that_xla_lacks_is_named():
    with pytest.raises(PlatformError, match="StringJoin|AsString|StringLength|as_string"):
        tpu_compiler.lower(
            lambda x: tf.strings.length(tf.strings.as_string(x)), [tf.TensorSpec([2])]
        )


def test_a_batch_that_does_not_divide_is_refused():
    config = tiny_config("vanilla")
    config.training.accumulation_steps = 3
    with pytest.raises(ValueError, match="`replica_batch_size` is 4.*= 3"):
        preflight_results.training_step(config, 4, 1)


@pytest.fixture
def make_compiler(tmp_path, monkeypatch):
    """A `TPUCompiler` whose process gives the answer it is told to."""

    def make(answer, topology="v3:2x2"):
        script = tmp_path / "process.py"
        script.write_text(
            "import json, sys\nanswer = {'num_devices': 8} if sys.argv[3] == '0' and"
            f" {answer.get('error') != 'topology'} else {answer!r}\njson.dump(answer,"
            " open(sys.argv[4], 'w'))\n"
        )
        monkeypatch.setattr(tpu_compiler, "PROCESS", script)
        return tpu_compiler.TPUCompiler(sys.executable, topology)

    return make


def test_loops_are_counted_as_often_as_they_run(make_compiler):
    compiler = make_compiler(ANSWER)
    program = tpu_compiler.program_of(compiler.compile(b"", 8))
    assert compiler.num_cores == 8
    assert program.memory_bytes == 4 + 3 - 2 + 10 + 1
    assert (program.flops, program.loop_flops, program.bytes_accessed) == (140.0, 50.0, 50.0)
    assert program.scheduled_seconds == pytest.approx((940e3 + 4 * 94e3) / 940e6)
    assert program.loop_seconds == pytest.approx(5 * 94e3 / 940e6)


@pytest.mark.parametrize(
    "cycles, credible", [(940e6, True), (940.0, False), (940e9, False), (-1.0, False)]
)
def test_times_that_no_chip_could_have_are_not_credible(make_compiler, cycles, credible):
    compiler = make_compiler({**ANSWER, "cycles": cycles, "flops": 61.5e12 * 0.9, "loops": []})
    assert (
        tpu_compiler.is_credible(tpu_compiler.program_of(compiler.compile(b"", 8)), compiler.chip)
        is credible
    )


def test_loops_of_unknown_length_are_not_credible(make_compiler):
    compiler = make_compiler(
        {**ANSWER, "flops": 61.5e9 * 0.9, "loops": [{**ANSWER["loops"][0], "iterations": None}]}
    )
    program = tpu_compiler.program_of(compiler.compile(b"", 8))
    assert program.unknown_loops == 1 and program.flops == 61.5e9 * 0.9
    assert not tpu_compiler.is_credible(program, compiler.chip)


@pytest.mark.parametrize(
    "answer, match, exit_code",
    [
        (
            {"error": "program", "message": "UNIMPLEMENTED: no such op %rng\nmore"},
            "no such op %rng",
            1,
        ),
        ({"error": "topology", "message": "Invalid TPU"}, "`topology` is 'v3:9x9'", 2),
    ],
)
def test_refusals_become_messages(make_compiler, answer, match, exit_code):
    with pytest.raises(PlatformError, match=match) as caught:
        make_compiler(answer, "v3:9x9" if answer["error"] == "topology" else "v3:2x2").compile(
            b"", 8
        )
    assert caught.value.exit_code == exit_code


def test_a_program_that_is_too_large_says_what_it_needs(make_compiler):
    message = "RESOURCE_EXHAUSTED: Ran out. Used 20.50G of 15G hbm."
    found = make_compiler({"error": "memory", "message": message}).compile(b"", 8)
    assert not found["fits"] and found["needed_bytes"] == int(20.5 * 2**30)
    assert "Ran out" in found["message"]


@pytest.mark.parametrize(
    "python, topology, match",
    [
        ("/no/such/python", "v3:2x2", "make preflight"),
        (sys.executable, "v9:2x2", "v3"),
        (sys.executable, "v3", "v3:2x2"),
    ],
)
def test_what_is_not_there_is_named(python, topology, match):
    with pytest.raises(PlatformError, match=match):
        tpu_compiler.TPUCompiler(python, topology)


def test_a_process_that_fails_is_told(tmp_path, monkeypatch):
    script = tmp_path / "process.py"
    script.write_text("import no_such_package")
    monkeypatch.setattr(tpu_compiler, "PROCESS", script)
    with pytest.raises(PlatformError, match="no_such_package.*make preflight"):
        tpu_compiler.TPUCompiler(sys.executable, "v3:2x2")


@pytest.mark.slow
@pytest.mark.skipif(
    not os.access(COMPILER_PYTHON, os.X_OK), reason="no compiler here; `make preflight` installs it"
)
def test_the_compiled_attack_has_no_collective_and_the_compiled_step_is_believable():
    compiler = tpu_compiler.TPUCompiler(COMPILER_PYTHON, "v3:4x4")
    assert compiler.num_cores == 32

    def compiled_program(function, specs, num_replicas=32):
        hlo = tpu_compiler.lower(function, specs, num_replicas)
        return tpu_compiler.program_of(compiler.compile(hlo, num_replicas))

    config = tiny_config("advprop")
    compiled = {
        "attack": compiled_program(*attack(config, 8)),
        "advprop": compiled_program(*preflight_results.training_step(config, 8, 32)),
    }

    def exchange(images):
        return reduction.exchange_over_replicas(images, group_size=8)

    exchanged = compiled_program(exchange, [tf.TensorSpec([16, 8], tf.uint8)])
    assert exchanged.collectives == {"all-to-all": 1}

    def draw(seed):
        return replica_runtime.current().random_words(2**20, seed)

    drawn = compiled_program(draw, [tf.TensorSpec([2], tf.int32)], 1)
    assert drawn.collectives == {} and drawn.scheduled_seconds < 1e-4  # Philox would take 1.3 ms
    assert compiled["attack"].collectives == {}
    assert compiled["advprop"].collectives["all-reduce"] > 0
    assert 0 < compiled["attack"].flops < compiled["advprop"].flops
    # Two steps of the attack are nearly all of it.
    assert 2 * compiled["attack"].loop_flops > compiled["attack"].flops
    assert json.dumps(compiled["advprop"].versions)
