"""Search methods: a table of rows, and the one bilevel step they share.

A row says how a cell's edges are sampled, how many topology parameters that
takes, and how the genotype is derived. All else is Algorithm 1 of ROME: K
samples for alpha and beta on one half of the data (gradients averaged, Eq.
20), K fresh samples for theta on the other half (summed, Eq. 21).

Nothing here knows of networks: the step takes a `loss_fn`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from rome_jax import genotypes, gradients, sampling
from rome_jax.spaces import Space


class ArchParams(NamedTuple):
  """Architecture parameters, shared by all cells of a type.

  Attributes:
    alpha: {cell type: [S,C]}, a row per site (edge or node).
    beta: {cell type: [size of the method's row]}.
  """

  alpha: dict[str, jax.Array]
  beta: dict[str, jax.Array]


class Method(NamedTuple):
  """One row.

  Attributes:
    beta_sizes: space -> number of topology parameters of each node; () if the
      method has none.
    degrees: space -> active edges of each node of a sampled cell.
    sample_edges: (space, beta, noise, tau) -> edge mask B, [E].
    derive_edges: (space, beta) NumPy -> the edges of the derived cell, in
      rising order; where it has beta.
    log_prob_edges: (space, beta, edges) -> log p(edges; beta), Eq. 18.
  """

  beta_sizes: Callable[[Space], tuple[int, ...]]
  degrees: Callable[[Space], tuple[int, ...]]
  sample_edges: Callable
  derive_edges: Callable
  log_prob_edges: Callable


# -------------------------------------------------------------- derivation
#
# ROME returns argmax p(z). We take the mode of the law that is sampled, edges
# and operations apart (Eq. 4): the likeliest edges by beta, then the likeliest
# operation on each. Maximising the product of Eq. 18 jointly would prefer
# edges that are surer of their operation, which couples topology to
# operations again; with equally sure edges the two are the same.


def _derive_pairs(space, beta):
  """ROME-v1: the likeliest pair of each node."""
  edges, start = [], 0
  for (a, b), d in zip(space.node_edges, space.in_degrees):
    table = sampling.subsets(b - a, d)
    best = table[int(np.argmax(beta[start:start + len(table)]))]
    edges += [a + i for i in np.flatnonzero(best)]
    start += len(table)
  return edges


def _derive_top_k(space, beta):
  """ROME-v2: the two largest beta of each node.

  It is also the likeliest set under sampling without replacement.
  """
  edges = []
  for (a, b), d in zip(space.node_edges, space.in_degrees):
    edges += sorted(a + np.argsort(-beta[a:b], kind='stable')[:d])
  return edges


def _derivable(space, alpha, cell_type):
  """alpha with -inf where nothing may be derived."""
  choices = space.choices(cell_type)
  barred = [i for i, op in enumerate(space.ops) if op in space.not_derived]
  return np.where((choices < 0) | np.isin(choices, barred), -np.inf, alpha)


def _best_ops(space, alpha, cell_type):
  """Per site the likeliest operation."""
  places = np.argmax(_derivable(space, alpha, cell_type), -1)
  choices = space.choices(cell_type)
  return [space.ops[choices[i, place]] for i, place in enumerate(places)]


def _derive_pairs_of_gdas(space, alpha, cell_type):
  """GDAS: a node's best (edge, operation) pairs, even two of one edge."""
  choices, nodes = space.choices(cell_type), []
  sampled = np.where(choices < 0, -np.inf, alpha)
  # Of the law that was sampled: what is only barred has its share of it.
  log_p = _derivable(space, alpha, cell_type) - np.logaddexp.reduce(
      sampled, -1, keepdims=True)
  for (a, b), d in zip(space.node_edges, space.in_degrees):
    best = np.argsort(-log_p[a:b].ravel(), kind='stable')[:d]
    edges, places = np.divmod(best, space.num_choices)
    nodes.append(tuple(
        (space.ops[choices[a + e, i]], int(space.edge_preds[a + e]))
        for e, i in zip(edges, places)))
  return tuple(nodes)


# ---------------------------------------------- probability of the topology


def _log_prob_pairs(space, beta, edges):
  mask = jnp.zeros(space.num_edges).at[edges].set(1)
  total, start = 0., 0
  for (a, b), d in zip(space.node_edges, space.in_degrees):
    table = sampling.subsets(b - a, d)
    row = jnp.argmax((table == mask[a:b]).all(-1))
    total += jax.nn.log_softmax(beta[start:start + len(table)])[row]
    start += len(table)
  return total


def _log_prob_independent(space, beta, edges):
  """The product of Eq. 18, p(e_i; beta) as in Eq. 15.

  It ranks architectures; the probability that Gumbel-Top2 draws a given pair
  is `sampling.log_prob_top_k`.
  """
  log_p = jnp.concatenate(
      [jax.nn.log_softmax(beta[a:b]) for a, b in space.node_edges])
  return log_p[edges].sum()


METHODS: dict[str, Method] = {
    'rome_v1': Method(
        beta_sizes=sampling.pair_sizes,
        degrees=lambda space: space.in_degrees,
        sample_edges=sampling.sample_pairs,
        derive_edges=_derive_pairs,
        log_prob_edges=_log_prob_pairs),
    'rome_v2': Method(
        beta_sizes=lambda space: space.fan_ins,
        degrees=lambda space: space.in_degrees,
        sample_edges=sampling.sample_top_k,
        derive_edges=_derive_top_k,
        log_prob_edges=_log_prob_independent),
    'gdas': Method(
        # Edges have weights only where nodes hold the operations.
        beta_sizes=lambda space: (
            space.fan_ins if space.sites == 'nodes' else ()),
        degrees=lambda space: space.fan_ins,
        sample_edges=sampling.sample_all_edges,
        derive_edges=_derive_top_k,
        log_prob_edges=lambda space, beta, edges: jnp.zeros(())),
}


# ------------------------------------------------- parameters and samples


def init_arch(method: Method, space: Space, rng, alpha_std=1e-3,
              beta_std=1e-3) -> ArchParams:
  """Normal alpha and beta of the given standard deviations (DARTS: 1e-3)."""
  keys = iter(jax.random.split(rng, 2 * len(space.cell_types)))

  def table(std, shape):
    return {t: std * jax.random.normal(next(keys), shape)
            for t in space.cell_types}

  return ArchParams(
      table(alpha_std, (space.num_sites, space.num_choices)),
      table(beta_std, (sum(method.beta_sizes(space)),)))


def gumbel_noise(params: ArchParams, rng, k: int) -> ArchParams:
  """Gumbel(0, 1) noise for K samples: the shapes of `params` after K."""
  leaves, treedef = jax.tree.flatten(params)
  return jax.tree.unflatten(treedef, [
      jax.random.gumbel(key, (k, *leaf.shape), leaf.dtype)
      for key, leaf in zip(jax.random.split(rng, len(leaves)), leaves)])


def sample(method: Method, space: Space, params: ArchParams,
           noise: ArchParams, tau, ops=None):
  """One sampled architecture (unbatched).

  Args:
    method: a row.
    space: the search space.
    params: alpha and beta.
    noise: the same shapes, Gumbel(0, 1).
    tau: temperature.
    ops: {cell type: [S] int}, columns of alpha, to set the operations instead
      of sampling them.

  Returns:
    {cell type: CellArch}.
  """
  arch = {}
  for t in space.cell_types:
    choices = space.choices(t)
    edge_mask = method.sample_edges(space, params.beta[t], noise.beta[t], tau)
    if ops is None:
      op_mask = sampling.gumbel_max(
          sampling.masked_logits(params.alpha[t], choices), noise.alpha[t],
          tau)
    else:
      op_mask = jax.nn.one_hot(ops[t], space.num_choices)
    arch[t] = sampling.compact(
        space, edge_mask, op_mask, method.degrees(space), choices)
  return arch


def log_prob(method: Method, space: Space, params: ArchParams, arch):
  """log p(z; alpha, beta) of ROME Eq. 18, over all cell types."""
  total = 0.
  for t in space.cell_types:
    choices, cell = space.choices(t), arch[t]
    sites = (cell.edges if space.sites == 'edges'
             else np.arange(space.num_sites))
    places = jnp.argmax(jnp.asarray(choices)[sites] == cell.ops[:, None], -1)
    total += method.log_prob_edges(space, params.beta[t], cell.edges)
    total += sampling.log_prob_ops(
        sampling.masked_logits(params.alpha[t], choices), sites, places)
  return total


def derive(method: Method, space: Space,
           params: ArchParams) -> genotypes.Genotype:
  """The genotype of the method's rule."""
  alpha, beta = jax.tree.map(np.asarray, params)
  has_beta = any(method.beta_sizes(space))
  every = range(space.num_edges)
  genotype = genotypes.make(space, {
      t: (method.derive_edges(space, beta[t]) if has_beta else every,
          _best_ops(space, alpha[t], t)) for t in space.cell_types})
  if has_beta or not space.has_topology:
    return genotype
  # No topology parameters, but edges to leave out: by strength of alpha.
  return genotype._replace(**{
      t: _derive_pairs_of_gdas(space, alpha[t], t) for t in space.cell_types})


def diagnostics(method: Method, space: Space,
                params: ArchParams) -> dict[str, jax.Array]:
  """Entropy (nats) and top-1 margin of alpha and beta, means per cell type.

  Of alpha the mean is over edges; of beta, over nodes with a choice. Methods
  without beta have no beta entries.
  """
  scalars = {}
  for t in space.cell_types:
    alpha = sampling.masked_logits(params.alpha[t], space.choices(t))
    scalars[f'alpha_entropy_{t}'] = sampling.entropy(alpha).mean()
    scalars[f'alpha_margin_{t}'] = sampling.margin(alpha).mean()
    groups = _beta_groups(method, space, params.beta[t])
    if groups:
      scalars[f'beta_entropy_{t}'] = jnp.stack(
          [sampling.entropy(g) for g in groups]).mean()
      scalars[f'beta_margin_{t}'] = jnp.stack(
          [sampling.margin(g) for g in groups]).mean()
  return scalars


def _beta_groups(method, space, beta):
  """The logits of each node that has a choice of edges."""
  sizes = method.beta_sizes(space)
  starts = np.cumsum([0, *sizes])
  kept = zip(starts, sizes, space.fan_ins, space.in_degrees)
  return [beta[a:a + size] for a, size, n, d in kept if n > d]


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
  arch: ArchParams
  theta_opt: Any
  arch_opt: Any


class Options(NamedTuple):
  """Choices of the bilevel step that ROME's text leaves open.

  Attributes:
    k: K.
    parallel: how K samples are evaluated, a name of gradients.PARALLEL.
    accumulate: parts of a batch, evaluated one after another.
    sampler: 'iid', or 'strict_fair' operations in the weight step.
    order: 'alpha_first' (Algorithm 1) or 'theta_first' (GDAS).
    theta_reduce, alpha_reduce: 'sum' or 'mean' over the K gradients.
    clip_norm: only to report how often the weight gradient is clipped.
  """

  k: int = 7
  parallel: str = 'scan'
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


def make_update(method: Method, space: Space, loss_fn: Callable,
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
      run on many devices; see `parallel.spread`.

  Returns:
    update(state, batch_theta, batch_alpha) -> (state, metrics), to be jitted.
    Metrics are means over the K samples: train_* on theta's batch, valid_* on
    the architecture's, and tau, grad_norm, clipped.
  """

  def objective(variables, noise, fair, shared, batch, rng):
    theta, params = variables
    tau, trained = shared
    arch = sample(method, space, params, noise, tau)
    if fair is not None:  # In theta's half of the step only.
      arch = jax.tree.map(
          functools.partial(jnp.where, trained),
          sample(method, space, params, noise, tau, fair), arch)
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
    samples = (gumbel_noise(state.arch, noise_rng, options.k),
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
  return {t: sampling.strict_fair_ops(
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
      return state, gradients.sum_over_samples(
          function, samples, options.parallel)
    return gradients.mean_over_parts(
        part_of, (), batch, options.accumulate)[1]

  values, grads = spread(total)((samples, keys), shared, batch)
  return jax.tree.map(lambda a: a / options.k, values), grads
