"""Whether a one-shot supernet ranks NAS-Bench-201's cells, for one CPU core.

  python -m rome_jax.main --config=configs/ranking_nasbench201.py:method=spos \
      --config.seed=0 --config.data_dir=FOLDER --workdir=runs/spos-0
  rome-jax rank runs/spos-0 --cells=1000 --batches=1

Arguments, the default first: method=spos|fairnas|pa|da|pada, scale=small|full.

small: CIFAR-10 at 16x16 pixels, 3 cells of 8 channels, batch 64, at equal
gradients: 16,000 of the methods with one path a step, 3,200 steps of FairNAS'
five. full: PA&DA's published setting, 15 cells of 16 channels, 250 epochs of
batch 256 (50 of FairNAS).

Both: SGD from .05 to 0 by the cosine, momentum .9, decay 2.5e-4, gradients
clipped at 5, BatchNorm of the batch. A tenth of the images is held out; the
authors train on all and rank on the test images (`rank --images=test`).

Hardware: small, one CPU core; full, one accelerator (not run).
Time: small, ten minutes.
Published score: Kendall's tau .713 +- .002 for PA&DA (CVPR 2023), full scale.
This code: docs/reproduction.md.
"""

from rome_jax import config as config_lib

METHODS = ('spos', 'fairnas', 'pa', 'da', 'pada')
GRADIENTS = 16_000  # Of theta, each along one path.


def get_config(text=''):
  """Returns the config of method=...,scale=..., given after the colon."""
  chosen = config_lib.arguments(
      text, method=METHODS, scale=('small', 'full'))
  paths = 5 if chosen.method == 'fairnas' else 1
  config = config_lib.defaults()
  config.name = f'ranking_nasbench201 {chosen.method} {chosen.scale}'
  config.dataset = 'cifar10'
  config.space = 'nasbench201'
  config.method = chosen.method
  config_lib.apply_recipe(config)

  search = config.search
  search.lr, search.lr_end, search.lr_per = .05, 0., 'epoch'
  search.weight_decay = 2.5e-4
  search.candidates = 50
  if chosen.scale == 'small':
    config.image_size = 16
    config.log_every = 400
    config.checkpoint_every = 4000
    search.cells, search.channels, search.batch_size = 3, 8, 64
    search.epochs = 100
    search.max_steps = GRADIENTS // paths
  else:
    search.cells, search.channels, search.batch_size = 15, 16, 256
    search.epochs = 250 // paths

  # The table says how good a cell is.
  config.retrain.seeds = 0
  config.retrain.cells = 15
  config.retrain.channels = 16
  config.retrain.auxiliary = False
  return config
