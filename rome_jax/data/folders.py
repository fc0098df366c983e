"""Folders of image files, one folder per class."""

import os
import pathlib

import numpy as np

from rome_jax import errors
from rome_jax.data import splits

SUFFIXES = frozenset((
    '.jpg', '.jpeg', '.png', '.bmp', '.gif', '.webp', '.ppm', '.pgm', '.tif',
    '.tiff'))
_TEST_NAMES = ('test', 'val', 'validation')
Files = tuple[list[str], np.ndarray]  # paths, labels [n] int32


def open_folder(
    root: str | os.PathLike[str], *, need_train: bool = False,
    channels: int = 0,
) -> tuple[list[str], splits.LazySplit, splits.LazySplit | None, int]:
  """Finds the splits of a folder and lists their images.

  Args:
    root: a folder with train/ and test/ (or val/), each with a folder per
      class, or a folder of class folders.
    need_train: whether to refuse the second form.
    channels: 1 or 3; 0 finds out from some of the images.

  Returns:
    (classes, train, test, channels): sorted class names; two lazy splits, the
    second None for a folder of class folders; and 1 if every image looked at
    is gray, else 3.

  Raises:
    UserError: the folder does not exist, has no classes, has a class without
      images, or has a test class that train lacks.
  """
  root = pathlib.Path(root)
  if not root.is_dir():
    raise errors.UserError(f'data_dir={str(root)!r} is not a folder')
  if not (root / 'train').is_dir():
    if need_train:
      raise errors.UserError(
          f'{root} has no folder train; expected train/ and val/, each with a '
          'folder per class')
    classes = class_names(root)
    files = list_files(root, classes)
    channels = channels or probe_channels(files)
    return classes, file_split(files, channels), None, channels
  test = next((root / n for n in _TEST_NAMES if (root / n).is_dir()), None)
  if test is None:
    raise errors.UserError(
        f'{root} has a folder train but none of {", ".join(_TEST_NAMES)}')
  classes = class_names(root / 'train')
  extra = sorted(set(class_names(test)) - set(classes))
  if extra:
    raise errors.UserError(
        f'{test / extra[0]} is a class that {root / "train"} does not have')
  files = list_files(root / 'train', classes)
  test_files = list_files(test, [c for c in classes if (test / c).is_dir()],
                          classes)
  channels = channels or probe_channels(files)
  return (classes, file_split(files, channels),
          file_split(test_files, channels), channels)


def class_names(folder: str | os.PathLike[str]) -> list[str]:
  """Returns the sorted names of the subfolders.

  Raises:
    UserError: there are none.
  """
  names = sorted(entry.name for entry in os.scandir(folder)
                 if entry.is_dir() and not entry.name.startswith('.'))
  if not names:
    raise errors.UserError(
        f'{folder} has no folders; expected one folder of images per class')
  return names


def list_files(folder: str | os.PathLike[str], names: list[str],
               classes: list[str] | None = None) -> Files:
  """Lists the image files of some class folders, in a fixed order.

  Args:
    folder: the folder with the class folders.
    names: the class folders to read.
    classes: all classes, for the labels (default: names).

  Returns:
    (paths, labels [n] int32).
  """
  classes = classes or names
  paths, labels = [], []
  for name in names:
    found = sorted(
        entry.path for entry in os.scandir(pathlib.Path(folder) / name)
        if os.path.splitext(entry.name)[1].lower() in SUFFIXES
        and not entry.name.startswith('.'))
    if not found:
      raise errors.UserError(
          f'{pathlib.Path(folder) / name} holds no images; expected files '
          f'that end in one of {", ".join(sorted(SUFFIXES))}')
    paths += found
    labels += [classes.index(name)] * len(found)
  return paths, np.array(labels, np.int32)


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
      with Image.open(paths[i]) as image:
        if not splits.is_gray(image.mode):
          return 3
    except (OSError, SyntaxError, ValueError):
      splits.decode(paths[i], 3, paths[i])  # raises the right error
      return 3
  return 1
