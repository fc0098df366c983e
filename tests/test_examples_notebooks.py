"""The notebooks of examples/ run, at the tiny size that their metadata give."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from rome_jax import methods, spaces
from rome_jax.engine import operations
from rome_jax.spaces import counting

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / 'examples').glob('*.ipynb'))
SKIPPED = {'install', 'shell'}  # tags of cells for a notebook server only


def tags(cell):
  return set(cell['metadata'].get('tags', ()))


def of_size(value, workdir, images):
  if not isinstance(value, str):
    return value
  return value.replace('WORKDIR', str(workdir)).replace('IMAGES', str(images))


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  folder, rng = tmp_path_factory.mktemp('pets'), np.random.default_rng(0)
  for name in ('cat', 'dog'):
    (folder / name).mkdir()
    for i in range(24):
      Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(
          folder / name / f'{i}.png')
  return folder


@pytest.fixture
def tables():
  """Takes out the rows that a notebook adds."""
  found = (methods.METHODS, spaces.SPACES, operations.OPS, counting.OP_COUNTS)
  before = [dict(table) for table in found]
  yield
  for table, rows in zip(found, before):
    for name in set(table) - set(rows):
      del table[name]


@pytest.mark.parametrize('path', [
    pytest.param(path, id=path.stem, marks=[] if path.stem in (
        'own_data_and_loss', 'own_method', 'ranking_nasbench201') else [
            pytest.mark.slow])
    for path in NOTEBOOKS])
def test_a_notebook_runs(path, tmp_path, images, monkeypatch, tables):
  monkeypatch.chdir(ROOT)
  notebook = json.loads(path.read_text())
  tiny = notebook['metadata']['rome_jax']['tiny']
  session = {}
  for number, cell in enumerate(notebook['cells']):
    if cell['cell_type'] != 'code' or tags(cell) & SKIPPED:
      continue
    exec(compile(''.join(cell['source']), f'{path.name}, cell {number}',
                 'exec'), session)
    if 'parameters' in tags(cell):
      assert set(tiny) <= set(session)
      session |= {name: of_size(value, tmp_path, images)
                  for name, value in tiny.items()}


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_clean(path):
  """No outputs, and a cell that installs comes first."""
  cells = json.loads(path.read_text())['cells']
  code = [cell for cell in cells if cell['cell_type'] == 'code']
  assert all(not cell['outputs'] for cell in code)
  assert 'install' in tags(code[0]) and 'parameters' in tags(code[1])
  assert cells[0]['cell_type'] == 'markdown'
