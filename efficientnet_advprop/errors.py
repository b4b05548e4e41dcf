"""The errors that a user can act upon: one family, which every program ends with one message.

    class DataError(UserError, ValueError):
        ...

Every public error of this package derives from `UserError`, so that a program need not list
them: `command_line.program` prints the message and ends with `exit_code`. Any other exception is
a fault of ours and keeps its traceback. Messages name the argument, its value, the rule and the
way out.
"""


class UserError(Exception):
    """Data, files or circumstances that cannot be used as they are.

    `exit_code` is what a program that ends by this error returns.
    """

    exit_code = 1
    # Said openly, for subclasses that are also a `ValueError` or the like, which has its own: a
    # traced `tf.function` raises an error anew, and only with this constructor as the same class.
    __init__ = Exception.__init__


class UsageError(UserError):
    """Wrong flags, configuration or arguments: the same call can never work."""

    exit_code = 2
