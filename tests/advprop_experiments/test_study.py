"""The plan, the processes and the report, with runs that only pretend; and, slowly, a
real one from end to end.
"""

import dataclasses
import io
import json
import operator
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from PIL import Image

from advprop_experiments import estimates, execution, plan, report
from advprop_experiments.plan import Arm, Claim, Contrast, Study
from efficientnet_advprop.config import experiment as config_lib
from efficientnet_advprop.config.experiment import ConfigError, ExperimentConfig
from efficientnet_advprop.data import records
from efficientnet_advprop.reports.pages import render_html, render_markdown
from efficientnet_advprop.runtime.errors import RunError, UsageError
from efficientnet_advprop.training import build

ROOT = pathlib.Path(__file__).parents[2]


def make_config(source="digits", **attack):
    config = ExperimentConfig()
    config.data.source = source
    config.attack = dataclasses.replace(config.attack, **attack)
    return config


def make_study(**changes):
    study = Study(
        title="A study",
        introduction="Of two arms.",
        arms={"vanilla": Arm(make_config(), 10.0), "advprop": Arm(make_config(epsilon=2.0), 30.0)},
        seeds=(1, 2, 3),
        claims=[
            Claim(
                "a",
                "Gain",
                "AdvProp <gains>.",
                [Contrast("AdvProp − vanilla", {"advprop": 1, "vanilla": -1}, 1)],
            ),
            Claim(
                "b",
                "Same",
                "None.",
                [Contrast("vanilla − AdvProp", {"advprop": -1, "vanilla": 1}, 0, ("clean",))],
            ),
        ],
        severities=(),
    )
    study = dataclasses.replace(study, **{"severities": (1,), **changes})
    study.validate()
    return study


def pretend(code):
    """A command whose process runs `code` for each run, which it knows by `name` and `seed`."""
    return lambda runs: [
        sys.executable,
        "-c",
        f"import json, os, sys, time\nfor name, seed in {[(run.arm, run.seed) for run in runs]!r}:"
        + textwrap.indent(f"\n{code}", "    "),
    ]


def write_scores(output_dir):
    return textwrap.dedent(f"""
        folder = os.path.join({str(output_dir)!r}, "runs", name, f"seed_{{seed}}")
        clean = 0.9 + 0.01 * seed + (0.02 + 0.001 * seed) * (name == "advprop")
        with open(os.path.join(folder, "scores.json"), "w") as file:
            json.dump({{"clean": clean, "corrupted": 0.5, "processor_seconds": 20.0}}, file)
    """)


class PretendedSet:
    """In the place of the built-in data sets: remembers what is made, and makes nothing."""

    name, corrupted_name = "digits", "digits_c"

    def __init__(self, error=None):
        self.made, self._error = [], error

    def ensure(self, directory):
        self.made.append("clean")

    def ensure_corrupted(self, directory, corruption, severity):
        if self._error:
            raise self._error
        self.made.append(f"{corruption}/{severity}")


@pytest.fixture(autouse=True)
def pretended_set(monkeypatch):
    pretended = PretendedSet()
    monkeypatch.setattr(execution, "BUILTIN_DATASETS", {"digits": pretended})
    return pretended


def test_a_new_study_replaces_nobodys_files(tmp_path):
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(UsageError, match="`--output_dir`"):
        plan.claim_output_dir(make_study(), str(tmp_path))


def test_runs_are_executed_once_and_reported(tmp_path):
    study, lines = make_study(), []
    assert plan.claim_output_dir(study, str(tmp_path)) == [run.name for run in study.runs()]
    assert plan.seconds_left(study, str(tmp_path), 2) == (10.0 + 30.0) * 3 / 2
    started = (
        write_scores(tmp_path)
        + f"open({str(tmp_path / 'started')!r}, 'a').write(name + str(seed) + os.linesep)"
    )
    for _ in range(2):  # the second time nothing is left
        assert execution.execute_all(
            study, pretend(started), str(tmp_path), num_parallel=2, log=lines.append
        )
    assert sorted((tmp_path / "started").read_text().split()) == sorted(
        f"{run.arm}{run.seed}" for run in study.runs()
    )
    of_runs = [line for line in lines if not line.startswith("test images")]
    assert len(of_runs) == 6
    assert of_runs[-1].startswith("  6/6") and of_runs[-1].endswith("ETA 0 s")

    summary = report.summarize(study, plan.read_all_scores(study, str(tmp_path)))
    gain = summary.findings[0]
    assert gain.estimate.values == pytest.approx((0.021, 0.022, 0.023)) and gain.verdict == "shown"
    # t(0.975; 2)·0.001/√3 = 0.002484; two tests of an expected sign, of which the other
    # has p = 1.
    assert gain.estimate.interval == pytest.approx((0.019516, 0.024484), abs=1e-6)
    assert gain.adjusted_p_value == pytest.approx(2 * gain.estimate.p_value)
    assert summary.findings[1].verdict == "not shown" and summary.findings[2].verdict == "different"
    assert summary.arms["vanilla"]["clean"].mean == pytest.approx(0.92)
    table = render_markdown(report.make_page(summary))
    assert "| (a) | AdvProp − vanilla | clean | +2.2 (+2.0 … +2.4) |" in table
    page = render_html(report.make_page(summary))
    assert "+2.2 (+2.0 … +2.4)" in page and "AdvProp &lt;gains&gt;." in page
    assert page.count("<svg") == 2
    held = json.loads(report.to_json(summary))
    assert held["claims"][0]["findings"][0]["estimate"]["mean"] == pytest.approx(0.022)
    # No test, as no sign is expected.
    assert held["claims"][1]["findings"][0]["adjusted_p_value"] is None


def test_a_report_of_what_is_done():
    study = make_study()
    scores = {"clean": 0.9, "corrupted": 0.5, "processor_seconds": 1.0}
    summary = report.summarize(
        study, {"vanilla/seed_1": scores, "advprop/seed_1": scores, "vanilla/seed_2": scores}
    )
    assert summary.num_done == 3 and summary.findings[0].verdict == "too few seeds"
    assert "(1 seeds)" in render_html(report.make_page(summary))
    nothing = report.summarize(study, {})
    assert "not measured" in render_markdown(report.make_page(nothing)) and render_html(
        report.make_page(nothing)
    )
    pictures = {report.draw_claims(found) for found in (summary, summary, nothing)}
    assert len(pictures) == 2  # the same summary, the same bytes
    assert all(Image.open(io.BytesIO(picture)).width > 800 for picture in pictures)


def test_each_metric_has_its_test_sets(tmp_path):
    config = make_config()
    config.model.num_classes = 10
    study = make_study(
        arms={**make_study().arms, "vanilla": Arm(config, 1.0)},
        severities=(1, 5),
        attack_epsilons=(8.0, 16.0),
        autoattack_epsilon=4.0,
        autoattack_images=100,
    )
    chosen = execution.choose_test_sets(study.runs()[0], study, str(tmp_path))
    numbers = {metric: len(test_sets) for metric, test_sets in chosen.items()}
    assert numbers == {"clean": 1, "corrupted": 30, "attacked": 2, "autoattack": 4}
    assert {test_set.name.split("/")[-1] for test_set in chosen["corrupted"]} == {"1", "5"}
    assert [test_set.attack.epsilon for test_set in chosen["attacked"]] == [8.0, 16.0]
    # AutoAttack is a chain, of which the end counts.
    first, *others = chosen["autoattack"]
    assert first.after is None and all(test_set.after for test_set in others)
    assert {test_set.max_images for test_set in chosen["autoattack"]} == {100}
    assert execution._scored(chosen["autoattack"]) == ["autoattack/linf_4/square"]
    assert execution._scored(chosen["attacked"]) == ["pgd/8", "pgd/16"]


def test_a_run_that_fails_is_named_and_others_are_kept(tmp_path):
    study = make_study()
    # Of a seed the long run, AdvProp's, comes first.
    fails = "if name == 'vanilla': sys.exit('no luck')" + write_scores(tmp_path)
    with pytest.raises(RunError, match="vanilla/seed_1 ended with code 1: no luck .*log.txt"):
        execution.execute_all(study, pretend(fails), str(tmp_path), num_parallel=1, log=str)
    assert plan.read_scores(str(tmp_path), "advprop/seed_1")
    assert not os.path.exists(tmp_path / "runs" / "advprop" / "seed_2")


def test_corrupted_images_are_made_while_runs_train(tmp_path, pretended_set):
    study = make_study(severities=(1, 3))
    waits = f"""
deadline = time.monotonic() + 60
while not os.path.exists({str(tmp_path / "made")!r}) and time.monotonic() < deadline:
    time.sleep(0.05)
""" + write_scores(tmp_path)

    def log(line):
        if line == "test images: jpeg_compression (15/15)":
            (tmp_path / "made").write_text("")

    assert execution.execute_all(study, pretend(waits), str(tmp_path), num_parallel=2, log=log)
    assert (tmp_path / "made").exists()
    assert pretended_set.made[:3] == ["clean", "gaussian_noise/1", "gaussian_noise/3"]
    assert len(pretended_set.made) == 1 + 2 * 15


def test_images_that_cannot_be_made_are_told(tmp_path, monkeypatch):
    broken = PretendedSet(records.DataError("no room on the disk"))
    monkeypatch.setattr(execution, "BUILTIN_DATASETS", {"digits": broken})
    with pytest.raises(records.DataError, match="no room on the disk"):
        execution.execute_all(
            make_study(), pretend(write_scores(tmp_path)), str(tmp_path), num_parallel=2
        )


def test_sigterm_is_passed_on_and_waited_for(tmp_path):
    study, lines = make_study(), []
    waits = f"""
import signal
def stop(*_):
    open({str(tmp_path / "stopped")!r}, "a").write("x")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
open({str(tmp_path / "ready")!r}, "a").write("x")
time.sleep(60)
"""

    def send_signal():
        while not os.path.exists(tmp_path / "ready") or len((tmp_path / "ready").read_text()) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send_signal).start()
    assert not execution.execute_all(
        study, pretend(waits), str(tmp_path), num_parallel=2, log=lines.append
    )
    assert (tmp_path / "stopped").read_text() == "xx" and "0 of 6 runs are done" in lines[-1]


def test_a_saved_study_may_grow_but_not_change(tmp_path):
    study, directory = make_study(), str(tmp_path)
    plan.claim_output_dir(study, directory)
    assert plan.claim_output_dir(study, directory) == []
    more = make_study(seeds=(1, 2, 3, 4))
    assert plan.claim_output_dir(more, directory) == ["vanilla/seed_4", "advprop/seed_4"]
    operational = make_config(epsilon=2.0)
    operational.training.keep_last = 7
    plan.claim_output_dir(
        make_study(seeds=(1, 2, 3, 4), arms={**study.arms, "advprop": Arm(operational, 1.0)}),
        directory,
    )
    other = make_study(
        arms={**study.arms, "advprop": Arm(make_config(epsilon=3.0), 30.0)}, severities=(1, 5)
    )
    with pytest.raises(ConfigError) as raised:
        plan.claim_output_dir(other, directory)
    for said in (
        "`severities` is [1] there and [1, 5] here",
        "not in the study: advprop/seed_4, vanilla/seed_4",
        "`config.attack.epsilon` is 2.0 there and 3.0 here, in advprop/seed_1, advprop/seed_2",
    ):
        assert said in str(raised.value)


def claims_of(weights, expected=1, metrics=("clean",)):
    return {"claims": [Claim("x", "", "", [Contrast("c", weights, expected, metrics)])]}


DIFFERENCE = {"vanilla": 1, "advprop": -1}


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"seeds": (1,)}, "`seeds` are .1."),
        ({"seeds": (1, 1)}, "`seeds` are .1, 1."),
        ({"arms": {"a b": Arm(make_config(), 1.0)}}, "`arms` has 'a b'"),
        ({"arms": {"a": Arm(make_config(epsilon=-1.0), 1.0)}}, "arm 'a'.*attack.epsilon` is -1.0"),
        ({"arms": {"a": Arm(ExperimentConfig(), 1.0)}}, "arm 'a'.*data.source` is 'tfrecord'"),
        (
            {"arms": {"a": Arm(make_config(), 1.0), "b": Arm(make_config("tfrecord"), 1.0)}},
            "arm 'b'.*data.source` is 'tfrecord'",
        ),
        (claims_of({"vanilla": 1, "best": -1}), "claim 'x'.*`weights` has best"),
        (claims_of({"vanilla": 1}), "`weights` are {'vanilla': 1}"),
        (claims_of(DIFFERENCE, expected=2), "`expected` is 2"),
        (claims_of(DIFFERENCE, metrics=("attacked",)), "`metrics` has attacked"),
        ({"autoattack_images": 100}, "`autoattack_images` is 100"),
        ({"corrupted_images": 0}, "`corrupted_images` is 0"),
        ({"autoattack_epsilon": 4.0, "autoattack_seeds": (4,)}, r"`autoattack_seeds` are \[4\]"),
    ],
)
def test_studies_that_mean_nothing_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        make_study(**changes)


def test_files_that_are_no_study_are_refused(tmp_path):
    (tmp_path / "broken.py").write_text("def get_study():\n    raise KeyError('x')\n")
    (tmp_path / "other.py").write_text("def get_study():\n    return 3\n")
    for file, said in (
        ("none.py", "there is no such file"),
        ("broken.py", "KeyError: 'x'"),
        ("other.py", "returned int"),
    ):
        with pytest.raises(ConfigError, match=said):
            plan.load_study(str(tmp_path / file))
    for names, said in ((["vanilla/seed_1", "best/seed_1"], "'best/seed_1'.*all 6"), ([], "''")):
        with pytest.raises(ConfigError, match=f"`--run` is {said}"):
            make_study().find_runs(names)


@pytest.mark.parametrize("text", ["", "[]", "3", '{"clean": 0.9, "processor_seconds": 1.0}'])
@pytest.mark.parametrize("name", ["study.json", "runs/vanilla/seed_1/scores.json"])
def test_a_damaged_file_of_the_study_is_named(tmp_path, name, text):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    with pytest.raises(RunError, match=f"{name} is damaged.*remove it"):
        plan.claim_output_dir(make_study(), str(tmp_path))
        plan.read_all_scores(make_study(), str(tmp_path))
    assert path.read_text() == text


def test_the_studies_of_configs_are_valid():
    keys = {}
    for path in (ROOT / "configs" / "studies").glob("[!_]*.py"):
        study = plan.load_study(str(path))
        assert len(study.seeds) >= 5
        keys[path.stem] = {claim.key for claim in study.claims}
    assert keys["digits"] >= set("abcdefgh")


def test_the_second_study_makes_as_many_updates_whatever_the_images():
    first = plan.load_study(str(ROOT / "configs/studies/digits.py")).arms["advprop_medium"].config
    for part, num_runs in (("primary", 72), ("secondary", 290)):
        study = plan.load_study(f"{ROOT}/configs/studies/digits_v2.py:{part}")
        assert len(study.runs()) == num_runs
        seconds = sum(run.expected_seconds for run in study.runs())
        assert seconds < {"primary": 2, "secondary": 9}[part] * 3600  # 11 core hours are 6 on two
        for name, arm in study.arms.items():
            config = arm.config
            assert build.count_steps(config, config.data.num_train_examples) == (
                200 if name == "fast_advprop" else 240
            )
    # With 100 images it is the first study's own recipe.
    again = plan.load_study(f"{ROOT}/configs/studies/digits_v2.py:secondary").arms["advprop_100"]
    for field, values in config_lib.differences(first, again.config).items():
        assert values[0] == pytest.approx(values[1], rel=1e-5), field
    with pytest.raises(ConfigError, match="names the part 'both'"):
        plan.load_study(f"{ROOT}/configs/studies/digits_v2.py:both")


def test_the_second_studys_power_is_what_its_file_says():
    """Deviations from the first study's report, expected differences from three seeds
    before it.
    """
    report_of_first = json.loads((ROOT / "docs/study/report.json").read_text())
    found: dict = {}
    for claim in report_of_first["claims"][:2]:
        for finding in claim["findings"]:
            deviation = 100 * statistics.stdev(finding["estimate"]["values"])
            key = finding["name"].rpartition(",")[0], finding["metric"]
            found.setdefault(key, []).append(deviation)
    # Seeds 11, 12 and 13 with 300 images: vanilla, AdvProp, no auxiliary.
    clean = ([96.8, 95.7, 96.8], [97.7, 98.2, 96.8], [93.8, 92.8, 95.4])
    corrupted = ([87.3, 81.4, 88.6], [91.6, 91.5, 90.2])
    vanilla, advprop, no_auxiliary = map(statistics.fmean, clean)
    rows = {
        1: (("AdvProp − vanilla", "clean"), advprop - vanilla),
        2: (("AdvProp − vanilla", "corrupted"), -operator.sub(*map(statistics.fmean, corrupted))),
        3: (("no auxiliary − vanilla", "clean"), no_auxiliary - vanilla),
        4: (("AdvProp − no auxiliary", "clean"), advprop - no_auxiliary),
    }
    text = (ROOT / "configs/studies/digits_v2.py").read_text()
    for number, (key, expected) in rows.items():
        deviation = max(found[key])
        detected = estimates.detectable_difference(deviation, 24, 0.05 / 4)
        chance = estimates.power(expected, deviation, 24, 0.05 / 4)
        row = (
            f"{number}          {deviation:.2f}        {detected:.2f}       {chance:.2f} for"
            f" {expected:+.1f}"
        )
        assert row in text, row


MINIATURE = """
from advprop_experiments.plan import Arm, Claim, Contrast, Study
from efficientnet_advprop.configs import digits

def make_arm(method):
    config = digits.get_config(method)
    config.model.width_coefficient = 0.25
    config.training.num_epochs, config.optimizer.warmup_epochs, config.training.steps_per_loop = 1.0, 0.0, 2
    return Arm(config, 20.0)

def get_study():
    return Study(
        "Miniature", "Two arms, two seeds.", {"vanilla": make_arm("vanilla"), "advprop": make_arm("advprop")}, (1, 2),
        [Claim("a", "Gain", "AdvProp gains.", [
            Contrast("AdvProp − vanilla", {"advprop": 1, "vanilla": -1}, 1, ("clean", "attacked"))
        ])],
        severities=(), attack_epsilons=(8.0,))
"""


@pytest.mark.slow
def test_a_miniature_from_nothing_and_again(tmp_path):
    (tmp_path / "study.py").write_text(MINIATURE)
    flags = [f"--study={tmp_path}/study.py", f"--output_dir={tmp_path}/out"]
    command = [sys.executable, "-m", "efficientnet_advprop.study", *flags]

    def run(*more):
        return subprocess.run(
            [*command, *more], cwd=ROOT, capture_output=True, text=True, timeout=900
        )

    listed = run("--list")
    assert listed.returncode == 0 and "0 of 4 runs are done" in listed.stdout, listed.stderr
    first = run("--num_parallel=2")
    assert first.returncode == 0, first.stderr
    summary = json.loads((tmp_path / "out" / "report.json").read_text())
    finding = summary["claims"][0]["findings"][0]
    means = [summary["arms"][arm]["clean"]["mean"] for arm in ("advprop", "vanilla")]
    assert summary["num_done"] == 4 and finding["num_seeds"] == 2
    origins = (tmp_path / "out" / "origins.csv").read_text().splitlines()
    assert sorted(line.split(",")[0] for line in origins) == sorted(
        f"{arm}/seed_{seed}" for arm in ("advprop", "vanilla") for seed in (1, 2)
    )
    assert finding["estimate"]["mean"] == pytest.approx(means[0] - means[1])
    again = run("--num_parallel=2")
    assert again.returncode == 0 and "0 of them new" in again.stdout and "seed_" not in again.stdout
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == summary

    runs = tmp_path / "out" / "runs"
    folders = {
        "advprop_dir": runs / "advprop" / "seed_1",
        "vanilla_dir": runs / "vanilla" / "seed_1",
    }
    folders |= {"data_dir": tmp_path / "out" / "data", "out_dir": tmp_path / "images"}
    gallery = [
        sys.executable,
        "docs/adversarial_gallery.py",
        *(f"--{flag}={folder}" for flag, folder in folders.items()),
    ]
    subprocess.run(gallery, cwd=ROOT, check=True, timeout=900)
    assert sorted(os.listdir(tmp_path / "images")) == [
        "adversarial_images.png",
        "input_gradients.png",
        "statistics.png",
    ]


def test_autoattack_of_some_seeds(tmp_path):
    """It is costly: only their runs are attacked, and only they are averaged."""
    study = make_study(autoattack_epsilon=4.0, autoattack_images=2, autoattack_seeds=(2,))
    metrics = [study.metrics_of(run) for run in study.runs()]
    few, all_of_them = ["clean", "corrupted"], ["clean", "corrupted", "autoattack"]
    assert metrics == [few, few, all_of_them, all_of_them, few, few]
    scores = {
        run.name: {
            **{"clean": 0.9, "corrupted": 0.5, "processor_seconds": 1.0},
            **({"autoattack": 0.25} if run.seed == 2 else {}),
        }
        for run in study.runs()
    }
    summary = report.summarize(study, scores)
    assert summary.arms["advprop"]["autoattack"].values == (0.25,)
    assert "| advprop | 90.0 (90.0 … 90.0) | 50.0 (50.0 … 50.0) | 25.0 |" in render_markdown(
        report.make_page(summary)
    )
    not_yet = {name: found for name, found in scores.items() if name.endswith("seed_1")}
    table = render_markdown(report.make_page(report.summarize(study, not_yet)))
    assert "| advprop | 90.0 | 50.0 | not measured |" in table
    plan.claim_output_dir(dataclasses.replace(study, autoattack_seeds=None), str(tmp_path))
    with pytest.raises(ConfigError, match="`autoattack_seeds` is None there and"):
        plan.claim_output_dir(study, str(tmp_path))
