"""Progress of a long evaluation: a bar on a terminal, a line now and then elsewhere.

with ImageProgress(num_images=3_750_000) as progress:
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


class ImageProgress:
    """Counts evaluated images; `log` takes lines in place of the console."""

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

    def __enter__(self) -> "ImageProgress":
        return self

    def __exit__(self, *error) -> None:
        self._bar.close()

    def start(self, what: str) -> None:
        self._current = what
        self._bar.set_description(what)

    def add(self, num_images: int) -> None:
        now = time.monotonic()
        if self._started is None:
            # The first batch takes as long as tracing does: it is left out of the speed.
            self._started, self._num_untimed = now, num_images
        self._num_done += num_images
        self._bar.update(num_images)
        if not self._is_terminal and now - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = now
            line = f"{self._current}  {self._num_done:,} of {self._num_images:,} images"
            speed = self._images_per_second(now)
            if speed:
                eta = format_duration((self._num_images - self._num_done) / speed)
                line += f", {speed:,.0f} images/s, ETA {eta}"
            self.write(line)

    def _images_per_second(self, now: float) -> Optional[float]:
        if self._started is None or self._num_done == self._num_untimed:
            return None
        return (self._num_done - self._num_untimed) / (now - self._started)

    def write(self, line: str) -> None:
        """Prints a line that stays."""
        if self._log is not None:
            self._log(line)
        elif self._is_terminal:
            self._bar.write(line)
        else:
            print(line, flush=True)

    def summary(self) -> str:
        """Returns "3,750,000 images, 812 images/s"."""
        speed = self._images_per_second(time.monotonic())
        return f"{self._num_done:,} images" + (f", {speed:,.0f} images/s" if speed else "")
