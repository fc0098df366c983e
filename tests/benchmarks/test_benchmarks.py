"""The benchmark of the search step, at a tiny size."""

import json
from unittest import mock

import jax
import numpy as np
import pytest

from benchmarks import precision, search_step
from rome_jax import errors, spaces
from rome_jax.config import fields

# Few operations compile fast; every kind with its own parameters is in it.
SMALL = spaces.Space(
    'small', ('skip_connect', 'sep_conv_3x3', 'dil_conv_3x3'), num_nodes=2)
# One reduction cell.
TINY = spaces.Space('tiny', ('avg_pool_3x3', 'skip_connect'), num_nodes=1)
TINY_FLAGS = [
    '--space=tiny', '--cells=1', '--channels=2', '--image-size=4',
    '--batch=2', '--repeats=1', '--architectures=2']
KEYS = {
    'parallel', 'k', 'batch', 'trace_seconds', 'compile_seconds',
    'temp_bytes', 'step_seconds', 'images_per_second', 'sample_seconds',
    'torch_ratio_default', 'torch_ratio_channels_last',
    'torch_ratio_default_median', 'torch_ratio_channels_last_median',
    'machine', 'error'}
RATIOS = {key for key in KEYS if key.startswith('torch_ratio')}


@pytest.fixture(autouse=True)
def small_spaces(monkeypatch):
  monkeypatch.setitem(spaces.SPACES, 'tiny', TINY)
  before = jax.config.jax_enable_compilation_cache
  yield
  jax.config.update('jax_enable_compilation_cache', before)


def small_config(k=2):
  config = fields.defaults()
  config.image_size = 8
  config.search.update(
      cells=3, channels=4, batch_size=4, k=k, samples='scan')
  return config


def check_times(row):
  assert row['compile_seconds'] > row['trace_seconds'] > 0
  assert row['temp_bytes'] > 0 and row['sample_seconds'] > 0
  assert row['images_per_second'] == pytest.approx(
      2 * row['k'] * row['batch'] / row['step_seconds'])


def test_json_without_torch_has_every_key_and_null_ratios(monkeypatch, capfd):
  find_spec = search_step.importlib.util.find_spec
  monkeypatch.setattr(
      search_step.importlib.util, 'find_spec',
      lambda name: None if name == 'torch' else find_spec(name))
  assert search_step.main([*TINY_FLAGS, '--k=2', '--json']) == 0
  rows = json.loads(capfd.readouterr().out)  # so nothing else is printed
  assert [(row['parallel'], row['k'], row['batch']) for row in rows] == [
      ('scan', 2, 2), ('vmap', 2, 2)]
  for row in rows:
    assert set(row) >= KEYS
    assert row['error'] is None and row['machine']['cores'] >= 1
    assert all(row[key] is None for key in RATIOS)
    check_times(row)


def test_ratios_with_torch(capfd):
  pytest.importorskip('torch')
  flags = [*TINY_FLAGS, '--k=1', '--parallel=scan', '--json']
  assert search_step.main(flags) == 0
  [row] = json.loads(capfd.readouterr().out)
  assert all(row[key] > 0 for key in RATIOS)
  check_times(row)


def test_row_beyond_the_memory_has_an_error(monkeypatch):
  monkeypatch.setattr(
      search_step.memory, 'available_bytes', lambda: 10)
  config = small_config()
  config.search.update(cells=1)
  row = search_step.measure(TINY, config, with_torch=False)
  assert 'available are' in row['error'] and set(row) >= KEYS
  assert row['temp_bytes'] > 10 and row['step_seconds'] is None
  header, line, error = search_step._table([row]).splitlines()
  assert header.split()[:2] == ['parallel', 'K']
  assert line.split()[:2] == ['scan', '2'] and line.split()[-2:] == ['-', '-']
  assert error.strip() == row['error']


def test_both_networks_are_equal():
  """Summed loss and gradients of two architectures, every weight."""
  torch = pytest.importorskip('torch')
  config = small_config()
  problem = search_step.make_problem(SMALL, config)
  batch = problem.batches[0]
  stack = search_step.sample_groups(problem, config, 2)[0]
  model = search_step.torch_supernet(problem.theta, SMALL, config)
  images = torch.tensor(np.asarray(batch['image']).transpose(0, 3, 1, 2))
  labels = torch.tensor(np.asarray(batch['label']), dtype=torch.int64)
  singles = [jax.tree.map(lambda a, i=i: a[i], stack) for i in range(2)]
  archs = [search_step.arch_to_torch(arch) for arch in singles]

  gradient = jax.jit(search_step.make_gradient(problem, 'scan'))
  loss, grads = gradient(problem.theta, stack, batch)
  expected = search_step.torch_loss_and_gradients(
      model, archs, images, labels)
  assert float(loss) == pytest.approx(expected, abs=1e-5)
  ours = search_step.to_torch(grads, SMALL)
  theirs = dict(model.named_parameters())
  assert set(ours) == set(theirs)
  for name, parameter in theirs.items():
    if parameter.grad is None:
      assert not ours[name].any(), name
    else:
      np.testing.assert_allclose(
          ours[name], parameter.grad, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize('flag,message', [
    ('--k=-1', 'config.search.k=-1'),
    ('--parallel=scam', "config.search.samples='scam'"),
    ('--space=s9', "space='s9'"),
    ('--image-size=5', 'multiple of 2'),
    ('--repeats=0', '--repeats=0 must be at least 1')])
def test_mistakes_are_one_sentence(flag, message, capsys):
  assert search_step.main([*TINY_FLAGS, flag]) == errors.UserError.exit_code
  out, err = capsys.readouterr()
  assert not out and message in err and err.count('\n') == 1


@mock.patch.dict(spaces.SPACES)
def test_precision_prints_what_is_kept(capsys, monkeypatch):
  """Nothing compiled: recomputation and bfloat16 keep less."""
  monkeypatch.setattr(precision, 'cost', lambda args: [])
  try:
    assert precision.run(['--quick', '--no-accuracy']) == 0
  finally:
    jax.config.update('jax_disable_most_optimizations', False)
  found = json.loads(capsys.readouterr().out)
  rows = {(row.get('dtype'), row.get('accumulate'), row.get('remat')):
          row['kept_bytes'] for row in found['kept']}
  whole = rows[None, None, None]
  assert rows[None, 4, None] == whole / 4
  assert rows['bfloat16', None, None] < .8 * whole
  assert rows[None, None, 'cells'] < .5 * whole
  assert precision.run(['--repeats=0']) == errors.UserError.exit_code
  assert '--repeats=0 must be at least 1' in capsys.readouterr().err
