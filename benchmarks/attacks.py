r"""Measures how fast APGD on cross-entropy attacks, relative to a PyTorch implementation.

    python benchmarks/attacks.py --other_python=torch-env/bin/python
    python benchmarks/attacks.py --networks=small --num_steps=10 --rounds=1 \
        --other_python=torch-env/bin/python
    # On two cores the network in XLA takes minutes longer.
    python benchmarks/attacks.py --networks=b0 --rounds=1 --candidates ours torchattacks \
        --other_python=torch-env/bin/python

Two networks: "small" is the one of tests/data/autoattack.npz at its radius of 48 pixels
(200 images of 32 pixels), with the same weights on both sides; "b0" is EfficientNet-B0
with random weights on noise (16 images of 224 pixels), ours and timm's. Images count as
attacked when all steps are done: the labels and radii are such that some images
withstand, so that no side ends early; the last column says how many. Every candidate
runs in a process of its own, on all cores, in float32, and they take turns, attack by
attack. The speeds follow from medians. `--other_python` has torch, torchattacks and
timm; without it only this package is measured.
"""

import harness  # first: it keeps TensorFlow quiet  # isort: skip

import os
import pathlib
import statistics
import sys
import time

GOLDEN = pathlib.Path(__file__).parents[1] / "tests" / "data" / "autoattack.npz"
EPSILONS = {"small": 48.0, "b0": 0.01}  # pixels of 255
NUM_IMAGES = {"small": 200, "b0": 16}
IMAGE_SIZE = 224  # of "b0"
OURS, OURS_IN_XLA, THEIRS = "ours", "ours, XLA", "torchattacks"


def load_images(network):
    """Images as uint8 [n, height, width, 3], and labels; None: what the network says."""
    import numpy as np

    if network == "small":
        golden = np.load(GOLDEN)
        return golden["images"], golden["labels"]
    shape = [NUM_IMAGES[network], IMAGE_SIZE, IMAGE_SIZE, 3]
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8), None


def make_ours(network, num_steps, jit_compile=False):
    """Returns a function that attacks all images once and returns how many withstand."""
    import numpy as np
    import tensorflow as tf

    from efficientnet_advprop.attacks import APGD

    images, labels = load_images(network)
    if network == "small":
        sys.path.insert(0, str(GOLDEN.parents[2]))
        from tests.efficientnet_advprop.attacks import golden_network

        logits_fn, num_classes = golden_network.network, 10
    else:
        from efficientnet_advprop.models import EfficientNet

        model = EfficientNet("b0", num_classes=1000, aux_branches=0)
        logits_fn, num_classes = lambda x: model(x, training=False), 1000
    images = tf.constant(images, tf.float32)
    if labels is None:
        labels = np.argmax(tf.function(logits_fn)(images), -1)
    labels = tf.constant(labels, tf.int32)
    attack = APGD(epsilon=EPSILONS[network], num_steps=num_steps, num_classes=num_classes)
    search = tf.function(
        lambda seed: attack.search(logits_fn, images, labels, seed).still_correct,
        autograph=False,
        jit_compile=jit_compile,
    )
    return lambda: int(search(tf.constant([0, 1])).numpy().sum())


def make_ours_in_xla(network, num_steps):
    return make_ours(network, num_steps, jit_compile=True)


def make_theirs(network, num_steps):
    import numpy as np
    import torch
    import torchattacks

    torch.set_num_threads(os.cpu_count())
    images, labels = load_images(network)
    images = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 255
    model = _make_small(torch) if network == "small" else _make_timm()
    model.eval()
    with torch.no_grad():
        answers = model(images).argmax(-1)
    labels = answers if labels is None else torch.from_numpy(labels).long()
    attack = torchattacks.APGD(model, eps=EPSILONS[network] / 255, steps=num_steps, loss="ce")

    def run():
        adversarial_images = attack(images, labels)
        with torch.no_grad():
            return int((model(adversarial_images).argmax(-1) == labels).sum())

    return run


def _make_timm():
    import timm

    return timm.create_model("efficientnet_b0")


def _make_small(torch):
    """Makes the network of `golden_network`, flattened in height, width, channels."""
    import numpy as np

    golden = np.load(GOLDEN)

    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.convolutions = torch.nn.ModuleList()
            for name in ("conv1", "conv2"):
                kernel = golden[f"{name}_kernel"].transpose(3, 2, 0, 1)
                layer = torch.nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, 2, 1)
                layer.weight.data = torch.from_numpy(np.ascontiguousarray(kernel))
                layer.bias.data = torch.from_numpy(golden[f"{name}_bias"])
                self.convolutions.append(layer)
            self.dense = torch.nn.Linear(*golden["dense_kernel"].shape)
            self.dense.weight.data = torch.from_numpy(golden["dense_kernel"].T.copy())
            self.dense.bias.data = torch.from_numpy(golden["dense_bias"])

        def forward(self, x):
            for layer in self.convolutions:
                x = torch.relu(layer(x))
            return self.dense(x.permute(0, 2, 3, 1).flatten(1))

    return Small()


MAKERS = {OURS: make_ours, OURS_IN_XLA: make_ours_in_xla, THEIRS: make_theirs}


def work(candidate, network, num_steps):
    """Returns what `harness.serve` needs: each request is one attack, answered by its seconds
    and how many images withstood.
    """
    run = MAKERS[candidate](network, num_steps)
    run()

    def measure():
        start = time.perf_counter()
        num_open = run()
        return time.perf_counter() - start, num_open

    return "ready", measure


def main():
    arguments = harness.parse(
        __doc__,
        other_python=(None, "Python of an environment with torch, torchattacks and timm"),
        networks=(list(EPSILONS), "to attack", dict(choices=EPSILONS)),
        candidates=(list(MAKERS), "that attack", dict(choices=MAKERS)),
        num_steps=(100, "of APGD"),
        rounds=(3, "timed attacks of each"),
        worker=(None, "CANDIDATE NETWORK: attacks by it when asked", dict(nargs=2)),
    )
    if arguments.worker:
        harness.serve(lambda: work(*arguments.worker, arguments.num_steps))
        return
    print(f"{'network':8} {'candidate':14} {'images/s':>9} {'ratio':>6} {'withstood':>10}")
    for network in arguments.networks:
        pythons = dict(zip(MAKERS, (sys.executable, sys.executable, arguments.other_python)))
        workers = {}
        for name in filter(pythons.get, arguments.candidates):
            flags = ("--worker", name, network, f"--num_steps={arguments.num_steps}")
            workers[name] = harness.Worker(pythons[name], *flags)
            if workers[name].greeting is None:
                sys.exit(f"{name} does not run in {pythons[name]}; its message is above.")
        rounds = range(arguments.rounds)
        answers = [{name: worker.ask() for name, worker in workers.items()} for _ in rounds]
        speeds = {
            name: NUM_IMAGES[network] / statistics.median(answer[name][0] for answer in answers)
            for name in workers
        }
        for name, worker in workers.items():
            worker.stop()
            ratio = f"{speeds[name] / speeds[THEIRS]:6.2f}" if THEIRS in speeds else ""
            withstood = f"{answers[-1][name][1]}/{NUM_IMAGES[network]}"
            print(f"{network:8} {name:14} {speeds[name]:9.2f} {ratio:>6} {withstood:>10}")


if __name__ == "__main__":
    main()
