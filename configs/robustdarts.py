"""RobustDARTS's spaces S1 to S4 on three data sets.

  python -m rome_jax.main --config=configs/robustdarts.py:space=s2,method=gdas \
      --config.data_dir=FOLDER

Arguments, the default first: space=s1|s2|s3|s4,
dataset=cifar10|cifar100|svhn, method=rome_v2|rome_v1|gdas|darts|darts_2nd|
darts_2nd_es|darts_2nd_ada|darts_es|darts_ada|pc_darts|sdarts_rs|sdarts_adv|
random_search,
evaluation=robustdarts|sdarts. The last sets the size of the retrained network
(ROME, note of Table 6). robustdarts: 8 cells, 16 channels on CIFAR-100 and
SVHN; 20 cells, 36 channels on CIFAR-10, in S2 and S4 16. sdarts: always 20
cells, 36 channels.

Search: 8 cells, 16 channels, batch 64 (PC-DARTS 256) and the method's own
recipe; ROME 50 epochs of K=7, GDAS 350 at equal cost. The benchmark's DARTS,
its ES and ADA are second order (`darts_2nd*`). Retraining: 600 epochs, as in
DARTS. R-DARTS is no method of its own but a choice among searches; its command
is in docs/methods/robust.md.

Hardware: one accelerator. Time: not run.
Published score: test error in %, mean of three searches with `robustdarts`
(ROME, ICCV 2023, Tables 1 and 7; for ROME-v2 on CIFAR-10 in S4 Table 7 of the
arXiv version has 3.44 +- .12). Parameterless operations in the normal cell:
ROME 0 to 3.5, GDAS 0 to 7.8.

  cifar10          S1            S2            S3            S4
  rome_v2     2.66 +- .06   3.14 +- .14   2.61 +- .00   3.21 +- .12
  rome_v1     2.93 +- .09   3.34 +- .12   2.72 +- .09   3.21 +- .00
  gdas        2.89 +- .09   3.89 +- .17   3.04 +- .10   3.34 +- .10
  darts_2nd   4.66 +- .71   4.42 +- .40   4.12 +- .85   6.95 +- .18
    its es    3.05 +- .07   3.41 +- .14   3.71 +-1.14   4.17 +- .21
    its ada   3.03 +- .08   3.59 +- .31   2.99 +- .34   3.89 +- .67
  cifar100
  rome_v2    22.71 +- .71  22.91 +- .75  22.43 +- .36  20.95 +- .45
  rome_v1    22.65 +- .45  23.14 +- .98  23.03 +- .66  21.33 +- .00
  gdas       24.49 +- .08  24.57 +- .47  22.86 +- .17  24.14 +- .89
  darts_2nd  29.93 +- .41  28.75 +- .92  29.01 +- .24  24.77 +-1.51
    its es   28.90 +- .81  24.68 +-1.43  26.99 +-1.79  23.90 +-2.01
    its ada  24.94 +- .81  26.88 +-1.11  24.55 +- .63  23.66 +- .90
  svhn
  rome_v2     2.34 +- .06   2.41 +- .07   2.56 +- .03   2.34 +- .00
  rome_v1     2.37 +- .04   2.49 +- .14   2.61 +- .03   2.43 +- .00
  gdas        2.48 +- .04   3.05 +- .02   3.62 +- .36   2.51 +- .06
  darts_2nd   9.88 +-5.50   3.69 +- .12   4.00 +-1.01   2.90 +- .02
    its es    2.80 +- .09   2.68 +- .18   2.78 +- .29   2.55 +- .15
    its ada   2.59 +- .07   2.79 +- .22   2.58 +- .07   2.52 +- .06

Lowest of three searches (ROME, Table 6), CIFAR-10, S1 to S4: R-DARTS(DP) 3.11,
3.48, 2.93, 3.58; R-DARTS(L2) 2.78, 3.31, 2.51, 3.56; sdarts_rs 2.78, 3.33,
2.53, 4.84; with `sdarts` pc_darts 3.11, 3.02, 2.51, 3.02 and sdarts_rs 2.78,
2.75, 2.53, 2.93. This code: not run at this size.
"""

from rome_jax import config as config_lib

METHODS = ('rome_v2', 'rome_v1', 'gdas', 'darts', 'darts_2nd', 'darts_2nd_es',
           'darts_2nd_ada', 'darts_es', 'darts_ada', 'pc_darts', 'sdarts_rs',
           'sdarts_adv', 'random_search')


def get_config(text=''):
  """Returns the config of one benchmark."""
  args = config_lib.arguments(
      text, space=('s1', 's2', 's3', 's4'),
      dataset=('cifar10', 'cifar100', 'svhn'),
      method=METHODS, evaluation=('robustdarts', 'sdarts'))
  config = config_lib.defaults()
  config.name = f'robustdarts {args.space} {args.dataset} {args.method}'
  config.space = args.space
  config.dataset = args.dataset
  config.method = args.method
  config_lib.apply_recipe(config)

  search, retrain = config.search, config.retrain
  if args.method in ('rome_v2', 'rome_v1', 'gdas'):
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
