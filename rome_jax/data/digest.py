"""A digest of a data set: a run continues only on the data it began with."""

import hashlib
import os
from collections.abc import Iterator

import numpy as np

from rome_jax import errors
from rome_jax.data import splits

# How much is looked at: enough to notice that images were replaced, and little
# enough for ImageNet on a network disk.
_BYTES = 2**26  # of a split in memory: all of MNIST, a third of CIFAR-10
_SIZES = 10_000  # of files
_CONTENTS = 64  # of files, or of images that are decoded from elsewhere


def of_splits(train: splits.Split, test: splits.Split) -> str:
  """SHA-256 of what tells two splits from those of other data.

  Reads every label. Of splits in memory it reads the shape and the pixels, if
  need be of evenly spaced images that fill 64 MiB; of files every name, and
  the sizes of 10,000 and the bytes of 64 of them; of other images the pixels
  of 64. Does not depend on where the files lie.

  Returns:
    64 hexadecimal digits.

  Raises:
    UserError: a file cannot be read.
  """
  found = hashlib.sha256()
  for split in (train, test):
    found.update(np.asarray(split.labels, '<i8').tobytes())
    for part in _parts(split):
      found.update(len(part).to_bytes(8, 'little'))
      found.update(part)
  return found.hexdigest()


def _parts(split: splits.Split) -> Iterator[bytes]:
  if isinstance(split, splits.ArraySplit):
    yield from _pixels(split)
  elif split.stored is None:
    for image in split.get(splits.spread(_CONTENTS, len(split))):
      yield repr(image.shape).encode()
      yield image.tobytes()
  else:
    yield from _files([split.stored(i) for i in range(len(split))])


def _pixels(split):
  yield repr(split.images.shape).encode()
  count = max(1, _BYTES // max(1, split.images[0].nbytes))
  for start in splits.spread(count, len(split)):
    yield split.images[start].tobytes()


def _files(stored):
  yield '\n'.join(file.name for file in stored).encode(errors='surrogateescape')
  path = ''
  try:
    for i in splits.spread(_SIZES, len(stored)):
      path = stored[i].path
      yield str(os.stat(path).st_size).encode()
    for i in splits.spread(_CONTENTS, len(stored)):
      path = stored[i].path
      with open(path, 'rb') as file:
        yield file.read()
  except OSError as error:
    raise errors.UserError(
        f'cannot read {path}: {error.strerror or error}') from error
