"""Types: public functions have them, and the lists of exceptions shrink."""

import ast
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def exempt(setting):
  """Modules of the package that pyproject.toml exempts by a setting."""
  with open(ROOT / 'pyproject.toml', 'rb') as file:
    overrides = tomllib.load(file)['tool']['mypy']['overrides']
  return {module for section in overrides if setting in section
          for module in section['module'] if module.startswith('rome_jax')}


def module_name(path):
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def public(body):
  """(function, whether it is bound) of a module's or class's public ones."""
  for node in body:
    if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
      yield from ((function, not any(
          isinstance(d, ast.Name) and d.id == 'staticmethod'
          for d in function.decorator_list))
                  for function, _ in public(node.body))
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      if not node.name.startswith('_'):
        yield node, False


def untyped(source):
  """Names of public functions that lack a type somewhere."""
  for function, bound in public(ast.parse(source).body):
    given = function.args
    args = [*given.posonlyargs, *given.args, *given.kwonlyargs,
            *filter(None, (given.vararg, given.kwarg))][bound:]
    if function.returns is None or any(a.annotation is None for a in args):
      yield function.name


@pytest.mark.parametrize('source, found', [
    ('def f(x: int, *y: int, z: int = 0) -> int: ...', []),
    ('def _f(x): ...', []),
    ('def f(x) -> int: ...', ['f']),
    ('def f(x: int): ...', ['f']),
    ('def f(**x) -> int: ...', ['f']),
    ('class C:\n  def f(self) -> int: ...\n  def g(self): ...', ['g']),
    ('class C:\n  @staticmethod\n  def f(x) -> int: ...', ['f'])])
def test_what_lacks_types(source, found):
  assert list(untyped(source)) == found


def test_public_functions_have_types():
  """All but those of the modules that pyproject.toml lists, which lack some."""
  without = {module_name(path): names
             for path in (ROOT / 'rome_jax').rglob('*.py')
             if (names := list(untyped(path.read_text())))}
  listed = exempt('disallow_incomplete_defs')
  assert not {name: without[name] for name in without.keys() - listed}
  assert not listed - without.keys(), 'typed by now: off the list'


@pytest.mark.slow
def test_modules_that_may_have_errors_have_some(tmp_path):
  settings = (ROOT / 'pyproject.toml').read_text()
  (tmp_path / 'pyproject.toml').write_text(
      settings.replace('ignore_errors = true', 'ignore_errors = false'))
  done = subprocess.run(
      [sys.executable, '-m', 'mypy', '--config-file',
       tmp_path / 'pyproject.toml', '--cache-dir', tmp_path / 'cache'],
      cwd=ROOT, text=True, stdout=subprocess.PIPE, timeout=300)
  files = re.findall(r'^(\S+\.py):\d+: error:', done.stdout, re.M)
  listed = exempt('ignore_errors')
  assert {module_name(ROOT / file) for file in files} == listed
