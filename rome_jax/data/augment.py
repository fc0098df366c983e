"""Augmentations: pure functions of (images, rng) on the host.

They run on the host so that every kind of device gets the same bytes, and so
that decoded and stored images are treated alike. 96 CIFAR images take less
than 1.5 ms, in the background of a step. Jitted code would take two thirds of
that, but in the foreground (`benchmarks/augment.py`).

`rng` is a `np.random.Generator`. Every function draws for the whole batch, so
the result for an image depends neither on threads nor on which rows a process
makes (`RowGenerator`).

Shapes: B images of H x W pixels with C channels.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rome_jax import errors
from rome_jax.data import colours, splits
from rome_jax.data.rand_augment import rand_augment as apply_rand_augment

# torchvision's RandomResizedCrop: number of tries and range of width / height.
_CROP_TRIES = 10
_CROP_RATIO = (3 / 4, 4 / 3)
# DARTS's training and test of ImageNet (cnn/train_imagenet.py).
_JITTER = {'brightness': .4, 'contrast': .4, 'saturation': .4, 'hue': .2}
_TEST_SCALE = 256 / 224
# DARTS's crop and cutout, both for images of 32 pixels (cnn/utils.py).
_PADDING, _CUTOUT, _SIDE = 4, 16, 32
FIT = -1  # a cutout that fits the images


class RowGenerator:
  """Draws for a whole batch but returns only some rows.

  A process that makes only these rows therefore makes the same bytes as one
  that makes the whole batch. The first axis of every draw is the batch.
  """

  def __init__(self, rng, batch, rows):
    """Stores a generator, the size of the whole batch, and rows: [n] int."""
    self._rng, self._batch, self._rows = rng, batch, rows

  def _whole(self, size):
    return (self._batch, *size[1:]) if isinstance(size, tuple) else self._batch

  def integers(self, low: Any, high: Any, size: Any) -> np.ndarray:
    return self._rng.integers(low, high, self._whole(size))[self._rows]

  def random(self, size: Any) -> np.ndarray:
    return self._rng.random(self._whole(size))[self._rows]

  def uniform(self, low: Any, high: Any, size: Any) -> np.ndarray:
    return self._rng.uniform(low, high, self._whole(size))[self._rows]

  def permuted(self, rows: Any, axis: Any) -> np.ndarray:
    """Permutes along `axis`; all given rows must be equal."""
    whole = np.repeat(rows[:1], self._batch, 0)
    return self._rng.permuted(whole, axis=axis)[self._rows]


Rng = np.random.Generator | RowGenerator
Images = np.ndarray | Sequence[np.ndarray]


def random_crop(images: np.ndarray, rng: Rng, pad: int) -> np.ndarray:
  """Pads with `pad` black pixels and crops to the old size at random.

  Args:
    images: [B, H, W, C] uint8.
    rng: draws the B offsets, each uniform over the (2 pad + 1)^2 possible.
    pad: pixels on each side; 4 for CIFAR (DARTS).

  Returns:
    [B, H, W, C] uint8.
  """
  batch, height, width, _ = images.shape
  y: Any = rng.integers(0, 2 * pad + 1, batch).tolist()
  x: Any = rng.integers(0, 2 * pad + 1, batch).tolist()
  padded = np.zeros((batch, height + 2 * pad, width + 2 * pad,
                     images.shape[3]), np.uint8)
  padded[:, pad:pad + height, pad:pad + width] = images
  cropped = np.empty_like(images)
  for i in range(batch):
    cropped[i] = padded[i, y[i]:y[i] + height, x[i]:x[i] + width]
  return cropped


def flip(images: np.ndarray, rng: Rng) -> np.ndarray:
  """Mirrors each image left to right with probability 1/2."""
  mirrored = rng.random(len(images)) < .5
  images = np.ascontiguousarray(images)
  result = images.copy()
  # Move whole pixels, as items of C bytes: twice as fast as single bytes.
  old, new = (a.view(f'V{a.shape[3]}')[..., 0] for a in (images, result))
  for i in np.flatnonzero(mirrored).tolist():
    new[i] = old[i, :, ::-1]
  return result


def normalize(images: np.ndarray, mean: Sequence[float],
              std: Sequence[float]) -> np.ndarray:
  """(images / 255 - mean) / std, per channel.

  Args:
    images: [B, H, W, C] uint8.
    mean, std: C floats each, for images in 0..1.

  Returns:
    [B, H, W, C] float32.
  """
  # Repeat the constants over a row: NumPy is slow if the last axis is short.
  repeat = images.shape[2]
  scale = np.tile(1 / (255 * np.asarray(std)), repeat).astype(np.float32)
  shift = np.tile(np.asarray(mean) / std, repeat).astype(np.float32)
  rows = images.reshape(*images.shape[:2], -1) * scale
  rows -= shift
  return rows.reshape(images.shape)


def cutout(images: np.ndarray, rng: Rng, size: int) -> np.ndarray:
  """Sets a square of each image to 0 (DeVries & Taylor 2017).

  The centre is uniform over the pixels and the square is clipped at the
  borders, as in DARTS; on normalised images 0 is the mean.

  Args:
    images: [B, H, W, C] float32.
    rng: draws the B centres.
    size: side of the square in pixels; 2 (size // 2) are cut, as in DARTS.

  Returns:
    [B, H, W, C] float32.
  """
  images = images.copy()
  cut_squares(images, rng, size)
  return images


def cut_squares(images: np.ndarray, rng: Rng, size: int) -> None:
  """Does `cutout` in place, on an array that nobody else holds."""
  batch, height, width, _ = images.shape
  y: Any = rng.integers(0, height, batch).tolist()
  x: Any = rng.integers(0, width, batch).tolist()
  half = size // 2
  for i in range(batch):
    images[i, max(y[i] - half, 0):y[i] + half,
           max(x[i] - half, 0):x[i] + half] = 0


def random_resized_crop(
    images: Images, rng: Rng, size: int,
    scale: tuple[float, float] = (.08, 1.)) -> np.ndarray:
  """Resizes a random part of each image to a square (Szegedy et al. 2015).

  This is torchvision's RandomResizedCrop. It draws an area (a share of the
  image, uniform in `scale`) and a width / height (log-uniform in 3/4 to 4/3)
  ten times, and cuts out the first one that fits, at a uniform place. If none
  fits, it takes the largest centred part of an allowed shape. Resizing is
  bilinear and antialiased.

  Args:
    images: list of B images [h, w, C] uint8 of any sizes, or an array.
    rng: draws for the whole batch.
    size: height and width of the result.
    scale: smallest and largest share of the area.

  Returns:
    [B, size, size, C] uint8.
  """
  batch = len(images)
  areas = rng.uniform(*scale, (batch, _CROP_TRIES))
  low, high = np.log(_CROP_RATIO)
  ratios = np.exp(rng.uniform(low, high, (batch, _CROP_TRIES)))
  places = rng.random((batch, 2))
  return np.stack([
      splits.resize(_cut(image, *draws), (size, size))
      for image, *draws in zip(images, areas, ratios, places)])


def _cut(image, areas, ratios, place):
  """The part of one image that RandomResizedCrop keeps."""
  full = image.shape[:2]
  height, width = crop_shape(*full, areas, ratios)
  found = height > 0
  if not found:
    height, width = _centre_shape(*full)
    place = (.5, .5)
  top = int(place[0] * (full[0] - height + found))
  left = int(place[1] * (full[1] - width + found))
  return image[top:top + height, left:left + width]


def crop_shape(height: int, width: int, areas: np.ndarray,
               ratios: np.ndarray) -> tuple[int, int]:
  """(h, w) of the first draw that fits into height x width, or (0, 0)."""
  for area, ratio in zip(areas * (height * width), ratios):
    w = round(math.sqrt(area * ratio))
    h = round(math.sqrt(area / ratio))
    if 0 < w <= width and 0 < h <= height:
      return h, w
  return 0, 0


def _centre_shape(height, width):
  """The largest (h, w) inside an image whose shape is allowed."""
  low, high = _CROP_RATIO
  if width / height < low:
    return round(width / low), width
  if width / height > high:
    return height, round(height * high)
  return height, width


def color_jitter(images: np.ndarray, rng: Rng, brightness: float = 0.,
                 contrast: float = 0., saturation: float = 0.,
                 hue: float = 0.) -> np.ndarray:
  """Changes the colours of each image at random (torchvision's ColorJitter).

  Draws the four changes and their order for each image: a factor uniform in
  [max(0, 1 - v), 1 + v], or for hue a shift uniform in [-v, v] turns. Matches
  torchvision on 8-bit images that Pillow holds. Gray images only change in
  brightness and contrast.

  Args:
    images: [B, H, W, C] uint8.
    rng: draws for the whole batch.
    brightness: v.
    contrast: v.
    saturation: v.
    hue: v, at most .5.

  Returns:
    [B, H, W, C] uint8.
  """
  strengths = np.array([brightness, contrast, saturation])
  factors = rng.uniform(np.maximum(0, 1 - strengths), 1 + strengths,
                        (len(images), 3))
  shifts = rng.uniform(-hue, hue, (len(images), 1))
  orders = rng.permuted(np.tile(np.arange(4), (len(images), 1)), axis=1)
  result = np.empty_like(images)
  for image, order, amounts, new in zip(
      images, orders, np.concatenate([factors, shifts], 1), result):
    planes = _jitter(np.ascontiguousarray(image.transpose(2, 0, 1)), order,
                     amounts)
    for channel, plane in enumerate(planes):
      new[..., channel] = plane
  return result


_CHANGES = (colours.brighten, colours.contrast, colours.saturate)


def _jitter(planes, order, amounts):
  """Applies 0 brightness, 1 contrast, 2 saturation, 3 hue in a given order."""
  for change in order:
    if change < 2 or (change == 2 and len(planes) == 3):
      planes = _CHANGES[change](planes, amounts[change])
    # Skip a zero shift: going to HSV and back would still round.
    elif change == 3 and len(planes) == 3 and amounts[3]:
      planes = colours.turn_hue(planes, int(amounts[3] * 255) % 256)
  return planes


def _none(size, train):
  del train
  return lambda images, rng: splits.fit_all(images, size)


def _shift(size, train):
  # A mirrored digit is another sign, so images are only shifted: by 1 pixel up
  # to 16 x 16, by 2 above that. Below 8 x 8 a pixel is much of an image.
  if not train:
    return _none(size, train)
  pad = 0 if size < 8 else 1 if size <= 16 else 2
  return lambda images, rng: random_crop(
      splits.fit_all(images, size), rng, pad)


def _crop_and_flip(size, train):
  if not train:
    return _none(size, train)
  return lambda images, rng: flip(
      random_crop(splits.fit_all(images, size), rng, crop_padding(size)), rng)


def crop_padding(size: int) -> int:
  """Pixels by which 'cifar' pads images of `size` pixels before it crops.

  4 from 32 pixels (DARTS), below that the same share of the side: 2 at 16
  pixels (NATS-Bench's ImageNet16-120) and none below 8.

  >>> [crop_padding(size) for size in (8, 16, 28, 32, 224)]
  [1, 2, 3, 4, 4]
  """
  return min(_PADDING, size * _PADDING // _SIDE)


def cutout_side(cutout: int, size: int, field: str = 'cutout') -> int:
  """Side in pixels of the square that is cut out of images of `size` pixels.

  Args:
    cutout: the side asked for, 0 for none; `FIT` (-1) for half of the images'
      side, at most 16 (DARTS: 16 of 32).
    size: height and width of the images.
    field: the name of `cutout` in an error.

  Raises:
    UserError: it is below -1, or the square could cover a whole image.

  >>> [cutout_side(FIT, size) for size in (8, 28, 32, 224)]
  [4, 14, 16, 16]
  """
  if cutout < FIT:
    raise errors.UserError(
        f'{field}={cutout} must be at least 0, or {FIT} for a square that '
        'fits the images')
  if cutout == FIT:
    return min(_CUTOUT, size // 2)
  if cutout >= size:
    raise errors.UserError(
        f'{field}={cutout} must be below {size}, the side of the images in '
        f'pixels, or the square can cover a whole image; {FIT} fits it to '
        'the images')
  return cutout


def _imagenet(size, train):
  if not train:
    short = round(size * _TEST_SCALE)
    return lambda images, rng: np.stack([
        splits.fit(image, size, short) for image in images])
  def augment(images, rng):
    images = flip(random_resized_crop(images, rng, size), rng)
    return color_jitter(images, rng, **_JITTER)
  return augment


# Each takes (size, train) and returns a function of (images, rng) that returns
# [B, size, size, C] uint8. `make_transform` describes them.
KINDS = {
    'none': _none,
    'shift': _shift,
    'cifar': _crop_and_flip,
    'svhn': _crop_and_flip,
    'imagenet': _imagenet,
}


def make_transform(kind: str, dataset: Any, train: bool, *,
                   cutout: int = 0, field: str = 'cutout',
                   rand_augment: int = 0, rand_magnitude: int = 9,
                   ) -> Callable[..., np.ndarray]:
  """Composes an augmentation, RandAugment, normalisation and cutout.

  'none' only fits images to the size of the data set. 'shift' shifts them by
  1 pixel (2 above 16 x 16, none below 8 x 8). 'cifar' and 'svhn' pad by 4
  pixels (less below 32 x 32, see `crop_padding`), crop and flip (DARTS,
  RobustDARTS). 'imagenet' is RandomResizedCrop, flip and ColorJitter(.4, .4,
  .4, hue .2) in training, and a centre crop of 7/8 of the shorter side in
  testing (DARTS).

  Args:
    kind: one of `KINDS`.
    dataset: a `Dataset`, or what else has image_size, mean and std.
    train: whether to augment.
    cutout: side of the square cut out of training images; 0 for none, -1 for
      one that fits them (see `cutout_side`).
    field: the name of `cutout` in an error.
    rand_augment, rand_magnitude: operations of RandAugment on each training
      image, and their magnitude; see `rand_augment.rand_augment`.

  Returns:
    A pure function of (images, rng) that returns float32 [B, size, size, C].
    `images` is uint8 [B, H, W, C] or a list of [h, w, C].

  Raises:
    UserError: unknown kind, or a cutout that can leave nothing of an image.
  """
  if kind not in KINDS:
    raise errors.UserError(
        f'augmentation {kind!r} is unknown; known: {", ".join(KINDS)}'
        f'{errors.near_miss(kind, KINDS)}')
  side = cutout_side(cutout, dataset.image_size, field) if train else 0
  geometry = KINDS[kind](dataset.image_size, train)
  if train and rand_augment:
    geometry = functools.partial(
        _then_rand_augment, geometry, rand_augment, rand_magnitude)
  return functools.partial(_apply, geometry, dataset.mean, dataset.std, side)


def _then_rand_augment(geometry, count, magnitude, images, rng):
  return apply_rand_augment(geometry(images, rng), rng, count, magnitude)


def _apply(geometry, mean, std, cutout_size, images, rng=None):
  images = normalize(geometry(images, rng), mean, std)
  if cutout_size:
    cut_squares(images, rng, cutout_size)
  return images
