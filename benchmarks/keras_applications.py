"""AdvProp on one model of each family of `keras.applications`: the table of
docs/keras.md.

    # all families; some hours on two cores
    python benchmarks/keras_applications.py
    python benchmarks/keras_applications.py --models MobileNetV3Small ResNet50V2
    python benchmarks/keras_applications.py --table              # only print what was measured

Random weights, small images. Each model is converted, compared through both branches,
trained for one step of `fit` as a graph and as one XLA program, converted back, saved,
and loaded by a process that has this package not on its path. Every model runs in a
process of its own; what is known is kept in benchmarks/keras_applications.json.
"""

import harness  # first: it keeps TensorFlow quiet  # isort: skip

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

FILE = pathlib.Path(__file__).with_suffix(".json")
ROOT = FILE.parents[1]
# That a step compiles and runs is asked, not how fast: with all of LLVM's passes the
# smallest model takes eleven minutes.
QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# The smallest model of each family with batch norms, and the smallest images that it
# takes.
IMAGE_SIZES = {
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "DenseNet121": 32,
    "InceptionV3": 75,
    "InceptionResNetV2": 75,
    "Xception": 71,
    "NASNetMobile": 32,
    "RegNetX002": 32,
    "RegNetY002": 32,
    "ResNetRS50": 32,
}
COLUMNS = {
    "num_norms": "batch norms",
    "main_is_equal": "main after conversion",
    "aux_is_equal": "aux after conversion",
    "trains": "a step of `fit`",
    "trains_in_xla": "a step in XLA",
    "back_is_equal": "converted back",
    "loads_without_package": "loaded without this package",
}


def measure(name: str) -> dict:
    """Returns all columns of a model's row."""
    import numpy as np

    from efficientnet_advprop.attacks import PGD
    from efficientnet_advprop.keras import (
        AdvPropModel,
        BranchModel,
        add_auxiliary_batch_norms,
        remove_auxiliary_batch_norms,
    )
    from efficientnet_advprop.keras2 import keras
    from efficientnet_advprop.models.converted.conversion import find_batch_norms

    size = IMAGE_SIZES[name]
    keras.utils.set_random_seed(1)
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=10, classifier_activation=None
    )
    images = np.random.default_rng(0).uniform(0, 255, (4, size, size, 3)).astype("float32")
    labels = np.arange(4)
    kind, before = type(model), model(images).numpy()
    started = time.perf_counter()
    dual = add_auxiliary_batch_norms(model)
    row = {
        "conversion_seconds": round(time.perf_counter() - started, 2),
        "num_norms": len(find_batch_norms(dual).branched),
        "main_is_equal": bool((dual(images).numpy() == before).all()),
        "aux_is_equal": bool((BranchModel(dual, "aux")(images).numpy() == before).all()),
    }
    trainer = AdvPropModel(dual, PGD(num_classes=10))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for column, jit_compile in (("trains", False), ("trains_in_xla", True)):
        trainer.compile(keras.optimizers.SGD(1e-3), loss, jit_compile=jit_compile)
        old = [variable.numpy() for variable in dual.trainable_variables]
        started = time.perf_counter()
        history = trainer.fit(images, labels, batch_size=4, verbose=0).history
        row[f"{column}_seconds"] = round(time.perf_counter() - started, 1)
        moved = [(v.numpy() != o).any() for v, o in zip(dual.trainable_variables, old)]
        losses_are_finite = all(np.isfinite(values).all() for values in history.values())
        row[column] = bool(losses_are_finite and np.mean(moved) > 0.95)
    trained = dual(images).numpy()
    plain = remove_auxiliary_batch_norms(dual)
    row["back_is_equal"] = bool(type(plain) is kind and (plain(images).numpy() == trained).all())
    with tempfile.TemporaryDirectory() as folder:
        plain.save(f"{folder}/model.keras")
        np.savez(f"{folder}/values.npz", images=images, outputs=trained)
        package = "tf_keras" if keras.__name__.startswith("tf_keras") else "tensorflow.keras"
        program = (
            f"import sys, numpy as np, {package} as keras\n"
            f"values = np.load('values.npz')\n"
            f"outputs = keras.models.load_model('model.keras')(values['images']).numpy()\n"
            f"assert not [name for name in sys.modules if 'advprop' in name]\n"
            f"assert np.allclose(outputs, values['outputs'], rtol=1e-4, atol=1e-5)\n"
        )
        done = subprocess.run([sys.executable, "-c", program], cwd=folder, env=_bare_environment())
        row["loads_without_package"] = done.returncode == 0
    return row


def _bare_environment() -> dict:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def table(rows: dict) -> str:
    """Returns Markdown."""
    lines = ["| model | pixels | " + " | ".join(COLUMNS.values()) + " |"]
    lines.append("|---" * (len(COLUMNS) + 2) + "|")
    for name, size in IMAGE_SIZES.items():
        if name not in rows:
            continue
        cells = []
        for column in COLUMNS:
            value = rows[name].get(column)
            if column in ("trains", "trains_in_xla", "loads_without_package"):
                words = {True: "yes", False: "**no**", None: "not run"}
            else:
                words = {True: "equal", False: "**no**", None: "not run"}
            cells.append(words[value] if value in (True, False, None) else str(value))
        lines.append(f"| {name} | {size} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    arguments = harness.parse(
        __doc__,
        models=(list(IMAGE_SIZES), "to measure", dict(choices=IMAGE_SIZES, metavar="MODEL")),
        one=(None, "measure one model in this process; prints JSON"),
        table=(False, "only print what was measured"),
    )
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return
    rows = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name in [] if arguments.table else arguments.models:
        try:
            _, rows[name] = harness.run_alone(f"--one={name}", XLA_FLAGS=QUICK_COMPILATION)
        except subprocess.CalledProcessError:
            print(f"{name} failed", file=sys.stderr)
            continue
        FILE.write_text(json.dumps(rows, indent=1) + "\n")
        print(name, rows[name], flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
