"""The dominant eigenvalue of the validation loss in the architecture.

H is the Hessian of the validation loss in alpha (and beta) at fixed weights.
Its largest eigenvalue rises before DARTS collapses (Zela et al., ICLR 2020:
RobustDARTS). They build H row by row; here its products with vectors are
differences of gradients, since the engine is first order,

  H v  =  [g(alpha + h v) - g(alpha - h v)] / (2 h),    |v| = 1,

and the eigenvalue comes from the Lanczos method, whose basis Q is made
orthogonal again at every iteration. With W = H Q the best values in its span
are the eigenvalues of Q' W (made symmetric). For the largest of them, theta,
and its vector s, the residual |W s - theta Q s| is a bound: H has an eigenvalue
no farther from theta. In exact arithmetic the residual is Lanczos'
|beta_m s_m|; this form also counts what the differences get wrong.

The step h. Three errors meet: h^2/6 |d3 L| of the difference, eps |g| / h of
rounding, and the kinks of ReLU and max pooling, at each of which the gradient
jumps by its share. A Hessian by automatic differentiation, which the authors
take, leaves all jumps out; a difference counts those within h of alpha, which
is noise as long as they are few. The kinks decide. In a supernet of S2 (3
cells, 8 channels, digits of 16 x 16 pixels, batch 64, float32) the eigenvalue
is .43, .37, .33, .29, .27 for h = .007, .02, .05, .1, .2, with residuals of
.048, .037, .014, .007, .006; rounding is below 1e-6 throughout. At h = .05 the
noise, which an early stop must see through, is 4 %, and the bias is shared by
the eigenvalues that it compares. For a smooth loss in float64 pass
(3 eps)^(1/3) = 8.7e-6, which makes the first two errors equal.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from rome_jax.methods import rules
from rome_jax.methods.method import ArchParams, State, full_mask

ITERATIONS = 20
STEP = .05  # h, in logits


class Eigenvalue(NamedTuple):
  """An eigenvalue and how far off it can be.

  Attributes:
    value: the largest Ritz value.
    bound: H has an eigenvalue within `bound` of it.
  """

  value: jax.Array
  bound: jax.Array


def hessian_vector(gradient: Callable[[jax.Array], jax.Array],
                   point: jax.Array, vector: jax.Array,
                   step: float = STEP) -> jax.Array:
  """H v by a central difference of gradients.

  Args:
    gradient: [n] -> [n].
    point: [n], where H is taken.
    vector: [n], of length 1.
    step: h.

  >>> hessian_vector(lambda x: 2 * x, jnp.ones(1), jnp.ones(1), .5).tolist()
  [2.0]
  """
  return rules.central_difference(gradient, point, vector, step)


def largest(product: Callable[[jax.Array], jax.Array], key: jax.Array,
            free: jax.Array, iterations: int = ITERATIONS) -> Eigenvalue:
  """The largest eigenvalue of a symmetric operator, by Lanczos.

  Args:
    product: [n] -> [n], H v.
    key: of the first vector, which is random.
    free: [n] float, 1 where a coordinate is one, 0 where it is padding: there
      H is 0 and no vector moves.
    iterations: products, at most n. With n of them it is the largest of all n
      eigenvalues.
  """
  n, dtype = len(free), free.dtype
  count = min(n, iterations)

  def unit(vector, basis):
    """The direction of a vector outside the basis; 0 if there is none."""
    before = jnp.linalg.norm(vector)
    for _ in range(2):  # Twice is enough (Parlett, 1980).
      vector = vector - (basis @ vector) @ basis
    length = jnp.linalg.norm(vector)
    found = length > n * jnp.finfo(dtype).eps * before
    return jnp.where(found, vector / length, 0.)

  def drawn(i, basis):
    vector = jax.random.normal(jax.random.fold_in(key, i), (n,), dtype)
    return unit(free * vector, basis)

  def iterate(i, carry):
    basis, images, vector = carry
    image = product(vector)
    basis, images = basis.at[i].set(vector), images.at[i].set(image)
    ahead = unit(image, basis)
    # Where the span is closed under H, go on in any direction outside of it.
    ahead = jnp.where(ahead.any(), ahead, drawn(i + 1, basis))
    return basis, images, ahead

  zeros = jnp.zeros((count, n), dtype)
  basis, images, _ = lax.fori_loop(
      0, count, iterate, (zeros, zeros, drawn(0, zeros)))
  return _rayleigh_ritz(basis, images)


def _rayleigh_ritz(basis, images):
  """The largest eigenvalue in the span of [m,n] rows and their images."""
  small = basis @ images.T
  small = (small + small.T) / 2
  # Rows of 0, once no direction is left, have no eigenvalue.
  absent = ~basis.any(-1)
  small -= jnp.diag(jnp.where(absent, 1 + 2 * jnp.linalg.norm(small), 0.))
  values, vectors = jnp.linalg.eigh(small)
  top = vectors[:, -1]
  residual = top @ images - values[-1] * (top @ basis)
  return Eigenvalue(values[-1], jnp.linalg.norm(residual))


def dominant(objective: Any, state: State, batch: Mapping[str, Any],
             key: jax.Array, iterations: int = ITERATIONS,
             step: float = STEP) -> Eigenvalue:
  """The dominant eigenvalue of a search at its present state.

  L2 of weight w adds w to every eigenvalue.

  Args:
    objective: `step.Objective`, which knows w.
    state: of the search, with `ArchParams`.
    batch: of the validation half.
    key: of the first vector, and of operations that draw noise; these draw
      the same in every gradient.
    iterations: see `largest`; each takes two gradients of the architecture.
    step: see `hessian_vector`.
  """
  point, unravel = ravel_pytree(state.arch)

  def gradient(vector):
    grads = objective.gradient('arch', state.theta, unravel(vector), batch,
                               key, state.mask)[1]
    return ravel_pytree(grads)[0]

  value, bound = largest(
      lambda vector: hessian_vector(gradient, point, vector, step), key,
      _free(objective.space, state.arch, state.mask, point.dtype), iterations)
  return Eigenvalue(value + objective.l2, bound)


def _free(space, arch, mask, dtype):
  """[n], 1 for candidates and edge weights.

  0 for entries of alpha past a site's candidates, which are padding.
  """
  masks = mask or full_mask(space)
  free = ArchParams(
      {t: jnp.asarray(masks[t]) for t in arch.alpha},
      jax.tree.map(jnp.ones_like, arch.beta))
  return ravel_pytree(jax.tree.map(lambda a: a.astype(dtype), free))[0]
