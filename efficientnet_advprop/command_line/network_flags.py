"""The flags of the programs that use a trained network: which one, and how its images are prepared.

Usage:

    _NETWORK = network_flags.define()
    network = _NETWORK.restore()                                  # in main: a `RestoredNetwork`
"""

import dataclasses
from typing import Sequence

from absl import flags

from efficientnet_advprop.config import NORMALIZATIONS, ConfigError
from efficientnet_advprop.inference.trained_network import RestoredNetwork, restore_network
from efficientnet_advprop.models.checkpoints.published_checkpoints import KINDS

flags.disclaim_key_flags()  # they belong to the program that asks for them: its --help shows them


@dataclasses.dataclass(frozen=True)
class NetworkFlags:
    """The holders of the flags."""

    checkpoint: flags.FlagHolder
    model_dir: flags.FlagHolder
    kind: flags.FlagHolder
    normalization: flags.FlagHolder
    image_size: flags.FlagHolder
    crop: flags.FlagHolder
    use_ema: flags.FlagHolder
    cache_dir: flags.FlagHolder
    labels_map_file: flags.FlagHolder

    def restore(self, branch: str = "main") -> RestoredNetwork:
        """See `restore_network`."""
        values = {field.name: getattr(self, field.name).value for field in dataclasses.fields(self)}
        return restore_network(**values, branch=branch)

    def require_unused(self, instead: str, besides: Sequence[str]) -> None:
        """Raises a `ConfigError` if flags were given that do not go with `--<instead>`."""
        for field in dataclasses.fields(self):
            flag = getattr(self, field.name)
            if flag.present and field.name not in besides:
                raise ConfigError(
                    f"`--{field.name}` does not go with `--{instead}`; leave one of them out."
                )


def define() -> NetworkFlags:
    """Defines the flags; once per program."""
    return NetworkFlags(
        checkpoint=flags.DEFINE_string(
            "checkpoint",
            None,
            "checkpoint in the released format: a name such as b3-advprop, a directory, a prefix or a .tar.gz, local, "
            "gs:// or https://",
        ),
        model_dir=flags.DEFINE_string(
            "model_dir", None, "instead of --checkpoint: folder of a training run"
        ),
        kind=flags.DEFINE_enum(
            "kind",
            None,
            list(KINDS),
            "what a released checkpoint was trained by; default: by its name",
        ),
        normalization=flags.DEFINE_enum(
            "normalization", None, NORMALIZATIONS, "of pixels; default: the kind's"
        ),
        image_size=flags.DEFINE_integer(
            "image_size", None, "pixels; default: the variant's, or the run's", lower_bound=1
        ),
        crop=flags.DEFINE_string(
            "crop",
            None,
            "released (size / (size + 32)), a fraction such as 0.875, or none: the whole image; default: released, "
            "or the run's",
        ),  # fmt: skip
        use_ema=flags.DEFINE_bool(
            "use_ema",
            True,
            "averaged weights where the checkpoint has them; --nouse_ema: plain ones",
        ),
        cache_dir=flags.DEFINE_string(
            "cache_dir", None, "for what archives hold; default: ~/.cache/efficientnet_advprop"
        ),
        labels_map_file=flags.DEFINE_string(
            "labels_map_file",
            None,
            'class names: JSON {"0": "tench, Tinca tinca", …}; default: labels_map.txt in --model_dir '
            "or beside the checkpoint, if it is there",
        ),
    )
