"""What was measured of several models on several test sets, as JSON: written as it comes in, read to go on and to report.

    results = Results(about={"seed": 0}, digests={"vanilla": weights_digest(model)})
    results.scores["gaussian_noise/3"] = {"vanilla": evaluate(dataset)}
    text = results.to_json()

Test sets are named "clean", "<corruption>/<severity>" and "pgd/<epsilon>".
"""

import dataclasses
import hashlib
import json
import statistics
from typing import Any, Optional, Sequence

import tensorflow as tf

from efficientnet_advprop.evaluation import metrics
from efficientnet_advprop.evaluation.metrics import Score

CLEAN = "clean"


def corrupted(corruption: str, severity: int) -> str:
    """The name of a corrupted test set."""
    return f"{corruption}/{severity}"


def attacked(epsilon: float) -> str:
    """The name of the clean test set under a white-box PGD attack within `epsilon`, pixels of 255."""
    return f"pgd/{epsilon:g}"


def weights_digest(variables: Sequence[tf.Variable]) -> str:
    """SHA-256 over names, shapes and values: the same weights, the same digest, whatever file they came from."""
    digest = hashlib.sha256()
    for variable in variables:
        value = variable.numpy()
        digest.update(f"{variable.name} {value.dtype} {value.shape};".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


@dataclasses.dataclass
class Results:
    """Scores by test set and model, and what they depend on.

    Args:
        about: of the whole measurement (seed, attack, data, …); JSON values.
        digests: model → `weights_digest`.
        scores: test set → model → `Score`.
    """

    about: dict[str, Any]
    digests: dict[str, str]
    scores: dict[str, dict[str, Score]] = dataclasses.field(default_factory=dict)

    @property
    def models(self) -> list[str]:
        return list(self.digests)

    def to_json(self) -> str:
        scores = {
            name: {m: dataclasses.asdict(score) for m, score in by_model.items()} for name, by_model in self.scores.items()
        }
        return json.dumps({"about": self.about, "digests": self.digests, "scores": scores}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Results":
        """What `to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            held = json.loads(text)
            scores = {name: {m: Score(**score) for m, score in by_model.items()} for name, by_model in held["scores"].items()}
            return cls(held["about"], held["digests"], scores)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"`text` holds no results ({error}); they are written by `Results.to_json`.") from error

    def is_same_measurement(self, other: "Results") -> bool:
        """Whether both score the same weights under the same conditions, so that one may go on where the other ended."""
        return (self.about, self.digests) == (other.about, other.digests)

    def corruptions(self) -> list[str]:
        """The corruptions that were measured, in their order."""
        names = [name.split("/")[0] for name in self.scores if "/" in name and not name.startswith("pgd/")]
        return list(dict.fromkeys(names))

    def epsilons(self) -> list[float]:
        """The radii of the attacks that were measured, in their order; pixels of 255."""
        return [float(name.split("/")[1]) for name in self.scores if name.startswith("pgd/")]

    def severities(self, corruption: str, model: str) -> list[Score]:
        """The scores under a corruption, the mildest first."""
        sets = sorted(
            (name for name in self.scores if name.startswith(f"{corruption}/")), key=lambda name: int(name.split("/")[1])
        )
        return [self.scores[name][model] for name in sets]

    def errors(self, model: str) -> dict[str, list[float]]:
        """Corruption → top-1 error by severity, as `metrics` wants them."""
        return {name: [score.error for score in self.severities(name, model)] for name in self.corruptions()}

    def mean_corrupted_accuracy(self, model: str, corruption: Optional[str] = None) -> float:
        """The plain mean top-1 accuracy over all corrupted sets, or over those of one corruption."""
        errors = self.errors(model)
        chosen = errors.values() if corruption is None else [errors[corruption]]
        return 1.0 - statistics.fmean(error for by_severity in chosen for error in by_severity)

    def mean_corruption_error(self, model: str, baseline: str) -> float:
        """mCE with the model `baseline` as its own yardstick: 1 for itself."""
        return metrics.mean_corruption_error(self.errors(model), self.errors(baseline))

    def corruption_errors(self, model: str, baseline: str) -> dict[str, float]:
        """CE of each corruption, likewise."""
        return metrics.corruption_errors(self.errors(model), self.errors(baseline))
