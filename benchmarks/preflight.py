"""Prints the table of every recipe's cost on a TPU: memory, arithmetic, estimated time.

    python benchmarks/preflight.py              # from the results in benchmarks/preflight/
    python benchmarks/preflight.py --compile    # computes missing results; takes hours, resumes
    python benchmarks/preflight.py --price_per_chip_hour=0.50,2.00      # what whole runs would cost

The results come from `python -m efficientnet_advprop.preflight`, that is, from the TPU's compiler.
docs/launching.md explains them.
"""

import harness  # first: it keeps TensorFlow quiet  # isort: skip

import json
import pathlib
import subprocess
import sys

from advprop_preflight import tpu_compiler
from advprop_preflight.preflight_results import grid
from efficientnet_advprop.config.experiment import ExperimentConfig

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks/preflight"
TOPOLOGIES = ("v3:2x2", "v3:4x4", "v5e:2x2", "v5p:2x2x1", "v6e:2x2")
CORES_PER_CHIP = {"v2": 2, "v3": 2}  # of later kinds one
METHOD_NAMES = {
    "advprop": "AdvProp",
    "fast_advprop": "Fast AdvProp",
    "adversarial_only": "Smooth adversarial",
}
# Of the config files that are not called like their method.
METHODS_OF_FILES = {"efficientnet": "vanilla", "smooth_adversarial": "adversarial_only"}
NUM_EPOCHS = {"adversarial_only": 100.0}  # of recipes that have not the default's
NUM_TRAIN_IMAGES = 1_281_167  # ImageNet's
# Images: activations lie in tiles of so many, so 12 images take the memory and time of
# 16.
TILE = 8
# Config, topology, the batch per core to start from, and how many blocks compute their
# activations again.
ENTRIES = [
    ("advprop.py:b0", "v3:2x2", 512, 0),
    ("efficientnet.py:b0", "v3:2x2", 512, 0),
    ("advprop.py:b8", "v3:2x2", 4, 0),
    ("advprop.py:b8", "v3:2x2", 8, 99),
    ("advprop.py:b7", "v3:2x2", 8, 0),
    ("advprop.py:b3", "v3:2x2", 128, 0),
    ("efficientnet.py:b3", "v3:2x2", 128, 0),
    ("advprop.py:b0", "v5e:2x2", 512, 0),
    ("efficientnet.py:b0", "v5e:2x2", 512, 0),
    ("advprop.py:b0", "v3:4x4", 128, 0),
    ("efficientnet.py:b7", "v3:2x2", 8, 0),
    ("efficientnet.py:b8", "v3:2x2", 4, 0),
    ("efficientnet.py:b8", "v3:2x2", 8, 0),
    ("advprop.py:b5", "v3:2x2", 24, 0),
    ("efficientnet.py:b5", "v3:2x2", 24, 0),
    ("advprop.py:b3", "v5e:2x2", 128, 0),
    ("efficientnet.py:b3", "v5e:2x2", 128, 0),
    ("advprop.py:b1", "v3:2x2", 320, 0),
    ("efficientnet.py:b1", "v3:2x2", 320, 0),
    ("advprop.py:b2", "v3:2x2", 256, 0),
    ("efficientnet.py:b2", "v3:2x2", 256, 0),
    ("advprop.py:b4", "v3:2x2", 48, 0),
    ("efficientnet.py:b4", "v3:2x2", 48, 0),
    ("advprop.py:b6", "v3:2x2", 16, 0),
    ("efficientnet.py:b6", "v3:2x2", 16, 0),
    ("fast_advprop.py:b0", "v3:2x2", 512, 0),
    ("smooth_adversarial.py:b0", "v3:2x2", 128, 0),
    ("smooth_adversarial.py:l1", "v3:2x2", 2, 0),
    ("smooth_adversarial.py:l1", "v3:2x2", 8, 99),
    ("advprop.py:b0", "v6e:2x2", 512, 0),
    ("advprop.py:b3", "v6e:2x2", 128, 0),
    ("advprop.py:b0", "v5p:2x2x1", 512, 0),
    ("advprop.py:b3", "v5p:2x2x1", 128, 0),
    ("efficientnetv2.py:v2-s", "v3:2x2", 16, 0),
    ("efficientnetv2.py:v2-s", "v5e:2x2", 16, 0),
    ("efficientnetv2.py:v2-s-advprop", "v5e:2x2", 16, 0),
]
V2_STAGES = 4  # of a recipe, each a quarter of the epochs and with images of its own size


def records() -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]


def ask(python: str, config: str, topology: str, batch: int, *more: str) -> None:
    command = [
        sys.executable,
        "-m",
        "efficientnet_advprop.preflight",
        f"--config={ROOT}/configs/{config}",
        f"--topology={topology}",
        f"--replica_batch_size={batch}",
        f"--results_dir={FOLDER}",
        f"--compiler_python={python}",
        "--nocompare_with_vanilla",
        *more,
    ]
    print(" ".join(command), flush=True)
    # In this folder, to which the interpreter's path may be relative.
    subprocess.run(command)


def recipe(record: dict) -> tuple[str, str, str, int, int]:
    """Returns what has a line of its own: method, variant, topology, blocks recomputed, and
    the pixels of a stage (0 where there are no stages).
    """
    model = record["config"]["model"]
    has_stages = model["variant"].startswith("v2-")
    return (
        record["config"]["training"]["method"],
        model["variant"],
        record["topology"],
        model["recomputed_blocks"],
        record["config"]["data"]["image_size"] * has_stages,
    )


def compile_missing(python: str, is_search: bool) -> None:
    for config, topology, batch, recomputed in ENTRIES:
        recompute = [f"--config.model.recomputed_blocks={recomputed}"] if recomputed else []
        if is_search:
            ask(python, config, topology, batch, "--find_batch_size", *recompute)
            continue
        ask(python, config, topology, batch, *recompute)
        file, variant = config.split(".py:")
        key = METHODS_OF_FILES.get(file, file), variant, topology, recomputed
        tried = [
            record
            for record in records()
            if recipe(record)[:4] == key and record["replica_batch_size"] == batch
        ]
        failed = [record for record in tried if not record["fits"]]
        if failed:  # once more, at what the failure says would fit
            needed = failed[0]["needed_bytes"]
            share = (
                0.9 * tpu_compiler.CHIPS[topology.split(":")[0]].memory_bytes / needed
                if needed
                else 0.5
            )
            smaller = max(1, int(batch * share))
            ask(python, config, topology, smaller if smaller < 8 else smaller // 8 * 8, *recompute)


def main():
    arguments = harness.parse(
        __doc__,
        compile=(False, "ask the compiler for what is missing, rather than only print the table"),
        search=(False, "with --compile: search the largest batch of each, not one that should fit"),
        price_per_chip_hour=(
            "",
            "the lowest and the highest price of a chip for an hour, in any currency: prints what "
            "the runs would cost instead of the table",
        ),
        compiler_python=(
            f"{ROOT}/.venv-preflight/bin/python",
            "as in efficientnet_advprop.preflight",
        ),
    )
    if arguments.compile:
        compile_missing(arguments.compiler_python, arguments.search)
    prices = arguments.price_per_chip_hour
    print(price_table(*map(float, prices.split(","))) if prices else table())


def price_table(low: float, high: float) -> str:
    """Returns what each run costs at two prices of a chip-hour; Markdown.

    Chip-hours are those of `table`, a lower bound, and so is each end of the range.
    """
    lines = [
        f"| recipe | TPU, cores | chip-hours | at {low:.2f} to {high:.2f} each |",
        "|---|---|---|---|",
    ]
    header, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in table().splitlines()
    )
    columns = [header.index(name) for name in ("recipe", "TPU, cores", "chip-hours")]
    for row in rows:
        name, cores, hours = (row[column] for column in columns)
        if hours.replace(",", "").isdigit():
            count = int(hours.replace(",", ""))
            lines.append(
                f"| {name} | {cores} | {hours} | {low * count:,.0f} to {high * count:,.0f} |"
            )
    return "\n".join(lines)


def at_most(fitting: list[dict], failing: list[dict], capacity: int) -> str:
    """Returns the largest batch that would fit: between what has been tried if that settles it,
    otherwise on a line through it, in full tiles.
    """
    fitting = sorted(fitting, key=batch_of)
    largest = batch_of(fitting[-1])
    smallest_failure = min(map(batch_of, failing), default=None)
    if smallest_failure is not None and smallest_failure - largest <= grid(largest):
        return str(largest)
    points = [
        (batch_of(record), tpu_compiler.program_of(record).memory_bytes) for record in fitting
    ]
    points += [
        (batch_of(record), record["needed_bytes"]) for record in failing if record["needed_bytes"]
    ]
    points = [(batch, needed) for batch, needed in points if batch % TILE == 0] or points
    if len(points) == 1:  # the variables and the program do not grow
        program = tpu_compiler.program_of(fitting[-1])
        points.append((0, program.memory_bytes - program.temporary_bytes))
    (batch, needed), (other, less) = sorted(points)[-1], sorted(points)[-2]
    guess = int(other + (capacity - less) * (batch - other) / (needed - less))
    if smallest_failure is not None:
        guess = min(guess, smallest_failure - 1)
    if guess > TILE:
        guess = guess // TILE * TILE
    return f"≈ {max(guess, largest)}"


def table() -> str:
    """Returns all recipes that have been compiled, one line each with the largest batch that is
    known to fit; Markdown.

    Costs are compared per image, because not all batches are equal. Chip-hours are
    those of the recipe's epochs of ImageNet at the scheduled rate, as if nothing else
    took time.
    """
    lines = [
        (
            "| recipe | TPU, cores | images per core |"
            " largest | memory, GiB | GFLOP per image | images/s per core |"
            " chip-hours | × vanilla GFLOP | × vanilla ms |"
        ),
        "|" + "---|" * 10,
    ]
    by_recipe = {}
    for record in records():
        by_recipe.setdefault(recipe(record), []).append(record)
    order = {topology: place for place, topology in enumerate(TOPOLOGIES)}
    for key in sorted(by_recipe, key=lambda key: (order[key[2]], *key[:2], *key[3:])):
        lines.append("| " + " | ".join(map(str, cells_of(key, by_recipe))) + " |")
    return "\n".join(lines)


def batch_of(record: dict) -> int:
    return record["replica_batch_size"]


def cells_of(key: tuple, by_recipe: dict) -> list:
    method, variant, topology, recomputed, pixels = key
    fitting, failing = (
        [record for record in by_recipe[key] if record["fits"] == fits] for fits in (True, False)
    )
    record = max(fitting, key=batch_of) if fitting else min(failing, key=batch_of)
    kind = topology.split(":")[0]
    chip, batch = tpu_compiler.CHIPS[kind], record["replica_batch_size"]
    cells = [
        (
            f"{METHOD_NAMES.get(method, method)}"
            f" {variant.upper().replace('RESNET', 'ResNet-')}"
            f"{', all blocks recomputed' if recomputed == 99 else ''}"
            f"{f', {pixels} px' if pixels else ''}"
        ),
        f"{topology}, {record['num_replicas']}",
        batch,
    ]
    if not record["fits"]:
        needed = record["needed_bytes"]
        return [
            *cells,
            "fewer",
            f"needs {needed / tpu_compiler.GIB:.1f}" if needed else "does not fit",
            *[""] * 5,
        ]
    program = tpu_compiler.program_of(record)
    seconds, credible = program.scheduled_seconds, tpu_compiler.is_credible(program, chip)
    defaults = ExperimentConfig()
    defaults.use_method(method)  # whose epochs are fewer for Fast AdvProp
    hours = (
        NUM_EPOCHS.get(method, defaults.training.num_epochs)
        * NUM_TRAIN_IMAGES
        * seconds
        / batch
        / 3600
        / CORES_PER_CHIP.get(kind, 1)
        / (V2_STAGES if pixels else 1)
    )
    cells += [
        at_most(fitting, failing, chip.memory_bytes),
        f"{program.memory_bytes / tpu_compiler.GIB:.1f}",
        f"{program.flops / batch / 1e9:.2f}",
        f"{batch / seconds:,.{0 if batch > 10 * seconds else 1}f}" if credible else "not credible",
        f"{hours:,.0f}" if credible else "",
    ]
    rivals = [
        other
        for other in by_recipe.get(("vanilla", variant, topology, 0, pixels), [])
        if other["fits"]
    ]
    if method == "vanilla" or not rivals:
        return [*cells, "", ""]
    vanilla = max(rivals, key=lambda rival: (batch_of(rival) == batch, batch_of(rival)))
    plain, size = tpu_compiler.program_of(vanilla), batch_of(vanilla)
    slower = seconds / batch / (plain.scheduled_seconds / size)
    both_credible = credible and tpu_compiler.is_credible(plain, chip)
    return [
        *cells,
        f"{program.flops / batch / (plain.flops / size):.2f}",
        f"{slower:.2f}" if both_credible else "",
    ]


if __name__ == "__main__":
    main()
