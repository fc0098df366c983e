"""All operations of an edge at once: the fast evaluation of a full mixture.

The reference way, 'listed', evaluates one slot after the other: a switch
chooses the operation, which reads its input and writes its output through
memory. Here a slot is an edge. All its operations, their gates dense, are one
function: nothing is chosen, and the banks are read and written once per edge.
Weights, banks and the loops over edges and cells are those of `stage`. As
there, the backward pass recomputes an edge before it pulls it: on a CPU it
takes less time than to get the memory to keep it.

Normalising after a 1x1 convolution needs no pass over its output. Let D [n,C]
be its input, n pixels. The moments of D w follow from the sum of D and from
D^T D, and the normalised output is D W + b with rescaled weights. The pullback
at G needs D^T G, from which the gradients of the gate and of w follow, and the
cotangent of D is G A + D B + c. Both are exact, apart from rounding.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rome_jax.engine import drop, kernels, operations, statistics, switch
from rome_jax.engine.archs import CellArch
from rome_jax.engine.layout import Layout, Variant

EPSILON = 1e-5


# --------------------- depthwise and normalised 1x1 convolution, by moments


class _Moments(NamedTuple):
  """Means over pixels.

  Attributes:
    mean: [C'], of F.
    product: [C,C'], of D^T F.
  """

  mean: jax.Array
  product: jax.Array


class _Unit(NamedTuple):
  """ReLU, depthwise convolution, 1x1 convolution, normalisation.

  Attributes:
    x: [B,H,W,C].
    d: [B,h,w,C], what the 1x1 convolution reads.
    pull_depthwise: d's cotangent to (cotangent of relu(x), gradient).
    own: moments of d and d, of this device's part of the batch.
    kernel: [C,C'], of the 1x1 convolution.
    scale: [C'], of the normalisation.
    weights: [C,C'], kernel * scale.
    bias: [C'], so that d @ weights + bias is normalised.
  """

  x: jax.Array
  d: jax.Array
  pull_depthwise: Callable
  own: _Moments
  kernel: jax.Array
  scale: jax.Array
  weights: jax.Array
  bias: jax.Array


def _matrix(x):
  return x.reshape(-1, x.shape[-1])


def _moments(d, f):
  d, f, wide = _matrix(d), _matrix(f), operations.wide(d.dtype)
  product = jnp.matmul(d.T, f, precision='highest',
                       preferred_element_type=wide)
  return _Moments(f.mean(0, dtype=wide), product / len(d))


def _of_whole_batch(moments):
  if statistics.part_of_batch() is None:
    return moments
  return lax.pmean(moments, statistics.BATCH_AXIS)


def _unit(x, depthwise, kernel, stride, dilation):
  d, pull_depthwise = jax.vjp(
      lambda h, w: kernels.depthwise_conv(h, w, stride, dilation),
      jnp.maximum(x, 0), depthwise.astype(x.dtype))
  measured = statistics.measuring(d)
  own = _moments(measured, measured)
  mean, product = _of_whole_batch(own)
  covariance = product - mean[:, None] * mean
  variance = jnp.maximum((kernel * (covariance @ kernel)).sum(0), 0)
  scale = lax.rsqrt(variance + EPSILON)
  weights = kernel * scale
  return _Unit(x, d, pull_depthwise, own, kernel, scale, weights,
               -mean @ weights)


def _output(unit, factor=1.):
  """factor * the normalised output, [B,h,w,C']."""
  y = _matrix(unit.d) @ (factor * unit.weights).astype(unit.d.dtype)
  y = y + (factor * unit.bias).astype(y.dtype)
  return y.reshape(*unit.d.shape[:3], -1)


def _pull_unit(unit, factor, g, want_weight_grads):
  """(gradients of both kernels, of the factor, cotangent of x) at g."""
  own, kernel, weights, bias = unit.own, unit.kernel, unit.weights, unit.bias
  found = _moments(unit.d, g)
  mean, product = _of_whole_batch(found)
  n = g.size // g.shape[-1]

  def projection(moments):
    return (weights * moments.product).sum(0) + bias * moments.mean

  dfactor = n * projection(found).sum()
  scale = factor * unit.scale
  towards = scale * projection(_Moments(mean, product))
  # The cotangent of the 1x1 convolution's output y is
  # scale * (g - mean) - towards * y; here it is pulled on to d at once.
  gd = (_matrix(g) @ (scale * kernel).T.astype(g.dtype)
        + _matrix(unit.d) @ (-(weights * towards) @ kernel.T).astype(g.dtype)
        - ((scale * mean + towards * bias) @ kernel.T).astype(g.dtype))
  dkernel = n * (
      found.product * scale - own.mean[:, None] * (scale * mean)
      - (own.product @ weights + own.mean[:, None] * bias) * towards)
  gd = kernels.settled(gd)
  if want_weight_grads is not None:
    dkernel = jnp.where(want_weight_grads, dkernel, 0)
  dh, ddepthwise = kernels.pulled(
      unit.pull_depthwise, gd.reshape(unit.d.shape), want_weight_grads)
  return (ddepthwise, dkernel), dfactor, jnp.where(unit.x > 0, dh, 0)


# ------------------------------------------------ one operation of an edge
#
# Each is a pair: forward(w, gate, x, draws) -> gated output, and
# pull(wants, w, gate, x, draws, g, want_weight_grads) -> (dw, dgate, dx).


def _kernels_of(w, i):
  return w[f'Depthwise_{i}']['kernel'], w[f'Pointwise_{i}']['kernel']


def _units(module, w, x):
  """The units of a `operations.Separable`, each the input of the next."""
  units = []
  for i, stride in enumerate(module.strides):
    units.append(_unit(x, *_kernels_of(w, i), stride, module.dilation))
    if i + 1 < len(module.strides):
      x = kernels.settled(_output(units[-1]))
  return units


def _separable(module):

  def forward(w, gate, x, draws):
    del draws
    y = _output(_units(module, w, x)[-1], gate if gate.ndim == 0 else gate[0])
    return y if gate.ndim == 0 else y + gate[1].astype(y.dtype)

  def pull(wants, w, gate, x, draws, g, want_weight_grads):
    del wants, draws
    factor, dw, dgate, dx = gate if gate.ndim == 0 else gate[0], {}, None, g
    for i, unit in reversed(list(enumerate(_units(module, w, x)))):
      (ddepthwise, dkernel), dfactor, dx = _pull_unit(
          unit, factor, dx, want_weight_grads)
      dw |= {f'Depthwise_{i}': {'kernel': ddepthwise.astype(dkernel.dtype)},
             f'Pointwise_{i}': {'kernel': dkernel}}
      if dgate is None:
        dgate, factor = dfactor, 1.
    if gate.ndim:
      dgate = jnp.stack([dgate, g.sum(dtype=gate.dtype)])
    return dw, dgate, dx

  return forward, pull


def _any(variant, module):

  def run(w, x, draws):
    rngs = None if draws.seed is None else {
        'noise': jax.random.key(draws.seed)}
    y = module.apply({'params': w}, x, rngs=rngs)
    return drop.dropout(y, draws) if variant.identity else y

  def forward(w, gate, x, draws):
    return switch.gated(gate, run(w, x, draws))

  def pull(wants, w, gate, x, draws, g, want_weight_grads):
    return switch.pull(lambda w, x: run(w, x, draws), wants, w, gate, x, g,
                       want_weight_grads)

  return forward, pull


def _operation(variant):
  """(forward, pull) on the channels that pass the operation."""
  module = variant.module
  if isinstance(module, operations.Partial):
    module = module.module
  plain = (isinstance(module, operations.Separable)
           and module.norm is operations.BatchStatistics)
  return _separable(module) if plain else _any(variant, module)


# ------------------------------------------------- all operations of an edge


class Mixture(NamedTuple):
  """The operations of some edges that have the same ones and one stride.

  Attributes:
    variants: the operations.
    edges: the edges.
  """

  variants: tuple[Variant, ...]
  edges: tuple[int, ...]

  @property
  def size(self) -> int:
    """Number of parameters of an edge."""
    return sum(v.size for v in self.variants)


@functools.cache
def mixtures(layout: Layout) -> tuple[Mixture, ...]:
  """What the edges of a cell evaluate; one if all edges are alike."""
  found: dict[tuple[int, ...], list[int]] = {}
  for edge in range(layout.space.num_edges):
    numbers = tuple(
        i for i, v in enumerate(layout.variants) if edge in v.edges)
    found.setdefault(numbers, []).append(edge)
  return tuple(
      Mixture(tuple(layout.variants[i] for i in numbers), tuple(edges))
      for numbers, edges in found.items())


def mixture_index(layout: Layout) -> jax.Array:
  """[E] int32, the number of each edge's mixture."""
  index = np.zeros(layout.space.num_edges, np.int32)
  for number, mixture in enumerate(mixtures(layout)):
    index[list(mixture.edges)] = number
  return jnp.asarray(index)


def dense(layout: Layout, arch: CellArch, draws: drop.Draws,
          ) -> tuple[jax.Array, drop.Draws]:
  """The gates and draws of all operations of all edges.

  Args:
    layout: of the cell.
    arch: the slots that are listed; an operation that is not has gate 0.
    draws: of the slots of n cells, leading axes [n,M].

  Returns:
    (gates [E,O] or [E,O,2], draws: seeds and skip rates [n,E,O], paths
    [n,E,B]).
  """
  shape = layout.space.num_edges, len(layout.space.ops)

  def spread(values, of_slots=(arch.edges, arch.ops), shape=shape):
    empty = jnp.zeros((len(values), *shape, *values.shape[2:]), values.dtype)
    return empty.at[(slice(None), *of_slots)].set(values)

  gates = jnp.zeros((*shape, *arch.gates.shape[1:]), arch.gates.dtype)
  return gates.at[arch.edges, arch.ops].add(arch.gates), drop.Draws(
      seed=None if draws.seed is None else spread(draws.seed),
      path=None if draws.path is None else spread(
          draws.path, (arch.edges,), shape[:1]),
      skip=None if draws.skip is None else spread(draws.skip))


def gather(layout: Layout, weights: Any) -> jax.Array:
  """[n,E,P]: the parameters of all operations of each edge of n cells.

  Args:
    layout: of each cell.
    weights: per cell, its tree; leaves [edges of the variant, ...].
  """
  found, width = mixtures(layout), max(
      1, *(m.size for m in mixtures(layout)))
  order = np.concatenate([m.edges for m in found])

  def of_mixture(tree, mixture):
    columns = [
        leaf.reshape(len(leaf), -1)[
            np.array([v.edges.index(e) for e in mixture.edges])]
        for v in mixture.variants if v.size
        for leaf in jax.tree.leaves(tree[v.group][v.op])]
    pad = jnp.zeros((len(mixture.edges), width - mixture.size))
    return jnp.concatenate([*columns, pad], 1)

  return jnp.stack([
      jnp.concatenate([of_mixture(tree, m) for m in found])[
          np.argsort(order)] for tree in weights])


def _parts(layout, mixture, w, gates, draws):
  """Per operation, (its functions, weights, gate, draws)."""
  start = 0
  for variant in mixture.variants:
    place = layout.space.ops.index(variant.op)
    own = drop.Draws(*(None if a is None else a[place]
                       for a in (draws.seed, None, draws.skip)))
    yield (_operation(variant), variant.unflatten(w[start:]), gates[place],
           own)
    start += variant.size


def _with_the_rest(layout, y, x, gate):
  """y [B,h,w,C/k] among the gated channels of x that pass operations by."""
  k = layout.partial
  rest = operations.passed_by(x, k, y.shape[1:3])
  return operations.shuffled(y, switch.gated(gate, rest), k)


def _total(layout, mixture, gates):
  """The gate of the channels that pass by: once per operation, summed."""
  return sum(gates[layout.space.ops.index(v.op)] for v in mixture.variants)


def _run(layout, mixture, w, gates, x, draws):
  """The sum of the gated operations, [B,h,w,C]."""
  inside = x[..., :x.shape[-1] // layout.partial]
  y = None
  for (forward, _), own_w, gate, own in _parts(
      layout, mixture, w, gates, draws):
    out = forward(own_w, gate, inside, own)
    inside, y = kernels.settled(inside, out if y is None else y + out)
  if layout.partial == 1:
    return y
  return _with_the_rest(layout, y, x, _total(layout, mixture, gates))


def _pull(layout, wants, mixture, w, gates, x, draws, g, want_weight_grads):
  """(dw [P] or None, dgates or None, dx) of `_run` at g."""
  k, total, dx = layout.partial, None, jnp.zeros_like(x)
  inside = x[..., :x.shape[-1] // k]
  if k > 1:
    y = jnp.zeros((*g.shape[:3], g.shape[3] // k), g.dtype)
    pull_rest = jax.vjp(functools.partial(_with_the_rest, layout), y, x,
                        _total(layout, mixture, gates))[1]
    g, dx, total = pull_rest(g)
  dinside, dws, dgates = dx[..., :x.shape[-1] // k], [], jnp.zeros_like(gates)
  # One operation after the other, so that the maps of one are in memory.
  for variant, ((_, pull), own_w, gate, own) in zip(
      mixture.variants, _parts(layout, mixture, w, gates, draws)):
    dw, dgate, dx_own = pull(
        wants, own_w, gate, inside, own, g, want_weight_grads)
    own_dws = [leaf.reshape(-1) for leaf in jax.tree.leaves(dw)]
    inside, g, dinside, *own_dws = kernels.settled(
        inside, g, dinside + dx_own, *own_dws)
    dws += own_dws
    if wants.gates:
      dgate = dgate if total is None else dgate + total
      place = layout.space.ops.index(variant.op)
      dgates = dgates.at[place].add(dgate.astype(gates.dtype))
  if k > 1:
    dinside = jnp.concatenate([dinside, dx[..., x.shape[-1] // k:]], -1)
  if wants.weights:
    dws = jnp.concatenate(
        [*dws, jnp.zeros(len(w) - mixture.size, w.dtype)])
  return dws if wants.weights else None, dgates if wants.gates else None, (
      dinside)


# --------------------------------------------- as the slots of `stage` are run


@functools.cache
def forward_switch(layout: Layout) -> Callable[..., jax.Array]:
  """(number of the mixture, w [P], gates, reads, draws) -> an edge's output.

  Reads are a `switch.Row` for each bank. There is a switch only if edges
  differ in their operations or stride.
  """

  def branch(mixture):
    def run(w, gates, xs, draws):
      w, x = kernels.settled(w, xs[mixture.variants[0].bank].read())
      return kernels.settled(_run(layout, mixture, w, gates, x, draws))
    return run

  branches = [branch(m) for m in mixtures(layout)]
  return switch.one_by_one(
      lambda index, *args: lax.switch(index, branches, *args))


@functools.cache
def backward_switch(layout: Layout,
                    wants: switch.Wants) -> Callable[..., Any]:
  """The pullback of `forward_switch`, along the edge's path.

  (number, w, gates, reads, draws, g, want_weight_grads) -> (dw or None, dgates
  or None, dx for each bank).
  """

  def branch(mixture):
    bank = mixture.variants[0].bank

    def pull(w, gates, xs, draws, g, want_weight_grads):
      w, x, g = kernels.settled(w, xs[bank].read(), g.read())
      dw, dgates, dx = _pull(
          layout, wants, mixture, w, gates, x, draws,
          drop.along_path(g, draws), want_weight_grads)
      return dw, dgates, [
          dx if i == bank else jnp.zeros(x.bank.shape[1:], dx.dtype)
          for i, x in enumerate(xs)]
    return pull

  branches = [branch(m) for m in mixtures(layout)]
  return switch.one_by_one(
      lambda index, *args: lax.switch(index, branches, *args))
