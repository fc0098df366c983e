"""RandAugment (Cubuk et al., NeurIPS 2020), as in torchvision.

Operations, their ranges and the 31 magnitudes are those of
`torchvision.transforms.RandAugment`, with its nearest-neighbour sampling and
black borders, through the same functions of Pillow.

Shapes: B images of H x W pixels with C channels.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rome_jax.data import splits

MAGNITUDES = 31  # 0 to 30, torchvision's scale; the paper counts to 10


class Operation(NamedTuple):
  """One row of the table.

  Attributes:
    amount: (share of the largest magnitude, side in pixels) -> its argument.
    signed: whether the argument's sign is drawn.
    apply: (Pillow's image, argument) -> image.
  """

  amount: Callable[[float, int], float]
  signed: bool
  apply: Callable[[Any, float], Any]


def _affine(*rows):
  """Maps an argument to the matrix of Pillow's transform: (x, y) of inputs."""
  def apply(picture, amount):
    from PIL import Image

    matrix = [amount if cell == 'm' else cell for cell in rows]
    return picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)
  return apply


def _rotate(picture, degrees):
  from PIL import Image

  return picture.rotate(degrees, Image.Resampling.NEAREST)


def _enhance(name):
  def apply(picture, amount):
    from PIL import ImageEnhance

    return getattr(ImageEnhance, name)(picture).enhance(1 + amount)
  return apply


def _ops(name, *, takes=True):
  def apply(picture, amount):
    from PIL import ImageOps

    function = getattr(ImageOps, name)
    return function(picture, amount) if takes else function(picture)
  return apply


def _share_of(largest):
  return lambda share, side: largest * share


def _pixels(share, side):
  return int(150 / 331 * side * share)


OPERATIONS = {
    'identity': Operation(
        _share_of(0.), False, lambda picture, amount: picture),
    'shear_x': Operation(_share_of(.3), True, _affine(1, 'm', 0, 0, 1, 0)),
    'shear_y': Operation(_share_of(.3), True, _affine(1, 0, 0, 'm', 1, 0)),
    'translate_x': Operation(_pixels, True, _affine(1, 0, 'm', 0, 1, 0)),
    'translate_y': Operation(_pixels, True, _affine(1, 0, 0, 0, 1, 'm')),
    'rotate': Operation(_share_of(30.), True, _rotate),
    'brightness': Operation(_share_of(.9), True, _enhance('Brightness')),
    'color': Operation(_share_of(.9), True, _enhance('Color')),
    'contrast': Operation(_share_of(.9), True, _enhance('Contrast')),
    'sharpness': Operation(_share_of(.9), True, _enhance('Sharpness')),
    'posterize': Operation(
        lambda share, side: 8 - round(4 * share), False, _ops('posterize')),
    'solarize': Operation(
        lambda share, side: 255 * (1 - share), False, _ops('solarize')),
    'autocontrast': Operation(
        _share_of(0.), False, _ops('autocontrast', takes=False)),
    'equalize': Operation(_share_of(0.), False, _ops('equalize', takes=False)),
}
_ROWS = tuple(OPERATIONS.values())


def rand_augment(images: np.ndarray, rng: Any, count: int,
                 magnitude: int) -> np.ndarray:
  """Applies `count` random operations to each image, one after the other.

  Args:
    images: [B, H, W, C] uint8.
    rng: draws for the whole batch; see `augment.Rng`.
    count: operations on each image, each uniform among all of `OPERATIONS`.
    magnitude: of all of them, 0 to 30.

  Returns:
    [B, H, W, C] uint8.
  """
  chosen = rng.integers(0, len(_ROWS), (len(images), count))
  negative = rng.random((len(images), count)) < .5
  share = magnitude / (MAGNITUDES - 1)
  Image = splits.require('PIL.Image', 'RandAugment')
  return np.stack([
      _apply(Image, image, rows, signs, share)
      for image, rows, signs in zip(images, chosen, negative)])


def _apply(Image, image, rows, negative, share):
  grey = image.shape[2] == 1
  picture = Image.fromarray(image[:, :, 0] if grey else image)
  for row, minus in zip(rows, negative):
    operation = _ROWS[row]
    amount = operation.amount(share, image.shape[1])
    picture = operation.apply(
        picture, -amount if operation.signed and minus else amount)
  return np.asarray(picture).reshape(image.shape)
