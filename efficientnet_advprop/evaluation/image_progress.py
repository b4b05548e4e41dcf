"""Progress of a long evaluation: a bar on a terminal, a line now and then elsewhere."""

import os
import sys
import time
from typing import Callable, Optional

import tqdm

_SECONDS_BETWEEN_LINES = 30.0


class ImageProgress:
    """Counts evaluated images; `log` takes lines in place of the console."""

    def __init__(self, num_images: int, log: Optional[Callable[[str], None]] = None):
        self._has_bar = log is None and sys.stderr.isatty()
        self._log, self._last_line = log, time.monotonic()
        self._bar = tqdm.tqdm(
            total=num_images,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            smoothing=0.05,  # the first batches take as long as tracing does
            file=sys.stderr if self._has_bar else open(os.devnull, "w"),
        )

    def __enter__(self) -> "ImageProgress":
        return self

    def __exit__(self, *error) -> None:
        self._bar.close()
        if not self._has_bar:
            self._bar.fp.close()

    def start(self, what: str) -> None:
        self._bar.set_description(what)

    def add(self, num_images: int) -> None:
        self._bar.update(num_images)
        now = time.monotonic()
        if not self._has_bar and now - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = now
            self.write(str(self._bar))

    def write(self, line: str) -> None:
        """Prints a line that stays."""
        if self._log is not None:
            self._log(line)
        elif self._has_bar:
            self._bar.write(line)
        else:
            print(line, flush=True)

    def summary(self) -> str:
        """Returns "3,750,000 images, 812 images/s"."""
        done, seconds = (self._bar.format_dict[name] for name in ("n", "elapsed"))
        return f"{done:,} images, {done / max(seconds, 1e-3):,.0f} images/s"
