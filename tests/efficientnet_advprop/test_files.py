"""Durations in words."""

import pytest

from efficientnet_advprop import files


@pytest.mark.parametrize(
    "seconds, text",
    [(0.4, "0 s"), (59, "59 s"), (60, "1 min 00 s"), (3599.9, "1 h 00 min"), (11220, "3 h 07 min")],
)
def test_durations(seconds, text):
    assert files.format_duration(seconds) == text
