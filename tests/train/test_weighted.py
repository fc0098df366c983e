"""PA&DA through the loop: laws that change by epoch, resumed in an epoch."""

import jax
import numpy as np
import pytest
from stopping import StopAfter

from rome_jax import data, spaces
from rome_jax.config import checks, fields
from rome_jax.config import setup as door
from rome_jax.data import draws
from rome_jax.train import loop, metrics, search

SPACE = spaces.SPACES['nasbench201'].restrict(
    name='two_convolutions', ops=('none', 'skip_connect', 'nor_conv_1x1',
                                  'nor_conv_3x3'))
STEPS, EPOCH = 12, 4


def dataset():
  rng = np.random.default_rng(0)

  def split(n):
    return data.ArraySplit(
        rng.integers(0, 256, (n, 8, 8, 3), np.uint8),
        (np.arange(n) % 3).astype(np.int32))

  return data.Dataset('fake', split(30), split(8), 3, 8, 3, (.5,) * 3,
                      (.25,) * 3)


def prepared(method, unbiased=False):
  config = fields.defaults()
  config.method, config.space, config.stem = method, SPACE.name, 'cifar'
  checks.apply_recipe(config)
  part = config.search
  part.cells, part.channels, part.batch_size, part.epochs = 3, 4, 4, 3
  part.fraction_theta, part.fraction_alpha = .6, .4
  part.augment, part.candidates, part.unbiased = 'shift', 2, unbiased
  checks.validate(config)
  images = dataset()
  return search.prepare(
      door.make_setup(config, images), door.search_recipe(config), images, 0)


def run(prepared, workdir, stop_after=10**6):
  found, program, carry = prepared
  settings = loop.Settings(workdir, 3, 5, 10)
  carry = jax.tree.map(np.array, carry)
  with metrics.MetricsWriter(workdir, tensorboard=False) as writer:
    return loop.run(found.phase, program, carry, settings, writer,
                    StopAfter(stop_after))


@pytest.fixture(autouse=True)
def the_space(monkeypatch):
  monkeypatch.setitem(spaces.SPACES, SPACE.name, SPACE)


@pytest.fixture(name='pada', scope='module')
def _pada():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(spaces.SPACES, SPACE.name, SPACE)
    return prepared('pada')


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_resumed_within_an_epoch(pada, tmp_path):
  """Twice interrupted, the second time in an epoch drawn by weight."""
  whole = run(pada, tmp_path / 'whole')
  assert whole.finished and int(whole.state.step) == STEPS
  for stop_after in (3, 4):
    assert not run(pada, tmp_path / 'cut', stop_after).finished
  cut = run(pada, tmp_path / 'cut')
  assert cut.finished
  assert_equal(cut.state, whole.state)
  lines = [[{k: v for k, v in row.items() if k.startswith(('train', 'alpha'))}
            for row in metrics.read(tmp_path / name)]
           for name in ('whole', 'cut')]
  assert lines[0] == lines[1] and len(lines[0]) > 3
  # The laws moved: lambda was 1/3 and 2/3 in the last two epochs.
  assert np.ptp(whole.state.arch.alpha['normal']) > 0
  assert np.ptp(whole.state.extra.weights) > 0


def test_batches_are_drawn_by_the_state(pada):
  """An epoch's images are `draws.order` of its weights; else each once."""
  phase = pada[0].phase
  plain = phase.batches
  first = np.concatenate([plain(i)['train']['index'] for i in range(EPOCH)])
  assert len(set(first)) == len(first)
  weights = np.arange(18.) % 3
  drawn = plain.weighted(weights)
  found = np.concatenate([drawn(i)['train']['index'] for i in range(EPOCH)])
  rng = data.batches.generator(plain.train.seed, 0, data.batches._DRAW)
  expected = draws.order(draws.quantised(weights), 18, rng)[:len(found)]
  np.testing.assert_array_equal(found, expected)
  assert set(found % 3) <= {1, 2}
  batch = drawn(0)['train']
  np.testing.assert_allclose(batch['weight'], 1 / weights[batch['index']])


def test_scores_are_errors_of_softmax(pada):
  """The state's scores after a step, by hand from the images' logits."""
  found, program, carry = pada
  batch = found.phase.batches(0)
  after = program.call(jax.tree.map(np.array, carry), batch).state
  index = batch['train']['index']
  assert set(np.flatnonzero(after.extra.visited)) == set(index)
  scores = np.asarray(after.extra.score)[index]
  # Between 0 and the distance of two corners of the simplex.
  assert ((scores > 0) & (scores < 2 ** .5)).all()


def test_unbiased_loss_weighs_images():
  loss = search.make_loss(Constant(), batch_size=4, unbiased=True)
  plain = search.make_loss(Constant(), batch_size=4)
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(4, 3)).astype('f')
  batch = {'image': logits, 'label': np.array([0, 2, 1, 0]),
           'index': np.arange(4), 'row': np.arange(4),
           'weight': np.float32([.5, 2, 1, 1])}
  value, found = loss({}, {}, batch, jax.random.key(0))
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  losses = -np.log(p[np.arange(4), batch['label']])
  np.testing.assert_allclose(value, (losses * batch['weight']).mean(),
                             rtol=1e-5)
  np.testing.assert_allclose(
      plain({}, {}, batch, jax.random.key(0))[0], losses.mean(), rtol=1e-5)
  errors = p - np.eye(3)[batch['label']]
  np.testing.assert_allclose(
      found['scores'], np.linalg.norm(errors, axis=-1), rtol=1e-5)


class Constant:
  """A network whose logits are its images."""

  def apply(self, variables, images, arch, want_weight_grads, rngs):
    return images


def test_weighted_draws_are_unbiased():
  """E over draws of the weighted mean is the plain mean: 5 standard errors."""
  values = np.random.default_rng(0).normal(size=18)
  weights = np.random.default_rng(1).uniform(.2, 3., 18)
  batches = data.Batches(
      data.ArraySplit(np.zeros((18, 1, 1, 1), np.uint8), np.zeros(18, int)),
      None, 18, 0, lambda images, rng: images, weights=weights)
  found = []
  for step in range(4000):
    batch = batches(step)
    found.append((batch['weight'] * values[batch['index']]).mean())
  error = np.std(found) / len(found) ** .5
  assert abs(np.mean(found) - values.mean()) < 5 * error
