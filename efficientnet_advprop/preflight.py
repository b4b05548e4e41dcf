r"""Compiles a config's training step for a TPU on a machine without one; reports time
and memory.

    make preflight    # installs the compiler's environment, once
    python -m efficientnet_advprop.preflight --config=configs/advprop.py:b7 --topology=v3:2x2 \
        --replica_batch_size=16
    python -m efficientnet_advprop.preflight --config=configs/advprop.py:b7 --topology=v3:2x2 \
        --find_batch_size

The step is the complete one: attack, passes through both branches, reductions over all
cores of the topology, optimizer and averages. The reported memory is what the compiler
has allocated. The reported time is an estimate, the sum of the compiler's schedule.
A config of several stages has a step for each. Every result is saved as JSON in
--results_dir and is not computed again, so an interrupted search continues where it
stopped. docs/launching.md explains the results. Exit codes: 0 all steps fit, 2 wrong
flags or config, 1 any other error, with one message.
"""

import copy
import dataclasses

from absl import flags

from efficientnet_advprop.command_line import program
from efficientnet_advprop.config.experiment import ConfigError
from efficientnet_advprop.runtime.errors import PlatformError

_CONFIG = program.define_config_flag()
_TOPOLOGY = flags.DEFINE_string(
    "topology", "v3:2x2", "kind of TPU and chips per dimension: v3:2x2 is a v3-8, v3:4x4 a v3-32"
)
_NUM_REPLICAS = flags.DEFINE_integer(
    "num_replicas", None, "cores that train together; default: all of the topology"
)
_REPLICA_BATCH_SIZE = flags.DEFINE_integer(
    "replica_batch_size",
    None,
    "clean images per core; default: config.training.global_batch_size over the cores",
)
_FIND_BATCH_SIZE = flags.DEFINE_bool(
    "find_batch_size", False, "search the largest batch per core that fits"
)
_COMPARE = flags.DEFINE_bool(
    "compare_with_vanilla", True, "compile vanilla training too, at the same batch, for the ratio"
)
_RESULTS_DIR = flags.DEFINE_string(
    "results_dir", "runs/preflight", "folder of the answers, as JSON"
)
_COMPILER_PYTHON = flags.DEFINE_string(
    "compiler_python",
    ".venv-preflight/bin/python",
    "Python of the environment with requirements-preflight.txt installed",
)


def main(argv):
    del argv
    config = program.read_config(_CONFIG)
    program.require_extra("preflight")
    # Imported here, so that --help and a wrong flag do not wait for TensorFlow.
    from advprop_preflight import preflight_results, tpu_compiler
    from advprop_preflight.preflight_results import find_largest_batch

    compiler = tpu_compiler.TPUCompiler(_COMPILER_PYTHON.value, _TOPOLOGY.value)
    num_replicas = compiler.num_cores if _NUM_REPLICAS.value is None else _NUM_REPLICAS.value
    if not 1 <= num_replicas <= compiler.num_cores:
        raise ConfigError(
            f"`--num_replicas` is {num_replicas}, "
            f"but {_TOPOLOGY.value} has 1 to {compiler.num_cores} cores."
        )
    results = preflight_results.PreflightResults(_RESULTS_DIR.value, compiler, num_replicas)
    batch = _REPLICA_BATCH_SIZE.value
    if batch is None:
        global_batch = config.training.global_batch_size
        if global_batch % num_replicas:
            raise ConfigError(
                f"`config.training.global_batch_size` is {global_batch}, but must divide by the "
                f"{num_replicas} cores of {_TOPOLOGY.value}; change it, or give "
                "--replica_batch_size."
            )
        batch = global_batch // num_replicas
    # A stage's data are those of a run of its own; the last stage needs most memory.
    stages = [dataclasses.replace(config, data=data) for data in config.data.stages()]
    if _FIND_BATCH_SIZE.value:
        batch = find_largest_batch(
            lambda batch: results.try_step(stages[-1], batch),
            capacity_bytes=compiler.chip.memory_bytes,
            first=min(batch, 32),
            multiple=config.training.accumulation_steps,
        )
        if batch is None:
            raise PlatformError(preflight_results.WAYS_OUT)
    fits = True
    for stage in stages:
        record, vanilla = results.compile_step(stage, batch), None
        if _COMPARE.value and record["fits"] and config.training.method != "vanilla":
            plain = copy.deepcopy(stage)
            plain.training.method = "vanilla"
            vanilla = results.compile_step(plain, batch)
        print(preflight_results.describe(record, vanilla, compiler), flush=True)
        fits = fits and record["fits"]
    return 0 if fits else program.FAILED


if __name__ == "__main__":
    program.run(main)
