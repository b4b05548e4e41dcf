"""What tells one network's weights from another's."""

import hashlib
from typing import Sequence

import tensorflow as tf


def weights_digest(variables: Sequence[tf.Variable]) -> str:
    """SHA-256 over names, shapes and values: the same weights, the same digest, whatever file or order they came in."""
    digest = hashlib.sha256()
    for variable in sorted(variables, key=lambda variable: variable.name):
        value = variable.numpy()
        digest.update(f"{variable.name} {value.dtype} {value.shape};".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
