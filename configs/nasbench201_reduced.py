"""ROME against GDAS on NAS-Bench-201 with CIFAR-10, for 2 CPU cores.

CIFAR-10 brought to 16x16 pixels, 3 cells of 8 channels, at equal K x steps:
ROME-v2 with K=4 and 600 steps, or GDAS with K=1 and four times the steps.
ROME samples topology (in-degree 2, without `none`); with topology=none it has
every edge and operation, like GDAS, which always does. Both update alpha
before theta. Nothing is retrained: the benchmark's table says how good the
derived cell is. alpha's learning rate is raised so that alpha can move as far
as in a full search (19,500 steps at 3e-4).

  for method in rome_v2 gdas; do for seed in 0 1 2; do
    python -m rome_jax.main \
      --config=configs/nasbench201_reduced.py:method=$method \
      --config.seed=$seed --config.data_dir=DIR --workdir=runs/$method-$seed
  done; done

Hardware: 1 CPU core. Time: 7 minutes a run.
Published score: none at this scale.
This code: ranks 13328, 14002, 13421 of 15,625 (ROME-v2) and 12767, 5699, 5699
(GDAS) on CIFAR-10, three seeds; both end in operations without weights.
"""

from rome_jax import config as config_lib

METHODS = ('rome_v2', 'gdas')
PATHS = 2400  # K x steps


def get_config(text=''):
  """Returns the config of method=...,topology=..., given after the colon."""
  chosen = config_lib.arguments(
      text, method=METHODS, topology=('edges', 'none'))
  method = chosen.method
  config = config_lib.defaults()
  config.name = f'nasbench201_reduced {method}'
  config.dataset = 'cifar10'
  config.image_size = 16
  config.space = 'nasbench201'
  config.method = method
  config_lib.apply_recipe(config)
  search = config.search
  search.k = min(4, search.k)
  # A method of one sample a step searches every edge.
  if search.k > 1 and chosen.topology == 'edges':
    config.in_degree, config.drop_none = 2, True
  config.log_every = 100
  config.checkpoint_every = 1000

  search.cells = 3
  search.channels = 8
  search.epochs = 100
  search.max_steps = PATHS // search.k
  search.lr_per = search.tau_per = 'step'
  search.alpha_lr = 3e-4 * 19_500 / search.max_steps

  config.retrain.cells = 15
  config.retrain.channels = 16
  config.retrain.seeds = 0
  config.retrain.auxiliary = False
  return config
