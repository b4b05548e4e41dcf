"""Messages: short whatever there is to say, and of one class on their way out of traced code."""

import pytest
import tensorflow as tf

from efficientnet_advprop.runtime.errors import (
    MAX_LINES,
    UsageError,
    UserError,
    list_lines,
    list_names,
    shorten,
)


class ListError(UserError, ValueError):
    pass


def test_of_many_names_the_first_stand_for_all():
    assert list_names(["a"]) == "a"
    assert list_names(["a", "b", "c"]) == "a, b, c"
    assert list_names([str(index) for index in range(196)]) == "0, 1, 2 and 193 more"
    assert list_names(["a", "b", "c"], num_shown=1) == "a and 2 more"


def test_of_many_lines_the_first_stand_for_all():
    assert list_lines(["a", "b"]) == "\n  a\n  b"
    listed = list_lines([f"line {index}" for index in range(20)]).splitlines()
    assert listed == ["", *(f"  line {index}" for index in range(6)), "  … and 14 more"]


def test_no_message_is_longer_than_ten_lines():
    lines = [f"line {index}" for index in range(10)]
    assert shorten("\n".join(lines)) == "\n".join(lines)
    shortened = shorten("\n".join([*lines, "one", "two"])).splitlines()
    assert len(shortened) == MAX_LINES == 10
    assert shortened[:9] == lines[:9] and shortened[9] == "… and 3 more lines"
    assert len(shorten("x" * 20_000)) < 2100


@pytest.mark.parametrize("error", [UserError, UsageError, ListError])
def test_a_traced_function_raises_the_same_class(error):
    @tf.function
    def refuse(x):
        if x.shape[0] == 2:
            raise error("`x` has two.")
        return x

    with pytest.raises(error, match="`x` has two") as found:
        refuse(tf.zeros([2]))
    assert found.value.exit_code == error.exit_code
