"""The shape of the package: imports point downwards, the README's lines."""

import ast
import pathlib
import re
import subprocess
import sys

from rome_jax.config import fields
from rome_jax.engine import sums
from rome_jax.methods import table
from rome_jax.train import optim

ROOT = pathlib.Path(__file__).parents[1]

# A module may import those before it, and none after.
ORDER = [
    'errors', 'files', 'interrupt', 'hosts', 'spaces', 'published', 'genotypes',
    'nasbench201_forms', 'counting', 'kernels', 'choice', 'ops', 'sampling',
    'cells', 'networks', 'nasbench201', 'nasbench1shot1', 'mobile',
    'families', 'gradients', 'methods', 'training', 'config', 'parallel',
    'data', 'benchmarks', 'checkpoint', 'metrics', 'plotting', 'report', 'loop',
    'preflight', 'search', 'retrain', 'describe', 'main',
    'sweep']
# The bilevel step is proven on quadratics, without networks.
INDEPENDENT = {'gradients': {'networks', 'cells', 'ops', 'kernels'},
               'methods': {'networks', 'cells', 'ops', 'kernels', 'data'},
               'networks': {'methods', 'gradients', 'data'}}


def imported(path):
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module:
      parts = node.module.split('.')
      if parts[0] == 'rome_jax':
        names |= ({parts[1]} if len(parts) > 1
                  else {alias.name for alias in node.names})
  return names & set(ORDER)


def test_imports_point_downwards():
  modules = {p.stem for p in (ROOT / 'rome_jax').glob('*.py')} - {'__init__'}
  assert modules | {'data', 'benchmarks'} == set(ORDER)
  for name in modules:
    allowed = set(ORDER[:ORDER.index(name)])
    found = imported(ROOT / 'rome_jax' / f'{name}.py')
    assert found <= allowed, (name, found - allowed)
    assert not found & INDEPENDENT.get(name, set()), name


def test_data_imports_only_the_ground():
  for path in (ROOT / 'rome_jax' / 'data').glob('*.py'):
    assert imported(path) <= {'errors', 'files', 'data'}, path


def test_the_tables_need_no_network():
  allowed = {'errors', 'files', 'spaces', 'genotypes', 'nasbench201_forms',
             'benchmarks', 'data'}
  for path in (ROOT / 'rome_jax' / 'benchmarks').glob('*.py'):
    assert imported(path) <= allowed, path


def test_nothing_loads_tensorflow():
  code = ('import sys, rome_jax.main; '
          'sys.exit(any(m.split(".")[0] == "tensorflow" for m in sys.modules))')
  assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0


def test_the_readmes_python_runs():
  """The three lines that import a network, as the README prints them."""
  blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(),
                      re.S)
  assert blocks
  for block in blocks:
    small = block.replace('cells=20', 'cells=3').replace(
        'channels=36', 'channels=2')
    exec(compile(small, 'README.md', 'exec'), {})


def test_the_readme_names_the_test_command_that_ci_runs():
  assert "pip install '.[dev]' && pytest" in (ROOT / 'README.md').read_text()
  assert (ROOT / '.ci' / 'run').read_text().rstrip().endswith('pytest')


def test_the_configs_choices_are_the_tables_rows():
  """`config` starts without JAX, so it names the rows again."""
  from rome_jax import data
  assert fields.METHODS == tuple(table.METHODS)
  assert set(fields.AUGMENTATIONS) == set(data.KINDS)
  assert set(fields.FIELDS['search.samples'].choices) == {
      'auto', *sums.WAYS}
  assert set(fields.FIELDS['retrain.lr_schedule'].choices) == set(
      optim.SCHEDULES)
