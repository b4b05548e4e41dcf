"""AdvProp on one model of each family of `keras.applications`: the table of
docs/keras.md.

    # all families; some hours on two cores
    python benchmarks/keras_applications.py
    python benchmarks/keras_applications.py --models MobileNetV3Small ResNet50V2
    python benchmarks/keras_applications.py --keras=3 --backend=jax
    python benchmarks/keras_applications.py --table              # only print what was measured

Random weights, small images. Each model is converted, compared through both branches,
trained for one step of `fit` as a graph and as one XLA program, converted back, saved,
and loaded by a process that has this package not on its path (with Keras 3: on another
backend, too). Every model runs in a process of its own; what is known is kept in
benchmarks/keras_applications.json.
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
    "loads_on_another_backend": "loaded on another backend",
}


# Where a file that one backend wrote is loaded.
OTHER_BACKENDS = {"tensorflow": "jax", "jax": "tensorflow", "torch": "jax"}
KERAS_2 = "tf.keras"


def measure(name: str, backend: str) -> dict:
    """Returns all columns of a model's row; `backend` is one of Keras 3, or `KERAS_2`."""
    import numpy as np

    if backend == KERAS_2:
        from efficientnet_advprop import keras as door
        from efficientnet_advprop.attacks import PGD
        from efficientnet_advprop.keras2 import keras

        as_numpy, package = np.asarray, "tensorflow.keras"
        if keras.__name__.startswith("tf_keras"):
            package = "tf_keras"
    else:
        import keras

        from efficientnet_advprop import keras3 as door
        from efficientnet_advprop.keras3 import PGD

        as_numpy, package = keras.ops.convert_to_numpy, "keras"

    size = IMAGE_SIZES[name]
    keras.utils.set_random_seed(1)
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=10, classifier_activation=None
    )
    images = np.random.default_rng(0).uniform(0, 255, (4, size, size, 3)).astype("float32")
    labels = np.arange(4)
    kind, before = type(model), as_numpy(model(images))
    started = time.perf_counter()
    dual = door.add_auxiliary_batch_norms(model)
    row = {
        "conversion_seconds": round(time.perf_counter() - started, 2),
        "num_norms": dual.summary_of_branches().count("main, aux"),
        "main_is_equal": bool((as_numpy(dual(images)) == before).all()),
        "aux_is_equal": bool((as_numpy(door.BranchModel(dual, "aux")(images)) == before).all()),
    }
    trainer = door.AdvPropModel(dual, PGD(num_classes=10))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # A larger step on four images would make outputs of 1e5, with the rounding of those.
    for column, jit_compile in (("trains", backend == "jax"), ("trains_in_xla", True)):
        if column == "trains_in_xla" and backend in ("jax", "torch"):
            continue  # JAX's only way, which has been taken; PyTorch has none
        trainer.compile(keras.optimizers.SGD(1e-5), loss, jit_compile=jit_compile)
        old = [np.array(values) for values in map(as_numpy, dual.trainable_variables)]
        started = time.perf_counter()
        history = trainer.fit(images, labels, batch_size=4, verbose=0).history
        row[f"{column}_seconds"] = round(time.perf_counter() - started, 1)
        moved = [(as_numpy(v) != o).any() for v, o in zip(dual.trainable_variables, old)]
        losses_are_finite = all(np.isfinite(values).all() for values in history.values())
        row[column] = bool(losses_are_finite and np.mean(moved) > 0.95)
    if backend == "jax":
        row["trains_in_xla"] = row["trains"]
    trained = as_numpy(dual(images))
    plain = door.remove_auxiliary_batch_norms(dual)
    back = as_numpy(plain(images))
    row["back_is_equal"] = bool(type(plain) is kind and (back == trained).all())
    with tempfile.TemporaryDirectory() as folder:
        plain.save(f"{folder}/model.keras")
        np.savez(f"{folder}/values.npz", images=images, outputs=trained)
        program = (
            f"import sys, numpy as np, {package} as keras\n"
            f"values = np.load('values.npz')\n"
            f"model = keras.models.load_model('model.keras')\n"
            f"outputs = model.predict(values['images'], verbose=0)\n"
            f"assert not [name for name in sys.modules if 'advprop' in name]\n"
            f"assert np.allclose(outputs, values['outputs'], rtol=1e-3, atol=1e-4)\n"
        )
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        for column, loader in (
            ("loads_without_package", backend),
            ("loads_on_another_backend", OTHER_BACKENDS.get(backend)),
        ):
            if loader is not None:
                environment["KERAS_BACKEND"] = loader
                done = subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment)
                row[column] = done.returncode == 0
    return row


def table(rows: dict) -> str:
    """Returns Markdown."""
    lines = ["| model | Keras | " + " | ".join(COLUMNS.values()) + " |"]
    lines.append("|---" * (len(COLUMNS) + 2) + "|")
    for key in rows:
        name, _, backend = key.partition(" ")
        cells = []
        for column in COLUMNS:
            value = rows[key].get(column)
            if column.startswith(("trains", "loads")):
                words = {True: "yes", False: "**no**", None: "not run"}
            else:
                words = {True: "equal", False: "**no**", None: "not run"}
            cells.append(words[value] if value in (True, False, None) else str(value))
        kind = f"3, {backend}" if backend else "2"
        lines.append(f"| {name} | {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    arguments = harness.parse(
        __doc__,
        models=(list(IMAGE_SIZES), "to measure", dict(choices=IMAGE_SIZES, metavar="MODEL")),
        keras=(2, "which Keras", dict(choices=(2, 3))),
        backend=("tensorflow", "of Keras 3", dict(choices=OTHER_BACKENDS)),
        one=(None, "measure one model in this process; prints JSON"),
        table=(False, "only print what was measured"),
    )
    backend = arguments.backend if arguments.keras == 3 else KERAS_2
    if arguments.one:
        print(json.dumps(measure(arguments.one, backend)))
        return
    rows = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name in [] if arguments.table else arguments.models:
        key, variables = name, {"XLA_FLAGS": QUICK_COMPILATION}
        own = [f"--one={name}", f"--keras={arguments.keras}", f"--backend={arguments.backend}"]
        if arguments.keras == 3:
            key, variables["KERAS_BACKEND"] = f"{name} {backend}", backend
        try:
            _, rows[key] = harness.run_alone(*own, **variables)
        except subprocess.CalledProcessError:
            print(f"{name} failed", file=sys.stderr)
            continue
        FILE.write_text(json.dumps(rows, indent=1) + "\n")
        print(key, rows[key], flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
