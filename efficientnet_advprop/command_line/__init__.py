"""What all programs share: how they start and end, and common groups of flags."""

import sys

from efficientnet_advprop.runtime import stack

try:
    stack.check_installed()
except stack.StackError as error:
    sys.exit(f"error: {error}")
