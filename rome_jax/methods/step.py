"""The one search step."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from rome_jax.engine import sums
from rome_jax.methods import laws
from rome_jax.methods import method as method_lib
from rome_jax.spaces import Space

# --------------------------------------------------------- the bilevel step


class State(NamedTuple):
  """Everything that a step changes; what a checkpoint holds.

  Attributes:
    step: int32, steps done.
    seed: uint32; the noise of a step depends on (seed, step) alone, so a
      resumed search draws what the uninterrupted one would.
    theta: weights of the supernet.
    arch: alpha and beta.
    theta_opt, arch_opt: Optax states; theta's is that of one vector, all
      weights in tree order.
  """

  step: jax.Array
  seed: jax.Array
  theta: Any
  arch: method_lib.ArchParams
  theta_opt: Any
  arch_opt: Any


class Options(NamedTuple):
  """Choices of the bilevel step that ROME's text leaves open.

  Attributes:
    k: K.
    samples: how K samples are evaluated, a name of sums.WAYS.
    accumulate: parts of a batch, evaluated one after another.
    sampler: 'iid', or 'strict_fair' operations in the weight step.
    order: 'alpha_first' (Algorithm 1) or 'theta_first' (GDAS).
    theta_reduce, alpha_reduce: 'sum' or 'mean' over the K gradients.
    clip_norm: only to report how often the weight gradient is clipped.
  """

  k: int = 7
  samples: str = 'scan'
  accumulate: int = 1
  sampler: str = 'iid'
  order: str = 'alpha_first'
  theta_reduce: str = 'sum'
  alpha_reduce: str = 'mean'
  clip_norm: float = 5.


def init_state(theta, arch, theta_tx, arch_tx, seed: int = 0) -> State:
  """The state before the first step."""
  return State(jnp.zeros((), jnp.int32), jnp.uint32(seed), theta, arch,
               theta_tx.init(ravel_pytree(theta)[0]), arch_tx.init(arch))


def make_update(method: method_lib.Method, space: Space, loss_fn: Callable,
                theta_tx, arch_tx, tau_fn: Callable,
                options: Options,
                spread: Callable = lambda function: function) -> Callable:
  """Builds the step of Algorithm 1.

  Args:
    method: a row of METHODS.
    space: the search space.
    loss_fn: (theta, arch, batch, rng) -> (loss, {name: scalar}); rng is for
      operations that draw noise.
    theta_tx, arch_tx: Optax transformations of theta and (alpha, beta).
    tau_fn: step -> temperature.
    options: see `Options`.
    spread: wraps the sum over K samples, (samples, shared, batch) -> sums, to
      run on many devices; see `mesh.spread`.

  Returns:
    update(state, batch_theta, batch_alpha) -> (state, metrics), to be jitted.
    Metrics are means over the K samples: train_* on theta's batch, valid_* on
    the architecture's, and tau, grad_norm, clipped.
  """

  def objective(variables, noise, fair, shared, batch, rng):
    theta, params = variables
    tau, trained = shared
    arch = method_lib.sample(method, space, params, noise, tau)
    if fair is not None:  # In theta's half of the step only.
      arch = jax.tree.map(
          functools.partial(jnp.where, trained),
          method_lib.sample(method, space, params, noise, tau, fair), arch)
    arch = {t: cell._replace(trained=trained) for t, cell in arch.items()}
    return loss_fn(theta, arch, batch, rng)

  def one(sampled, rng, shared, batch):
    variables, *rest = shared
    values, (dtheta, darch) = jax.value_and_grad(objective, has_aux=True)(
        variables, *sampled, rest, batch, rng)
    # One vector: a supernet has hundreds of kernels, and all that follows
    # (sums, norms, the optimiser, exchange between devices) has one program
    # for each array.
    return values, (ravel_pytree(dtheta)[0], darch)

  def update_arch(state, grads):
    updates, arch_opt = arch_tx.update(grads[1], state.arch_opt, state.arch)
    return state._replace(
        arch=optax.apply_updates(state.arch, updates), arch_opt=arch_opt)

  def update_theta(state, grads):
    updates, theta_opt = theta_tx.update(
        grads[0], state.theta_opt, state.theta)
    return state._replace(
        theta=optax.apply_updates(state.theta, updates), theta_opt=theta_opt)

  def half(tau, state, given):
    """One half of the step: of theta if `trained`, else of alpha and beta."""
    batch, rng, trained = given
    noise_rng, fair_rng, op_rng = jax.random.split(rng, 3)
    samples = (method_lib.gumbel_noise(state.arch, noise_rng, options.k),
               _fair_ops(space, options, fair_rng))
    shared = (state.theta, state.arch), tau, trained
    values, grads = _over_samples(
        one, samples, op_rng, shared, batch, options, spread)
    reduces = options.theta_reduce, options.alpha_reduce
    grads = tuple(_reduced(g, how, options.k)
                  for g, how in zip(grads, reduces))
    theta, unravel = ravel_pytree(state.theta)
    state = lax.cond(trained, update_theta, update_arch,
                     state._replace(theta=theta), grads)
    # Behind the `cond`, or XLA would repeat the update in each slice.
    state = state._replace(theta=unravel(state.theta))
    return state, (values, optax.tree.norm(grads[0]))

  def update(state, batch_theta, batch_alpha):
    # Both halves are one program, run twice: it compiles in half the time.
    rng = jax.random.fold_in(jax.random.key(state.seed), state.step)
    halves = [(batch_alpha, False), (batch_theta, True)]
    if options.order == 'theta_first':
      halves.reverse()
    batches, trained = zip(*halves)
    tau = tau_fn(state.step)
    state, (values, norms) = lax.scan(
        functools.partial(half, tau), state,
        (jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches),
         jax.random.split(rng), jnp.array(trained)))
    norm = norms[trained.index(True)]
    metrics = {'tau': tau, 'grad_norm': norm,
               'clipped': (norm > options.clip_norm).astype(norm.dtype)}
    for prefix, flag in (('valid', False), ('train', True)):
      i = trained.index(flag)
      loss, aux = jax.tree.map(lambda a, i=i: a[i], values)
      metrics |= {f'{prefix}_loss': loss,
                  **{f'{prefix}_{k}': v for k, v in aux.items()}}
    return state._replace(step=state.step + 1), metrics

  return update


def _fair_ops(space, options, rng):
  """Operations of K samples per cell type, or None; see `Options.sampler`."""
  if options.sampler != 'strict_fair':
    return None
  keys = jax.random.split(rng, len(space.cell_types))
  return {t: laws.strict_fair_ops(
      key, options.k, space.num_sites, space.num_choices)
          for t, key in zip(space.cell_types, keys)}


def _reduced(grads, how, k):
  """The sum over K samples as it is, or their mean."""
  return jax.tree.map(lambda a: a / k, grads) if how == 'mean' else grads


def _over_samples(one, samples, rng, shared, batch, options, spread):
  """((mean loss, mean aux), sum of gradients) of K samples, a key for each."""
  # Raw words: a loop may then slice them like any array.
  keys = jax.random.key_data(jax.random.split(rng, options.k))

  def total(samples, shared, batch):
    def part_of(state, part, fold):
      def function(sampled):
        sample, key = sampled
        return one(sample, fold(jax.random.wrap_key_data(key)), shared, part)
      return state, sums.sum_over_samples(
          function, samples, options.samples)
    return sums.mean_over_parts(
        part_of, (), batch, options.accumulate)[1]

  values, grads = spread(total)((samples, keys), shared, batch)
  return jax.tree.map(lambda a: a / options.k, values), grads
