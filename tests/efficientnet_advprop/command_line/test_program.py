"""A program's flags: each mistake is one line on stderr and exit code 2."""

import json
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

import pytest

from efficientnet_advprop.command_line import arguments
from efficientnet_advprop.config.experiment import ConfigError

ROOT = pathlib.Path(__file__).parents[3]
PROGRAM = """'Trains nothing. Usage: none.'
import json, os, sys, tempfile, traceback
import tensorflow  # some configs do; newer ones greet on stderr, here once and not in each fork
from efficientnet_advprop.command_line import program
from efficientnet_advprop.runtime.errors import UserError
from efficientnet_advprop.runtime.errors import PlatformError
_CONFIG = program.define_config_flag()

class RunError(UserError):
    pass

def main(argv):
    config = program.read_config(_CONFIG)
    if config.attack.epsilon == 7:
        raise RunError("seven is too many; use six.")
    if config.attack.epsilon == 8:
        raise OSError(28, "No space left on device", "here")
    if config.attack.epsilon == 9:
        raise PlatformError("no such device.")
    print(config.attack.epsilon, config.attack.targeted, config.data.num_train_examples)

if __name__ == "__main__":
    # A program per line of arguments, each in a fork: the imports, which take seconds,
    # happen once.
    for line in sys.stdin:
        sys.argv = [sys.argv[0], *json.loads(line)]
        outputs = [tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")]
        child = os.fork()
        if not child:
            for output, stream in zip(outputs, (1, 2)):
                os.dup2(output.fileno(), stream)
            code = 0
            try:
                program.run(main)
            except SystemExit as end:
                code = end.code or 0
            except BaseException:
                traceback.print_exc()
                code = 1
            # Not through C's exit handlers: libtpu's wait for a thread that no fork has.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = [(output.seek(0), output.read())[1] for output in outputs]
        print(json.dumps([code, *texts]), flush=True)
"""


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str
    folder: str


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("door")
    (folder / "program.py").write_text(PROGRAM)
    (folder / "broken.py").write_text("import no_such_module\n")
    (folder / "typo.py").write_text(
        "from efficientnet_advprop.config import *\ndef get_config():\n    return"
        " ExperimentConfig(modle=1)\n"
    )
    (folder / "other.py").write_text("def get_config():\n    return {}\n")
    lines = (
        "\ufeff# comment\r\n--config=configs/advprop.py:b0\r\n\r\n  --config.attack.epsilon 2\r\n"
    )
    lines += "// another\r\n--noconfig.attack.targeted\r\n--config.data.num_train_examples=300"
    (folder / "flags.txt").write_text(lines)
    (folder / "nested.txt").write_text(f"--flagfile={folder}/flags.txt\n")
    (folder / "recipe.txt").write_text("--config=digits:vanilla\n--config.attack.epsilon=2\n")
    (folder / "utf16.txt").write_text(lines, encoding="utf-16")
    (folder / "endless.txt").write_text(f"--flagfile={folder}/endless.txt")
    (folder / "wrong.txt").write_text("--config=digits\n--config.attack.epsilon=big")
    programs = subprocess.Popen(
        [sys.executable, str(folder / "program.py")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(*arguments):
        print(json.dumps(arguments).replace("FOLDER", str(folder)), file=programs.stdin, flush=True)
        return Result(*json.loads(programs.stdout.readline()), str(folder))

    yield run
    programs.stdin.close()
    assert programs.wait() == 0


CONFIG, DIGITS = "--config=configs/advprop.py:b0", "--config=configs/digits.py"


@pytest.mark.parametrize(
    "arguments, parts",
    [
        ([], ["`--config` is missing"]),
        (["--config=none.py"], ["`--config` is 'none.py'", "no such file"]),
        (["--config=advpropp"], ["`--config` is 'advpropp'", "did you mean advprop"]),
        (["--config=configs/advprop.py:b9"], ["is 'b9'", "b0, "]),
        (["--config=configs"], ["`--config`"]),
        (["--config=FOLDER/broken.py"], ["ModuleNotFoundError", "no_such_module"]),
        (["--config=FOLDER/typo.py"], ["unexpected keyword argument 'modle'"]),
        (["--config=FOLDER/other.py"], ["returned dict"]),
        ([CONFIG, "--config.attack.epsilon=-1"], ["`config.attack.epsilon` is -1.0", "≥ 0"]),
        ([CONFIG, "--config.attack.epsilon=big"], ["`config.attack.epsilon` is 'big'", "number"]),
        ([CONFIG, "--config.attack.num_steps=1.5"], ["`config.attack.num_steps` is '1.5'"]),
        ([CONFIG, "--config.attack.targeted=maybe"], ["`config.attack.targeted` is 'maybe'"]),
        ([CONFIG, "--noconfig.attack.epsilon"], ["`--noconfig.attack.epsilon`"]),
        (
            [CONFIG, "--config.attack.epslon=1"],
            ["`config.attack.epslon`", "`config.attack.epsilon`?"],
        ),
        ([CONFIG, "--config.attack=none"], ["`config.attack` is no field"]),
        ([CONFIG, "--config.attack.num_steps"], ["`--config.attack.num_steps` has no value"]),
        ([CONFIG, "--data_dri=x"], ["`--data_dri`"]),
        ([CONFIG, "--confgi=x"], ["`--confgi`", "did you mean --config"]),
        ([CONFIG, "--batch_size=3"], ["`--batch_size`", "`config.training.global_batch_size`"]),
        ([CONFIG, "stray"], ["`stray` is not a flag"]),
        # As Python hands over the byte E9 of an old name in Latin-1.
        ([CONFIG, "--data_dir=caf\udce9"], [r"`--data_dir=caf\xe9`", "UTF-8"]),
        (["--flagfile=absent"], ["`--flagfile` is 'absent'"]),
        (["--flagfile=configs"], ["`--flagfile` is 'configs'"]),
        (["--flagfile=FOLDER/utf16.txt"], ["`--flagfile`", "UTF-8"]),
        (["--flagfile=FOLDER/endless.txt"], ["`--flagfile`", "includes itself"]),
        (["--flagfile=FOLDER/wrong.txt"], ["`config.attack.epsilon` is 'big'"]),
    ],
)
def test_mistakes(run, arguments, parts):
    result = run(*arguments)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1
    for part in parts:
        assert part.replace("FOLDER", result.folder) in result.stderr, result.stderr


NUM_EXAMPLES = "--config.data.num_train_examples"


@pytest.mark.parametrize(
    "arguments, printed",
    [
        # The lines of a flag file are as if typed.
        (["--flagfile=FOLDER/flags.txt"], "2.0 False 300"),
        (["--flagfile", "FOLDER/flags.txt"], "2.0 False 300"),
        (["-flagfile=FOLDER/nested.txt", f"{NUM_EXAMPLES}=7"], "2.0 False 7"),
        (["--config.attack.epsilon=5", "--flagfile=FOLDER/flags.txt"], "2.0 False 300"),
        (["--flagfile=FOLDER/flags.txt", "--config.attack.epsilon=5"], "5.0 False 300"),
        (["--flagfile=FOLDER/recipe.txt", "--config=advprop:b1"], "2.0 True None"),
        (
            [CONFIG, "--config.attack.epsilon=2", "--noconfig.attack.targeted", NUM_EXAMPLES, "30"],
            "2.0 False 30",
        ),
        # An optional field that a file sets can be left out again.
        ([DIGITS, f"{NUM_EXAMPLES}=None"], "64.0 True None"),
        ([DIGITS, NUM_EXAMPLES, "none"], "64.0 True None"),
        ([DIGITS, f"{NUM_EXAMPLES}=None", f"{NUM_EXAMPLES}=7"], "64.0 True 7"),
        ([DIGITS, f"{NUM_EXAMPLES}=7", f"{NUM_EXAMPLES}=None"], "64.0 True None"),
        ([DIGITS], "64.0 True 300"),
    ],
)
def test_what_is_typed_reaches_the_config(run, arguments, printed):
    result = run(*arguments)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{printed}\n", "")


def test_none_is_no_value_of_other_fields(run):
    result = run(CONFIG, "--config.attack.num_steps=None")
    assert "`config.attack.num_steps` is 'None', but must be a whole number." in result.stderr
    result = run(CONFIG, "--config.model.dropout_rate=much")
    assert "must be a number or None." in result.stderr


@pytest.mark.parametrize(
    "epsilon, message, code",
    [
        ("7", "seven is too many; use six.", 1),
        ("8", "[Errno 28] No space left on device: 'here'", 1),
        ("9", "no such device.", 2),
    ],
)
def test_failure_of_a_run(run, epsilon, message, code):
    result = run(CONFIG, f"--config.attack.epsilon={epsilon}")
    assert (result.returncode, result.stderr) == (code, f"error: {message}\n")


def test_help(run):
    result = run("--help")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Trains nothing.") and max(map(len, lines)) <= 100
    # The program's own flags come first, the fields by section, indented.
    places = [lines.index(line) for line in ("  --config", "    --config.attack.epsilon=1.0")]
    assert places == sorted(places)
    assert any(line.startswith("  attack: ") for line in lines)


@pytest.mark.parametrize(
    "argument, expanded",
    [
        ("~/runs/b3", "/home/ada/runs/b3"),
        ("--model_dir=~/runs", "/home/ada/runs"),
        ("--compare=~/a,~/b", "/home/ada/a,/home/ada/b"),
        ("--suite=imagenet,folder:~/pets", "imagenet,folder:/home/ada/pets"),
        ("--config.init.checkpoint=~", "/home/ada"),
        ("--data_dir=gs://bucket/~x/y", "gs://bucket/~x/y"),
        ("--out=a~/b", "a~/b"),
        ("--config.training.seed=3", "3"),
    ],
)
def test_home_folders_are_expanded_wherever_a_path_begins(argument, expanded, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert arguments.expand_home(argument).rpartition("=")[2] == expanded


def test_a_home_folder_without_a_user_is_refused():
    with pytest.raises(ConfigError, match="`--model_dir=~nobody_here/x`.*no such user"):
        arguments.expand_home("--model_dir=~nobody_here/x")


ENDS_EARLY = [
    # That each program's flags need none is shown by test_imports.
    ("train", ["--help"]),
    ("train", [DIGITS, "--config.attack.epsilon=-1"]),
    ("study", ["--study=configs/studies/digits.py", "--list"]),
]


@pytest.mark.parametrize("name, arguments", ENDS_EARLY)
def test_help_lists_and_refusals_do_not_wait_for_tensorflow(name, arguments):
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_module('efficientnet_advprop.' + sys.argv[0], run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print('imported' if 'tensorflow' in sys.modules else 'not imported', 'at the end')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, name, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.endswith("not imported at the end\n"), done.stderr


@pytest.mark.parametrize("name, arguments", ENDS_EARLY)
def test_who_reads_the_output_may_stop(name, arguments):
    """As `head` does after its lines; a refusal is told on stderr all the same."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"efficientnet_advprop.{name}", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    told = process.stderr.read()
    code = process.wait(120)
    if "epsilon" in arguments[-1]:
        assert code == 2 and told.startswith("error: `config.attack.epsilon`")
    else:
        assert (code, told) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device here")
@pytest.mark.parametrize("arguments", [[".train", "--help"], ["", "recipes"], [""]])
def test_an_output_on_a_full_disk_is_one_message(arguments):
    command = [sys.executable, "-m", f"efficientnet_advprop{arguments[0]}", *arguments[1:]]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
