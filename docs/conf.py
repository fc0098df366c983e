"""Sphinx: the site, from these pages, examples/ and the docstrings.

CONTRIBUTING.md has the command. Nothing is fetched.
"""

import pathlib
import re
import shutil
from typing import Any

import rome_jax
from rome_jax import config

HERE = pathlib.Path(__file__).parent

project = 'rome_jax'
version = release = rome_jax.__version__
extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
exclude_patterns = ['_build']

html_theme = 'furo'
html_title = f'{project} {version}'
html_static_path = ['_static']
html_css_files = ['site.css']
html_copy_source = False
html_show_copyright = False

# Quotes are shown as they are written. A block without a language is no Python.
smartquotes_action = 'D'
highlight_language = 'none'
myst_heading_anchors = 3

# Notebooks have no outputs in the repository, and tests/ runs them. A build
# for readers turns execution on; these two need Drive, and CIFAR-10.
nb_execution_mode = 'off'
nb_execution_excludepatterns = [
    'examples/colab_tpu.ipynb', 'examples/ranking_nasbench201.ipynb']
nb_execution_in_temp = True
nb_execution_timeout = -1
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_default_options = {'members': True, 'member-order': 'bysource'}
autodoc_inherit_docstrings = False
autodoc_typehints_format = 'short'
maximum_signature_line_length = 72
napoleon_numpy_docstring = False
napoleon_custom_sections = [('Attributes', 'params_style')]
toc_object_entries_show_parents = 'hide'

# `name` in a docstring is a link if something has that name. Types and full
# names in the package must be found; other packages are not asked.
default_role = 'py:obj'
nitpicky = True
nitpick_ignore_regex = [('py:.*', r'(?s)(?!rome_jax\.).*')]

# Where docstrings' names such as `genotypes.load` or `UserError` live.
_PARENTS = ('rome_jax', 'rome_jax.spaces', 'rome_jax.engine', 'rome_jax.tables',
            'rome_jax.methods', 'rome_jax.methods.method', 'rome_jax.data')


def setup(app: Any) -> None:
  """Writes what is generated, and adjusts how docstrings are read."""
  shutil.rmtree(HERE / 'examples', ignore_errors=True)
  shutil.copytree(HERE.parent / 'examples', HERE / 'examples')
  (HERE / 'api' / 'run_help.txt').write_text(
      config.load(['--help']).options.help)
  app.connect('autodoc-skip-member', _skip_fields)
  app.connect('autodoc-process-signature', _shorten)
  # Before napoleon, whose priority is 500.
  app.connect('autodoc-process-docstring', _untype, priority=400)
  app.connect('missing-reference', _find_short_name)


def _skip_fields(app, kind, name, member, skip, options):
  """Leaves out a NamedTuple's fields: the docstring of the class has them."""
  doc = getattr(member, '__doc__', None) or ''
  return True if doc.startswith('Alias for field number') else None


def _shorten(app, kind, name, thing, options, signature, returns):
  """Leaves out Flax's own fields; a default without a literal is `...`."""
  if signature:
    signature = re.sub(r' = <[^,()]*>', ' = ...', signature)
    signature = re.sub(r'(, )?parent: [^=]*_Sentinel[^=]*= \.\.\., '
                       r'name: str \| None = None', '', signature)
  return signature, returns


def _untype(app, kind, name, thing, options, lines):
  """Keeps napoleon from reading `[E] int32: the node` as `type: text`.

  Types stand in the signature; a colon in front says that none is meant here.
  """
  starts = [i + 1 for i, line in enumerate(lines[:-1])
            if line.strip() in ('Returns:', 'Yields:')]
  if kind in ('property', 'attribute', 'data') and lines:
    starts.append(0)
  for i in starts:
    lines[i] = re.sub(r'^( *)', r'\1: ', lines[i])


def _find_short_name(app, env, node, content):
  """Finds `rj.build`, `genotypes.load` and `UserError` in any docstring."""
  name = node['reftarget']
  if node.get('refdomain') != 'py' or not re.match(r'[A-Z]|\w+\.', name):
    return None  # A plain `step` is an argument as often.
  name = name.removeprefix('rj.')
  for parent in _PARENTS:
    if found := env.domains['py'].resolve_xref(
        env, node['refdoc'], app.builder, 'obj', f'{parent}.{name}', node,
        content):
      return found
  return None
