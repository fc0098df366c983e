"""Reads image sets of TensorFlow Datasets (TFDS) without TensorFlow."""

import concurrent.futures
import io
import pathlib

import numpy as np

from rome_jax import errors
from rome_jax.data import formats, splits

# The public test split of ImageNet has no labels.
_TEST_SPLITS = {'imagenet2012': ('validation',)}
_THREADS = 8


def base_name(name: str) -> str:
  """Returns the set's name without version; '' for another source.

  >>> base_name('tfds:imagenet2012:5.1.0')
  'imagenet2012'
  >>> base_name('cifar10')
  ''
  """
  kind, _, rest = name.partition(':')
  return rest.split(':')[0].split('/')[0] if kind == 'tfds' else ''


def open_tfds(
    name: str, data_dir: str,
) -> tuple[list[str], splits.LazySplit, splits.LazySplit | None, int]:
  """Opens a prepared data set, stored in a format with random access.

  Reads the labels at once, in one pass over the files. Images are decoded
  when they are used.

  Args:
    name: 'tfds:NAME', NAME as `tfds.data_source` takes it.
    data_dir: the folder of prepared sets; '' for TFDS's default.

  Returns:
    (class_names, train, test, channels), as in `folders.Opened`.

  Raises:
    UserError: TFDS is not installed; the folder does not hold the set in such
      a format; or the set has no image, no label or no train split.
  """
  tfds = splits.require('tensorflow_datasets', name)
  full = name.partition(':')[2]
  try:
    sources = tfds.data_source(
        full, data_dir=data_dir or None, download=False,
        decoders={'image': tfds.decode.SkipDecoding()})
    features = dict(sources['train'].dataset_info.features)
  except KeyError:
    raise errors.UserError(
        f'{name} has no train split; it has {", ".join(sources)}') from None
  # TFDS raises a different type for each thing that can be missing.
  except Exception as error:
    folder = pathlib.Path(data_dir, full.partition(':')[0].partition('/')[0])
    if data_dir and not folder.is_dir():
      raise errors.UserError(
          f'{name} is not prepared in data_dir={data_dir!r}, which has no '
          f'folder {folder.name}; prepare it once with tfds.builder('
          f"{full!r}, file_format='array_record').download_and_prepare()"
      ) from error
    raise errors.UserError(
        f'{name} cannot be read from data_dir={data_dir!r}: '
        f'{formats.reason(error)}; expected a data set that was prepared '
        'with file_format="array_record"') from error
  if 'image' not in features or not hasattr(
      features.get('label'), 'num_classes'):
    raise errors.UserError(
        f'{name} has the features {", ".join(features)}; expected an image '
        'and a class label')
  channels = 1 if features['image'].shape[-1] == 1 else 3
  wanted = _TEST_SPLITS.get(base_name(name), ('test', 'validation'))
  held_out = next((s for s in wanted if s in sources), None)
  train = _split(sources['train'], channels, f'{name} train')
  test = None if held_out is None else _split(
      sources[held_out], channels, f'{name} {held_out}')
  return _names(features['label']), train, test, channels


def _names(label):
  """Returns the class names; TFDS has numbers for a set without names."""
  return [label.int2str(i) for i in range(label.num_classes)]


def _split(source, channels, where):
  """Returns the lazy split of one TFDS data source."""
  def record(i):
    try:
      return source[i]
    # Each file format raises exceptions of its own.
    except Exception as error:
      raise errors.UserError(
          f'{where}[{i}] cannot be read: {formats.reason(error)}') from error

  def read(i):
    return splits.decode(
        io.BytesIO(record(i)['image']), channels, f'{where}[{i}]')

  # Labels are stored with the encoded images, so this reads all files once:
  # seconds, or minutes for ImageNet.
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    labels = list(pool.map(
        lambda i: int(record(i)['label']), range(len(source))))
  return splits.LazySplit(read, np.array(labels, np.int64))
