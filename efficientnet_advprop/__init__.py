"""AdvProp (Xie et al., CVPR 2020) for TensorFlow 2: training with clean and adversarial
images.

Each kind of images has batch norms of its own. Importing this package checks that the
installed packages fit together, and makes `tf.keras` Keras 2 (see `stack`). If they do
not fit, a program ends with an error of one line.
"""

import sys

from efficientnet_advprop.runtime import stack


def _show_briefly(kind, error, traceback, show=sys.excepthook):
    """Handles an exception that no code has caught; see `sys.excepthook`."""
    if isinstance(error, stack.StackError):
        print(f"error: {error}", file=sys.stderr)
    else:
        show(kind, error, traceback)


try:
    stack.prepare()
except stack.StackError:
    sys.excepthook = _show_briefly
    raise
