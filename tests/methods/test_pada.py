"""PA&DA against a transcription of the published code's bookkeeping."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rome_jax import spaces
from rome_jax.methods import method as method_lib
from rome_jax.methods import step as step_lib
from rome_jax.methods import table
from rome_jax.methods.method import Seen, State
from rome_jax.methods.rows import pada as pada_lib

SPACE = spaces.SPACES['nasbench201']
CONVS = [SPACE.ops.index(op) for op in ('nor_conv_1x1', 'nor_conv_3x3')]
N, B, CLIP = 12, 4, 5.


def a_step(rng):
  """(operations of six edges, norms of their gradients, whole norm)."""
  ops = rng.integers(0, 5, 6)
  norms = np.where(np.isin(ops, CONVS), rng.uniform(.5, 3., 6), 0.)
  return ops, norms, rng.uniform(1., 9.)


def table_of(ops, norms):
  found = np.zeros((6, 5), np.float32)
  found[np.arange(6), ops] = norms
  return found


class Published:
  """`train_panda_201.py`, one number at a time."""

  def __init__(self):
    self.value = np.zeros(5)
    self.scores = {}

  def path(self, ops, norms, whole):
    scale = min(1., CLIP / whole)
    for op in CONVS:
      held = [scale * norms[e] for e in range(6) if ops[e] == op]
      if held:
        self.value[op] = (self.value[op] + sum(held) / len(held)) / 2

  def images(self, index, scores):
    for i, s in zip(index, scores):
      self.scores[i] = (self.scores[i] + s) / 2 if i in self.scores else s

  def laws(self, mixing):
    path = mixing * self.value / self.value.sum() + (1 - mixing) / 5
    total = sum(self.scores.values())
    data = np.array([mixing * self.scores.get(i, 0.) / total
                     + (1 - mixing) / N for i in range(N)])
    return path, data


class Objective:
  """What `boundary` asks."""

  space = SPACE

  def __init__(self, mixing):
    self.progress = lambda: mixing


def state_of(row, extra=None):
  known = row.extra.init(SPACE, N) if extra is None else extra
  return State(jnp.zeros((), jnp.int32), jnp.uint32(0), (),
               row.init(SPACE, jax.random.key(0)), (), (), (), known)


def ended(row, known, mixing):
  return row.extra.boundary(
      Objective(mixing), state_of(row, known), {}, 1, jax.random.key(0))


def an_epoch(row, published=None, seed=0, steps=9):
  rng = np.random.default_rng(seed)
  known = row.extra.init(SPACE, N)
  observe = jax.jit(lambda known, norms, whole, index, scores: (
      row.extra.observe(known, Seen(
          SPACE, {'w': whole[None]}, lambda: {'normal': norms},
          {'index': index}, {'scores': scores}))))
  for _ in range(steps):
    ops, norms, whole = a_step(rng)
    index = rng.integers(0, N - 2, B)  # The last two are never seen.
    scores = rng.uniform(0, 1.4, B)
    known = observe(known, table_of(ops, norms), np.float32(whole), index,
                    scores.astype('f'))
    if published:
      published.path(ops, norms, whole)
      published.images(index, scores)
  return known


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('mixing', [.3, .996])
def test_laws_of_an_epoch(mixing, seed):
  published = Published()
  known = an_epoch(pada_lib.pada, published, seed)
  state = ended(pada_lib.pada, known, mixing)
  path, data = published.laws(mixing)
  alpha = state.arch.alpha['normal']
  np.testing.assert_allclose(jnp.exp(alpha) / 5, np.tile(path, (6, 1)),
                             rtol=1e-4)
  np.testing.assert_allclose(state.extra.weights / N, data, rtol=1e-4)
  # A new epoch begins.
  assert not np.any(state.extra.path['']) and not state.extra.visited.any()


def test_a_law_per_site():
  """Each site's scores are its own, normalised over its candidates."""
  row = pada_lib.with_options(pada_lib.pada, by_site=True)
  rng = np.random.default_rng(1)
  known = row.extra.init(SPACE, N)
  value = np.zeros((6, 5))
  for _ in range(5):
    ops, norms, whole = a_step(rng)
    found = table_of(ops, norms)
    known = row.extra.observe(known, Seen(
        SPACE, {'w': jnp.full(1, whole)},
        lambda found=found: {'normal': jnp.asarray(found)},
        {'index': jnp.arange(B)}, {'scores': jnp.ones(B)}))
    for e in range(6):
      if norms[e]:
        value[e, ops[e]] = (
            value[e, ops[e]] + norms[e] * min(1., CLIP / whole)) / 2
  law = jnp.exp(ended(row, known, .5).arch.alpha['normal']) / 5
  total = value.sum(-1, keepdims=True)
  expected = np.where(total > 0, .5 * value / np.where(total, total, 1) + .1,
                      .2)
  np.testing.assert_allclose(law, expected, rtol=1e-4)


def test_delta_gives_operations_without_weights_a_score():
  row = pada_lib.with_options(pada_lib.pada, delta=.5)
  known = row.extra.init(SPACE, N)._replace(
      path={'': jnp.array([0., 0., 2., 4., 0.])})
  law = jnp.exp(ended(row, known, 1.).arch.alpha['normal'][0]) / 5
  np.testing.assert_allclose(
      law, np.array([1.5, 1.5, 2., 4., 1.5]) / 10.5, rtol=1e-5)


def test_half_rows_leave_the_other_half_alone():
  pa = ended(pada_lib.pa, an_epoch(pada_lib.pa), .5)
  assert pa.extra.weights.size == 0 and pada_lib.pa.extra.draw is None
  assert np.ptp(pa.arch.alpha['normal']) > 0
  da = ended(pada_lib.da, an_epoch(pada_lib.da), .5)
  assert np.ptp(da.extra.weights) > 0
  assert not np.any(da.arch.alpha['normal'])


@pytest.mark.parametrize('name', ['pada', 'pa', 'da'])
def test_lambda_0_is_uniform_to_the_bit(name):
  row = getattr(pada_lib, name)
  state = ended(row, an_epoch(row), 0.)
  assert not np.any(state.arch.alpha['normal'])
  assert np.all(state.extra.weights == 1)


def test_bad_values_leave_laws_uniform_or_out():
  """No score at all, scores of 0, nan and infinite ones."""
  row = pada_lib.pada
  fresh = row.extra.init(SPACE, N)
  state = ended(row, fresh, .9)  # An epoch without a visit.
  assert not np.any(state.arch.alpha['normal'])
  assert np.all(state.extra.weights == 1)
  norms = jnp.zeros((6, 5)).at[0, 2].set(jnp.nan).at[1, 3].set(2.)
  seen = Seen(SPACE, {'w': jnp.ones(1)}, lambda: {'normal': norms},
              {'index': jnp.array([0, 1, 1, 2])},
              {'scores': jnp.array([jnp.nan, jnp.inf, 1., 0.])})
  known = row.extra.observe(fresh, seen)
  np.testing.assert_allclose(known.path[''], [0, 0, 0, 1, 0])
  np.testing.assert_allclose(known.score[:3], [0, 1, 0])
  assert known.visited[:4].tolist() == [False, True, True, False]
  state = ended(row, known, .5)
  assert np.isfinite(state.arch.alpha['normal']).all()
  np.testing.assert_allclose(state.extra.weights.sum(), N, rtol=1e-5)


def test_paths_follow_the_law():
  """Frequencies of operations within 5 sigma, at every site."""
  law = np.array([.05, .05, .3, .5, .1])
  arch = method_lib.ArchParams(
      {'normal': jnp.tile(jnp.log(5 * law), (6, 1)).astype('f')},
      {'normal': jnp.zeros(0)})
  k = 20_000
  noise = pada_lib.pada.noise(SPACE, arch, jax.random.key(2), k)
  ops = jax.jit(jax.vmap(lambda noise: pada_lib.pada.sample(
      SPACE, arch, noise, 1.)['normal'].ops))(noise)
  for e in range(6):
    found = np.bincount(ops[:, e], minlength=5) / k
    assert (abs(found - law) < 5 * np.sqrt(law * (1 - law) / k)).all()


def test_first_epoch_is_spos_bit_for_bit():
  """lambda is 0 in it: same paths, same weights."""
  weights = {'w': np.linspace(-1, 1, 5).astype('f')}

  def loss(theta, cells, batch, key):
    del key
    cell = cells['normal']
    value = (theta['w'][cell.ops] * cell.gates * batch['x']).sum()
    return value ** 2, {'scores': jnp.ones(B)}

  txs = optax.sgd(.1), optax.identity()
  batch = {'train': {'x': jnp.float32(.3), 'index': jnp.arange(B)}}
  found = {}
  for name in ('spos', 'pada'):
    row = table.METHODS['spos'] if name == 'spos' else pada_lib.pada
    step = jax.jit(step_lib.make_step(
        row, SPACE, loss, *txs, lambda step: 1., step_lib.Options(k=1)))
    state = step_lib.init_state(
        row, SPACE, weights, row.init(SPACE, jax.random.key(0)), *txs,
        num_examples=N)
    for _ in range(3):
      state, metrics = step(state, batch)
    found[name] = state.theta['w']
    assert 'train_scores' not in metrics
  np.testing.assert_array_equal(found['spos'], found['pada'])
