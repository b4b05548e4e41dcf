"""The flags of programs that use a trained network: its weights and its preprocessing."""

from types import SimpleNamespace
from typing import TYPE_CHECKING, Sequence

from absl import flags

from efficientnet_advprop.config.fields import ConfigError
from efficientnet_advprop.config.tables import CHECKPOINT_KINDS, NORMALIZATIONS

if TYPE_CHECKING:
    from efficientnet_advprop.serving.trained_network import RestoredNetwork

flags.disclaim_key_flags()  # the flags belong to the program that defines them and its --help


class NetworkFlags(SimpleNamespace):
    """The flags as absl's holders, by the names of `restore_network`'s arguments."""

    def restore(self, branch: str = "main") -> "RestoredNetwork":
        """Returns the network that the flags describe; see `restore_network`."""
        from efficientnet_advprop.serving.trained_network import restore_network

        values = {name: flag.value for name, flag in vars(self).items()}
        return restore_network(**values, branch=branch)

    def require_unused(self, instead: str, besides: Sequence[str]) -> None:
        """Raises a `ConfigError` if a flag does not go with `--<instead>`."""
        for name, flag in vars(self).items():
            if flag.present and name not in besides:
                raise ConfigError(
                    f"`--{name}` does not go with `--{instead}`; leave one of them out."
                )


def define() -> NetworkFlags:
    """Defines the flags, once per program."""
    return NetworkFlags(
        checkpoint=flags.DEFINE_string(
            "checkpoint",
            None,
            "weights: a name such as b3-advprop, hf://owner/name, a directory, a prefix, a .tar.gz "
            "(local, gs:// or https://), a .safetensors of timm, a .h5 of Keras, or a .keras",
        ),
        model_dir=flags.DEFINE_string(
            "model_dir", None, "folder of a training run, instead of --checkpoint"
        ),
        kind=flags.DEFINE_enum(
            "kind",
            None,
            list(CHECKPOINT_KINDS),
            "how a checkpoint was trained; needed where neither an official name nor a settings "
            "file tells it",
        ),
        normalization=flags.DEFINE_enum(
            "normalization",
            None,
            NORMALIZATIONS,
            "normalization of pixels; default: that of the kind, or of the .keras file",
        ),
        image_size=flags.DEFINE_integer(
            "image_size",
            None,
            "height and width of images in pixels; default: that of the variant, or of the run",
            lower_bound=1,
        ),
        crop=flags.DEFINE_string(
            "crop",
            None,
            "central crop: released (size / (size + 32)), a fraction such as 0.875, or none "
            "(the whole image); default: released, or that of the run",
        ),
        use_ema=flags.DEFINE_bool(
            "use_ema",
            None,
            "use averaged weights if the checkpoint has them; --nouse_ema: plain weights; default: "
            "as the published accuracy was measured, hence averaged but for kind sat",
        ),
        cache_dir=flags.DEFINE_string(
            "cache_dir",
            None,
            "folder for the contents of archives; default: ~/.cache/efficientnet_advprop",
        ),
        labels_map_file=flags.DEFINE_string(
            "labels_map_file",
            None,
            'file of class names: JSON {"0": "tench, Tinca tinca", …}; default: labels_map.txt in '
            "--model_dir or beside the checkpoint, if it exists",
        ),
        which=flags.DEFINE_enum(
            "which",
            None,
            ["best", "last"],
            "checkpoint of --model_dir: of the highest validation accuracy, or the last; default: "
            "last, or best where the run held out images to choose it by",
        ),
    )
