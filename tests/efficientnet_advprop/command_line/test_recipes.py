"""Recipes by name: the files of configs/, all of them."""

import pathlib

import pytest

from efficientnet_advprop.command_line import recipes

ROOT = pathlib.Path(__file__).parents[3]


def test_every_config_file_has_a_name():
    assert {"advprop", "digits", "studies/digits"} <= set(recipes.names())
    files = [
        path for path in (ROOT / "configs").rglob("*.py") if path.stem not in ("__init__", "base")
    ]
    assert len(recipes.names()) == len(files)


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


def test_the_list_says_of_each_recipe_what_may_follow_its_colon():
    lines = recipes.describe()
    assert [line.split(":")[0] for line in lines if line and line[0] != " "] == recipes.names()
    follows = {}
    for line in lines:
        if line and line[0] != " ":
            name = line.split(":")[0]
        elif line:
            follows[name] = line.strip()
    assert follows["efficientnet"].startswith(":one of b0, b1, b2, b3, b4, b5, b6, b7, b8")
    assert set(recipes.names()) - set(follows) == {
        "pets",
        *(name for name in recipes.names() if name.startswith("studies/")),
    }
