"""What a data set is: a training and a test split of labelled images."""

import concurrent.futures
import dataclasses
import importlib
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rome_jax import errors

# The pip package of each module that only some sources need.
_REQUIREMENTS = {
    'grain': "'rome_jax[grain]'",
    'jax2onnx': "'rome_jax[onnx]'",
    'onnxruntime': "'rome_jax[onnx]'",
    'safetensors.numpy': "'rome_jax[safetensors]'",
    'PIL.Image': 'pillow',
    'scipy.io': 'scipy',
    'sklearn.datasets': 'scikit-learn',
    'tensorflow_datasets': 'tensorflow-datasets',
}
_STATISTICS_IMAGES = 512
# What a data set has. Pillow goes by the content of a file, whatever its name,
# and would start Ghostscript for PostScript.
FORMATS = ('JPEG', 'PNG', 'BMP', 'DIB', 'GIF', 'WEBP', 'PPM', 'TIFF')
# EXIF 2.3, tag 0x112: what makes the stored image upright, in Pillow's names.
_ORIENTATION = 0x112
_TURNS = {
    2: 'FLIP_LEFT_RIGHT', 3: 'ROTATE_180', 4: 'FLIP_TOP_BOTTOM',
    5: 'TRANSPOSE', 6: 'ROTATE_270', 7: 'TRANSVERSE', 8: 'ROTATE_90'}
_SEE_THROUGH = ('RGBA', 'RGBa', 'LA', 'La', 'PA')  # Pillow's modes
_STATISTICS_PIXELS = 2**26  # at once; ImageNet's 1,024 images of 224 pixels


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySplit:
  """A split held in memory.

  Attributes:
    images: [n, H, W, C] uint8.
    labels: [n] int32.
  """

  images: np.ndarray
  labels: np.ndarray
  lazy = False

  def __len__(self):
    return len(self.labels)

  def get(self, indices: np.ndarray) -> np.ndarray:
    """Returns the images [len(indices), H, W, C] uint8 at `indices`."""
    return self.images[indices]


LOADERS = ('threads', 'grain')


@dataclasses.dataclass(frozen=True)
class Reading:
  """How images that are decoded at each use are read ahead.

  Attributes:
    loader: 'threads' of this process, or worker processes of 'grain'.
    workers: how many; 0: one per core, of threads at most 8.
  """

  loader: str = 'threads'
  workers: int = 0

  def count(self) -> int:
    """How many work at a time."""
    cores = os.cpu_count() or 1
    return self.workers or (
        min(8, cores) if self.loader == 'threads' else cores)


class Stored(NamedTuple):
  """The file of one image: its name within the split, and its path."""

  name: str
  path: str


@dataclasses.dataclass(frozen=True, eq=False)
class LazySplit:
  """A split whose images are decoded when they are used.

  Attributes:
    read: index -> image [h, w, C] uint8 of any size; called from threads.
    labels: [n] int32.
    stored: index -> where the image is stored; None if not in a file each.
    reading: how batches of them are made in advance.
  """

  read: Callable[[int], np.ndarray]
  labels: np.ndarray
  stored: Callable[[int], Stored] | None = None
  reading: Reading = Reading()
  lazy = True

  def __len__(self):
    return len(self.labels)

  def get(self, indices: np.ndarray) -> list[np.ndarray]:
    """Returns a list of the images [h, w, C] uint8 at `indices`."""
    return [self.read(int(i)) for i in indices]


Split = ArraySplit | LazySplit


class Dataset(NamedTuple):
  """Two splits, and what networks and augmentations must know about them.

  Attributes:
    name: as given to `load`.
    train: the split for searching and training.
    test: the held-out split.
    num_classes: labels are 0..num_classes-1.
    image_size: height and width, in pixels, of transformed images.
    image_channels: 1 (gray) or 3 (RGB).
    mean: per channel, of images scaled to 0..1.
    std: standard deviation, likewise.
    class_names: one per label, or () if the source has none.
    digest: of both splits (see `digest.of_splits`); '' if nobody made one.
    notes: what was not read of the source, or not as it stands there.
  """

  name: str
  train: Split
  test: Split
  num_classes: int
  image_size: int
  image_channels: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  class_names: tuple[str, ...] = ()
  digest: str = ''
  notes: tuple[str, ...] = ()


def read_by(dataset: Dataset, reading: Reading) -> Dataset:
  """The same data set, its images read ahead in another way.

  Splits in memory have nothing to decode and stay as they are.

  Raises:
    UserError: grain is not installed.
  """
  if reading.loader == 'grain':
    require('grain', "loader='grain'")

  def changed(split):
    return dataclasses.replace(split, reading=reading) if split.lazy else split

  return dataset._replace(
      train=changed(dataset.train), test=changed(dataset.test))


def require(module: str, why: str) -> Any:
  """Imports a module that only some sources need.

  Raises:
    UserError: it is not installed; the message says how to install it.
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise errors.UserError(
        f'{why} needs {module}, which is not installed ({error}); '
        f'pip install {_REQUIREMENTS[module]}') from error


def is_gray(mode: str) -> bool:
  """Whether a Pillow mode has no colour.

  >>> is_gray('L'), is_gray('RGB')
  (True, False)
  """
  return mode in ('1', 'L', 'LA', 'La', 'F') or mode.startswith('I')


def decode(file: Any, channels: int, where: str) -> np.ndarray:
  """Decodes an image file with Pillow, as viewers show it.

  Turns the image as its EXIF orientation asks, and lays transparent pixels
  over white. Reduces 16 bits to 8. Gray values are divided by 257 and rounded
  (Pillow would clip them); for colours Pillow takes the high byte.

  Args:
    file: a path or a binary file object.
    channels: 1 or 3.
    where: the name of the file in an error.

  Returns:
    [h, w, channels] uint8.

  Raises:
    UserError: the file is missing or truncated, is not an image, or has
      pixels of floats.
  """
  Image = require('PIL.Image', 'decoding images')
  try:
    with Image.open(file, formats=FORMATS) as image:
      image.load()  # Turns a TIFF, and finds what a PNG has at its end.
      turn = _TURNS.get(_orientation(image))
      if image.mode.startswith('I'):
        image = Image.fromarray(_upper_byte(np.asarray(image)))
      elif image.mode == 'F':
        raise ValueError('its pixels are floats, whose range is unknown')
      elif 'transparency' in image.info or image.mode in _SEE_THROUGH:
        image = _over_white(Image, image)
      if turn:
        image = image.transpose(Image.Transpose[turn])
      mode = 'L' if channels == 1 else 'RGB'
      # Pillow would copy an image that has the mode.
      pixels = np.asarray(image if image.mode == mode else image.convert(mode))
  # Pillow raises whatever a damaged file makes its decoders stumble over.
  except Exception as error:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise errors.UserError(
        f'{where} is not a readable image ({reason}); skip_unreadable=true '
        'leaves such images out') from error
  return pixels[:, :, None] if channels == 1 else pixels


def _orientation(image):
  """The EXIF orientation, 1 to 8; None if the file has none to be read."""
  try:
    return image.getexif().get(_ORIENTATION)
  # Viewers show an image whose EXIF data are damaged as it is stored.
  except Exception:
    return None


def _over_white(Image, image):
  """The image on a white ground, as a viewer with a light page shows it."""
  image = image.convert('RGBA')
  return Image.alpha_composite(
      Image.new('RGBA', image.size, 'white'), image).convert('RGB')


def _upper_byte(pixels):
  """Maps integers 0..65535 to uint8; Pillow reads 16 bits into 32."""
  return np.rint(np.clip(pixels, 0, 65535) / 257).astype(np.uint8)


def fit(image: np.ndarray, size: int, short: int | None = None) -> np.ndarray:
  """Resizes an image to `size` x `size` pixels, keeping its proportions.

  Resizes the shorter side to `short` (default `size`) with an antialiased
  bilinear filter, then cuts out the centre: torchvision's `Resize(short)` and
  `CenterCrop(size)`.

  Args:
    image: [h, w, C] uint8.
    size: height and width of the result.
    short: at least `size`.

  Returns:
    [size, size, C] uint8.
  """
  short = short or size
  height, width = image.shape[:2]
  if (height, width) == (size, size) and short == size:
    return image
  scale = short / min(height, width)
  image = resize(image, (max(short, int(height * scale)),
                         max(short, int(width * scale))))
  top = round((image.shape[0] - size) / 2)
  left = round((image.shape[1] - size) / 2)
  return image[top:top + size, left:left + size]


def resize(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
  """Resizes [h, w, C] uint8 to `shape` (h, w); bilinear, antialiased."""
  Image = require('PIL.Image', 'resizing images')
  gray = image.shape[2] == 1
  picture = Image.fromarray(image[:, :, 0] if gray else image)
  pixels = np.asarray(
      picture.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))
  return pixels[:, :, None] if gray else pixels


def fit_all(images: np.ndarray | Sequence[np.ndarray],
            size: int) -> np.ndarray:
  """Applies `fit` to every image; returns [B, size, size, C] uint8.

  Args:
    images: [B, H, W, C] uint8, or a list of [h, w, C] of any sizes.
    size: height and width of the result.
  """
  if isinstance(images, np.ndarray) and images.shape[1:3] == (size, size):
    return images
  return np.stack([fit(image, size) for image in images])


def in_memory(split: Split, size: int,
              threads: int | None = None) -> ArraySplit:
  """Decodes a whole split into an `ArraySplit` of `size` x `size` images."""
  if isinstance(split, ArraySplit):
    return ArraySplit(fit_all(split.images, size), split.labels)
  read = split.read
  with concurrent.futures.ThreadPoolExecutor(threads or _threads()) as pool:
    images = list(pool.map(lambda i: fit(read(i), size), range(len(split))))
  return ArraySplit(np.stack(images), split.labels)


def readable(split: Split) -> tuple[Split, int]:
  """Leaves out the images that cannot be decoded; decodes every one.

  Returns:
    (split, left_out): the split that remains and how many are missing in it.

  Raises:
    UserError: none remains.
  """
  if isinstance(split, ArraySplit):
    return split, 0
  read = split.read

  def check(i):
    try:
      read(i)
      return ''
    except errors.UserError as error:
      return str(error)

  with concurrent.futures.ThreadPoolExecutor(_threads()) as pool:
    faults = list(pool.map(check, range(len(split))))
  good = np.flatnonzero([not fault for fault in faults])
  if not len(good):
    raise errors.UserError(f'no image can be read: {faults[0]}')
  return take(split, good), len(split) - len(good)


def _threads():
  return min(16, os.cpu_count() or 1)


def spread(count: int, total: int) -> np.ndarray:
  """Returns at most `count` indices, evenly spaced over range(total).

  >>> spread(3, 9)
  array([0, 4, 8])
  """
  return np.unique(np.linspace(0, total - 1, min(count, total)).astype(int))


def statistics(
    split: Split, size: int,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Measures mean and standard deviation per channel of a split's images.

  Uses every image of a split in memory, and 512 evenly spaced ones of a lazy
  split. Sums integers exactly, so the result is the same everywhere.

  Args:
    split: the training split.
    size: height and width to fit images to first.

  Returns:
    (mean, std): tuples of C floats, of images scaled to 0..1.
  """
  indices = (spread(_STATISTICS_IMAGES, len(split)) if split.lazy
             else np.arange(len(split)))
  counts = np.zeros((1, 256), np.int64)
  some = min(1024, max(1, _STATISTICS_PIXELS // size**2))
  for start in range(0, len(indices), some):  # bounds the temporary memory
    images = fit_all(split.get(indices[start:start + some]), size)
    counts = counts + np.stack([
        np.bincount(images[..., c].ravel(), minlength=256)
        for c in range(images.shape[-1])])
  values = np.arange(256) / 255
  weights = counts / counts.sum(1, keepdims=True)
  mean = weights @ values
  std = np.sqrt(np.sum(weights * (values - mean[:, None])**2, 1))
  # A constant channel must not divide by zero: the floor is one grey level.
  return (tuple(map(float, mean)),
          tuple(float(s) for s in np.maximum(std, 1 / 255)))


def check_labels(labels: Any, num_classes: int, where: str) -> np.ndarray:
  """Checks labels and returns them as [n] int32.

  Raises:
    UserError: they are not integers, not one per image, or outside
      0..num_classes-1.
  """
  labels = np.asarray(labels)
  if labels.ndim == 2 and labels.shape[1] == 1:
    labels = labels[:, 0]
  if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
    raise errors.UserError(
        f'{where}: labels have shape {labels.shape} and type {labels.dtype}; '
        'expected one integer per image')
  if not len(labels):
    raise errors.UserError(f'{where} holds no images')
  if labels.min() < 0 or labels.max() >= num_classes:
    wrong = labels.min() if labels.min() < 0 else labels.max()
    raise errors.UserError(
        f'{where}: label {wrong} is out of range; expected 0 to '
        f'{num_classes - 1}')
  return labels.astype(np.int32)


def array_split(images: Any, labels: Any, num_classes: int,
                where: str) -> ArraySplit:
  """Checks arrays and makes an `ArraySplit` of them.

  Args:
    images: uint8 [n, S, S] or [n, S, S, C] with C of 1 or 3.
    labels: integers [n] in 0..num_classes-1.
    num_classes: how many classes there are.
    where: the file, for errors.

  Raises:
    UserError: wrong type, shape, length or labels.
  """
  images = np.asarray(images)
  if images.ndim == 3:
    images = images[..., None]
  if (images.dtype != np.uint8 or images.ndim != 4
      or images.shape[-1] not in (1, 3)):
    raise errors.UserError(
        f'{where}: images have shape {images.shape} and type {images.dtype}; '
        'expected uint8 of [n, height, width] or [n, height, width, 1 or 3]')
  labels = check_labels(labels, num_classes, where)
  if len(images) != len(labels):
    raise errors.UserError(
        f'{where}: {len(images)} images but {len(labels)} labels; expected '
        'one label per image')
  return ArraySplit(np.ascontiguousarray(images), labels)


def class_permutations(labels: np.ndarray, seed: int) -> list[np.ndarray]:
  """Returns, per class, the indices of its images in a fixed random order."""
  rng = np.random.Generator(np.random.Philox(key=[seed % 2**64, 0]))
  return [rng.permutation(np.flatnonzero(labels == c))
          for c in np.unique(labels)]


def stratified(labels: np.ndarray, test_fraction: float,
               seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Splits one set into train and test, class by class.

  Args:
    labels: [n] integers.
    test_fraction: share of each class that goes to test, in (0, 1). Rounded,
      but at least one image of a class that has two.
    seed: of the permutation.

  Returns:
    (train, test): sorted, disjoint index arrays that together cover range(n).

  Raises:
    UserError: test_fraction is outside (0, 1), or no class has two images.
  """
  if not 0 < test_fraction < 1:
    raise errors.UserError(
        f'test_fraction={test_fraction} must lie between 0 and 1')
  if len(np.unique(labels)) == len(labels):
    raise errors.UserError(
        f'no class of the {len(labels)} images has two, so none can be held '
        'out for the test')
  train, test = [], []
  for indices in class_permutations(labels, seed):
    n = len(indices)
    cut = min(max(math.floor(test_fraction * n + .5), 1), n - 1)
    test.append(indices[:cut])
    train.append(indices[cut:])
  return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


def take(split: Split, indices: np.ndarray) -> Split:
  """Returns the split that holds only the images at `indices`."""
  if isinstance(split, ArraySplit):
    return ArraySplit(split.images[indices], split.labels[indices])
  indices, read, stored = np.asarray(indices), split.read, split.stored
  return LazySplit(
      lambda i: read(int(indices[i])), split.labels[indices],
      None if stored is None else lambda i: stored(int(indices[i])),
      split.reading)
