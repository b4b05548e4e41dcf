"""Two Keras models on handwritten digits through `fit`: vanilla against AdvProp, over
seeds.

    python benchmarks/keras_digits.py                        # all runs; resumable
    python benchmarks/keras_digits.py --models=MobileNetV3Small --seeds=1
    python benchmarks/keras_digits.py --keras=3 --backend=jax --models=MobileNetV3Small
    python benchmarks/keras_digits.py --table                # only print what is known

300 digits of scikit-learn at 32 pixels train, 500 others test. Each run is a process of
its own; its result is kept in benchmarks/keras_digits.json, and a run that is there is
not repeated. The table has means over the seeds, and for AdvProp the difference to
vanilla of the same seed with its 95 % interval (Student's t).

The processes use oneDNN, which TensorFlow leaves off on CPUs without AVX-512: on one core
with AVX2 it takes a step of ResNet50V2 at this size from 6.8 to 0.9 seconds.
"""

import harness  # first: it keeps TensorFlow quiet  # isort: skip

import itertools
import json
import os
import pathlib
import time

FILE = pathlib.Path(__file__).with_suffix(".json")
NUM_TRAIN, NUM_TEST, SIZE = 300, 500, 32
EPOCHS = {"MobileNetV3Small": 40, "ResNet50V2": 12}
METHODS = ("vanilla", "advprop")
EPSILON = 16.0  # of 255, in training
MEASURES = {
    "accuracy": "clean",
    "noisy_accuracy": "with noise",
    "attacked_accuracy": "under PGD",
}


def measure(name: str, method: str, seed: int, kerases: int) -> dict:
    """Returns accuracies of the main branch on the test digits."""
    import numpy as np
    from sklearn.datasets import load_digits

    if kerases == 2:
        from efficientnet_advprop.attacks import PGD
        from efficientnet_advprop.keras import AdvPropModel, add_auxiliary_batch_norms
        from efficientnet_advprop.keras2 import keras
    else:
        import keras

        from efficientnet_advprop.keras3 import PGD, AdvPropModel, add_auxiliary_batch_norms

    started = time.perf_counter()
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))[: NUM_TRAIN + NUM_TEST]
    scale = SIZE // 8
    images = np.kron(digits.images[order] * (255 / 16), np.ones((1, scale, scale)))
    images = np.repeat(images[..., None], 3, axis=-1).astype("float32")
    labels = digits.target[order]
    train = (images[:NUM_TRAIN], labels[:NUM_TRAIN])
    test_images, test_labels = images[NUM_TRAIN:], labels[NUM_TRAIN:]

    keras.utils.set_random_seed(seed)
    more = {"minimalistic": True} if name.startswith("MobileNetV3") else {}
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(SIZE, SIZE, 3), classes=10, classifier_activation=None, **more
    )
    # Keras's momentum of 0.99 or 0.999 is meant for many thousands of steps: after so
    # few the running statistics would still be the initial ones.
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9
    if not name.startswith("MobileNetV3"):  # which rescales inside
        inside = [keras.Input((SIZE, SIZE, 3)), keras.layers.Rescaling(1 / 127.5, -1.0), model]
        model = keras.Sequential(inside)
    attack = None
    if method == "advprop":
        model = add_auxiliary_batch_norms(model)
        attack = PGD(epsilon=EPSILON, step_size=EPSILON, num_steps=1, num_classes=10)
    trainer = AdvPropModel(model, attack, method, seed=seed)
    steps = EPOCHS[name] * (NUM_TRAIN // 50)
    rate = keras.optimizers.schedules.CosineDecay(1e-3, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    trainer.fit(*train, batch_size=50, epochs=EPOCHS[name], verbose=0)

    def accuracy(images):
        return float(np.mean(np.argmax(model.predict(images, verbose=0), -1) == test_labels))

    noise = np.random.default_rng(seed).normal(0, 48, test_images.shape)
    noisy = np.clip(test_images + noise, 0, 255).astype("float32")
    pgd = PGD(epsilon=EPSILON, step_size=4.0, num_steps=10, targeted=False, random_start=0.0)

    if kerases == 2:
        import tensorflow as tf

        @tf.function  # The whole attack: TensorFlow would else derive by the weights, too.
        def attacked_batch(images, labels):
            return pgd(lambda batch: model(batch, training=False), images, labels, seed=[0, 1])

    else:

        def attacked_batch(images, labels):
            return pgd(lambda batch: model(batch, training=False), images, labels, seed=0)

    parts = [slice(start, start + 100) for start in range(0, NUM_TEST, 100)]
    attacked = np.concatenate([attacked_batch(test_images[p], test_labels[p]) for p in parts])
    return {
        "accuracy": accuracy(test_images),
        "noisy_accuracy": accuracy(noisy),
        "attacked_accuracy": accuracy(attacked),
        "seconds": round(time.perf_counter() - started),
    }


def table(rows: dict) -> str:
    """Returns Markdown, in per cent."""
    import numpy as np
    from scipy import stats

    header = ["model", "method", "seeds", *MEASURES.values()]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    kinds = dict.fromkeys(key.split()[0] for key in rows)
    for name in kinds:
        held = {method: {} for method in METHODS}
        for key, row in rows.items():
            of_model, method, seed = key.split()
            if of_model == name:
                held[method][seed] = row
        seeds = sorted(set(held["vanilla"]) & set(held["advprop"]))
        if len(seeds) < 2:
            continue
        values = {
            (method, measure): 100 * np.array([held[method][seed][measure] for seed in seeds])
            for method in METHODS
            for measure in MEASURES
        }
        for method in METHODS:
            cells = []
            for measure in MEASURES:
                own = values[method, measure]
                text = f"{own.mean():.1f}"
                if method == "advprop":
                    gain = own - values["vanilla", measure]
                    half = stats.t.ppf(0.975, len(seeds) - 1) * stats.sem(gain)
                    text += f" ({gain.mean():+.1f} ± {half:.1f})"
                cells.append(text)
            lines.append(f"| {name} | {method} | {len(seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    arguments = harness.parse(
        __doc__,
        models=(list(EPOCHS), "to train", dict(choices=EPOCHS)),
        seeds=(5, "runs of each"),
        keras=(2, "which Keras", dict(choices=(2, 3))),
        backend=("jax", "of Keras 3"),
        one=(None, "MODEL METHOD SEED: one run in this process; prints JSON", dict(nargs=3)),
        table=(False, "only print what is known"),
    )
    if arguments.one:
        name, method, seed = arguments.one
        print(json.dumps(measure(name, method, int(seed), arguments.keras)))
        return
    rows = json.loads(FILE.read_text()) if FILE.exists() else {}
    seeds, suffix = range(0 if arguments.table else arguments.seeds), ""
    variables = {"TF_ENABLE_ONEDNN_OPTS": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1")}
    if arguments.keras == 3:
        suffix, variables["KERAS_BACKEND"] = f":{arguments.backend}", arguments.backend
    for run in itertools.product(seeds, arguments.models, METHODS):
        seed, name, method = map(str, run)
        key = f"{name}{suffix} {method} {seed}"
        if key not in rows:
            own = [f"--keras={arguments.keras}", "--one", name, method, seed]
            _, rows[key] = harness.run_alone(*own, **variables)
            FILE.write_text(json.dumps(rows, indent=1) + "\n")
            print(key, rows[key], flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
