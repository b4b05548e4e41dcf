"""Square attack: a random search that needs no gradient (Andriushchenko et al., "Square
Attack: a query-efficient black-box adversarial attack via random search", ECCV 2020).

Each query changes a square window of every image at a random place, and keeps the change
where the margin of the true class falls. The windows shrink as the search goes on.
"""

import dataclasses
from typing import Optional

import numpy as np
import tensorflow as tf

from efficientnet_advprop.attacks import norms, objectives
from efficientnet_advprop.attacks.attack import Found, Search, are_images
from efficientnet_advprop.runtime.errors import AttackError, require_whole
from tpu_utils import randomness, replica_runtime

# Of the paper, for 10,000 queries: those after which the share of changed pixels is
# halved. AutoAttack's reference keeps them as they are for its 5,000.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_L2_TILES = 5  # per side of the image, of the first guess under L2
_LEAST_L2_WINDOW = 3
_TINY = 1e-12


def window_sides(
    num_queries: int, first_share: float, height: int, width: int, norm: str
) -> np.ndarray:
    """Returns the side of the window in each query after the first guess, int32 [num_queries];
    under "l2" odd and at least 3.
    """
    shares = first_share * 0.5 ** np.searchsorted(_HALVINGS, np.arange(num_queries), side="left")
    sides = np.maximum(np.rint(np.sqrt(shares * height * width)), 1).astype(np.int32)
    if norm == norms.L2.name:
        sides = np.maximum(sides, _LEAST_L2_WINDOW) // 2 * 2 + 1
    longest = min(height, width)
    if norm == norms.L2.name:
        longest -= 1 - longest % 2
    return np.minimum(sides, longest)


def _unit(values):
    """Scales each image's channels to length 1."""
    return values / (tf.sqrt(tf.reduce_sum(tf.square(values), [1, 2], keepdims=True)) + _TINY)


def _bump(rows, columns, height, width, sums):
    """Returns one half of the L2 window: nested rectangles around the middle of a rectangle,
    the smaller ones the higher, of length 1; 0 outside of it.

    `sums[n]` is 1 + 1/4 + … + 1/n².
    """
    is_inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    distances = tf.maximum(tf.abs(rows - height // 2), tf.abs(columns - width // 2))
    outermost = tf.maximum(height // 2, width // 2) + 1
    values = tf.gather(sums, outermost) - tf.gather(sums, tf.where(is_inside, distances, 0))
    return _unit(tf.where(is_inside, values, 0.0))


@dataclasses.dataclass(frozen=True)
class Square(Search):
    """Random search over square windows.

    Args:
        epsilon, norm: see `APGD`.
        num_queries: how often the network is asked about each image after the first
            guess, ≥ 1; traced once whatever their number. A batch ends when all its
            images are misclassified.
        first_share: of an image's pixels, that the first windows cover, in (0, 1].
        num_restarts, num_classes: see `APGD`.

    Raises:
        ValueError: a value out of its range, with its name.
    """

    epsilon: float = 8.0
    norm: str = "linf"
    num_queries: int = 5000
    first_share: float = 0.8
    num_restarts: int = 1
    num_classes: Optional[int] = None
    targeted = False  # of `Search`: any wrong class will do
    num_targets = 1
    needs_gradient = False

    def __post_init__(self):
        super().__post_init__()
        require_whole("num_queries", self.num_queries, 1)
        if not 0.0 < self.first_share <= 1.0:
            raise ValueError(
                f"`first_share` is {self.first_share!r}, but must be a share of the pixels, in "
                "(0, 1]."
            )

    def _run(self, logits_fn, images, labels, seed, targets, is_restart, found: Found) -> Found:
        height, width = images.shape[1:3]
        if height is None or width is None:
            raise AttackError(
                f"`images` has shape {images.shape}, but Square must know height and width when "
                "it is traced, for its windows; give `tf.ensure_shape`d images."
            )
        sides = window_sides(self.num_queries, self.first_share, height, width, self.norm)
        sides = tf.constant(sides, tf.int32)

        make = self._linf_guesses if self.norm == norms.Linf.name else self._l2_guesses
        guess = make(images, seed)

        def ask(query, best_images, margins, still_correct):
            side = tf.gather(sides, tf.maximum(query, 1) - 1)
            guesses = tf.ensure_shape(guess(best_images, query, side), images.shape)
            logits = tf.cast(logits_fn(guesses), tf.float32)
            new_margins = objectives.margin(labels, logits)
            is_found = still_correct & ~objectives.is_correct(labels, logits) & are_images(guesses)
            # What was found once stays as it is.
            is_better = still_correct & (new_margins < margins) | is_found
            best_images = norms.where_per_image(is_better, guesses, best_images)
            margins = tf.where(is_better, new_margins, margins)
            return query + 1, best_images, margins, still_correct & ~is_found

        nothing_yet = tf.zeros_like(images[:, 0, 0, 0]) + float("inf")
        _, best_images, _, still_correct = tf.while_loop(
            lambda query, _, __, still_correct: (
                (query <= self.num_queries) & tf.reduce_any(still_correct)
            ),
            ask,
            (tf.constant(0), images, nothing_yet, found.still_correct),
        )
        return found.update(best_images, ~still_correct)

    def _linf_guesses(self, images, seed):
        """Returns (best images, query, side) → what to ask about next: vertical stripes first,
        then a window of the best images changed.
        """
        batch, height, width, channels = _sizes(images)
        first_seed, window_seed = randomness.split(seed, 2)
        stripes = _signs([batch, 1, width, channels], first_seed)
        lowest = norms.clip_to_pixel_range(images - self.epsilon, images)
        highest = norms.clip_to_pixel_range(images + self.epsilon, images)
        row_numbers, column_numbers = _grid(height, width)

        def guess(best_images, query, side):
            place_seed, sign_seed = randomness.split(randomness.fold_in(window_seed, query), 2)
            row, column = _places(batch, height, width, side, place_seed)
            rows = (row_numbers >= row) & (row_numbers < row + side)
            columns = (column_numbers >= column) & (column_numbers < column + side)
            signs = _signs([batch, 1, 1, channels], sign_seed)
            is_first = tf.equal(query, 0)
            down = tf.where(is_first, 1.0, tf.cast(rows, tf.float32))
            across = tf.where(is_first, stripes, tf.cast(columns, tf.float32) * signs)
            # −1, 0 or 1 for each value. As a product of matrices, since a CPU broadcasts
            # several times as slowly; exact in every precision.
            directions = tf.linalg.matmul(
                tf.reshape(down, [batch, height, 1]),
                tf.reshape(across, [batch, 1, width * channels]),
            )
            directions = tf.reshape(directions, [batch, height, width, channels])
            # Twice the radius, and so, once clipped, on the other side of the ball or
            # where it is.
            moved = best_images + 2.0 * self.epsilon * directions
            return tf.clip_by_value(moved, lowest, highest)

        return guess

    def _l2_guesses(self, images, seed):
        """Returns the same: tiles first, then the change of a window moved to another."""
        first_seed, window_seed = randomness.split(seed, 2)

        def guess(best_images, query, side):
            return tf.cond(
                tf.equal(query, 0),
                lambda: self._first_l2(images, first_seed),
                lambda: self._change_l2(
                    images, best_images, side, randomness.fold_in(window_seed, query)
                ),
            )

        return replica_runtime.in_one_program(guess)

    def _first_l2(self, images, seed):
        batch, height, width, channels = _sizes(images)
        side = max(min(height, width) // _L2_TILES, 1)
        rows, columns = _grid(height, width)
        # Tiles side by side, what is left over at the edges stays as it is.
        rows, columns = rows - height % side // 2, columns - width % side // 2
        down, across = height // side, width // side
        turn_seed, sign_seed = randomness.split(seed, 2)
        top, left = height % side // 2, width % side // 2
        bottom, right = height - top - down * side, width - left - across * side

        def on_tiles(values):
            """Repeats [batch, down, across, …] to [batch, height, width, …], 0 beside the tiles."""
            values = tf.repeat(tf.repeat(values, side, axis=1), side, axis=2)
            return tf.pad(values, [[0, 0], [top, bottom], [left, right], [0, 0]])

        is_turned = on_tiles(randomness.integers([1, down, across, 1], turn_seed, 0, 2))
        tile = _l2_window(
            rows % side, columns % side, side, tf.equal(is_turned, 1), max(height, width)
        )
        signs = on_tiles(_signs([batch, down, across, channels], sign_seed))
        return self._on_the_sphere(images, tile * signs)

    def _change_l2(self, images, best_images, side, seed):
        batch, height, width, channels = _sizes(images)
        place_seed, other_seed, turn_seed, sign_seed = randomness.split(seed, 4)
        rows, columns = _grid(height, width)
        row, column = _places(batch, height, width, side, place_seed)
        other_row, other_column = _places(batch, height, width, side, other_seed)

        def inside(top, left):
            return (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)

        is_here, is_there = inside(row, column), inside(other_row, other_column)
        difference = best_images - images
        here = tf.where(is_here, difference, 0.0)
        # The budget of each channel of the new window: what the two windows held in all
        # channels (in the paper, in this channel; here as in AutoAttack's reference),
        # and a share of what the image has left.
        in_both = tf.square(tf.where(is_here | is_there, difference, 0.0))
        in_both = tf.reduce_sum(tf.reduce_sum(in_both, [1, 2], keepdims=True), -1, keepdims=True)
        energy = tf.reduce_sum(tf.square(difference), [1, 2, 3], keepdims=True)
        left = tf.maximum(self.epsilon**2 - energy, 0.0)
        is_turned = tf.equal(randomness.integers([batch, 1, 1, 1], turn_seed, 0, 2), 1)
        window = _l2_window(rows - row, columns - column, side, is_turned, max(height, width))
        new = _unit(window * _signs([batch, 1, 1, channels], sign_seed) + _unit(here))
        new = new * tf.sqrt(left / channels + in_both)
        moved = tf.where(is_here, new, tf.where(is_there, 0.0, difference))
        return self._on_the_sphere(images, moved)

    def _on_the_sphere(self, images, differences):
        direction = norms.NORMS[self.norm].steepest(differences)
        return norms.clip_to_pixel_range(images + self.epsilon * direction, images)


def _sizes(images):
    """Returns batch (a tensor if it is not known), height, width and channels."""
    batch = images.shape[0]
    return (tf.shape(images)[0] if batch is None else batch, *images.shape[1:])


def _grid(height, width):
    """Returns row numbers [1, height, 1, 1] and column numbers [1, 1, width, 1]."""
    return tf.range(height)[None, :, None, None], tf.range(width)[None, None, :, None]


def _signs(shape, seed):
    """Draws −1 or 1 with equal probability, float32."""
    return tf.cast(2 * randomness.integers(shape, seed, 0, 2) - 1, tf.float32)


def _places(batch, height, width, side, seed):
    """Draws top rows and left columns of windows, int32 [batch, 1, 1, 1] each."""
    # As in AutoAttack's reference, no window ends in the last row or column, unless it is
    # as long as the image: there the first guess stays.
    row_seed, column_seed = randomness.split(seed, 2)

    def draw(seed, size):
        share = randomness.uniform([batch, 1, 1, 1], seed)
        return tf.cast(share * tf.cast(size - side, tf.float32), tf.int32)

    return draw(row_seed, height), draw(column_seed, width)


def _l2_window(rows, columns, side, is_turned, longest):
    """Returns the change under L2, of length 1: two bumps of opposite sign, one above the
    other (side by side where `is_turned`), in the rows and columns 0 to `side`; else 0.

    `longest` is the longest side that there can be.
    """
    sums = tf.constant(
        np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1.0, longest + 2) ** 2)]), tf.float32
    )
    down, across = tf.where(is_turned, columns, rows), tf.where(is_turned, rows, columns)
    upper = side // 2
    window = _bump(down, across, upper, side, sums)
    window -= _bump(down - upper, across, side - upper, side, sums)
    return _unit(window)
