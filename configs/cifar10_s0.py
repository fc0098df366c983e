"""ROME-v2 on CIFAR-10 in the DARTS space S0, at the paper's settings.

Search: 8 cells, 16 channels, batch 64, K=7, 50 epochs. Retraining: 20 cells,
36 channels, 600 epochs.

  python -m rome_jax.main --config=configs/cifar10_s0.py \
      --workdir=runs/c10 --config.data_dir=FOLDER

Hardware: one accelerator. Time: not run (paper: 0.3 GPU-days of a V100 for
the search).
Published score: 97.42 +- .07 % test accuracy, mean of independent searches
(ROME, ICCV 2023, component table). This code: not run.
"""

from rome_jax import config as config_lib


def get_config():
  """Returns the config: the defaults are this recipe."""
  config = config_lib.defaults()
  config.name = 'cifar10_s0'
  config.dataset = 'cifar10'
  return config
