"""AdvProp (Xie et al., CVPR 2020) for TensorFlow 2 and Keras: training with clean and
adversarial images.

Each kind of images has batch norms of its own. Importing this package loads neither
TensorFlow nor Keras and leaves the environment alone: what needs them checks for them.
"""

import sys

# In `python -m efficientnet_advprop.train` Ctrl-C is one line from the first moment on, and a
# SIGTERM of `train` too; where
# the package is a library, it is left alone.
if sys.argv[:1] == ["-m"] and any(
    word.startswith("efficientnet_advprop.") for word in sys.orig_argv
):
    from efficientnet_advprop.runtime import process

    process.handle_interrupt()
    if "efficientnet_advprop.train" in sys.orig_argv:
        process.handle_sigterm(exit_code=0)  # a preempted machine may ask before the imports end
