"""`--check`: everything is checked, nothing is compiled."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import CONFIG

from rome_jax import data, spaces
from rome_jax.cli import run as run_lib

CELL = ("Genotype(normal=[('skip_connect', 0), ('max_pool_3x3', 1), "
        "('skip_connect', 0), ('sep_conv_3x3', 2)], normal_concat=[2, 3], "
        "reduce=[('skip_connect', 0), ('skip_connect', 1), ('skip_connect', "
        "0), ('sep_conv_3x3', 1)], reduce_concat=[2, 3])")
_COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: _COMPILED.append(event))


def compiled():
  return [event for event in _COMPILED if 'backend_compile' in event]


@pytest.fixture(autouse=True)
def nothing_compiled_yet(tiny, monkeypatch):
  monkeypatch.setitem(spaces.SPACES, 'tiny', tiny)
  jax.clear_caches()
  _COMPILED.clear()


@pytest.fixture
def flags(tmp_path):
  path = tmp_path / 'tiny.py'
  path.write_text(CONFIG.format(cache=''))
  return [f'--config={path}', f'--workdir={tmp_path / "run"}', '--check']


def test_compiling_would_be_seen():
  """Even what is compiled without jit: the next tests can fail."""
  jnp.arange(3) + 1
  assert compiled()


@pytest.mark.parametrize('more, words', [
    ([], [
        'config: rome_v2 in tiny',
        # scikit-learn's 1,797 digits, a fifth of each class held out.
        'data: digits, 1,438 training and 359 test images of 8 x 8 x 1, 10 '
        'classes',
        'search: 30 steps of 16 images, K=2; 719 images for theta, 719 for '
        'alpha and beta; 2 cells of 2 channels',
        'retraining: 1 times 29 steps of 48 images; 2 cells of 2 channels']),
    (['--config.method=spos'], ['search: 30 steps of 16 images, K=1']),
    (['--config.retrain.seeds=0'], ['search: 30 steps']),
    ([f'--config.genotype={CELL}', '--config.retrain.seeds=3'], [
        'retraining: 3 times 29 steps',
        f'genotype: {CELL}'])])
def test_it_says_what_it_checked(flags, more, words, capsys, tmp_path):
  assert run_lib.main([*flags, *more]) == 0
  lines = capsys.readouterr().out.splitlines()
  for text in words:
    assert any(line.startswith(text) for line in lines), (text, lines)
  assert len(lines) <= 5
  assert compiled() == []
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('more, words', [
    (['--config.search.k=-1'], 'search.k=-1'),
    (['--config.genotype=DARTS_V3'], 'DARTS_V3'),
    (['--config.search.batch_size=720'], 'batch_size=720'),
    (['--config.retrain.batch_size=1439'], 'batch_size=1439'),
    (['--config.search.epochs=0'], 'config.search.epochs=0 gives no steps'),
    (['--config.retrain.epochs=0'], 'config.retrain.epochs=0 gives no steps'),
    (['--config.retrain.auxiliary=true', '--config.space=nasbench201',
      '--config.search.cells=3', '--config.retrain.cells=3'],
     'config.retrain.auxiliary must be false'),
    (['--config.dataset=cifar10', '--config.data_dir=/nowhere'], '/nowhere'),
    (['--dry-run'], '--check compiles nothing')])
def test_a_mistake_is_one_sentence(flags, more, words, capsys):
  code = run_lib.main([*flags, *more])
  out, err = capsys.readouterr()
  assert code == 2 and out == ''
  assert words in err and err.count('\n') == 1
  assert compiled() == []


def test_images_that_cannot_be_read_are_found(flags, capsys):
  """The first batch is read; a data set of files is otherwise only listed."""

  class Broken(data.ArraySplit):

    def get(self, indices):
      raise run_lib.errors.UserError('a.JPEG is no image')

  labels = np.arange(64, dtype=np.int32) % 4
  split = Broken(np.zeros((64, 8, 8, 3), np.uint8), labels)
  dataset = data.Dataset('npz', split, split, 4, 8, 3, (.5,) * 3, (.25,) * 3)
  config = run_lib.command_line.load(flags).config
  with pytest.raises(run_lib.errors.UserError, match='a.JPEG is no image'):
    run_lib.check(config, dataset)


def test_more_steps_than_32_bits_count(flags, capsys):
  """4,000 images, one a step, a million epochs: 4e9 steps."""
  labels = np.arange(8000, dtype=np.int32) % 4
  split = data.ArraySplit(np.zeros((8000, 1, 1, 1), np.uint8), labels)
  dataset = data.Dataset('npz', split, split, 4, 1, 1, (.5,), (.25,))
  config = run_lib.command_line.load(flags).config
  config.search.update(batch_size=1, epochs=10**6, max_steps=0)
  with pytest.raises(run_lib.errors.UserError, match=(
      r'config\.search\.epochs=1000000 gives 4,000,000,000 steps; at most '
      '2,147,483,647')):
    run_lib.check(config, dataset)


def test_where_the_seconds_go():
  """By hand: 20 + 5 + 3 + 1 compiling; 60 less 4 and 3 retraining."""
  spent = run_lib.seconds_spent(
      {'compile_seconds': 20., 'seconds': 30.},
      [{'compile_seconds': 5., 'test_compile_seconds': 3., 'test_seconds': 4.,
        'train_seconds': 60.},
       {'compile_seconds': 0., 'test_compile_seconds': 1., 'test_seconds': 2.,
        'train_seconds': 10.}], 6.)
  assert spent == {'compiling': 29., 'searching': 30.,
                   'retraining': 53. + 7., 'testing': 6., 'writing': 6.}
  assert json.dumps(run_lib.seconds_spent(None, [], 1.)) == json.dumps(
      {'compiling': 0., 'searching': 0., 'retraining': 0., 'testing': 0.,
       'writing': 1.})
