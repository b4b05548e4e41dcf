"""Compiles a program for a TPU on a machine without one; reports its time and memory.

TensorFlow lowers the function to HLO as it would for a TPU. libtpu, which JAX installs,
schedules the program and reports what it needs. Its times are estimates; no TPU runs
anything.
"""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import tempfile
from typing import Any, Callable, Sequence

import tensorflow as tf

from efficientnet_advprop.runtime.errors import PlatformError, brief_message
from tpu_utils import replica_runtime

PROCESS = pathlib.Path(__file__).with_name("tpu_compiler_process.py")
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """The properties of one core, which TensorFlow regards as the device of one replica."""

    memory_bytes: int
    flops_per_second: float  # bfloat16, peak
    cycles_per_second: float


# Source: Google Cloud's documentation, per core. v2 and v3 have two cores per chip,
# later chips have one (or two that act as one). The clock rates of v2 to v4 are those
# of Jouppi et al. (ISCA 2023); the others are computed: published peak / (matrix units
# × size² × 2).
CHIPS = {
    "v2": Chip(8 * GIB, 23e12, 700e6),
    "v3": Chip(16 * GIB, 61.5e12, 940e6),
    "v4": Chip(32 * GIB, 275e12, 1050e6),
    "v5e": Chip(16 * GIB, 197e12, 1500e6),
    "v5p": Chip(95 * GIB, 459e12, 1750e6),
    "v6e": Chip(32 * GIB, 918e12, 1750e6),
}


class PlannedReplicas(replica_runtime.ReplicaRuntime):
    """Replicas on TPU cores that exist only for the compiler.

    Operations that TensorFlow can build on TPUs only are replaced by placeholders.
    """

    num_replicas = 1  # plain attributes in place of the properties there
    replica_id: tf.Tensor = None
    reduces_in_loops = True
    executes_in_order = True

    def __init__(self, num_replicas: int, replica_id: tf.Tensor):
        # `replica_id` is a parameter of the traced function, so that the program is the
        # same for all replicas.
        self.num_replicas, self.replica_id = num_replicas, replica_id

    def sum_in_groups(self, tensors, group_size):
        with tf.name_scope(f"sum_in_groups_of_{group_size}"):
            return [self._placeholder(tensor) for tensor in tensors]

    def exchange_in_groups(self, tensor, group_size):
        with tf.name_scope(f"exchange_in_groups_of_{group_size}"):
            if tensor.dtype in (tf.float32, tf.bfloat16, tf.int32):
                return self._placeholder(tensor)
            return tf.cast(self._placeholder(tf.cast(tensor, tf.int32)), tensor.dtype)

    def random_words(self, count, seed):
        with tf.name_scope("random_words"):
            return self._placeholder(tf.tile(seed, [count // 2]))

    def _placeholder(self, tensor):
        # TensorFlow has kernels of the TPU's own operations on TPUs only. This one can be
        # lowered anywhere; `tpu_compiler_process` finds the name scope in the HLO and
        # inserts the operation that it names.
        return tf.raw_ops.CollectiveReduceV2(
            input=tensor,
            group_size=self.num_replicas,
            group_key=1,
            instance_key=1,
            ordering_token=[],
            merge_op="Add",
            final_op="Id",
        )


def lower(
    function: Callable,
    specs: Sequence[tf.TensorSpec],
    num_replicas: int = 1,
    stage: str = "hlo_serialized",
):
    """Returns the program of one of `num_replicas` replicas, in the form that XLA receives.

    `function` may read and change variables; `specs` are those of its arguments. `stage` is
    "hlo_serialized" (bytes, for `TPUCompiler.compile`) or "hlo" (text, to read). Raises a
    `PlatformError` if the function contains an operation that XLA does not have.
    """

    def program(replica_id, *arguments):
        with replica_runtime.use(PlannedReplicas(num_replicas, replica_id)):
            return function(*arguments)

    compiled = tf.function(program, jit_compile=True, autograph=False)
    try:
        return compiled.experimental_get_compiler_ir(tf.TensorSpec([], tf.int32), *specs)(
            stage=stage
        )
    except (ValueError, tf.errors.OpError) as error:
        if "unsupported operations" not in str(error) and "conversion failed" not in str(error):
            raise
        raise _failure(f"XLA cannot take the step: {brief_message(error)}") from error


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
    """What the compiler reports about the program of one core.

    Loops are counted as often as they run, except in `bytes_accessed`.
    """

    argument_bytes: int
    output_bytes: int
    alias_bytes: int  # outputs that overwrite arguments: updated variables
    temporary_bytes: int
    code_bytes: int
    flops: float
    bytes_accessed: float  # every loop counted once
    scheduled_seconds: float  # the compiler's cycles for the instructions of its schedule
    loop_flops: float  # the part of `flops` inside loops, that is, in attacks
    loop_seconds: float  # the part of `scheduled_seconds` inside loops
    collectives: dict[str, int]  # instructions of each kind
    unknown_loops: int  # loops with an unknown number of iterations, which are counted once
    compile_seconds: float
    versions: dict[str, str]

    @property
    def memory_bytes(self) -> int:
        """The memory of a core that the program needs at once."""
        buffers = self.argument_bytes + self.output_bytes - self.alias_bytes
        return buffers + self.temporary_bytes + self.code_bytes


def program_of(record: dict[str, Any]) -> CompiledProgram:
    """Returns the program of what `TPUCompiler.compile` answers, if it fits."""
    return CompiledProgram(**record["program"])


def is_credible(program: CompiledProgram, chip: Chip) -> bool:
    """Returns whether the scheduled time counts every loop and is neither shorter than at
    peak performance of the matrix units nor a thousand times longer.
    """
    shortest = program.flops / chip.flops_per_second
    return not program.unknown_loops and shortest < program.scheduled_seconds < 1000 * shortest


# The fields that the compiler's process answers as they are.
_AS_ANSWERED = (
    *("argument_bytes", "output_bytes", "alias_bytes", "temporary_bytes", "code_bytes"),
    *("bytes_accessed", "collectives", "versions"),
)


class TPUCompiler:
    """The compiler libtpu, in a Python environment of its own, which `make preflight` makes.

    `topology` is the TPU's kind and the chips per dimension, such as "v3:2x2". Raises a
    `PlatformError` if the compiler is missing there or does not know the topology.
    """

    def __init__(self, python: str, topology: str):
        if not os.access(python, os.X_OK):
            raise PlatformError(
                f"`compiler_python` is {python!r}, but there is no such program; "
                "`make preflight` makes the environment .venv-preflight, "
                "or name the Python of one with requirements-preflight.txt installed."
            )
        self.python = python
        self.topology = topology
        kind = topology.split(":")[0]
        if kind not in CHIPS or ":" not in topology:
            raise PlatformError(
                f"`topology` is {topology!r}, but must be a kind ({', '.join(CHIPS)}) "
                "and chips per dimension: 'v3:2x2'."
            )
        self.chip = CHIPS[kind]
        self.num_cores = self._ask(b"", 0)["num_devices"]

    def compile(self, hlo: bytes, num_replicas: int) -> dict[str, Any]:
        """Compiles the program of one core, to run on the first `num_replicas` cores together.

        Returns {"fits": True, "program": the fields of `CompiledProgram`}, or, where a core
        has too little memory, {"fits": False, "message", "needed_bytes": None if unknown}.
        Raises a `PlatformError` if the compiler rejects it for another reason.
        """
        answer = self._ask(hlo, num_replicas)
        if answer.get("error") == "memory":
            message = answer["message"]
            needed = re.search(r"Used ([\d.]+)([KMG]) of", message)
            size = needed and int(float(needed[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[needed[2]])
            return {"fits": False, "message": brief_message(message), "needed_bytes": size}
        loops = [{**loop, "iterations": loop["iterations"] or 1} for loop in answer["loops"]]

        def total(name):
            return answer[name] + sum((loop["iterations"] - 1) * loop[name] for loop in loops)

        def inside(name):
            return sum(loop["iterations"] * loop[name] for loop in loops)

        clock = self.chip.cycles_per_second
        program = CompiledProgram(
            **{name: answer[name] for name in _AS_ANSWERED},
            flops=total("flops"),
            scheduled_seconds=total("cycles") / clock,
            loop_flops=inside("flops"),
            loop_seconds=inside("cycles") / clock,
            unknown_loops=sum(loop["iterations"] is None for loop in answer["loops"]),
            compile_seconds=answer["seconds"],
        )
        return {"fits": True, "program": dataclasses.asdict(program)}

    def _ask(self, hlo: bytes, num_replicas: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            program = os.path.join(folder, "program.hlo")
            result = os.path.join(folder, "result.json")
            pathlib.Path(program).write_bytes(hlo)
            command = [self.python, str(PROCESS), program, self.topology, str(num_replicas), result]
            clean = {k: value for k, value in os.environ.items() if not k.startswith("PYTHON")}
            process = subprocess.run(command, capture_output=True, text=True, env=clean)
            if not os.path.exists(result):
                last_line = (process.stderr.strip().splitlines() or ["(no message)"])[-1]
                raise _failure(
                    f"The compiler in {self.python} stopped with exit code {process.returncode}: "
                    f"{last_line} If packages are missing, run `make preflight`; "
                    "if the machine ran out of memory, take a smaller batch."
                )
            answer = json.loads(pathlib.Path(result).read_text())
        kind = answer.get("error")
        message = answer.get("message", "")
        if kind == "topology":
            raise PlatformError(
                f"`topology` is {self.topology!r}, but the compiler does not know it: "
                f"{brief_message(message)}"
            )
        if kind not in (None, "memory"):
            raise _failure(f"The TPU's compiler refuses the program: {brief_message(message)}")
        return answer


def _failure(message: str) -> PlatformError:
    """Returns an error that no other argument avoids."""
    error = PlatformError(message)
    error.exit_code = 1
    return error
