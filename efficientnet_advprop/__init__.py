"""AdvProp (Xie et al., CVPR 2020) for TensorFlow 2: train on clean and adversarial images, each through its own batch norms.

Importing it checks that the installed packages fit together and has `tf.keras` be Keras 2
(`stack`); where they do not fit, the error of a program is one line.
"""

import sys

from efficientnet_advprop import stack


def _show_briefly(kind, error, traceback, show=sys.excepthook):
    """What the interpreter calls for an exception that nobody has caught."""
    if isinstance(error, stack.StackError):
        print(f"error: {error}", file=sys.stderr)
    else:
        show(kind, error, traceback)


try:
    stack.prepare()
except stack.StackError:
    sys.excepthook = _show_briefly
    raise
