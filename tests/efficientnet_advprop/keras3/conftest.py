"""These tests are of Keras 3 and run in its own stack, once per backend:
`make STACK=keras3 test`, which sets KERAS_BACKEND.
"""

import os

collect_ignore_glob = [] if "KERAS_BACKEND" in os.environ else ["*"]
if os.environ.get("KERAS_BACKEND") == "jax":  # two devices in name
    os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
