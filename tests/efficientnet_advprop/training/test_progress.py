"""Reports: the console's figures, the file that outlives a crash, the picture grid."""

import json
import math

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.evaluation.metrics import Score
from efficientnet_advprop.training import progress

SCORE = Score(100, 50, 90, total_loss=125.0)


def make_progress(model_dir, start_step=0, lines=None, num_classes=10):
    log = (lambda line: None) if lines is None else lines.append
    return progress.Progress(
        str(model_dir),
        start_step=start_step,
        total_steps=1000,
        steps_per_epoch=100,
        global_batch_size=50,
        num_classes=num_classes,
        log=log,
    )


def test_speed_and_remaining_time_leave_out_the_first_loop(tmp_path):
    lines = []
    reports = make_progress(tmp_path, lines=lines)
    reports.add_time(10, 60.0)  # tracing
    reports.report_training(10, {"clean_loss": 2.0, "clean_accuracy": 0.5}, 0.1)
    assert "images/s" not in lines[0] and "ETA" not in lines[0]
    reports.add_time(20, 10.0)  # 2 steps of 50 images a second; 970 steps are left
    clean = {"clean_loss": 2.0, "clean_accuracy": 0.5}
    adversarial = {"adversarial_loss": 3.0, "adversarial_accuracy": 0.25}
    reports.report_training(30, {**clean, **adversarial}, 0.1)
    assert "100 images/s  ETA 8 min 05 s" in lines[1]
    assert "loss 2.000 adversarial 3.000  accuracy 50.0 % adversarial 25.0 %  lr 0.1" in lines[1]
    reports.report_training(40, {"adversarial_loss": 1.5, "adversarial_accuracy": 0.75}, 0.1)
    assert "loss adversarial 1.500  accuracy adversarial 75.0 %  lr 0.1" in lines[2]
    reports.close()
    assert progress.read_metrics(str(tmp_path))[1]["images_per_second"] == pytest.approx(100)


def test_metrics_are_json_of_the_standard(tmp_path):
    reports = make_progress(tmp_path)
    reports.report_evaluation(10, Score(100, 50, 90, total_loss=math.nan), False)
    reports.close()
    json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert math.isnan(progress.read_metrics(str(tmp_path))[0]["eval_loss"])


@pytest.mark.parametrize("num_classes, top5", [(9, ""), (10, "  top-5 90.00 %")])
def test_evaluation_shows_loss_and_top5_where_it_says_something(num_classes, top5, tmp_path):
    lines = []
    reports = make_progress(tmp_path, lines=lines, num_classes=num_classes)
    reports.report_evaluation(10, SCORE, True)
    reports.close()
    assert f"validation loss 1.250  top-1 50.00 %{top5} of 100, the best so far" in lines[0]
    (entry,) = progress.read_metrics(str(tmp_path))
    assert (entry["eval_loss"], entry["eval_top1"], entry["eval_top5"]) == (1.25, 0.5, 0.9)


def test_reports_after_the_restored_step_are_dropped(tmp_path):
    reports = make_progress(tmp_path)
    for step in (10, 20, 30):
        reports.report_evaluation(step, SCORE, False)
    reports.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "epo')  # killed here
    assert [entry["step"] for entry in progress.read_metrics(str(tmp_path))] == [10, 20, 30]
    reports = make_progress(tmp_path, start_step=20)
    reports.report_evaluation(30, Score(100, 75, 90), True)
    reports.close()
    entries = progress.read_metrics(str(tmp_path))
    found = [(entry["step"], entry["eval_top1"]) for entry in entries]
    assert found == [(10, 0.5), (20, 0.5), (30, 0.75)]


def test_picture_grid():
    images = np.full([2, 3, 4, 3], 100.0, np.float32)
    adversarial = images.copy()
    adversarial[0, 0, 0, 0] += 2.0
    adversarial[1, 2, 3, 2] -= 20.0
    grid = progress.picture_grid(images, adversarial).numpy()
    assert grid.shape == (6, 12, 3) and grid.dtype == np.uint8
    assert (grid[:, :4] == 100).all()
    assert (
        grid[0, 4, 0] == 160 and grid[1, 4, 0] == 128
    )  # 127.5 + 16·2 = 159.5; no perturbation is middle gray
    assert grid[5, 7, 2] == 0  # 127.5 − 320, clipped
    assert grid[0, 8, 0] == 102 and grid[5, 11, 2] == 80


def test_pictures_reach_tensorboard(tmp_path):
    reports = make_progress(tmp_path)
    reports.show_pictures(7, tf.zeros([2, 8, 8, 3]), tf.ones([2, 8, 8, 3]))
    reports.close()
    (events,) = (tmp_path / "summaries").iterdir()
    shown = [
        (event.step, value)
        for event in tf.compat.v1.train.summary_iterator(str(events))
        for value in event.summary.value
    ]
    ((step, value),) = shown
    width, height, png = value.tensor.string_val
    assert (step, width, height) == (7, b"24", b"16")
    assert tf.io.decode_png(png)[0, 8, 0].numpy() == 144  # 127.5 + 16, rounded to even


def shown_steps(model_dir):
    """The steps of TensorBoard's points, over all event files."""
    return sorted(
        event.step
        for path in (model_dir / "summaries").iterdir()
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
        if value.tag == "eval/top1"
    )


def test_summaries_after_the_restored_step_are_dropped_too(tmp_path):
    for start_step, steps in ((0, (10, 20, 30)), (20, (30, 40)), (30, (40, 50)), (5, (10,))):
        reports = make_progress(tmp_path, start_step=start_step)
        for step in steps:
            reports.report_evaluation(step, SCORE, False)
        reports.close()
        if start_step == 0:  # as a process leaves it that was killed while writing
            (path,) = (tmp_path / "summaries").iterdir()
            path.write_bytes(path.read_bytes()[:-3])
        # Of the steps reported before, those up to the start; then the new ones.
        expected = {
            0: [10, 20, 30],
            20: [10, 20, 30, 40],
            30: [10, 20, 30, 40, 50],
            5: [10],
        }[start_step]
        assert [entry["step"] for entry in progress.read_metrics(str(tmp_path))] == expected
        if start_step:
            assert shown_steps(tmp_path) == expected


def test_a_line_that_is_no_report_is_passed_over(tmp_path):
    lines = [b'{"step": 1}', b"\xff\xfe", b'{"ste', b"[]", b'{"step": "2"}', b'{"step": 3}']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert progress.read_metrics(str(tmp_path)) == [{"step": 1}, {"step": 3}]
