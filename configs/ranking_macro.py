"""Whether a one-shot supernet ranks NAS-Bench-Macro's networks.

  python -m rome_jax.main --config=configs/ranking_macro.py:method=spos \
      --config.seed=0 --config.data_dir=FOLDER --workdir=runs/macro-spos
  rome-jax rank runs/macro-spos --cells=1000 --batches=1

Arguments, the default first: method=spos|fairnas|pa|da|pada, scale=small|full.

Eight blocks, each the identity or one of two MBConvs, on CIFAR-10. small: a
quarter of the width, 16x16 pixels, batch 64, 16,000 gradients. full: the
benchmark's width, 120 epochs of batch 256 (40 of FairNAS' three paths).
The table compares, with every network trained alone three times.

Hardware: small, one CPU core; full, one accelerator. Time: not run.
Published score: none of these methods by the authors at this recipe.
This code: not run; tests start it.
"""

from rome_jax import config as config_lib

METHODS = ('spos', 'fairnas', 'pa', 'da', 'pada')
GRADIENTS = 16_000


def get_config(text=''):
  """Returns the config of method=...,scale=..., given after the colon."""
  chosen = config_lib.arguments(text, method=METHODS, scale=('small', 'full'))
  paths = 3 if chosen.method == 'fairnas' else 1
  config = config_lib.defaults()
  config.name = f'ranking_macro {chosen.method} {chosen.scale}'
  config.dataset = 'cifar10'
  config.space = 'nasbench_macro'
  config.method = chosen.method
  config_lib.apply_recipe(config)

  search = config.search
  search.cells = 8
  search.lr, search.lr_end, search.weight_decay = .05, 0., 4e-5
  search.candidates = 50
  if chosen.scale == 'small':
    config.image_size = 16
    config.log_every, config.checkpoint_every = 400, 4000
    search.channels, search.batch_size = 8, 64
    search.epochs, search.max_steps = 100, GRADIENTS // paths
  else:
    search.channels, search.batch_size = 32, 256
    search.epochs = 120 // paths

  # The table says how good a network is.
  config.retrain.seeds = 0
  config.retrain.cells, config.retrain.channels = 8, 32
  config.retrain.auxiliary = False
  return config
