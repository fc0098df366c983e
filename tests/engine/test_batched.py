"""The batched evaluator against the slots one by one, in float64."""

import functools

import jax
import numpy as np
import pytest
import scripts

from rome_jax import families, spaces
from rome_jax.engine import archs

C, CLASSES = 4, 3
S0 = spaces.Space('batched_s0', spaces.S0.ops, num_nodes=1)
# As S1: every edge has two operations of its own, in both cells.
S1 = spaces.Space('batched_s1', spaces.S1.ops, num_nodes=2, edge_ops=tuple(
    cell[:5] for cell in spaces.S1.edge_ops))
S3 = spaces.S3.restrict(name='batched_s3', num_nodes=1)
S4 = spaces.S4.restrict(name='batched_s4', num_nodes=1)
NB201 = spaces.NASBENCH201.restrict(name='batched_201')
SPACES = {s.name: s for s in (S0, S1, S3, S4, NB201)}


def nets(space, k=1):
  """The supernet, slot by slot and batched."""
  options = {'partial': k} if k > 1 else {}
  family = families.table.get(space)
  return [family.supernet(space, spaces.Sizes(3, C, CLASSES), 'cifar',
                          evaluator=evaluator, **options)
          for evaluator in ('listed', 'batched')]


def problem(net, fill):
  """(weights, images, gates [S,C] per cell type), in float64."""
  space = net.space
  rng = np.random.default_rng(5)
  images = rng.normal(size=(2, 8, 8, 3))
  arch = {t: archs.first_cell(space, t) for t in space.cell_types}
  key = jax.random.key(0)
  theta = fill(jax.eval_shape(
      net.init, {'params': key, 'noise': key}, images, arch)['params'],
      dtype=np.float64)
  gates = {t: rng.uniform(.2, 1.5, space.choices(t).shape)
           for t in space.cell_types}
  return theta, images, gates


def every_slot(space, gates):
  return {t: archs.all_slots(space, g, t) for t, g in gates.items()}


def pulled(net, images, theta, gates, make=every_slot, want=None):
  """(logits, gradients of a random sum in the weights, gates and images)."""
  g = np.random.default_rng(9).normal(size=(len(images), CLASSES))

  def total(theta, gates, images):
    logits = net.apply(
        {'params': theta}, images, make(net.space, gates), want,
        rngs={'noise': jax.random.key(3)})
    return (logits * g).sum(), logits

  return jax.grad(total, (0, 1, 2), has_aux=True)(theta, gates, images)


def assert_close(actual, expected, tolerance=1e-9):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=tolerance, atol=tolerance), actual, expected)


@pytest.mark.parametrize('name, k', [
    ('batched_s0', 1), ('batched_s0', 4), ('batched_s1', 1),
    ('batched_s3', 1), ('batched_201', 1)])
def test_equals_the_listed_slots(name, k, fill, quick_jit):
  """Logits and all gradients of normal and reduction cells; PC-DARTS' too."""
  with jax.enable_x64(True):
    both = nets(SPACES[name], k)
    theta, images, gates = problem(both[0], fill)
    expected, actual = (
        quick_jit(functools.partial(pulled, net))(images, theta, gates)
        for net in both)
  assert_close(actual, expected)
  assert all(np.any(leaf) for leaf in jax.tree.leaves(actual[0][1]))


def single_path(space, gates):
  """The first edges of each node, their gates at the listed operation."""
  found = {}
  for t, g in gates.items():
    arch = archs.first_cell(space, t)
    found[t] = arch._replace(gates=g[arch.edges, 0])
  return found


def two_numbers(space, gates):
  """Every slot with a factor and a number to add."""
  return {t: arch._replace(gates=jax.numpy.stack(
      [arch.gates, arch.gates**2], -1))
          for t, arch in every_slot(space, gates).items()}


@pytest.mark.parametrize('make', [single_path, two_numbers])
def test_any_slots_are_equal(make, fill, quick_jit):
  """A single path of a mixture's weights; the gates of GDAS' code."""
  with jax.enable_x64(True):
    both = nets(S3)
    theta, images, gates = problem(both[0], fill)
    expected, actual = (
        quick_jit(functools.partial(pulled, net, make=make))(
            images, theta, gates) for net in both)
  assert_close(actual, expected)


def test_noise_is_the_same_given_the_same_key(fill, quick_jit):
  with jax.enable_x64(True):
    both = nets(S4)
    theta, images, gates = problem(both[0], fill)
    expected, actual = (
        quick_jit(functools.partial(pulled, net))(images, theta, gates)
        for net in both)
  assert_close(actual, expected)


def test_of_many_examples_and_without_weight_gradients(fill, quick_jit):
  """A vmap over gates; whether weights are wanted is traced."""
  with jax.enable_x64(True):
    listed, net = nets(S3)
    theta, images, gates = problem(net, fill)
    many = jax.tree.map(lambda g: np.stack([g, 1 - g]), gates)
    wants = np.array([False, True])

    @quick_jit
    def run(theta, many, wants):
      return jax.vmap(lambda gates: jax.lax.map(
          lambda want: pulled(net, images, theta, gates, want=want), wants))(
              many)

    grads, logits = run(theta, many, wants)
    one = quick_jit(functools.partial(pulled, listed, images, theta))
    for i in range(2):
      (dtheta, *others), expected = one(
          jax.tree.map(lambda g, i=i: g[i], many))
      for want in range(2):
        at = jax.tree.map(lambda a, i=i, j=want: a[i, j], grads)
        np.testing.assert_allclose(logits[i, want], expected, rtol=1e-9)
        assert_close(at[1:], tuple(others))
      assert_close(at[0], dtheta)
      cell = jax.tree.map(lambda a, i=i: a[i, 0], grads[0]['cell0']['edges'])
      assert not any(np.any(leaf) for leaf in jax.tree.leaves(cell))


@pytest.mark.parametrize('name', [
    'darts', pytest.param('pc_darts', marks=pytest.mark.slow)])
def test_two_devices_are_one(name):
  """Moments of a batch that is cut; float32 sums in another order."""
  found = scripts.printed(
      'eight_devices.py', 'batched', name, '2x1', timeout=900)
  assert max(found.values()) < 1e-4, found
