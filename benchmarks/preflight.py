"""The table of what every recipe costs on a TPU, as its compiler says: memory, arithmetic, estimated time.

    python benchmarks/preflight.py                                # the table, from the answers in benchmarks/preflight/
    python benchmarks/preflight.py --compile                      # asks for what is missing: hours; resumes where it was

Each answer comes from `python -m tpu_utils.preflight`; docs/preflight.md explains the figures. BUILD_NOTES.md has the table.
"""

import json
import pathlib
import subprocess
import sys

from absl import app, flags

from tpu_utils import tpu_compiler

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks/preflight"
TOPOLOGIES = ("v3:2x2", "v3:4x4", "v5e:2x2")
# Configs, topology and the batch per core to start from, the most telling first.
ENTRIES = [
    ("advprop.py:b0", "v3:2x2", 512),
    ("efficientnet.py:b0", "v3:2x2", 512),
    ("advprop.py:b7", "v3:2x2", 8),
    ("advprop.py:b3", "v3:2x2", 160),
    ("efficientnet.py:b3", "v3:2x2", 160),
    ("advprop.py:b8", "v3:2x2", 8),
    ("advprop.py:b0", "v3:4x4", 128),
    ("efficientnet.py:b7", "v3:2x2", 8),
    ("efficientnet.py:b8", "v3:2x2", 8),
    ("advprop.py:b0", "v5e:2x2", 512),
    ("efficientnet.py:b0", "v5e:2x2", 512),
    ("advprop.py:b1", "v3:2x2", 320),
    ("advprop.py:b2", "v3:2x2", 256),
    ("advprop.py:b4", "v3:2x2", 64),
    ("advprop.py:b5", "v3:2x2", 32),
    ("advprop.py:b6", "v3:2x2", 16),
    ("efficientnet.py:b1", "v3:2x2", 320),
    ("efficientnet.py:b2", "v3:2x2", 256),
    ("efficientnet.py:b4", "v3:2x2", 64),
    ("efficientnet.py:b5", "v3:2x2", 32),
    ("efficientnet.py:b6", "v3:2x2", 16),
    ("advprop.py:b3", "v5e:2x2", 160),
    ("efficientnet.py:b3", "v5e:2x2", 160),
]
FLAGS = flags.FLAGS
flags.DEFINE_bool("compile", False, "Ask the compiler for what is missing, rather than only print the table.")
flags.DEFINE_bool("search", False, "With --compile: search the largest batch of each instead of asking for one that should fit.")
flags.DEFINE_string("compiler_python", ".venv-preflight/bin/python", "See tpu_utils.preflight.")


def records() -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]


def ask(config: str, topology: str, batch: int, *more: str) -> None:
    command = [
        sys.executable, "-m", "tpu_utils.preflight", f"--config={ROOT}/configs/{config}", f"--topology={topology}",
        f"--replica_batch_size={batch}", f"--results_dir={FOLDER}", f"--compiler_python={FLAGS.compiler_python}",
        "--nocompare_with_vanilla", *more,
    ]  # fmt: skip
    print(" ".join(command), flush=True)
    subprocess.run(command, cwd=ROOT)


def find(config: str, topology: str, batch: int = 0) -> list[dict]:
    """The records of a recipe; of one batch, if given."""
    method = "advprop" if config.startswith("advprop") else "vanilla"
    variant = config.split(":")[1]
    return [
        record
        for record in records()
        if (record["config"]["training"]["method"], record["config"]["model"]["variant"]) == (method, variant)
        and record["topology"] == topology
        and batch in (0, record["replica_batch_size"])
    ]


def compile_missing() -> None:
    for config, topology, batch in ENTRIES:
        if FLAGS.search:
            ask(config, topology, batch, "--find_batch_size")
            continue
        ask(config, topology, batch)
        failed = [record for record in find(config, topology, batch) if not record["fits"]]
        if failed:  # once more, at what the failure says would fit
            needed = failed[0]["needed_bytes"]
            share = 0.9 * tpu_compiler.CHIPS[topology.split(":")[0]].memory_bytes / needed if needed else 0.5
            smaller = max(1, int(batch * share))
            ask(config, topology, smaller if smaller < 8 else smaller // 8 * 8)


def main(_):
    if FLAGS.compile:
        compile_missing()
    print(table())


def table() -> str:
    """All records that fit, one line each, the largest batch of each recipe; Markdown."""
    lines = [
        "| recipe | px | TPU | images per core | memory, GiB | GFLOP per step | ms per step | images/s per core | × vanilla "
        "GFLOP | × vanilla ms | (2K + 6)/3 |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
