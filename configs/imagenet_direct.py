"""ROME-v2 searched on ImageNet itself, with 10% + 10% of its images.

Search: 8 cells, 16 channels, batch 256, K=3, 30 epochs, 224 pixels.
Retraining: 14 cells, 48 channels, batch 1024, 250 epochs.

  python -m rome_jax.main --config=configs/imagenet_direct.py \
      --workdir=runs/imagenet --config.data_dir=FOLDER

Hardware: one accelerator, more for the retraining. Time: not run (paper: 0.4
to 0.5 GPU-days for the search).
Published score: 75.5 % top-1 (ROME-c, ROME, Table 5). This code: not run.

ROME says cosine. PC-DARTS, whose recipe it follows otherwise, decays linearly
(`--config.retrain.lr_schedule=linear`), warms up once an epoch instead of at
every step, and has a second BatchNorm in the auxiliary head
(`--config.retrain.auxiliary_norm=pc_darts`).
"""

from rome_jax import config as config_lib


def get_config():
  """Returns the config."""
  config = config_lib.defaults()
  config.name = 'imagenet_direct'
  config.dataset = 'imagenet'
  config.image_size = 224
  config.stem = 'imagenet'

  search = config.search
  search.epochs = 30
  search.batch_size = 256
  search.k = 3
  search.fraction_theta = .1
  search.fraction_alpha = .1
  search.augment = 'imagenet'

  retrain = config.retrain
  retrain.cells = 14
  retrain.channels = 48
  retrain.epochs = 250
  retrain.batch_size = 1024
  retrain.lr = .5
  retrain.warmup_epochs = 5
  retrain.weight_decay = 3e-5
  retrain.label_smoothing = .1
  retrain.drop_path = 0.
  retrain.cutout = 0
  retrain.augment = 'imagenet'
  return config
