"""Batches whose images are cut with a chance that depends on the step."""

from collections.abc import Callable
from typing import Any

import numpy as np

from rome_jax.data import augment, batches


class RampedBatches(batches.Batches):
  """`Batches` with a `cutout` of only some images, after the transform.

  RobustDARTS (Zela et al., ICLR 2020) so raises the chance of cutout together
  with the rate of drop path.
  """

  def __init__(self, *args: Any, side: int, chance: Callable[[int], float],
               **options: Any) -> None:
    """Reads no image.

    Args:
      *args, **options: of `Batches`.
      side: of the square, in pixels.
      chance: step -> probability to cut an image.
    """
    super().__init__(*args, **options)
    self.side, self.chance = side, chance

  def weighted(self, weights: np.ndarray) -> 'RampedBatches':
    """The same batches, drawn by other weights."""
    return RampedBatches(
        self.split, self.indices, self.batch_size, self.seed, self.transform,
        self.drop_last, weights, side=self.side, chance=self.chance)

  def __call__(self, step, rows=None):
    """Returns batch `step`; see `Batches`."""
    batch = super().__call__(step, rows)
    rng = batches.generator(self.seed, int(step), batches.CUTOUT)
    if rows is not None:
      rng = augment.RowGenerator(rng, len(self.places(step)), rows)
    images = batch['image']
    cut = rng.random(len(images)) < self.chance(int(step))
    return batch | {'image': np.where(
        cut[:, None, None, None], augment.cutout(images, rng, self.side),
        images)}
