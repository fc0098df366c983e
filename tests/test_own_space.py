"""A user's own operation and space: the page of the docs, and mistakes."""

import html
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
from unittest import mock

import flax.linen as nn
import pytest

from rome_jax import spaces
from rome_jax.cli import run as run_lib
from rome_jax.config import fields
from rome_jax.engine import operations
from rome_jax.spaces import counting, genotypes

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / 'docs' / 'own_space.md').read_text()
# The page's run is for a person; a test needs two steps of it.
TINY = ['--config.search.max_steps=2', '--config.search.channels=2',
        '--config.search.cells=1', '--config.retrain.cells=1',
        '--config.retrain.channels=2', '--config.retrain.epochs=1',
        '--config.retrain.batch_size=700', '--config.compilation_cache=']


def blocks(language):
  return re.findall(rf'```{language}\n(.*?)```', PAGE, re.S)


def commands():
  return [shlex.split(line) for line in blocks('sh')[0].splitlines()]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with the page's file."""
  folder = tmp_path_factory.mktemp('own')
  text, = blocks('python')
  name = re.match(r'# (\w+\.py)\n', text)[1]
  (folder / name).write_text(text)
  return folder


def start(folder, command, *flags):
  """Output of one of the page's commands, as a process of its own."""
  environment = os.environ | {
      'JAX_PLATFORMS': 'cpu', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
      'PYTHONPATH': str(ROOT)}
  assert command[0] == 'python'
  done = subprocess.run(
      [sys.executable, *command[1:], *flags], cwd=folder, env=environment,
      capture_output=True, text=True, timeout=600)
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.fixture(scope='module')
def searched(folder):
  """The workdir of the page's first command."""
  start(folder, commands()[0], *TINY)
  return folder / 'runs' / 'my_search'


def test_the_page_searches_retrains_and_reports(searched):
  result = json.loads((searched / 'result.json').read_text())
  assert result['space'] == 'gated' and result['search']['steps'] == 2
  assert 0 < result['evaluations'][0]['test_accuracy'] <= 1
  record = genotypes.read(searched / 'genotype.json')
  assert record.info['space'] == 'gated'
  assert [len(node) for node in record.genotype.normal] == [2, 2, 2]
  assert html.escape(result['genotype']) in (
      searched / 'report.html').read_text()


def test_the_page_describes_in_a_second_process(folder, searched):
  """Of every operation, so that the result does not hang on the search."""
  cell = (('channel_gate', 0), ('channel_gate', 1))
  genotype = genotypes.Genotype(3 * (cell,), (2, 3, 4), 3 * (cell,), (2, 3, 4))
  path = searched / 'genotype.json'
  before = path.read_text()
  try:
    genotypes.save(path, genotype, space='gated', seed=0, step=2)
    out = start(folder, commands()[2], '--json')
  finally:
    path.write_text(before)
  values = json.loads(out)
  assert values['space'] == 'gated'
  # Of the second of three cells, a reduction to 16 channels at 4x4: from the
  # 24 of the stem and of the first cell, and six gates of 16 x 16.
  part = values['parts'][2]
  assert part['params'] == 2 * (24 * 16 + 32) + 6 * (16 * 16 + 32)
  assert part['macs'] == 2 * 24 * 16 * 8**2 + 6 * 16 * 16


@pytest.mark.slow
def test_the_page_retrains_in_a_second_process(folder, searched):
  start(folder, commands()[1], *TINY)
  result = json.loads((folder / 'runs' / 'again' / 'result.json').read_text())
  assert result['origin']['space'] == 'gated'
  assert result['genotype'] == json.loads(
      (searched / 'result.json').read_text())['genotype']
  assert result['evaluations'][0]['kind'] == 'given'


def test_the_page_is_one_page():
  assert len(PAGE.splitlines()) < 130
  assert all(len(line) <= 80 for line in blocks('python')[0].splitlines())


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize('name', operations.OPS)
def test_every_row_of_the_package_is_sound(name):
  operations.check(name)


@pytest.fixture
def tables():
  """Restores the tables after the test."""
  with (mock.patch.dict(operations.OPS), mock.patch.dict(counting.OP_COUNTS),
        mock.patch.dict(spaces.SPACES)):
    yield


def run(op, tmp_path, capsys):
  """Exit code and stderr of a run on a space of an operation's."""
  spaces.SPACES['own'] = spaces.Space('own', ('skip_connect', op))
  config = tmp_path / 'config.py'
  config.write_text(
      'from rome_jax import config as config_lib\n'
      'def get_config():\n'
      '  config = config_lib.defaults()\n'
      "  config.space = 'own'\n"
      '  return config\n')
  code = run_lib.main([f'--config={config}', f'--workdir={tmp_path / "run"}'])
  return code, capsys.readouterr().err


class Layer(nn.Module):
  """What a user may get wrong."""

  norm: object
  stride: int = 1
  leaf: str = 'kernel'
  noise: bool = False
  shrink: int = 0

  @nn.compact
  def __call__(self, x):
    x = x[:, ::self.stride, ::self.stride]
    x = x * self.param(self.leaf, nn.initializers.ones, x.shape[-1:])
    if self.noise:
      x += self.make_rng('noise')[0]
    return self.norm()(x)[..., self.shrink:]


def count(channels, size, stride, affine):
  return counting.Cost(channels * (3 if affine else 1), 0)


@pytest.mark.parametrize('build, message', [
    (lambda c: Layer(c.norm), 'with stride 2 turns (2, 5, 5, 4) into (2, 5, '
     '5, 4); it must give (2, 3, 3, 4)'),
    (lambda c: Layer(c.norm, c.stride, shrink=1), 'must give (2, 5, 5, 4)'),
    (lambda c: Layer(c.norm, c.stride, leaf='gamma'),
     "parameter 'gamma'; its name must be one of kernel, scale, bias"),
    (lambda c: Layer(lambda: nn.BatchNorm(True), c.stride),
     'keeps batch_stats; in a search'),
    (lambda c: Layer(operations.BatchStatistics, c.stride),
     'gives 12 parameters for channels=4, stride=1, affine=True, but the '
     'operation has 4'),
])
def test_a_wrong_operation_is_one_sentence(build, message, tables, tmp_path,
                                           capsys):
  operations.OPS['mine'], counting.OP_COUNTS['mine'] = build, count
  code, err = run('mine', tmp_path, capsys)
  assert code == 2 and err.count('\n') == 1
  assert "'mine'" in err and message in err
  assert not (tmp_path / 'run').exists()


def test_a_sound_operation_passes(tables):
  counting.OP_COUNTS['mine'] = count
  operations.OPS['mine'] = lambda c: Layer(c.norm, c.stride, 'scale')
  operations.check('mine')


def test_a_missing_count_is_one_sentence(tables, tmp_path, capsys):
  operations.OPS['mine'] = lambda c: Layer(c.norm, c.stride)
  code, err = run('mine', tmp_path, capsys)
  assert code == 2 and err.count('\n') == 1
  assert "'mine' has no row in counting.OP_COUNTS" in err
  assert not (tmp_path / 'run').exists()


def test_a_misspelt_operation_is_one_sentence(tables, tmp_path, capsys):
  code, err = run('sep_conv_3x33', tmp_path, capsys)
  assert code == 2 and err.count('\n') == 1
  assert "did you mean 'sep_conv_3x3'" in err


@pytest.mark.slow
def test_an_operation_in_the_skeleton_of_nasbench201(tables, tmp_path):
  """The benchmark's table does not know it, and nobody asks."""
  counting.OP_COUNTS['mine'] = count
  operations.OPS['mine'] = lambda c: Layer(c.norm, c.stride, 'scale')
  spaces.SPACES['own'] = spaces.NASBENCH201.restrict(
      name='own', ops=('none', 'skip_connect', 'mine'))
  config = fields.defaults()
  config.space, config.compilation_cache = 'own', ''
  for part in (config.search, config.retrain):
    part.cells, part.channels, part.augment = 3, 2, 'none'
  config.search.k, config.search.max_steps = 1, 2
  config.retrain.epochs, config.retrain.batch_size = 1, 700
  config.retrain.auxiliary = False
  assert run_lib.run(config, tmp_path / 'run') == 0
  result = json.loads((tmp_path / 'run' / 'result.json').read_text())
  assert 'table' not in result and result['evaluations']
