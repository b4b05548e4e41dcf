"""Recipes by name: the files of configs/, all of them."""

import pathlib

import pytest

from efficientnet_advprop.command_line import recipes

ROOT = pathlib.Path(__file__).parents[3]


def test_every_config_file_has_a_name():
    assert {"advprop", "digits", "studies/digits"} <= set(recipes.names())
    assert len(recipes.names()) == len(list((ROOT / "configs").rglob("*.py")))


@pytest.mark.parametrize(
    "name, path",
    [
        ("advprop", "configs/advprop.py"),
        ("advprop:b3", "configs/advprop.py:b3"),
        ("studies/digits", "configs/studies/digits.py"),
    ],
)
def test_found(name, path):
    assert recipes.find(name) == str(ROOT / path)


@pytest.mark.parametrize("name", ["", ":b3", "advprop.py", "configs/advprop", "../configs/advprop"])
def test_what_is_no_name_is_not_found(name):
    assert recipes.find(name) is None
