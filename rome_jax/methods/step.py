"""The one search step: the only reader of a method's row.

A step makes the row's updates in order. Each draws K architectures, evaluates
them on one batch and moves theta, the architecture's parameters or both. For
ROME that is Algorithm 1: K samples for alpha and beta on one half of the data
(gradients averaged, Eq. 20), K fresh samples for theta on the other half
(summed, Eq. 21).

Nothing here knows of networks: the step takes a `loss_fn`.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from rome_jax.engine import owners, sums
from rome_jax.methods import laws
from rome_jax.methods.method import (
    ArchParams,
    Mask,
    Method,
    Noise,
    Seen,
    State,
    Update,
    full_mask,
)
from rome_jax.methods.rules import first_order
from rome_jax.spaces import Space, genotypes

Metrics = dict[str, jax.Array]


class OneVector(NamedTuple):
  """An Optax transformation that may be given all weights as one vector.

  For chains that treat every number alike, up to the global norm: then the
  vector is the same as the tree, and compiles to far fewer operations (a
  supernet has hundreds of kernels). Masks by rank or name, LARS, LAMB, Muon
  and `multi_transform` are not the same: pass those as they are.
  """

  init: Callable[[Any], Any]
  update: Callable[..., Any]


class Options(NamedTuple):
  """Choices of the step that a row leaves open.

  Attributes:
    k: K, architectures drawn for an update.
    samples: how they are evaluated, a name of sums.WAYS.
    accumulate: parts of a batch, evaluated one after another.
    sampler: 'iid', or 'strict_fair' operations in theta's update.
    order: 'alpha_first', the order of the row, or 'theta_first' (GDAS).
    theta_reduce, alpha_reduce: 'sum' or 'mean' over the K gradients.
    clip_norm: only to report how often theta's gradient is clipped.
    arch_from: the step at which the architecture begins to move.
    steps: of the whole search, for rules with a schedule; 0: unknown.
    steps_per_epoch: such schedules change once an epoch.
    alpha_decay: L2 of the architecture's optimiser, for the Hessian.
  """

  k: int = 7
  samples: str = 'scan'
  accumulate: int = 1
  sampler: str = 'iid'
  order: str = 'alpha_first'
  theta_reduce: str = 'sum'
  alpha_reduce: str = 'mean'
  clip_norm: float = 5.
  arch_from: int = 0
  steps: int = 0
  steps_per_epoch: int = 1
  alpha_decay: float = 0.


DEFAULTS = Options()


class Objective(NamedTuple):
  """What a gradient rule may ask of the loss over K samples.

  Attributes:
    gradient: (params, theta, arch, batch, key, mask, gates=None) -> ((loss,
      metrics), gradients): means of loss and metrics over K, the gradients of
      'theta', 'arch' or 'both' (a pair), reduced as the options say. With
      `gates`, {cell type: [M]}, every sample has these in place of its own;
      params='gates' then gives their gradient.
    cells: (arch, key, mask) -> {cell type: CellArch}, the first of the K
      samples that `gradient` draws from the same key.
    theta_after: (gradients of theta, state) -> theta after the optimiser has
      had them; differentiable.
    progress: share of the search that is done, as of the present epoch.
      Raises ValueError if nobody said how long the search is.
    space: the search space.
    k: samples of an update, K.
    l2: of the architecture; `gradient` leaves it to the optimiser.
  """

  gradient: Callable[..., Any]
  cells: Callable[..., Any]
  theta_after: Callable[[Any, State], Any]
  progress: Callable[[], jax.Array]
  space: Space
  k: int
  l2: float = 0.


# ------------------------------------------------------------------- state


def init_state(method: Method, space: Space, theta: Any, arch: Any,
               theta_tx: optax.GradientTransformation | OneVector,
               arch_tx: optax.GradientTransformation, seed: int = 0,
               mask: Mask | tuple = (), num_examples: int = 0) -> State:
  """The state before the first step.

  Args:
    method: the row.
    space: the search space.
    theta, arch: initial weights and architecture parameters.
    theta_tx, arch_tx: Optax transformations; `theta_tx` may be `OneVector`.
    seed: of every step's noise.
    mask: {cell type: bool [S,C]}, or () for every candidate.
    num_examples: training images, for methods that weigh them.
  """
  weights = ravel_pytree(theta)[0] if isinstance(
      theta_tx, OneVector) else theta
  state = State(jnp.zeros((), jnp.int32), jnp.uint32(seed), theta, arch,
                theta_tx.init(weights), arch_tx.init(arch), mask)
  init = method.extra.init
  if init is None:
    return state
  told = {'state': state} if takes(init, 'state') else {}
  return state._replace(extra=init(space, num_examples, **told))


def _move(tx, grads, opt, params):
  """(params, opt) after one update of an optimiser."""
  if not isinstance(tx, OneVector):
    updates, opt = tx.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt
  vector, unravel = ravel_pytree(params)
  updates, opt = tx.update(ravel_pytree(grads)[0], opt, vector)
  return unravel(optax.apply_updates(vector, updates)), opt


# --------------------------------------------------------------- objective


def make_objective(context: '_Context', step: jax.Array) -> Objective:
  """The objective of one step, at its temperature."""
  method, space, options = context.method, context.space, context.options
  told = takes(context.loss_fn, 'step')

  def gradient(params, theta, arch, batch, key, mask=(), gates=None):
    noise, keys = _draw(
        method, space, options, arch, key, params != 'arch', mask)

    def one(sampled, key, shared, batch):
      *fixed, mask, tau, step = shared
      flags = {'step': step} if told else {}

      def loss(variables):
        weights, table, gates = _chosen(params, variables, *fixed)
        cells = method.sample(space, table, sampled, tau, mask or None)
        return context.loss_fn(
            weights, _with_gates(cells, gates), batch, key, **flags)

      values, grads = jax.value_and_grad(loss, has_aux=True)(
          _variables(params, *fixed))
      return values, ravel_pytree(grads)[0]

    values, grads = _over_samples(
        one, noise, keys, (theta, arch, gates, mask, context.tau, step), batch,
        options, context.spread)
    unravel = ravel_pytree(_variables(params, theta, arch, gates))[1]
    return values, _reduced_tree(params, unravel(grads), options)

  def cells(arch, key, mask=()):
    noise = _draw(method, space, options, arch, key, False)[0]
    first = jax.tree.map(lambda leaf: leaf[0], noise)
    return method.sample(space, arch, first, context.tau, mask or None)

  def theta_after(grads, state):
    return _move(context.theta_tx, grads, state.theta_opt, state.theta)[0]

  def progress():
    if not options.steps:
      raise ValueError(
          f'steps=0 must be the length of the search: method {method.name!r} '
          'has a schedule')
    epoch = step // options.steps_per_epoch
    return epoch * options.steps_per_epoch / options.steps

  return Objective(
      gradient, cells, theta_after, progress, space, options.k,
      options.alpha_decay)


def takes(function: Callable[..., Any], name: str) -> bool:
  """Whether a function, a loss for instance, takes this keyword."""
  return name in inspect.signature(function).parameters


def _with_gates(cells, gates):
  if gates is None:
    return cells
  return {t: cell._replace(gates=gates[t]) for t, cell in cells.items()}


def _variables(params, theta, arch, gates):
  return {'theta': theta, 'arch': arch, 'both': (theta, arch),
          'gates': gates}[params]


def _chosen(params, variables, theta, arch, gates):
  """(theta, arch, gates) with those that are differentiated in their place."""
  return {'theta': lambda: (variables, arch, gates),
          'arch': lambda: (theta, variables, gates),
          'both': lambda: (*variables, gates),
          'gates': lambda: (theta, arch, variables)}[params]()


def _reduced_tree(params, grads, options):
  if params == 'both':
    theta, arch = grads
    return (_reduced(theta, options.theta_reduce, options.k),
            _reduced(arch, options.alpha_reduce, options.k))
  how = options.theta_reduce if params == 'theta' else options.alpha_reduce
  return _reduced(grads, how, options.k)


def _reduced(grads, how, k):
  """The sum over K samples as it is, or their mean."""
  return jax.tree.map(lambda a: a / k, grads) if how == 'mean' else grads


def _draw(method, space, options, arch, key, of_theta, mask=()):
  """(noise of K samples, K keys for operations that draw)."""
  noise_key, fair_key, op_key = jax.random.split(key, 3)
  noise = method.noise(space, arch, noise_key, options.k)
  if of_theta:
    noise = _fair(space, options, fair_key, noise, mask)
  return noise, _keys(op_key, options.k)


def _keys(key, k):
  # Raw words: a loop may then slice them like any array.
  return jax.random.key_data(jax.random.split(key, k))


def _fair(space: Space, options: Options, key: jax.Array, noise: Noise,
          mask: Mask | tuple) -> Noise:
  """The noise with the operations of `Options.sampler`."""
  if options.sampler != 'strict_fair':
    return noise
  keys = jax.random.split(key, len(space.cell_types))
  allowed: Mapping[str, Any] = dict(mask)
  return noise._replace(ops={
      t: laws.fair_ops(key, options.k, (space.choices(t) >= 0).sum(-1),
                       allowed.get(t))
      for t, key in zip(space.cell_types, keys)})


def _over_samples(one, noise, keys, shared, batch, options, spread):
  """((mean loss, mean metrics), sum of gradients) of K samples."""

  def total(samples, shared, batch):
    def part_of(state, part, fold):
      def function(sampled):
        noise, key = sampled
        return one(noise, fold(jax.random.wrap_key_data(key)), shared, part)
      return state, sums.sum_over_samples(function, samples, options.samples)
    return sums.mean_over_parts(part_of, (), batch, options.accumulate)[1]

  values, grads = spread(total)((noise, keys), shared, batch)
  return jax.tree.map(lambda a: a / options.k, values), grads


# -------------------------------------------------------------------- step


def make_step(method: Method, space: Space, loss_fn: Callable,
              theta_tx: optax.GradientTransformation | OneVector,
              arch_tx: optax.GradientTransformation, tau_fn: Callable,
              options: Options = DEFAULTS,
              spread: Callable = lambda function: function,
              candidates: Callable = lambda theta: ()) -> Callable:
  """Builds the step of a method.

  Args:
    method: the row.
    space: the search space.
    loss_fn: (theta, cells, batch, key) -> (loss, {name: scalar}); `cells` is
      {cell type: CellArch}, `key` is for operations that draw noise. If it
      takes a keyword `want_weight_grads` it is told, by a traced bool, when
      nobody wants theta's gradient, so that the engine may leave it out. If it
      takes a keyword `step` it is told the step, for schedules of its own.
    theta_tx: an Optax transformation of theta; it sees the tree of weights.
      A `OneVector` sees one vector.
    arch_tx: an Optax transformation of the architecture parameters.
    tau_fn: step -> temperature.
    options: see `Options`.
    spread: wraps the sum over K samples, (samples, shared, batch) -> sums, to
      run on many devices; see `devices.mesh.spread`.
    candidates: theta -> `owners.Candidate`s of the supernet, for methods that
      observe the gradient of each.

  Returns:
    step(state, {'train': batch, 'valid': batch}) -> (state, metrics), to be
    jitted. Metrics are means over the K samples: train_* and valid_* by the
    batch of the update, and tau, grad_norm, clipped.
  """
  updates = method.updates
  if options.order == 'theta_first':
    updates = tuple(reversed(updates))
  run = _both_halves if _fits_one_program(method, updates) else _one_by_one

  def step(state: State, batches: Mapping[str, Any]) -> tuple[State, Metrics]:
    keys = jax.random.split(
        jax.random.fold_in(jax.random.key(state.seed), state.step),
        max(2, len(updates)))
    tau = tau_fn(state.step)
    context = _Context(method, space, loss_fn, theta_tx, arch_tx, tau, options,
                       spread, candidates)
    state, metrics, norm = run(context, updates, state, batches, keys)
    metrics = {'tau': tau, 'grad_norm': norm,
               'clipped': (norm > options.clip_norm).astype(norm.dtype),
               **metrics}
    return state._replace(step=state.step + 1), metrics

  return step


def make_boundary(method: Method, space: Space, loss_fn: Callable,
                  theta_tx: optax.GradientTransformation | OneVector,
                  arch_tx: optax.GradientTransformation, tau_fn: Callable,
                  options: Options = DEFAULTS,
                  spread: Callable = lambda function: function) -> Callable:
  """Builds what a method does at the end of an epoch (`Extra.boundary`).

  Args:
    method: a row with a boundary.
    space, loss_fn, theta_tx, arch_tx, tau_fn, options, spread: as in
      `make_step`.

  Returns:
    boundary(state, {'train': batch, 'valid': batch}) -> state, to be jitted;
    the state's step is a whole number of epochs.

  Raises:
    ValueError: (the function) the method has no boundary.
  """

  def boundary(state: State, batches: Mapping[str, Any]) -> State:
    run = method.extra.boundary
    if run is None:
      raise ValueError(f'method {method.name!r} has no boundary')
    # No step draws from this key: a step splits its own, and folds in nothing.
    key = jax.random.fold_in(jax.random.fold_in(
        jax.random.key(state.seed), state.step), 2**32 - 1)
    context = _Context(method, space, loss_fn, theta_tx, arch_tx,
                       tau_fn(state.step), options, spread)
    return run(
        make_objective(context, state.step), state, batches,
        state.step // options.steps_per_epoch, key)

  return boundary


class _Context(NamedTuple):
  """What the updates of one step share."""

  method: Method
  space: Space
  loss_fn: Callable
  theta_tx: Any
  arch_tx: Any
  tau: Any
  options: Options
  spread: Callable
  candidates: Callable = lambda theta: ()


def _named(update: Update, values: Any) -> Metrics:
  loss, aux = values
  return {f'{update.batch}_loss': loss,
          # What is no number is for `Extra.observe` alone.
          **{f'{update.batch}_{name}': value for name, value in aux.items()
             if not jnp.ndim(value)}}


def _one_by_one(context, updates, state, batches, keys):
  """Every update a program of its own: any rule, any parameters."""
  metrics, norm = {}, jnp.zeros(())
  objective = make_objective(context, state.step)
  for update, key in zip(updates, keys):
    def apply(state, update=update, key=key):
      rule = update.rule or first_order
      values, grads = rule(objective, update, state, batches, key)
      state = _observed(context, update, state, grads, batches, values)
      return _applied(context, update, state, grads), _named(update, values), (
          _theta_norm(update, grads))
    state, found, found_norm = _once_it_may_move(
        context.options, update, state, apply)
    metrics |= found
    norm = norm if update.params == 'arch' else found_norm
  return state, metrics, norm


def _once_it_may_move(options, update, state, apply):
  """`apply`, in which the architecture stays as it is before `arch_from`."""
  if update.params == 'theta' or not options.arch_from:
    return apply(state)
  moves = state.step >= options.arch_from
  if update.params == 'arch':
    return _apply_if(moves, apply, state)
  found, *rest = apply(state)
  kept = {name: jax.tree.map(
      functools.partial(jnp.where, moves), getattr(found, name),
      getattr(state, name)) for name in ('arch', 'arch_opt')}
  return found._replace(**kept), *rest


def _apply_if(condition, apply, state):
  """apply(state) -> (state, ...), or the same state and zeros."""
  shapes = jax.eval_shape(apply, state)[1:]

  def skip(state):
    return state, *jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)

  return lax.cond(condition, apply, skip, state)


def _observed(context, update, state, grads, batches, values):
  if context.method.extra.observe is None or update.params == 'arch':
    return state
  of_theta = grads[0] if update.params == 'both' else grads
  found = context.candidates(state.theta)
  seen = Seen(
      context.space, of_theta,
      lambda: owners.site_norms(of_theta, found, context.space),
      batches[update.batch], values[1])
  return state._replace(
      extra=context.method.extra.observe(state.extra, seen))


def _theta_norm(update, grads):
  if update.params == 'arch':
    return jnp.zeros(())
  return optax.tree.norm(grads[0] if update.params == 'both' else grads)


def _applied(context, update, state, grads):
  """The state after the optimisers have had an update's gradients."""
  of_theta, of_arch = {
      'theta': lambda: (grads, None), 'arch': lambda: (None, grads),
      'both': lambda: grads}[update.params]()
  if of_theta is not None:
    theta, opt = _move(
        context.theta_tx, of_theta, state.theta_opt, state.theta)
    state = state._replace(theta=theta, theta_opt=opt)
  if of_arch is not None:
    arch, opt = _move(context.arch_tx, of_arch, state.arch_opt, state.arch)
    state = state._replace(arch=arch, arch_opt=opt)
  return state


# ------------------------------------------- both halves as one program
#
# A private optimisation for one first-order update of the architecture and one
# of theta: both are one program that a scan runs twice, which compiles in half
# the time. A flag says whether weights are trained; where not, the engine
# computes no gradient of weights.


def _fits_one_program(method: Method, updates: tuple[Update, ...]) -> bool:
  return (sorted(u.params for u in updates) == ['arch', 'theta']
          and all(u.rule in (None, first_order) for u in updates)
          and method.extra.observe is None)


def _both_halves(context, updates, state, batches, keys):
  trained = [update.params == 'theta' for update in updates]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves),
                         *(batches[update.batch] for update in updates))
  state, (values, norms) = lax.scan(
      functools.partial(_half, context), state,
      (stacked, keys, jnp.array(trained)))
  metrics = {}
  for i in sorted(range(2), key=lambda i: trained[i]):
    metrics |= _named(
        updates[i], jax.tree.map(lambda a, i=i: a[i], values))
  return state, metrics, norms[trained.index(True)]


def _half(context, state, given):
  """One half of the step: of theta if `trained`, else of the architecture."""
  batch, key, trained = given

  def run(state):
    values, grads = _both_gradients(context, state, batch, key, trained)
    norm = optax.tree.norm(grads[0])
    return _moved(context, state, grads, trained), (
        values, norm)

  if not context.options.arch_from:
    return run(state)
  return _apply_if(
      trained | (state.step >= context.options.arch_from), run, state)


def _both_gradients(context, state, batch, key, trained):
  """(values, (gradient of theta as one vector, of the architecture))."""
  method, space, options = context.method, context.space, context.options
  noise_key, fair_key, op_key = jax.random.split(key, 3)
  noise = method.noise(space, state.arch, noise_key, options.k)
  fair = _fair(space, options, fair_key, noise, state.mask)
  samples = noise, None if fair is noise else fair.ops
  told = [name for name in ('want_weight_grads', 'step')
          if takes(context.loss_fn, name)]

  def one(sampled, key, shared, batch):
    theta, arch, mask, tau, trained, step = shared
    facts = {'want_weight_grads': trained, 'step': step}
    flags = {name: facts[name] for name in told}

    def loss(variables):
      theta, arch = variables
      cells = _cells(method, space, arch, sampled, tau, mask, trained)
      return context.loss_fn(theta, cells, batch, key, **flags)

    values, (dtheta, darch) = jax.value_and_grad(loss, has_aux=True)(
        (theta, arch))
    # One vector: all that follows (sums, norms, the optimiser, exchange
    # between devices) has one program for each array.
    return values, (ravel_pytree(dtheta)[0], darch)

  # All that is traced is an argument: devices run this apart.
  shared = (state.theta, state.arch, state.mask, context.tau, trained,
            state.step)
  values, grads = _over_samples(
      one, samples, _keys(op_key, options.k), shared, batch, options,
      context.spread)
  return values, tuple(
      _reduced(g, how, options.k)
      for g, how in zip(grads, (options.theta_reduce, options.alpha_reduce)))


def _cells(method, space, arch, sampled, tau, mask, trained):
  """The sampled cells of one half, which know whether weights are trained."""
  noise, fair = sampled
  cells = method.sample(space, arch, noise, tau, mask or None)
  if fair is not None:  # In theta's half only.
    cells = jax.tree.map(
        functools.partial(jnp.where, trained),
        method.sample(space, arch, noise._replace(ops=fair), tau,
                      mask or None), cells)
  return cells


def _moved(context, state, grads, trained):
  vector, unravel = ravel_pytree(state.theta)
  one_vector = isinstance(context.theta_tx, OneVector)

  def theta(state):
    of_theta = grads[0] if one_vector else unravel(grads[0])
    updates, opt = context.theta_tx.update(
        of_theta, state.theta_opt, vector if one_vector else state.theta)
    if not one_vector:
      updates = ravel_pytree(updates)[0]
    return state._replace(theta=optax.apply_updates(vector, updates),
                          theta_opt=opt)

  def arch(state):
    moved, opt = _move(context.arch_tx, grads[1], state.arch_opt, state.arch)
    return state._replace(theta=vector, arch=moved, arch_opt=opt)

  state = lax.cond(trained, theta, arch, state)
  # After the `cond`, or XLA would repeat the update in each slice.
  return state._replace(theta=unravel(state.theta))


# -------------------------------------------------------------- diagnostics


def diagnostics(space: Space, arch: Any,
                mask: Mask | tuple = ()) -> dict[str, Any]:
  """Entropy (nats) and top-1 margin of alpha and beta, as scalars.

  `parameterless_share_normal` is the mean probability, over sites, of the
  operations without weights: a less noisy sign of collapse than their number
  in the derived cell.

  `alpha_entropy_normal` is the mean over sites, `alpha_entropy_normal/03` that
  of site 3; beta's are means over nodes with a choice. Methods without beta
  have no beta entries, methods without parameters none at all.
  """
  if not isinstance(arch, ArchParams):
    return {}
  scalars: dict[str, Any] = {}
  masks: Any = mask or full_mask(space)
  for t in space.cell_types:
    alpha = laws.masked_logits(arch.alpha[t], masks[t])
    free = np.array([[place >= 0 and genotypes.free(space.ops[place], space, i)
                      for place in row]
                     for i, row in enumerate(space.choices(t))])
    scalars[f'parameterless_share_{t}'] = (
        jax.nn.softmax(alpha) * free).sum(-1).mean()
    for name, values in (('entropy', laws.entropy(alpha)),
                         ('margin', laws.margin(alpha))):
      scalars[f'alpha_{name}_{t}'] = values.mean()
      scalars |= {f'alpha_{name}_{t}/{site:02d}': value
                  for site, value in enumerate(np.asarray(values))}
    groups = _beta_groups(space, arch.beta[t])
    if groups:
      scalars[f'beta_entropy_{t}'] = jnp.stack(
          [laws.entropy(g) for g in groups]).mean()
      scalars[f'beta_margin_{t}'] = jnp.stack(
          [laws.margin(g) for g in groups]).mean()
  return scalars


def _beta_groups(space, beta):
  """The logits of each node that has a choice of edges."""
  if not beta.size:
    return []
  by_edge = beta.size == space.num_edges
  sizes = space.fan_ins if by_edge else laws.pair_sizes(space)
  starts = [sum(sizes[:i]) for i in range(len(sizes))]
  kept = zip(starts, sizes, space.fan_ins, space.in_degrees)
  return [beta[a:a + size] for a, size, n, d in kept if n > d]
