"""Measures the time and memory that loading a released checkpoint needs.

    # B0 and B8, with one auxiliary branch; needs about 1.5 GB of disk space
    python benchmarks/load_checkpoint.py

The file is in the released format with averages and plain weights, like a training
checkpoint without slots. Only `load_released_checkpoint` is measured, with the file in
the page cache: the checks, the comparison and the copies to the auxiliary branch
included. The memory is that in addition to the model. The benchmark works on Linux
only, because the peak memory is the kernel's VmHWM.
"""

import harness  # first: it keeps TensorFlow quiet  # isort: skip

import json
import re
import tempfile
import time


def memory(field: str) -> float:
    """Returns a line of /proc/self/status, in MB."""
    with open("/proc/self/status") as file:
        return int(re.search(rf"{field}:\s+(\d+) kB", file.read())[1]) / 1e3


def measure(variant: str, prefix: str) -> str:
    from absl import logging

    from efficientnet_advprop.models import EfficientNet, load_released_checkpoint

    logging.set_verbosity(logging.ERROR)
    model = EfficientNet(variant, aux_branches=1)
    size = sum(variable.shape.num_elements() for variable in model.variables) * 4 / 1e6
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the highest memory is counted anew from here
    before, started = memory("VmRSS"), time.perf_counter()
    load_released_checkpoint(model, prefix)
    seconds, peak = time.perf_counter() - started, memory("VmHWM") - before
    total = (size + peak) / size
    return (
        f"{variant}: {seconds:.2f} s; model {size:.0f} MB, at the peak {peak:.0f} MB more:"
        f" {total:.2f} times it"
    )


def write(variant: str, prefix: str) -> str:
    from efficientnet_advprop.models import EfficientNet, save_released_checkpoint

    model = EfficientNet(variant, aux_branches=0)
    averages = {
        variable.name.split(":")[0]: variable.numpy() * 1.01 for variable in model.variables
    }
    save_released_checkpoint(model, prefix, averages=averages, global_step=218949)
    return f"{variant}: written"


TASKS = {"write": write, "measure": measure}


def main():
    arguments = harness.parse(
        __doc__,
        variants=(["b0", "b8"], "of EfficientNet"),
        task=(None, "TASK VARIANT PREFIX: one task in this process", dict(nargs=3)),
    )
    if arguments.task:
        name, *of = arguments.task
        print(json.dumps(TASKS[name](*of)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for variant in arguments.variants:
            for task in TASKS:  # each in a process of its own: clean memory
                prefix = f"{folder}/{variant}/model.ckpt"
                print(harness.run_alone("--task", task, variant, prefix)[1], flush=True)


if __name__ == "__main__":
    main()
