"""The text of --help: the program's own flags, then the fields of the config."""

import re
import sys
import textwrap
from typing import Sequence

from absl import flags

from efficientnet_advprop.config import experiment

_WIDTH = 100


def is_wanted(arguments: Sequence[str]) -> bool:
    """Returns whether the arguments ask for help."""
    return any(
        argument in ("-h", "-?", "--help", "-help", "--helpshort", "--helpfull")
        for argument in (arguments[: arguments.index("--")] if "--" in arguments else arguments)
    )


def show(has_config: bool) -> None:
    """Prints what the program does, its flags, and the config's fields by section."""
    lines = [(sys.modules["__main__"].__doc__ or "").strip(), "", "Flags:"]
    for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
        name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
        choices = getattr(flag.parser, "enum_values", None)
        choices = f"={{{'|'.join(choices)}}}" if choices else ""
        meaning = flag.help.partition(">: ")[2] if choices else flag.help  # absl puts them there
        default = "" if flag.default in (None, "", False) else f" (default: {flag.default})"
        lines += [*_wrapped(name + choices, 2), *_wrapped(_sentence(meaning + default), 6)]
    if has_config:
        lines += ["", "Fields of the config, with their defaults before the file's changes:"]
        for title, fields in experiment.describe_fields():
            lines += ["", *_wrapped(_sentence(title), 2)]
            for name, default, meaning in fields:
                lines += [f"    --config.{name}={default}", *_wrapped(_sentence(meaning), 8)]
    print("\n".join(lines), flush=True)


def _sentence(text: str) -> str:
    """Returns the text with a capital, unless it starts with a name, and a full stop."""
    text = " ".join(text.split())
    starts_with_name = re.match(r"[\w.]*[_:.\d']", text.partition(" ")[0])
    text = text if starts_with_name else text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=" " * indent, subsequent_indent=" " * indent)
