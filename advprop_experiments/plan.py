"""Defines a study: arms (ways to train), seeds, and claims as contrasts between arms.

The contrast of a claim is a weighted sum of arms, such as +1 · AdvProp − 1 · vanilla.
It is computed for each seed and then tested over the seeds. A difference of
differences, as in "larger networks gain more", is a contrast, too.
"""

import dataclasses
import importlib.util
import json
import os
import re
from typing import Mapping, Optional, Sequence

from efficientnet_advprop.config import experiment as config_lib
from efficientnet_advprop.config.experiment import ConfigError, ExperimentConfig
from efficientnet_advprop.config.tables import BUILTIN
from efficientnet_advprop.runtime import files
from efficientnet_advprop.runtime.errors import list_lines, list_names

METRICS = {
    "clean": "top-1 accuracy on the test images",
    "corrupted": "top-1 accuracy under corruption, the mean of all corrupted sets",
    "attacked": "top-1 accuracy under attack, the mean of all attacks",
    "autoattack": "top-1 accuracy under AutoAttack, on evenly spaced test images",
}
_PLAN_FILE = "study.json"


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
        for name in names:
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
        if self.autoattack_images is not None and (
            self.autoattack_epsilon is None or self.autoattack_images < 1
        ):
            raise ConfigError(
                f"`autoattack_images` is {self.autoattack_images!r}, but must be ≥ 1, and goes with"
                " `autoattack_epsilon`."
            )
        if self.autoattack_seeds is not None and (
            self.autoattack_epsilon is None or not set(self.autoattack_seeds) <= set(self.seeds)
        ):
            raise ConfigError(
                f"`autoattack_seeds` are {list(self.autoattack_seeds)}, but must be among `seeds`,"
                f" {list(self.seeds)}, and go with `autoattack_epsilon`."
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
        unknown = sorted(set(contrast.weights) - set(self.arms))
        if unknown:
            raise ConfigError(
                f"{where}: `weights` names {', '.join(unknown)}, "
                f"but the arms are {', '.join(self.arms)}."
            )
        if abs(sum(contrast.weights.values())) > 1e-9 or not contrast.weights:
            raise ConfigError(
                f"{where}: `weights` are {dict(contrast.weights)}, but must add up to zero."
            )
        if contrast.expected not in (-1, 0, 1):
            raise ConfigError(
                f"{where}: `expected` is {contrast.expected!r}, but must be -1, 0 or 1."
            )
        unmeasured = sorted(set(contrast.metrics) - set(self.metrics()))
        if unmeasured:
            raise ConfigError(
                f"{where}: `metrics` has {', '.join(unmeasured)}, "
                f"but measured are {', '.join(self.metrics())}."
            )

    def to_json(self) -> str:
        """Returns what determines the results of each run: its config, and the evaluation."""
        return json.dumps(
            {
                "measured": self._measured(),
                "runs": {r.name: dataclasses.asdict(r.config) for r in self.runs()},
            }
        )

    def _measured(self) -> dict:
        return {
            "severities": list(self.severities),
            "attack_epsilons": list(self.attack_epsilons),
            "autoattack_epsilon": self.autoattack_epsilon,
            "autoattack_images": self.autoattack_images,
            "autoattack_seeds": self.autoattack_seeds and list(self.autoattack_seeds),
            # Left out where they say nothing, so that older folders stay the same study.
            **({"corrupted_images": self.corrupted_images} if self.corrupted_images else {}),
            **({"attacked_images": self.attacked_images} if self.attacked_images else {}),
            **({"keeps_images": True} if self.keeps_images else {}),
        }


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
    path = os.path.join(output_dir, _PLAN_FILE)
    saved = {"measured": study._measured(), "runs": {}}
    if files.exists(path):
        saved = json.loads(files.read_text(path))
    problems = [
        f"`{name}` is {saved['measured'].get(name)} there and {value} here"
        for name, value in study._measured().items()
        if saved["measured"].get(name) != value
    ]
    runs = {run.name: run.config for run in study.runs()}
    gone = [name for name in saved["runs"] if name not in runs]
    if gone:
        problems.append(f"not in the study: {list_names(gone)}")
    changes = {}  # difference → the runs that have it
    for name in saved["runs"]:
        if name in runs:
            earlier = ExperimentConfig.from_json(json.dumps(saved["runs"][name]))
            for field, (there, here) in config_lib.differences(earlier, runs[name]).items():
                if field not in config_lib.OPERATIONAL_FIELDS:
                    changes.setdefault(
                        f"`config.{field}` is {there!r} there and {here!r} here", []
                    ).append(name)
    problems += [f"{change}, in {list_names(names)}" for change, names in changes.items()]
    if problems:
        raise ConfigError(
            f"`--output_dir` is {output_dir!r}, which holds other runs:{list_lines(problems)}\n"
            "Use another folder."
        )
    added = [name for name in runs if name not in saved["runs"]]
    if added:
        # Written atomically, because users may start several runs at the same time.
        files.write_atomically(path, study.to_json().encode())
    return added
