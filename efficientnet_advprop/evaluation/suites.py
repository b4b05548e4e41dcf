"""Test sets by name, and the loop that scores models on them and can be stopped anywhere.

    suite = digits_suite(config.data, data_dir, batch_size=250, num_classes=10, attacks=[PGD(...)])
    evaluate_suite({"vanilla": lambda: logits_fn}, suite, results, save=lambda: ...)
"""

import concurrent.futures
import dataclasses
import time
from typing import TYPE_CHECKING, Callable, Iterable, Mapping, Optional, Sequence

import tensorflow as tf

from efficientnet_advprop.attacks import PGD
from efficientnet_advprop.data import corruptions, digits, pipeline
from efficientnet_advprop.evaluation.evaluator import Evaluator
from efficientnet_advprop.evaluation.results import CLEAN, Results, attacked, corrupted

if TYPE_CHECKING:
    from efficientnet_advprop.config import DataConfig

LogitsFn = Callable[[tf.Tensor], tf.Tensor]
_SAVE_EVERY_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class TestSet:
    """Images, and what attacks them.

    Args:
        name: as in `Results.scores`.
        open_batches: reads them anew: batches as the `Evaluator` takes them.
        attack: white-box, on the model that is tested; None for the images as they are.
    """

    name: str
    open_batches: Callable[[], Iterable[dict[str, tf.Tensor]]]
    attack: Optional[PGD] = None


def digits_suite(
    data: "DataConfig", data_dir: str, *, batch_size: int, num_classes: int, attacks: Sequence[PGD] = ()
) -> list[TestSet]:
    """The digits' test images: clean, attacked, and under every corruption at every severity.

    Corrupted sets are written below `data_dir` when they are first opened.

    Args:
        data: of the training run, for the size of the images; the files are TFRecords whatever its source.
        data_dir: given to `digits.ensure_digits` before.
        batch_size: images per batch.
        num_classes: labels from it on are bad records.
        attacks: on the clean images; one test set each.
    """
    of_records = dataclasses.replace(data, source="tfrecord")

    def open_clean():
        return pipeline.make_eval_dataset(of_records, data_dir, global_batch_size=batch_size, num_classes=num_classes)

    def open_corrupted(corruption, severity):
        folder = digits.ensure_corrupted_digits(data_dir, corruption, severity)
        return pipeline.make_eval_dataset(of_records, folder, global_batch_size=batch_size, num_classes=num_classes)

    suite = [TestSet(CLEAN, open_clean)]
    suite += [TestSet(attacked(attack.epsilon), open_clean, attack) for attack in attacks]
    for corruption in corruptions.CORRUPTIONS:
        for severity in corruptions.SEVERITIES:
            # Bound as defaults: the loop's variables are others by the time the set is opened.
            opener = lambda corruption=corruption, severity=severity: open_corrupted(corruption, severity)  # noqa: E731
            suite.append(TestSet(corrupted(corruption, severity), opener))
    return suite


def evaluate_suite(
    models: Mapping[str, Callable[[], LogitsFn]],
    suite: Sequence[TestSet],
    results: Results,
    *,
    save: Callable[[], None],
    log: Callable[[str], None] = lambda line: print(line, flush=True),
) -> None:
    """Scores every model on every test set that `results` does not hold yet, and adds the scores there.

    Each set is read once, for all models.

    Args:
        models: name → what makes the model ready and returns its `logits_fn`. Models of one architecture may take turns in one
            network and return the same function, which is then traced once for all of them.
        suite: in this order.
        results: grows; what it holds already is left alone.
        save: called now and then, and at the end, to keep `results`.
        log: takes a line of progress for each corruption and attack.
    """
    evaluators = {}
    open_sets = [test_set for test_set in suite if set(results.scores.get(test_set.name, ())) != set(models)]
    if len(open_sets) < len(suite):
        log(f"{len(suite) - len(open_sets)} of {len(suite)} test sets were scored before")
    saved_at = started = time.monotonic()
    for index, (test_set, batches) in enumerate(_read_ahead(open_sets)):
        scores = {}
        for name, prepare in models.items():
            logits_fn = prepare()
            key = (logits_fn, test_set.attack)
            if key not in evaluators:
                evaluators[key] = Evaluator(logits_fn, attack=test_set.attack)
            scores[name] = evaluators[key](batches)
        results.scores[test_set.name] = scores
        now = time.monotonic()
        if now - saved_at > _SAVE_EVERY_SECONDS:
            save()
            saved_at = now
        is_last_of_group = index + 1 == len(open_sets) or _group(open_sets[index + 1]) != _group(test_set)
        if is_last_of_group:
            figures = "  ".join(f"{name} {100 * score.top1:5.1f} %" for name, score in scores.items())
            remaining = (now - started) / (index + 1) * (len(open_sets) - index - 1)
            log(f"{index + 1:3d}/{len(open_sets)}  {test_set.name:22s} {figures}   ETA {remaining:.0f} s")
    if open_sets:
        save()


def _read_ahead(test_sets: Sequence[TestSet]) -> Iterable[tuple[TestSet, list]]:
    """Every test set with its batches; a thread reads the next set while the present one is scored."""
    with concurrent.futures.ThreadPoolExecutor(1) as reader:
        coming = None
        for index, test_set in enumerate(test_sets):
            batches = (coming or reader.submit(lambda: list(test_set.open_batches()))).result()  # noqa: B023
            if index + 1 < len(test_sets):
                coming = reader.submit(lambda following: list(following.open_batches()), test_sets[index + 1])
            yield test_set, batches


def _group(test_set: TestSet) -> str:
    """What shares a line of progress: a corruption's severities; each attack has its own."""
    return test_set.name if test_set.attack is not None else test_set.name.split("/")[0]
