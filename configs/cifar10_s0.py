"""The DARTS space S0 on CIFAR-10 or CIFAR-100: every method, its own recipe.

  python -m rome_jax.main --config=configs/cifar10_s0.py:method=rome_v2 \
      --workdir=runs/c10 --config.data_dir=FOLDER

Arguments, the default first: method=rome_v2|rome_v1|gdas|darts|darts_2nd|
pc_darts|p_darts|snas|fair_darts|sdarts_rs|sdarts_adv|random_search|spos,
dataset=cifar10|cifar100.

Search: 8 cells, 16 channels and the fields of the method's row (`Method.recipe`
in rome_jax/methods/rows); the default is ROME's: batch 64, K=7, 50 epochs.
DARTS, PC-DARTS, P-DARTS and SNAS search with `none`, as their authors did
(space `darts`).
Retraining: 20 cells, 36 channels, 600 epochs, as DARTS. P-DARTS and PC-DARTS
retrain with drop path .3, P-DARTS with batch 128.

Hardware: one accelerator. Time: not run.
Published score: test error in % and GPU-days of the search.

  method         CIFAR-10                          CIFAR-100            GPU-days
  rome_v2        2.58 +- .07                       17.71 +- .11         0.3
  rome_v1        2.63 +- .09                       17.41 +- .12         0.3
  gdas           2.93                              18.38                0.2
  darts          3.00 +- .14; reproduced 3.38      -                    0.4
  darts_2nd      2.76 +- .09                       20.58 +- .44         1
  pc_darts       2.57; reproduced 2.89 +- .22      -                    0.1
  p_darts        2.50; reproduced 2.81 +- .14      17.49                0.3
  snas           2.85 +- .02                       -                    1.5
  fair_darts     2.54 +- .05                       -                    0.4
  sdarts_rs      2.67 +- .03                       -                    0.4
  sdarts_adv     2.61 +- .02                       -                    1.3
  random_search  3.29 +- .15                       -                    4

Sources: ROME (Tables 4 and 8, which reproduced PC-DARTS and P-DARTS) and the
papers of the methods; random search: DARTS, Table 1; spos: none in this space.
This code: not run at this size; configs/every_method.py is for 2 CPU cores.
"""

from rome_jax import config as config_lib

METHODS = ('rome_v2', 'rome_v1', 'gdas', 'darts', 'darts_2nd', 'pc_darts',
           'p_darts', 'snas', 'fair_darts', 'sdarts_rs', 'sdarts_adv',
           'random_search', 'spos')
WITH_NONE = ('darts', 'darts_2nd', 'pc_darts', 'p_darts', 'snas')


def get_config(text=''):
  """Returns the config of one method and data set."""
  args = config_lib.arguments(
      text, method=METHODS, dataset=('cifar10', 'cifar100'))
  config = config_lib.defaults()
  config.name = f'{args.dataset}_s0 {args.method}'
  config.dataset = args.dataset
  config.space = 'darts' if args.method in WITH_NONE else 's0'
  config.method = args.method
  config_lib.apply_recipe(config)
  if args.method in ('p_darts', 'pc_darts'):
    config.retrain.drop_path = .3
  if args.method == 'p_darts':
    config.retrain.batch_size = 128
    if args.dataset == 'cifar100':
      config.search.stage_skip_dropout = '.1,.2,.3'
  return config
