r"""A small EfficientNet on rendered characters: coloured, textured, cluttered images of 48
pixels in 32 classes, whose test images show other fonts and textures.

Usage:

    python -m efficientnet_advprop.train --config=configs/characters.py:advprop \
        --data_dir=data/characters --model_dir=runs/characters
    python -m efficientnet_advprop.evaluate --model_dir=runs/characters \
        --data_dir=data/characters --suite=characters,characters_c

The part after the colon is the method, as in configs/digits.py. The 6,400 training
images are written into `data_dir` on first use; `--config.data.num_train_examples` takes
fewer. The recipe is that of the digits, with a larger network and a weaker attack; it
was not tuned.
"""

from efficientnet_advprop.config import METHODS, ExperimentConfig


def get_config(method: str = "advprop") -> ExperimentConfig:
    if method not in METHODS:
        raise ValueError(
            f"`method` is {method!r}, but must be one of {', '.join(METHODS)}: "
            "configs/characters.py:advprop."
        )
    config = ExperimentConfig()
    config.model.num_classes = 32
    config.model.width_coefficient = 0.5
    config.model.depth_coefficient = 0.5
    config.model.dropout_rate = 0.0
    config.model.survival_prob = 1.0
    config.model.compute_dtype = "float32"
    config.model.batch_norm_momentum = 0.9
    config.attack.epsilon = 8.0
    config.attack.step_size = 4.0
    config.attack.num_steps = 3
    config.data.source = "characters"
    config.data.image_size = 48
    config.data.crop = "pad"
    config.data.eval_crop = "none"
    config.data.crop_padding = 4
    config.data.horizontal_flip = False
    config.data.shuffle_buffer = 8192
    config.optimizer.learning_rate_per_256 = 0.0256
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.ema_decay = 0.99
    config.training.num_epochs = 20.0
    config.training.global_batch_size = 64
    config.training.steps_per_loop = 50
    config.training.checkpoint_every_steps = 500
    config.training.summary_every_steps = 50
    config.training.evaluate_every_epochs = 5.0
    config.training.eval_batch_size = 256
    config.use_method(method)
    return config
