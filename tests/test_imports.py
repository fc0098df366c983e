"""The shape of the package, read from its source, and the README's lines."""

import ast
import functools
import graphlib
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from rome_jax.config import fields
from rome_jax.engine import sums
from rome_jax.train import optim

ROOT = pathlib.Path(__file__).parents[1]
# The folders that a person's commands and files enter by.
DOORS = {'cli', 'config'}
# What runs before a device is needed, and where JAX is not installed.
LIGHT = {'spaces', 'data', 'tables'}
ACCELERATED = {'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'chex'}


def module_name(path):
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


@functools.cache
def sources():
  """{module: its syntax tree}."""
  return {module_name(path): ast.parse(path.read_text())
          for path in (ROOT / 'rome_jax').rglob('*.py')}


def imported(tree):
  """Every name that a module imports, wherever the statement stands."""
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom):
      assert not node.level, ast.unparse(node)
      for alias in node.names:
        full = f'{node.module}.{alias.name}'
        yield full if full in sources() else node.module
    elif isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)


@functools.cache
def graph():
  """{module: the modules of the package that it imports}."""
  return {name: {found for found in imported(tree) if found in sources()}
          for name, tree in sources().items()}


def reached(names):
  """The modules and all that their imports lead to."""
  found, new = set(), set(names)
  while new:
    found |= new
    new = set().union(*(graph()[name] for name in new)) - found
  return found


def inside(*folders):
  """The modules of these folders of the package, or of these modules."""
  return {name for name in sources() for folder in folders
          if f'{name}.'.startswith(f'rome_jax.{folder}.')}


def folder_of(name):
  """The folder of a module, or a module beside the folders."""
  return (name.split('.') + [''])[1]


def between(package):
  """{child: children that it imports} of a package: folders and modules."""
  depth = package.count('.') + 1
  edges = {}
  for name, targets in graph().items():
    if name.startswith(f'{package}.'):
      child = name.split('.')[depth]
      edges.setdefault(child, set()).update(
          target.split('.')[depth] for target in targets
          if target.startswith(f'{package}.'))
  return {child: targets - {child} for child, targets in edges.items()}


def cycle(edges):
  """Names along a cycle of a graph, or None."""
  try:
    graphlib.TopologicalSorter(edges).prepare()
  except graphlib.CycleError as error:
    return error.args[1]
  return None


def packages():
  return sorted({name.rpartition('.')[0] for name in sources()} - {''})


@pytest.mark.parametrize('edges, found', [
    ({'a': {'b'}, 'b': {'c'}}, None), ({'a': {'b'}, 'b': {'a'}}, {'a', 'b'})])
def test_a_cycle_is_found(edges, found):
  assert (set(cycle(edges)) if found else cycle(edges)) == found


def test_the_source_is_read():
  """Three edges of three kinds, so that no rule below holds of nothing."""
  assert 'rome_jax.errors' in graph()['rome_jax.files']
  assert 'rome_jax.__main__' in graph()['rome_jax.main']
  assert 'spaces' in between('rome_jax')['engine']
  assert {folder_of(name) for name in sources()} >= DOORS | LIGHT


@pytest.mark.parametrize('package', packages())
def test_folders_and_modules_import_without_cycles(package):
  assert cycle(between(package)) is None


def test_modules_import_without_cycles():
  assert cycle(graph()) is None


def test_nothing_below_the_doors_knows_a_config_or_a_command():
  folders = {package.split('.')[1] for package in packages()[1:]}
  for folder in folders - DOORS:
    assert not between('rome_jax').get(folder, set()) & DOORS, folder
  assert 'cli' not in between('rome_jax')['config']


def test_light_folders_lead_to_nothing_accelerated():
  for name in reached(inside(*LIGHT)):
    packages = {found.split('.')[0] for found in imported(sources()[name])}
    assert not packages & ACCELERATED, name


def test_networks_do_not_know_the_search():
  """Nor the step the networks: it is proven on quadratics."""
  reaches = {folder_of(name) for name in reached(inside('engine', 'families'))}
  assert not reaches & {'methods', 'data', 'train', 'tables'}
  for name in reached(inside('methods', 'engine.sums')):
    packages = {found.split('.')[0] for found in imported(sources()[name])}
    assert 'flax' not in packages, name
    assert folder_of(name) not in {'families', 'data', 'train'}, name


def loaded_by(*names):
  """Packages that a fresh process has loaded after importing modules."""
  code = (f'import sys, {", ".join(names)}\n'
          'print(*{name.split(".")[0] for name in sys.modules})')
  return set(subprocess.run(
      [sys.executable, '-c', code], cwd=ROOT, check=True, text=True,
      stdout=subprocess.PIPE).stdout.split())


def test_counts_tables_and_help_load_no_jax():
  names = inside(*LIGHT) | {'rome_jax.cli.describe', 'rome_jax.__main__'}
  found = loaded_by(*sorted(names))
  assert 'numpy' in found and not found & (ACCELERATED | {'torch'})


def test_nothing_loads_tensorflow():
  assert 'tensorflow' not in loaded_by('rome_jax.cli.run')


def test_the_readmes_python_runs():
  """The README's search and its look-up in a table, at a tiny size."""
  blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(),
                      re.S)
  assert blocks
  for block in blocks:
    small = block.replace('cells=8, channels=16', 'cells=1, channels=2')
    batch = {'image': np.zeros((2, 8, 8, 3), np.float32),
             'label': np.zeros(2, np.int32)}
    exec(compile(small, 'README.md', 'exec'), {'batches': [(batch, batch)]})


def test_the_readme_names_the_test_command_that_ci_runs():
  assert "pip install '.[dev]' && pytest" in (ROOT / 'README.md').read_text()
  assert (ROOT / '.ci' / 'run').read_text().rstrip().endswith('pytest')


def test_the_configs_choices_are_the_tables_rows():
  """Those that `config` names again, so that it starts without JAX."""
  from rome_jax import data
  assert set(fields.AUGMENTATIONS) == set(data.KINDS)
  assert set(fields.FIELDS['search.samples'].choices()) == {
      'auto', *sums.WAYS}
  assert set(fields.FIELDS['retrain.lr_schedule'].choices()) == set(
      optim.SCHEDULES)
