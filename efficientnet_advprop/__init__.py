"""AdvProp (Xie et al., CVPR 2020) for TensorFlow 2 and Keras: training with clean and
adversarial images.

Each kind of images has batch norms of its own. Importing this package loads neither
TensorFlow nor Keras and leaves the environment alone: what needs them checks for them.
"""

import sys

# In `python -m efficientnet_advprop.train` Ctrl-C is one line from the first moment on, and
# SIGTERM too where a program saves; where the package is a library, they are left alone.
_programs = [word for word in sys.orig_argv if word.startswith("efficientnet_advprop.")]
if sys.argv[:1] == ["-m"] and _programs:
    from efficientnet_advprop.runtime import process

    process.handle_interrupt()
    process.handle_sigterm_of(_programs[0].partition(".")[2])
