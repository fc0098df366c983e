"""`rome-jax predict RUN IMAGES...`: what a trained network sees.

  rome-jax predict runs/pets cat.jpg dog.png
  rome-jax predict runs/pets photos/ --top=3 --csv=found.csv

Classifies image files, and all images in folders, with the network of the most
accurate retraining of a finished run. Images are prepared as the run's test
images were. Prints a line for each: file, class and probability. A mistake
gives one sentence and exit code 2.
"""

import csv
import io
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from rome_jax import cli, data, errors, files
from rome_jax.cli import flags
from rome_jax.cli import trained as trained_lib
from rome_jax.cli.trained import Trained
from rome_jax.config import checks
from rome_jax.data import folders, splits

_BATCH = 64


def images_of(paths: Sequence[str]) -> list[pathlib.Path]:
  """Image files, those in folders in the order of their names.

  Raises:
    UserError: nothing is there, or a folder has no images.
  """
  found: list[pathlib.Path] = []
  for text in paths:
    path = pathlib.Path(text)
    if path.is_dir():
      inside = sorted(p for p in path.rglob('*')
                      if p.suffix.lower() in folders.SUFFIXES and p.is_file())
      if not inside:
        raise errors.UserError(f'{path} has no images')
      found += inside
    elif path.exists():
      found.append(path)
    else:
      raise errors.UserError(f'{path} does not exist')
  return found


def predict(trained: Trained,
            images: Sequence[np.ndarray | str | os.PathLike[str]],
            ) -> np.ndarray:
  """Class probabilities of images, [N,classes] float32.

  Args:
    trained: of `rome_jax.load`.
    images: paths of image files, or uint8 arrays [h,w,C] of any size.

  Raises:
    UserError: a file is no readable image, or an array none of its kind.

  >>> import rome_jax as rj
  >>> images = [np.zeros((20, 30, 3), np.uint8)]
  >>> predict(rj.load(workdir), images).shape
  (1, 2)
  """
  network, variables, about = trained
  if isinstance(images, str | os.PathLike):
    raise errors.UserError(
        f'images={str(images)!r} must be a list of paths or arrays')
  prepare = data.make_transform(about.augment, about, train=False)

  @jax.jit
  def apply(batch):
    return jax.nn.softmax(network.apply(
        variables, batch, rngs={'noise': jax.random.key(0)}), axis=-1)

  found = []
  for start in range(0, len(images), _BATCH):
    batch = prepare([
        _checked(image, about.image_channels)
        if isinstance(image, np.ndarray) else _read(
            image, about.image_channels)
        for image in images[start:start + _BATCH]])
    filled = np.zeros((min(_BATCH, len(images)), *batch.shape[1:]),
                      np.float32)
    filled[:len(batch)] = batch
    found.append(np.asarray(apply(filled))[:len(batch)])
  classes = len(about.class_names)
  return np.concatenate(found) if found else np.zeros((0, classes), np.float32)


def _checked(image, channels):
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels:
    raise errors.UserError(
        f'an image has the shape {list(image.shape)} and type {image.dtype}; '
        f'it must be uint8 [height,width,{channels}]')
  return image


def _read(path, channels):
  try:
    return splits.decode(path, channels, str(path))
  except errors.UserError as error:
    # What follows is of data sets.
    raise errors.UserError(str(error).split(';')[0]) from None


def rows_of(trained: Trained, paths: Sequence[Any], probabilities: np.ndarray,
            top: int) -> list[tuple[str, str, float]]:
  """(file, class, probability) of the `top` classes of each image."""
  names = trained.about.class_names
  rows = []
  for path, row in zip(paths, probabilities):
    for place in np.argsort(-row, kind='stable')[:top]:
      rows.append((str(path), names[place] if names else str(place),
                   float(row[place])))
  return rows


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line (default: the process's); returns the exit code."""
  cli.make_output_safe()
  try:
    args = cli.parse(flags.predict(), sys.argv[1:] if argv is None else argv)
    paths = images_of(args.images)
    trained = trained_lib.of(args)
    rows = rows_of(trained, paths, predict(trained, paths), args.top)
    if args.csv:
      text = io.StringIO()
      csv.writer(text, lineterminator='\n').writerows(
          [('file', 'class', 'probability'), *rows])
      files.write_text(checks.local_path('--csv', args.csv), text.getvalue())
    for path, name, probability in rows:
      print(errors.printable(f'{path}: {name} {100 * probability:.2f}%'))
    return cli.printed()
  except errors.UserError as error:
    print(f'rome_jax: {error}', file=sys.stderr)
    return error.exit_code


if __name__ == '__main__':
  sys.exit(main())
