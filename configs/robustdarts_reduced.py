"""Collapse on RobustDARTS S2 and S4, ROME against GDAS, for 2 CPU cores.

CIFAR-10 brought to 16x16 pixels, a 5-cell supernet of 8 channels, at equal
K x steps: ROME-v2 with K=7, or GDAS with K=1 and seven times the steps. The
result is the number of operations without weights in the derived normal cell;
nothing is retrained. alpha's learning rate is raised so that alpha can move as
far as in the paper's search (19,500 steps at 3e-4).

  for seed in 0 1 2; do
    python -m rome_jax.main \
      --config=configs/robustdarts_reduced.py:space=s2,method=gdas \
      --config.seed=$seed --config.data_dir=DIR --workdir=runs/s2-gdas-$seed
  done; the same for s4 and for rome_v2

Both methods update alpha before theta, without Nesterov momentum.

Hardware: 1 CPU core. Time: 2 to 4 minutes a run.
Published score: GDAS 6.0 (S2) and 0.0 (S4), ROME 2.0 and 0.0 operations
without weights, at full scale (Wang et al., ICCV 2023, Table 1).
This code: ROME-v2 2, 2, 1 (S2) and 1, 1, 1 (S4), GDAS 1, 1, 1 and 1, 0, 0,
three seeds each.
"""

from rome_jax import config as config_lib

METHODS = ('rome_v2', 'gdas')
PATHS = 700  # K x steps


def get_config(text=''):
  """Returns the config of space=...,method=..., given after the colon."""
  chosen = config_lib.arguments(
      text, space=('s2', 's1', 's3', 's4'), method=METHODS)
  space, method = chosen.space, chosen.method
  config = config_lib.defaults()
  config.name = f'robustdarts_reduced {space} {method}'
  config.dataset = 'cifar10'
  config.image_size = 16
  config.space = space
  config.method = method
  config_lib.apply_recipe(config)
  config.log_every = 20
  config.checkpoint_every = 200

  search = config.search
  search.cells = 5
  search.channels = 8
  search.max_steps = PATHS // search.k
  search.lr_per = search.tau_per = 'step'
  search.alpha_lr = 3e-4 * 19_500 / search.max_steps

  config.retrain.seeds = 0
  return config
