"""Splits of examples: a grain MapDataset, or anything that yields them.

An example is (image, label), or a dict with 'image' and 'label': uint8 [h,w],
[h,w,1] or [h,w,3], and an integer.
"""

import concurrent.futures
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from rome_jax import errors
from rome_jax.data import splits

# An iterable is read into memory, at most this many bytes of it.
MOST_BYTES = 2**31
_OVERHEAD = 256  # bytes of a small array besides its pixels, about
_MOST = 10**9  # examples; a MapDataset that is repeated has sys.maxsize
_THREADS = 8


def read(examples: Any, where: str) -> splits.LazySplit:
  """The split of some examples, with their labels as they are.

  A grain MapDataset is read once for its labels, and its images again
  whenever they are used. Any other iterable is read once, into memory.

  Args:
    examples: what holds or yields them.
    where: a name for errors.

  Raises:
    UserError: they are not examples, none, or too many for memory.

  >>> split = read(((np.zeros((8, 8), np.uint8), i % 2) for i in range(4)), 'x')
  >>> split.get([0])[0].shape, split.labels.tolist()
  ((8, 8, 1), [0, 1, 0, 1])
  """
  if is_map_dataset(examples):
    return _random_access(examples, where)
  if not is_iterable(examples):
    raise errors.UserError(
        f'{where} is a {type(examples).__name__}; it must be a grain '
        'MapDataset or an iterable of (image, label)')
  images: list[np.ndarray] = []
  labels, held = [], 0
  for i, example in enumerate(examples):
    image, label = _checked(example, i, where, images)
    images.append(image)
    labels.append(label)
    held += image.nbytes + _OVERHEAD
    if held > MOST_BYTES:
      raise errors.UserError(
          f'{where} holds more than {MOST_BYTES // 2**30} GiB of images, or '
          f'has no end: {i + 1:,} examples were read; what does not fit into '
          'memory must be a folder of files or a grain MapDataset')
  if not images:
    raise errors.UserError(f'{where} holds no examples')
  return splits.LazySplit(images.__getitem__, np.array(labels, np.int64))


def is_iterable(value: Any) -> bool:
  """Whether `iter` takes a value, as that of old sequences without __iter__."""
  return isinstance(value, Iterable) or hasattr(value, '__getitem__')


def is_map_dataset(value: Any) -> bool:
  """Whether a value is a grain MapDataset; imports nothing."""
  grain = sys.modules.get('grain')
  return grain is not None and isinstance(value, grain.MapDataset)


def _random_access(examples, where):
  if len(examples) > _MOST:
    raise errors.UserError(
        f'{where} has no end; a MapDataset that is repeated must be given '
        'without repeat(), as a run draws its own epochs')

  if not len(examples):
    raise errors.UserError(f'{where} holds no examples')
  first, _ = _checked(examples[0], 0, where)

  def example(i):
    return _checked(examples[i], i, where, [first])

  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    labels = list(pool.map(lambda i: example(i)[1], range(len(examples))))
  return splits.LazySplit(lambda i: example(i)[0], np.array(labels, np.int64))


def _checked(example, i, where, others=()):
  """(image [h,w,C], label) of one example, alike the first of the others."""
  if isinstance(example, dict):
    example = example.get('image'), example.get('label')
  if not isinstance(example, tuple | list) or len(example) != 2:
    raise errors.UserError(
        f'{where}: example {i} is a {type(example).__name__}; it must be '
        "(image, label) or a dict with 'image' and 'label'")
  # As an array, a palette's numbers would pass for shades of gray.
  mode = getattr(example[0], 'mode', 'L')
  if mode not in ('L', 'RGB'):
    raise errors.UserError(
        f'{where}: the image of example {i} has Pillow mode {mode!r}; convert '
        "it to 'L' or 'RGB'")
  image, label = map(np.asarray, example)
  if image.ndim == 2:
    image = image[..., None]
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (
      1, 3):
    raise errors.UserError(
        f'{where}: the image of example {i} has shape {image.shape} and type '
        f'{image.dtype}; it must be uint8 of [height, width] or [height, '
        'width, 1 or 3]')
  if others and image.shape[-1] != others[0].shape[-1]:
    raise errors.UserError(
        f'{where}: example {i} has {image.shape[-1]} channels, the first has '
        f'{others[0].shape[-1]}')
  if label.ndim or not np.issubdtype(label.dtype, np.integer):
    raise errors.UserError(
        f'{where}: the label of example {i} has shape {label.shape} and type '
        f'{label.dtype}; it must be one integer')
  return image, int(label)
