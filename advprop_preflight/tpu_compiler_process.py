"""Compiles one program for a TPU; `tpu_compiler` runs it in the compiler's environment.

    python tpu_compiler_process.py PROGRAM.hlo v3:2x2 NUM_REPLICAS RESULT.json

The packages of `requirements-preflight.txt` contain the compiler. Their numpy and
ml_dtypes conflict with TensorFlow 2.15, so this process imports nothing of this
project. The result is JSON: the compiler's report, or {"error": kind, "message": text},
where the kind is "topology", "memory" or "program". If the environment variable
PREFLIGHT_DUMP names a file, the text of the compiled program is written to it.
"""

import collections
import importlib.metadata
import json
import os
import re
import sys
import time

# There is no TPU here, and so no metadata server that could describe it.
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
# No process uses a chip here, so several processes may compile at the same time.
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from jax.experimental import topologies
from jax.interpreters import mlir as jax_mlir
from jaxlib import _hlo, _jax, xla_client
from jaxlib.mlir import ir

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def search(pattern: str, text: str) -> re.Match[str]:
    """Returns the first match, where ^ and $ match at the ends of lines; a ValueError if there
    is none, because another version of the compiler writes another text.
    """
    found = re.search(pattern, text, re.MULTILINE)
    if found is None:
        raise ValueError(f"the compiler's text has nothing like {pattern}: {text[:200]}")
    return found


def with_tpu_operations(hlo: bytes, num_replicas: int) -> bytes:
    """Replaces the placeholders in TensorFlow's HLO by the operations they stand for.

    Placeholders are all-reduces with the names "sum_in_groups_of_8" (groups of eight
    consecutive replicas), "exchange_in_groups_of_8" or "random_words".
    """
    options = _hlo.HloPrintOptions()
    options.print_large_constants = True
    lines = _hlo.HloModule.from_serialized_hlo_module_proto(hlo).to_string(options).splitlines()
    for index, line in enumerate(lines):
        if " all-reduce(" in line and "random_words" in line:
            lines[index] = as_random_generator(line)
        elif " all-reduce(" in line:
            meant = search(r'op_name="[^"]*(sum|exchange)_in_groups_of_(\d+)', line)
            size = int(meant[2])
            firsts = range(0, num_replicas, size)
            groups = ",".join("{%s}" % ",".join(map(str, range(i, i + size))) for i in firsts)
            line = re.sub(r"channel_id=\d+, ", "", line)
            line = line.replace("replica_groups={}", "replica_groups={" + groups + "}")
            if meant[1] == "exchange":
                line = line.replace(" all-reduce(", " all-to-all(")
                line = re.sub(r"to_apply=%?[\w.-]+", "dimensions={0}", line)
            lines[index] = line
    return _hlo.hlo_module_from_text("\n".join(lines)).as_serialized_hlo_module_proto()


def as_random_generator(line: str) -> str:
    """Replaces an all-reduce of int32 [n], whose first two words are the seed, by random words
    from the generator of the device.
    """
    found = search(
        r"^\s*%?([\w.-]+) = s32\[(\d+)\].* all-reduce\((?:s32\[\d+\]\S* )?%?([\w.-]+)\)", line
    )
    name, count, operand = found.groups()
    return "\n".join(
        [
            f"  %{name}.seed = s32[2]{{0}} slice(%{operand}), slice={{[0:2]}}",
            f"  %{name}.state = u64[2]{{0}} convert(%{name}.seed)",
            f"  %{name}.drawn = (u64[2]{{0}}, u32[{count}]{{0}}) "
            f"rng-bit-generator(%{name}.state), algorithm=rng_default",
            f"  %{name}.words = u32[{count}]{{0}} get-tuple-element(%{name}.drawn), index=1",
            f"  %{name} = s32[{count}]{{0}} bitcast-convert(%{name}.words)",
        ]
    )


def to_stablehlo(hlo: bytes) -> str:
    """Converts HLO to the text format that the current compiler reads."""
    text = _jax.mlir.xla_computation_to_mlir_module(xla_client.XlaComputation(hlo))
    return re.sub(
        r"mhlo\.copy (%[\w.#]+)(?: \{[^}]*\})? : (tensor<[^ ]*>)",
        r"stablehlo.reshape \1 : (\2) -> \2",
        text,
    )


def move_aliases_to_arguments(module: ir.Module) -> None:
    """Marks the arguments that outputs overwrite, that is, the updated variables."""
    # The module's own attribute counts parameters that are not in a tuple: it is removed.
    aliases = ir.ArrayAttr(module.operation.attributes["mhlo.input_output_alias"])
    outputs = {}
    for entry in map(ir.DictAttr, aliases):
        parameter = ir.IntegerAttr(ir.DictAttr(entry["alias"])["parameter_number"]).value
        outputs[parameter] = list(ir.DenseI64ArrayAttr(entry["output_index"]))[0]
    del module.operation.attributes["mhlo.input_output_alias"]
    (main,) = (
        function
        for function in module.body.operations
        if ir.StringAttr(function.attributes["sym_name"]).value == "main"
    )
    int32 = ir.IntegerType.get_signless(32)
    attributes: list[dict] = [{} for _ in main.arguments]
    for parameter, output in outputs.items():
        attributes[parameter]["tf.aliasing_output"] = ir.IntegerAttr.get(int32, output)
    main.arg_attrs = ir.ArrayAttr.get([ir.DictAttr.get(attribute) for attribute in attributes])


def compile_program(text: str, devices, num_replicas: int):
    """Compiles a program for the first `num_replicas` of `devices`."""
    options = xla_client.CompileOptions()
    assignment = xla_client.DeviceAssignment.create(
        np.array([[device.id] for device in devices[:num_replicas]])
    )
    build = options.executable_build_options
    options.num_replicas = build.num_replicas = num_replicas
    options.num_partitions = build.num_partitions = 1
    options.device_assignment = build.device_assignment = assignment
    # A TPU accepts about 3,300 parameters; the step of a large network has more.
    options.parameter_is_tupled_arguments = True
    with jax_mlir.make_ir_context():
        module = ir.Module.parse(text)
        move_aliases_to_arguments(module)
        return devices[0].client.compile(
            module, _jax.DeviceList(tuple(devices[:num_replicas])), options
        )


class Schedule:
    """The instructions and the compiler's cycles, read from a compiled program's text."""

    def __init__(self, text: str):
        self.text = text
        self.entry = search(r"^ENTRY %?([\w.-]+) \(", text)[1]
        # Computation → name of an instruction → its opcode and its line of the text.
        self.instructions: dict[str, dict[str, tuple[str, str]]] = {}
        for line in text.splitlines():
            header = re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line)
            instruction = re.match(r"\s+(?:ROOT )?%?([\w.-]+) = .*? ([a-z][a-z0-9-]*)\(", line)
            if header:
                current = self.instructions.setdefault(header[1], {})
            elif instruction:
                current[instruction[1]] = (instruction[2], line)

    def cycles(self, computation: str) -> int:
        """Returns the sum of the cycles of all instructions; loops inside are not counted."""
        found = (
            re.search(r'"estimated_cycles":"(\d+)"', line)
            for _, line in self.instructions[computation].values()
        )
        return sum(int(match[1]) for match in found if match)

    def collectives(self) -> dict:
        """Counts the collective instructions of each kind; asynchronous pairs count once."""
        opcodes = (
            re.sub("-start$", "", opcode)
            for part in self.instructions.values()
            for opcode, _ in part.values()
        )
        return dict(collections.Counter(opcode for opcode in opcodes if opcode in COLLECTIVES))

    def loops(self) -> list:
        """Returns each loop's iterations (None: unknown), and the cost of one."""
        result = []
        for computation, part in self.instructions.items():
            for opcode, line in part.values():
                if opcode == "while":
                    body = search(r"body=%?([\w.-]+)", line)[1]
                    iterations = self._iterations(computation, line)
                    result.append(
                        {"iterations": iterations, "cycles": self.cycles(body), **self._cost(body)}
                    )
        return result

    def _iterations(self, computation, line):
        # From the condition's limit and the counter's first value.
        condition = self.instructions[search(r"condition=%?([\w.-]+)", line)[1]]
        lines = "\n".join(line for _, line in condition.values())
        limits = [int(limit) for limit in re.findall(r" constant\((\d+)\)", lines)]
        places = [int(place) for place in re.findall(r"get-tuple-element\(.*index=(\d+)", lines)]
        if len(limits) != 1 or len(places) != 1 or "direction=LT" not in lines:
            return None
        part = self.instructions[computation]
        start = self._operands(part, search(r" while\(%?([\w.-]+)\)", line)[1])[places[0]]
        while part[start][0] in ("copy", "bitcast"):
            start = self._operands(part, start)[0]
        value = re.search(r" constant\((\d+)\)", part[start][1])
        return limits[0] - int(value[1]) if value else None

    @staticmethod
    def _operands(part, name):
        opcode, line = part[name]
        return re.findall(r"%([\w.-]+)", line.split(f" {opcode}(", 1)[1].split("), ")[0])

    def _cost(self, computation: str) -> dict:
        # XLA's cost analysis reads the text with this computation as its entry.
        old = search(r"^ENTRY (?s:.*?)^\}$", self.text)[0]
        head, rest = self.text.replace(old, "").split("\n", 1)
        head = re.sub(r", (?:input_output_alias|entry_computation_layout)=\{.*", "", head)
        text = f"{head}\n{rest}".replace(f"\n%{computation} (", f"\nENTRY %{computation} (", 1)
        cost = _jax.hlo_module_cost_analysis(
            jax.devices("cpu")[0].client, _hlo.hlo_module_from_text(text)
        )
        return {"flops": cost["flops"]}


def run(hlo: bytes, topology_name: str, num_replicas: int) -> dict:
    """Compiles the program and returns the compiler's report."""
    start = time.time()
    # libtpu itself only tells when it was built.
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu")}
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology_name).devices
    except Exception as error:  # JAX has no narrower class for the compiler's errors
        return {"error": "topology", "message": str(error)}
    common = {"num_devices": len(devices), "versions": versions}
    if num_replicas > len(devices):
        message = f"{topology_name} has {len(devices)} cores"
        return {**common, "error": "topology", "message": message}
    if num_replicas == 0:  # the caller only wants to know the topology
        return common
    try:
        executable = compile_program(
            to_stablehlo(with_tpu_operations(hlo, num_replicas)), devices, num_replicas
        )
    except Exception as error:
        message = str(error)
        is_full = "RESOURCE_EXHAUSTED" in message or "memory" in message.lower()
        return {**common, "error": "memory" if is_full else "program", "message": message}
    memory = executable.get_compiled_memory_stats()
    cost = executable.cost_analysis()
    text = executable.hlo_modules()[0].to_string()
    if os.environ.get("PREFLIGHT_DUMP"):
        with open(os.environ["PREFLIGHT_DUMP"], "w") as file:
            file.write(text)
    schedule = Schedule(text)
    loops = schedule.loops()
    return {
        **common,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "flops": cost["flops"],
        "bytes_accessed": cost["bytes accessed"],
        "cycles": schedule.cycles(schedule.entry) + sum(loop["cycles"] for loop in loops),
        "loops": loops,
        "collectives": schedule.collectives(),
        "seconds": time.time() - start,
    }


if __name__ == "__main__":
    program_path, topology_name, num_replicas, result_path = sys.argv[1:]
    with open(program_path, "rb") as program:
        result = run(program.read(), topology_name, int(num_replicas))
    with open(result_path, "w") as file:
        json.dump(result, file)
