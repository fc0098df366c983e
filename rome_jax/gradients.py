"""Values and gradients over K sampled architectures (Eq. 20, 21).

`parallel` names how the K samples are evaluated:

* 'scan': one after the other, the gradient summed on the way. Memory is that
  of one sample, whatever K.
* 'vmap': all at once. K times the memory; fewer and larger operations.

Nothing here knows of networks: `function` is any pure function, so the
bilevel step is proven on quadratics with closed forms.
"""

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


PARALLEL = {'scan': _scan, 'vmap': _vmap}


def sum_over_samples(function, samples, parallel='scan'):
  """The sum of function(sample) over the leading axis of `samples`.

  Args:
    function: sample -> pytree of arrays (say, a loss and its gradient).
    samples: pytree whose leaves have a leading axis of K.
    parallel: a name of PARALLEL.

  Raises:
    UserError: `parallel` is unknown.
  """
  if parallel not in PARALLEL:
    raise errors.UserError(
        f'parallel={parallel!r} is unknown; known: {", ".join(PARALLEL)}'
        f'{errors.near_miss(parallel, PARALLEL)}')
  return PARALLEL[parallel](function, samples)
