"""Training methods as data: which images pass through which branch of batch norms.

`METHODS["advprop"].passes` sends clean images through main and adversarial ones through
aux. `steps.make_train_step` takes these rows and methods of your own.
"""

import dataclasses
from typing import Optional

# The kinds of images that a step can train on.
CLEAN = "clean"  # batch["images"]
AUGMENTED = "augmented"  # batch["augmented_images"]: another view of the same images
ADVERSARIAL = "adversarial"  # the clean images after the attack
NOISY = "noisy"  # the starting point of the attack


@dataclasses.dataclass(frozen=True)
class Pass:
    """One forward and backward pass.

    Args:
        branch: the batch norms that it uses: "main", "aux", "aux_2", …; or one for each
            of the views, such as "main+aux", whose batch norms then share the moments
            of the batch (`aux_shares="moments"`).
        views: the kinds of its images: "clean", "augmented", "adversarial" or "noisy".
            Several kinds share one batch.
        weight: factor of its loss.
    """

    branch: str
    views: tuple[str, ...]
    weight: float = 1.0

    @property
    def branches(self) -> tuple[str, ...]:
        """The branch of each view."""
        branches = tuple(self.branch.split("+"))
        return branches if len(branches) > 1 else branches * len(self.views)


@dataclasses.dataclass(frozen=True)
class Method:
    """A training method.

    Args:
        passes: in their order; their losses are added.
        adversarial_share: None: every clean image has an adversarial version, and the
            network is trained on what `passes` name of the two. A number in (0, 1), as
            in Fast AdvProp: this part of a batch becomes adversarial, and its clean
            images are not trained on. Then the pass that trains on the noisy images is
            also the pass of the attack, and the gradient of each variable is divided by
            the fraction of the images that reached it.
    """

    passes: tuple[Pass, ...]
    adversarial_share: Optional[float] = None

    def __post_init__(self):
        unpaired = (CLEAN, NOISY, ADVERSARIAL)
        if (self.adversarial_share is not None or NOISY in self.views) and (
            self.views != unpaired
            or len(self.passes) != 3
            or not 0.0 < (self.adversarial_share or 0.0) < 1.0
        ):
            raise ValueError(
                f"`adversarial_share` is {self.adversarial_share!r} and `passes` see "
                f"{', '.join(self.views)}, but a share in (0, 1) goes with three passes, "
                f"which see {', '.join(unpaired)}, and these with a share."
            )

    @property
    def views(self) -> tuple[str, ...]:
        """All kinds of images that the method trains on, in order."""
        return tuple(view for part in self.passes for view in part.views)

    @property
    def has_attack(self) -> bool:
        """Whether the method needs an attack."""
        return ADVERSARIAL in self.views

    @property
    def attacked_branch(self) -> str:
        """The branch that the attack uses: the one that the adversarial images train."""
        return next(
            branch
            for part in self.passes
            for view, branch in zip(part.views, part.branches)
            if view == ADVERSARIAL
        )

    @property
    def branches(self) -> frozenset[str]:
        """The branches that the method trains; a model must have exactly these."""
        return frozenset(branch for part in self.passes for branch in part.branches)

    @property
    def aux_branches(self) -> int:
        """The number of auxiliary branches."""
        return len(self.branches - {"main"})

    @property
    def fits_one_batch(self) -> bool:
        """Whether `in_one_batch` exists: no pass depends on another or has its own weight."""
        return self.adversarial_share is None and len({part.weight for part in self.passes}) == 1

    def in_one_batch(self) -> "Method":
        """Returns the same method with one pass, whose batch norms have common moments.

        Raises:
            ValueError: not `fits_one_batch`.
        """
        if not self.fits_one_batch:
            raise ValueError(
                "`aux_shares` is 'moments', which puts all images of a step into one batch, but "
                "this method has passes that depend on each other or have different weights; "
                "take 'none', 'statistics' or 'affine'."
            )
        if len(self.passes) == 1:
            return self
        branches = [branch for part in self.passes for branch in part.branches]
        return Method((Pass("+".join(branches), self.views, self.passes[0].weight),))


METHODS = {
    "vanilla": Method((Pass("main", (CLEAN,)),)),
    # Xie et al., CVPR 2020, algorithm 1.
    "advprop": Method((Pass("main", (CLEAN,)), Pass("aux", (ADVERSARIAL,)))),
    # The paper's baseline: both kinds of images in one batch, through the same batch
    # norms.
    "adversarial": Method((Pass("main", (CLEAN, ADVERSARIAL)),)),
    # Madry et al., ICLR 2018, and Smooth Adversarial Training (Xie et al. 2020):
    # no clean image is trained on.
    "adversarial_only": Method((Pass("main", (ADVERSARIAL,)),)),
    # The paper's fine-grained variant: one auxiliary branch for each additional
    # distribution.
    "fine_grained": Method(
        (Pass("main", (CLEAN,)), Pass("aux", (AUGMENTED,)), Pass("aux_2", (ADVERSARIAL,)))
    ),
    # Mei et al., ICLR 2022: the losses of noisy and of adversarial images have weights
    # β = 0.5.
    "fast_advprop": Method(
        (
            Pass("main", (CLEAN,)),
            Pass("aux", (NOISY,), weight=0.5),
            Pass("aux", (ADVERSARIAL,), weight=0.5),
        ),
        adversarial_share=0.2,
    ),
}
