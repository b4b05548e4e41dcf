r"""Writes a network's weights in another library's format, or in that of the released
checkpoints, which every existing converter and tool reads.

    python -m efficientnet_advprop.release --model_dir=runs/b3 \
        --output=out/efficientnet-b3/model.ckpt
    python -m efficientnet_advprop.release --checkpoint=b3-advprop --format=timm --output=out/b3
    python -m efficientnet_advprop.release --checkpoint=hf://timm/tf_efficientnet_b3.ap_in1k \
        --format=keras-applications --output=out/b3.weights.h5

The released format holds a run's plain weights, their averages under
`…/ExponentialMovingAverage`, and the step. The others hold one set of weights: a run's
averages, or those that --use_ema chooses.
"""

import os

from absl import flags

from efficientnet_advprop.command_line import network_flags, program
from efficientnet_advprop.config.experiment import ConfigError

FORMATS = ("released", "timm", "keras-applications")
_NETWORK = network_flags.define()
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "what to write, local or gs://: a prefix such as out/b3/model.ckpt; for timm a folder or a "
    ".safetensors; for keras-applications a folder or a .weights.h5",
)
_FORMAT = flags.DEFINE_enum("format", "released", FORMATS, "whose names and layout")
_INCLUDE_AUX = flags.DEFINE_bool(
    "include_aux",
    False,
    "the auxiliary batch norms too, which other programs do not know; of a run, released format",
)
_MODEL_CARD = flags.DEFINE_bool("model_card", False, "a README.md beside the weights, for a hub")
_PUSH = flags.DEFINE_string(
    "push", None, "hf://owner/name: upload what was written, with the token of `hf auth login`"
)


def main(argv):
    del argv
    if not _OUTPUT.value:
        raise ConfigError("`--output` is missing; give a prefix, such as out/b3/model.ckpt.")
    if not (_NETWORK.model_dir.value or _NETWORK.checkpoint.value):
        raise ConfigError("`--model_dir` is missing; give a training run's, or `--checkpoint`.")
    if _INCLUDE_AUX.value and (_FORMAT.value != "released" or not _NETWORK.model_dir.value):
        raise ConfigError("`--include_aux` goes with --model_dir and --format=released only.")
    # Here, so that --help and a wrong flag do not wait for TensorFlow.
    from efficientnet_advprop.models.checkpoints import hub
    from efficientnet_advprop.serving import releasing
    from efficientnet_advprop.training.checkpoints import write_released_checkpoint

    if _PUSH.value:
        hub.parse(_PUSH.value)  # a wrong address ends here
    if _FORMAT.value == "released" and _NETWORK.model_dir.value:
        # The run's own file has all weights, and its config says the rest.
        _NETWORK.require_unused("model_dir", besides=("model_dir", "which"))
        step = write_released_checkpoint(
            _NETWORK.model_dir.value,
            _OUTPUT.value,
            which=_NETWORK.which.value,
            include_aux=_INCLUDE_AUX.value,
        )
        file, note = _OUTPUT.value, f"weights and averages of step {step}"
        network = _NETWORK.restore() if _MODEL_CARD.value else None
    else:
        network = _NETWORK.restore()
        print(network.description, flush=True)
        file, note = releasing.write_weights(network, _FORMAT.value, _OUTPUT.value)
    print(f"{file}: {note}; look at it with")
    print(f"python -m efficientnet_advprop.inspect_checkpoint {file}", flush=True)
    if _MODEL_CARD.value:
        place = _PUSH.value or file
        card = releasing.write_model_card(
            network, _FORMAT.value, file, place, note, model_dir=_NETWORK.model_dir.value
        )
        print(f"{card}: the model card", flush=True)
    if _PUSH.value:
        folder = os.path.dirname(file) or "."
        print(f"uploaded: {hub.push(folder, _PUSH.value, releasing.files_of(file))}", flush=True)


if __name__ == "__main__":
    program.run(main)
