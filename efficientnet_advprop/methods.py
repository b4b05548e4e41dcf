"""What makes a training method: which images go through which branch's batch norms, as data.

    METHODS["advprop"].passes                    # clean images through main, adversarial ones through the auxiliary branch

A method is a row here; `steps.make_train_step` interprets it, and takes a row of your own as well.
"""

import dataclasses
from typing import Optional

# The images of a step: which it can show to the network.
CLEAN = "clean"  # batch["images"]
AUGMENTED = "augmented"  # batch["augmented_images"]: another view of the same images
ADVERSARIAL = "adversarial"  # what the attack makes of the clean images
NOISY = "noisy"  # where the attack started from


@dataclasses.dataclass(frozen=True)
class Pass:
    """One forward and backward pass.

    Args:
        branch: whose batch norms: "main", "aux", "aux_2", …
        views: the images in it, which share a batch where they are several: "clean", "augmented", "adversarial" or "noisy".
        weight: of its loss.
    """

    branch: str
    views: tuple[str, ...]
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Method:
    """A training method.

    Args:
        passes: in their order; their losses are added.
        adversarial_share: None: every clean image has its adversarial twin, and sees the network beside it. A number in (0, 1),
            as in Fast AdvProp: that part of a batch becomes adversarial, and its clean images are not trained on. Then the pass
            that trains on the noisy images is also the attack's, and gradients are divided by the share of the images that each
            variable saw.
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
                f"`adversarial_share` is {self.adversarial_share!r} and `passes` see {', '.join(self.views)}, but a share in "
                f"(0, 1) goes with three passes, which see {', '.join(unpaired)}, and these with a share."
            )

    @property
    def views(self) -> tuple[str, ...]:
        """All images that it trains on, in their order."""
        return tuple(view for part in self.passes for view in part.views)

    @property
    def has_attack(self) -> bool:
        """Whether it needs an attack."""
        return ADVERSARIAL in self.views

    @property
    def attacked_branch(self) -> str:
        """Whose batch norms the attack goes through: those that the adversarial images train."""
        return next(part.branch for part in self.passes if ADVERSARIAL in part.views)

    @property
    def branches(self) -> frozenset[str]:
        """The branches that it trains; a model must have exactly these."""
        return frozenset(part.branch for part in self.passes)

    @property
    def aux_branches(self) -> int:
        """How many of them are auxiliary."""
        return len(self.branches - {"main"})


METHODS = {
    "vanilla": Method((Pass("main", (CLEAN,)),)),
    # Xie et al., CVPR 2020, algorithm 1.
    "advprop": Method((Pass("main", (CLEAN,)), Pass("aux", (ADVERSARIAL,)))),
    # Their control: one batch of both through the same batch norms.
    "adversarial": Method((Pass("main", (CLEAN, ADVERSARIAL)),)),
    # Their fine-grained variant: one more auxiliary branch per further distribution.
    "fine_grained": Method(
        (Pass("main", (CLEAN,)), Pass("aux", (AUGMENTED,)), Pass("aux_2", (ADVERSARIAL,)))
    ),
    # Mei et al., ICLR 2022: weights β = 0.5 of the noisy and of the adversarial images.
    "fast_advprop": Method(
        (
            Pass("main", (CLEAN,)),
            Pass("aux", (NOISY,), weight=0.5),
            Pass("aux", (ADVERSARIAL,), weight=0.5),
        ),
        adversarial_share=0.2,
    ),
}
