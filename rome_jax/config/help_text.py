"""What `rome-jax run --help` prints, from the table of fields."""

import ast
import pathlib
import textwrap

from rome_jax.config import fields

_USAGE = '''\
usage: rome-jax run --config=PATH[:KEY=VALUE,...] [--workdir=DIR]
                    [--config.FIELD=VALUE ...] [--check | --dry-run]
       (also: python -m rome_jax.main --config=...)

--check    check config, data and genotype in seconds and compile nothing
--dry-run  compile, say what the run would cost, and write nothing

Several processes, which share the workdir: --distributed (SLURM, Open MPI,
Kubernetes, Cloud TPU), or --coordinator=HOST:PORT --processes=N --process=I;
--heartbeat=SECONDS after which a silent process counts as lost.
'''
_SECTIONS = {'': 'The run', 'search': 'The search', 'retrain': 'Retraining',
             'mesh': 'Devices'}
_WIDTH = 80


def text() -> str:
  """How to call the program, the shipped configs, and every field."""
  lines = [_USAGE, 'Configs, by the first line of each file; its docstring has '
           'the keys:']
  for path in shipped():
    lines += _wrapped(f'{path.stem}{_first_line(path)}', 2, 6)
  section = None
  for name, field in fields.FIELDS.items():
    if (found := name.rpartition('.')[0]) != section:
      section = found
      lines += ['', f'{_SECTIONS.get(section, section)}:']
    allowed = f' ({", ".join(field.choices())})' if field.choices else ''
    lines.append(f'  --config.{name}={field.default}')
    lines += _wrapped(f'{field.meaning}{allowed}', 6, 6)
  return '\n'.join(lines)


def _first_line(path):
  """': ...' of a file's docstring; '' if it has none that can be read."""
  try:
    text = ast.get_docstring(ast.parse(path.read_text()))
  except (OSError, SyntaxError, ValueError):
    text = None
  return f': {text.splitlines()[0]}' if text else ''


def shipped() -> list[pathlib.Path]:
  """The config files of this package, without its comparisons."""
  package = pathlib.Path(__file__).parents[1]
  found = {path.stem: path for folder in (
      package / 'configs', package.parent / 'configs')
           for path in folder.glob('[!_]*.py')}
  return [found[name] for name in sorted(found)
          if not name.startswith('compare_')]


def _wrapped(text, first, rest):
  return textwrap.wrap(
      text, _WIDTH, initial_indent=' ' * first, subsequent_indent=' ' * rest,
      break_long_words=False, break_on_hyphens=False)
