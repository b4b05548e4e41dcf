"""`evaluate` as a program: what its flags mean, and what they refuse at once."""

import os

import pytest

from efficientnet_advprop import evaluate
from tests.conftest import run_program


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("imagenet,imagenet_c", ["imagenet", "imagenet_c"]),
        (" imagenet , pgd ,", ["imagenet", "pgd"]),
        ("folder:cats, dogs", ["folder:cats, dogs"]),
        ("pgd,folder_c:cats, dogs,imagenet", ["pgd", "folder_c:cats, dogs", "imagenet"]),
        ("folder:cats,folder:a,b", ["folder:cats", "folder:a,b"]),
        ("folder:cats,mice", ["folder:cats", "mice"]),
    ],
)
def test_commas_in_the_names_of_folders_do_not_split(tmp_path, monkeypatch, text, wanted):
    monkeypatch.chdir(tmp_path)
    for name in ("cats", "cats, dogs", "a,b"):
        (tmp_path / name).mkdir()
    assert evaluate._split(text, evaluate._is_folder_suite) == wanted
    paths = "lr=0.1,wd=0,lr=0.2,wd=0"
    for name in ("lr=0.1,wd=0", "lr=0.2,wd=0"):
        (tmp_path / name).mkdir()
    assert evaluate._split(paths, os.path.exists) == ["lr=0.1,wd=0", "lr=0.2,wd=0"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--checkpoint=b3-advprop", "--suite=imagent"], "did you mean 'imagenet'"),
        (["--checkpoint=x", "--attack_norm=l2"], "`--attack_epsilon` is missing"),
        (["--watch", "--model_dir=x"], "`--data_dir` is missing"),
    ],
)
def test_wrong_flags_end_at_once(tmp_path, arguments, words):
    """Before a checkpoint is downloaded: there is no network here."""
    ended = run_program("evaluate", *arguments, cwd=tmp_path)
    assert ended.returncode == 2 and words in ended.stderr and ended.stderr.count("\n") == 1
