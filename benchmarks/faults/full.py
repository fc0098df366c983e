"""A command whose disk is full from one moment on.

  python -m benchmarks.faults.full MOMENT BALLAST MODULE [FLAG...]

MOMENT is the name of a file: the disk that BALLAST lies on is filled before
it is written; or 'arrays' (of a checkpoint), 'line' (of metrics).
"""

import importlib
import os
import pathlib
import sys

from rome_jax import files
from rome_jax.train import checkpoint, metrics


def fill(ballast: pathlib.Path) -> None:
  """Writes until the disk is full."""
  with open(ballast, 'ab', buffering=0) as file:
    for size in (2**20, 2**12, 1):
      try:
        while True:
          file.write(os.urandom(1) * size)
      except OSError:
        continue


def _before(owner, name, ballast, at, after=0):
  inner = getattr(owner, name)
  seen = []

  def outer(*args, **kwargs):
    if at(*args) and (seen.append(1) or len(seen) > after) and (
        not ballast.exists()):
      fill(ballast)
    return inner(*args, **kwargs)

  setattr(owner, name, outer)


def main(moment: str, ballast: str, module: str, *flags: str) -> int:
  """Runs the command; returns its exit code."""
  place = pathlib.Path(ballast)
  if moment == 'arrays':
    _before(checkpoint, '_write_folder', place, lambda *args: True, after=1)
  elif moment == 'line':
    # The page of the file that holds the first lines is there already.
    _before(metrics.MetricsWriter, 'write', place, lambda *args: True, after=1)
  else:
    _before(files, 'write_bytes', place,
            lambda path, data: pathlib.Path(path).name == moment)
  return importlib.import_module(module).main(list(flags))


if __name__ == '__main__':
  sys.exit(main(*sys.argv[1:]))
