"""Ranking: against one network at a time, and a plain calibrated BatchNorm."""

import json
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stopping import StopAfter

from rome_jax import errors, families, spaces
from rome_jax.engine import statistics, weights
from rome_jax.spaces import Sizes, enumeration
from rome_jax.train import ranking

CLASSES = 3
SPACE = spaces.NASBENCH201
NUMBER = 7


@pytest.fixture(scope='module', autouse=True)
def quickly():
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(scope='module')
def network():
  return families.supernet(SPACE, Sizes(3, 4, CLASSES, 8))


@pytest.fixture(scope='module')
def theta(network):
  return weights.init_supernet(network, 0, 8, 3)


@pytest.fixture(scope='module')
def found():
  return enumeration.distinct(SPACE, NUMBER, np.random.default_rng(0))


def batches(number=2, size=8):
  rng = np.random.default_rng(1)
  return [{'image': rng.normal(size=(size, 8, 8, 3)).astype(np.float32),
           'label': rng.integers(0, CLASSES, size)} for _ in range(number)]


@pytest.fixture(scope='module')
def single(network, theta):
  """f(genotype, images): logits of one network, jitted by itself."""
  apply = jax.jit(network.apply)
  return lambda genotype, images: np.asarray(apply(
      {'params': theta}, images, families.arch_of(genotype, SPACE)), np.float64)


def log_softmax(logits):
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_scores_are_those_of_one_network_at_a_time(
    network, theta, found, single):
  """In blocks of 3, of which the last is padded; measures in NumPy. Some
  architectures are given as cells."""
  cells = [families.arch_of(genotype, SPACE) for genotype in found[4:]]
  scores = ranking.rank(
      network, theta, found[:4] + cells, batches(), block=3)
  assert scores.accuracy.shape == scores.loss.shape == (NUMBER,)
  assert scores.rate > 0
  for i, genotype in enumerate(found):
    right, loss = [], []
    for batch in batches():
      logits = single(genotype, batch['image'])
      right += list(logits.argmax(-1) == batch['label'])
      loss += list(-log_softmax(logits)[range(8), batch['label']])
    assert scores.accuracy[i] == pytest.approx(np.mean(right))
    assert scores.loss[i] == pytest.approx(np.mean(loss), rel=1e-4)
  assert len(set(scores.loss)) > 1


# --- Recalibration


def test_first_rows_measure_the_statistics():
  """Against NumPy in float64, bound in a program that also runs unbound."""
  x = np.random.default_rng(0).normal(2, 3, (6, 4, 4, 5))
  program = statistics.measured_on(4, statistics.batch_norm)
  mean, var = x[:4].mean((0, 1, 2)), x[:4].var((0, 1, 2))
  for _ in range(2):
    np.testing.assert_allclose(
        program(jnp.asarray(x, jnp.float32)),
        (x - mean) / np.sqrt(var + 1e-5), atol=1e-5)
    np.testing.assert_allclose(
        statistics.batch_norm(jnp.asarray(x, jnp.float32)),
        (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5), atol=1e-5)


def test_such_statistics_have_no_gradient():
  with pytest.raises(NotImplementedError, match='forward only'):
    jax.grad(lambda x: statistics.measured_on(2, statistics.batch_norm)(
        x).sum())(jnp.ones((3, 1, 1, 1)))


@pytest.mark.parametrize('name', ['nasbench201', 's2', 'nasbench1shot1_1',
                                  'mobile_tiny'])
def test_recalibrated_networks_see_each_image_alone(name, quick_jit):
  """The calibration images themselves get the logits of training, and the
  others' do not depend on what else is in the batch."""
  space = spaces.get_space(name)
  if space.family == 'darts':
    space = space.restrict(num_nodes=1)
  network = families.supernet(space, Sizes(3, 4, CLASSES, 8))
  theta = weights.init_supernet(network, 0, 8, 3)
  genotype, = enumeration.distinct(
      space.restrict(name='drawn'), 1, np.random.default_rng(3))
  arch = families.arch_of(genotype, space)
  images = np.random.default_rng(4).normal(size=(10, 8, 8, 3)).astype(
      np.float32)

  def logits(images):
    return network.apply({'params': theta}, images, arch,
                         rngs={'noise': jax.random.key(0)})

  calibrated = quick_jit(statistics.measured_on(6, logits))
  whole = np.asarray(calibrated(images))
  np.testing.assert_allclose(
      whole[:6], quick_jit(logits)(images[:6]), atol=2e-4)
  other = np.concatenate([images[:6], 5 * images[6:][::-1]])
  other[7] = images[7]
  np.testing.assert_allclose(calibrated(other)[7], whole[7], atol=2e-4)
  assert np.abs(np.asarray(calibrated(other))[9] - whole[9]).max() > 1e-3


def test_recalibrated_scores(network, theta, found, single):
  """Calibration images beside each batch. Images of which half are the
  calibration's own have, on those, the predictions of training."""
  batch, = batches(1)
  scores = ranking.rank(
      network, theta, found[:3], [batch], norm='recalibrated',
      calibration=batch['image'])
  for genotype, loss in zip(found, scores.loss):
    logits = single(genotype, batch['image'])
    assert loss == pytest.approx(
        -log_softmax(logits)[range(8), batch['label']].mean(), rel=1e-4)
  halves = [{key: value[part] for key, value in batch.items()}
            for part in (slice(4), slice(4, 8))]
  in_halves, plain = (
      ranking.rank(network, theta, found[:3], halves, **options)
      for options in (
          {'norm': 'recalibrated', 'calibration': batch['image']}, {}))
  np.testing.assert_allclose(in_halves.loss, scores.loss, rtol=1e-4)
  assert np.abs(plain.loss - scores.loss).max() > 1e-3


# --- The record


@pytest.fixture
def counting(found):
  """A network whose logits say which architecture it is; counts its calls."""
  calls = []

  def apply(variables, images, cells, rngs):
    jax.debug.callback(lambda: calls.append(1))
    ops = cells['normal'].ops
    return jnp.tile(ops[:CLASSES].astype(float), (len(images), 1)) * (
        1 + ops.sum())

  return types.SimpleNamespace(space=SPACE, apply=apply, calls=calls)


@pytest.mark.parametrize('cut', [False, True])
def test_a_ranking_goes_on_where_it_was_stopped(
    counting, found, tmp_path, cut):
  def ranked(path, **options):
    return ranking.rank(
        counting, {}, found, batches(1), block=2,
        record=ranking.Record(path, {'seed': 0}), **options)

  whole = ranked(tmp_path / 'whole.jsonl')
  path = tmp_path / 'ranking' / 'part.jsonl'
  part = ranked(path, stop=StopAfter(3))
  assert len(part.loss) == 4
  if cut:  # The process died in the middle of a line.
    path.write_bytes(path.read_bytes()[:-5])
  jax.effects_barrier()
  counting.calls.clear()
  rest = ranked(path)
  jax.effects_barrier()
  # 7 cells in blocks of 2, the last padded: 2 or 3 blocks were left.
  assert len(counting.calls) == (6 if cut else 4)
  np.testing.assert_array_equal(rest.loss, whole.loss)
  np.testing.assert_array_equal(rest.accuracy, whole.accuracy)
  assert path.read_bytes() == (tmp_path / 'whole.jsonl').read_bytes()
  again = ranked(path)
  np.testing.assert_array_equal(again.loss, whole.loss)
  assert np.isnan(again.rate)


def test_a_record_of_something_else_is_refused(counting, found, tmp_path):
  path = tmp_path / 'a.jsonl'

  def ranked(some, **settings):
    return ranking.rank(counting, {}, some, batches(1),
                        record=ranking.Record(path, settings))

  ranked(found, seed=0)
  with pytest.raises(errors.UserError, match=r'seed=0, not 1'):
    ranked(found, seed=1)
  with pytest.raises(errors.UserError, match=r'cells=7, not 6'):
    ranked(found[:6], seed=0)
  with pytest.raises(errors.UserError, match='digest='):
    ranked(found[::-1], seed=0)
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert lines[0]['space'] == 'nasbench201' and len(lines[1]) == 7


# --- Mistakes


@pytest.mark.parametrize('options, sentence', [
    ({'norm': 'running'}, 'keeps no running statistics'),
    ({'norm': 'recalibrate'}, "did you mean 'recalibrated'"),
    ({'norm': 'recalibrated'}, 'calibration must be images'),
    ({'calibration': np.zeros((1, 8, 8, 3))}, 'None with norm=batch')])
def test_norms_are_checked(counting, found, options, sentence):
  with pytest.raises(errors.UserError, match=sentence):
    ranking.rank(counting, {}, found, batches(1), **options)


def test_batches_are_checked(counting, found):
  with pytest.raises(ValueError, match='batches is empty'):
    ranking.rank(counting, {}, found, [])
  batch, = batches(1)
  with pytest.raises(ValueError, match='padded'):
    ranking.rank(counting, {}, found,
                 [batch | {'mask': np.array([1] * 7 + [0])}])


def test_progress_goes_to_stderr(counting, found, capsys):
  ranking.rank(counting, {}, found, batches(1), block=4, progress=True)
  assert 'rank  100%  cell 7/7' in capsys.readouterr().err
  ranking.rank(counting, {}, found, batches(1), block=4)
  assert capsys.readouterr().err == ''


# --- Several devices


_ON_EIGHT = '''
import os
os.environ['XLA_FLAGS'] = ('--xla_force_host_platform_device_count=8 '
                           '--xla_backend_optimization_level=0')
import jax, json, numpy as np, sys
sys.path.insert(0, 'tests')
from rome_jax import families, spaces
from rome_jax.devices import mesh
from rome_jax.engine import weights
from rome_jax.spaces import Sizes, enumeration
from rome_jax.train import ranking
space = spaces.NASBENCH201.restrict(ops=('noise', 'nor_conv_1x1'))
network = families.supernet(space, Sizes(3, 2, 3, 8))
theta = weights.init_supernet(network, 0, 8, 3)
found = enumeration.distinct(space, 11, np.random.default_rng(0))
rng = np.random.default_rng(1)
batch = {'image': rng.normal(size=(6, 8, 8, 3)).astype(np.float32),
         'label': rng.integers(0, 3, 6)}
calibrated = dict(norm='recalibrated', calibration=batch['image'])
print(json.dumps([ranking.rank(
    network, theta, found, [batch], block=3, mesh=m, **options).loss.tolist()
    for options, m in (
        ({}, None), ({}, mesh.make_mesh(8, 1)),
        (calibrated, None), (calibrated, mesh.make_mesh(2, 2)))]))
'''


def test_devices_share_the_architectures():
  """Blocks of 3 on one device, of 4 and 8 on several; the space has noise."""
  out = subprocess.run([sys.executable, '-c', _ON_EIGHT], check=True, text=True,
                       stdout=subprocess.PIPE).stdout
  one, eight, calibrated, on_four = json.loads(out)
  assert len(set(one)) > 5
  np.testing.assert_allclose(eight, one, rtol=1e-5)
  np.testing.assert_allclose(on_four, calibrated, rtol=1e-5)
