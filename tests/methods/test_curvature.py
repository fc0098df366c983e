"""The dominant eigenvalue against NumPy's, of exact and difference Hessians."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rome_jax import families, spaces
from rome_jax.engine import archs
from rome_jax.engine import weights as weights_lib
from rome_jax.methods import curvature, step, table
from rome_jax.methods.method import ArchParams
from rome_jax.train import search

CELLS = spaces.CELL_TYPES
SPACE = spaces.Space('curved', ('a', 'b', 'c'), num_nodes=2)


def random_symmetric(n, seed, values=None):
  rng = np.random.default_rng(seed)
  q = np.linalg.qr(rng.normal(size=(n, n)))[0]
  values = rng.normal(size=n) if values is None else np.array(values)
  return (q * values) @ q.T


@functools.partial(jax.jit, static_argnums=2)
def _found(matrix, free, iterations):
  return curvature.largest(
      lambda v: matrix @ v, jax.random.key(3), free, iterations)


def found(matrix, free=None, iterations=curvature.ITERATIONS):
  with jax.enable_x64(True):
    free = np.ones(len(matrix)) if free is None else np.array(free)
    return [float(x) for x in _found(matrix, free, iterations)]


@pytest.mark.parametrize('values', [
    None, [-5., -4., -3., -2., -2., -1.], [2.] * 6, [0.] * 6,
    [3., 3., 1., 1., 1., 0.], [-1.], [1e-6, 2e-6, -1e3, 0., 0., 0.]],
    ids=['any', 'negative', 'one value', 'zero', 'repeated', 'n=1', 'small'])
def test_as_many_iterations_as_numbers_are_exact(values):
  """Also where the first vector's span closes before (equal values)."""
  n = 6 if values is None else len(values)
  matrix = random_symmetric(n, 1, values)
  exact = np.linalg.eigvalsh(matrix)
  value, bound = found(matrix)
  assert abs(value - exact[-1]) < 1e-10 * max(1, np.abs(exact).max())
  assert bound < 1e-10 * max(1, np.abs(exact).max())


def test_fewer_iterations_and_the_bound():
  """An eigenvalue lies within the bound; a gap makes 20 of 60 enough."""
  for seed in range(5):
    values = np.random.default_rng(seed).uniform(-1, 1, 60)
    values[0] = 1.5
    matrix = random_symmetric(60, seed, values)
    for iterations in (5, 20):
      value, bound = found(matrix, iterations=iterations)
      assert np.abs(values - float(value)).min() <= bound + 1e-12
      assert value <= 1.5 + 1e-12  # Ritz values never exceed the largest.
    assert abs(value - 1.5) < 1e-6


def test_padding_has_no_eigenvalue():
  """Where all are negative, the 0 of padding is not the largest."""
  matrix = np.zeros((6, 6))
  matrix[:4, :4] = random_symmetric(4, 2, [-4., -3., -2., -1.])
  value, bound = found(matrix, free=[1.] * 4 + [0.] * 2)
  assert abs(value + 1) < 1e-10 and bound < 1e-10


def softmax_gates(alpha):
  e = jnp.exp(alpha - alpha.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def network(theta, gates, x):
  """A DAG of dense layers; gates {type: [E,O]}. [B,3] to [B,3]."""
  for t in CELLS:
    states = [x, jnp.tanh(x @ theta[t]['first'])]
    for node, edges in enumerate(((0, 1), (2, 3, 4))):
      states.append(jnp.tanh(sum(
          gates[t][e, o] * states[i] @ theta[t]['edges'][e, o]
          for i, e in enumerate(edges) for o in range(3))))
      del node
    x = states[-1] + states[-2]
  return x


def loss_of(theta, gates, batch):
  logits = network(theta, gates, batch['image'])
  return optax.softmax_cross_entropy_with_integer_labels(
      logits, batch['label']).mean()


def step_loss(theta, cells, batch, key):
  del key
  gates = {t: jnp.zeros((5, 3), cells[t].gates.dtype).at[
      cells[t].edges, cells[t].ops].add(cells[t].gates) for t in CELLS}
  return loss_of(theta, gates, batch), {}


def problem(seed, dtype=np.float64):
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape).astype(dtype))

  theta = {t: {'first': draw(3, 3), 'edges': draw(5, 3, 3, 3)} for t in CELLS}
  arch = ArchParams({t: draw(5, 3) for t in CELLS},
                    {t: draw(0) for t in CELLS})
  batch = {'image': draw(16, 3), 'label': jnp.asarray(rng.integers(0, 3, 16))}
  return theta, arch, batch


def dominant(space, theta, arch, loss, iterations, jit=jax.jit, **options):
  """f(theta, arch, batch) -> [value, bound], compiled once.

  Through the step's own objective, as a boundary calls it.
  """
  row = table.METHODS['darts']._replace(name='measured')

  def boundary(objective, state, batches, epoch, key):
    del epoch
    return state._replace(extra=tuple(curvature.dominant(
        objective, state, batches['valid'], key, iterations,
        **options)))

  row = row._replace(extra=row.extra._replace(boundary=boundary))
  state = step.init_state(
      row, space, theta, arch, optax.sgd(1.), optax.sgd(1.))
  end = jit(step.make_boundary(
      row, space, loss, optax.sgd(1.), optax.sgd(1.), lambda step: 1.,
      step.Options(k=1)))
  return lambda theta, arch, batch: [float(x) for x in end(
      state._replace(theta=theta, arch=arch),
      {'train': batch, 'valid': batch}).extra]


@jax.jit
def hessian(flat, theta, batch):
  def loss(flat):
    gates = {t: softmax_gates(part.reshape(5, 3))
             for t, part in zip(CELLS, jnp.split(flat, 2))}
    return loss_of(theta, gates, batch)

  return jax.hessian(loss)(flat)


def exact_values(theta, arch, batch):
  """All eigenvalues of the exact Hessian in alpha, by JAX and NumPy."""
  flat = jnp.concatenate([arch.alpha[t].ravel() for t in CELLS])
  return np.linalg.eigvalsh(hessian(flat, theta, batch))


SMALL = (3 * 2.**-52) ** (1 / 3)  # the step of a smooth loss in float64


def test_float64_against_the_exact_hessian(quick_jit):
  """30 of 30 iterations: the difference alone errs, by h^2/6 |d3 L|.

  h^2/6 = 1.3e-11; third derivatives of this net are below 100, and rounding
  adds eps/h = 2.6e-11 times a gradient below 10: 1e-8 is a safe bound. With 20
  iterations and the step of a search, h^2/6 = 4e-4, the residual and a
  hundredth of the eigenvalue bound the rest.
  """
  with jax.enable_x64(True):
    theta, arch, _ = problem(0)
    whole = dominant(
        SPACE, theta, arch, step_loss, 30, quick_jit, step=SMALL)
    part = dominant(SPACE, theta, arch, step_loss, 20, quick_jit)
    for seed in range(3):
      theta, arch, batch = problem(seed)
      exact = exact_values(theta, arch, batch)
      value, bound = whole(theta, arch, batch)
      assert abs(value - exact[-1]) < 1e-8 and bound < 1e-8
      value, bound = part(theta, arch, batch)
      assert np.abs(exact - value).min() <= bound + .01 * exact[-1]
      assert abs(value - exact[-1]) < .01 * exact[-1]


def test_a_tiny_supernet_in_float32(quick_jit):
  """Against the dense Hessian of differences with the same step, n = 12.

  One cell of one node has no ReLU after alpha, so its loss is smooth. The
  two sum other rounding errors: eps |g| / h = 1e-5 an entry, 1e-4 in norm.
  """
  space = spaces.Space(
      'tiny_curved', ('max_pool_3x3', 'skip_connect', 'sep_conv_3x3'),
      num_nodes=1)
  net = families.get(space).supernet(
      space, spaces.Sizes(1, 4, 3, 8, 1), 'cifar')
  theta = weights_lib.init_supernet(net, 0, 8, 1)
  rng = np.random.default_rng(0)
  arch = ArchParams({t: np.float32(rng.normal(size=(2, 3))) for t in CELLS},
                    {t: np.zeros(0, np.float32) for t in CELLS})
  batch = {'image': np.float32(rng.normal(size=(32, 8, 8, 1))),
           'label': np.int32(rng.integers(0, 3, 32))}
  # Confident weights: the curvature is then well above rounding.
  theta = jax.tree.map(lambda a: 4 * a, theta)
  loss_fn = search.make_loss(net)

  @quick_jit
  def gradient(flat):
    def loss(flat):
      gates = softmax_gates(flat.reshape(2, 2, 3))
      cells = {t: archs.all_slots(space, g, t) for t, g in zip(CELLS, gates)}
      return loss_fn(theta, cells, batch, jax.random.key(0))[0]
    return jax.grad(loss)(flat)

  flat = np.concatenate([arch.alpha[t].ravel() for t in CELLS])
  h = curvature.STEP
  dense = np.stack([
      (np.float64(gradient(flat + e)) - np.float64(gradient(flat - e)))
      / (2 * h) for e in np.float32(h) * np.eye(12, dtype=np.float32)])
  exact = np.linalg.eigvalsh((dense + dense.T) / 2)
  value, bound = dominant(
      space, theta, arch, loss_fn, 20, quick_jit)(theta, arch, batch)
  assert exact[-1] > .01
  assert abs(value - exact[-1]) < 1e-4 and bound < 1e-4
