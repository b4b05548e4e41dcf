"""Projected gradient descent under L∞ or L2 for every backend of Keras 3, in pixels of
255.

    attack = keras3.PGD(epsilon=4.0, step_size=1.0, num_steps=5, num_classes=10)
    adversarial_images = attack(logits_fn, images, labels, seed=0)

The same attack as `attacks.PGD`, which is TensorFlow's and compiles for TPUs of its own.
"""

from typing import Any, Callable, Optional, Union

import keras
from keras import ops

from efficientnet_advprop.config.pgd_settings import PGDSettings
from efficientnet_advprop.keras3.keras_internals import BACKEND, gradient_of
from efficientnet_advprop.runtime.errors import ModelError

_TINY = 1e-12  # keeps a quotient of lengths finite
Seed = Union[int, keras.random.SeedGenerator, None]


class PGDOfKeras3(PGDSettings):
    __doc__ = PGDSettings.__doc__

    def __call__(
        self,
        logits_fn: Callable,
        images: Any,
        labels: Any,
        seed: Seed = None,
        objective: Optional[Callable] = None,
    ) -> Any:
        """Adversarial images for a batch.

        Args:
            logits_fn: images [batch, height, width, channels] → logits [batch, classes].
            images: any numeric dtype, pixels in `pixel_range`.
            labels: classes, integers [batch], or their weights [batch, classes].
            seed: an int, or a generator that the call advances.
            objective: outputs → the scalar to ascend (descend, if targeted) in place of
                the labels' cross-entropy.

        Returns:
            float32 images within `epsilon` of the clean ones and in the pixel range.

        Raises:
            ModelError: the objective has no gradient for the images.
        """
        generator = keras.random.SeedGenerator(seed) if isinstance(seed, int) else seed
        labels = ops.convert_to_tensor(labels)
        are_weights = len(labels.shape) > 1
        if self.targeted and objective is None:
            labels = self.draw_targets(labels, are_weights, generator)

        def cross_entropy(logits):
            kind = "categorical" if are_weights else "sparse_categorical"
            losses = getattr(ops, f"{kind}_crossentropy")(labels, logits, from_logits=True)
            return ops.sum(losses)

        def loss_of(images):
            return (objective or cross_entropy)(logits_fn(images))

        images = ops.cast(images, "float32")
        return self.climb(loss_of, images, self.start(images, generator))

    def draw_targets(self, labels: Any, are_weights: bool, seed: Seed = None) -> Any:
        """Wrong classes in the form of the labels: integers [batch, …], or weights
        [batch, …, classes], of which one of the smallest becomes 1.
        """
        if are_weights:
            is_wrong = labels <= ops.min(labels, -1, keepdims=True)
            draws = keras.random.uniform(ops.shape(labels), seed=seed)
            targets = ops.argmax(ops.where(is_wrong, draws, -1.0), -1)
            return ops.cast(ops.one_hot(targets, self.num_classes), labels.dtype)
        classes = ops.cast(labels, "int32")
        # Not `randint`, which PyTorch lacks for a generator on some devices.
        draws = keras.random.uniform(ops.shape(labels), seed=seed) * (self.num_classes - 1)
        offsets = 1 + ops.minimum(ops.cast(draws, "int32"), self.num_classes - 2)
        is_class = (classes >= 0) & (classes < self.num_classes)  # others are to be left out
        targets = ops.where(is_class, ops.mod(classes + offsets, self.num_classes), classes)
        return ops.cast(targets, labels.dtype)

    def start(self, images: Any, seed: Seed = None) -> Any:
        """Where an attack on float32 images starts from."""
        if not self.random_start:
            return images
        shape, radius = ops.shape(images), self.pixels(self.epsilon)
        if self.norm == "linf":
            noise = radius * keras.random.uniform(shape, -1.0, 1.0, seed=seed)
        else:
            direction = self._steepest(keras.random.normal(shape, seed=seed))
            share = keras.random.uniform([shape[0], 1, 1, 1], seed=seed)
            noise = radius * direction * share ** (1.0 / float(_num_values(images)))
        is_noisy = keras.random.uniform([], seed=seed) < self.random_start
        return ops.where(is_noisy, self._clip(images, images + noise), images)

    def climb(self, loss_of: Callable, images: Any, start: Any) -> Any:
        """Steps from `start` by the gradient of a scalar loss; arguments and result
        float32.
        """
        images = ops.stop_gradient(images)
        step = self.pixels(-self.step_size if self.targeted else self.step_size)

        def advance(index, moved):
            del index
            gradients = gradient_of(lambda values: loss_of(values) * self.loss_scale, moved)
            if gradients is None:
                raise ModelError(
                    "The loss has no gradient with respect to the images: it does not depend on"
                    " them, or something on the way cannot be differentiated (rounding, argmax, a"
                    " cast to whole numbers). An attack has nothing to follow."
                )
            return self._clip(images, moved + step * self._steepest(gradients))

        moved = ops.stop_gradient(start)
        if self.num_steps == 1:
            moved = advance(0, moved)
        elif BACKEND == "torch":
            for index in range(self.num_steps):
                moved = advance(index, moved)
        else:  # traced once, whatever the number of steps
            moved = ops.fori_loop(0, self.num_steps, advance, moved)
        return ops.stop_gradient(moved)

    def _steepest(self, gradients):
        if self.norm == "linf":
            return ops.sign(gradients)
        return gradients / (_lengths(gradients) + _TINY)

    def _clip(self, images, moved):
        if self.project:
            radius = self.pixels(self.epsilon)
            if self.norm == "linf":
                moved = ops.minimum(ops.maximum(moved, images - radius), images + radius)
            else:
                differences = moved - images
                shares = ops.minimum(1.0, radius / (_lengths(differences) + _TINY))
                moved = images + differences * shares
        # A pixel that is outside of the range may stay there, but moves no further out.
        black, white = self.pixel_range
        moved = ops.maximum(moved, ops.minimum(images, black))
        return ops.minimum(moved, ops.maximum(images, white))


def _lengths(values):
    return ops.sqrt(ops.sum(ops.square(values), axis=(1, 2, 3), keepdims=True))


def _num_values(images) -> int:
    height, width, channels = images.shape[1:]
    return height * width * channels
