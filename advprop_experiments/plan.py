"""A study: arms (ways to train), seeds, claims as contrasts between arms, and which of its
runs are done.

The contrast of a claim is a weighted sum of arms, such as +1 · AdvProp − 1 · vanilla.
It is computed for each seed and then tested over the seeds. A difference of
differences, as in "larger networks gain more", is a contrast, too.

This module does not import TensorFlow, so that `--list` answers at once.
"""

import base64
import dataclasses
import glob
import importlib.util
import json
import os
import re
import statistics
from typing import Mapping, Optional, Sequence

import numpy as np

from efficientnet_advprop.config import experiment as config_lib
from efficientnet_advprop.config.experiment import ConfigError, ExperimentConfig
from efficientnet_advprop.config.tables import BUILTIN
from efficientnet_advprop.runtime import files
from efficientnet_advprop.runtime.errors import RunError, list_lines, list_names

METRICS = {
    "clean": "top-1 accuracy on the test images",
    "corrupted": "top-1 accuracy under corruption, the mean of all corrupted sets",
    "attacked": "top-1 accuracy under attack, the mean of all attacks",
    "autoattack": "top-1 accuracy under AutoAttack, on evenly spaced test images",
}
SCORES_FILE = "scores.json"
_PLAN_FILE = "study.json"
# What fixes the scores of a trained network.
_MEASURED = (
    "severities",
    "attack_epsilons",
    "autoattack_epsilon",
    "autoattack_images",
    "autoattack_seeds",
    "corrupted_images",
    "attacked_images",
    "keeps_images",
)


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train."""

    config: ExperimentConfig  # of its runs, except for `config.training.seed`
    # Processor time of a run with its evaluation, for `--list`; measured times replace it.
    expected_seconds: float


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A weighted sum of the accuracies of arms, and the paper's claim about it."""

    name: str  # what is compared, in words
    weights: Mapping[str, float]  # of arms; they add up to zero
    expected: int  # the sign according to the paper, +1 or −1; 0: no (large) difference
    metrics: Sequence[str] = ("clean", "corrupted")  # keys of `METRICS`


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the paper, and the contrasts that test it."""

    key: str  # a letter or a short word
    title: str  # a few words
    statement: str  # the claim and its place in the paper, in our words
    contrasts: Sequence[Contrast]


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run of a study."""

    arm: str
    seed: int
    config: ExperimentConfig
    expected_seconds: float

    @property
    def name(self) -> str:
        """The folder of the run below `runs/`, and the value of the flag `--run`."""
        return f"{self.arm}/seed_{self.seed}"


@dataclasses.dataclass(frozen=True)
class Study:
    """A study.

    Args:
        title, introduction: one line, one paragraph.
        arms: name (letters, digits, `_`, `-`, `.`) → `Arm`; all use one built-in data
            set, with one image size and crop.
        seeds: the seeds of every arm's runs; tests are paired by seed.
        claims: in the order of the report.
        severities: of the corruptions in the evaluation, 1…5.
        attack_epsilons: of the untargeted PGD in the evaluation, pixels of 255.
        autoattack_epsilon: the radius of AutoAttack (L∞, version standard) in the
            evaluation, pixels of 255; None: it is not run.
        autoattack_images: so many evenly spaced test images are attacked by it; None:
            all.
        autoattack_seeds: those of `seeds` whose runs are attacked by it; None: all.
        corrupted_images, attacked_images: so many evenly spaced test images are used for
            these; None: all.
        redraws_training_images: each seed also draws its training images
            (`config.data.subset_seed`), so that intervals speak of other training sets.
        keeps_images: scores hold which test images are right, for intervals over seeds
            and images; and nothing is reported before the last run is done.
    """

    title: str
    introduction: str
    arms: Mapping[str, Arm]
    seeds: Sequence[int]
    claims: Sequence[Claim]
    severities: Sequence[int] = (1, 2, 3, 4, 5)
    attack_epsilons: Sequence[float] = ()
    autoattack_epsilon: Optional[float] = None
    autoattack_images: Optional[int] = None
    autoattack_seeds: Optional[Sequence[int]] = None
    corrupted_images: Optional[int] = None
    attacked_images: Optional[int] = None
    redraws_training_images: bool = False
    keeps_images: bool = False

    def runs(self) -> list[Run]:
        """Returns all runs by seed, so that an interrupted study has complete pairs."""
        return [
            Run(name, seed, self._config_of(arm, seed), arm.expected_seconds)
            for seed in self.seeds
            for name, arm in self.arms.items()
        ]

    def _config_of(self, arm: Arm, seed: int) -> ExperimentConfig:
        training = dataclasses.replace(arm.config.training, seed=seed)
        data = arm.config.data
        if self.redraws_training_images:
            data = dataclasses.replace(data, subset_seed=seed)
        return dataclasses.replace(arm.config, training=training, data=data)

    @property
    def source(self) -> str:
        """The built-in data set of all arms, a name of `config.BUILTIN`."""
        return next(iter(self.arms.values())).config.data.source

    def find_runs(self, names: Sequence[str]) -> list[Run]:
        """Returns the runs with these names, or raises a `ConfigError`."""
        runs = {run.name: run for run in self.runs()}
        for name in names or [""]:
            if name not in runs:
                raise ConfigError(
                    f"`--run` is {name!r}, but the study has no such run; "
                    f"`--list` shows all {len(runs)}."
                )
        return [runs[name] for name in names]

    def metrics_of(self, run: Run) -> list[str]:
        """Returns the metrics that are measured of a run."""
        is_attacked = self.autoattack_seeds is None or run.seed in self.autoattack_seeds
        return [metric for metric in self.metrics() if metric != "autoattack" or is_attacked]

    def metrics(self) -> list[str]:
        """Returns the keys of `METRICS` that are measured, of all runs or of some."""
        return [
            "clean",
            *(["corrupted"] if self.severities else []),
            *(["attacked"] if self.attack_epsilons else []),
            *(["autoattack"] if self.autoattack_epsilon is not None else []),
        ]

    def validate(self) -> None:
        """Raises a `ConfigError` if a step would fail, or a result would mean nothing."""
        if len(set(self.seeds)) != len(self.seeds) or len(self.seeds) < 2:
            raise ConfigError(
                f"`seeds` are {list(self.seeds)}, but intervals need at least two, each once."
            )
        if self.autoattack_epsilon is None and (self.autoattack_images or self.autoattack_seeds):
            raise ConfigError(
                f"`autoattack_images` is {self.autoattack_images} and `autoattack_seeds` is"
                f" {self.autoattack_seeds}, which go with `autoattack_epsilon`, but that is None."
            )
        for field in ("autoattack_images", "corrupted_images", "attacked_images"):
            if (number := getattr(self, field)) is not None and number < 1:
                raise ConfigError(f"`{field}` is {number!r}, but must be at least 1.")
        if not set(self.autoattack_seeds or ()) <= set(self.seeds):
            raise ConfigError(
                f"`autoattack_seeds` are {list(self.autoattack_seeds)}, but must be among `seeds`,"
                f" {list(self.seeds)}."
            )
        for name, arm in self.arms.items():
            if not re.fullmatch(r"[\w.-]+", name):
                raise ConfigError(
                    f"`arms` has {name!r}, but a name is of letters, digits, '_', '-' and '.'."
                )
            try:
                arm.config.validate()
            except ConfigError as error:
                raise ConfigError(f"arm {name!r}: {error}") from error
            if arm.config.data.source not in BUILTIN or arm.config.data.source != self.source:
                raise ConfigError(
                    f"arm {name!r}: `config.data.source` is {arm.config.data.source!r}, "
                    f"but must be one of {', '.join(BUILTIN)}, and the same in all arms."
                )
        for claim in self.claims:
            for contrast in claim.contrasts:
                self._check_contrast(f"claim {claim.key!r}, contrast {contrast.name!r}", contrast)

    def _check_contrast(self, where: str, contrast: Contrast) -> None:
        for field, named, known in (
            ("weights", contrast.weights, self.arms),
            ("metrics", contrast.metrics, self.metrics()),
        ):
            unknown = sorted(set(named) - set(known))
            if unknown:
                raise ConfigError(
                    f"{where}: `{field}` has {', '.join(unknown)}, but there are"
                    f" {', '.join(known)}."
                )
        if abs(sum(contrast.weights.values())) > 1e-9 or not contrast.weights:
            raise ConfigError(
                f"{where}: `weights` are {dict(contrast.weights)}, but must add up to zero."
            )
        if contrast.expected not in (-1, 0, 1):
            raise ConfigError(
                f"{where}: `expected` is {contrast.expected!r}, but must be -1, 0 or 1."
            )

    def saved_form(self) -> dict:
        """Returns what fixes the results of each run: its config, and the evaluation."""
        form = {
            "measured": {name: getattr(self, name) for name in _MEASURED},
            "runs": {run.name: dataclasses.asdict(run.config) for run in self.runs()},
        }
        return json.loads(json.dumps(form))


def load_study(path: str) -> Study:
    """Returns the validated study of `get_study()` in a Python file.

    Args:
        path: of the file; the text after a colon is passed to `get_study`.

    Raises:
        ConfigError: there is no such file, or it returns no valid `Study`.
    """
    file, _, argument = path.partition(":")
    if not os.path.isfile(file):
        raise ConfigError(
            f"`--study` is {path!r}, but there is no such file; try configs/studies/digits.py."
        )
    spec = importlib.util.spec_from_file_location("study_config", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        study = module.get_study(*([argument] if argument else []))
    except ConfigError:
        raise
    except Exception as error:  # the code of a config file may raise anything
        raise ConfigError(
            f"`--study` is {path!r}, which cannot be used: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(study, Study):
        raise ConfigError(
            f"`--study` is {path!r}: its get_study() returned {type(study).__name__}, "
            "but must return a Study."
        )
    study.validate()
    return study


def claim_output_dir(study: Study, output_dir: str) -> list[str]:
    """Writes the plan into `output_dir`; returns the runs that it did not have.

    Runs may be added to a saved study, but not changed.

    Raises:
        ConfigError: saved runs have another config, are not in the study, or were
            measured differently; the message names all.
    """
    path, form = os.path.join(output_dir, _PLAN_FILE), study.saved_form()
    if not os.path.exists(path):
        files.require_free("--output_dir", output_dir, ["report.json", "claims.png"])
    without = "and the folder is taken for this study's"
    saved = _read_own(path, ["measured", "runs"], without) or {**form, "runs": {}}
    problems = [
        f"`{name}` is {saved['measured'].get(name)} there and {value} here"
        for name, value in form["measured"].items()
        if (saved["measured"].get(name) or None) != (value or None)
    ]
    runs = {run.name: run.config for run in study.runs()}
    gone = sorted(saved["runs"].keys() - runs.keys())
    if gone:
        problems.append(f"not in the study: {list_names(gone)}")
    changes: dict[str, list[str]] = {}  # difference → the runs that have it
    for name in saved["runs"].keys() & runs.keys():
        earlier = ExperimentConfig.from_json(json.dumps(saved["runs"][name]))
        for field, (there, here) in config_lib.differences(earlier, runs[name]).items():
            if field not in config_lib.OPERATIONAL_FIELDS:
                change = f"`config.{field}` is {there!r} there and {here!r} here"
                changes.setdefault(change, []).append(name)
    problems += [f"{change}, in {list_names(sorted(of))}" for change, of in changes.items()]
    if problems:
        raise ConfigError(
            f"`--output_dir` is {output_dir!r}, which holds other runs:{list_lines(problems)}\n"
            "Use another folder."
        )
    added = [name for name in runs if name not in saved["runs"]]
    if added:
        # Written atomically, because users may start several runs at the same time.
        files.write_atomically(path, json.dumps(form).encode())
    return added


def run_dir(output_dir: str, name: str) -> str:
    """Returns the folder of a run, which is done once it holds `SCORES_FILE`."""
    return os.path.join(output_dir, "runs", name)


def read_scores(output_dir: str, name: str, metrics: Sequence[str] = ("clean",)) -> Optional[dict]:
    """Returns a run's accuracies by metric, its "processor_seconds", and of studies that keep
    them "images": metric → test set → `pack_images`; None: it is not done.
    """
    path = os.path.join(run_dir(output_dir, name), SCORES_FILE)
    return _read_own(path, [*metrics, "processor_seconds"], "and the run is measured again")


def read_all_scores(study: Study, output_dir: str) -> dict[str, Optional[dict]]:
    """Returns each run's name → its `read_scores`, in the order of the study."""
    return {
        run.name: read_scores(output_dir, run.name, study.metrics_of(run)) for run in study.runs()
    }


def _read_own(path: str, keys: Sequence[str], without: str) -> Optional[dict]:
    # JSON that a study wrote; None: there is none.
    if not files.exists(path):
        return None
    try:
        found = json.loads(files.read_text(path))
        lacking = [key for key in keys if key not in found]
        if not lacking and isinstance(found, dict):
            return found
        reason = f"it has no {', '.join(lacking) or 'fields'}"
    except (TypeError, ValueError) as error:
        reason = str(error)
    raise RunError(f"{path} is damaged ({reason}). Bring it back, or remove it, {without}.")


def pack_images(is_right: np.ndarray) -> dict:
    """Returns bool [n], whether each test image is classified correctly, as JSON takes it."""
    bits = base64.b64encode(np.packbits(is_right).tobytes()).decode()
    return {"num_images": len(is_right), "is_right": bits}


def unpack_images(packed: Mapping) -> np.ndarray:
    """Returns what `pack_images` packed: bool [n]."""
    bits = np.frombuffer(base64.b64decode(packed["is_right"]), np.uint8)
    return np.unpackbits(bits, count=packed["num_images"]).astype(bool)


def progress(study: Study, output_dir: str) -> list[tuple[Run, bool, float]]:
    """Returns every run, whether it is done, and the processor time that it took or will take.

    That is the mean over runs of its arm. If none is done, it is the time that the study
    expects, scaled by the ratio of measured to expected time of all finished runs.
    """
    scores = read_all_scores(study, output_dir)
    done = [run for run in study.runs() if scores[run.name]]
    by_arm: dict[str, list[float]] = {}
    for run in done:
        by_arm.setdefault(run.arm, []).append(scores[run.name]["processor_seconds"])
    expected = sum(run.expected_seconds for run in done)
    ratio = sum(map(sum, by_arm.values())) / expected if expected else 1.0
    return [
        (
            run,
            scores[run.name] is not None,
            statistics.fmean(by_arm.get(run.arm, [ratio * run.expected_seconds])),
        )
        for run in study.runs()
    ]


def seconds_left(study: Study, output_dir: str, num_parallel: int) -> float:
    """Returns the time until a study is done with `num_parallel` runs at a time."""
    entries = progress(study, output_dir)
    return sum(seconds for _, is_done, seconds in entries if not is_done) / num_parallel


def visible_gpus() -> list[str]:
    """Returns the GPUs that a process may use, by CUDA_VISIBLE_DEVICES's names."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    gpu_folders = glob.glob("/proc/driver/nvidia/gpus/*")  # NVIDIA's driver makes one per GPU
    return [str(index) for index in range(len(gpu_folders))]


def default_num_parallel() -> int:
    """Returns one run per GPU or CPU core: the networks are too small to use more."""
    return len(visible_gpus()) or os.cpu_count() or 1
