"""A genotype found elsewhere, on CIFAR for example, retrained on ImageNet.

  python -m rome_jax.main --config=configs/imagenet_retrain.py:genotype=PATH \
      --workdir=runs/transfer --config.data_dir=FOLDER

Argument: genotype=DARTS_V2, the default, another published name, or the path
of a genotype.json. The recipe is that of configs/imagenet_direct.py: 14 cells,
48 channels, batch 1024, 250 epochs, rate .5 after 5 epochs of warm-up.

Hardware: one accelerator; if a batch of 1024 is too large for it, use a smaller
one and lower the rate in proportion. Time: not run.
Published score: DARTS_V2 73.3 % top-1, 4.7 M parameters (DARTS; batch 128,
rate .1). This code: not run; its count is 4,718,752 parameters.
"""

import pathlib

from rome_jax import config as config_lib

DIRECT = pathlib.Path(__file__).with_name('imagenet_direct.py')


def get_config(text=''):
  """Returns the config of one genotype."""
  args = config_lib.arguments(text, genotype='DARTS_V2')
  config = config_lib.load([f'--config={DIRECT}']).config
  config.name = f'imagenet_retrain {args.genotype}'
  config.genotype = args.genotype
  return config
