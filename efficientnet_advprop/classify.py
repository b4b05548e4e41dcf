r"""Classifies images: prints the five most probable classes of a trained network.

    python -m efficientnet_advprop.classify --checkpoint=b3-advprop \
        --labels_map_file=labels_map.txt panda.jpg photos/ 'more/*.png'
    python -m efficientnet_advprop.classify --model_dir=runs/digits image.png

An image is a JPEG, PNG, GIF, BMP or WebP file, a folder of such files, or a pattern.
Normalization, crop and size are derived from the checkpoint, are printed, and can be
overridden. Images that cannot be read are listed on stderr; the others are classified
nevertheless, and the exit code is then 1.
"""

import sys

from efficientnet_advprop.command_line import network_flags, program
from efficientnet_advprop.config.experiment import ConfigError

_NETWORK = network_flags.define()


def main(argv):
    if len(argv) < 2:
        raise ConfigError(
            "an image is missing: python -m efficientnet_advprop.classify --checkpoint=… IMAGE…"
        )
    # Here, so that --help and a wrong flag do not wait for TensorFlow.
    from efficientnet_advprop.serving.image_classification import find_images, predict

    paths = find_images(argv[1:])
    network = _NETWORK.restore()
    names = network.class_names
    print(network.description, flush=True)
    exit_code = 0
    predictions = predict(network.model, paths, image_size=network.image_size, crop=network.crop)
    for path, top, problem in predictions:
        if problem:
            message = f"error: {path} cannot be read as an image: {problem}"
            print(message, file=sys.stderr, flush=True)
            exit_code = program.FAILED
            continue
        print(path)
        for index, probability in top:
            name = f"  {names[index]}" if names else ""
            print(f"  {100 * probability:6.2f} %  {index:4d}{name}", flush=True)
    return exit_code


if __name__ == "__main__":
    program.run(main, takes_arguments=True)
