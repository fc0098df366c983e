"""What the fields of a config ask of each other, and of a workdir."""

import json
import math
import os
import pathlib
import re
import sys
from typing import Any

from ml_collections import ConfigDict

from rome_jax import errors, families, files, spaces
from rome_jax.config import fields
from rome_jax.methods import table
from rome_jax.methods.method import Stages, no_noise
from rome_jax.train import diagnostics, plans, recipes


def from_json(value: Any) -> ConfigDict:
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


def validate(config: ConfigDict) -> None:
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


def check_value(name: str, value: Any, field: fields.Field) -> None:
  """Checks one value against its row of the table.

  Raises:
    UserError: it has another type or is not allowed.
  """
  kind = type(field.default)
  if type(value) is not kind:
    raise errors.UserError(
        f'config.{name}={_shown(value)} must be {fields.KINDS[kind]}')
  choices = field.choices and field.choices()
  if choices and value not in choices:
    raise errors.UserError(
        f'config.{name}={value!r} must be one of {", ".join(choices)}'
        f'{errors.near_miss(value, choices)}')
  if kind in (int, float) and not _inside(value, field):
    number = fields.KINDS[kind] if _finite(value) else 'a finite number'
    raise errors.UserError(
        f'config.{name}={_shown(value)} must be {number} {_range(field)}')
  if name == 'dataset' and not value:
    raise errors.UserError(
        "config.dataset='' must name a data set, for example digits")


def _shown(value):
  """A value as a message shows it; Python prints no endless integer."""
  if type(value) is int and abs(value) >= 10**30:
    return f'a number of {value.bit_length()} bits'
  return repr(value)


def _finite(value):
  # An integer may be too large for math.isfinite.
  return isinstance(value, int) or math.isfinite(value)


def _inside(value, field):
  """Whether a number is finite and in the field's range."""
  if not _finite(value):
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
  searched, method = space(config), table.METHODS[config.method]
  if wrong := method.check(method, searched, search):
    raise errors.UserError(f'config.{wrong}')
  recipe = recipes.SearchRecipe(**search.to_dict())
  plans.check(searched, method, recipe)
  _check_drops(searched, method, recipe)
  if recipe.evaluator != 'auto':
    families.table.check_evaluator(
        searched, recipe.evaluator, 'config.search')
  _check_laws(config)
  if search.scalar_gates and (
      config.method != table.gdas.name or searched.sites != 'edges'):
    raise errors.UserError(
        "config.search.scalar_gates must be false except with method='gdas' "
        'in a space whose edges hold the operations')
  if search.eigenvalue_every and (why := diagnostics.no_eigenvalue(method)):
    raise errors.UserError(
        f'config.search.eigenvalue_every={search.eigenvalue_every} must be 0 '
        f'with config.method={config.method!r}, {why}')
  if method.derive is None and not search.candidates:
    raise errors.UserError(
        'config.search.candidates=0 must be at least 1 with '
        f'config.method={config.method!r}, which chooses among them')
  operations = searched.num_choices
  if search.sampler == 'strict_fair' and method.noise is no_noise:
    raise errors.UserError(
        "config.search.sampler='strict_fair' must be 'iid' with "
        f'config.method={config.method!r}, which samples nothing')
  if isinstance(method.plan, Stages) and search.skip_dropout:
    raise errors.UserError(
        f'config.search.skip_dropout={search.skip_dropout} must be 0 with '
        f'config.method={config.method!r}; set '
        'config.search.stage_skip_dropout')
  if search.sampler == 'strict_fair' and search.k % operations:
    raise errors.UserError(
        f'config.search.k={search.k} must be a multiple of the {operations} '
        f'operations of {config.space} with '
        "config.search.sampler='strict_fair'")
  if search.fraction_theta + search.fraction_alpha > 1 + 1e-9:
    raise errors.UserError(
        f'config.search.fraction_theta={search.fraction_theta} and '
        f'fraction_alpha={search.fraction_alpha} must add up to at most 1')
  if search.epochs and search.alpha_start >= search.epochs:
    raise errors.UserError(
        f'config.search.alpha_start={search.alpha_start} must be below '
        f'config.search.epochs={search.epochs}, or alpha never moves')


def _check_drops(searched, method, recipe):
  """Refuses to leave out what a supernet cannot."""
  if recipe.cutout_ramp and not recipe.cutout:
    raise errors.UserError(
        'config.search.cutout_ramp must be false with config.search.cutout=0')
  skip = max((r.skip_dropout for r in plans.supernets(method, recipe)),
             default=0)
  staged = isinstance(method.plan, Stages)
  named = 'stage_skip_dropout' if staged else 'skip_dropout'
  for name, rate in (('drop_path', recipe.drop_path), (named, skip)):
    if rate and not families.get(searched).drops:
      raise errors.UserError(
          f'config.search.{name}={getattr(recipe, name)!r} must be 0 with '
          f'space={searched.name}, whose supernets leave out nothing')
  if skip and method.partial > 1:
    raise errors.UserError(
        f'config.search.{named}={getattr(recipe, named)!r} must be 0 with '
        f'method={method.name!r}, whose identities see only a part of the '
        'channels')


def _check_laws(config):
  """Fields that PA&DA's rows alone read."""
  search, row = config.search, table.METHODS[config.method]
  by_path = config.method in ('pada', 'pa')
  for name, usual in (('path_law', 'shared'), ('path_delta', 0.)):
    if getattr(search, name) != usual and not by_path:
      raise errors.UserError(
          f'config.search.{name}={getattr(search, name)!r} must be {usual!r} '
          f"except with method='pada' or 'pa', not {config.method!r}")
  if search.unbiased and row.extra.draw is None:
    raise errors.UserError(
        'config.search.unbiased must be false except with a method that draws '
        f"images by weight, such as 'pada', not {config.method!r}")


def samples(config: ConfigDict) -> int:
  """K of a search; config.search.k=0 is the most operations of a site."""
  return config.search.k or space(config).num_choices


def _check_retrain(config):
  retrain = config.retrain
  if retrain.init_from and not config.genotype:
    raise errors.UserError(
        f'config.retrain.init_from={retrain.init_from} needs config.genotype, '
        f'the architecture of that network: {retrain.init_from}/genotype.json')
  if retrain.init_from and (
      retrain.random_architectures or not retrain.seeds):
    name = 'random_architectures' if retrain.random_architectures else 'seeds'
    raise errors.UserError(
        f'config.retrain.{name}={retrain[name]} must be '
        f'{"at least 1" if name == "seeds" else 0} with '
        'config.retrain.init_from, which is of one architecture')
  if retrain.epochs and retrain.warmup_epochs >= retrain.epochs:
    raise errors.UserError(
        f'config.retrain.warmup_epochs={retrain.warmup_epochs} must be '
        f'below config.retrain.epochs={retrain.epochs}')


def space(config: ConfigDict) -> spaces.Space:
  """The search space of a config.

  Looked up when it is needed, not in the table: users add rows to
  `spaces.SPACES`.

  Raises:
    UserError: no such space, or it cannot be changed as asked.
  """
  return spaces.get_space(config.space, in_degree=config.in_degree,
                          drop_none=config.drop_none)


def apply_recipe(config: ConfigDict, before: str | None = None) -> None:
  """Sets the fields in which the paper of config.method has values of its own.

  A method's row lists them (`Method.recipe`). Nothing else does this, so what
  config.json says is all there is to know: call it after setting
  `config.method`, before the fields that are to differ from the paper's.

  Args:
    config: changed in place.
    before: the method whose recipe the config has had; fields that only that
      one sets return to their defaults.

  Raises:
    UserError: config.method is unknown, or its recipe has a bad field.
  """
  check_value('method', config.method, fields.FIELDS['method'])
  old = table.METHODS[before].recipe if before else {}
  recipe = {name: fields.FIELDS[name].default for name in old}
  for name, value in (recipe | table.METHODS[config.method].recipe).items():
    set_field(config, name, value)


def set_field(config: ConfigDict, name: str, value: Any) -> None:
  """Sets one field, by its full name, once the value is found right.

  Raises:
    UserError: no such field, or a value that is not allowed.
  """
  fields.check_known(name)
  field = fields.FIELDS[name]
  if isinstance(field.default, float) and type(value) is int:
    value = _as_float(value)
  check_value(name, value, field)
  section, _, last = name.rpartition('.')
  setattr(config[section] if section else config, last, value)


def local_path(name: str, text: str) -> str:
  """A path with its `~` replaced by the home folder.

  Args:
    name: the flag or field, for the message.
    text: its value.

  Raises:
    UserError: a URL, nothing at all, or the home folder is unknown.

  >>> local_path('--workdir', 'runs/c10')
  'runs/c10'
  """
  if not text:
    raise errors.UserError(f'{name}= is empty; give a path')
  if re.match(r'\w[\w+.-]*://', text):
    raise errors.UserError(
        f'{name}={text} must be a path on this machine or a mounted disk, not '
        'a URL')
  path = os.path.expanduser(text)
  if text.startswith('~') and path == text and not os.path.exists(text):
    raise errors.UserError(
        f'{name}={text} begins with ~, but no home folder is known for it; '
        'set HOME or give the whole path')
  return path


def _as_float(value):
  try:
    return float(value)
  except OverflowError:
    return math.inf if value > 0 else -math.inf


def check_workdir(workdir: str | os.PathLike, config: ConfigDict) -> None:
  """Makes the folder a run's own, or checks that it already is.

  Writes `config.json` if there is none. If there is one it must say the same,
  except for `FREE_FIELDS`, whose new values are written.

  Args:
    workdir: folder, made if it does not exist.
    config: a validated config.

  Raises:
    UserError: the folder holds a run of version 0.1.0 or of another config
      (the message names each field that differs), or it cannot be used.
  """
  theirs = _checked(workdir, config)
  ours = fields.to_json(config)
  if theirs is not None:
    if not os.access(workdir, os.W_OK | os.X_OK):
      raise errors.UserError(f'workdir {workdir} is not writable')
    if theirs == ours:
      return
  files.write_json(pathlib.Path(workdir, fields.FILENAME), ours)


def check_same(workdir: str | os.PathLike, config: ConfigDict) -> None:
  """Checks that a folder holds no run of another config; writes nothing.

  Raises:
    UserError: as `check_workdir`.
  """
  _checked(workdir, config)


def _checked(workdir, config):
  """The JSON of the config that a folder began with, which agrees; or None."""
  _check_encoding(workdir)
  path = pathlib.Path(workdir, fields.FILENAME)
  try:
    exists = path.exists()
  except OSError as error:
    raise errors.UserError(
        f'cannot use workdir {workdir}: {error.strerror}') from error
  if exists:
    theirs = files.read_json(path)
    _check_same(path, theirs, fields.to_json(config))
    return theirs
  for name in 'checkpoints', 'phases':
    if os.path.exists(os.path.join(workdir, name)):
      raise errors.UserError(
          f'{workdir} holds {name} of a run, but not its {fields.FILENAME}; '
          'put that file back or use another --workdir')
  return None


def _check_encoding(workdir):
  """Refuses names that the libraries below cannot take as text."""
  try:
    os.path.abspath(workdir).encode()
  except UnicodeEncodeError:
    raise errors.UserError(
        f'workdir {workdir} has letters outside the encoding '
        f'{sys.getfilesystemencoding()}; set PYTHONUTF8=1 or use another '
        '--workdir') from None


def _check_same(path, theirs, ours):
  if not isinstance(theirs, dict):
    raise errors.UserError(f'{path} holds no config')
  if any(fields.renamed(name) for name in fields.flatten(theirs)):
    raise errors.UserError(
        f'{path.parent} holds a run of rome_jax 0.1.0, which this version '
        'cannot continue; finish it with that version or use another '
        '--workdir')
  if not set(fields.flatten(theirs)) & set(fields.FIELDS) - _COMMON:
    raise errors.UserError(
        f'{path} is not the config of a rome_jax run; use another --workdir')
  # As JSON texts: no JSON text reads `absent`.
  # A field that is younger than the run had its default there.
  usual = {name: field.default for name, field in fields.FIELDS.items()}
  old, new = ({name: json.dumps(value)
               for name, value in (usual | fields.flatten(c)).items()}
              for c in (theirs, ours))
  differing = [
      f'{name} ({old.get(name, "absent")} there, '
      f'{new.get(name, "absent")} now)'
      for name in {**new, **old}
      if name not in fields.FREE_FIELDS and old.get(name) != new.get(name)]
  if differing:
    more = len(differing) - _MOST_SHOWN
    rest = f' and {more} more' if more > 0 else ''
    raise errors.UserError(
        f'{path.parent} holds a run of another config: '
        f'{", ".join(differing[:_MOST_SHOWN])}{rest}; use another --workdir')


# Fields that the configs of other programs have too.
_COMMON = {'name', 'seed', 'method', 'dataset', 'data_dir', 'image_size'}
_MOST_SHOWN = 8  # of the fields that differ
