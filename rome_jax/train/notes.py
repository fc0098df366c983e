"""What a run notes of each phase that is done, so that it is not done again."""

import pathlib
from typing import Any

from rome_jax import files
from rome_jax.devices import hosts


def read(workdir: pathlib.Path, phase: str) -> Any:
  """The figures of a phase that is done; None if it is not.

  Args:
    workdir: folder of the run.
    phase: its name, which may have folders.
  """
  path = _path(workdir, phase)
  return hosts.from_first(
      lambda: files.read_json(path) if path.exists() else None)


def write(workdir: pathlib.Path, phase: str, figures: Any) -> Any:
  """Notes that a phase is done; returns its figures, as `read` would."""
  hosts.from_first(lambda: files.write_json(_path(workdir, phase), figures))
  return read(workdir, phase)


def _path(workdir, phase):
  return workdir / 'phases' / f'{phase}.json'
