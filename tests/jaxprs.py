"""What the tests read out of traced programs."""

import jax


def subjaxprs(jaxpr):
  """A jaxpr and all inside it."""
  yield jaxpr
  for eqn in jaxpr.eqns:
    for value in jax.tree.leaves(
        eqn.params, is_leaf=lambda v: hasattr(v, 'eqns') or hasattr(
            v, 'jaxpr')):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from subjaxprs(inner)
