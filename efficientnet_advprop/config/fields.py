"""One field of the config: default, unit, rule and meaning in one place."""

import dataclasses
import math
import re
import typing
from typing import Any, Callable, Optional

from efficientnet_advprop.runtime.errors import UsageError

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_SWITCHES = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


class ConfigError(UsageError, ValueError):
    """A config field that breaks a rule; names the field, its value, the rule, the way out."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """A condition on a value; `text` says it in words that follow "but"."""

    accepts: Callable[[Any], bool]
    text: str


def field(default: Any, help: str, rule: Optional[Rule] = None, unit: str = "") -> Any:
    """Returns a dataclass field: its default, what it means, a rule beside its type, its unit.

    epsilon: float = field(1.0, "radius of the ball", at_least(0), "pixels of 255")
    """
    return dataclasses.field(default=default, metadata={"help": help, "rule": rule, "unit": unit})


def one_of(*choices: str) -> Rule:
    return Rule(lambda value: value in choices, f"must be one of {', '.join(map(repr, choices))}")


def at_least(low: float, hint: str = "") -> Rule:
    return Rule(lambda value: value >= low, f"must be ≥ {low}{hint}")


def more_than(low: float, hint: str = "") -> Rule:
    return Rule(lambda value: value > low, f"must be > {low}{hint}")


def fraction(hint: str = "") -> Rule:
    """A fraction in [0, 1)."""
    return Rule(lambda value: 0 <= value < 1, f"must lie in [0, 1){hint}")


def positive_fraction(hint: str = "") -> Rule:
    """A fraction in (0, 1]."""
    return Rule(lambda value: 0 < value <= 1, f"must lie in (0, 1]{hint}")


def probability() -> Rule:
    return Rule(lambda value: 0 <= value <= 1, "is a probability, in [0, 1]")


def pattern(form: str, text: str) -> Rule:
    return Rule(lambda value: re.fullmatch(form, value) is not None, text)


def help_of(section: Any, name: str) -> str:
    """Returns a field's meaning, unit and rule as one line."""
    found = section.__dataclass_fields__[name].metadata
    unit = f", in {found['unit']}" if found["unit"] else ""
    rule = f" ({found['rule'].text})" if found["rule"] is not None else ""
    return f"{found['help']}{unit}{rule}"


def type_rule(annotated: Any) -> str:
    """Returns the type of a field in words that follow "must be"."""
    expected, is_optional = _expected(annotated)
    return f"{_KINDS[expected]}{' or None' if is_optional else ''}"


def is_switch(annotated: Any) -> bool:
    """Returns whether a field is true or false."""
    return _expected(annotated)[0] is bool


def parse(text: str, annotated: Any) -> Any:
    """Returns the value that an override's text means; raises Value- or KeyError."""
    expected, is_optional = _expected(annotated)
    if is_optional and text.lower() == "none":
        return None
    return _SWITCHES[text.lower()] if expected is bool else expected(text)


def broken_rule(section: Any, name: str, value: Any, annotated: Any) -> Optional[str]:
    """Returns why a field may not have `value`, in words that follow "but"; None if it may."""
    expected, is_optional = _expected(annotated)
    if is_optional and value is None:
        return None
    accepted = (int, float) if expected is float else expected
    # A bool is an int in Python, but `num_steps=True` is a mistake.
    if not isinstance(value, accepted) or (isinstance(value, bool) and expected is not bool):
        return f"must be {type_rule(annotated)}"
    if isinstance(value, float) and not math.isfinite(value):
        return "must be finite"
    rule = section.__dataclass_fields__[name].metadata["rule"]
    return None if rule is None or rule.accepts(value) else rule.text


def _expected(annotated: Any) -> tuple[type, bool]:
    """Returns the type without `Optional`, and whether there was one."""
    is_optional = typing.get_origin(annotated) is typing.Union
    return (typing.get_args(annotated)[0] if is_optional else annotated), is_optional


def flatten(config: Any) -> list[tuple[str, Any, Any]]:
    """Returns every field as ("section.field", value, annotated type)."""
    return [
        (f"{section.name}.{name}", getattr(getattr(config, section.name), name, None), hint)
        for section in dataclasses.fields(config)
        for name, hint in typing.get_type_hints(section.type).items()
    ]


def get(config: Any, name: str) -> Any:
    """Returns the value of the field "section.field"."""
    section, field_name = name.split(".")
    return getattr(getattr(config, section), field_name)
