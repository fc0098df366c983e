"""The configuration of a run: its fields, its checks, its command line.

One table holds every field: default, what is allowed, what it means. The
defaults, the checks, `--help` and the type of `--config.field=value` are all
read from it. Sources: DARTS is Liu et al., ICLR 2019, and its code; ROME is
Wang et al., ICCV 2023. Where ROME's text is silent the meaning says
"unstated".
"""

import dataclasses
import difflib
import inspect
import json
import math
import os
import pathlib
import re
import traceback
import types
from typing import Any, NamedTuple

import ml_collections

from rome_jax import errors, files, spaces

FILENAME = 'config.json'
METHODS = ('rome_v1', 'rome_v2', 'gdas')
DTYPES = ('float32', 'bfloat16')
AUGMENTATIONS = ('none', 'shift', 'cifar', 'svhn', 'imagenet')

# What may change between the two starts of one run: nothing that a result
# depends on.
FREE_FIELDS = (
    'name', 'log_every', 'checkpoint_every', 'keep_checkpoints',
    'compilation_cache', 'data_dir', 'mesh.data', 'mesh.sample')


@dataclasses.dataclass(frozen=True)
class Field:
  """One row of the table.

  Attributes:
    default: the value, whose type is the field's type.
    meaning: what it is, with unit and source.
    low: the least number allowed, or None.
    high: the largest number allowed, or None.
    low_open: whether `low` itself is forbidden.
    high_open: whether `high` itself is forbidden.
    choices: the values allowed, or () for any.
  """

  default: Any
  meaning: str
  low: float | None = None
  high: float | None = None
  low_open: bool = False
  high_open: bool = False
  choices: tuple[str, ...] = ()


def _choice(default, meaning, choices):
  return Field(default, meaning, choices=choices)


def _at_least(low, default, meaning):
  return Field(default, meaning, low=low)


def _positive(default, meaning):
  return Field(default, meaning, low=0, low_open=True)


def _below_one(default, meaning):
  return Field(default, meaning, low=0, high=1, high_open=True)


def _share(default, meaning):
  return Field(default, meaning, low=0, low_open=True, high=1)


_TOP = {
    'name': Field('', 'a name of your own for the run; only shown'),
    'seed': Field(0, 'every random number of the run follows from it', 0,
                  2**32 - 1),
    'method': _choice(
        'rome_v2', 'how architectures are sampled and derived: pairs of edges '
        '(ROME-v1, Eq. 10-14), Gumbel-Top2 edges (ROME-v2, Eq. 15-17; the '
        "paper's default), all edges active (GDAS)", METHODS),
    'space': Field('s0', 'search space, a name of rome_jax.spaces.SPACES'),
    'in_degree': _at_least(
        0, 0, 'edges that a node keeps; 0: as the space says. ROME samples '
        'topologies of NAS-Bench-201 with 2 and drop_none'),
    'drop_none': Field(
        False, 'leave the operation none out of the space; then S3 is S2, and '
        'in NAS-Bench-201 only in_degree leaves edges out. (S3 searches it '
        'but never derives it)'),
    'dataset': Field(
        'digits', 'digits, cifar10, cifar100, svhn, mnist, fashion_mnist, '
        'imagenet, folder, npz or tfds:NAME; its files are under data_dir'),
    'data_dir': Field('', "folder of the data set's files"),
    'image_size': _at_least(
        0, 0, 'side in pixels to which images are brought; 0: as they are'),
    'test_fraction': Field(
        .2, 'share of your own data that is held out for the test where it '
        'brings no test split', low=0, high=1, low_open=True,
        high_open=True),
    'stem': _choice(
        'auto', "first layers: 'cifar' keeps the resolution, 'imagenet' "
        "divides it by 8, 'auto' is 'imagenet' from 128 pixels",
        ('auto', 'cifar', 'imagenet')),
    'genotype': Field(
        '', 'path or published name of a genotype, or a string, code or index '
        'of NAS-Bench-201: no search, only its retraining'),
    'log_every': _at_least(1, 50, 'steps between two lines of metrics'),
    'checkpoint_every': _at_least(1, 500, 'steps between two checkpoints'),
    'keep_checkpoints': _at_least(
        1, 2, 'checkpoints that stay; with 1 there is none to fall back to'),
    'compilation_cache': Field(
        'auto', "folder of compiled programs; 'auto': one of the user's; "
        'empty: none'),
}

_DTYPE = (
    'dtype of activations and convolutions; weights, statistics of BatchNorm, '
    'losses and optimiser are float32 in any case')
_ACCUMULATE = (
    'parts of a batch, evaluated one after another in the memory of one; '
    'their gradients are averaged, and the statistics of BatchNorm are those '
    'of a part')

_SEARCH = {
    'cells': _at_least(
        1, 8, 'cells of the supernet, reductions at 1/3 and 2/3 (DARTS)'),
    'channels': _at_least(1, 16, 'channels of the first cell (DARTS)'),
    'epochs': _at_least(
        0, 50, 'passes over the theta half; ROME keeps K x epochs near 350'),
    'max_steps': _at_least(0, 0, 'upper limit of the steps; 0: none'),
    'batch_size': _at_least(
        1, 64, 'images of one step, shared by its K samples (ROME, memory '
        'table)'),
    'k': _at_least(
        1, 7, 'K, architectures sampled a step (Algorithm 1); 1 in GDAS'),
    'parallel': _choice(
        'auto', "the K samples one after another in the memory of one "
        "('scan') or batched ('vmap'); 'auto': as the device and its memory "
        "suggest", ('auto', 'scan', 'vmap')),
    'dtype': _choice('float32', _DTYPE, DTYPES),
    'accumulate': _at_least(1, 1, _ACCUMULATE),
    'sampler': _choice(
        'iid', "theta's samples: independent (Algorithm 1), or each "
        'operation given to each edge equally often (FairNAS), sampled or '
        'not', ('iid', 'strict_fair')),
    'order': _choice(
        'alpha_first', 'what a step updates first: alpha and beta '
        '(Algorithm 1) or theta (GDAS)', ('alpha_first', 'theta_first')),
    'theta_reduce': _choice(
        'sum', "the K gradients of theta (Eq. 21: sum)", ('sum', 'mean')),
    'alpha_reduce': _choice(
        'mean', 'the K gradients of alpha and beta (Eq. 20: mean)',
        ('sum', 'mean')),
    'tau_start': _positive(
        10., 'temperature of the relaxation at first (GDAS; unstated)'),
    'tau_end': _positive(.1, 'temperature at last (GDAS; unstated)'),
    'tau_schedule': _choice(
        'linear', "from tau_start to tau_end; 'constant' stays at tau_start",
        ('linear', 'exponential', 'constant')),
    'tau_per': _choice(
        'epoch', 'how often tau changes (GDAS: epoch)', ('epoch', 'step')),
    'lr': _positive(.05, "theta's learning rate at first (ROME; DARTS .025)"),
    'lr_end': _at_least(0, .001, 'learning rate at last, by a cosine (DARTS)'),
    'lr_per': _choice(
        'epoch', 'how often the learning rate changes (DARTS: epoch)',
        ('epoch', 'step')),
    'momentum': _below_one(.9, "of theta's SGD (DARTS)"),
    'nesterov': Field(False, 'Nesterov momentum (GDAS: yes, DARTS: no)'),
    'weight_decay': _at_least(
        0, 3e-4, "L2 of theta, added to the gradient (DARTS)"),
    'clip_norm': _positive(
        5., "largest global norm of theta's reduced gradient (DARTS)"),
    'alpha_lr': _positive(3e-4, "Adam's rate for alpha and beta (DARTS)"),
    'alpha_b1': _below_one(.5, "Adam's b1 (DARTS)"),
    'alpha_b2': _below_one(.999, "Adam's b2 (DARTS)"),
    'alpha_weight_decay': _at_least(
        0, 1e-3, 'L2 of alpha and beta, added to the gradient (DARTS)'),
    'alpha_init': _at_least(
        0, 1e-3, 'standard deviation of alpha at first (DARTS)'),
    'beta_init': _at_least(
        0, 1e-3, 'standard deviation of beta at first (unstated)'),
    'fraction_theta': _share(
        .5, 'share of each class of the training images for theta (DARTS)'),
    'fraction_alpha': _share(
        .5, 'share for alpha and beta, disjoint from the other (DARTS)'),
    'augment': _choice('cifar', 'augmentation', AUGMENTATIONS),
    'cutout': _at_least(
        0, 0, 'side in pixels of the square set to zero; 0: none (DARTS)'),
}

_EVALUATE = {
    'cells': _at_least(1, 20, 'cells of the discrete network (DARTS)'),
    'channels': _at_least(1, 36, 'channels of the first cell (DARTS)'),
    'epochs': _at_least(0, 600, 'passes over the training images (DARTS)'),
    'batch_size': _at_least(1, 96, 'images of one step (DARTS)'),
    'dtype': _choice('float32', _DTYPE, DTYPES),
    'accumulate': _at_least(1, 1, _ACCUMULATE),
    'remat': _choice(
        'none', "what is computed again in the backward pass to save memory: "
        "nothing, or the inside of each cell ('cells'); the results are the "
        'same', ('none', 'cells')),
    'lr': _positive(.025, "SGD's largest learning rate (DARTS)"),
    'lr_end': _at_least(0, 0., 'learning rate at last (DARTS)'),
    'lr_schedule': _choice(
        'cosine', 'way from lr to lr_end after the warm-up (DARTS: cosine)',
        ('cosine', 'linear')),
    'warmup_epochs': _at_least(
        0, 0, 'epochs in which the learning rate rises from 0 to lr'),
    'momentum': _below_one(.9, 'of SGD (DARTS)'),
    'nesterov': Field(False, 'Nesterov momentum (DARTS: no)'),
    'weight_decay': _at_least(0, 3e-4, 'L2, added to the gradient (DARTS)'),
    'clip_norm': _positive(5., 'largest global norm of the gradient (DARTS)'),
    'drop_path': _below_one(
        .2, 'chance to drop a path at the end, rising from 0 linearly over '
        'the epochs (DARTS .2, P-DARTS .3)'),
    'auxiliary': Field(
        True, 'whether a second classifier hangs at 2/3 of the depth '
        '(DARTS)'),
    'auxiliary_weight': _at_least(0, .4, 'weight of its loss (DARTS)'),
    'cutout': _at_least(
        0, 16, 'side in pixels of the square set to zero; 0: none (DARTS)'),
    'label_smoothing': _below_one(0., 'share spread evenly over all classes'),
    'augment': _choice('cifar', 'augmentation', AUGMENTATIONS),
    'seeds': _at_least(
        0, 1, 'retrainings from scratch, whose mean and spread are shown; '
        '0: none'),
    'random_architectures': _at_least(
        0, 0, 'random genotypes of the space retrained alike, to compare'),
    'eval_every': _at_least(1, 1, 'epochs between two tests'),
    'eval_batch_size': _at_least(
        0, 0, 'images of one test batch; 0: as batch_size'),
}

_MESH = {
    'data': _at_least(
        0, 0, 'parts into which a batch is cut, a device each; 0: as many as '
        'the devices give'),
    'sample': _at_least(
        1, 1, 'groups of devices, each with its share of the K architectures '
        'of a search'),
}

SECTIONS = {'search': _SEARCH, 'evaluate': _EVALUATE, 'mesh': _MESH}
# {'seed': Field, ..., 'search.cells': Field, ...}
FIELDS = {
    **_TOP, **{f'{section}.{name}': field
               for section, fields in SECTIONS.items()
               for name, field in fields.items()}}


def defaults() -> ml_collections.ConfigDict:
  """Every field at its default, locked: unknown names are errors."""
  config = {name: field.default for name, field in _TOP.items()}
  for section, fields in SECTIONS.items():
    config[section] = {name: field.default for name, field in fields.items()}
  return ml_collections.ConfigDict(config).lock()


def to_json(config) -> dict:
  """Every field as a JSON object; sections are objects in it."""
  return config.to_dict()


def from_json(value) -> ml_collections.ConfigDict:
  """The validated config of a `to_json` object; absent fields: defaults.

  Raises:
    UserError: no such object, an unknown field or a bad value.
  """
  if not isinstance(value, dict):
    raise errors.UserError(
        f'a config is a JSON object, not a {type(value).__name__}')
  config = defaults()
  for name, item in _flatten(value).items():
    _set(config, name, item)
  validate(config)
  return config


def validate(config) -> None:
  """Checks every field, its type too, and what fields ask of each other.

  Raises:
    UserError: names the first bad field, its value and what is allowed.
  """
  values = _flatten(to_json(config))
  for name in values:
    _known(name)
  for name, field in FIELDS.items():
    if name not in values:
      raise errors.UserError(
          f'config.{name} is missing; start from rome_jax.config.defaults()')
    _check_value(name, values[name], field)
  _check_search(config)
  _check_evaluate(config)
  for name in ('search', 'evaluate'):
    size, parts = config[name].batch_size, config[name].accumulate
    if size % parts:
      raise errors.UserError(
          f'config.{name}.batch_size={size} must be a multiple of '
          f'config.{name}.accumulate={parts}')


def _check_value(name, value, field):
  kind = type(field.default)
  if type(value) is not kind:
    raise errors.UserError(
        f'config.{name}={value!r} must be {_KINDS[kind]}')
  if field.choices and value not in field.choices:
    raise errors.UserError(
        f'config.{name}={value!r} must be one of {", ".join(field.choices)}'
        f'{errors.near_miss(value, field.choices)}')
  if kind in (int, float) and not _inside(value, field):
    number = _KINDS[kind] if math.isfinite(value) else 'a finite number'
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


_KINDS = {int: 'a whole number', float: 'a number', str: 'text',
          bool: 'true or false'}


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


def _check_evaluate(config):
  evaluate = config.evaluate
  if evaluate.epochs and evaluate.warmup_epochs >= evaluate.epochs:
    raise errors.UserError(
        f'config.evaluate.warmup_epochs={evaluate.warmup_epochs} must be '
        f'below config.evaluate.epochs={evaluate.epochs}')


def space(config) -> spaces.Space:
  """The search space of a config.

  Looked up when it is needed, not in the table: users add rows to
  `spaces.SPACES`.

  Raises:
    UserError: no such space, or it cannot be changed as asked.
  """
  return spaces.get_space(config.space, in_degree=config.in_degree,
                          drop_none=config.drop_none)


class Loaded(NamedTuple):
  """What a command line says.

  Attributes:
    config: the validated config; None where only help is asked for.
    workdir: the run's folder.
    options: what else was asked.
  """

  config: ml_collections.ConfigDict | None
  workdir: str
  options: 'Options'


class Options(NamedTuple):
  """What else a command line may ask for.

  Attributes:
    help: the text to print and end with, or ''.
    plan: whether only to say what the run would cost.
    distributed: whether the run has several processes.
    coordinator: HOST:PORT of process 0; '': as the cluster says.
    processes: how many there are; None: as the cluster says.
    process: which of them this is, from 0; None: as the cluster says.
    heartbeat: seconds of silence after which a process counts as lost.
  """

  help: str = ''
  plan: bool = False
  distributed: bool = False
  coordinator: str = ''
  processes: int | None = None
  process: int | None = None
  heartbeat: int = 100


def load(argv: list[str]) -> Loaded:
  """Reads a command line (without the program's name).

  `--config=PATH[:ARGUMENT]` (a bare name is looked for in configs/ too; how
  most files read theirs: `arguments`),
  `--config.FIELD=VALUE` any number of times, `--workdir=DIR` (default:
  runs/<name of the config file>), `--plan`, `--help`. `=` may be a space.
  For several processes (`hosts`): `--distributed`, or `--coordinator=HOST:PORT
  --processes=N --process=I`; with either, `--heartbeat=SECONDS`.

  Raises:
    UserError: an unknown flag or field, a bad value, an unusable file.
  """
  flags = _flags(argv)
  if any(name == 'help' for name, _ in flags):
    return Loaded(None, '', Options(help=help_text()))
  overrides = []
  named = {}
  for name, text in flags:
    if name.startswith('config.'):
      overrides.append((name.removeprefix('config.'), text))
    else:
      named[name] = text
  if not named.get('config'):
    raise errors.UserError(
        '--config=PATH is missing, for example '
        '--config=configs/quickstart.py')
  path, argument = _find(named['config'])
  config = _run_file(path, argument)
  for name, text in overrides:
    _override(config, name, text)
  validate(config)
  stem = path.stem + re.sub(r'\W+', '_', f'_{argument}' if argument else '')
  return Loaded(
      config, named.get('workdir') or os.path.join('runs', stem),
      Options(plan='plan' in named, **_hosts_options(named)))


def _hosts_options(named):
  """The part of `Options` that concerns several processes."""
  explicit = [name for name in _EXPLICIT if name in named]
  if not explicit and 'distributed' not in named:
    if 'heartbeat' in named:
      raise errors.UserError(
          f'--heartbeat={named["heartbeat"]} is for several processes; give '
          '--distributed or --coordinator too')
    return {}
  if explicit and ('distributed' in named or len(explicit) < len(_EXPLICIT)):
    raise errors.UserError(
        f'--{explicit[0]} needs --coordinator=HOST:PORT --processes=N '
        '--process=I, all three and without --distributed, which finds them '
        'by itself')
  found = {'distributed': True}
  if 'heartbeat' in named:
    found['heartbeat'] = _whole(named, 'heartbeat', 1, 86400)
  if explicit:
    host, _, port = named['coordinator'].rpartition(':')
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
      raise errors.UserError(
          f'--coordinator={named["coordinator"]} must be HOST:PORT with a '
          'port of 1 to 65535')
    count = _whole(named, 'processes', 1, 10**6)
    found |= {'coordinator': named['coordinator'], 'processes': count,
              'process': _whole(named, 'process', 0, count - 1)}
  return found


def _whole(named, name, low, high):
  text = named[name]
  if not text.isdecimal() or not low <= int(text) <= high:
    raise errors.UserError(
        f'--{name}={text} must be a whole number of {low} to {high}')
  return int(text)


_EXPLICIT = ('coordinator', 'processes', 'process')
_SWITCHES = ('plan', 'distributed')  # flags without a value
_VALUES = ('config', 'workdir', *_EXPLICIT, 'heartbeat')


def _flags(argv):
  """[(name, text)] of --name=text and --name text."""
  flags = []
  rest = list(argv)
  while rest:
    word = rest.pop(0)
    name, equals, text = word.removeprefix('--').partition('=')
    if word in ('-h', '--help', '-help'):
      flags.append(('help', ''))
      continue
    if word.startswith('--') and word[2:] in _SWITCHES:
      flags.append((word[2:], ''))
      continue
    if not word.startswith('--'):
      raise errors.UserError(
          f'{word!r} is no flag; flags are --config, --config.FIELD, '
          '--workdir, --plan and --help')
    if name not in _VALUES and not name.startswith('config.'):
      known = [*_VALUES, *_SWITCHES, 'help',
               *(f'config.{n}' for n in FIELDS)]
      # A forgotten `config.` is the commonest slip.
      guess = name if name not in FIELDS else f'config.{name}'
      raise errors.UserError(
          f'flag --{name} is unknown{errors.near_miss(guess, known)}')
    if not equals:
      if not rest or rest[0].startswith('--'):
        raise errors.UserError(f'--{name} needs a value: --{name}=VALUE')
      text = rest.pop(0)
    flags.append((name, text))
  return flags


def _find(text):
  """(path of the config file, its argument or '')."""
  given = [(text, '')]
  if ':' in text:
    given.append(tuple(text.rsplit(':', 1)))
  folders = ['configs', pathlib.Path(__file__).parents[1] / 'configs']
  for name, argument in given:
    places = [pathlib.Path(name)]
    if name and not os.path.dirname(name):
      places += [pathlib.Path(folder, f'{name.removesuffix(".py")}.py')
                 for folder in folders]
    for place in places:
      if place.is_file():
        return place, argument
  known = sorted({path.stem for folder in folders
                  for path in pathlib.Path(folder).glob('*.py')})
  wanted = pathlib.Path(given[-1][0]).stem
  raise errors.UserError(
      f'config file {text} does not exist{errors.near_miss(wanted, known)}')


def _run_file(path, argument):
  """The ConfigDict of the file's get_config()."""
  module = types.ModuleType('config_file')
  module.__file__ = str(path)
  try:
    code = compile(path.read_bytes(), str(path), 'exec')
    exec(code, module.__dict__)  # A config file is a program of the user's.
    get_config = getattr(module, 'get_config', None)
    if not callable(get_config):
      raise errors.UserError(f'{path} has no function get_config()')
    takes = len(inspect.signature(get_config).parameters)
    if argument and not takes:
      raise errors.UserError(
          f'get_config() of {path} takes no argument, got {argument!r}')
    config = get_config(argument) if argument else get_config()
  except errors.UserError:
    raise
  except (Exception, SystemExit) as error:
    raise errors.UserError(_file_error(path, error)) from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise errors.UserError(
        f'get_config() of {path} must return a ConfigDict, not a '
        f'{type(config).__name__}; start from rome_jax.config.defaults()')
  return config


def arguments(text: str, **allowed) -> types.SimpleNamespace:
  """Reads the argument of a config file, `key=value,key=value`.

  Args:
    text: what stands behind the colon of `--config=PATH:TEXT`, or ''.
    **allowed: per key, the tuple of texts that it may have, the first of them
      its default; or a text, the default of a key that takes any.

  Returns:
    A namespace with the text of every key.

  Raises:
    UserError: a word that is no key=value, a key that is unknown or comes
      twice, a value that is not allowed.
  """
  values = {key: known[0] if isinstance(known, tuple) else known
            for key, known in allowed.items()}
  seen = set()
  for word in text.split(',') if text else ():
    key, equals, value = (part.strip() for part in word.partition('='))
    _check_argument(key, value if equals else None, allowed)
    if key in seen:
      raise errors.UserError(f"the config's argument {key} comes twice")
    seen.add(key)
    values[key] = value
  return types.SimpleNamespace(**values)


def _check_argument(key, value, allowed):
  """Raises UserError unless key=value is allowed; value None: no `=`."""
  if value is None:
    # A value without its key is the likeliest slip.
    near = [f'{name}={key}' for name, known in allowed.items()
            if isinstance(known, tuple) and key in known]
    raise errors.UserError(
        f"the config's argument {key!r} must be KEY=VALUE with a KEY of "
        f'{", ".join(allowed)}'
        f'{f"; did you mean {near[0]!r}?" if near else ""}')
  if key not in allowed:
    raise errors.UserError(
        f"the config's argument {key!r} must be one of {', '.join(allowed)}"
        f'{errors.near_miss(key, allowed)}')
  known = allowed[key]
  if isinstance(known, tuple) and value not in known:
    raise errors.UserError(
        f"the config's argument {key}={value!r} must be one of "
        f'{", ".join(known)}{errors.near_miss(value, known)}')
  if not value:
    raise errors.UserError(f"the config's argument {key} needs a value")


def _file_error(path, error):
  """One sentence for what went wrong in a config file."""
  if isinstance(error, OSError) and error.filename == str(path):
    return f'cannot read {path}: {error.strerror}'
  if isinstance(error, SyntaxError):
    return f'{path}, line {error.lineno}: {error.msg}'
  lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
           if frame.filename == str(path)]
  place = f'{path}, line {lines[-1]}' if lines else str(path)
  # ConfigDict's own message lists every field; ours names the likely one.
  if isinstance(error, AttributeError | KeyError) and (
      found := re.match(r'[\'"]*Key "(\w+)" does not exist', str(error))):
    return f'{place}: field {found[1]} is unknown{_near_field(found[1])}'
  words = (str(error).strip().splitlines() or [''])[0]
  return f'{place}: {type(error).__name__}: {words}'


def _near_field(name):
  """'; did you mean X?' with the full names of the likely fields, or ''."""
  section, _, last = name.rpartition('.')
  full_names = {}
  for full in FIELDS:
    full_names.setdefault(full.split('.')[-1], []).append(full)
  near = difflib.get_close_matches(last, full_names, 1)
  if not near:
    return ''
  found = full_names[near[0]]
  # A section spelled right decides between search.lr and evaluate.lr.
  found = [full for full in found if full.startswith(f'{section}.')] or found
  return f'; did you mean {" or ".join(map(repr, found))}?'


def _known(name):
  if name in SECTIONS:
    raise errors.UserError(
        f'config.{name} is a section; set one of its fields, for example '
        f'config.{name}.{next(iter(SECTIONS[name]))}')
  if name not in FIELDS:
    raise errors.UserError(
        f'config field {name} is unknown{_near_field(name)}')


def _override(config, name, text):
  """Sets one field from the words of a command line."""
  _known(name)
  kind = type(FIELDS[name].default)
  try:
    value = _BOOLS[text.lower()] if kind is bool else kind(text)
  except (KeyError, ValueError):
    raise errors.UserError(
        f'config.{name}={text!r} must be {_KINDS[kind]}') from None
  _set(config, name, value)


_BOOLS = {'true': True, 'false': False, '1': True, '0': False}


def _set(config, name, value):
  _known(name)
  field = FIELDS[name]
  if isinstance(field.default, float) and type(value) is int:
    value = float(value)
  _check_value(name, value, field)
  section, _, last = name.rpartition('.')
  setattr(config[section] if section else config, last, value)


def _flatten(value, prefix=''):
  """{'search.cells': 8, ...} of a nested dict."""
  flat = {}
  for name, item in value.items():
    if isinstance(item, dict) and item:
      flat |= _flatten(item, f'{prefix}{name}.')
    else:
      flat[f'{prefix}{name}'] = item
  return flat


def help_text() -> str:
  """How to call the program, and every field."""
  lines = [
      'usage: python -m rome_jax.main --config=PATH[:KEY=VALUE,...] '
      '[--workdir=DIR] [--config.FIELD=VALUE ...] [--plan]', '',
      'Several processes, which share the workdir: --distributed (SLURM, Open '
      'MPI,', 'Kubernetes, Cloud TPU), or --coordinator=HOST:PORT '
      '--processes=N --process=I;', '[--heartbeat=SECONDS] after which a '
      'silent process is lost.', '',
      'The docstring of the file at PATH says which keys it has.', '',
      'Fields and their defaults:']
  for name, field in FIELDS.items():
    allowed = f' ({", ".join(field.choices)})' if field.choices else ''
    lines.append(f'  --config.{name}={field.default}')
    lines.append(f'      {field.meaning}{allowed}')
  return '\n'.join(lines)


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
  path = pathlib.Path(workdir, FILENAME)
  ours = to_json(config)
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
  old, new = ({name: json.dumps(value) for name, value in _flatten(c).items()}
              for c in (theirs, ours))
  differing = [
      f'{name} ({old.get(name, "absent")} there, '
      f'{new.get(name, "absent")} now)'
      for name in {**new, **old}
      if name not in FREE_FIELDS and old.get(name) != new.get(name)]
  if differing:
    raise errors.UserError(
        f'{path.parent} holds a run of another config: '
        f'{", ".join(differing)}; use another --workdir')
