"""What the fields of a config ask of each other, and of a workdir."""

import json
import math
import os
import pathlib

import ml_collections

from rome_jax import errors, files, spaces
from rome_jax.config import fields


def from_json(value) -> ml_collections.ConfigDict:
  """The validated config of a `to_json` object; absent fields: defaults.

  Raises:
    UserError: no such object, an unknown field or a bad value.
  """
  if not isinstance(value, dict):
    raise errors.UserError(
        f'a config is a JSON object, not a {type(value).__name__}')
  config = fields.defaults()
  for name, item in fields.flatten(value).items():
    set_field(config, name, item)
  validate(config)
  return config


def validate(config) -> None:
  """Checks every field, its type too, and what fields ask of each other.

  Raises:
    UserError: names the first bad field, its value and what is allowed.
  """
  values = fields.flatten(fields.to_json(config))
  for name in values:
    fields.check_known(name)
  for name, field in fields.FIELDS.items():
    if name not in values:
      raise errors.UserError(
          f'config.{name} is missing; start from rome_jax.config.defaults()')
    check_value(name, values[name], field)
  _check_search(config)
  _check_retrain(config)
  for name in ('search', 'retrain'):
    size, parts = config[name].batch_size, config[name].accumulate
    if size % parts:
      raise errors.UserError(
          f'config.{name}.batch_size={size} must be a multiple of '
          f'config.{name}.accumulate={parts}')


def check_value(name, value, field):
  kind = type(field.default)
  if type(value) is not kind:
    raise errors.UserError(
        f'config.{name}={value!r} must be {fields.KINDS[kind]}')
  if field.choices and value not in field.choices:
    raise errors.UserError(
        f'config.{name}={value!r} must be one of {", ".join(field.choices)}'
        f'{errors.near_miss(value, field.choices)}')
  if kind in (int, float) and not _inside(value, field):
    number = fields.KINDS[kind] if math.isfinite(value) else 'a finite number'
    raise errors.UserError(
        f'config.{name}={value!r} must be {number} {_range(field)}')
  if name == 'dataset' and not value:
    raise errors.UserError(
        "config.dataset='' must name a data set, for example digits")


def _inside(value, field):
  """Whether a number is finite and in the field's range."""
  if not math.isfinite(value):
    return False
  low = -math.inf if field.low is None else field.low
  high = math.inf if field.high is None else field.high
  return (low < value if field.low_open else low <= value) and (
      value < high if field.high_open else value <= high)


def _range(field):
  """The words for what `_inside` accepts."""
  low = 'above' if field.low_open else 'at least'
  high = 'below' if field.high_open else 'at most'
  parts = []
  if field.low is not None:
    parts.append(f'{low} {field.low}')
  if field.high is not None:
    parts.append(f'{high} {field.high}')
  return ' and '.join(parts)


def _check_search(config):
  search = config.search
  if config.method == 'gdas' and search.k != 1:
    raise errors.UserError(
        f"config.search.k={search.k} must be 1 with config.method='gdas', "
        'which samples one architecture a step')
  searched = space(config)
  if config.method == 'gdas' and searched.absent and searched.has_topology:
    raise errors.UserError(
        f"config.method='gdas' needs every edge, but space={config.space} "
        f'keeps {searched.in_degrees} of a node\'s (config.in_degree='
        f'{config.in_degree})')
  operations = searched.num_choices
  fair = all((searched.choices(t) >= 0).all() for t in searched.cell_types)
  if search.sampler == 'strict_fair' and not fair:
    raise errors.UserError(
        "config.search.sampler='strict_fair' must be 'iid' with "
        f'space={config.space}, whose edges have different numbers of '
        'operations')
  if search.sampler == 'strict_fair' and search.k % operations:
    raise errors.UserError(
        f'config.search.k={search.k} must be a multiple of the {operations} '
        f'operations of {config.space} with '
        "config.search.sampler='strict_fair'")
  if search.fraction_theta + search.fraction_alpha > 1 + 1e-9:
    raise errors.UserError(
        f'config.search.fraction_theta={search.fraction_theta} and '
        f'fraction_alpha={search.fraction_alpha} must add up to at most 1')


def _check_retrain(config):
  retrain = config.retrain
  if retrain.epochs and retrain.warmup_epochs >= retrain.epochs:
    raise errors.UserError(
        f'config.retrain.warmup_epochs={retrain.warmup_epochs} must be '
        f'below config.retrain.epochs={retrain.epochs}')


def space(config) -> spaces.Space:
  """The search space of a config.

  Looked up when it is needed, not in the table: users add rows to
  `spaces.SPACES`.

  Raises:
    UserError: no such space, or it cannot be changed as asked.
  """
  return spaces.get_space(config.space, in_degree=config.in_degree,
                          drop_none=config.drop_none)


def set_field(config, name, value):
  fields.check_known(name)
  field = fields.FIELDS[name]
  if isinstance(field.default, float) and type(value) is int:
    value = float(value)
  check_value(name, value, field)
  section, _, last = name.rpartition('.')
  setattr(config[section] if section else config, last, value)


def check_workdir(workdir, config) -> None:
  """Makes the folder a run's own, or sees that it is this run's already.

  Writes `config.json` where there is none. Where there is one it must say
  the same, but for `FREE_FIELDS`, whose new values are written.

  Args:
    workdir: folder, made if it does not exist.
    config: a validated config.

  Raises:
    UserError: the folder holds a run of another config (the message names
      each field that differs), or it cannot be used.
  """
  path = pathlib.Path(workdir, fields.FILENAME)
  ours = fields.to_json(config)
  try:
    exists = path.exists()
  except OSError as error:
    raise errors.UserError(
        f'cannot use workdir {workdir}: {error.strerror}') from error
  if exists:
    theirs = files.read_json(path)
    _check_same(path, theirs, ours)
    if not os.access(workdir, os.W_OK | os.X_OK):
      raise errors.UserError(f'workdir {workdir} is not writable')
    if theirs == ours:
      return
  files.write_json(path, ours)


def _check_same(path, theirs, ours):
  if not isinstance(theirs, dict):
    raise errors.UserError(f'{path} holds no config')
  # As JSON texts, which the word absent is not.
  old, new = ({name: json.dumps(value)
               for name, value in fields.flatten(c).items()}
              for c in (theirs, ours))
  differing = [
      f'{name} ({old.get(name, "absent")} there, '
      f'{new.get(name, "absent")} now)'
      for name in {**new, **old}
      if name not in fields.FREE_FIELDS and old.get(name) != new.get(name)]
  if differing:
    raise errors.UserError(
        f'{path.parent} holds a run of another config: '
        f'{", ".join(differing)}; use another --workdir')
