"""ROME against GDAS on CIFAR-10 at a scale for 2 CPU cores.

CIFAR-10 brought to 16x16 pixels, a 5-cell supernet of 8 channels, at equal
K x steps: ROME-v2 with K=7, or GDAS with K=1 and seven times the steps.
alpha's learning rate is raised so that alpha can move as far as in the paper's
search (19,500 steps at 3e-4).

  for method in rome_v2 gdas; do for seed in 0 1 2; do
    python -m rome_jax.main \
      --config=configs/cifar10_reduced.py:method=$method \
      --config.seed=$seed --config.data_dir=DIR --workdir=runs/$method-$seed
  done; done

Hardware: 2 CPU cores. Time: 6 to 8 minutes a run, 45 minutes for all six
(with other work on the machine at times).
Published score: none at this scale.
This code: 3 seeds, one epoch of retraining, ROME-v2 44.70 +- 2.10 %,
GDAS 45.33 +- 1.99 % test accuracy.
"""

from rome_jax import config as config_lib

METHODS = ('rome_v2', 'rome_v1', 'gdas')
PATHS = 560  # K x steps


def get_config(text=''):
  """Returns the config of method=..., given after the colon."""
  method = config_lib.arguments(text, method=METHODS).method
  config = config_lib.defaults()
  config.name = f'cifar10_reduced {method}'
  config.dataset = 'cifar10'
  config.image_size = 16
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

  retrain = config.retrain
  retrain.cells = 5
  retrain.channels = 8
  retrain.epochs = 1
  retrain.lr = .05
  retrain.auxiliary = False
  retrain.cutout = 0
  retrain.drop_path = 0.
  retrain.eval_batch_size = 200
  return config
