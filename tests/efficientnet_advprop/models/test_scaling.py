import pytest

from efficientnet_advprop.models import scaling
from tests.conftest import golden
from tests.released_format import variant_of

FACTS = {
    **golden("model_facts.json"),
    **golden("model_facts_more.json.gz"),
    **golden("model_facts_v2.json.gz")["models"],
}
# Of a block: our name and those of the official code's answers.
FIELDS = {
    "kernel_size": ("kernel_size",),
    "strides": ("strides",),
    "expand_ratio": ("expand_ratio",),
    "input_filters": ("actual_input_filters", "input_filters"),
    "expanded_filters": ("expanded_filters",),
    "output_filters": ("output_filters",),
    "squeeze_filters": ("se_reduced_filters",),
    "num_experts": ("num_experts",),
    "fused": ("conv_type", "fused"),
    "residual": ("residual",),
}


@pytest.mark.parametrize("name", FACTS)
def test_every_block_is_the_official_one(name):
    facts, variant = FACTS[name], variant_of(name)
    row = scaling.VARIANTS[variant]
    assert scaling.network_name(variant) == name
    assert row == scaling.Scaling(
        facts["width_coefficient"],
        facts["depth_coefficient"],
        facts["eval_size"] if "eval_size" in facts else facts["resolution"],
        facts["dropout_rate"],
        row.design,
    )
    assert row.design.num_classes == facts.get("num_classes", 1000)
    assert row.design.activation == facts.get("activation", "swish")
    assert row.design.batch_norm_momentum == (0.9 if "v2" in name else 0.99)
    if "stem_filters" in facts:
        ends = scaling.end_filters(row.design, row.width_coefficient)
        assert ends == (facts["stem_filters"], facts["head_filters"])
    blocks = scaling.scaled_blocks(row.width_coefficient, row.depth_coefficient, 0.8, row.design)
    assert len(blocks) == len(facts["blocks"])
    for block, fact in zip(blocks, facts["blocks"]):
        for ours, names in FIELDS.items():
            told = [fact[official] for official in names if official in fact][:1]
            assert not told or getattr(block, ours) == (told[0] or 0), (ours, block, fact)
        survival_prob = fact.get("survival_prob", fact.get("survival_prob_given"))
        assert block.survival_prob == pytest.approx(survival_prob, abs=1e-12)


def test_rounding_never_loses_more_than_a_tenth():
    assert scaling.round_filters(32, 1.1) == 32  # 35.2
    assert scaling.round_filters(16, 0.25) == 8
    assert scaling.round_filters(24, 0.5) == 16  # 12 would round to 8, a third less


def test_l2_is_the_published_size():
    # Xie et al., "Self-training with Noisy Student", table 7: 480M parameters.
    row = scaling.VARIANTS["l2"]
    total = 0
    for block in scaling.scaled_blocks(row.width_coefficient, row.depth_coefficient, 0.8):
        inputs, wide = block.input_filters, block.input_filters * block.expand_ratio
        total += inputs * wide * (block.expand_ratio != 1) + block.kernel_size**2 * wide
        total += 2 * wide * block.squeeze_filters + wide * block.output_filters
    total += 1280 * 4.3 * (block.output_filters + 1000)
    assert 478e6 < total < 482e6
