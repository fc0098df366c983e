"""What a rule may ask of the objective, and rules made of rules.

On the net of two cells, float64, against `jax.grad` of the loss itself and the
optimisers as they are.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import two_cells as net

from rome_jax import spaces
from rome_jax.methods import rules, table
from rome_jax.methods import step as step_lib
from rome_jax.methods.method import ARCH, THETA
from rome_jax.methods.rows.darts import darts

KEY = jax.random.key(3)


def objective_of(row=darts, at=0, **options):
  """(objective of step `at`, state, batches)."""
  txs = net.transformations()
  context = step_lib._Context(
      row, net.SPACE, net.loss_fn, *txs, 1.,
      step_lib.Options(**{'k': 1, **options}), lambda f: f)
  return (step_lib.make_objective(context, at), net.make(row)[1],
          net.batches_of())


def close(a, b, rtol=1e-10):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=rtol, atol=1e-12), a, b)


# ----------------------------------------------------------- the objective


def test_gates_in_place_of_the_samples(quick_jit):
  """Their gradient, and that of theta at them; K samples, all with these."""
  rng = np.random.default_rng(0)
  gates = {t: rng.random(15) for t in spaces.CELL_TYPES}

  def loss(theta, gates, batch):
    cells = {t: cell._replace(gates=gates[t]) for t, cell in darts.sample(
        net.SPACE, arch, None, 1.).items()}
    return net.loss_fn(theta, cells, batch, None)[0]

  with jax.enable_x64(True):
    objective, state, batches = objective_of(k=3)
    arch, batch = state.arch, batches['train']
    expected, (dtheta, dgates) = quick_jit(
        jax.value_and_grad(loss, (0, 1)))(state.theta, gates, batch)
    for params, grads in (('gates', dgates),
                          # A sum over K, by default.
                          ('theta', jax.tree.map(lambda a: 3 * a, dtheta))):
      (found, _), slope = quick_jit(
          lambda state, params=params: objective.gradient(
              params, state.theta, state.arch, batch, KEY, gates=gates))(state)
      close((found, slope), (expected, grads))


def test_cells_are_the_first_sample_of_the_same_key(quick_jit):
  """SNAS' draw: of K = 2 the first, as `gradient` draws them."""
  row = table.METHODS['snas']
  objective, state, _ = objective_of(row, k=2)

  @quick_jit
  def first(arch):
    noise = row.noise(net.SPACE, arch, jax.random.split(KEY, 3)[0], 2)
    return row.sample(
        net.SPACE, arch, jax.tree.map(lambda a: a[0], noise), 1.)

  close(quick_jit(lambda arch: objective.cells(arch, KEY))(state.arch),
        first(state.arch), 1e-6)


def test_theta_after_its_optimiser(quick_jit):
  """PyTorch's SGD with clipping, by hand; its pullback with the clip."""
  with jax.enable_x64(True):
    objective, state, _ = objective_of()
    grads = jax.tree.map(lambda a: 3. * np.sin(a), net.theta_of())
    assert optax.tree.norm(grads) > net.CLIP

    def by_hand(grads):
      norm = jnp.sqrt(sum((g ** 2).sum() for g in jax.tree.leaves(grads)))
      return jax.tree.map(
          lambda w, g: w - net.RATE * (g * net.CLIP / norm + net.DECAY * w),
          state.theta, grads)

    def both(function):
      @quick_jit
      def run(grads):
        ahead, pull = jax.vjp(function, grads)
        return ahead, pull(state.theta)
      return run(grads)

    close(both(lambda grads: objective.theta_after(grads, state)),
          both(by_hand))


def test_progress_changes_once_an_epoch():
  """12 steps of 4 epochs: 0, 1/4, 2/4, 3/4 of the search are done."""
  found = [float(objective_of(
      at=at, steps=12, steps_per_epoch=3)[0].progress()) for at in range(12)]
  np.testing.assert_allclose(found, np.repeat([0, .25, .5, .75], 3))


# ---------------------------------------------------------- rules of rules


def test_a_penalty_upon_any_rule():
  """weight * its gradient is added; loss and other metrics stay."""

  def squares(arch, mask):
    return sum(jnp.where(mask[t], a, 0.).sum() ** 2
               for t, a in arch.alpha.items())

  def rule(objective, update, state, batches, key):
    return (7., {'accuracy': .5}), jax.tree.map(jnp.ones_like, state.arch)

  objective, state, batches = objective_of()
  (loss, metrics), grads = rules.penalised(squares, 3., rule)(
      objective, ARCH, state, batches, KEY)
  totals = {t: float(a.sum()) for t, a in state.arch.alpha.items()}
  assert (loss, metrics.pop('accuracy')) == (7., .5)
  close(metrics, {'squares': sum(a ** 2 for a in totals.values())}, 1e-5)
  close(grads.alpha, {t: np.full((5, 3), 1 + 6 * a)
                      for t, a in totals.items()}, 1e-5)


@pytest.mark.parametrize('rule', [
    rules.at_random_gates(), rules.at_worst_gates(steps=2)],
    ids=['random', 'worst'])
def test_perturbed_gates_see_the_epoch(rule, quick_jit):
  """At one state and key, steps differ by the radius of their epoch alone."""
  _, state, batches = objective_of()

  @quick_jit
  def head(at):
    objective = objective_of(at=at, steps=12, steps_per_epoch=6)[0]
    return rule(objective, THETA, state, batches, KEY)[1]['head']

  found = [head(at) for at in (0, 5, 6, 11)]
  close(found[0], found[1])
  close(found[2], found[3])
  assert jnp.abs(found[0] - found[2]).max() > 1e-4
