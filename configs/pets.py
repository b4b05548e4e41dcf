r"""Fine-tuning of the released AdvProp B0 on the 37 breeds of Oxford-IIIT Pet.

    python -m efficientnet_advprop.train --config=configs/pets.py --data_dir=data/tfds \
        --model_dir=runs/pets

`data_dir` is the folder in which TensorFlow Datasets has prepared the data set (`tfds
build oxford_iiit_pet --data_dir=data/tfds`: 3,680 training and 3,669 test images). The
released weights are downloaded, unless `--config.init.checkpoint` names a folder. The
recipe has neither been tuned nor run to its end.
"""

from efficientnet_advprop.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    config = ExperimentConfig()
    config.model.num_classes = 37
    config.init.checkpoint = "b0-advprop"
    config.data.source = "tfds:oxford_iiit_pet"
    config.data.shuffle_buffer = 4096
    config.data.cache = True
    config.optimizer.learning_rate_per_256 = 0.004
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 2.0
    config.optimizer.ema_decay = 0.99
    config.training.method = "advprop"
    config.training.num_epochs = 50.0
    config.training.global_batch_size = 128
    config.training.eval_batch_size = 256
    config.training.checkpoint_every_steps = 290
    return config
