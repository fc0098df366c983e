"""What a run notes of each phase that is done, so that it is not done again."""

import pathlib
from typing import Any

from rome_jax import errors, files
from rome_jax.devices import hosts


def read(workdir: pathlib.Path, phase: str) -> Any:
  """The figures of a phase that is done; None if it is not.

  Args:
    workdir: folder of the run.
    phase: its name, which may have folders.
  """
  path = _path(workdir, phase)

  def find():
    if not path.exists():
      return None
    figures = files.read_json(path)
    if not isinstance(figures, dict):
      raise errors.UserError(
          f'{path} does not hold the figures of a phase; restore it')
    return figures

  return hosts.from_first(find)


def write(workdir: pathlib.Path, phase: str, figures: Any) -> Any:
  """Notes that a phase is done; returns its figures, as `read` would."""
  hosts.from_first(lambda: files.write_json(_path(workdir, phase), figures))
  return read(workdir, phase)


def _path(workdir, phase):
  return workdir / 'phases' / f'{phase}.json'


def retraining(workdir: pathlib.Path, name: str | None = None,
               by: str = 'test_accuracy') -> dict[str, Any]:
  """What a run noted of one finished retraining.

  Args:
    workdir: folder of the run.
    name: 'derived-0', say; None: the most accurate of its own genotype.
    by: the figure that says so; a retraining without it does not count.

  Raises:
    UserError: there is none of that name.
  """
  kind = 'finished retraining'
  with files.as_written(workdir / 'phases'):
    found = [files.read_json(path)
             for path in sorted((workdir / 'phases').glob('*.json'))
             if path.stem != 'search']
    if by != 'test_accuracy':
      found = [note for note in found if by in note]
      kind = 'retraining with config.retrain.keep_best=true'
    known = ', '.join(note['name'] for note in found)
    if name is None:
      found = [note for note in found if note['kind'] != 'random']
      found.sort(key=lambda note: -(note[by] or 0))
    else:
      found = [note for note in found if note['name'] == name]
  if not found:
    raise errors.UserError(
        f'{workdir} holds no {kind}'
        + (f' {name!r}; there are {known or "none"}' if name else ''))
  return found[0]
