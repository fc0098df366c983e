"""Any image set of TensorFlow Datasets, read without TensorFlow."""

import concurrent.futures
import io

import numpy as np

from rome_jax import errors
from rome_jax.data import formats, splits

# The public test split of ImageNet has no labels.
_TEST_SPLITS = {'imagenet2012': ('validation',)}
_THREADS = 8


def base_name(name):
  """'imagenet2012' of 'tfds:imagenet2012:5.1.0'; '' of another source."""
  kind, _, rest = name.partition(':')
  return rest.split(':')[0].split('/')[0] if kind == 'tfds' else ''


def open_tfds(name, data_dir):
  """Opens a prepared data set in a format with random access.

  Images stay encoded until they are asked for; the labels are read now, in
  one pass over the files.

  Args:
    name: 'tfds:NAME', NAME as `tfds.data_source` takes it.
    data_dir: the folder of prepared sets; '' for TFDS's own default.

  Returns:
    (class_names, train, test, channels) as `folders.open_folder`.

  Raises:
    UserError: TFDS is not installed, the set is not prepared there in such a
      format, or it has no image, no label or no train split.
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
  # TFDS raises a type of its own for each thing that can be missing.
  except Exception as error:
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
  test = held_out and _split(
      sources[held_out], channels, f'{name} {held_out}')
  return _names(features['label']), train, test, channels


def _names(label):
  """The class names; TFDS has numbers where the set gives none."""
  return [label.int2str(i) for i in range(label.num_classes)]


def _split(source, channels, where):
  """The lazy split of one TFDS data source."""
  def record(i):
    try:
      return source[i]
    # The reader of each file format has exceptions of its own.
    except Exception as error:
      raise errors.UserError(
          f'{where}[{i}] cannot be read: {formats.reason(error)}') from error

  def read(i):
    return splits.decode(
        io.BytesIO(record(i)['image']), channels, f'{where}[{i}]')

  # Encoded images are read along with their labels, so this costs one pass
  # over the files: seconds, or minutes for all of ImageNet.
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    labels = list(pool.map(
        lambda i: int(record(i)['label']), range(len(source))))
  return splits.LazySplit(read, np.array(labels, np.int64))
