"""The command line and config files."""

import inspect
import os
import pathlib
import re
import traceback
import types
from typing import Any, NamedTuple

import ml_collections

from rome_jax import errors, files
from rome_jax.config import checks, fields, help_text


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
    check: whether only to check config, data and genotype.
    dry_run: whether only to compile and say what the run would cost.
    distributed: whether the run has several processes.
    coordinator: HOST:PORT of process 0; '': as the cluster says.
    processes: how many there are; None: as the cluster says.
    process: which of them this is, from 0; None: as the cluster says.
    heartbeat: seconds of silence after which a process counts as lost.
  """

  help: str = ''
  check: bool = False
  dry_run: bool = False
  distributed: bool = False
  coordinator: str = ''
  processes: int | None = None
  process: int | None = None
  heartbeat: int = 100


def load(argv: list[str]) -> Loaded:
  """Reads a command line (without the program's name).

  `--config=PATH[:ARGUMENT]` (a bare name is looked for in configs/ too; most
  files read their argument with `arguments`; PATH may also be the config.json
  of a run, which is read as JSON), `--config.FIELD=VALUE` any
  number of times, `--workdir=DIR` (default: runs/<name of the config file>),
  `--check`, `--dry-run`, `--help`. `=` may be a space. For several processes
  (`hosts`): `--distributed`, or `--coordinator=HOST:PORT --processes=N
  --process=I`; with either, `--heartbeat=SECONDS`.

  `--config.method=NAME` changes the method that the file chose, and with it
  the fields of its recipe (`apply_recipe`); it is read before the other
  fields, which then have the last word.

  Raises:
    UserError: an unknown flag or field, a bad value, an unusable file.
  """
  flags = _flags(argv)
  if any(name == 'help' for name, _ in flags):
    return Loaded(None, '', Options(help=help_text.text()))
  overrides = []
  named = {}
  for name, text in flags:
    if name.startswith('config.'):
      overrides.append((name.removeprefix('config.'), text))
    else:
      named[name] = text
  if 'check' in named and 'dry-run' in named:
    raise errors.UserError(
        '--check compiles nothing and --dry-run compiles; give one of them')
  if not named.get('config'):
    raise errors.UserError(
        '--config=PATH is missing, for example '
        '--config=configs/quickstart.py')
  path, argument = find(checks.local_path('--config', named['config']))
  config = _read(path, argument)
  before = config.get('method')
  # A stable sort: the method first, all others in the order given.
  for name, text in sorted(overrides, key=lambda pair: pair[0] != 'method'):
    _override(config, name, text)
    if name == 'method' and config.method != before:
      checks.apply_recipe(config, before)
      before = config.method
  checks.validate(config)
  stem = _stem(path) + re.sub(r'\W+', '_', f'_{argument}' if argument else '')
  return Loaded(
      config, checks.local_path('--workdir', named.get(
          'workdir', os.path.join('runs', stem))),
      Options(check='check' in named, dry_run='dry-run' in named,
              **_hosts_options(named)))


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
_SWITCHES = ('check', 'dry-run', 'distributed')  # flags without a value
_VALUES = ('config', 'workdir', *_EXPLICIT, 'heartbeat')
_RENAMED = {'plan': 'dry-run'}  # flags of 0.1.0


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
          '--workdir, --check, --dry-run and --help')
    if name in _RENAMED:
      raise errors.UserError(
          f'--{name} of version 0.1.0 is now called --{_RENAMED[name]}')
    if name not in _VALUES and not name.startswith('config.'):
      known = [*_VALUES, *_SWITCHES, 'help',
               *(f'config.{n}' for n in fields.FIELDS)]
      # A forgotten `config.` is the commonest slip.
      guess = name if name not in fields.FIELDS else f'config.{name}'
      raise errors.UserError(
          f'flag --{name} is unknown{errors.near_miss(guess, known)}')
    if not equals:
      if not rest or rest[0].startswith('--'):
        raise errors.UserError(f'--{name} needs a value: --{name}=VALUE')
      text = rest.pop(0)
    flags.append((name, text))
  return flags


def find(text: str) -> tuple[pathlib.Path, str]:
  """(path of the config file, its argument or '') of PATH[:ARGUMENT].

  Raises:
    UserError: there is no such file.
  """
  given = [(text, '')]
  if ':' in text:
    path, _, argument = text.rpartition(':')
    given.append((path, argument))
  # Of the checkout, or of an installed wheel.
  package = pathlib.Path(__file__).parents[1]
  folders = [pathlib.Path('configs'), package.parent / 'configs',
             package / 'configs']
  for name, argument in given:
    places = [pathlib.Path(name)]
    if name and not os.path.dirname(name):
      places += [pathlib.Path(folder, f'{name.removesuffix(".py")}.py')
                 for folder in folders]
    for place in places:
      if place.is_file():
        return place, argument
  if os.path.isdir(text):
    own = pathlib.Path(text, fields.FILENAME)
    hint = f'; did you mean {str(own)!r}?' if own.is_file() else ''
    raise errors.UserError(f'--config={text} is a folder, not a file{hint}')
  known = sorted({path.stem for folder in folders
                  for path in pathlib.Path(folder).glob('*.py')})
  wanted = pathlib.Path(given[-1][0]).stem
  raise errors.UserError(
      f'config file {text} does not exist{errors.near_miss(wanted, known)}')


def _stem(path):
  """What a run of a config file is called; a run's own config: as that run."""
  if path.name == fields.FILENAME:
    return path.absolute().parent.name
  return path.stem


def _read(path, argument):
  """The ConfigDict that a config file describes."""
  suffix = path.suffix.lower()
  if suffix in _OTHER_FORMATS:
    raise errors.UserError(
        f'--config={path} must be a .py file with get_config(), or the '
        f'{fields.FILENAME} of a run')
  if suffix != '.json':
    return _run_file(path, argument)
  if argument:
    raise errors.UserError(f'{path} takes no argument, got {argument!r}')
  try:
    return checks.from_json(files.read_json(path))
  except errors.UserError as error:
    where = '' if str(path) in str(error) else f'{path}: '
    raise errors.UserError(f'{where}{error}') from error


_OTHER_FORMATS = ('.yaml', '.yml', '.toml', '.ini', '.jsonl')


def _run_file(path, argument):
  """The ConfigDict of the file's get_config()."""
  config = call(path, argument, 'get_config')
  if not isinstance(config, ml_collections.ConfigDict):
    raise errors.UserError(
        f'get_config() of {path} must return a ConfigDict, not a '
        f'{type(config).__name__}; start from rome_jax.config.defaults()')
  return config


def call(path: pathlib.Path, argument: str, name: str) -> Any:
  """What a function of a config file returns.

  Args:
    path: of the file, a program of the user's.
    argument: its only one; '': none.
    name: of the function.

  Raises:
    UserError: the file has an error, or no such function.
  """
  module = types.ModuleType('config_file')
  module.__file__ = str(path)
  try:
    code = compile(path.read_bytes(), str(path), 'exec')
    exec(code, module.__dict__)
    function = getattr(module, name, None)
    if not callable(function):
      raise errors.UserError(f'{path} has no function {name}()')
    takes = len(inspect.signature(function).parameters)
    if argument and not takes:
      raise errors.UserError(
          f'{name}() of {path} takes no argument, got {argument!r}')
    return function(argument) if argument else function()
  except errors.UserError:
    raise
  except (Exception, SystemExit) as error:
    raise errors.UserError(_file_error(path, error)) from error


def arguments(text: str, **allowed: Any) -> types.SimpleNamespace:
  """Reads the argument of a config file, `key=value,key=value`.

  Args:
    text: what follows the colon of `--config=PATH:TEXT`, or ''.
    **allowed: per key, the tuple of texts that it may have, the default
      first; or a text, the default of a key that takes any.

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
      name := _missing_field(error)):
    return f'{place}: field {name} {_unknown(name)}'
  words = (str(error).strip().splitlines() or [''])[0]
  return f'{place}: {type(error).__name__}: {words}'


def _missing_field(error):
  """The field that a ConfigDict does not have, or None for another error."""
  if found := re.match(r'[\'"]*Key "([\w.]+)"', str(error)):  # set
    return found[1]
  found = re.fullmatch(  # read; the rest is a guess, with escaped quotes
      r'[\\\'"]*(\w+)[\\\'"]*(n?Did you mean .*)?', str(error))
  # A KeyError may also come from a dict of the file's own.
  if found and (isinstance(error, AttributeError) or _new_name(found[1])):
    return found[1]
  return None


def _new_name(name):
  """What an old field is called now; `name` may lack its section."""
  whole = [old for old in fields.RENAMED if old.split('.')[-1] == name]
  return fields.renamed(whole[0] if whole else name)


def _unknown(name):
  """What to say of a field that there is not."""
  if new := _new_name(name):
    return f'of version 0.1.0 is now called {new}'
  return f'is unknown{fields.near_field(name)}'


def _override(config, name, text):
  """Sets one field from the words of a command line."""
  fields.check_known(name)
  kind = type(fields.FIELDS[name].default)
  try:
    value = _BOOLS[text.lower()] if kind is bool else kind(text)
  except (KeyError, ValueError):
    raise errors.UserError(
        f'config.{name}={text!r} must be {fields.KINDS[kind]}') from None
  checks.set_field(config, name, value)


_BOOLS = {'true': True, 'false': False, '1': True, '0': False}
