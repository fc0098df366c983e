"""Gradient rules: where the gradient of one update comes from.

A rule is (objective, update, state, batches, key) -> ((loss, metrics),
gradients), gradients of `update.params`: of theta, of the architecture, or a
pair of both. `step.Objective` sums over K samples and over devices, so a rule
never sees a sample.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from rome_jax.engine import archs
from rome_jax.methods.method import (
    ArchParams,
    GradientRule,
    Mask,
    State,
    Update,
    full_mask,
)

Gates = dict[str, jax.Array]  # {cell type: [M]}
Penalty = Callable[[ArchParams, Mask], jax.Array]

# Folded into a step's key for the noise of the rules below: no update splits
# a key into as many.
_OWN_NOISE = 2**32 - 1


def first_order(objective: Any, update: Update, state: State,
                batches: Mapping[str, Any], key: jax.Array) -> tuple[Any, Any]:
  """The gradient at the present theta and architecture (DARTS, xi = 0)."""
  return objective.gradient(
      update.params, state.theta, state.arch, batches[update.batch], key,
      state.mask)


# ------------------------------------------------------------- second order


def unrolled(epsilon: float = .01) -> GradientRule:
  """DARTS' second order: the validation loss one step of theta ahead.

  Let g = dL_train/dtheta, and theta' what the optimiser makes of theta once it
  has g. With v = dL_valid/dtheta' and u = (dtheta'/dg)^T v, the gradient of
  L_valid(theta'(alpha), alpha) is

      dL_valid/dalpha (theta', alpha) + (dg/dalpha)^T u     (Eq. 7)

  and its second term is the published central difference (Eq. 8)

      (dL_train/dalpha (theta + R u) - dL_train/dalpha (theta - R u)) / 2R

  with R = epsilon / ||u||. For plain SGD u = -lr v, which gives Eq. 8 as it
  stands, for the R of `architect.py` is epsilon / ||v|| along v. Where the
  code (quark0/darts) takes one step of SGD with momentum and decay, this looks
  through the optimiser as it is, the clipping of the gradient included. All
  four gradients of L_train are of one batch and one noise.

  Args:
    epsilon: length of the step in theta.

  Returns:
    A rule for an update of the architecture; its loss and metrics are those
    at theta'.

  Raises:
    ValueError: (the rule) K is not 1: theta's gradient may be a sum over K
      where alpha's is a mean.
  """

  def rule(objective, update, state, batches, key):
    _check_one_sample(objective, 'unrolled')
    theta, arch, mask = state.theta, state.arch, state.mask

    def of_train(params, theta):
      return objective.gradient(
          params, theta, arch, batches['train'], key, mask)[1]

    ahead, pull = jax.vjp(
        lambda grads: objective.theta_after(grads, state),
        of_train('theta', theta))
    values, (v, direct) = objective.gradient(
        'both', ahead, arch, batches[update.batch], key, mask)
    (u,) = pull(v)
    length = optax.tree.norm(u)
    second = central_difference(
        functools.partial(of_train, 'arch'), theta, u,
        jnp.where(length > 0, epsilon / length, 1.))
    return values, jax.tree.map(jnp.add, direct, second)

  return rule


def central_difference(function: Callable[[Any], Any], x: Any,
                       direction: Any, step: Any) -> Any:
  """[f(x + h d) - f(x - h d)] / 2h; one program for both points.

  Args:
    function: of trees like `x`.
    x: a tree of arrays.
    direction: d, a tree like it.
    step: h.

  >>> float(central_difference(jnp.square, jnp.array(3.), jnp.array(1.), .5))
  6.0
  """

  def at(sign):
    return function(jax.tree.map(
        lambda a, d: a + (sign * step * d).astype(a.dtype), x, direction))

  dtype = jnp.result_type(*jax.tree.leaves(direction))
  return jax.tree.map(lambda ends: (ends[0] - ends[1]) / (2 * step),
                      lax.map(at, jnp.array([1., -1.], dtype)))


def _check_one_sample(objective, name):
  if objective.k != 1:
    raise ValueError(f'k={objective.k} must be 1 with the rule {name}')


# ---------------------------------------------------------------- penalties


def zero_one(arch: ArchParams, mask: Mask) -> jax.Array:
  """FairDARTS' zero-one loss: -mean of (sigmoid(alpha) - .5)^2.

  The mean is over all candidates of all cells (Chu et al., ECCV 2020;
  `separate_loss.py`).

  Args:
    arch: architecture parameters.
    mask: {cell type: bool [S,C]}, the candidates.

  >>> arch = ArchParams({'normal': jnp.array([[0., 9.], [-9., 9.]])}, {})
  >>> mask = {'normal': jnp.array([[True, True], [True, False]])}
  >>> round(float(zero_one(arch, mask)), 3)
  -0.167
  """
  totals = [jnp.array([
      jnp.where(mask[t], (jax.nn.sigmoid(alpha) - .5) ** 2, 0.).sum(),
      jnp.sum(mask[t])]) for t, alpha in arch.alpha.items()]
  squares, number = jnp.stack(totals).sum(0)
  return -squares / number


def penalised(penalty: Penalty, weight: float,
              rule: GradientRule = first_order) -> GradientRule:
  """A rule for L + weight * penalty, for an update of the architecture.

  Args:
    penalty: (architecture parameters, mask) -> scalar.
    weight: its factor.
    rule: of L.

  Returns:
    A rule whose loss is L; the penalty, unweighted, is among the metrics
    under its own name.
  """

  def with_penalty(objective, update, state, batches, key):
    (loss, metrics), grads = rule(objective, update, state, batches, key)
    value, more = jax.value_and_grad(penalty)(
        state.arch, state.mask or full_mask(objective.space))
    grads = jax.tree.map(lambda g, m: g + weight * m, grads, more)
    return (loss, {**metrics, penalty.__name__: value}), grads

  return with_penalty


# ---------------------------------------------------------- perturbed gates


def at_random_gates(smallest: float = .03,
                    largest: float = .3) -> GradientRule:
  """SDARTS-RS: theta's gradient where the gates are moved at random.

  The gates p of the mixture, softmax(alpha) on each edge, become

      clip(p + U(-e, e))

  where e grows from `smallest` towards `largest` over the search, once an
  epoch, and clip is `to_simplex` (Chen and Hsieh, ICML 2020;
  `attacker/perturb.py`). For methods whose gates sum to 1 on each edge.

  Returns:
    A rule for an update of theta.

  Raises:
    ValueError: (the rule) K is not 1, or the length of the search is unknown.
  """

  def rule(objective, update, state, batches, key):
    mixture = _mixture(objective, state, key, 'at_random_gates')
    gates = _random(mixture, _radius(objective, smallest, largest), key)
    return _gradient_at(
        update.params, gates, objective, update, state, batches, key)

  return rule


def at_worst_gates(steps: int = 7, smallest: float = .03,
                   largest: float = .3) -> GradientRule:
  """SDARTS-ADV: theta's gradient where the gates are moved for the worst.

  From the gates of `at_random_gates`, `steps` times

      p <- clip(p0 + clamp(p + (2 e / steps) sign(dL_train/dp) - p0, -e, e))

  where p0 are the gates of the mixture. If L_train has fallen against p0, the
  gates stay p0 (Chen and Hsieh, ICML 2020; `attacker/perturb.py`).
  The published code has BatchNorm use its running statistics meanwhile; here
  a supernet always uses those of the batch.

  Returns:
    A rule for an update of theta.

  Raises:
    ValueError: as `at_random_gates`.
  """

  def rule(objective, update, state, batches, key):
    mixture = _mixture(objective, state, key, 'at_worst_gates')
    radius = _radius(objective, smallest, largest)

    def at(gates):
      (loss, _), slope = _gradient_at(
          'gates', gates, objective, update, state, batches, key)
      return loss, slope

    worst = lax.fori_loop(
        0, steps,
        lambda _, gates: _uphill(
            mixture, gates, at(gates)[1], 2 * radius / steps, radius),
        _random(mixture, radius, key))
    both = {t: jnp.stack([mixture.gates[t], worst[t]]) for t in worst}
    before, after = lax.map(lambda gates: at(gates)[0], both)
    gates = {t: jnp.where(before > after, *ends) for t, ends in both.items()}
    return _gradient_at(
        update.params, gates, objective, update, state, batches, key)

  return rule


def to_simplex(gates: jax.Array, groups: jax.Array) -> jax.Array:
  """The gates of each edge, clamped to 0..1 and divided by their sum.

  Where all are clamped to 0 the largest becomes 1 (SDARTS, `clip`).

  Args:
    gates: [M].
    groups: [M] int, all below M: the edge of each.

  >>> to_simplex(jnp.array([.25, -.1, .25, -.2, -.1]),
  ...            jnp.array([0, 0, 0, 1, 1])).tolist()
  [0.5, 0.0, 0.5, 0.0, 1.0]
  """
  number = len(groups)
  clamped = jnp.clip(gates, 0., 1.)
  sums = jax.ops.segment_sum(clamped, groups, number)[groups]
  largest = jax.ops.segment_max(gates, groups, number)[groups]
  places = jnp.arange(number)
  first = jax.ops.segment_min(
      jnp.where(gates == largest, places, number), groups, number)[groups]
  alone = (places == first).astype(gates.dtype)
  return jnp.where(sums > 0, clamped / jnp.where(sums > 0, sums, 1.), alone)


class _Mixture(NamedTuple):
  """The gates of a mixture as they are, and which sum to 1 together."""

  gates: Gates
  groups: dict[str, np.ndarray]


def _mixture(objective, state, key, name):
  _check_one_sample(objective, name)
  cells = objective.cells(state.arch, key, state.mask)
  return _Mixture(
      {t: cell.gates for t, cell in cells.items()},
      {t: archs.gate_groups(objective.space, t) for t in cells})


def _radius(objective, smallest, largest):
  return smallest + (largest - smallest) * objective.progress()


def _random(mixture, radius, key):
  """Gates within `radius` of the mixture's, uniform before the clip."""
  keys = jax.random.split(
      jax.random.fold_in(key, _OWN_NOISE), len(mixture.gates))
  return _clipped(mixture, {
      t: gates + radius * jax.random.uniform(
          key, gates.shape, gates.dtype, -1., 1.)
      for (t, gates), key in zip(sorted(mixture.gates.items()), keys)})


def _uphill(mixture, gates, slope, step, radius):
  """The gates after a step along `slope`, within `radius` of the mixture's."""
  return _clipped(mixture, {
      t: centre + jnp.clip(
          gates[t] + step * jnp.sign(slope[t]) - centre, -radius, radius)
      for t, centre in mixture.gates.items()})


def _clipped(mixture, gates):
  """`to_simplex`, in which a mask's candidates, of gate 0, have no part."""
  return {t: to_simplex(jnp.where(centre > 0, gates[t], -jnp.inf),
                        mixture.groups[t])
          for t, centre in mixture.gates.items()}


def _gradient_at(params, gates, objective, update, state, batches, key):
  return objective.gradient(
      params, state.theta, state.arch, batches[update.batch], key, state.mask,
      gates)
