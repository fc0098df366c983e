"""Runs of seconds, for the campaign of faults: search, split, pada, two arms.

  --config=benchmarks/faults/tiny.py:kind=split
"""

from rome_jax import config as config_lib
from rome_jax import spaces

TINY = spaces.Space(
    'tiny', ('skip_connect', 'sep_conv_3x3', 'max_pool_3x3'), num_nodes=2)
ONE = spaces.Space(
    'one_node', ('avg_pool_3x3', 'skip_connect', 'nor_conv_1x1',
                 'nor_conv_3x3'), num_nodes=1)
for space in TINY, ONE:
  spaces.SPACES.setdefault(space.name, space)

KINDS = ('search', 'retrain', 'split', 'pada')


def get_config(argument=''):
  given = config_lib.arguments(argument, kind=KINDS)
  config = config_lib.defaults()
  config.space = 'tiny'
  if given.kind == 'split':
    config.space, config.method = 'one_node', 'gdas'
  elif given.kind == 'pada':
    config.method = 'pada'
  config_lib.apply_recipe(config)
  config.dataset = 'digits'
  config.log_every = 3
  config.checkpoint_every = 4
  search = config.search
  search.cells = 2
  search.channels = 2
  search.k = 1
  search.batch_size = 16
  search.augment = 'shift'
  search.max_steps = 30
  _set_kind(config, given.kind)
  _set_retraining(config, given.kind)
  return config


def _set_kind(config, kind):
  search = config.search
  if kind == 'split':
    search.max_steps, search.epochs, search.cells = 0, 2, 1
    search.fraction_theta = search.fraction_alpha = .1
    search.split, search.split_epochs = 'gm', '1'
    search.split_sizes, search.split_batches = '2+2', 2
  elif kind == 'pada':
    search.max_steps, search.epochs = 0, 3
    search.fraction_theta = search.fraction_alpha = .1
    search.candidates, search.evolution = 4, 'random'


def _set_retraining(config, kind):
  retrain = config.retrain
  retrain.cells = 2
  retrain.channels = 2
  retrain.epochs = 1
  retrain.batch_size = 48
  retrain.augment = 'shift'
  retrain.auxiliary = False
  retrain.cutout = 2
  retrain.seeds = int(kind == 'retrain')
  retrain.drop_path = .2


def get_comparison():
  here = f'--config={__file__}'
  return config_lib.Comparison(
      'two arms', {'rome': [here], 'gdas': [
          here, '--config.method=gdas', '--config.search.k=1']}, seeds=(0,))
