"""Sums over K sampled architectures, and means over the parts of a batch.

The sums over K are those of ROME's Eq. 20 and 21.

`samples` names how the K samples are evaluated:

* 'scan': one after another; the gradients are summed on the way. Memory is
  that of one sample, whatever K is.
* 'vmap': all at once, in K times the memory; fewer and larger operations.

Nothing here knows of networks. `function` is any pure function, so tests prove
the bilevel step on quadratics with closed forms.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rome_jax import errors


def _scan(function, samples):
  first = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype),
                       samples)
  function = jax.jit(function)  # traced once for the shapes and the loop
  total = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype),
                       jax.eval_shape(function, first))

  def body(total, sample):
    return jax.tree.map(jnp.add, total, function(sample)), None

  return lax.scan(body, total, samples)[0]


def _vmap(function, samples):
  return jax.tree.map(lambda a: a.sum(0), jax.vmap(function)(samples))


def mean_over_parts(function: Callable, state: Any, batch: Any,
                    parts: int) -> tuple[Any, Any]:
  """The mean of a function over equal parts of a batch, one after another.

  Part i holds the images i, i + parts, i + 2 parts, and so on. If the batch is
  spread over devices, each thus holds an equal share of every part and moves
  nothing, and the parts are the same as on one device.

  Args:
    function: (state, part, fold) -> (state, pytree of arrays). fold(key) is
      the part's own random key; the key itself if there is only one part.
    state: what each part hands on to the next.
    batch: pytree whose leaves have a leading axis B, a multiple of `parts`.
    parts: the number of parts.

  Returns:
    (last state, mean of the pytrees).
  """
  if parts == 1:
    return function(state, batch, lambda key: key)

  def run(state, part, number):
    return function(
        state, part, lambda key: jax.random.fold_in(key, number))

  cut = jax.tree.map(
      lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1), batch)
  slots = cut, jnp.arange(parts)
  run = jax.jit(run)  # traced once for the shapes and the loop
  shapes = jax.eval_shape(run, state, *jax.tree.map(lambda a: a[0], slots))[1]

  def body(carry, slot):
    state, value = run(carry[0], *slot)
    return (state, jax.tree.map(jnp.add, carry[1], value)), None

  zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
  (state, total), _ = lax.scan(body, (state, zeros), slots)
  return state, jax.tree.map(lambda a: a / parts, total)


WAYS = {'scan': _scan, 'vmap': _vmap}


def sum_over_samples(function: Callable[[Any], Any], samples: Any,
                     way: str = 'scan') -> Any:
  """The sum of function(sample) over the leading axis of `samples`.

  Args:
    function: sample -> pytree of arrays (say, a loss and its gradient).
    samples: pytree whose leaves have a leading axis K.
    way: a name of WAYS.

  Returns:
    The pytree of sums.

  Raises:
    UserError: `way` is unknown.
  """
  if way not in WAYS:
    raise errors.UserError(
        f'samples={way!r} is unknown; known: {", ".join(WAYS)}'
        f'{errors.near_miss(way, WAYS)}')
  return WAYS[way](function, samples)
