"""DARTS-ES and DARTS-ADA against a transcription of the authors' tracker.

Eigenvalues are given: the batch holds the one that its epoch measures.
"""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from stopping import StopAfter

from rome_jax import spaces
from rome_jax.methods import curvature, step, table
from rome_jax.methods.method import ArchParams
from rome_jax.methods.rows import darts, robust
from rome_jax.train import loop, metrics, optim
from rome_jax.train.recipes import SearchRecipe

CELLS = spaces.CELL_TYPES
SPACE = spaces.Space('robust', ('a', 'b'), num_nodes=1)
EPOCHS, PER_EPOCH = 50, 3
TIMES = ('time', 'seconds', 'images_per_second', 'step_ms', 'input_wait_ms')


class Tracker:
  """EVLocalAvg of `src/utils.py`, written anew: window 5, every 2 epochs."""

  def __init__(self, epochs):
    self.epochs, self.values, self.averages = epochs, [], []
    self.first, self.past, self.centre = 0, 5, {}

  def update(self, epoch, value):
    self.values.append(value)
    if len(self.values) < 3:
      self.centre[epoch] = -1
    elif epoch < self.epochs - 1:
      if len(self.values) < 5:
        self.averages.append(np.mean(self.values))
      else:
        window = self.values[self.first:self.past]
        assert len(window) == 5
        self.averages.append(np.mean(window))
        self.first, self.past = self.first + 1, self.past + 1
      self.centre[epoch] = epoch - 2 * (5 // 2)

  def stop_epoch(self, epoch, factor=1.3, start=10, delta=4):
    """The epoch to go back to, or None."""
    if self.centre[epoch] - 2 * delta < start:
      return None
    if self.averages[-1] / self.averages[-1 - delta] > factor:
      return self.centre[epoch] - 2 * delta
    return None


def is_measured(epoch, epochs):
  return epoch % 2 == 0 or epoch == epochs - 1


def published_early_stop(values, epochs):
  """(epoch of the decision, epoch of the genotype), or None."""
  tracker = Tracker(epochs)
  for epoch in range(epochs):
    if is_measured(epoch, epochs):
      tracker.update(epoch, values[epoch])
      if epoch != epochs - 1:
        stop = tracker.stop_epoch(epoch)
        if stop is not None:
          return epoch, stop
  return None


def published_course(values, epochs):
  """DARTS-ADA's [(epoch, weight decay after it)], `values` by the boundary.

  Everything goes back, the tracker too.
  """
  tracker, decay, course, kept, epoch = Tracker(epochs), 3e-4, [], {}, 0
  while epoch < epochs:
    value = values[len(course)]
    if is_measured(epoch, epochs):
      tracker.update(epoch, value)
      stop = None if epoch == epochs - 1 else tracker.stop_epoch(epoch)
      final = round(np.log(.03) / np.log(decay), 1) == 1
      if stop is not None and not final:
        epoch, tracker, decay = stop, copy.deepcopy(kept[stop]), 10 * decay
      else:
        kept[epoch] = copy.deepcopy(tracker)
    course.append((epoch, decay))
    epoch += 1
  return course


def sequences():
  rng = np.random.default_rng(0)
  epochs = np.arange(200)
  flat = np.full(200, .3)
  walk = np.abs(np.cumsum(rng.normal(size=200))) + .1
  return {
      'flat': flat, 'falling': 1 / (1 + epochs), 'rising': .1 + .02 * epochs,
      'late': np.where(epochs < 30, .2, .5), 'early': np.where(
          epochs < 14, .2, .5),
      'one peak': np.where(epochs == 26, 3., .2), 'last': np.where(
          epochs < 47, .2, 50.), 'walk': walk,
      'noise': rng.uniform(.1, 1, 200), 'steep': 1.2 ** (epochs / 2),
      'slow': 1.05 ** (epochs / 2)}


SEQUENCES = sequences()


@pytest.fixture(autouse=True)
def given_eigenvalues(monkeypatch):
  """The batch says what is measured."""
  monkeypatch.setattr(curvature, 'dominant', (
      lambda objective, state, batch, key: curvature.Eigenvalue(
          batch.mean(), jnp.zeros(()))))


def loss(theta, cells, batch, key):
  f = sum((cells[t].gates * theta[t][cells[t].edges, cells[t].ops]).sum()
          for t in CELLS)
  return .5 * ((f - batch) ** 2).mean(), {'output': f}


def theta_tx(row, decay=3e-4):
  recipe = SearchRecipe(weight_decay=decay)
  return optim.sgd(lambda step: .05, recipe, row.extra.hyperparameters)


def built(row, epochs=EPOCHS, decay=3e-4):
  """(first state, step, boundary), not compiled."""
  rng = np.random.default_rng(0)
  theta = {t: jnp.asarray(rng.normal(size=(2, 2)), jnp.float32) for t in CELLS}
  arch = ArchParams({t: jnp.zeros((2, 2)) for t in CELLS},
                    {t: jnp.zeros(0) for t in CELLS})
  txs = theta_tx(row, decay), optim.arch_adam(SearchRecipe(alpha_lr=.1))
  parts = (row, SPACE, loss, *txs, lambda step: 1., step.Options(
      k=1, steps=epochs * PER_EPOCH, steps_per_epoch=PER_EPOCH))
  state = step.init_state(row, SPACE, theta, arch, *txs)
  return state, step.make_step(*parts), step.make_boundary(*parts)


def batch_of(value):
  return {'train': jnp.float32([value]), 'valid': jnp.float32([value])}


def marked(state, epoch):
  """The state at the end of an epoch; alpha and theta say which."""
  return state._replace(
      step=jnp.int32((epoch + 1) * PER_EPOCH),
      arch=jax.tree.map(lambda a: jnp.full_like(a, epoch), state.arch),
      theta=jax.tree.map(lambda a: jnp.full_like(a, epoch), state.theta))


@pytest.fixture(name='early', scope='module')
def _early():
  return {epochs: (state, jax.jit(boundary)) for epochs in (50, 25)
          for state, _, boundary in [built(table.METHODS['darts_es'], epochs)]}


@pytest.mark.parametrize('epochs', [50, 25])
@pytest.mark.parametrize('name', SEQUENCES)
def test_early_stop_decides_as_published(early, name, epochs):
  values, (state, boundary) = SEQUENCES[name], early[epochs]
  found = None
  for epoch in range(epochs):
    state = boundary(marked(state, epoch), batch_of(values[epoch]))
    if bool(state.extra.stop):
      found = epoch, int(state.arch.alpha['normal'][0, 0])
      break
    assert int(state.arch.alpha['normal'][0, 0]) == epoch
    latest = float(state.extra.latest)
    if is_measured(epoch, epochs):
      assert latest == pytest.approx(values[epoch], rel=1e-5)
    else:
      assert np.isnan(latest)
  assert found == published_early_stop(values, epochs)


def test_the_sequences_do_both():
  stops = {name: published_early_stop(values, 50)
           for name, values in SEQUENCES.items()}
  assert stops['flat'] is None and stops['late'] == (32, 20)
  assert sum(stop is None for stop in stops.values()) >= 3
  assert len({stop for stop in stops.values() if stop}) >= 3
  lengths = {len(published_course(v, 50)) for v in SEQUENCES.values()}
  assert 50 in lengths and len(lengths) >= 3


@pytest.fixture(name='raising', scope='module')
def _raising():
  state, _, boundary = built(table.METHODS['darts_ada'])
  return state, jax.jit(boundary)


@pytest.mark.parametrize('name', SEQUENCES)
def test_raised_decay_goes_the_published_way(raising, name):
  values, (state, boundary) = SEQUENCES[name], raising
  course, epoch = [], 0
  while epoch < EPOCHS:
    state = boundary(marked(state, epoch), batch_of(values[len(course)]))
    epoch = int(state.step) // PER_EPOCH - 1
    # Weights, alpha and optimiser are those of the same epoch.
    assert int(state.arch.alpha['reduce'][0, 0]) == epoch
    assert int(state.theta['normal'][1, 1]) == epoch
    decay = float(optax.tree.get(state.theta_opt, 'weight_decay'))
    assert decay == float(state.extra.decay)
    course.append((epoch, pytest.approx(decay, rel=1e-5)))
    epoch += 1
  assert published_course(values, EPOCHS) == course


# -------------------------------------------------- real steps, rolled back

# Every epoch is measured, and every ratio is too large: it goes back from
# epoch 6 to epoch 0, twice.
ALWAYS = robust.Rule(every=1, factor=0., start=0)
ADA = robust.raise_decay(darts.darts, ALWAYS)


@pytest.fixture(name='course', scope='module')
def _course():
  state, update, boundary = built(ADA, epochs=9)
  return state, jax.jit(update), jax.jit(boundary)


def advance(state, update, first, count):
  for i in range(first, first + count):
    state, _ = update(state, batch_of(np.sin(i) + 2))
  return state


def same(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_what_follows_is_a_search_from_there_with_more_decay(course):
  """Bit for bit, begun from what was saved at the end of that epoch.

  And up to rounding, since the program is another, plain DARTS begun there
  with an optimiser made for that decay.
  """
  state, update, boundary = course
  saved, steps = None, 0
  for epoch in range(7):
    state = advance(state, update, steps, PER_EPOCH)
    steps += PER_EPOCH
    state = boundary(state, batch_of(1.))
    if epoch == 0:
      saved = jax.tree.map(jnp.copy, state)
  assert int(state.step) == PER_EPOCH and int(state.extra.rises) == 1
  decay = np.float32(3e-4) * np.float32(10)
  fresh = saved._replace(theta_opt=optax.tree.set(
      saved.theta_opt, weight_decay=jnp.float32(decay)))
  ours = advance(state, update, steps, 4)
  theirs = advance(fresh, update, steps, 4)
  same([ours.theta, ours.arch, ours.theta_opt, ours.arch_opt, ours.step],
       [theirs.theta, theirs.arch, theirs.theta_opt, theirs.arch_opt,
        theirs.step])
  plain, plain_update, _ = built(darts.darts, epochs=9, decay=float(decay))
  momentum = optax.tree.get(saved.theta_opt, 'trace')
  plain = plain._replace(
      step=saved.step, theta=saved.theta, arch=saved.arch,
      arch_opt=saved.arch_opt, theta_opt=optax.tree.set(
          plain.theta_opt, trace=momentum))
  plain = advance(plain, jax.jit(plain_update), steps, 4)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
               plain.theta, ours.theta)
  # The decay matters in these four steps.
  still = advance(saved, update, steps, 4)
  assert np.abs(still.theta['normal'] - ours.theta['normal']).max() > 1e-5


def run(course, workdir, stop_after=10**6):
  state, update, boundary = course
  batches = lambda step: batch_of(np.sin(step) + 2)  # noqa: E731

  def observe(state, means, memo):
    return {**means, **{k: float(v) for k, v in ADA.extra.report(
        state.extra).items()}}, memo

  phase = loop.Phase('search', 9 * PER_EPOCH, PER_EPOCH, 1, batches, observe,
                     boundary=boundary)
  # A run donates what it is given, so each array must be one of its own.
  carry = loop.init_carry(
      update, jax.tree.map(jnp.copy, state), batches(0))
  with metrics.MetricsWriter(workdir, tensorboard=False) as writer:
    return loop.run(phase, course.program, carry, loop.Settings(
        workdir, 4, 5, 2), writer, StopAfter(stop_after))


class Compiled(tuple):
  program = None


@pytest.fixture(name='runs', scope='module')
def _runs(course):
  found = Compiled(course)
  state, update, _ = course
  found.program = loop.compile_step(
      update, loop.init_carry(update, state, batch_of(1.)), batch_of(1.))
  return found


def lines(workdir):
  return [{k: v for k, v in row.items() if k not in TIMES}
          for row in metrics.read(workdir)]


def test_resumed_across_a_rollback_it_ends_the_same(runs, tmp_path):
  """9 epochs and twice 6 more; stopped before, at and after the first rise."""
  whole = run(runs, tmp_path / 'whole')
  assert whole.figures['steps'] == (9 + 2 * 6) * PER_EPOCH
  assert int(whole.state.extra.rises) == 2
  decays = [row['weight_decay'] for row in lines(tmp_path / 'whole')]
  assert [min(decays), max(decays)] == pytest.approx([3e-4, 3e-2], rel=1e-5)
  for count in (2, 17, 4, 1):  # 2, 19, 23 and 24 steps in all; it rises at 21
    assert not run(runs, tmp_path / 'cut', stop_after=count).finished
  cut = run(runs, tmp_path / 'cut')
  assert cut.finished
  same(whole.state, cut.state)
  assert lines(tmp_path / 'whole') == lines(tmp_path / 'cut')
  # Exactly at the boundary that goes back.
  assert not run(runs, tmp_path / 'at', stop_after=7 * PER_EPOCH).finished
  same(whole.state, run(runs, tmp_path / 'at').state)
  assert lines(tmp_path / 'whole') == lines(tmp_path / 'at')


# ----------------------------------------------------------------- wrappers


def test_any_row_of_a_mixture_can_have_them():
  row = robust.early_stop(table.METHODS['darts_2nd'])
  assert row.name == 'darts_2nd_es' and row.extra.stop is not None
  assert row.updates == table.METHODS['darts_2nd'].updates
  for name in ('gdas', 'rome_v2', 'spos'):
    with pytest.raises(ValueError, match='samples architectures'):
      robust.raise_decay(table.METHODS[name])
  with pytest.raises(ValueError, match='state of its own already'):
    robust.early_stop(table.METHODS['darts_es'])


def test_the_decay_must_be_in_the_optimiser():
  row = table.METHODS['darts_ada']
  state, _, _ = built(row)
  with pytest.raises(ValueError, match='darts_ada .*inject_hyperparams'):
    step.init_state(row, SPACE, state.theta, state.arch, optax.sgd(.1),
                    optax.sgd(.1))


@pytest.mark.parametrize('name', ['darts_es', 'darts_ada'])
def test_no_array_stands_twice_in_the_first_state(name):
  """Or a run could not donate it."""
  state = built(table.METHODS[name])[0]
  leaves = [leaf for leaf in jax.tree.leaves(state) if leaf.size]
  assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


def test_how_long_the_search_is_must_be_known():
  row = table.METHODS['darts_es']
  txs = theta_tx(row), optax.sgd(.1)
  state, _, _ = built(row)
  boundary = step.make_boundary(
      row, SPACE, loss, *txs, lambda step: 1., step.Options(k=1))
  with pytest.raises(ValueError, match='steps=0 must be the length'):
    boundary(state, batch_of(1.))
