import pytest

from efficientnet_advprop.models import scaling
from tests.conftest import golden


@pytest.mark.parametrize("variant", [f"b{i}" for i in range(9)])
def test_every_block_is_the_official_one(variant):
    facts = golden("model_facts.json")[f"efficientnet-{variant}"]
    row = scaling.VARIANTS[variant]
    assert row == scaling.Scaling(
        facts["width_coefficient"],
        facts["depth_coefficient"],
        facts["resolution"],
        facts["dropout_rate"],
    )
    blocks = scaling.scaled_blocks(row.width_coefficient, row.depth_coefficient, survival_prob=0.8)
    assert len(blocks) == facts["num_blocks"]
    for block, fact in zip(blocks, facts["blocks"]):
        assert block.kernel_size == fact["kernel_size"]
        assert block.strides == fact["strides"]
        assert block.input_filters == fact["input_filters"]
        assert block.output_filters == fact["output_filters"]
        assert block.expand_ratio == fact["expand_ratio"]
        assert block.squeeze_filters == fact["se_reduced_filters"]
        assert block.residual == fact["residual"]
        assert block.survival_prob == pytest.approx(fact["survival_prob"], abs=1e-12)


RELATIVES = golden("model_facts_more.json.gz")


@pytest.mark.parametrize("name", RELATIVES)
def test_every_block_of_the_relatives_is_the_official_one(name):
    """EfficientNet-Lite, -EdgeTPU and -CondConv."""
    facts = RELATIVES[name]
    row = scaling.VARIANTS[name.removeprefix("efficientnet-")]
    assert row.width_coefficient == facts["width_coefficient"]
    assert row.depth_coefficient == facts["depth_coefficient"]
    assert (row.image_size, row.dropout_rate) == (facts["resolution"], facts["dropout_rate"])
    assert row.design.num_classes == facts["num_classes"]
    assert row.design.activation == facts["activation"]
    assert scaling.end_filters(row.design, row.width_coefficient) == (
        facts["stem_filters"],
        facts["head_filters"],
    )
    blocks = scaling.scaled_blocks(row.width_coefficient, row.depth_coefficient, 0.8, row.design)
    assert len(blocks) == len(facts["blocks"])
    for block, fact in zip(blocks, facts["blocks"]):
        for ours, official in (
            ("kernel_size", "kernel_size"),
            ("strides", "strides"),
            ("expand_ratio", "expand_ratio"),
            ("input_filters", "actual_input_filters"),
            ("expanded_filters", "expanded_filters"),
            ("output_filters", "output_filters"),
            ("residual", "residual"),
        ):
            assert getattr(block, ours) == fact[official], (ours, block, fact)
        assert block.squeeze_filters == (fact["se_reduced_filters"] or 0)
        assert block.num_experts == (fact["num_experts"] or 0)
        assert block.fused == bool(fact["conv_type"])
        assert block.survival_prob == pytest.approx(fact["survival_prob"], abs=1e-12)


V2 = golden("model_facts_v2.json.gz")["models"]


@pytest.mark.parametrize("name", V2)
def test_every_block_of_efficientnetv2_is_the_official_one(name):
    facts, row = V2[name], scaling.VARIANTS[name.removeprefix("efficientnet")]
    assert scaling.network_name(name.removeprefix("efficientnet")) == name
    assert row == scaling.Scaling(
        facts["width_coefficient"],
        facts["depth_coefficient"],
        facts["eval_size"],
        facts["dropout_rate"],
        row.design,
    )
    assert (row.design.batch_norm_momentum, row.design.num_classes) == (0.9, 1000)
    assert scaling.end_filters(row.design, row.width_coefficient) == (
        facts["stem_filters"],
        facts["head_filters"],
    )
    blocks = scaling.scaled_blocks(row.width_coefficient, row.depth_coefficient, 0.8, row.design)
    assert len(blocks) == len(facts["blocks"])
    for block, fact in zip(blocks, facts["blocks"]):
        for field in (
            *("fused", "kernel_size", "strides", "expand_ratio", "residual"),
            *("input_filters", "expanded_filters", "output_filters"),
        ):
            assert getattr(block, field) == fact[field], (field, block, fact)
        assert block.squeeze_filters == (fact["se_reduced_filters"] or 0)
        assert block.survival_prob == pytest.approx(fact["survival_prob_given"], abs=1e-12)


def test_rounding_never_loses_more_than_a_tenth():
    assert scaling.round_filters(32, 1.1) == 32  # 35.2
    assert scaling.round_filters(16, 0.25) == 8
    assert scaling.round_filters(24, 0.5) == 16  # 12 would round to 8, a third less
