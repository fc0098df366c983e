"""SDARTS: the perturbed gates, and the authors' update written anew."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import two_cells as net

from rome_jax import spaces
from rome_jax.methods import rules, table
from rome_jax.methods import step as step_lib
from rome_jax.methods.method import ARCH, THETA
from rome_jax.methods.rows.darts import darts

RULES = {'sdarts_rs': rules.at_random_gates, 'sdarts_adv': rules.at_worst_gates}


# ------------------------------------------------------------ the simplex


def clip_by_line(gates):
  """`Network.clip` of the authors' code, a line of [E,O] after another."""
  gates = gates.copy()
  for line in gates:
    largest = line.argmax()
    np.clip(line, 0, 1, out=line)
    if line.sum() == 0:
      line[largest] = 1
    line /= line.sum()
  return gates


def test_to_simplex():
  """Also where all of a line is clamped, and where much exceeds 1."""
  gates = np.random.default_rng(0).uniform(-.5, .5, (28, 4))
  gates += np.repeat([.3, -.2, -1.2, 2.], 7)[:, None]
  gates[0] = -.25  # Equal ones: the first becomes 1.
  found = rules.to_simplex(jnp.asarray(gates.ravel(), jnp.float32),
                           jnp.repeat(jnp.arange(28), 4))
  np.testing.assert_allclose(
      found.reshape(28, 4), clip_by_line(gates), rtol=1e-5, atol=1e-7)


# --------------------------------------------------------- special case DARTS


def one_step(row, jit, **options):
  step, state = net.make(row, **options)
  return jit(step)(state, net.batches_of())


@pytest.mark.parametrize('name', RULES)
def test_without_perturbation_it_is_darts(name, quick_jit):
  """epsilon = 0: state and metrics, but for the rounding of a sum of 1."""
  still = darts._replace(updates=(
      ARCH, THETA._replace(rule=RULES[name](smallest=0., largest=0.))))
  with jax.enable_x64(True):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15),
        one_step(still, quick_jit), one_step(darts, quick_jit))


# ------------------------------------------------------ the authors' update


def noise_of(row, number):
  """U(-1, 1) of the step: [E,O] of each cell type."""
  key = jax.random.fold_in(
      net.update_key(row, number, 'theta'), 2**32 - 1)
  return {t: np.reshape(jax.random.uniform(key, (15,), float, -1., 1.), (5, 3))
          for t, key in zip(spaces.CELL_TYPES, jax.random.split(key, 2))}


class Perturbed(net.Torch):
  """`attacker/perturb.py`: the tables hold softmax(alpha) meanwhile."""

  def start(self, epsilon, noise):
    saved = {t: p.detach() for t, p in self.softmax().items()}
    return saved, {
        t: self.clip(p + epsilon * self.torch.tensor(noise[t]))
        for t, p in saved.items()}

  def clip(self, table):
    return self.torch.tensor(clip_by_line(table.detach().numpy()))

  def random(self, epsilon, noise):
    return self.start(epsilon, noise)[1]

  def worst(self, epsilon, noise, steps=7):
    saved, gates = self.start(epsilon, noise)
    before = self.loss('train', saved)
    for _ in range(steps):
      gates = {t: p.requires_grad_() for t, p in gates.items()}
      slopes = self.torch.autograd.grad(
          self.loss('train', gates), list(gates.values()))
      gates = {
          t: self.clip(saved[t] + (
              p + 2 * epsilon / steps * slope.sign() - saved[t]).clamp(
                  -epsilon, epsilon))
          for (t, p), slope in zip(gates.items(), slopes)}
    after = self.loss('train', gates)
    self.risen = bool(before <= after)
    return gates if self.risen else saved


@pytest.mark.parametrize('name', RULES)
def test_steps_are_those_of_the_authors(name, quick_jit):
  """Three steps, with another epsilon in each, for an epoch is a step here."""
  torch = pytest.importorskip('torch')
  row, oracle = table.METHODS[name], Perturbed(torch)
  perturb = oracle.random if name == 'sdarts_rs' else oracle.worst
  with jax.enable_x64(True):
    step, state = net.make(row, steps=4)
    step = quick_jit(step)
    for number in range(3):
      state, metrics = step(state, net.batches_of())
      oracle.step_alpha(oracle.loss('valid', oracle.softmax()))
      gates = perturb(.03 + .27 * number / 4, noise_of(row, number))
      loss = oracle.loss('train', {t: p.detach() for t, p in gates.items()})
      assert float(metrics['train_loss']) == pytest.approx(
          loss.item(), rel=1e-8)
      oracle.step_theta(loss)
      net.check(state, oracle)


def test_gates_that_are_no_worse_are_not_taken(quick_jit):
  """A loss that falls wherever the gates go: theta moves at softmax(alpha)."""

  def loss_fn(theta, cells, batch, key):
    p = jnp.concatenate([cells[t].gates for t in spaces.CELL_TYPES])
    p0 = jnp.concatenate([jax.nn.softmax(jnp.asarray(a)).ravel()
                          for a in net.alpha_of().values()])
    return (theta['head'] * p[:12].reshape(3, 4)).sum() - 100 * (
        (p - p0) ** 2).sum(), {}

  row = darts._replace(updates=(THETA._replace(rule=rules.at_worst_gates()),))
  with jax.enable_x64(True):
    txs = net.transformations()
    _, state = net.make(row)
    step = step_lib.make_step(row, net.SPACE, loss_fn, *txs, lambda step: 1.,
                              step_lib.Options(k=1, steps=10))
    after, _ = quick_jit(step)(state, net.batches_of())
    p0 = darts.sample(net.SPACE, state.arch, None, 1.)['normal'].gates
    moved = (state.theta['head'] - after.theta['head']) / net.RATE
    moved -= net.DECAY * state.theta['head']
  np.testing.assert_allclose(moved, np.reshape(p0[:12], (3, 4)), rtol=1e-9)


# ----------------------------------------------------------------- refusals


@pytest.mark.parametrize('name', RULES)
def test_what_the_rule_needs(name):
  for options, words in (
      ({'k': 2}, 'k=2 must be 1 with the rule'),
      ({'steps': 0}, 'steps=0 must be the length of the search')):
    step, state = net.make(table.METHODS[name], **options)
    with pytest.raises(ValueError, match=words):
      jax.eval_shape(step, state, net.batches_of())


def test_a_mask_stays_out(quick_jit):
  """What a mask excludes has no gate, however the others are moved."""
  mask = {t: np.ones((5, 3), bool) for t in spaces.CELL_TYPES}
  mask['normal'][:, 1] = False
  step, state = net.make(table.METHODS['sdarts_rs'])
  seen = {t: state.theta[f'{t}/tanh'] for t in spaces.CELL_TYPES}
  after, _ = quick_jit(step)(
      state._replace(mask=mask), net.batches_of())
  for t in spaces.CELL_TYPES:
    moved = after.theta[f'{t}/tanh'] - seen[t] * (1 - net.RATE * net.DECAY)
    assert bool(jnp.abs(moved).max() > 1e-5) == (t == 'reduce')
