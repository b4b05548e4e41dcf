"""Two workers on this machine: one is killed half-way, both are started again, and the
result is that of the undisturbed run.

    make train-two-workers
    python examples/train_two_workers.py --output_dir=runs/two_workers --method=adversarial_only

Both processes train on the built-in digits under MultiWorkerMirroredStrategy, by
AdvProp or another method, over loopback; what happens here happens between machines.
The run is done three times: undisturbed; until the second worker is killed with
SIGKILL; and on from there. Exit code 0 means that every number of the last checkpoint
is the same in both, to the last bit.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

ROOT = pathlib.Path(__file__).parents[1]
NUM_STEPS, KILLED_AFTER = 24, 12
SETTINGS = {  # a few minutes on two cores; a checkpoint every 4 steps
    "data.num_train_examples": 120,
    "training.global_batch_size": 40,
    "training.num_epochs": NUM_STEPS * 40 / 120,
    "training.steps_per_loop": 2,
    "training.checkpoint_every_steps": 4,
    "training.summary_every_steps": 4,
    "training.evaluate_every_epochs": 4,
    "attack.num_steps": 1,
    "model.width_coefficient": 0.25,
}
PATIENCE_SECONDS = 900.0  # for a run, on a machine that does other things too


def say(text: str) -> None:
    print(text, flush=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_empty(output_dir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders of the data and the runs, removing what an earlier call has left."""
    folders = [output_dir / name for name in ("data", "whole", "killed")]
    for path in output_dir.iterdir() if output_dir.exists() else ():
        if not re.fullmatch(r"data|(whole|killed)(\.[01]\.log)?", path.name):
            sys.exit(f"error: {output_dir} holds {path.name}; give a folder of its own.")
    shutil.rmtree(output_dir, ignore_errors=True)
    output_dir.mkdir(parents=True)
    return folders


def start(model_dir: pathlib.Path, data_dir: pathlib.Path, method: str) -> list[subprocess.Popen]:
    """Starts both workers; what they say goes to <model_dir>.<worker>.log."""
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    processes = []
    for index in range(2):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        command = [
            sys.executable,
            "-m",
            "efficientnet_advprop.train",
            f"--config={ROOT / 'configs/digits.py'}:{method}",
        ]
        command += [f"--config.{name}={value}" for name, value in SETTINGS.items()]
        command += [
            f"--data_dir={data_dir}",
            f"--model_dir={model_dir}",
            "--strategy=multi_worker",
            "--connect_timeout=300",
        ]
        with open(f"{model_dir}.{index}.log", "a") as log:
            environment = {**os.environ, "TF_CONFIG": json.dumps(task)}
            processes.append(
                subprocess.Popen(
                    command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment
                )
            )
    return processes


def last_words(model_dir: pathlib.Path, index: int) -> str:
    return (pathlib.Path(f"{model_dir}.{index}.log").read_text().strip().splitlines() or [""])[-1]


def last_step(model_dir: pathlib.Path) -> int:
    return int(
        (tf.train.latest_checkpoint(str(model_dir / "checkpoints")) or "-0").rpartition("-")[2]
    )


def run(model_dir: pathlib.Path, data_dir: pathlib.Path, method: str) -> None:
    """Trains to the end."""
    processes = start(model_dir, data_dir, method)
    codes = [process.wait(PATIENCE_SECONDS) for process in processes]
    for index, code in enumerate(codes):
        say(f"    worker {index} ended with {code}: {last_words(model_dir, index)}")
    if any(codes) or last_step(model_dir) != NUM_STEPS:
        sys.exit(f"error: the run did not come to its end; see {model_dir}.*.log")


def run_and_kill(model_dir: pathlib.Path, data_dir: pathlib.Path, method: str) -> None:
    """Trains until half of the steps are saved, and kills the second worker."""
    processes = start(model_dir, data_dir, method)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (
        last_step(model_dir) < KILLED_AFTER
        and processes[1].poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    codes = [process.wait(120) for process in processes]
    say(
        f"    worker 1 was killed after step {last_step(model_dir)} had been saved: exit code"
        f" {codes[1]}"
    )
    say(
        f"    worker 0 ended by itself {time.monotonic() - killed:.1f} s later with {codes[0]}:"
        f" {last_words(model_dir, 0)}"
    )
    if codes[1] != -signal.SIGKILL or codes[0] != 1 or last_step(model_dir) >= NUM_STEPS:
        sys.exit(f"error: that is not what should have happened; see {model_dir}.*.log")


def saved_values(model_dir: pathlib.Path) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(model_dir / "checkpoints")))
    names = [
        name
        for name in reader.get_variable_to_shape_map()
        if not name.startswith(("save_counter", "_CHECKPOINTABLE"))
    ]
    return {name: np.asarray(reader.get_tensor(name)) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output_dir",
        type=pathlib.Path,
        default=pathlib.Path("runs/two_workers"),
        help="a folder of its own, emptied first",
    )
    parser.add_argument("--method", default="advprop", help="as in configs/digits.py")
    arguments = parser.parse_args()
    output_dir, method = arguments.output_dir.resolve(), arguments.method
    data_dir, whole, killed = make_empty(output_dir)
    started = time.monotonic()

    say(f"[1/3] {NUM_STEPS} steps on two workers, undisturbed")
    run(whole, data_dir, method)
    say("[2/3] the same, until one worker is killed with SIGKILL")
    run_and_kill(killed, data_dir, method)
    say("[3/3] both started again by the same command")
    run(killed, data_dir, method)

    one, other = saved_values(whole), saved_values(killed)
    differing = [name for name in one if one[name].tobytes() != other[name].tobytes()]
    if one.keys() != other.keys() or differing:
        sys.exit(
            f"error: {len(differing)} of {len(one)} variables differ after {NUM_STEPS} steps, such"
            f" as {differing[:3]}"
        )
    num_values = sum(values.size for values in one.values())
    say(
        f"{time.monotonic() - started:.0f} s. All {num_values:,} numbers of the last checkpoint are"
        " the same as without the kill, to the last bit."
    )


if __name__ == "__main__":
    main()
