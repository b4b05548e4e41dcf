"""The command of an installed package: `advprop train …` is `python -m
efficientnet_advprop.train …`, and `advprop recipes` lists what --config takes.
"""

import ast
import pathlib
import runpy
import sys

from efficientnet_advprop.command_line import recipes
from efficientnet_advprop.runtime import process
from efficientnet_advprop.runtime.errors import UsageError, misspelled

_PACKAGE = pathlib.Path(__file__).parents[1]


def programs() -> dict[str, str]:
    """Returns every program's name and the first sentence of its documentation.

    A program is a module at the top of the package that runs something when it is the
    main one.
    """
    found = {}
    for file in sorted(_PACKAGE.glob("*.py")):
        source = file.read_text(encoding="utf-8")
        if '\nif __name__ == "__main__":\n' in source:
            summary = (ast.get_docstring(ast.parse(source)) or "").partition("\n\n")[0]
            found[file.stem] = " ".join(summary.split())
    return {**found, "recipes": "Lists the recipes, and what may follow their colon."}


def main() -> None:
    """Runs the program that the first argument names, with the others as its own."""
    process.handle_interrupt()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    known = programs()
    if name in known and name != "recipes":
        process.handle_sigterm_of(name)
        sys.argv = [f"advprop {name}", *sys.argv[2:]]
        # As the main module, by which a program's documentation and flags are found.
        runpy.run_module(f"efficientnet_advprop.{name}", run_name="__main__", alter_sys=True)
        return
    # Not before signals are handled. It silences TensorFlow, which some recipes load.
    from efficientnet_advprop.command_line.program import print_lines

    if name in ("--help", "-h", "help"):
        lines = [f"  {name:20s}{summary}" for name, summary in known.items()]
        title = "advprop PROGRAM --flag=value …, where PROGRAM is"
        print_lines([title, *lines, "advprop PROGRAM --help says more."])
    elif name == "recipes":
        title = "--config=NAME, or --config=NAME:VARIANT where something may follow the colon"
        print_lines([title, *recipes.describe()])
    else:
        advice = misspelled(name, known) or f"; there are {', '.join(known)}"
        print(f"error: `{name}` is no program{advice}.", file=sys.stderr)
        sys.exit(UsageError.exit_code)
