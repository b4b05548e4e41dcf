r"""AdvProp on CIFAR-10, at 32 pixels.

    python -m efficientnet_advprop.train --config=configs/cifar10.py:advprop \
        --data_dir=data/tfds --model_dir=runs/cifar10

`data_dir` is the folder in which TensorFlow Datasets has prepared the data set (`tfds
build cifar10 --data_dir=data/tfds`). The part after the colon is the method, a key of
`methods.METHODS`. The paper reports no results on CIFAR. This recipe is a starting
point; it has neither been tuned nor run to its end.
"""

from efficientnet_advprop.config import METHODS, ExperimentConfig


def get_config(method: str = "advprop") -> ExperimentConfig:
    if method not in METHODS:
        raise ValueError(
            f"`method` is {method!r}, but must be one of {', '.join(METHODS)}: "
            "configs/cifar10.py:advprop."
        )
    config = ExperimentConfig()
    config.model.num_classes = 10
    config.data.source = "tfds:cifar10"
    config.data.image_size = 32
    config.data.crop = "pad"
    config.data.crop_padding = 4
    config.data.eval_crop = "none"
    config.data.shuffle_buffer = 50000
    config.data.cache = True
    config.optimizer.schedule = "cosine"
    config.optimizer.ema_decay = 0.999
    config.training.num_epochs = 200.0
    config.training.global_batch_size = 256
    config.use_method(method)
    return config
