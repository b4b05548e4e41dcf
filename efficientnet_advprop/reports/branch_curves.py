"""Accuracy over the share of the auxiliary batch norms, from results of one network
through mixtures of its branches.

    for curve in branch_curves(measured):
        curve.model, curve.statistics                             # "b3", "main"
        curve.shares, curve.scores["autoattack/linf_4/square"]    # (0.0, 0.3, 1.0), (Score, …)
"""

import dataclasses
from typing import Mapping, Optional, Sequence

from efficientnet_advprop.evaluation.metrics import Score
from efficientnet_advprop.evaluation.results import Results
from efficientnet_advprop.evaluation.test_set_name import CLEAN_SUITES, is_passed, parse_name
from efficientnet_advprop.reports.comparison import Measured
from efficientnet_advprop.runtime.branches import MAIN, Branch, BranchMixture, parse_branch


@dataclasses.dataclass(frozen=True)
class BranchCurve:
    """A network's accuracies between two of its branches."""

    model: str
    auxiliary: str  # the branch that is mixed with main
    statistics: str  # the branch whose moving mean and variance all points use
    shares: Sequence[float]  # of the auxiliary branch's gamma and beta, rising, in [0, 1]
    # Test set → a score for each share: clean images, and each attack or the last of a chain.
    scores: Mapping[str, Sequence[Score]]


def branch_curves(measured: Sequence[Measured]) -> list[BranchCurve]:
    """Returns the curves of at least two points, one of them a mixture of main and an
    auxiliary branch.
    """
    branches = [
        (one.results, parse_branch(one.results.config.get("branch") or MAIN)) for one in measured
    ]
    kinds = dict.fromkeys(
        (results.model, _auxiliary(branch), branch.statistics)
        for results, branch in branches
        if isinstance(branch, BranchMixture) and _auxiliary(branch) is not None
    )
    curves = []
    for model, auxiliary, statistics in kinds:
        points = {}
        for results, branch in branches:
            if results.model != model:
                continue
            if branch == statistics:  # the end of the curve that needs no mixture
                points[float(branch != MAIN)] = results
            elif isinstance(branch, BranchMixture):
                if (_auxiliary(branch), branch.statistics) == (auxiliary, statistics):
                    points[branch.share_of(auxiliary)] = results
        shares = sorted(points)
        names = [
            name
            for name in _shown_test_sets(points[shares[0]])
            if all(name in points[share].test_sets for share in shares)
        ]
        if len(shares) > 1 and names:
            scores = {
                name: [points[share].test_sets[name].score for share in shares] for name in names
            }
            curves.append(BranchCurve(model, auxiliary, statistics, shares, scores))
    return curves


def _auxiliary(branch: Branch) -> Optional[str]:
    names = [name for name, _ in branch.shares] if isinstance(branch, BranchMixture) else []
    others = [name for name in names if name != MAIN]
    return others[0] if len(names) == 2 and len(others) == 1 else None


def _shown_test_sets(results: Results) -> list[str]:
    # Clean images, attacks, and of a chain of attacks the last.
    names = list(results.test_sets)
    return [
        name
        for name in names
        if name in CLEAN_SUITES
        or parse_name(name).epsilon is not None
        or (parse_name(name).chain is not None and not is_passed(name, names))
    ]
