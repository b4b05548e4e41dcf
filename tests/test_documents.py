"""The documents say what is true: commands, files and links exist, figures are those of
their source.
"""

import hashlib
import importlib
import importlib.util
import json
import math
import pathlib
import re
import types

import numpy as np
import pytest

from advprop_experiments import plan, report
from advprop_experiments.estimates import Estimate
from efficientnet_advprop.command_line import recipes
from efficientnet_advprop.config import experiment
from efficientnet_advprop.data.corruptions import CORRUPTIONS
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.reports import pages
from efficientnet_advprop.reports.published_results import find_published
from efficientnet_advprop.reports.table import format_csv

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("configs/**/*.py")])
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


def read(name: str) -> str:
    """Commands that are broken over lines are joined."""
    return re.sub(r"\s*\\\n\s*", " ", (ROOT / name).read_text())


def commands() -> list[str]:
    """Every config with the overrides that follow it; `bN` stands for any EfficientNet."""
    found = set()
    for name in NAMES:
        for match in re.finditer(
            r"(?<![\w/])configs/\w+\.py(?::[\w-]+)?((?: --config\.[\w.]+=[\w.:/-]+)*)", read(name)
        ):
            if not match[0].startswith("configs/studies"):
                found.add(match[0].replace(":bN", ":b0"))
    return sorted(found)


@pytest.mark.parametrize("command", commands())
def test_configs_that_are_mentioned_are_valid(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    path, *overrides = command.split()
    config = recipes.load(path)
    for override in overrides:
        name, _, value = override.removeprefix("--config.").partition("=")
        experiment.override(config, name, value)
    config.validate()


@pytest.mark.parametrize("name", NAMES)
def test_programs_and_files_that_are_mentioned_exist(name):
    text = read(name)
    for module in set(re.findall(r"python3? -m ((?:efficientnet_advprop|tpu_utils)\.\w+)", text)):
        assert importlib.util.find_spec(module), module
    paths = re.findall(
        r"(?<![\w./-])(?:benchmarks|configs|docs|examples|tests)/[\w/.-]+\.(?:py|md|png|json|html)\b",
        text,
    )
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    missing = {path for path in paths if not (ROOT / path).exists()}
    missing |= {link for link in links if not ((ROOT / name).parent / link).exists()}
    assert not missing


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "BUILD_NOTES.md",
        "CONTRIBUTING.md",
        "docs/maintainers/decisions.md",
        "docs/maintainers/verification.md",
    ],
)
def test_code_that_is_mentioned_is_where_the_page_says(name):
    """Files and folders in back-ticks, by the end of their path."""
    folders = (
        "efficientnet_advprop",
        "advprop_experiments",
        "advprop_preflight",
        "tpu_utils",
        "tests",
        "configs",
        "benchmarks",
        "docs",
        "examples",
    )
    there = [path for folder in folders for path in (ROOT / folder, *(ROOT / folder).rglob("*"))]
    ends = [f"/{path.relative_to(ROOT)}{'/' * path.is_dir()}" for path in there]
    mentioned = set(re.findall(r"`([a-z_][\w-]*(?:/[\w-]+)*(?:\.py|/))`", read(name)))
    assert len(mentioned) >= 2
    assert not {path for path in mentioned if not any(end.endswith(f"/{path}") for end in ends)}


def test_readme_is_short():
    assert (ROOT / "README.md").stat().st_size <= 8000


def test_readmes_snippet_runs_and_is_advprop():
    """Its gradients reach the shared, the main and the auxiliary variables."""
    names: dict = {}
    exec(readmes_snippet("GradientTape"), names)
    assert names["logits"].shape == (4, 10)
    change = names["adversarial_images"] - names["images"]
    assert 0.0 < abs(change.numpy()).max() <= 4.0 + 1e-4  # PGD's ε
    assert len(names["gradients"]) == len(names["model"].trainable_variables)
    assert all(gradient is not None for gradient in names["gradients"])


def test_readmes_lines_of_keras_train_a_model():
    model = keras.Sequential(
        [
            keras.layers.Conv2D(4, 3, strides=4, input_shape=(8, 8, 3)),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10),
        ]
    )
    images = np.random.default_rng(0).uniform(0, 255, [8, 8, 8, 3]).astype("float32")
    names = {"model": model, "images": images, "labels": np.arange(8)}
    exec(readmes_snippet("AdvPropModel"), names)
    assert names["trainer"].optimizer.iterations == 1


def readmes_snippet(word: str) -> str:
    """README.md's block of Python that has a word."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (snippet,) = [block for block in blocks if word in block]
    return snippet


def test_every_document_is_linked():
    """From README.md or BUILD_NOTES.md, directly or through other documents."""
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached and page.suffix == ".md":
            reached.add(page)
            links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
            waiting += [(page.parent / link).resolve() for link in links]
    assert {path for path in DOCUMENTS if path.suffix == ".md"} <= reached


def test_readme_quotes_the_demo():
    """Its table is that of the measurements, without the intervals."""
    quoted, measured = (
        demo_rows(read(page)) for page in ("README.md", "docs/maintainers/measurements.md")
    )
    assert len(quoted) == 3
    assert quoted == [[cell.partition(" (")[0] for cell in row] for row in measured]


def demo_rows(text: str) -> list[list[str]]:
    """The rows of the table whose last column is under AutoAttack."""
    table = re.search(
        r"^\|[^|\n]*\| clean \| corrupted \| under AutoAttack \|.*?(?=\n\n)", text, re.M | re.S
    )
    assert table is not None
    return rows(table[0])[2:]


@pytest.mark.parametrize(
    "report_file", sorted(ROOT.glob("docs/study/**/report.json")), ids=lambda path: path.parent.name
)
def test_the_studys_page_quotes_its_report(report_file):
    check_page_of_study(report_file.parent)


def check_page_of_study(folder: pathlib.Path) -> None:
    """The tables of its README are parts of those that the study's results give, and so are
    its CSV files.
    """
    summary = read_summary(folder / "report.json")
    arms, claims = report.arms_table(summary), report.claims_table(summary)
    for table in filter(None, (arms, claims, report.test_sets_table(summary))):
        assert (folder / f"{table.name}.csv").read_text() == format_csv(table)
    cells = rows((folder / "README.md").read_text())
    intervals = [cell for row in cells for cell in row if re.fullmatch(r"\S+ \(.* … .*\)", cell)]
    known = {cell.text for table in (arms, claims) for row in table.rows for cell in row}
    assert intervals and known.issuperset(intervals)
    quoted = [row for row in cells if re.fullmatch(r"\(\w+\)", row[0])]
    assert len(quoted) >= min(
        15, len({tuple(cell.text for cell in row[:2]) for row in claims.rows})
    )
    found = {
        tuple(cell.text for cell in (claim, contrast, metric)): (points.text, verdict.text)
        for claim, contrast, metric, points, *_, verdict in claims.rows
    }
    for claim, contrast, clean, corrupted, verdicts in quoted:
        assert clean or corrupted
        for metric, points in (("clean", clean), ("corrupted", corrupted)):
            measured, verdict = found.get((claim, contrast, metric), ("", ""))
            assert measured == points and (not points or verdict in verdicts.split("; "))


def test_the_page_of_the_third_study_will_be_held_too(tmp_path):
    """With made-up results of its plan: both kinds of intervals, and single corruptions."""
    study = plan.load_study(f"{ROOT}/configs/studies/fashion_mnist.py:primary")
    summary = report.summarize(study, make_up_scores(study))
    pages.write(report.make_page(summary), str(tmp_path))
    (tmp_path / "report.json").write_text(report.to_json(summary))
    assert report.draw_claims(summary).startswith(b"\x89PNG")
    assert summary.num_done == 240 and [f.metric for f in summary.findings].count("clean") == 3
    for found in summary.findings:
        # Made up: AdvProp is a point ahead of all others.
        assert found.estimate.mean == pytest.approx(0.01, abs=0.01) and found.num_seeds == 24
        low, high = found.image_interval
        assert low < found.estimate.mean < high
        # Few images vary as much as the seeds: the interval over both is the wider one.
        assert high - low > found.estimate.interval[1] - found.estimate.interval[0]
        assert len(found.by_test_set) == (15 if found.metric == "corrupted" else 0)
        for mean in [np.mean([of.mean for of in found.by_test_set.values() or [found.estimate]])]:
            assert mean == pytest.approx(found.estimate.mean)
    lines = []
    for found in summary.findings:
        points = {found.metric: report.estimate_cell(found.estimate, sign="+").text}
        lines.append(
            f"| ({found.claim.key}) | {found.contrast.name} | {points.get('clean', '')}"
            f" | {points.get('corrupted', '')} | {found.verdict} |"
        )
    (tmp_path / "README.md").write_text("\n".join(lines))
    check_page_of_study(tmp_path)
    (tmp_path / "README.md").write_text("\n".join(lines).replace("+1.", "+7."))
    with pytest.raises(AssertionError):
        check_page_of_study(tmp_path)


def make_up_scores(study: plan.Study) -> dict:
    """As `execution` writes them, of 200 images a set."""
    generator = np.random.default_rng(0)
    hardness = generator.uniform(0, 0.2, 200)
    names = {
        "clean": ["fashion_mnist"],
        "corrupted": [f"fashion_mnist_c/{corruption}/3" for corruption in CORRUPTIONS],
        "attacked": ["pgd/8"],
    }
    scores: dict = {}
    for run in study.runs():
        level = 0.8 + 0.01 * run.arm.startswith("advprop") - hardness
        scores[run.name] = {"processor_seconds": 100.0, "images": {}}
        for metric, sets in names.items():
            right = [generator.random(200) < level for _ in sets]
            scores[run.name][metric] = float(np.mean(right))
            scores[run.name]["images"][metric] = dict(zip(sets, map(plan.pack_images, right)))
    return scores


def read_summary(path: pathlib.Path) -> report.Summary:
    """A study's results, from the JSON that it wrote; verdicts are found anew."""

    def estimate(fields):
        return fields and Estimate(**fields)

    values = json.loads(path.read_text())
    findings = []
    for claim in values["claims"]:
        for told in claim["findings"]:
            contrast = types.SimpleNamespace(name=told["name"], expected=told["expected"])
            p_value = math.nan if (p := told["adjusted_p_value"]) is None else p
            key = types.SimpleNamespace(key=claim["key"])
            own = estimate(told["estimate"])
            image_interval = told.get("image_interval")
            findings.append(
                report.Finding(
                    key, contrast, told["metric"], own, p_value,
                    image_interval and tuple(image_interval),
                    {name: Estimate(**of) for name, of in told.get("by_test_set", {}).items()},
                )
            )  # fmt: skip
            assert findings[-1].verdict == told["verdict"]
    study = types.SimpleNamespace(
        seeds=values["seeds"],
        metrics=lambda: list(values["metrics"]),
        runs=lambda: range(values["num_runs"]),
    )
    arms = {
        arm: {metric: estimate(fields) for metric, fields in by_metric.items()}
        for arm, by_metric in values["arms"].items()
    }
    return report.Summary(study, values["num_done"], values["seconds"], arms, findings)


@pytest.mark.parametrize("name", ["digits_v2", "fashion_mnist"])
def test_a_studys_plan_stands_as_it_was_fixed(name):
    plan_file = (ROOT / f"configs/studies/{name}.py").read_bytes()
    page = (ROOT / f"docs/study/{name}/README.md").read_text()
    assert hashlib.sha256(plan_file).hexdigest() in page


def rows(text: str) -> list[list[str]]:
    """The cells of every line of Markdown's tables."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in re.findall(r"^\|.*\|$", text, re.M)
    ]


def test_experiments_quote_the_published_figures():
    quoted = 0
    for name, _config, suite, *figures in rows(read("docs/experiments.md")):
        if len(figures) == 9 and suite.strip("`") in (
            "imagenet",
            "imagenet_c",
            "imagenet_a",
            "stylized",
        ):
            if suite == "`imagenet`" and name.startswith("vanilla"):
                continue  # the paper's own networks; the released ones were trained again
            kind = "advprop" if name.startswith("AdvProp") else "autoaugment"
            for size, figure in enumerate(figures):
                published = find_published(f"b{size}-{kind}", suite.strip("`"))
                assert figure == ("–" if published is None else f"{published.value:.1f}"), (
                    name,
                    size,
                )
                quoted += 1
    assert quoted == 7 * 9


@pytest.fixture(scope="module")
def preflight_table() -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module("preflight").table()


def test_pages_quote_the_preflights_chip_hours(preflight_table):
    header, _, *lines = rows(preflight_table)
    name, cores, cost = (header.index(title) for title in ("recipe", "TPU, cores", "chip-hours"))
    hours = {(line[name], line[cost]) for line in lines if line[cores] == "v3:2x2, 8"}
    quoted = {
        row[0]: row[1:]
        for row in rows(read("docs/experiments.md").partition("## What it costs")[2])
    }
    for method, config in (
        ("vanilla", "configs/efficientnet.py"),
        ("AdvProp", "configs/advprop.py"),
    ):
        told = dict(re.findall(r"b(\d) ([\d,]+)(?=   b|\n)", read(config).partition("Cost")[2]))
        for size, figure in enumerate(quoted[method]):
            assert (f"{method} B{size}", figure) in hours or figure.startswith(("≈", "–")), (
                method,
                size,
            )
            assert figure == told.get(str(size), figure), (config, size)
    prices = re.search(r"--price_per_chip_hour=([\d.]+),([\d.]+)", read("docs/experiments.md"))
    for method in ("vanilla", "AdvProp"):
        for end, price in zip(("lowest", "highest"), prices.groups()):
            for figure, hours_told in zip(quoted[f"{method}, {end}"], quoted[method], strict=True):
                assert figure == f"{float(price) * int(hours_told.replace(',', '')):,.0f}"


def test_the_recipes_for_eight_cores_are_those_that_the_preflight_has_fitted(preflight_table):
    """launching.md's accumulation steps and chip-hours, against the preflight's table."""
    row = r"\| AdvProp (B\d) \| (v3:2x2, 8|v5e:2x2, 4) \| (\d+) \| ≈ (\d+) \|(.*)\|"
    fitted = {}
    for variant, topology, images, _, rest in re.findall(row, preflight_table):
        hours = rest.split("|")[3].strip()
        fitted[variant.lower(), topology[:2]] = (int(images), hours)
    recipes_of = re.findall(
        r"\| `advprop:(b\d)` \| (\d+) \| (\d+) \| ([\d,]+) \|", read("docs/launching.md")
    )
    assert [variant for variant, *_ in recipes_of] == [f"b{number}" for number in range(9)]
    steps_of = {}
    for variant, steps, images, hours in recipes_of:
        config = recipes.load(f"advprop:{variant}")
        assert config.training.global_batch_size == int(images) * int(steps) * 8
        assert int(images) <= fitted[variant, "v3"][0] and hours == fitted[variant, "v3"][1]
        if (variant, "v5") in fitted:
            assert int(images) <= fitted[variant, "v5"][0]
        steps_of[variant] = steps
    # And so do the commands.
    commands = re.findall(
        r"--config=advprop:(b\d) (.*)--strategy=tpu --tpu=local", read("docs/launching.md")
    )
    assert len(commands) == 2
    for variant, flags in commands:
        assert f"--config.training.accumulation_steps={steps_of[variant]} " in flags
