"""The site: every page and every public name is in it. It is not built here.

`.ci/run` builds it, with warnings as errors.
"""

import importlib
import inspect
import pathlib
import re
import types

import pytest

import rome_jax as rj

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / 'docs'
API = DOCS / 'api'
NAMES = [name for name in rj.__all__ if not name.startswith('_')]


def entries(page):
  """The pages that the toctrees of a page name."""
  trees = re.findall(r'```\{toctree\}\n(.*?)```', page.read_text(), re.S)
  return [page.parent / f'{line}.md' for tree in trees
          for line in tree.splitlines() if line and not line.startswith(':')]


def test_every_page_is_in_the_contents():
  reached, new = set(), [DOCS / 'index.md']
  while new:
    page = new.pop()
    reached.add(page.relative_to(DOCS))
    # Notebooks come from examples/ when the site is built.
    new += [found for found in entries(page)
            if found.parent.name != 'examples'
            and found.relative_to(DOCS) not in reached]
  written = {path.relative_to(DOCS) for path in DOCS.rglob('*.md')}
  built = {path for path in written if path.parts[0] in ('_build', 'examples')}
  assert reached == written - built


def test_every_notebook_is_in_the_contents():
  listed = {page.stem for page in entries(DOCS / 'index.md')
            if page.parent.name == 'examples'}
  assert listed == {path.stem for path in (ROOT / 'examples').glob('*.ipynb')}


def directives():
  """(full name, lines below it) of each directive of the reference."""
  for page in API.glob('*.md'):
    module = ''
    for kind, name, below in re.findall(
        r'^\.\. (?:auto|py:|current)(\w+):: (\S+)((?:\n   .*)*)',
        page.read_text(), re.M):
      if kind == 'module':
        module = name
        yield name, below
        continue
      # Several names of values may share a directive.
      for each in (name, *re.findall(r'^ {13}(\w+)$', below, re.M)):
        full = each if each.startswith('rome_jax.') else f'{module}.{each}'
        yield full, below


@pytest.mark.parametrize('name', NAMES)
def test_every_name_is_in_the_reference(name):
  thing = getattr(rj, name)
  full = (thing.__name__ if isinstance(thing, types.ModuleType)
          else f'rome_jax.{name}')
  assert full in {found for found, _ in directives()}


@pytest.mark.parametrize('module', [
    'config', 'data', 'families', 'methods', 'spaces'])
def test_every_name_of_a_module_is_in_the_reference(module):
  module = importlib.import_module(f'rome_jax.{module}')
  named = dict(directives())
  below = named[module.__name__]
  # Classes and functions come by their module, from their docstrings.
  taken = set() if ':no-members:' in below else {
      name for name in module.__all__
      if inspect.isroutine(getattr(module, name))
      or inspect.isclass(getattr(module, name))
  } - set(re.findall(r'\w+', below))  # but those that it excludes
  assert not [name for name in module.__all__ if name not in taken
              and f'{module.__name__}.{name}' not in named
              and f'rome_jax.{name}' not in named]
