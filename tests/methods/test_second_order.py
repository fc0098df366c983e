"""DARTS' second order: closed form, differences, exact products, PyTorch.

The last is the published `architect.py` written anew: one step of SGD with
momentum and decay on the training batch, then the central difference.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import two_cells as net

from rome_jax import spaces
from rome_jax.methods import rules, table
from rome_jax.methods import step as step_lib
from rome_jax.methods.method import ARCH, ArchParams

DARTS_2ND = table.METHODS['darts_2nd']


def gradient(space, loss_fn, txs):
  """f(theta, arch, batches, epsilon), the rule's, before the first step."""
  row = DARTS_2ND
  context = step_lib._Context(
      row, space, loss_fn, *txs, 1., step_lib.Options(k=1), lambda f: f)

  def function(theta, arch, batches, epsilon):
    return rules.unrolled(epsilon)(
        step_lib.make_objective(context, 0), ARCH,
        step_lib.init_state(row, space, theta, arch, *txs), batches,
        jax.random.key(0))

  return function


# ------------------------------------------------------------- closed form


def test_a_quadratic_bilevel_problem(quick_jit):
  """L_train = |theta - p|^2 / 2, L_valid = |theta - b|^2 / 2 + c . p.

  p are the gates of one edge of each cell, softmax(alpha). One step of SGD at
  rate r gives theta' = theta - r (theta - p), so dL_valid/dp is
  r (theta' - b) + c. L_train's gradient is linear in theta, so the central
  difference is exact.
  """
  space = spaces.Space('one', ('a', 'b', 'c'), num_nodes=1, num_inputs=1,
                       in_degree=1, cell_types=('normal',))
  rate, rng = .3, np.random.default_rng(0)
  alpha, theta, b, c = rng.normal(size=(4, 3))

  def loss_fn(theta, cells, batch, key):
    p = cells['normal'].gates
    train = .5 * ((theta - p) ** 2).sum()
    valid = .5 * ((theta - b) ** 2).sum() + (c * p).sum()
    return jnp.where(batch, train, valid), {}

  with jax.enable_x64(True):
    (loss, _), grads = quick_jit(gradient(
        space, loss_fn, (optax.sgd(rate), optax.sgd(1.))))(
            theta, ArchParams({'normal': alpha[None]}, {'normal': np.zeros(0)}),
            {'train': True, 'valid': False}, .01)
    found = np.asarray(grads.alpha['normal'][0])
  p = np.exp(alpha) / np.exp(alpha).sum()
  ahead = theta - rate * (theta - p)
  of_gates = rate * (ahead - b) + c
  expected = (np.diag(p) - np.outer(p, p)) @ of_gates
  np.testing.assert_allclose(found, expected, rtol=1e-9)
  assert float(loss) == pytest.approx(
      .5 * ((ahead - b) ** 2).sum() + (c * p).sum(), rel=1e-12)


# ------------------------------------------------------ the two-cell network


def cells_of(alpha):
  return DARTS_2ND.sample(net.SPACE, ArchParams(alpha, {}), None, 1.)


def composed(txs, opt, theta, batches):
  """alpha -> L_valid(theta'(alpha), alpha), differentiable, written out."""
  clip, tx = txs

  def loss(alpha, theta, half):
    return net.loss_fn(theta, cells_of(alpha), batches[half], None)[0]

  def ahead(alpha):
    g = jax.grad(loss, 1)(alpha, theta, 'train')
    norm = jnp.sqrt(sum((a ** 2).sum() for a in jax.tree.leaves(g)))
    g = jax.tree.map(lambda a: a * jnp.minimum(1., clip / norm), g)
    return optax.apply_updates(theta, tx.update(g, opt, theta)[0])

  return lambda alpha: loss(alpha, ahead(alpha), 'valid')


def whole_of(clip):
  theta = net.theta_of()
  tx = optax.chain(optax.add_decayed_weights(net.DECAY),
                   optax.sgd(net.RATE, net.MOMENTUM))
  return composed((clip, tx), tx.init(theta), theta, net.batches_of())


def by_the_rule(clip, epsilon, jit, dtype=np.float64):
  """The gradients of alpha on the net, one for each epsilon."""

  def cast(tree):
    return jax.tree.map(lambda a: np.asarray(
        a, dtype if a.dtype.kind == 'f' else a.dtype), tree)

  function = jit(gradient(
      net.SPACE, net.loss_fn, net.transformations(clip=clip)))
  arch = ArchParams(net.alpha_of(),
                    {t: np.zeros(0) for t in spaces.CELL_TYPES})
  found = [function(*cast((net.theta_of(), arch, net.batches_of())), e)[1]
           for e in epsilon]
  assert found[0].alpha['normal'].dtype == dtype
  return [grads.alpha for grads in found]


def flat(tree):
  return np.concatenate([np.ravel(a) for a in jax.tree.leaves(tree)])


@pytest.mark.parametrize('clip', [5., .05], ids=['whole', 'clipped'])
def test_it_is_the_gradient_of_the_composed_function(clip, quick_jit):
  """Against finite differences of L_valid(theta'(alpha), alpha), float64.

  The rule's own step in theta is short here, so that its error, of order
  epsilon^2, is below that of the oracle.
  """
  with jax.enable_x64(True):
    found, = by_the_rule(clip, [1e-4], quick_jit)
    whole, alpha, h = quick_jit(whole_of(clip)), net.alpha_of(), 1e-5
    for t, place in itertools.product(
        spaces.CELL_TYPES, [*np.ndindex(5, 3)][::2]):
      ends = []
      for d in (h, -h):
        moved = {**alpha, t: alpha[t].copy()}
        moved[t][place] += d
        ends.append(float(whole(moved)))
      assert float(found[t][place]) == pytest.approx(
          (ends[0] - ends[1]) / (2 * h), rel=1e-5, abs=1e-8)


def test_the_error_of_the_published_difference(quick_jit):
  """epsilon = .01 against the exact Hessian-vector product.

  `jax.grad` through the step is exact. Measured on this net, as a part of the
  norm of the second-order term: 4.0e-6 in float64, where it falls with
  epsilon^2, and 1.0e-5 in float32.
  """
  alpha = net.alpha_of()
  with jax.enable_x64(True):
    exact = flat(quick_jit(jax.grad(whole_of(5.)))(alpha))
    first = flat(quick_jit(jax.grad(lambda alpha: net.loss_fn(
        net.theta_of(), cells_of(alpha), net.batches_of()['valid'],
        None)[0]))(alpha))
    published, tenfold = by_the_rule(5., [.01, .1], quick_jit)
  with jax.enable_x64(False):
    single, = by_the_rule(5., [.01], quick_jit, np.float32)

  def error(found):
    return np.linalg.norm(flat(found) - exact) / np.linalg.norm(exact - first)

  assert error(published) < 1e-5
  assert error(tenfold) / error(published) == pytest.approx(100, rel=.05)
  assert error(single) < 1e-4


def test_along_nothing(quick_jit):
  """Where no weight matters to the validation loss, the first order stays."""
  space = spaces.Space('one', ('a', 'b'), num_nodes=1, num_inputs=1,
                       in_degree=1, cell_types=('normal',))

  def loss_fn(theta, cells, batch, key):
    p = cells['normal'].gates
    return jnp.where(batch, ((theta - p) ** 2).sum(), p[0]), {}

  _, grads = quick_jit(gradient(
      space, loss_fn, (optax.sgd(.1), optax.sgd(1.))))(
          jnp.ones(2), ArchParams({'normal': jnp.zeros((1, 2))},
                                  {'normal': jnp.zeros(0)}),
          {'train': True, 'valid': False}, .01)
  np.testing.assert_allclose(grads.alpha['normal'], [[.25, -.25]], rtol=1e-6)


def test_one_sample_only():
  step, state = net.make(DARTS_2ND, k=2)
  with pytest.raises(ValueError, match='k=2 must be 1 with the rule unrolled'):
    jax.eval_shape(step, state, net.batches_of())


# ------------------------------------------------------ the authors' update


def architect(oracle):
  """`architect.py`, unrolled: the gradient of alpha, then Adam's step."""
  torch, theta = oracle.torch, oracle.theta

  def of(loss, variables):
    return torch.autograd.grad(loss, list(variables.values()))

  def moved(direction, by):
    return {name: (w + by * d).detach().requires_grad_()
            for (name, w), d in zip(theta.items(), direction)}

  dtheta = of(oracle.loss('train', oracle.softmax()), theta)
  assert sum((d ** 2).sum() for d in dtheta) < net.CLIP ** 2
  dtheta = [d + net.DECAY * w + net.MOMENTUM * oracle.sgd.state[w].get(
      'momentum_buffer', 0.) for d, w in zip(dtheta, theta.values())]
  ahead = moved(dtheta, -net.RATE)
  loss = oracle.loss('valid', oracle.softmax(), ahead)
  direct = torch.autograd.grad(loss, list(oracle.alpha.values()),
                               retain_graph=True)
  vector = of(loss, ahead)
  r = .01 / torch.cat([v.ravel() for v in vector]).norm()
  plus, minus = (of(oracle.loss('train', oracle.softmax(), moved(vector, by)),
                    oracle.alpha) for by in (r, -r))
  for a, d, p, m in zip(oracle.alpha.values(), direct, plus, minus):
    a.grad = d - net.RATE * (p - m) / (2 * r)
  oracle.adam.step()
  return loss.item()


def test_steps_are_those_of_the_authors(quick_jit):
  torch = pytest.importorskip('torch')
  oracle = net.Torch(torch)
  with jax.enable_x64(True):
    step, state = net.make(DARTS_2ND)
    step = quick_jit(step)
    for _ in range(3):
      state, metrics = step(state, net.batches_of())
      assert float(metrics['valid_loss']) == pytest.approx(
          architect(oracle), rel=1e-8)
      oracle.step_theta(oracle.loss('train', oracle.softmax()))
      net.check(state, oracle)
