"""Drop path and dropout on identities in the search.

The cell is written out plainly in float64, with the masks read off the engine:
its operations are linear or differentiated by JAX, so only masks, sharing and
scale are under test, and gradients against plain autodiff of the same masks.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scripts

from rome_jax import families, spaces
from rome_jax.engine import archs, drop, operations, statistics
from rome_jax.engine import cells as cells_lib

SPACE = spaces.Space(
    'drop', ('skip_connect', 'nor_conv_1x1', 'avg_pool_3x3'), num_nodes=2,
    num_inputs=1, in_degree=0, cell_types=('normal',), family='nasbench201')
C, B, SIZE = 3, 6, 4
EDGES = list(zip(SPACE.edge_preds.tolist(), SPACE.edge_nodes.tolist()))


@pytest.fixture(scope='module')
def case():
  """(cell, params, gates, images): one that takes its input as it is."""
  cell = cells_lib.SearchCell(SPACE, C)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(B, SIZE, SIZE, C)).astype(np.float32)
  gates = rng.uniform(.2, 1, (3, 3)).astype(np.float32)
  rngs = {'params': jax.random.key(0), 'noise': jax.random.key(1)}
  params = cell.init(rngs, x, arch=archs.all_slots(SPACE, gates))['params']
  return cell, params, gates, x


def evaluate(cell, params, gates, x, dropped, seed=1):
  return cell.apply(
      {'params': params}, x, arch=archs.all_slots(SPACE, gates), drop=dropped,
      rngs={'noise': jax.random.key(seed)})


def draws_of(cell, params, gates, x, dropped, seed=1):
  """What the slots draw in `evaluate`, asked of the cell itself."""
  return cell.apply(
      {'params': params}, x, arch=archs.all_slots(SPACE, gates), drop=dropped,
      method='variables_of', rngs={'noise': jax.random.key(seed)})[3]


def norm(x):
  x = x - x.mean((0, 1, 2))
  return x / jnp.sqrt((x * x).mean((0, 1, 2)) + 1e-5)


def pooled(x):
  """3x3 mean that does not count the padding."""
  total, count = (
      sum(jnp.pad(a, ((0, 0), (1, 1), (1, 1), (0, 0)))[
          :, i:i + SIZE, j:j + SIZE] for i in range(3) for j in range(3))
      for a in (x, jnp.ones_like(x)))
  return norm(total / count)


def plain(params, gates, x, paths, kept):
  """The last node; paths [E,B], kept [E,B,H,W,C], factors with their mean 1."""
  conv = params['edges']['nor_conv_1x1']['conv']['kernel']
  states = [x, 0., 0.]
  for e, (pred, node) in enumerate(EDGES):
    s = states[pred]
    mixed = (gates[e, 0] * kept[e] * s
             + gates[e, 1] * norm(jnp.maximum(s, 0) @ conv[e][0, 0])
             + gates[e, 2] * pooled(s))
    states[1 + node] += paths[e][:, None, None, None] * mixed
  return states[-1]


def no_masks():
  return np.ones((3, B)), np.ones((3, B, SIZE, SIZE, C))


def close(a, b, tol=2e-5):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=tol, atol=tol), a, b)


def agree(case, dropped, paths, kept):
  """The output and the gradients of weights, gates and input."""
  cell, params, gates, x = case
  weight = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)

  def ours(params, gates, x):
    return (weight * evaluate(cell, params, gates, x, dropped)).sum()

  def theirs(params, gates, x):
    return (weight * plain(params, gates, x, paths, kept)).sum()

  close(evaluate(cell, params, gates, x, dropped),
        plain(params, gates, x, paths, kept))
  close(*(jax.jit(jax.grad(f, (0, 1, 2)))(params, gates, x)
          for f in (ours, theirs)), 1e-4)


def test_paths_of_edges_are_dropped_image_by_image(case):
  cell, params, gates, x = case
  dropped = drop.Drop(path=jnp.float32(.4))
  path = np.asarray(draws_of(cell, params, gates, x, dropped).path)
  # The three slots of an edge share its path; what stays is 1 / .6.
  assert (path.reshape(3, 3, B) == path.reshape(3, 3, B)[:, :1]).all()
  np.testing.assert_allclose(np.unique(path), [0, 1 / .6], rtol=1e-6)
  agree(case, dropped, path[::3], no_masks()[1])


def test_identities_lose_some_of_their_numbers(case):
  """The masks are read off an identity that passes ones, slot by slot."""
  cell, params, gates, x = case
  dropped = drop.Drop(skip=jnp.float32(.3))
  found = draws_of(cell, params, gates, x, dropped)
  kept = np.stack([drop.dropout(jnp.ones((B, SIZE, SIZE, C)), jax.tree.map(
      lambda a, slot=slot: a[slot], found)) for slot in (0, 3, 6)])
  np.testing.assert_allclose(np.unique(kept), [0, 1 / .7], rtol=1e-6)
  assert (kept[0] != kept[1]).any() and (kept[1] != kept[2]).any()
  agree(case, dropped, no_masks()[0], kept)


def test_rates_are_kept():
  """Shares of zeros and means within 5 standard deviations."""
  key, rate, edges, images = jax.random.key(3), .3, 50, 400
  path = np.asarray(drop.draw(
      lambda: key, jnp.arange(edges), edges, images, drop.Drop(path=rate),
      False).path)
  n = edges * images
  assert abs((path == 0).mean() - rate) < 5 * (rate * (1 - rate) / n)**.5
  assert abs(path.mean() - 1) < 5 * (rate / (1 - rate) / n)**.5
  # Edges and images are independent: so are the means over either.
  for axis, count in ((0, edges), (1, images)):
    shares = (path == 0).mean(axis)
    assert shares.var() == pytest.approx(rate * (1 - rate) / count, rel=.5)

  x = jnp.ones((100, 20, 20, 2))
  y = np.asarray(drop.dropout(x, drop.Draws(jnp.uint32(5), None, .6)))
  assert abs((y == 0).mean() - .6) < 5 * (.24 / y.size)**.5
  assert abs(y.mean() - 1) < 5 * (1.5 / y.size)**.5
  assert abs((y[0] * y[1] > 0).mean() - .16) < 5 * (.16 * .84 / y[0].size)**.5


def test_a_rate_of_zero_changes_nothing(case):
  cell, params, gates, x = case
  without = evaluate(cell, params, gates, x, drop.NOTHING)
  for dropped in (drop.Drop(path=jnp.float32(0)),
                  drop.Drop(skip=jnp.float32(0))):
    close(evaluate(cell, params, gates, x, dropped), without, 1e-6)


def test_masks_follow_the_key_and_samples_have_their_own(case):
  cell, params, gates, x = case
  dropped = drop.Drop(.5, .5)
  run = functools.partial(evaluate, cell, params, gates, x, dropped)
  np.testing.assert_array_equal(run(2), run(2))
  assert (run(2) != run(3)).any()
  keys = jax.vmap(jax.random.key)(jnp.arange(2, 4))
  both = jax.vmap(lambda key: cell.apply(
      {'params': params}, x, arch=archs.all_slots(SPACE, gates), drop=dropped,
      rngs={'noise': key}))(keys)
  close(both, jnp.stack([run(2), run(3)]))


def test_a_strided_skip_is_no_identity(tiny):
  """Only edges between nodes of a reduction cell have identities."""
  net = families.supernet(tiny, spaces.Sizes(2, 4, 3))
  images = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
  skip = tiny.ops.index('skip_connect')
  edges = jnp.array([0, 1, 2, 3, 4])

  def logits(ops):
    arch = {t: archs.CellArch(edges, jnp.array(ops), jnp.ones(5))
            for t in tiny.cell_types}
    # Cells of a net of 2 are reductions: 0 and 1.
    return np.asarray(net.apply(
        {'params': params}, images.astype(np.float32), arch,
        drop=dropped, rngs={'noise': jax.random.key(0)}))

  from rome_jax.engine import weights
  params = weights.init_supernet(net, 0, 8, 3)
  pool = tiny.ops.index('max_pool_3x3')
  strided_skips, a_real_one = [skip] * 4 + [pool], [pool] * 4 + [skip]
  dropped = drop.NOTHING
  without = logits(strided_skips), logits(a_real_one)
  dropped = drop.Drop(skip=.5)
  np.testing.assert_allclose(logits(strided_skips), without[0], rtol=1e-5)
  assert np.abs(logits(a_real_one) - without[1]).max() > 1e-3


def test_partial_identities_are_refused():
  cell = cells_lib.SearchCell(SPACE, 4, partial=2)
  x = jnp.zeros((2, 4, 4, 4))
  with pytest.raises(ValueError, match='needs partial=1, not 2'):
    cell.init(jax.random.key(0), x, drop=drop.Drop(skip=.1),
              arch=archs.all_slots(SPACE, jnp.ones((3, 3))))


def test_masks_follow_the_image_in_the_whole_batch(monkeypatch):
  key, x = jax.random.key(0), jnp.ones((6, 4, 4, 2))

  def masks(images):
    path = drop.draw(
        lambda: key, jnp.arange(5), 5, images, drop.Drop(path=.5), False).path
    return path, drop.dropout(
        x[:images], drop.Draws(jnp.uint32(1), None, .5))

  path, kept = masks(6)
  monkeypatch.setattr(statistics, 'part_of_batch', lambda: 1)
  of_part = masks(3)
  np.testing.assert_array_equal(of_part[0], path[:, 3:])
  np.testing.assert_array_equal(of_part[1], kept[3:])


@pytest.mark.slow
def test_masks_do_not_depend_on_the_devices():
  """State and metrics after two steps on 4 devices, in parts, and on one."""
  found = scripts.printed('eight_devices.py', 'drop', '4x1', timeout=900)
  assert max(found.values()) < 2e-5, found


def test_operations_that_draw_are_still_given_a_seed():
  """A seed of their own, whether or not identities have one too."""
  assert operations.draws('noise')
  key = jax.random.key(0)
  alone, beside = (
      drop.draw(lambda: key, jnp.arange(3), 3, 2, d, True).seed
      for d in (drop.NOTHING, drop.Drop(skip=.5)))
  np.testing.assert_array_equal(alone, beside)
  assert len(set(np.asarray(alone).tolist())) == 3
