"""One field of the config: its default, its unit, its rule and what it means, all in
one place.

    @dataclasses.dataclass
    class AttackConfig:
        epsilon: float = field(
            1.0, "radius of the ball around an image", at_least(0), "pixels of 255"
        )

`help_of` tells a field's meaning to people, `check` holds a value to the field's type
and rule.
"""

import dataclasses
import math
import typing
from typing import Any, Callable, Optional

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_METADATA = "field"  # the key of `dataclasses.Field.metadata` under which ours stands


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a value must fulfil. `text` says it in words, to stand after "but"."""

    accepts: Callable[[Any], bool]
    text: str


@dataclasses.dataclass(frozen=True)
class _Facts:
    """What a field's metadata hold beside the default, which `dataclasses` keeps."""

    help: str
    rule: Optional[Rule]
    unit: str


def field(default: Any, help: str, rule: Optional[Rule] = None, unit: str = "") -> Any:
    """A dataclass field with its meaning.

    Args:
        default: its value where nothing else is said.
        help: what it means, without a full stop.
        rule: what a value must fulfil beside its type; None where every value of the
            type is right.
        unit: of its value, such as "pixels of 255" or "epochs".
    """
    return dataclasses.field(default=default, metadata={_METADATA: _Facts(help, rule, unit)})


def one_of(*choices: str) -> Rule:
    return Rule(lambda value: value in choices, f"must be one of {', '.join(map(repr, choices))}")


def at_least(low: float, hint: str = "") -> Rule:
    return Rule(lambda value: value >= low, f"must be ≥ {low}{hint}")


def more_than(low: float, hint: str = "") -> Rule:
    return Rule(lambda value: value > low, f"must be > {low}{hint}")


def fraction(hint: str = "") -> Rule:
    """Of a whole that is never reached: in [0, 1)."""
    return Rule(lambda value: 0 <= value < 1, f"must lie in [0, 1){hint}")


def positive_fraction(hint: str = "") -> Rule:
    """Of a whole that may be reached: in (0, 1]."""
    return Rule(lambda value: 0 < value <= 1, f"must lie in (0, 1]{hint}")


def probability() -> Rule:
    return Rule(lambda value: 0 <= value <= 1, "is a probability, in [0, 1]")


def help_of(section: Any, name: str) -> str:
    """What a field means, its unit and its rule, as one line without its default.

    Args:
        section: a dataclass whose fields were made by `field`.
        name: of the field.
    """
    facts = _facts_of(section, name)
    unit = f", in {facts.unit}" if facts.unit else ""
    rule = f" ({facts.rule.text})" if facts.rule is not None else ""
    return f"{facts.help}{unit}{rule}"


def type_rule(annotated: Any) -> str:
    """The type of a field in words, to stand after "must be"."""
    optional = typing.get_origin(annotated) is typing.Union
    kind = _KINDS[typing.get_args(annotated)[0] if optional else annotated]
    return f"{kind}{' or None' if optional else ''}"


def broken_rule(section: Any, name: str, value: Any, annotated: Any) -> Optional[str]:
    """Why a field may not have `value`, to stand after "but"; None if it may.

    Args:
        section: a dataclass whose fields were made by `field`.
        name: of the field.
        value: to be checked. None is right where the annotation is `Optional`.
        annotated: the field's annotation, `Optional` or not, of int, float, bool or
            str.
    """
    optional = typing.get_origin(annotated) is typing.Union
    if optional and value is None:
        return None
    expected = typing.get_args(annotated)[0] if optional else annotated
    accepted = (int, float) if expected is float else expected
    if not isinstance(value, accepted) or (isinstance(value, bool) and expected is not bool):
        return f"must be {type_rule(annotated)}"
    if isinstance(value, float) and not math.isfinite(value):
        return "must be finite"
    rule = _facts_of(section, name).rule
    return None if rule is None or rule.accepts(value) else rule.text


def _facts_of(section: Any, name: str) -> _Facts:
    found = next(field for field in dataclasses.fields(section) if field.name == name)
    return found.metadata[_METADATA]
