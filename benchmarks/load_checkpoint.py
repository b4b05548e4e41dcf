"""Measures the time and memory that loading weights needs, by format.

    # B0 and B8; needs about 2 GB of disk space
    python benchmarks/load_checkpoint.py
    python benchmarks/load_checkpoint.py --variants b0

"time" is the seconds of restoring a network over those of building it and of reading the
file's bytes, which are in the page cache. "memory" is the peak over what stood before the
network was built, in sizes of its weights. Released files hold averages and plain weights,
which are compared. The benchmark works on Linux only, because the peak memory is the
kernel's VmHWM.
"""

import harness  # first: it keeps TensorFlow quiet  # isort: skip

import glob
import json
import os
import re
import tempfile
import time

FILES = {
    "released": "model.ckpt",
    "timm": "model.safetensors",
    "keras-applications": "model.weights.h5",
}


def memory(field: str) -> float:
    """Returns a line of /proc/self/status, in MB."""
    with open("/proc/self/status") as file:
        return int(re.search(rf"{field}:\s+(\d+) kB", file.read())[1]) / 1e3


def measure(variant: str, file: str) -> dict:
    from absl import logging

    from efficientnet_advprop.models import EfficientNet
    from efficientnet_advprop.serving.trained_network import restore_network

    logging.set_verbosity(logging.ERROR)
    restore_network(os.path.join(os.path.dirname(file), "tiny", os.path.basename(file)))  # warm
    started = time.perf_counter()
    for path in glob.glob(f"{glob.escape(file)}*"):
        with open(path, "rb") as stream:
            stream.read()
    needed = time.perf_counter() - started
    with open("/proc/self/clear_refs", "w") as stream:
        stream.write("5")  # the highest memory is counted anew from here
    before = memory("VmRSS")
    restore_network(file)
    peak, started = memory("VmHWM") - before, time.perf_counter()
    restore_network(file)  # once more: the first time, layers of this size are traced
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    model = EfficientNet(variant, aux_branches=0)
    needed += time.perf_counter() - started
    size = sum(variable.shape.num_elements() for variable in model.variables) * 4 / 1e6
    return dict(seconds=seconds, needed=needed, size=size, peak=peak)


def write(variant: str, folder: str) -> dict:
    from efficientnet_advprop.models import EfficientNet, save_released_checkpoint
    from efficientnet_advprop.models.checkpoints import keras_weights
    from efficientnet_advprop.serving import releasing
    from efficientnet_advprop.serving.trained_network import restore_network

    is_in_keras = keras_weights.keras_function(variant)  # B8 is not
    for part, sizes in (("", {}), ("tiny", dict(width_coefficient=0.1, depth_coefficient=0.1))):
        model = EfficientNet(variant, aux_branches=0, **sizes)
        averages = {
            variable.name.split(":")[0]: variable.numpy() * 1.01 for variable in model.variables
        }
        prefix = os.path.join(folder, "released", part, FILES["released"])
        save_released_checkpoint(model, prefix, averages=averages, global_step=218949)
        network = restore_network(prefix)
        for file_format in ("timm", "keras-applications") if is_in_keras else ("timm",):
            releasing.write_weights(network, file_format, os.path.join(folder, file_format, part))
    return {}


TASKS = {"write": write, "measure": measure}


def main():
    arguments = harness.parse(
        __doc__,
        variants=(["b0", "b8"], "of EfficientNet"),
        task=(None, "TASK VARIANT PATH: one task in this process", dict(nargs=3)),
    )
    if arguments.task:
        name, *of = arguments.task
        print(json.dumps(TASKS[name](*of)))
        return
    print("network  format               seconds  time  memory")
    for variant in arguments.variants:
        with tempfile.TemporaryDirectory() as folder:
            harness.run_alone("--task", "write", variant, folder)
            for file_format, name in FILES.items():  # each in a process of its own: clean memory
                file = os.path.join(folder, file_format, name)
                if not glob.glob(f"{glob.escape(file)}*"):
                    continue
                _, row = harness.run_alone("--task", "measure", variant, file)
                print(
                    f"{variant:7}  {file_format:19}  {row['seconds']:7.2f}"
                    f"  {row['seconds'] / row['needed']:4.2f}  {row['peak'] / row['size']:6.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
