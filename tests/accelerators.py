"""Lowers the steps for a GPU and a TPU, on a machine that has neither.

Run as `python tests/accelerators.py BACKEND PLATFORM ...`; prints JSON {step:
number of depthwise convolutions in its program}.
"""

import json
import re
import sys
from unittest import mock

import jax
import jax.numpy as jnp

from rome_jax import families, spaces
from rome_jax.engine import weights as weights_lib
from rome_jax.families import darts
from rome_jax.methods import step as step_lib
from rome_jax.methods import table
from rome_jax.spaces import genotypes
from rome_jax.train import optim, recipes, retrain, search

C, CLASSES, SIZE = 4, 3, 8
# {space: (cells, way of evaluating K)}: every family.
SEARCHES = {'s2': (3, 'scan'), 's3': (3, 'vmap'), 'nasbench201': (3, 'scan'),
            'nasbench1shot1_1': (3, 'scan'), 'mobile_tiny': (None, 'scan')}


def batch():
  return {'image': jnp.zeros((2, SIZE, SIZE, 3)),
          'label': jnp.zeros(2, jnp.int32)}


def search_step(name, cells, way):
  space, method = spaces.get_space(name), table.METHODS['rome_v2']
  net = families.get(space).supernet(
      space, spaces.Sizes(cells or space.num_nodes, C, CLASSES), 'cifar')
  recipe = recipes.SearchRecipe()
  theta_tx = optim.sgd(lambda step: .05, recipe)
  arch_tx = optim.arch_adam(recipe)
  update = step_lib.make_step(
      method, space, search.make_loss(net), theta_tx, arch_tx,
      lambda step: 1., step_lib.Options(k=2, samples=way))
  state = step_lib.init_state(
      method, space, weights_lib.init_supernet(net, 0, SIZE, 3),
      method.init(space, jax.random.key(0)), theta_tx, arch_tx)
  return update, (state, {'train': batch(), 'valid': batch()})


def retraining_step():
  net = darts.Network(
      genotypes.PUBLISHED['DARTS_V2'].genotype, 3, C, CLASSES, 'cifar', True)
  recipe = recipes.RetrainRecipe()
  tx = optim.sgd(lambda step: .05, recipe)
  variables = weights_lib.initialise(net, 0, batch()['image'])
  state = retrain.init_state(variables, tx)
  return retrain.make_step(net, recipe, tx, 10, 5), (state, batch())


def depthwise(platforms, step, args):
  """Convolutions in groups of channels."""
  program = jax.export.export(jax.jit(step), platforms=platforms)(*args)
  groups = re.findall(r'feature_group_count = (\d+)', program.mlir_module())
  return sum(int(number) > 1 for number in groups)


def main(backend, *platforms):
  steps = {f'{name} {way}': search_step(name, cells, way)
           for name, (cells, way) in SEARCHES.items()}
  steps['retraining'] = retraining_step()
  with mock.patch.object(jax, 'default_backend', lambda: backend):
    found = {name: depthwise(platforms, step, args)
             for name, (step, args) in steps.items()}
  print(json.dumps(found))


if __name__ == '__main__':
  main(*sys.argv[1:])
