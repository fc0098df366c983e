"""ROME and GDAS in RobustDARTS's spaces S1 to S4, on three data sets.

  python -m rome_jax.main --config=configs/robustdarts.py:space=s2,method=gdas \
      --config.data_dir=FOLDER

Arguments, the default first: space=s1|s2|s3|s4,
dataset=cifar10|cifar100|svhn, method=rome_v2|rome_v1|gdas,
evaluation=robustdarts|sdarts. The last sets the size of the retrained network
(ROME, note of Table 6). robustdarts: 8 cells, 16 channels on CIFAR-100 and
SVHN; 20 cells, 36 channels on CIFAR-10, in S2 and S4 16. sdarts: always 20
cells, 36 channels.

Search: 8 cells, 16 channels, batch 64, 50 epochs of K=7 or, at equal cost,
350 of GDAS. Retraining: 600 epochs, as in DARTS.

Hardware: one accelerator. Time: not run.
Published score: test error in %, mean of three searches with `robustdarts`
(ROME, ICCV 2023, Table 1, with its GDAS in brackets; the arXiv version has
3.44 +- .12 for ROME on CIFAR-10 in S4). Parameterless operations in the normal
cell: ROME 0 to 3.5, GDAS 0 to 7.8.

            S1                S2                S3                S4
  cifar10    2.66 +-.06        3.14 +-.14        2.61 +-.00        3.21 +-.12
           ( 2.89 +-.09)     ( 3.89 +-.17)     ( 3.04 +-.10)     ( 3.34 +-.10)
  cifar100  22.71 +-.71       22.91 +-.75       22.43 +-.36       20.95 +-.45
           (24.49 +-.08)     (24.57 +-.47)     (22.86 +-.17)     (24.14 +-.89)
  svhn       2.34 +-.06        2.41 +-.07        2.56 +-.03        2.34 +-.00
           ( 2.48 +-.04)     ( 3.05 +-.02)     ( 3.62 +-.36)     ( 2.51 +-.06)

This code: not run.
"""

from rome_jax import config as config_lib


def get_config(text=''):
  """Returns the config of one benchmark."""
  args = config_lib.arguments(
      text, space=('s1', 's2', 's3', 's4'),
      dataset=('cifar10', 'cifar100', 'svhn'),
      method=('rome_v2', 'rome_v1', 'gdas'),
      evaluation=('robustdarts', 'sdarts'))
  config = config_lib.defaults()
  config.name = f'robustdarts {args.space} {args.dataset} {args.method}'
  config.space = args.space
  config.dataset = args.dataset
  config.method = args.method
  config_lib.apply_recipe(config)

  search, retrain = config.search, config.retrain
  search.epochs = 350 // search.k
  augment = 'svhn' if args.dataset == 'svhn' else 'cifar'
  search.augment = retrain.augment = augment
  retrain.cells, retrain.channels = size(args)
  return config


def size(args):
  """(cells, channels) of the retrained network."""
  if args.evaluation == 'sdarts':
    return 20, 36
  if args.dataset != 'cifar10':
    return 8, 16
  return 20, 16 if args.space in ('s2', 's4') else 36
