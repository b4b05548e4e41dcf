"""Scores a trained network on test sets: top-1, top-5, loss, and images per second.

    python -m efficientnet_advprop.evaluate --checkpoint=b3-advprop --data_dir=gs://…/imagenet
    python -m efficientnet_advprop.evaluate --checkpoint=efficientnet-b3.tar.gz --kind=advprop --suite=folder:/data/imagenet/val
    python -m efficientnet_advprop.evaluate --model_dir=runs/b3 --suite=imagenet --data_dir=… --strategy=mirrored

Each image counts once, whatever the batch size. The interval is Wilson's, of 95 %. For a checkpoint of the official table the
published top-1 and the difference from it stand beside ours; those were measured with --crop=released.
"""

import time

from absl import flags

from efficientnet_advprop import door, network_flags
from efficientnet_advprop.config import ConfigError
from efficientnet_advprop.data.records import DataError
from efficientnet_advprop.evaluation.evaluator import Evaluator
from efficientnet_advprop.evaluation.metrics import Score
from efficientnet_advprop.evaluation.named_suites import (
    ITERATION_ERRORS,
    SUITES,
    NamedTestSet,
    SuiteError,
    SuiteSettings,
    open_suite,
)
from efficientnet_advprop.models import CheckpointError
from efficientnet_advprop.restored_network import RestoredNetwork
from tpu_utils.strategy import STRATEGIES, StrategyError, make_strategy

_NETWORK = network_flags.define()
_SUITE = flags.DEFINE_list("suite", ["imagenet"], f"test suites, separated by commas: {', '.join(SUITES)} (folder:PATH)")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "for imagenet: folder of the TFRecords validation-*")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 100, "images per batch, over all replicas", lower_bound=1)
_STRATEGY = flags.DEFINE_enum("strategy", "one_device", STRATEGIES, "devices, as in train")
_TPU = flags.DEFINE_string("tpu", "", "with --strategy=tpu: 'local' on a TPU VM, or the Cloud TPU's name or address")
_NUM_LOGICAL_DEVICES = flags.DEFINE_integer("num_logical_devices", None, "with --strategy=mirrored: replicas on the CPU")


class _Stopwatch:
    """Passes batches on; what the first one costs (compiling) is not counted in the speed."""

    def __init__(self, batches):
        self.batches, self.num_batches = batches, 0

    def __iter__(self):
        for batch in self.batches:
            yield batch
            self.num_batches += 1
            if self.num_batches == 1:
                self.started = time.perf_counter()

    def images_per_second(self, num_images: int, batch_size: int) -> str:
        if self.num_batches < 2:
            return "not measured: a single batch"
        return f"{(num_images - batch_size) / (time.perf_counter() - self.started):,.1f}, after the first batch"


def _compare(score: Score, network: RestoredNetwork, test_set: NamedTestSet) -> str:
    if network.published is None:
        return "not known: this is no row of the official table, or its --kind is not known"
    figure = f"{network.published.top1:.2f} % ({network.published.name})"
    if not test_set.is_imagenet:
        return f"{figure}, but on other images: ImageNet's validation set"
    return f"{figure}; ours is {100 * score.top1 - network.published.top1:+.2f} points from it"


def _describe(score: Score, published: str, stopwatch: _Stopwatch) -> str:
    low, high = (100 * end for end in score.interval())
    rows = [
        ("top-1", f"{100 * score.top1:.2f} %   95 % interval {low:.2f} … {high:.2f}"),
        ("published", published),
        ("top-5", f"{100 * score.top5:.2f} %"),
        ("loss", f"{score.loss:.4f}"),
        ("images", f"{score.num_images:,}"),
        ("images/s", stopwatch.images_per_second(score.num_images, _BATCH_SIZE.value)),
    ]
    return "\n".join(f"  {label:<11}{text}" for label, text in rows)


def main(argv):
    del argv
    strategy = make_strategy(_STRATEGY.value, tpu=_TPU.value, num_logical_devices=_NUM_LOGICAL_DEVICES.value)
    if _BATCH_SIZE.value % strategy.num_replicas_in_sync:
        raise ConfigError(
            f"`--batch_size` is {_BATCH_SIZE.value}, but must divide by the {strategy.num_replicas_in_sync} replicas."
        )
    with strategy.scope():
        network = _NETWORK.restore()
    print(network.description, flush=True)
    settings = SuiteSettings(
        _DATA_DIR.value, network.image_size, network.crop, network.model.num_classes, _BATCH_SIZE.value, strategy
    )
    test_sets = [test_set for text in _SUITE.value for test_set in open_suite(text, settings)]
    evaluator = Evaluator(lambda images: network.model(images, training=False), strategy=strategy)
    for test_set in test_sets:
        print(f"{test_set.name}: {test_set.num_images:,} images …", flush=True)
        stopwatch = _Stopwatch(test_set.open_batches())
        try:
            score = evaluator(stopwatch)
        except ITERATION_ERRORS as error:
            raise DataError(test_set.explain(error)) from error
        print(_describe(score, _compare(score, network, test_set), stopwatch), flush=True)


if __name__ == "__main__":
    door.run(main, usage_errors=(SuiteError, StrategyError), run_errors=(DataError, CheckpointError))
