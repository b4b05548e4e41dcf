"""The schema: rules, JSON, overrides, and that every field is read."""

import ast
import importlib
import json
import math
import pathlib
import subprocess
import sys

import pytest

from efficientnet_advprop.config import experiment as config_lib
from efficientnet_advprop.config import tables
from efficientnet_advprop.config.experiment import ConfigError, ExperimentConfig
from efficientnet_advprop.data import preprocessing
from efficientnet_advprop.models import FAMILIES, activations, denoising, network
from efficientnet_advprop.models.checkpoints import published_checkpoints

ROOT = pathlib.Path(__file__).parents[3]
FIELDS = [name for name, _, _ in config_lib.flatten(ExperimentConfig())]


def with_field(name, value):
    config = ExperimentConfig()
    section, field = name.split(".")
    setattr(getattr(config, section), field, value)
    return config


def test_defaults_are_valid():
    ExperimentConfig().validate()


@pytest.mark.parametrize(
    "name, value, rule",
    [
        ("model.variant", "b9", "must be one of"),
        ("model.num_classes", 0, "must be ≥ 1"),
        ("model.width_coefficient", -1.0, "must be > 0"),
        ("model.dropout_rate", 1.0, "[0, 1)"),
        ("model.normalization", "standard", "'advprop', 'imagenet', 'lite', 'v2', 'caffe', 'none'"),
        ("model.compute_dtype", "int8", "must be one of"),
        ("model.activation", "mish", "must be one of 'relu'"),
        ("model.activation_alpha", 0.0, "must be > 0"),
        ("model.activation_alpha", 2.0, "`config.model.activation` is None: α goes with"),
        ("model.smooth_relu_gradient", "both", "`config.model.activation` 'relu' alone"),
        ("model.denoise", "mean", "`config.model.variant` is 'b0', and only ResNets"),
        ("model.denoise_stages", "1,2", "numbers from 2 to 5"),
        ("attack.epsilon", -1.0, "must be ≥ 0, in pixels of 255"),
        ("attack.epsilon", math.nan, "must be finite"),
        ("attack.num_steps", 1.5, "must be a whole number"),
        ("attack.num_steps", 0, "must be ≥ 1; the paper uses 1 to 5, and training without"),
        ("attack.num_steps", True, "must be a whole number"),
        ("attack.targeted", 1, "must be true or false"),
        ("attack.random_start", 1.1, "probability"),
        ("data.eval_crop", "big", "'released'"),
        ("data.eval_crop", "1.5", "'released'"),
        ("data.num_train_examples", 0, "must be ≥ 1"),
        ("optimizer.learning_rate_per_256", math.inf, "must be finite"),
        ("optimizer.decay_at_epochs", "30,20", "must be rising numbers"),
        ("optimizer.decay_at_epochs", "30,60", "`config.optimizer.schedule` is 'exponential'"),
        ("optimizer.warmup_epochs", 351.0, "must be less than `config.training.num_epochs` = 350"),
        ("training.method", "fgsm", "'vanilla', 'advprop', 'adversarial'"),
        ("training.global_batch_size", "4096", "must be a whole number"),
        ("training.global_batch_size", None, "must be a whole number"),
        ("training.accumulation_steps", 3, "global_batch_size` is 4096, but must divide by"),
        ("init.layer_decay", 0.0, "(0, 1]"),
        ("init.layer_decay", 1.1, "(0, 1]"),
        ("init.head_learning_rate_factor", 0.0, "must be > 0"),
        ("data.stage_base_size", 0, "must be ≥ 1"),
        ("training.seed", 2**31, "[0, 2³¹)"),
    ],
)
def test_a_broken_rule_names_field_and_value(name, value, rule):
    with pytest.raises(ConfigError) as error:
        with_field(name, value).validate()
    assert rule in str(error.value) and f"`config.{name}`" in str(error.value)
    assert "\n" not in str(error.value)


def test_stages_may_not_shrink():
    config = with_field("data.num_stages", 2)
    config.validate()
    config.data.train_image_size = 64
    with pytest.raises(ConfigError, match="`config.data.stage_base_size` is 128, .* 64 pixels"):
        config.validate()
    config.data.stage_base_size = 64
    config.validate()


def test_targeted_attack_needs_a_wrong_class():
    config = with_field("model.num_classes", 1)
    with pytest.raises(ConfigError, match="num_classes"):
        config.validate()
    config.training.method = "vanilla"
    config.validate()


def test_every_field_has_a_rule_or_is_a_flag_and_says_what_it_means():
    config = ExperimentConfig()
    for name, value, _ in config_lib.flatten(config):
        section, field = name.split(".")
        facts = type(getattr(config, section)).__dataclass_fields__[field].metadata
        assert facts["rule"] is not None or isinstance(value, bool), name
        assert len(facts["help"]) >= 6, name


def test_the_tables_are_those_of_the_modules_that_act_upon_them():
    """The names of what a dictionary implements; plain choices are read from the tables."""
    assert set(tables.VARIANTS) == set(FAMILIES)
    assert set(tables.NORMALIZATIONS) == set(network.NORMALIZATIONS)
    assert set(tables.COMPUTE_DTYPES) == set(network.COMPUTE_DTYPES)
    assert set(tables.ACTIVATIONS) == {*activations.ACTIVATIONS, *activations.OTHER_NAMES}
    assert set(tables.ACTIVATIONS_WITH_ALPHA) == {
        name for name, formula in activations.ACTIVATIONS.items() if formula.alpha is not None
    }
    assert tables.DENOISERS == ("none", *denoising.OPERATIONS)
    assert tables.CHECKPOINT_KINDS == tuple(published_checkpoints.KINDS)
    assert tables.RESIZE_METHODS == tuple(preprocessing.RESIZE_METHODS)


def test_config_and_its_help_import_no_tensorflow():
    code = (
        "import sys; from efficientnet_advprop import config; config.describe_fields(); "
        "config.ExperimentConfig().validate(); sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_every_variant_is_valid():
    config = ExperimentConfig()
    for config.model.variant in FAMILIES:
        config.validate()


def test_defaults_agree_with_the_paper():
    config = ExperimentConfig()
    # AdvProp by PGD1, batch 4096 and the official recipe: learning rate 0.016 per 256
    # images, hence 0.256.
    optimizer, batch = config.optimizer, config.training.global_batch_size
    assert optimizer.learning_rate_per_256 * batch / 256 == pytest.approx(0.256)
    assert (optimizer.decay_epochs, optimizer.warmup_epochs) == (2.4, 5)
    assert config.training.num_epochs == 350
    assert (config.model.batch_norm_momentum, config.model.batch_norm_epsilon) == (0.99, 1e-3)


def test_json_round_trip_keeps_every_value_and_has_defaults_for_the_rest():
    shorter = ExperimentConfig.from_json('{"attack": {"epsilon": 3}}')
    assert shorter == with_field("attack.epsilon", 3.0)
    config = with_field("attack.epsilon", 2.5)
    config.model.dropout_rate = 0.25
    again = ExperimentConfig.from_json(config.to_json())
    assert again == config and json.loads(config.to_json())["attack"]["epsilon"] == 2.5


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"attack": {"epslon": 1}}', "`config.attack.epslon`.*mean `config.attack.epsilon`"),
        ('{"attack": {"epsilon": "1"}}', "`config.attack.epsilon` is '1', but must be a number"),
        ('{"atack": {}, "model": 3}', "sections"),
        ("{", "not JSON"),
    ],
)
def test_saved_config_is_checked(text, message):
    with pytest.raises(ConfigError, match=message):
        ExperimentConfig.from_json(text)


def test_differences_name_the_fields():
    other = with_field("attack.epsilon", 4.0)
    other.model.dropout_rate = 0.0
    assert config_lib.differences(ExperimentConfig(), other) == {
        "attack.epsilon": (1.0, 4.0),
        "model.dropout_rate": (None, 0.0),
    }


def test_override_names_are_checked():
    config = ExperimentConfig()
    config_lib.override(config, "attack.epsilon", "3")
    config_lib.override(config, "model.dropout_rate", "none")
    assert (config.attack.epsilon, config.model.dropout_rate) == (3.0, None)
    with pytest.raises(ConfigError, match="`config.epsilon`"):
        config_lib.override(config, "epsilon", "3")


@pytest.mark.parametrize(
    "name, suggestion",
    [
        ("attack.epslon", "did you mean `config.attack.epsilon`?"),
        # Another meaning is never suggested, only listed.
        (
            "training.batch_size",
            "there are `config.training.eval_batch_size`, `config.training.global_batch_size`.",
        ),
        ("epsilon", "there are `config.attack.epsilon`, `config.optimizer.epsilon`."),
        ("modle", ""),
    ],
)
def test_only_a_misspelling_is_taken_for_another_name(name, suggestion):
    assert config_lib.suggest(name) == suggestion


def get_config(file, *variant):
    return importlib.import_module(f"efficientnet_advprop.configs.{file}").get_config(*variant)


def test_a_method_brings_what_it_prescribes():
    vanilla, fast = (
        get_config("resnet", f"resnet50-{method}") for method in ("vanilla", "fast_advprop")
    )
    fast.validate()
    # Mei et al.: PGD1 from noise, untargeted, batch statistics; 105 epochs / 1.2, and
    # the schedule with them.
    attack = fast.attack
    assert (attack.epsilon, attack.num_steps, attack.step_size) == (1.0, 1, 1.0)
    assert (attack.random_start, attack.targeted, attack.statistics) == (1.0, False, "batch")
    assert vanilla.training.num_epochs / fast.training.num_epochs == pytest.approx(1.2)
    assert fast.optimizer.decay_at_epochs == "25,50,75,83.3333"
    assert vanilla.optimizer.decay_at_epochs == "30,60,90,100"
    fine_grained = get_config("resnet", "resnet50-fine_grained")
    fine_grained.validate()
    assert fine_grained.data.augment == "autoaugment"


@pytest.mark.parametrize(
    "recipe, name, value, way_out",
    [
        (("fast_advprop",), "attack.num_steps", 5, "set it to 1"),
        (("fast_advprop",), "attack.targeted", True, "set it to False"),
        (("fast_advprop",), "attack.statistics", "running", "set it to 'batch'"),
        (("fast_advprop",), "attack.name", "noise", "set it to 'pgd'"),
        (("fast_advprop",), "model.aux_shares", "moments", "method 'fast_advprop'"),
        (("fine_grained",), "data.augment", "none", "method 'fine_grained'"),
        (("attackers", "b0-noise"), "attack.num_steps", 5, "attack 'noise' has no such option.* 1"),
    ],
)
def test_a_method_or_attack_refuses_what_does_not_apply(recipe, name, value, way_out):
    config = get_config(*recipe)
    config.validate()
    section, field = name.split(".")
    setattr(getattr(config, section), field, value)
    with pytest.raises(ConfigError, match=f"`config.{name}` is {value!r}, but .*{way_out}"):
        config.validate()


def test_fine_grained_images_may_share_moments():
    config = get_config("fine_grained")
    config.model.aux_shares = "moments"
    config.validate()


def fields_read(source: str) -> set:
    """All `….section.field` and `section.field` that occur in `source` as attributes."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = node.value
            section = (
                owner.attr
                if isinstance(owner, ast.Attribute)
                else owner.id
                if isinstance(owner, ast.Name)
                else None
            )
            found.add(f"{section}.{node.attr}")
    return found


def test_every_field_is_read_by_the_code():
    read = set()
    for path in (ROOT / "efficientnet_advprop").rglob("*.py"):
        if path.name != "experiment.py":
            read |= fields_read(path.read_text())
    assert set(FIELDS) - read == set(), "fields of the schema that no code reads: dead knobs"
