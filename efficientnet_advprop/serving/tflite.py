"""TensorFlow Lite: one image [1, size, size, 3] of pixels 0…255 in, `logits` and
`probabilities` [1, num_classes] out, or the `features` of one end point.
"""

from typing import Optional

import numpy as np
import tensorflow as tf

from efficientnet_advprop.serving.inference_network import InferenceNetwork

# "full_integer" takes uint8 pixels and calculates in 8 bits throughout, its answers are
# float32 again; the others take float32.


def convert(
    network: InferenceNetwork,
    quantization: str = "none",
    calibration_images: Optional[np.ndarray] = None,
    end_point: Optional[str] = None,
) -> bytes:
    """Returns the network as a TFLite file's contents.

    Args:
        network: to convert.
        quantization: "none" (float32); "float16" or "dynamic_range" (8 bits), of the
            weights alone; "full_integer", of all.
        calibration_images: float32 [n, size, size, 3], pre-processed; for
            "full_integer", whose ranges they decide.
        end_point: see `InferenceNetwork.answers`.
    """
    spec = tf.TensorSpec([1, network.image_size, network.image_size, 3], tf.float32, "images")

    def predict(images):
        return network.answers(images, end_point)

    function = tf.function(predict, autograph=False).get_concrete_function(spec)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], network)
    if quantization != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantization == "full_integer":
        pixels = np.clip(np.round(calibration_images), 0, 255)  # as they will come in
        converter.representative_dataset = lambda: ([image[None]] for image in pixels)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
    return converter.convert()
