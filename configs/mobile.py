"""Single-path search in ProxylessNAS's mobile space, on ImageNet itself.

21 MBConv blocks with 6 operations each, or none at all where the shape stays.
A chain has no topology to search, so ROME here is gradient accumulation.

  python -m rome_jax.main --config=configs/mobile.py \
      --workdir=runs/mobile --config.data_dir=FOLDER

Search: batch 256, K=4, 30 epochs (ProxylessNAS: 120 of one path, after 40 of
uniform paths), 224 pixels, 50,000 images for alpha. Retraining: 300 epochs of
batch 256. GDAS at equal cost: `--config.method=gdas
--config.search.epochs=120`.

Unlike ProxylessNAS: there is no warm-up, alpha moves at every step instead of
every fifth, the search has neither latency in the loss nor label smoothing,
colour jitter is that of DARTS, and the retraining decays BatchNorm's weights
too.

Hardware: one accelerator, more for the retraining. Time: not run.
Published score: none of ROME; ProxylessNAS (GPU) 75.1 % top-1, GM-NAS in this
space 76.6 %. This code: not run.
"""

from rome_jax import config as config_lib


def get_config():
  """Returns the config."""
  config = config_lib.defaults()
  config.name = 'mobile'
  config.space = 'mobile'
  config.dataset = 'imagenet'
  config.image_size = 224
  config.stem = 'imagenet'

  search = config.search
  search.cells = 21
  search.channels = 32
  search.epochs = 30
  search.batch_size = 256
  search.k = 4
  search.lr_end = 0.
  search.nesterov = True
  search.weight_decay = 4e-5
  search.alpha_lr = 1e-3
  search.alpha_b1 = 0.
  search.alpha_weight_decay = 0.
  search.fraction_theta = .961
  search.fraction_alpha = .039
  search.augment = 'imagenet'

  retrain = config.retrain
  retrain.cells = 21
  retrain.channels = 32
  retrain.epochs = 300
  retrain.batch_size = 256
  retrain.lr = .05
  retrain.nesterov = True
  retrain.weight_decay = 4e-5
  retrain.label_smoothing = .1
  retrain.drop_path = 0.
  retrain.auxiliary = False
  retrain.cutout = 0
  retrain.augment = 'imagenet'
  return config
