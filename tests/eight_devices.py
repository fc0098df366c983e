"""Runs on eight forced CPU devices; prints one JSON object for its test.

  python eight_devices.py switch
  python eight_devices.py step DATAxSAMPLE ...
  python eight_devices.py accumulate DATAxSAMPLE ...
  python eight_devices.py method NAME DATAxSAMPLE ...
  python eight_devices.py drop DATAxSAMPLE ...
  python eight_devices.py batched NAME DATAxSAMPLE ...
"""

import json
import os
import sys

os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'
os.environ['JAX_PLATFORMS'] = 'cpu'

import flax.linen as nn  # noqa: E402  after the environment is set
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from jax import lax  # noqa: E402

from rome_jax import families, spaces
from rome_jax.devices import mesh as mesh_lib
from rome_jax.engine import drop
from rome_jax.engine import weights as weights_lib
from rome_jax.methods import step as step_lib
from rome_jax.methods import table
from rome_jax.methods.rows import robust
from rome_jax.train import optim, recipes, retrain, search


def switched_gradient():
  """Each of the devices runs another branch of one switch on one weight."""
  mesh = mesh_lib.make_mesh(2, 4)
  weights = jnp.array([1., 2., 3.])

  def loss(w, i, x):
    branches = [lambda w, x, b=b: (b + 1) * w[b] * x.mean() for b in range(3)]
    return lax.switch(i, branches, w, x)

  def total(samples, w, x):
    grads = [jax.grad(loss)(w, i, x) for i in samples]
    return sum(grads[1:], grads[0])

  samples = jnp.array([0, 1, 2, 1, 0, 0, 2, 1], jnp.int32)
  x = np.arange(4.)  # its mean is 1.5
  found = jax.jit(mesh_lib.spread(mesh)(total))(samples, weights, x)
  counts = np.bincount(np.asarray(samples), minlength=3)
  return {'found': found.tolist(),
          'expected': (1.5 * counts * np.arange(1, 4)).tolist()}


def problem(accumulate=1, name='rome_v2', drop_at=None, num_steps=4,
            evaluator='listed'):
  """A tiny search: (step or boundary of a mesh, state, {half: batch})."""
  space = spaces.Space(
      'tiny', ('skip_connect', 'sep_conv_3x3', 'avg_pool_3x3'), num_nodes=2)
  method, recipe = table.METHODS[name], recipes.SearchRecipe()
  net = families.supernet(
      space, spaces.Sizes(2, 8 if method.partial > 1 else 4, 3),
      partial=method.partial, evaluator=evaluator)
  k = method.recipe.get('search.k', 4) or space.num_choices
  theta_tx = optim.sgd(
      lambda step: .05, recipe, method.extra.hyperparameters)
  arch_tx = optim.arch_adam(recipe)

  def update(mesh, at_boundary=False):
    parts = (
        method, space, search.make_loss(net, drop_at=drop_at, batch_size=8),
        theta_tx, arch_tx, lambda step: 1., step_lib.Options(
            k=k, accumulate=accumulate, steps=num_steps,
            sampler=method.recipe.get('search.sampler', 'iid')),
        mesh_lib.spread(mesh))
    if at_boundary:
      return step_lib.make_boundary(*parts)
    return step_lib.make_step(
        *parts, lambda theta: families.get(space).candidates(theta, space))

  rng = np.random.default_rng(0)
  batches = {half: {
      'image': rng.normal(size=(8, 8, 8, 3)).astype(np.float32),
      'label': rng.integers(0, 3, 8).astype(np.int32)
      } for half in ('train', 'valid')}
  if method.extra.draw:  # An image that comes twice, too.
    index = np.array([3, 0, 7, 3, 1, 6, 2, 4], np.int32)
    batches['train'] |= {'index': index, 'row': np.arange(8, dtype=np.int32),
                         'weight': np.ones(8, np.float32)}
  state = step_lib.init_state(
      method, space, weights_lib.init_supernet(net, 0, 8, 3),
      method.init(space, jax.random.key(0)), theta_tx, arch_tx,
      num_examples=8)
  return update, state, batches


def two_steps(update, state, batches, mesh):
  if mesh is not None:
    state = mesh_lib.place(state, mesh_lib.replicated(mesh))
    batches = mesh_lib.place(batches, mesh_lib.split_batch(mesh))
  step = jax.jit(update(mesh)).lower(state, batches).compile(
      {'xla_backend_optimization_level': 0})
  state, first = step(state, batches)
  state, second = step(state, batches)
  return jax.device_get((state, first, second))


class Small(nn.Module):
  """BatchNorm and a linear layer, in the conventions of `Network`."""

  @nn.compact
  def __call__(self, images, train=False, drop_path=0.):
    x = images.reshape(len(images), -1)
    x = nn.BatchNorm(use_running_average=not train)(x)
    return nn.Dense(3)(x)


def retraining(mesh):
  """The same difference after a step of retraining in two parts."""
  recipe = recipes.RetrainRecipe(
      auxiliary=False, drop_path=0., accumulate=2)
  tx = optax.sgd(.1)
  batch = problem()[2]['train']
  variables = Small().init(jax.random.key(0), batch['image'])
  state = retrain.init_state(variables, tx)
  step = retrain.make_step(Small(), recipe, tx, 10, 5)
  expected = jax.device_get(jax.jit(step)(state, batch))
  return largest_difference(jax.device_get(jax.jit(step)(
      mesh_lib.place(state, mesh_lib.replicated(mesh)),
      mesh_lib.place(batch, mesh_lib.split_over_all(mesh)))), expected)


def largest_difference(actual, expected):
  """Relative to the largest of each array; NaN, which is no value, is 0."""
  found = []
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
    a, b = np.float64(a), np.float64(b)
    assert (np.isnan(a) == np.isnan(b)).all()
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    if a.size:
      found.append(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-6)))
  return max(found)


def steps(meshes, accumulate=1, name='rome_v2', drop_at=None,
          evaluator='listed'):
  """{mesh: the largest difference to one device, relative to the largest}."""
  update, state, batches = problem(
      accumulate, name, drop_at, evaluator=evaluator)
  expected = two_steps(update, state, batches, None)
  found = {}
  for text in meshes:
    mesh = mesh_lib.make_mesh(*map(int, text.split('x')))
    actual = two_steps(update, state, batches, mesh)
    found[text] = largest_difference(actual, expected)
    if accumulate > 1:
      found[f'{text} retraining'] = retraining(mesh)
  return found


def boundary(mesh_text):
  """The largest difference of DARTS-ADA's end of an epoch to one device.

  Relative to the largest of each array. Every ratio of eigenvalues is too
  large, so the seventh boundary goes back to the first.
  """
  row = robust.raise_decay(
      table.METHODS['darts'], robust.Rule(every=1, factor=0., start=0))
  table.METHODS[row.name] = row
  update, state, batches = problem(name=row.name, num_steps=40)

  def ends(mesh):
    given = state, batches
    if mesh is not None:
      given = (mesh_lib.place(state, mesh_lib.replicated(mesh)),
               mesh_lib.place(batches, mesh_lib.split_batch(mesh)))
    end = jax.jit(update(mesh, at_boundary=True)).lower(*given).compile(
        {'xla_backend_optimization_level': 0})
    found, batch = given
    for _ in range(7):
      found = end(found._replace(step=found.step + 1), batch)
    return jax.device_get(found)

  one = ends(None)
  assert int(one.step) == 1 and int(one.extra.rises) == 1
  several = ends(mesh_lib.make_mesh(*map(int, mesh_text.split('x'))))
  return {mesh_text: largest_difference(several, one)}


if __name__ == '__main__':
  if sys.argv[1] == 'switch':
    print(json.dumps(switched_gradient()))
  elif sys.argv[1] == 'accumulate':
    print(json.dumps(steps(sys.argv[2:], accumulate=2)))
  elif sys.argv[1] == 'boundary':
    print(json.dumps(boundary(sys.argv[2])))
  elif sys.argv[1] == 'method':
    print(json.dumps(steps(sys.argv[3:], name=sys.argv[2])))
  elif sys.argv[1] == 'batched':
    print(json.dumps(steps(
        sys.argv[3:], name=sys.argv[2], evaluator='batched')))
  elif sys.argv[1] == 'drop':
    print(json.dumps(steps(
        sys.argv[2:], accumulate=2, drop_at=lambda step: drop.Drop(.3, .4))))
  else:
    print(json.dumps(steps(sys.argv[2:])))
