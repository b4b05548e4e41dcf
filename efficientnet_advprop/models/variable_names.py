"""What variables are called in checkpoints, and a digest of them by which weights are
told apart.
"""

import hashlib
from typing import Sequence

import tensorflow as tf


def official_name(name: str) -> str:
    """Returns a `tf.Variable.name` as in a released checkpoint: without the number of the
    output, ":0".
    """
    return name.partition(":")[0]


def weights_digest(variables: Sequence[tf.Variable]) -> str:
    """Returns a SHA-256 over names, shapes and values: equal weights have equal digests,
    whatever file or order they came from.
    """
    digest = hashlib.sha256()
    for variable in sorted(variables, key=lambda variable: variable.name):
        value = variable.numpy()
        digest.update(f"{variable.name} {value.dtype} {value.shape};".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
