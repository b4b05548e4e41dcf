"""The recipes: what a table compares differs in the method alone, and the numbers are
the published ones.
"""

import importlib
import re

import pytest

from efficientnet_advprop.config.experiment import ConfigError, differences
from efficientnet_advprop.config.methods import METHODS
from efficientnet_advprop.data import pipeline
from efficientnet_advprop.models.checkpoints.published_checkpoints import PUBLISHED
from efficientnet_advprop.models.scaling import VARIANTS
from efficientnet_advprop.training import build, checks, loop
from tests.conftest import golden


def load(file):
    return importlib.import_module(f"efficientnet_advprop.configs.{file}")


def get_config(file, *text):
    """A recipe's config, which is valid."""
    config = load(file).get_config(*text)
    config.validate()
    return config


SIZES = [f"b{size}" for size in range(9)]
FAST = {  # what Fast AdvProp prescribes beside the method
    *("attack.targeted", "attack.statistics", "attack.random_start"),
    *("training.num_epochs", "training.global_batch_size"),
    *("optimizer.learning_rate_per_256", "optimizer.decay_epochs", "optimizer.warmup_epochs"),
}


def changes(one, other):
    return set(differences(one, other))


@pytest.mark.parametrize("size", SIZES)
def test_efficientnets_that_are_compared_differ_in_one_thing(size):
    advprop, vanilla = get_config("advprop", size), get_config("advprop", f"{size}-vanilla")
    # Paper, table: resolutions of B0 to B8; attack n = ε + 1, but one step for ε = 1.
    pixels = dict(b0=224, b1=240, b2=260, b3=300, b4=380, b5=456, b6=528, b7=600, b8=672)
    assert (advprop.model.variant, advprop.data.image_size) == (size, pixels[size])
    epsilon = advprop.attack.epsilon
    assert advprop.attack.num_steps == (1 if epsilon == 1 else epsilon + 1)
    for method in METHODS:
        config = get_config("advprop", f"{size}-{method}")
        assert config.training.method == method
        if method == "fast_advprop":
            assert changes(vanilla, config) - {"training.method"} <= (
                FAST | {"attack.epsilon", "attack.num_steps"}
            )
        else:
            assert changes(vanilla, config) <= {"training.method"}
    for attacker in load("attackers").ATTACKERS:
        config = get_config("attackers", f"{size}-{attacker}")
        assert all(
            name.startswith("attack.") or name == "training.method"
            for name in changes(advprop, config)
        )
        assert config.training.method == ("adversarial" if attacker == "no-aux" else "advprop")
        if attacker[-1].isdigit():  # PGDn of the paper: ε = n − 1, but 1 for n = 1
            steps = int(attacker[3:])
            assert (config.attack.num_steps, config.attack.epsilon) == (steps, max(1, steps - 1))
    assert get_config("fine_grained", size) == get_config("advprop", f"{size}-fine_grained")
    assert get_config("fast_advprop", size) == get_config("advprop", f"{size}-fast_advprop")
    official = get_config("efficientnet", size)
    assert changes(vanilla, official) == {
        *("model.normalization", "training.global_batch_size"),
        *(name for name in changes(vanilla, official) if name.startswith("attack.")),
    }
    assert (official.model.normalization, official.training.global_batch_size) == ("imagenet", 2048)
    for file, text in (("advprop", size), ("efficientnet", size), ("attackers", f"{size}-pgd5")):
        single = get_config(file, f"{text}-float32")
        assert changes(get_config(file, text), single) == {"model.compute_dtype"}


def test_i_fgsm_and_gradient_descent_take_one_thing_off_each():
    pgd5, ifgsm, gd = (get_config("attackers", f"b0-{name}") for name in ("pgd5", "ifgsm", "gd"))
    assert changes(pgd5, ifgsm) == {"attack.random_start"} and ifgsm.attack.random_start == 0.0
    assert changes(ifgsm, gd) == {"attack.projection"} and not gd.attack.projection
    arms = load("studies.digits").get_study().arms  # the studies mean the same by these words
    study = arms["advprop_medium_gd"].config.attack
    assert (study.random_start, study.projection) == (gd.attack.random_start, gd.attack.projection)


@pytest.mark.parametrize("resnet", ["resnet50", "resnet200"])
def test_resnets_that_are_compared_differ_in_one_thing(resnet):
    vanilla = get_config("resnet", f"{resnet}-vanilla")
    for method in METHODS:
        config = get_config("resnet", f"{resnet}-{method}")
        found = changes(vanilla, config) - {"training.method"}
        if method == "fast_advprop":
            assert found <= FAST | {"optimizer.decay_at_epochs"}
            # Its authors' code: 320 images of which 256 stay clean, and the rate 0.1.
            batch = config.training.global_batch_size
            assert batch == 320 and batch - round(0.2 * batch) == 256
            assert config.optimizer.learning_rate_per_256 * batch / 256 == pytest.approx(0.1)
        else:
            assert found == ({"data.augment"} if method == "fine_grained" else set())
    weak, strong = (get_config("resnet", f"{resnet}-advprop{end}") for end in ("", "-pgd5"))
    assert changes(weak, strong) == {"attack.epsilon", "attack.num_steps"}
    without = get_config("resnet", f"{resnet}-adversarial-pgd5")
    assert changes(strong, without) == {"training.method"}


@pytest.mark.parametrize(
    "file, source, classes, augments",
    [
        ("advprop", "tfrecord", 1000, True),
        ("efficientnet", "tfrecord", 1000, True),
        ("cifar10", "tfds:cifar10", 10, False),
        ("pets", "tfds:oxford_iiit_pet", 37, False),
    ],
)
def test_data_of_recipes(file, source, classes, augments):
    config = get_config(file)
    assert (config.data.source, config.model.num_classes) == (source, classes)
    # The published figures include AutoAugment.
    assert (pipeline.make_augmentation(config.data) is not None) == augments


@pytest.mark.parametrize("method", METHODS)
def test_digits_go_with_every_method(method):
    config = get_config("digits", method)
    assert (config.training.method, config.data.source) == (method, "digits")


@pytest.mark.parametrize("file", ["official", "relatives"])
def test_docstrings_quote_the_published_accuracies(file):
    module = load(file)
    names = list(module.NAMES) if file == "official" else module.RELATIVES
    quoted = dict(re.findall(r"([\w-]+) (\d\d\.\d+)", module.__doc__))
    if file == "official":  # its checkpoint is not published any more
        assert quoted.pop("b8-randaugment") == "85.4" and names.pop() == "b8-randaugment"
    assert {name: float(top1) for name, top1 in quoted.items()} == {
        name: PUBLISHED[name].top1 for name in names
    }
    for name in names:
        config, row = module.get_config(name), PUBLISHED[name]
        config.validate()
        assert config.model.variant == row.variant
        assert config.model.normalization == row.normalization
        assert (config.data.image_size, config.data.eval_crop) == (row.image_size, row.crop)


def test_randaugment_and_baseline_differ_in_the_augmentation_only():
    module = load("official")
    baseline, randaugment = map(module.get_config, ("b5-baseline", "b5-randaugment"))
    assert (baseline.data.augment, randaugment.data.augment) == ("none", "randaugment")
    assert randaugment.data.randaugment_num_layers == 2
    assert randaugment.data.randaugment_magnitude == 17.0
    assert module.get_config("b7-randaugment").data.randaugment_magnitude == 28.0
    assert baseline.optimizer == randaugment.optimizer


@pytest.mark.parametrize("method", METHODS)
def test_relatives_go_with_every_method(method):
    for variant, classes in (("lite0", 1000), ("edgetpu-S", 1001), ("condconv-b0-8e-depth", 1000)):
        config = load("relatives").get_config(f"{variant}-{method}")
        config.validate()
        assert (config.model.variant, config.training.method) == (variant, method)
        assert config.model.num_classes == classes


# Of google/automl's `efficientnetv2` at 6a54c87: image sizes, RandAugment magnitudes
# (None: AutoAugment) and α of MixUp and CutMix in the four stages; top-1 of its README.
V2 = {
    "v2-b0": ([144, 160, 176, 192], None, [0, 0, 0, 0], 78.7),
    "v2-b1": ([144, 160, 176, 192], None, [0, 0, 0, 0], 79.8),
    "v2-b2": ([148, 168, 188, 208], None, [0, 0, 0, 0], 80.5),
    "v2-b3": ([156, 184, 212, 240], None, [0, 0, 0, 0], 82.1),
    "v2-s": ([171, 214, 257, 300], [5, 20 / 3, 25 / 3, 10], [0, 0, 0, 0], 83.9),
    "v2-m": ([192, 256, 320, 384], [5, 25 / 3, 35 / 3, 15], [0, 0.2 / 3, 0.4 / 3, 0.2], 85.2),
    "v2-l": ([192, 256, 320, 384], [5, 10, 15, 20], [0, 0.5 / 3, 1 / 3, 0.5], 85.7),
    "v2-xl": ([192, 256, 320, 384], [5, 10, 15, 20], [0, 0.5 / 3, 1 / 3, 0.5], None),
}


@pytest.mark.parametrize("name", V2)
def test_efficientnet_v2_is_that_of_its_repository(name):
    sizes, magnitudes, alphas, top1 = V2[name]
    quoted = dict(re.findall(r"(v2-\w+) (\d\d\.\d)", load("efficientnetv2").__doc__))
    assert quoted.get(name) == (top1 and f"{top1}")
    config = get_config("efficientnetv2", name)
    stages = config.data.stages()
    assert [stage.image_size for stage in stages] == sizes
    assert [stage.mixup_alpha for stage in stages] == pytest.approx(alphas)
    assert [stage.cutmix_alpha for stage in stages] == pytest.approx(alphas)
    assert config.data.augment == ("randaugment" if magnitudes else "autoaugment")
    if magnitudes:
        assert [stage.randaugment_magnitude for stage in stages] == pytest.approx(magnitudes)
    assert [loop._stage_at(config.data, step, 1000)[1] for step in (0, 250, 500, 999)] == (
        [250, 500, 750, 1000]
    )
    fact = golden("model_facts_v2.json.gz")["models"][f"efficientnet{name}"]
    assert config.data.image_size == fact["eval_size"]
    assert config.model.batch_norm_momentum == fact["batch_norm_momentum"]
    assert config.model.normalization == VARIANTS[name].design.normalization
    assert (config.training.global_batch_size, config.training.num_epochs) == (4096, 350)
    for method in METHODS:
        found = changes(config, get_config("efficientnetv2", f"{name}-{method}"))
        prescribed = FAST | {"attack.epsilon", "attack.num_steps"}
        assert found - {"training.method"} <= (prescribed if "fast" in method else set())


def test_large_batches_share_batch_norms_by_images():
    """128 images: with 1,024 cores of 64 images each two cores, as the official flag says it."""
    config = load("large_batch").get_config("b5-65536")
    config.validate()
    assert build.batch_norm_group_size(config, num_replicas=1024) == 2
    assert build.batch_norm_group_size(config, num_replicas=256) == 1
    checks.check_batch_norm_groups(config, num_replicas=1024)
    rate = build.make_learning_rate(config, steps_per_epoch=20.0, total_steps=7000)
    assert float(rate(20 * 43)) == pytest.approx(0.081 * 256, rel=1e-3)
    assert float(rate(7000)) == pytest.approx(0.1, rel=1e-3)
    config.model.batch_norm_batch_size = 192
    with pytest.raises(
        ConfigError, match="`config.model.batch_norm_batch_size` is 192.*per group: 3"
    ):
        checks.check_batch_norm_groups(config, num_replicas=1024)
    config.model.batch_norm_group_size = 2
    with pytest.raises(ConfigError, match="batch_norm_group_size. is 2"):
        config.validate()


def test_a_parabola_that_would_rise_is_refused():
    config = load("large_batch").get_config()
    config.optimizer.learning_rate_per_256 = 1e-4
    with pytest.raises(ConfigError, match="`config.optimizer.poly_end` is 0.1"):
        config.validate()


# Read in the repository of Smooth Adversarial Training: ResNet-50, clean and under
# untargeted PGD of 10, 20 and 50 steps; EfficientNets, clean.
SAT_RESNET50 = {
    "relu": (68.7, 35.3, 33.7, 33.1),
    "silu": (69.7, 43.0, 42.2, 41.9),
    "elu": (69.0, 41.6, 40.9, 40.7),
    "gelu": (69.9, 42.6, 41.8, 41.5),
    "softplus": (68.1, 41.1, 40.4, 40.2),
    "smooth_relu": (69.3, 41.3, 40.4, 40.1),
}
SAT_EFFICIENTNETS = dict(
    b0=65.2, b1=68.6, b2=70.3, b3=73.1, b4=75.9, b5=77.8, b6=79.2, b7=79.8, l1=80.7
)


def test_smooth_adversarial_training_is_that_of_its_repository():
    module = load("smooth_adversarial")
    text = module.__doc__
    number = r"(\d\d\.\d)"
    quoted = re.findall(rf"(\w+) {number} / {number} / {number} / {number}", text)
    assert {name: tuple(map(float, row)) for name, *row in quoted if name in SAT_RESNET50} == (
        SAT_RESNET50
    )
    quoted = dict(re.findall(rf"\b((?:b|l)\d) {number}", text))
    assert {name: float(top1) for name, top1 in quoted.items()} == SAT_EFFICIENTNETS
    assert module.get_config().model.activation == "silu"
    names = [*SAT_EFFICIENTNETS, "resnet152", *(f"resnet50-{name}" for name in SAT_RESNET50)]
    for name in names:
        config = module.get_config(name)
        config.validate()
        attack, model = config.attack, config.model
        assert (attack.epsilon, attack.step_size, attack.num_steps) == (4.0, 4.0, 1)
        assert (attack.targeted, attack.random_start, attack.statistics) == (False, 0.8, "running")
        assert (model.batch_norm_epsilon, model.batch_norm_momentum) == (1e-5, 0.9)
        assert (model.normalization, config.optimizer.label_smoothing) == ("advprop", 0.1)
        rate = build.make_learning_rate(config, steps_per_epoch=100.0, total_steps=10_000)
        rates = [float(rate(step)) for step in (500, 2999, 3001, 6001, 9001)]
        assert rates == pytest.approx([0.4, 0.4, 0.04, 0.004, 0.0004], rel=1e-5)
        assert config.training.method == "adversarial_only" and config.training.num_epochs == 100
    sizes = {name: module.get_config(name).data.image_size for name in ("resnet50", "b0", "l1")}
    assert sizes == {"resnet50": 224, "b0": 224, "l1": 600}


def test_feature_denoising_is_that_of_its_repository():
    config = load("feature_denoising").get_config()
    config.validate()
    attack = config.attack
    assert (attack.epsilon, attack.step_size, attack.num_steps, attack.targeted) == (
        16,
        1,
        30,
        True,
    )
    assert (config.model.variant, config.model.denoise) == ("resnet152", "non_local_softmax")
    rate = build.make_learning_rate(config, steps_per_epoch=100.0, total_steps=11_000)
    rates = [float(rate(step)) for step in (500, 3501, 7001, 9501)]
    assert rates == pytest.approx([1.6, 0.16, 0.016, 0.0016], rel=1e-5)
    assert (config.training.num_epochs, config.training.method) == (110, "adversarial_only")


def test_high_resolution_last_begins_with_the_weak_attack_at_half_the_size():
    low, high = map(load("high_resolution_last").get_config, ("resnet50-low", "resnet50-high"))
    for config in (low, high):
        config.validate()
    assert (low.data.image_size, high.data.image_size) == (112, 224)
    assert (low.attack.num_steps, high.attack.num_steps) == (1, 3)
    assert low.attack.epsilon == high.attack.epsilon == 4.0
    # Without the weights of the first stage there is no second one.
    assert low.init.checkpoint == "" and high.init.checkpoint
    # The docstring's cost in vanilla epochs: a step of the attack is two thirds of an
    # update.
    cost = 100 * (2 * 1 + 3) / 3 * (112 / 224) ** 2 + 10 * (2 * 3 + 3) / 3
    assert f"= {cost:.0f} vanilla epochs" in load("high_resolution_last").__doc__


@pytest.mark.parametrize(
    "file, text",
    [
        *(("advprop", "b9"), ("efficientnet", "l2"), ("fine_grained", "b9"), ("attackers", "b0")),
        *(("attackers", "b0-fgsm"), ("official", "b9"), ("relatives", "b9"), ("large_batch", "b9")),
        *(("resnet", "resnet50"), ("smooth_adversarial", "b8"), ("feature_denoising", "b9")),
        *(("high_resolution_last", "b0"), ("advprop", "float32"), ("efficientnetv2", "s")),
    ],
)
def test_unknown_names_are_answered_with_those_there_are(file, text):
    with pytest.raises(ValueError, match=f"`text` is '{text}', .*: configs/{file}.py:"):
        load(file).get_config(text)
