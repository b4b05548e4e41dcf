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


def listed() -> dict[str, tuple[str, ...]]:
    """Name → parameters, megabytes, pixels and top-1 of every checkpoint in the two tables."""
    by_kind, by_name = re.search(r"```text\n(.*?)\n```", TEXT, re.S)[1].split("\n\n")
    found, (header, *lines) = {}, by_kind.splitlines()
    for line in lines:
        network, parameters, size, pixels, *figures = line.split()
        for suffix, top1 in zip(header.split()[4:], figures, strict=True):
            if top1 != "–":
                found[network + suffix] = (parameters, size, pixels, top1)
    for name, *facts in map(str.split, by_name.splitlines()[1:]):
        found[name] = tuple(facts)
    return found


def test_the_tables_have_all_46_and_their_facts():
    table = listed()
    kinds = {
        kind: row[1:]
        for row in re.findall(r"^\| (`.*`) \| `(\w+)` \| `([\w.]+)` \| (\w+) \|$", TEXT, re.M)
        for kind in re.findall(r"`(\w+)`", row[0])
    }
    # Those of Smooth Adversarial Training and of V2 have pages of their own.
    assert table.keys() == {
        name for name, row in PUBLISHED.items() if row.kind.partition("-")[0] not in ("sat", "v2")
    }
    assert len(table) == 46
    for name, (parameters, size, pixels, top1) in table.items():
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
        assert size == f"{2 * 4 * numbers / 1e6:,.0f}", name


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
