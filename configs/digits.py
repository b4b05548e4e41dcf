r"""A small EfficientNet on 300 of scikit-learn's handwritten digits, for a laptop.

    python -m efficientnet_advprop.train --config=configs/digits.py:advprop \
        --data_dir=data/digits --model_dir=runs/digits

The part after the colon is the method: advprop, vanilla, adversarial (training without
auxiliary batch norms), adversarial_only (without clean images, too), fine_grained or
fast_advprop. The data are written into `data_dir` on first use.

`make demo` compares vanilla, advprop and adversarial with fewer images: configs/demo.py.
"""

from efficientnet_advprop.config import METHODS, ExperimentConfig


def get_config(method: str = "advprop") -> ExperimentConfig:
    if method not in METHODS:
        raise ValueError(
            f"`method` is {method!r}, but must be one of {', '.join(METHODS)}: "
            "configs/digits.py:advprop."
        )
    config = ExperimentConfig()
    config.model.num_classes = 10
    config.model.width_coefficient = 0.5
    config.model.depth_coefficient = 0.3
    config.model.dropout_rate = 0.0
    config.model.survival_prob = 1.0
    config.model.compute_dtype = "float32"
    config.model.batch_norm_momentum = 0.9
    # A quarter of the range of pixels. Digits are strokes of full contrast, on which
    # the paper's values of 1 to 4 would have no effect.
    config.attack.epsilon = 64.0
    config.attack.step_size = 32.0
    config.attack.num_steps = 3
    config.data.source = "digits"
    config.data.image_size = 32
    config.data.crop = "pad"
    config.data.eval_crop = "none"
    config.data.crop_padding = 1
    config.data.horizontal_flip = False
    config.data.shuffle_buffer = 2048
    config.data.num_train_examples = 300
    config.optimizer.learning_rate_per_256 = 0.0256
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 2.0
    config.optimizer.ema_decay = 0.95
    config.training.num_epochs = 40.0
    config.training.global_batch_size = 50
    config.training.steps_per_loop = 30
    config.training.checkpoint_every_steps = 120
    config.training.summary_every_steps = 30
    config.training.evaluate_every_epochs = 10.0
    config.training.eval_batch_size = 250
    config.use_method(method)
    return config


def set_num_images(config: ExperimentConfig, num_images: int) -> None:
    """Trains on another number of images, with as many updates."""
    ratio = config.data.num_train_examples / num_images
    config.data.num_train_examples = num_images
    # A little more than whole updates, whose number is rounded down.
    config.training.num_epochs *= ratio * (1.0 + 1e-6)
    config.optimizer.warmup_epochs *= ratio
