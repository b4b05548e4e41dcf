"""Runs an export in a process of its own, which knows none of our code: what a user of
the export has.

    python -I self_check.py FORMAT PATH EXAMPLES.npz ANSWERS.npz [END_POINT]

FORMAT: "saved_model", "tflite", "onnx" or "keras" (which alone needs, and imports, the
model's code). EXAMPLES: `images`, float32 [n, size, size, 3], and the files they came
from, as uint8 arrays `file_0` …. ANSWERS: `probabilities` [n, num_classes] and, of a
SavedModel, more; with END_POINT `features` [n, …] instead. `verification` compares.
"""

import sys

import numpy as np


def run_saved_model(path, images, files, end_point):
    import tensorflow as tf

    signatures = tf.saved_model.load(path).signatures
    if end_point is not None:
        run = signatures["features"]
        return {
            "features": [run(images=tf.constant(image[None]))[end_point][0] for image in images]
        }
    answers = {"probabilities": [], "classes": [], "top_probabilities": [], "error": []}
    for image, file in zip(images, files):
        answers["probabilities"].append(
            signatures["predict_images"](images=tf.constant(image[None]))["probabilities"][0]
        )
        top = signatures["serving_default"](image_bytes=tf.constant([file]))
        answers["classes"].append(top["classes"][0])
        answers["top_probabilities"].append(top["probabilities"][0])
        answers["error"].append(top["error"][0].numpy().decode())
    together = signatures["serving_default"](image_bytes=tf.constant(files))
    answers["batch_classes"] = together["classes"]
    whole_pixels = np.clip(np.round(images), 0, 255)
    of_uint8 = signatures["predict_images_uint8"](images=tf.constant(whole_pixels, tf.uint8))
    of_float = signatures["predict_images"](images=tf.constant(whole_pixels))
    answers["uint8_difference"] = np.max(
        np.abs(of_uint8["probabilities"] - of_float["probabilities"])
    )
    return answers


def run_tflite(path, images, output):
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(path, num_threads=2)
    # Before a runner is made: this is where the fast kernels (XNNPACK) come in.
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner()
    dtype = runner.get_input_details()["images"]["dtype"]
    if dtype == np.uint8:
        images = np.clip(np.round(images), 0, 255)
    return {output: [runner(images=image[None].astype(dtype))[output][0] for image in images]}


def run_onnx(path, images, output):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {"images": np.transpose(images, [0, 3, 1, 2]).copy()}
    return {output: session.run([output], feeds)[0]}


def run_keras(path, images, output):
    import tensorflow as tf

    import efficientnet_advprop.models  # noqa: F401  (so that Keras knows the classes)
    from efficientnet_advprop.keras2 import keras

    model = keras.models.load_model(path)
    other = type(model).from_config(model.get_config())
    other.load_weights(path.replace("model.keras", "model.weights.h5"))
    answers = [
        tf.nn.softmax(either(tf.constant(images), training=False)) for either in (model, other)
    ]
    if not np.array_equal(*answers):
        sys.exit("the .keras file and the H5 weights differ")
    return {output: answers[0]}


def main(kind, path, examples_path, answers_path, end_point=None):
    examples = np.load(examples_path)
    images = examples["images"]
    if kind == "saved_model":
        files = [examples[f"file_{index}"].tobytes() for index in range(len(images))]
        answers = run_saved_model(path, images, files, end_point)
    else:
        run = {"tflite": run_tflite, "onnx": run_onnx, "keras": run_keras}[kind]
        answers = run(path, images, "probabilities" if end_point is None else "features")
    strangers = [
        name for name in sys.modules if name.split(".")[0] in ("efficientnet_advprop", "tpu_utils")
    ]
    if strangers and kind != "keras":
        sys.exit(f"the check must not import {strangers}")
    np.savez(answers_path, **{name: np.asarray(value) for name, value in answers.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
