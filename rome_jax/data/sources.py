"""Image sets by name: `load` turns a name and a folder into a `Dataset`.

A source is a function of (name, data_dir) in `SOURCES` that opens and checks
the files. Sizes and statistics are added here, the same way for all.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rome_jax import errors
from rome_jax.data import digest, examples, folders, formats, splits, tfds

# Mean and standard deviation per channel of images in 0..1, as published with
# the search code: DARTS for CIFAR-10 and ImageNet, RobustDARTS for the others.
# Sets not listed are measured.
_IMAGENET = ((.485, .456, .406), (.229, .224, .225))
_CIFAR10 = ((.49139968, .48215827, .44653124),
            (.24703233, .24348505, .26158768))
_CIFAR100 = ((.5071, .4865, .4409), (.2673, .2564, .2762))
_SVHN = ((.4377, .4438, .4728), (.1980, .2010, .1970))
STATISTICS = {
    'cifar10': _CIFAR10, 'cifar100': _CIFAR100, 'svhn': _SVHN,
    'imagenet': _IMAGENET, 'imagenet2012': _IMAGENET, 'svhn_cropped': _SVHN,
}
# Sizes for sets whose images differ in size.
_SIZES = {'imagenet': 224, 'imagenet2012': 224}
# Images that need decoding are decoded once if they take at most this many
# bytes, else at each use.
_MEMORY_LIMIT = 2**29
_CIFAR10_CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog',
                    'frog', 'horse', 'ship', 'truck')


Pair = tuple[np.ndarray, np.ndarray]  # images, labels


class Opened(NamedTuple):
  """What a source returns: splits of images in their original sizes.

  Attributes:
    train, test: splits; test is None if the source has only one split.
    num_classes: labels are 0..num_classes-1.
    channels: 1 or 3.
    class_names: per class, or ().
    notes: as in `splits.Dataset`.
  """

  train: splits.Split
  test: splits.Split | None
  num_classes: int
  channels: int
  class_names: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()


def load(name: str, data_dir: str = '', *, image_size: int = 0,
         test_fraction: float = .2, seed: int = 0,
         lazy: bool | None = None, skip_unreadable: bool = False,
         check: Callable[[int, int, int, bool], None] | None = None,
         ) -> splits.Dataset:
  """Opens an image set.

  Args:
    name: one of `SOURCES`, or 'tfds:NAME' for a set of TensorFlow Datasets.
    data_dir: the folder of the files ('npz': the file itself; 'digits' needs
      none). Nothing is downloaded.
    image_size: height and width to fit images to; 0 keeps their size (224
      for ImageNet).
    test_fraction: share of each class that is held out if a folder, an .npz
      or a TFDS set has no test split.
    seed: of that split. It is no run's seed: two runs are compared on the
      same test images.
    lazy: whether to decode images of folders and TFDS at each use, in full
      size, instead of once; None decides by memory (512 MiB). ImageNet is
      always lazy.
    skip_unreadable: whether to decode every image once and leave out those
      that cannot be, instead of an error when one is met.
    check: called with (images of both splits, image size, channels, whether
      all are decoded into memory) before any is decoded; may raise.

  Raises:
    UserError: the name is unknown; a file is missing, damaged or of the wrong
      shape; a label is out of range; or a package is not installed.

  >>> dataset = load('digits')
  >>> len(dataset.train), dataset.image_size, dataset.num_classes
  (1438, 8, 10)
  """
  data_dir = os.path.expanduser(data_dir)
  key = 'tfds' if tfds.base_name(name) else name
  if key not in SOURCES:
    known = (*(k for k in SOURCES if k != 'tfds'), 'tfds:NAME')
    raise errors.UserError(
        f'data name {name!r} is unknown; known: {", ".join(known)}'
        f'{errors.near_miss(name, known)}')
  if image_size < 0:
    raise errors.UserError(
        f'image_size={image_size} must be at least 1, or 0 for the size of '
        'the images')
  if key == 'digits' and data_dir:
    raise errors.UserError(
        f'data_dir={data_dir} must be empty with dataset=digits, which comes '
        'with scikit-learn; for files of your own set dataset to folder or npz')
  if key != 'digits' and key != 'tfds' and not data_dir:
    raise errors.UserError(
        f'data_dir is empty; {name} needs the path of its files')
  try:
    opened = SOURCES[key](name, data_dir)
  except OSError as error:  # no permission, a disk that fails
    raise errors.UserError(
        f'cannot read {error.filename or data_dir}: '
        f'{error.strerror or error}') from error
  if skip_unreadable:
    opened = _without_unreadable(opened)
  opened = _with_test(opened, test_fraction, seed)
  return _finish(name, opened, image_size, lazy, check)


def _without_unreadable(opened):
  train, missing = splits.readable(opened.train)
  test = opened.test
  if test is not None:
    test, more = splits.readable(test)
    missing += more
  notes = (f'unreadable images left out: {missing:,}',) if missing else ()
  return opened._replace(train=train, test=test, notes=opened.notes + notes)



def from_arrays(train: Pair, test: Pair | None = None, *,
                class_names: Sequence[str] = (), image_size: int = 0,
                test_fraction: float = .2, seed: int = 0,
                name: str = 'arrays') -> splits.Dataset:
  """Makes a data set of arrays.

  Args:
    train: (images, labels): uint8 [n,S,S] or [n,S,S,C] with C of 1 or 3, and
      integers [n]. Without `class_names`, numbers that leave gaps are read
      as classes 0, 1, ... in their order, named by the numbers.
    test: likewise; None holds out `test_fraction` of each class.
    class_names: one per label. If given, they also fix the number of classes.
    image_size: height and width to fit images to; 0 keeps their size.
    test_fraction, seed: of the split, if `test` is None.
    name: shown, and stored with a run.

  Raises:
    UserError: wrong types, shapes, lengths or labels.

  >>> images = np.zeros((20, 8, 8, 3), np.uint8)
  >>> dataset = from_arrays((images, np.arange(20) % 2), class_names='ab')
  >>> len(dataset.train), len(dataset.test), dataset.num_classes
  (16, 4, 2)
  """
  opened = _labelled(train, test, name, tuple(class_names))
  return _finish(name, _with_test(opened, test_fraction, seed), image_size,
                 lazy=False)


def from_examples(train: Any, test: Any = None, *,
                  class_names: Sequence[str] = (), image_size: int = 0,
                  test_fraction: float = .2, seed: int = 0,
                  name: str = 'examples') -> splits.Dataset:
  """Makes a data set of examples, (image, label) or {'image', 'label'}.

  Args:
    train: a grain MapDataset, whose images are read at each use unless all
      fit into 512 MiB; or an iterable, which is read once, at most 2 GiB.
      Images are uint8 [h,w], [h,w,1] or [h,w,3], labels integers.
    test: likewise; None holds out `test_fraction` of each class.
    class_names, image_size, test_fraction, seed, name: as in `from_arrays`.

  Raises:
    UserError: wrong types, shapes or labels, no end, or images of several
      sizes without `image_size`.

  >>> images = np.zeros((20, 8, 8, 3), np.uint8)
  >>> dataset = from_examples(zip(images, np.arange(20) % 2))
  >>> len(dataset.train), len(dataset.test), dataset.num_classes
  (16, 4, 2)
  """
  found = [examples.read(train, f'{name} train')]
  if test is not None:
    found.append(examples.read(test, f'{name} test'))
  count, names = len(class_names), tuple(class_names)
  pairs: Any = [(split, split.labels) for split in found]
  if not count:
    pairs, count, names = number_classes(pairs, name)
  first, *rest = [
      dataclasses.replace(split, labels=splits.check_labels(
          labels, count, name)) for split, labels in pairs]
  channels = [split.read(0).shape[-1] for split in (first, *rest)]
  if len(set(channels)) > 1:
    raise errors.UserError(
        f'{name}: images have {channels[0]} channels in train but '
        f'{channels[1]} in test')
  opened = Opened(
      first, rest[0] if rest else None, count, channels[0], names)
  return _finish(name, _with_test(opened, test_fraction, seed), image_size,
                 lazy=None)


def _with_test(opened, test_fraction, seed):
  """Holds out a test split where the source has none."""
  if opened.test is not None:
    return opened
  train, test = splits.stratified(opened.train.labels, test_fraction, seed)
  return opened._replace(train=splits.take(opened.train, train),
                         test=splits.take(opened.train, test))


def _labelled(train, test, where, class_names=(), notes=()):
  """`Opened` of pairs of arrays whose labels say how many classes there are."""
  count = len(class_names)
  if not count:
    (*pairs,), count, class_names = number_classes((train, test), where)
    train, test = pairs
    if class_names:
      notes = (*notes, f'labels {", ".join(_some(class_names))} are classes 0 '
               f'to {count - 1}')
  if test is not None:
    return _arrays(train, test, count, where, class_names)._replace(
        notes=notes)
  split = splits.array_split(*train, count, where)
  return Opened(split, None, count, split.images.shape[-1], class_names, notes)


def _some(names, most=8):
  return names if len(names) <= most else (*names[:most], '...')


def number_classes(
    pairs: Sequence[Pair | None], where: str,
) -> tuple[list[Pair | None], int, tuple[str, ...]]:
  """Numbers the classes from 0 where labels leave gaps, as 1, 2, 3 or 0, 255.

  Args:
    pairs: (images, labels) of the training split and of the others.
    where: the file, for errors.

  Returns:
    (pairs, num_classes, class_names): the pairs with labels below
    num_classes; the numbers that stood there, or () if they had no gaps.

  Raises:
    UserError: labels are no integers.
  """
  first, *others = (np.asarray(pair[1]) for pair in pairs if pair)
  if not first.size or not np.issubdtype(first.dtype, np.integer):
    raise errors.UserError(
        f'{where}: labels have shape {first.shape} and type {first.dtype}; '
        'expected one integer per image')
  # uint64 and int64 only meet in float64.
  values = np.unique(np.concatenate([
      np.ravel(labels).astype(np.int64) for labels in (first, *others)
      if np.issubdtype(labels.dtype, np.integer)]))
  largest = int(first.max())
  # Wrong labels are found, and named, once there is a split.
  if values[0] < 0 or values[-1] > largest or len(values) == largest + 1:
    return list(pairs), largest + 1, ()
  numbered = [pair and (pair[0], np.searchsorted(values, pair[1]))
              for pair in pairs]
  return numbered, len(values), tuple(map(str, values))


def _finish(name, opened, image_size, lazy, check=None):
  """Fits images to one size and measures unknown statistics."""
  if len(np.unique(opened.train.labels)) < 2:
    raise errors.UserError(
        f'{name}: all {len(opened.train)} training images are of one class; '
        'expected at least two classes')
  known = tfds.base_name(name) or name
  size = image_size or _SIZES.get(known) or native_size(opened.train, name)
  train, test = opened.train, opened.test
  if known in _SIZES:
    lazy = True
  elif lazy is None:
    total = (len(train) + len(test)) * size**2 * opened.channels
    lazy = total > _MEMORY_LIMIT
  if check is not None:
    check(len(train) + len(test), size, opened.channels, not lazy)
  if not lazy:
    train, test = (splits.in_memory(s, size) for s in (train, test))
  made = digest.of_splits(opened.train, opened.test)
  mean, std = STATISTICS.get(known) or splits.statistics(train, size)
  return splits.Dataset(
      name, train, test, opened.num_classes, size, opened.channels, mean, std,
      tuple(opened.class_names), made, opened.notes)


def native_size(split: splits.Split, name: str) -> int:
  """Returns the common height and width of a split's images.

  Raises:
    UserError: they differ (64 images of a lazy split are checked) or are not
      square.
  """
  images = split.get(splits.spread(64 if split.lazy else 1, len(split)))
  shapes = sorted({image.shape[:2] for image in images})
  height, width = shapes[0]
  if len(shapes) > 1:
    raise errors.UserError(
        f'{name}: images differ in size ({height}x{width}, '
        f'{shapes[-1][0]}x{shapes[-1][1]}); set image_size')
  if height != width:
    raise errors.UserError(
        f'{name}: images are {height}x{width}, not square; set image_size')
  return height


def _arrays(train, test, num_classes, where, class_names=()):
  """Checks two (images, labels) pairs and returns them as `Opened`."""
  checked = [splits.array_split(*pair, num_classes, f'{where} {split}')
             for pair, split in ((train, 'train'), (test, 'test'))]
  shapes = [s.images.shape[1:] for s in checked]
  if shapes[0] != shapes[1]:
    raise errors.UserError(
        f'{where}: images are {shapes[0]} in train but {shapes[1]} in test')
  return Opened(*checked, num_classes, shapes[0][-1], class_names)


def _digits(name, data_dir):
  """scikit-learn's 1,797 handwritten digits, 8x8; always split alike."""
  del data_dir
  content = splits.require('sklearn.datasets', name).load_digits()
  images = np.rint(content.images * (255 / 16)).astype(np.uint8)
  labels = content.target
  train, test = splits.stratified(labels, .2, seed=0)
  return _arrays((images[train], labels[train]), (images[test], labels[test]),
                 10, name, tuple('0123456789'))


class _Layout(NamedTuple):
  """The files of one of the two versions of CIFAR."""

  folder: str
  train: tuple[str, ...]
  test: str
  read: str  # 'binary' or 'python'


_BATCHES = tuple(f'data_batch_{i}' for i in range(1, 6))
_CIFAR_LAYOUTS = {
    'cifar10': (
        _Layout('cifar-10-batches-bin', tuple(f'{b}.bin' for b in _BATCHES),
                'test_batch.bin', 'binary'),
        _Layout('cifar-10-batches-py', _BATCHES, 'test_batch', 'python')),
    'cifar100': (
        _Layout('cifar-100-binary', ('train.bin',), 'test.bin', 'binary'),
        _Layout('cifar-100-python', ('train',), 'test', 'python')),
}


def _cifar(name, data_dir):
  """CIFAR-10 and CIFAR-100, in the binary or the Python version."""
  fine = name == 'cifar100'
  folder, layout = _find_layout(name, pathlib.Path(data_dir))
  def read(file):
    if layout.read == 'binary':
      return formats.read_cifar_binary(folder / file, 1 + fine)
    return formats.read_cifar_python(
        folder / file, 'fine_labels' if fine else 'labels')
  parts = [read(file) for file in layout.train]
  train = [np.concatenate(part) for part in zip(*parts)]
  classes = () if fine else _CIFAR10_CLASSES
  return _arrays(train, read(layout.test), 100 if fine else 10, str(folder),
                 classes)


def _find_layout(name, root):
  """Returns (folder, layout) of the first layout with any file present."""
  for layout in _CIFAR_LAYOUTS[name]:
    for folder in (root, root / layout.folder):
      files = [folder / f for f in (*layout.train, layout.test)]
      if any(f.is_file() for f in files):
        missing = [f for f in files if not f.is_file()]
        if missing:
          raise errors.UserError(f'{missing[0]} does not exist')
        return folder, layout
  wanted = ' or '.join(f'{layout.folder} ({layout.train[0]}, ...)'
                       for layout in _CIFAR_LAYOUTS[name])
  raise errors.UserError(
      f'{root} does not hold {name}; expected the files of {wanted}')


def _svhn(name, data_dir):
  """SVHN's cropped digits: the train and test files, without extra."""
  root = pathlib.Path(data_dir)
  train, test = (formats.read_svhn(root / f'{split}_32x32.mat')
                 for split in ('train', 'test'))
  return _arrays(train, test, 10, f'{name} {root}', tuple('0123456789'))


_FASHION_CLASSES = ('t-shirt', 'trouser', 'pullover', 'dress', 'coat',
                    'sandal', 'shirt', 'sneaker', 'bag', 'ankle boot')


def _mnist(name, data_dir):
  """MNIST and Fashion-MNIST: four idx files, gzipped or not."""
  root = pathlib.Path(data_dir)
  train, test = (
      (formats.read_idx(_idx_file(root, f'{split}-images', 3), 3),
       formats.read_idx(_idx_file(root, f'{split}-labels', 1), 1))
      for split in ('train', 't10k'))
  classes = _FASHION_CLASSES if name == 'fashion_mnist' else '0123456789'
  return _arrays(train, test, 10, f'{name} {root}', tuple(classes))


def _idx_file(root, stem, dimensions):
  """Finds an idx file under any of its usual names."""
  names = [f'{stem}{dot}idx{dimensions}-ubyte{end}'
           for dot in '-.' for end in ('', '.gz')]
  for name in names:
    if (root / name).is_file():
      return root / name
  raise errors.UserError(
      f'{root / names[0]} does not exist, nor does {names[1]}')


def _npz(name, data_dir):
  """An .npz with x_train, y_train[, x_test, y_test], or images, labels."""
  content = formats.read_npz(data_dir)
  keys = _pair(content, ('train',)) or _named(content, 'images', 'labels')
  if keys is None:
    raise errors.UserError(
        f'{data_dir} has the arrays {", ".join(content) or "(none)"}; '
        'expected x_train and y_train, or images and labels')
  held_out = _pair(content, ('test',))
  if held_out is None and 'x_test' in map(str.lower, content):
    raise errors.UserError(f'{data_dir} has x_test but no y_test')
  held_out = held_out or _pair(content, ('val', 'valid', 'validation'))
  train, test = (names and tuple(content[name] for name in names)
                 for names in (keys, held_out))
  notes = ()
  if held_out and 'test' not in held_out[0].lower():
    notes = (f'{held_out[0]} is the test split',)
  rest = [name for name in content if name not in (*keys, *(held_out or ()))]
  return _labelled(train, test, str(data_dir),
                   notes=(*notes, *_not_read(rest)))


def _named(content, images, labels):
  """The names, in whatever case, of two arrays; None if one is missing."""
  known = {name.lower(): name for name in content}
  if images in known and labels in known:
    return known[images], known[labels]
  return None


def _pair(content, names_of_split):
  """The names of a split's arrays: x_train, y_train or as MedMNIST's."""
  for split in names_of_split:
    names = (_named(content, f'x_{split}', f'y_{split}')
             or _named(content, f'{split}_images', f'{split}_labels'))
    if names:
      return names
  return None


def _folder(name, data_dir):
  """A folder of images per class, split into train/ and test/ or not."""
  imagenet = name == 'imagenet'
  found = folders.open_folder(
      data_dir, need_train=imagenet, channels=3 * imagenet)
  return Opened(
      found.train, found.test, len(found.classes), found.channels,
      tuple(found.classes), _not_read(found.notes))


def _not_read(things):
  return ('not read: ' + ', '.join(things),) if things else ()


def _tfds(name, data_dir):
  """Any classification set that `tfds.data_source` opens."""
  classes, train, test, channels = tfds.open_tfds(name, data_dir)
  train, test = (
      split and splits.LazySplit(split.read, splits.check_labels(
          split.labels, len(classes), f'{name} {kind}'))
      for split, kind in ((train, 'train'), (test, 'test')))
  return Opened(train, test, len(classes), channels, tuple(classes))


SOURCES = {
    'digits': _digits,
    'cifar10': _cifar,
    'cifar100': _cifar,
    'svhn': _svhn,
    'mnist': _mnist,
    'fashion_mnist': _mnist,
    'folder': _folder,
    'npz': _npz,
    'imagenet': _folder,
    'tfds': _tfds,
}
