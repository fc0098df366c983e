"""A comparison: arms and seeds, as a Python file describes them."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rome_jax import errors
from rome_jax.config import command_line


class Comparison(NamedTuple):
  """What `rome-jax compare` runs.

  Attributes:
    name: shown above the page.
    arms: {label: flags of `rome-jax run` in which arms differ, the config
      among them}.
    seeds: of each arm; arms are paired by seed.
    baseline: the label that all others are compared with; '': the first.
    rank: flags of `rome-jax rank`, by which each supernet ranks architectures
      after its run; empty: it does not.
    against: what would speak against the claim, written before the runs.

  >>> Comparison('two', {'a': ['--config=quickstart']}).seeds
  (0, 1, 2)
  """

  name: str
  arms: Mapping[str, Sequence[str]]
  seeds: Sequence[int] = (0, 1, 2)
  baseline: str = ''
  rank: Sequence[str] = ()
  against: str = ''


def load(text: str) -> Comparison:
  """The comparison of a file's `get_comparison()`.

  Args:
    text: PATH[:ARGUMENT], found as config files are.

  Raises:
    UserError: no such file or function, or a field is wrong.
  """
  path, argument = command_line.find(text)
  found = command_line.call(path, argument, 'get_comparison')
  if not isinstance(found, Comparison):
    raise errors.UserError(
        f'get_comparison() of {path} must return a rome_jax.config.Comparison, '
        f'not a {type(found).__name__}')
  _check(found, path)
  return found


def _check(found, path):
  if not isinstance(found.arms, Mapping) or not found.arms:
    raise errors.UserError(
        f'{path}: arms must be {{label: flags}} with at least one label')
  for label, flags in found.arms.items():
    if not isinstance(label, str):
      raise errors.UserError(f'{path}: the label {label!r} must be a text')
    _check_flags(flags, f'{path}: the flags of arm {label!r}')
  _check_flags(found.rank, f'{path}: rank={found.rank!r}')
  for name in ('name', 'against', 'baseline'):
    if not isinstance(getattr(found, name), str):
      raise errors.UserError(
          f'{path}: {name}={getattr(found, name)!r} must be a text')
  names = [slug(label) for label in found.arms]
  if twice := [name for name in names if names.count(name) > 1]:
    raise errors.UserError(
        f'{path}: two arms would share the folder {twice[0]}')
  seeds = found.seeds if isinstance(found.seeds, list | tuple) else ()
  if not seeds or len(set(seeds)) < len(seeds) or not all(
      type(seed) is int and 0 <= seed < 2**32 for seed in seeds):
    raise errors.UserError(
        f'{path}: seeds={found.seeds!r} must be a list of whole numbers of at '
        'least 0, none twice')
  if found.baseline and found.baseline not in found.arms:
    raise errors.UserError(
        f'{path}: baseline={found.baseline!r} must be one of '
        f'{", ".join(found.arms)}'
        f'{errors.near_miss(found.baseline, found.arms)}')


def _check_flags(flags, what):
  if not isinstance(flags, list | tuple) or not all(
      isinstance(flag, str) for flag in flags):
    raise errors.UserError(f'{what} must be a list of texts')


def slug(label: str) -> str:
  """The folder of an arm.

  >>> slug('ROME-v2, K = 1')
  'ROME-v2_K_1'
  >>> slug('..')
  '_..'
  """
  name = re.sub(r'[^\w.+-]+', '_', label).strip('_')
  return name if name.strip('.') else f'_{name}'  # .. is another folder
