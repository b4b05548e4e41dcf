"""docs/official.md: its table is that of the code and of the official networks, its flags exist."""

import math
import pathlib
import re
import subprocess
import sys

import pytest

from efficientnet_advprop.config.experiment import ExperimentConfig
from efficientnet_advprop.models import scaling
from efficientnet_advprop.models.checkpoints.published_checkpoints import PUBLISHED
from tests.released_format import official_models

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "docs/official.md").read_text()


def rows(first_column: str) -> list[list[str]]:
    lines = re.findall(rf"^\| (`{first_column}.*) \|$", TEXT, re.MULTILINE)
    return [[cell.strip() for cell in re.split(r" \| ", line)] for line in lines]


def test_the_table_has_all_46_and_their_facts():
    listed = [row for row in rows("(?!--)") if row[0].strip("`") in PUBLISHED]
    table = {row[0].strip("`"): row[1:] for row in listed}
    kinds = {
        kind: row[1:]
        for row in re.findall(r"^\| (`.*`) \| `(\w+)`[^|]*\| `([\w.]+)` \| (\w+) \|$", TEXT, re.M)
        for kind in re.findall(r"`(\w+)`", row[0])
    }
    # Those of Smooth Adversarial Training have a page of their own.
    assert list(table) == [
        name for name, row in PUBLISHED.items() if row.kind.partition("-")[0] not in ("sat", "v2")
    ]
    assert len(table) == 46
    for name, (parameters, size, top1, pixels) in table.items():
        row = PUBLISHED[name]
        normalization, crop, served = kinds[row.kind]
        assert (float(top1), int(pixels)) == (row.top1, row.image_size), name
        assert (normalization, crop) == (row.normalization, row.crop), name
        assert served == scaling.VARIANTS[row.variant].design.serving_resize, name
        if row.variant == "l2":  # of which there is no official graph here; see test_efficientnet
            assert parameters.startswith("480,")
            continue
        facts = official_models()[f"efficientnet-{row.variant}"]
        assert parameters == f"{facts['num_trainable_parameters']:,}", name
        numbers = sum(math.prod(shape) for _, shape, *_ in facts["variables"])
        assert size == f"{2 * 4 * numbers / 1e6:,.0f} MB", name


def test_fields_that_are_mentioned_exist():
    config = ExperimentConfig()
    for section, field in re.findall(r"--config\.(\w+)\.(\w+)", TEXT):
        assert hasattr(getattr(config, section), field), f"{section}.{field}"


@pytest.mark.slow
def test_flags_that_are_mentioned_exist():
    programs = {
        "evaluate": ("watch", "watch_timeout_seconds", "max_images", "use_ema", "kind"),
        "export": ("end_point", "resize", "calibration_dir", "quantization", "image_size"),
        "prepare": ("minival_list",),
        "classify": ("labels_map_file", "checkpoint"),
    }
    for program, flags in programs.items():
        command = [sys.executable, "-m", f"efficientnet_advprop.{program}", "--helpfull"]
        text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
        for flag in flags:
            assert re.search(rf"--(\[no\])?{flag}\b", text), f"{program} --{flag}"
