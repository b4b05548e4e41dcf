"""How far a long evaluation is: a bar on a terminal, a line now and then elsewhere.

Usage:

    with Progress(num_images=3_750_000) as progress:
        progress.start("imagenet_c/fog/3")
        progress.add(64)
        progress.write("imagenet_c/fog/3  top-1 61.2 %")
"""

import sys
import time
from typing import Callable, Optional

import tqdm

from efficientnet_advprop.runtime.files import format_duration

_SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Counts images.

    Args:
        num_images: that are to come.
        log: takes a line; None prints it.
    """

    def __init__(self, num_images: int, log: Optional[Callable[[str], None]] = None):
        self._num_images, self._log, self._num_done = num_images, log, 0
        self._is_terminal = log is None and sys.stderr.isatty()
        self._bar = tqdm.tqdm(
            total=num_images,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            smoothing=0.05,
            disable=not self._is_terminal,
        )
        self._current, self._started, self._last_line = "", None, time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error) -> None:
        self._bar.close()

    def start(self, what: str) -> None:
        """Says what is being looked at."""
        self._current = what
        self._bar.set_description(what)

    def add(self, num_images: int) -> None:
        """Counts images that are done.

        The first ones, whose time is mostly that of tracing, are left out of the speed.
        """
        now = time.monotonic()
        if self._started is None:
            self._started, self._num_untimed = now, num_images
        self._num_done += num_images
        self._bar.update(num_images)
        if not self._is_terminal and now - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = now
            line, speed = (
                f"{self._current}  {self._num_done:,} of {self._num_images:,} images",
                self._images_per_second(now),
            )
            if speed:
                line += (
                    f", {speed:,.0f} images/s, ETA"
                    f" {format_duration((self._num_images - self._num_done) / speed)}"
                )
            self.write(line)

    def _images_per_second(self, now: float) -> Optional[float]:
        """None before a second batch."""
        if self._started is None or self._num_done == self._num_untimed:
            return None
        return (self._num_done - self._num_untimed) / (now - self._started)

    def write(self, line: str) -> None:
        """A line that stays."""
        if self._log is not None:
            self._log(line)
        elif self._is_terminal:
            self._bar.write(line)
        else:
            print(line, flush=True)

    def summary(self) -> str:
        """Of what was counted: "3,750,000 images, 812 images/s"."""
        speed = self._images_per_second(time.monotonic())
        return f"{self._num_done:,} images" + (f", {speed:,.0f} images/s" if speed else "")
