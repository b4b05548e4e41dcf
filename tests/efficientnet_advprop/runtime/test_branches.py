"""Branches by name, and mixtures of them: what they normalise with, in closed form."""

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.evaluation.classifiers import as_classifier
from efficientnet_advprop.evaluation.evaluation_run import default_directory
from efficientnet_advprop.models import DualBatchNormalization, EfficientNet
from efficientnet_advprop.runtime.branches import BranchMixture, num_aux_branches, parse_branch
from efficientnet_advprop.runtime.errors import UsageError

EPSILON = 1e-3


@pytest.mark.parametrize("text", ["main", "aux", "aux_2", "main:0.7,aux:0.3", "aux_3:0.5,main:0.5"])
def test_text_and_value(text):
    branch = parse_branch(text)
    assert str(branch) == text and parse_branch(branch) == branch
    assert isinstance(branch, BranchMixture) == ("," in text)


def test_a_mixture_is_read_in_the_order_of_its_names():
    mixture = parse_branch("aux_1:0.25, main:0.75")
    assert mixture.shares == (("aux", 0.25), ("main", 0.75)) and mixture.statistics == "aux"
    assert (mixture.share_of("main"), mixture.share_of("aux_2")) == (0.75, 0.0)
    assert [num_aux_branches(parse_branch(text)) for text in ("main", "aux", "aux_4:1,main:0")] == [
        0,
        1,
        4,
    ]


@pytest.mark.parametrize(
    "text, problem",
    [
        ("main:0.7,aux:0.4", "add up to 1.1"),
        ("main:1.5,aux:-0.5", r"outside \[0, 1\]"),
        ("main:nan,aux:1", r"outside \[0, 1\]"),
        ("main:0.5,main:0.5", "names a branch twice"),
        ("main:0.5,aux", "aux has no share"),
        ("main:half,aux:0.5", "share of main is 'half'"),
        ("main:0.5,side:0.5", "called main, aux, aux_2"),
        ("aux_0", "called main, aux, aux_2"),
        ("", "called main, aux, aux_2"),
        (",", "called main, aux, aux_2"),
    ],
)
def test_what_is_no_branch_is_said_in_one_message(text, problem):
    with pytest.raises(ValueError, match=f"`branch` is '.*{problem}.*such as main:0.7,aux:0.3"):
        parse_branch(text)


@pytest.fixture(scope="module")
def layer():
    layer = DualBatchNormalization(aux_branches=2, epsilon=EPSILON)
    layer.build([None, None, None, 3])
    rng = np.random.default_rng(0)
    for variable in layer.variables:
        variable.assign(rng.uniform(0.5, 2.0, variable.shape))
    return layer


@pytest.mark.parametrize("mode", ["eager", "xla"])
@pytest.mark.parametrize("text", ["main:0.7,aux:0.3", "aux_2:0.2,main:0.5,aux:0.3"])
def test_gamma_and_beta_are_means_and_statistics_the_first_branchs(layer, text, mode):
    x = np.random.default_rng(1).standard_normal([2, 4, 4, 3]).astype(np.float32)
    mixture = parse_branch(text)
    run = tf.function(lambda x: layer(x, branch=mixture), jit_compile=True)
    found = layer(x, branch=mixture) if mode == "eager" else run(x)
    parts = [(layer.variables_of(name), share) for name, share in mixture.shares]
    gamma, beta = (
        sum(share * getattr(held, which).numpy() for held, share in parts)
        for which in ("gamma", "beta")
    )
    first = layer.variables_of(text.partition(":")[0])
    mean, variance = first.moving_mean.numpy(), first.moving_variance.numpy()
    wanted = gamma * (x - mean) / np.sqrt(variance + EPSILON) + beta
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_share_of_one_is_the_branch(layer):
    x = tf.random.stateless_normal([2, 3, 3, 3], [1, 2])
    for text, branch in (("main:1,aux:0", "main"), ("aux:1,main:0", "aux")):
        mixed = layer(x, branch=parse_branch(text))
        np.testing.assert_allclose(mixed, layer(x, branch=branch), rtol=1e-6, atol=1e-6)


def test_mixtures_are_not_trained(layer):
    with pytest.raises(ValueError, match="mixture 'main:0.5,aux:0.5'.* in inference only"):
        layer(tf.zeros([1, 2, 2, 3]), training=True, branch=parse_branch("main:0.5,aux:0.5"))


def test_networks_and_classifiers_answer_through_mixtures():
    model = EfficientNet(
        "b0", num_classes=4, aux_branches=1, width_coefficient=0.1, depth_coefficient=0.1
    )
    rng = np.random.default_rng(2)
    for variable in model.variables:
        if "/aux/" in variable.name:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    images = rng.uniform(0, 255, [2, 32, 32, 3]).astype(np.float32)
    wanted = model(images, branch=parse_branch("main:0.6,aux:0.4")).numpy()
    assert np.abs(wanted - model(images, branch="main")).max() > 1e-4
    classifier = as_classifier(model, name="tiny", branch="main:0.6,aux:0.4")
    np.testing.assert_allclose(classifier.function(images), wanted, rtol=1e-5, atol=1e-6)
    assert classifier.branch == "main:0.6,aux:0.4"
    assert default_directory(classifier).endswith("tiny-main-0.6-aux-0.4")
    assert classifier.weights_digest == as_classifier(model, branch="aux").weights_digest
    with pytest.raises(UsageError, match="'aux_2'.* there is only 'main', 'aux'"):
        as_classifier(model, name="tiny", branch="main:0.6,aux_2:0.4")
    with pytest.raises(ValueError, match="in inference only"):
        model(images, training=True, branch=parse_branch("main:0.6,aux:0.4"))
