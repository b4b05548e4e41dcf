"""A TPU's own compiler, asked about a program on a machine without a TPU.

    compiler = TPUCompiler(".venv-preflight/bin/python", "v3:2x2")
    hlo = lower(train_step, [images_spec, labels_spec], num_replicas=8)     # TensorFlow, this process
    program = compiler.compile(hlo, num_replicas=8)                         # libtpu, a process in another environment
    program.memory_bytes, program.flops, program.scheduled_seconds

TensorFlow turns the function into HLO as it would for a TPU; libtpu, which JAX brings, schedules it and says what it needs.
What it says of time is an estimate: no TPU has run anything.
"""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import tempfile
from typing import Any, Callable, Optional, Sequence

import tensorflow as tf

from tpu_utils.errors import PlatformError, brief_message
from tpu_utils.replicas import replica_runtime

PROCESS = pathlib.Path(__file__).with_name("tpu_compiler_process.py")
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one core (what TensorFlow calls a replica's device) has."""

    memory_bytes: int
    flops_per_second: float  # bfloat16, peak
    cycles_per_second: float


# Google Cloud's documentation, per core: v2 and v3 have two cores a chip, later ones one (or two that act as one). The clocks
# are those of Jouppi et al. (ISCA 2023) for v2 to v4; of the others, published peak / (matrix units × size² × 2).
CHIPS = {
    "v2": Chip(8 * GIB, 23e12, 700e6),
    "v3": Chip(16 * GIB, 61.5e12, 940e6),
    "v4": Chip(32 * GIB, 275e12, 1050e6),
    "v5e": Chip(16 * GIB, 197e12, 1500e6),
    "v5p": Chip(95 * GIB, 459e12, 1750e6),
    "v6e": Chip(32 * GIB, 918e12, 1750e6),
}


class CompilerError(PlatformError, RuntimeError):
    """The compiler is not there, does not know the topology, or refuses the program; the message says which, and what to do."""


class OutOfMemoryError(CompilerError):
    """The program needs more memory than a core has. `needed_bytes` is how much, where the compiler says so."""

    def __init__(self, message: str, needed_bytes: Optional[int]):
        super().__init__(message)
        self.needed_bytes = needed_bytes


class PlannedReplicas(replica_runtime.ReplicaRuntime):
    """Replicas on TPU cores that exist only for the compiler: what a TPU does by operations of its own gets a stand-in.

    Args:
        num_replicas: ≥ 1.
        replica_id: int32 scalar, a parameter of the traced function, so that nothing is decided by its value.
    """

    def __init__(self, num_replicas: int, replica_id: tf.Tensor):
        self._num_replicas, self._replica_id = num_replicas, replica_id

    @property
    def num_replicas(self) -> int:
        return self._num_replicas

    @property
    def replica_id(self) -> tf.Tensor:
        return self._replica_id

    @property
    def reduces_in_loops(self) -> bool:
        return True

    @property
    def executes_in_order(self) -> bool:
        return True

    def sum_in_groups(self, tensors, group_size):
        with tf.name_scope(f"sum_in_groups_of_{group_size}"):
            return [self._stand_in(tensor) for tensor in tensors]

    def exchange_in_groups(self, tensor, group_size):
        with tf.name_scope(f"exchange_in_groups_of_{group_size}"):
            if tensor.dtype in (tf.float32, tf.bfloat16, tf.int32):
                return self._stand_in(tensor)
            return tf.cast(self._stand_in(tf.cast(tensor, tf.int32)), tensor.dtype)

    def random_words(self, count, seed):
        with tf.name_scope("random_words"):
            return self._stand_in(tf.tile(seed, [count // 2]))

    def _stand_in(self, tensor):
        """For what the name scope says: TensorFlow has kernels of the TPU's own operations on TPUs only. This one lowers
        anywhere; `tpu_compiler_process` finds the name in the HLO and puts the operation meant in its place."""
        return tf.raw_ops.CollectiveReduceV2(
            input=tensor, group_size=self._num_replicas, group_key=1, instance_key=1, ordering_token=[], merge_op="Add",
            final_op="Id",
        )  # fmt: skip


def lower(
    function: Callable,
    specs: Sequence[tf.TensorSpec],
    num_replicas: int = 1,
    stage: str = "hlo_serialized",
):
    """One replica's program, as XLA gets it.

    Args:
        function: what a replica runs; may read and change variables.
        specs: of its arguments.
        num_replicas: how many run it together, as `replica_runtime` reports it inside the step.
        stage: "hlo_serialized" (bytes, for `TPUCompiler.compile`) or "hlo" (text, to look at).

    Raises:
        CompilerError: an operation that XLA does not have; the message names it.
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
        raise CompilerError(f"XLA cannot take the step: {brief_message(error)}") from error


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
    """What the compiler says of one core's program; but for traffic, loops are counted as often as they run."""

    argument_bytes: int
    output_bytes: int
    alias_bytes: int  # outputs that replace arguments: updated variables
    temporary_bytes: int
    code_bytes: int
    flops: float
    bytes_accessed: float  # each loop once
    scheduled_seconds: float  # the compiler's cycles for the instructions of its schedule
    loop_flops: float  # of `flops`, those inside loops: an attack's
    loop_seconds: float  # of `scheduled_seconds`, likewise
    collectives: dict[str, int]  # instructions of each kind
    unknown_loops: int  # loops whose number of iterations the text does not tell: counted once
    compile_seconds: float
    versions: dict[str, str]

    @property
    def memory_bytes(self) -> int:
        """All that is in a core's memory at once."""
        return (
            self.argument_bytes
            + self.output_bytes
            - self.alias_bytes
            + self.temporary_bytes
            + self.code_bytes
        )


def is_credible(program: CompiledProgram, chip: Chip) -> bool:
    """Whether a program's scheduled time can be believed: it counts every loop, and is neither faster than the matrix units'
    peak nor a thousand times slower."""
    shortest = program.flops / chip.flops_per_second
    return not program.unknown_loops and shortest < program.scheduled_seconds < 1000 * shortest


class TPUCompiler:
    """libtpu in a Python environment of its own.

    Args:
        python: that environment's interpreter; `make preflight` makes one.
        topology: of the TPU, such as "v3:2x2": kind and chips per dimension.

    Raises:
        CompilerError: there is no such interpreter, it lacks the compiler, or the compiler does not know the topology.
    """

    def __init__(self, python: str, topology: str):
        if not os.access(python, os.X_OK):
            raise CompilerError(
                f"`compiler_python` is {python!r}, but there is no such program; `make preflight` makes the environment "
                ".venv-preflight, or name the Python of one with requirements-preflight.txt installed."
            )
        self.python, self.topology = python, topology
        kind = topology.split(":")[0]
        if kind not in CHIPS or ":" not in topology:
            raise CompilerError(
                f"`topology` is {topology!r}, but must be a kind ({', '.join(CHIPS)}) and chips per dimension: 'v3:2x2'."
            )
        self.chip = CHIPS[kind]
        self.num_cores = self._ask(b"", 0)["num_devices"]

    def compile(self, hlo: bytes, num_replicas: int) -> CompiledProgram:
        """Compiles one core's program, to run on the first `num_replicas` cores together.

        Raises:
            OutOfMemoryError: it does not fit into a core's memory.
            CompilerError: the compiler refuses it for another reason.
        """
        answer = self._ask(hlo, num_replicas)
        loops = [{**loop, "iterations": loop["iterations"] or 1} for loop in answer["loops"]]

        def total(name):
            return answer[name] + sum((loop["iterations"] - 1) * loop[name] for loop in loops)

        def inside(name):
            return sum(loop["iterations"] * loop[name] for loop in loops)

        clock = self.chip.cycles_per_second
        return CompiledProgram(
            argument_bytes=answer["argument_bytes"],
            output_bytes=answer["output_bytes"],
            alias_bytes=answer["alias_bytes"],
            temporary_bytes=answer["temporary_bytes"],
            code_bytes=answer["code_bytes"],
            flops=total("flops"),
            bytes_accessed=answer["bytes_accessed"],
            scheduled_seconds=total("cycles") / clock,
            loop_flops=inside("flops"),
            loop_seconds=inside("cycles") / clock,
            collectives=answer["collectives"],
            unknown_loops=sum(loop["iterations"] is None for loop in answer["loops"]),
            compile_seconds=answer["seconds"],
            versions=answer["versions"],
        )

    def _ask(self, hlo: bytes, num_replicas: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            program, result = (
                os.path.join(folder, "program.hlo"),
                os.path.join(folder, "result.json"),
            )
            pathlib.Path(program).write_bytes(hlo)
            command = [self.python, str(PROCESS), program, self.topology, str(num_replicas), result]
            clean = {
                name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
            }
            process = subprocess.run(command, capture_output=True, text=True, env=clean)
            if not os.path.exists(result):
                raise CompilerError(
                    f"The compiler in {self.python} stopped with exit code {process.returncode}: {_last_line(process.stderr)} "
                    "If packages are missing, run `make preflight`; if the machine ran out of memory, take a smaller batch."
                )
            answer = json.loads(pathlib.Path(result).read_text())
        kind, message = answer.get("error"), answer.get("message", "")
        if kind == "topology":
            raise CompilerError(
                f"`topology` is {self.topology!r}, but the compiler knows none such: {brief_message(message)}"
            )
        if kind == "memory":
            needed = re.search(r"Used ([\d.]+)([KMG]) of", message)
            size = needed and int(float(needed[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[needed[2]])
            raise OutOfMemoryError(brief_message(message), size)
        if kind:
            raise CompilerError(f"The TPU's compiler refuses the program: {brief_message(message)}")
        return answer


def _last_line(message) -> str:
    return (str(message).strip().splitlines() or ["(no message)"])[-1]
