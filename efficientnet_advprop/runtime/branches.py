"""The names of batch-norm branches, and mixtures of branches: weight soups.

    parse_branch("aux_1")                                         # "aux"
    mixture = parse_branch("main:0.7,aux:0.3")
    # (("main", 0.7), ("aux", 0.3)), "main"
    mixture.shares, mixture.statistics
    logits = model(images, training=False, branch=mixture)

A mixture normalises with the statistics of the branch that is named first, and with a
gamma and beta that are the weighted means of its branches' (a "model soup" over batch
norms; Wortsman et al., ICML 2022, average whole networks).
"""

import dataclasses
import math
import re
from typing import Union

MAIN = "main"
_AUX_NAME = re.compile(r"aux(?:_([1-9]\d*))?")
_WHOLE = 1e-6  # by how much shares may miss 1


def branch_names(aux_branches: int) -> tuple[str, ...]:
    """Returns a layer's branches in order: "main", "aux" (also called "aux_1"), "aux_2", …"""
    return (MAIN,) + tuple(
        "aux" if index == 1 else f"aux_{index}" for index in range(1, aux_branches + 1)
    )


def branch_index(branch: str, aux_branches: int) -> int:
    """Returns 0 for main, i for the i-th auxiliary branch; a ValueError for any other."""
    if isinstance(branch, BranchMixture):
        raise ValueError(
            f"`branch` is the mixture '{branch}', which a network answers through in inference "
            "only; name one branch."
        )
    names = branch_names(aux_branches)
    name = "aux" if branch == "aux_1" else branch
    if name not in names:
        raise ValueError(
            f"`branch` is {branch!r}, but with `aux_branches`={aux_branches} there is only"
            f" {', '.join(map(repr, names))}. Name one of these, or build with more auxiliary"
            " branches."
        )
    return names.index(name)


@dataclasses.dataclass(frozen=True)
class BranchMixture:
    """Several branches in one, for inference.

    Args:
        shares: (branch, its share of gamma and beta), in the order given; shares lie in
            [0, 1] and add up to 1.

    Raises:
        ValueError: they do not, or a branch is named twice.
    """

    shares: tuple[tuple[str, float], ...]

    def __post_init__(self):
        names = [name for name, _ in self.shares]
        shares = [share for _, share in self.shares]
        if len(set(names)) < len(names):
            problem = "it names a branch twice"
        elif not all(0.0 <= share <= 1.0 for share in shares):  # nor is NaN
            problem = "a share lies outside [0, 1]"
        elif abs(math.fsum(shares) - 1.0) > _WHOLE:
            problem = f"its shares add up to {math.fsum(shares):.6g}, not to 1"
        else:
            return
        raise ValueError(f"`branch` is '{self}', but {problem}; {_EXAMPLE}")

    @property
    def statistics(self) -> str:
        """The branch whose moving mean and variance are used: the first that is named."""
        return self.shares[0][0]

    def share_of(self, branch: str) -> float:
        """Returns a number in [0, 1]; 0 for a branch that is not named."""
        return dict(self.shares).get(branch, 0.0)

    def __str__(self) -> str:
        return ",".join(f"{name}:{share:.12g}" for name, share in self.shares)


Branch = Union[str, BranchMixture]
_EXAMPLE = "a mixture names branches and their shares, which add up to 1, such as main:0.7,aux:0.3."


def parse_branch(text: Branch) -> Branch:
    """Returns the branch's name or the mixture that a text or a mixture means.

    Raises:
        ValueError: it is neither, with what is wrong.
    """
    if isinstance(text, BranchMixture):
        return text
    if ":" not in text and "," not in text:
        return _checked_name(text, text)
    shares = []
    for part in text.split(","):
        name, _, share = (piece.strip() for piece in part.partition(":"))
        name = _checked_name(name, text)
        try:
            shares.append((name, float(share)))
        except ValueError as error:
            problem = f"the share of {name} is {share!r}" if share else f"{name} has no share"
            raise ValueError(f"`branch` is {text!r}, but {problem}; {_EXAMPLE}") from error
    return BranchMixture(tuple(shares))


def _checked_name(name: str, text: str) -> str:
    if name == "aux_1":
        return "aux"
    if name != MAIN and not _AUX_NAME.fullmatch(name):
        raise ValueError(
            f"`branch` is {text!r}, but branches are called main, aux, aux_2, …; {_EXAMPLE}"
        )
    return name


def num_aux_branches(branch: Branch) -> int:
    """Returns how many auxiliary branches a network needs to answer through `branch`."""
    return max(
        0 if name == MAIN else int(name.partition("_")[2] or 1) for name in _names_in(branch)
    )


def branches_in_batch(branch: Branch) -> tuple[Branch, ...]:
    """Returns the branches of the equal parts of a batch: of "main+aux" ("main", "aux")."""
    return (branch,) if isinstance(branch, BranchMixture) else tuple(branch.split("+"))


def check_branch(branch: Branch, aux_branches: int) -> None:
    """Raises a ValueError unless a network of `aux_branches` has all that `branch` names."""
    for name in _names_in(branch):
        branch_index(name, aux_branches)


def _names_in(branch: Branch) -> list[str]:
    return [name for name, _ in branch.shares] if isinstance(branch, BranchMixture) else [branch]
