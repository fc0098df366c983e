"""Folders of image files, one folder per class."""

import collections
import os
import pathlib
from typing import NamedTuple

import numpy as np

from rome_jax import errors
from rome_jax.data import splits

SUFFIXES = frozenset((
    '.jpg', '.jpeg', '.png', '.bmp', '.gif', '.webp', '.ppm', '.pgm', '.tif',
    '.tiff'))
# In any case; the first of the held-out ones that has labels is the test.
_TRAIN_NAMES = ('train', 'training')
_TEST_NAMES = ('test', 'testing', 'val', 'valid', 'validation')
Files = tuple[list[str], np.ndarray]  # paths, labels [n] int32


class Opened(NamedTuple):
  """What a folder holds.

  Attributes:
    classes: sorted names.
    train: a lazy split.
    test: likewise; None for a folder of class folders.
    channels: 1 if every image looked at is gray, else 3.
    notes: what was not read.
  """

  classes: list[str]
  train: splits.LazySplit
  test: splits.LazySplit | None
  channels: int
  notes: tuple[str, ...]


def open_folder(
    root: str | os.PathLike[str], *, need_train: bool = False,
    channels: int = 0,
) -> Opened:
  """Finds the splits of a folder and lists their images.

  Args:
    root: a folder with train/ and test/ (or val/), each with a folder per
      class, or a folder of class folders. A test/ without class folders, as
      contests publish it, is passed over if there is a val/.
    need_train: whether to refuse the second form.
    channels: 1 or 3; 0 finds out from some of the images.

  Raises:
    UserError: the folder does not exist, has no classes, has a class without
      images, or has a test class that train lacks.
  """
  root = pathlib.Path(root)
  if not root.is_dir():
    raise errors.UserError(f'data_dir={str(root)!r} is not a folder')
  folders = {entry.name.lower(): pathlib.Path(entry.path)
             for entry in os.scandir(root) if _is_folder(entry)}
  train = next((folders[n] for n in _TRAIN_NAMES if n in folders), None)
  left_out: collections.Counter[str] = collections.Counter()
  if train is None:
    if need_train:
      raise errors.UserError(
          f'{root} has no folder train; expected train/ and val/, each with a '
          f'folder per class{_deeper(root)}')
    classes = class_names(root)
    files = list_files(root, classes, left_out=left_out)
    channels = channels or probe_channels(files)
    return Opened(classes, file_split(files, channels), None, channels,
                  _notes(left_out))
  classes = class_names(train)
  test = _find_test(root, folders, train, classes)
  extra = sorted(set(class_names(test)) - set(classes))
  if extra:
    raise errors.UserError(
        f'{test / extra[0]} is a class that {train} does not have')
  files = list_files(train, classes, left_out=left_out)
  test_files = list_files(test, [c for c in classes if (test / c).is_dir()],
                          classes, left_out)
  channels = channels or probe_channels(files)
  return Opened(
      classes, file_split(files, channels), file_split(test_files, channels),
      channels, (*(f'folder {path.name}' for path in folders.values()
                   if path not in (train, test)), *_notes(left_out)))


def _is_folder(entry):
  return entry.is_dir() and not entry.name.startswith('.')


def _find_test(root, folders, train, classes):
  """The held-out folder that has labels."""
  found = [folders[n] for n in _TEST_NAMES if n in folders]
  if not found:
    raise errors.UserError(
        f'{root} has a folder {train.name} but none of test, val, valid and '
        f'validation; data_dir={train} holds out test_fraction of it')
  for folder in found:
    if any((folder / name).is_dir() for name in classes):
      return folder
  raise errors.UserError(
      f'{found[0]} has none of the class folders of {train}, so its images '
      f'have no labels; data_dir={train} holds out test_fraction of those '
      'that have')


def class_names(folder: str | os.PathLike[str]) -> list[str]:
  """Returns the sorted names of the subfolders.

  Raises:
    UserError: there are none.
  """
  names = sorted(e.name for e in os.scandir(folder) if _is_folder(e))
  if not names:
    raise errors.UserError(
        f'{folder} has no folders; expected one folder of images per class')
  return names


def list_files(folder: str | os.PathLike[str], names: list[str],
               classes: list[str] | None = None,
               left_out: collections.Counter | None = None) -> Files:
  """Lists the image files of some class folders, in a fixed order.

  Args:
    folder: the folder with the class folders.
    names: the class folders to read.
    classes: all classes, for the labels (default: names).
    left_out: counts the files that are not listed, by what they are.

  Returns:
    (paths, labels [n] int32).

  Raises:
    UserError: a class folder holds no images.
  """
  classes = classes or names
  folder = pathlib.Path(folder)
  left_out = collections.Counter() if left_out is None else left_out
  paths, labels = [], []
  for name in names:
    found = _images(folder / name, left_out)
    if not found:
      raise errors.UserError(
          f'{folder / name} holds no images; expected files that end in one '
          f'of {", ".join(sorted(SUFFIXES))}{_deeper(folder)}')
    paths += found
    labels += [classes.index(name)] * len(found)
  beside = sum(_suffix(entry.name) in SUFFIXES for entry in os.scandir(folder)
               if not entry.name.startswith('.') and entry.is_file())
  left_out['images beside the class folders'] += beside
  return paths, np.array(labels, np.int32)


def _suffix(name):
  return os.path.splitext(name)[1].lower()


def _images(folder, left_out):
  """The sorted paths of a class's images; counts what else is there."""
  found = []
  with os.scandir(folder) as listed:
    entries = [entry for entry in listed if not entry.name.startswith('.')]
  for entry in entries:
    if _suffix(entry.name) in SUFFIXES and not entry.is_dir():
      # Reading a pipe or a device may never end. A link to nothing is an
      # image that cannot be read, as others are.
      if not entry.is_file() and os.path.exists(entry.path):
        raise errors.UserError(f'{entry.path} is a pipe or a device, no file')
      found.append(entry.path)
    elif entry.is_dir():
      left_out['images in folders inside class folders'] += sum(
          _suffix(name) in SUFFIXES
          for _, _, names in os.walk(entry.path) for name in names)
    else:
      left_out[f'files {_suffix(entry.name) or "without a suffix"}'] += 1
  return sorted(found)


def _notes(left_out):
  """('images beside ... (12)', ...) of what was counted at all."""
  return tuple(f'{what} ({count:,})' for what, count in sorted(left_out.items())
               if count)


def _deeper(root):
  """'; did you mean ...?' if the data set lies one folder further down."""
  for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
    if not _is_folder(entry):
      continue
    inside = [e for e in os.scandir(entry.path) if _is_folder(e)]
    if any(e.name.lower() in _TRAIN_NAMES or any(
        _suffix(name) in SUFFIXES for name in os.listdir(e.path))
           for e in inside):
      return f'; did you mean data_dir={entry.path}?'
  return ''


def file_split(files: Files, channels: int) -> splits.LazySplit:
  """Returns the lazy split of (paths, labels)."""
  paths, labels = files
  return splits.LazySplit(
      lambda i: splits.decode(paths[i], channels, paths[i]), labels,
      lambda i: splits.Stored(_name(paths[i]), paths[i]))


def _name(path):
  """CLASS/FILE, which does not depend on where the data set lies."""
  return '/'.join(pathlib.Path(path).parts[-2:])


def probe_channels(files: Files) -> int:
  """Returns 1 if 64 evenly spaced images are all gray, else 3."""
  paths, _ = files
  Image = splits.require('PIL.Image', 'reading a folder of images')
  for i in splits.spread(64, len(paths)):
    try:
      with Image.open(paths[i], formats=splits.FORMATS) as image:
        if not splits.is_gray(image.mode):
          return 3
    # What is damaged, and how, is said when it is decoded.
    except Exception:
      continue
  return 1
