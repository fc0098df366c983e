"""Methods on NAS-Bench-201, scored by its table.

  python -m rome_jax.main --config=configs/nasbench201.py:method=rome_v2 \
      --config.data_dir=FOLDER

Arguments, the default first: method=rome_v2|rome_v1|gdas|darts|darts_2nd|
pc_darts|snas|sdarts_rs|sdarts_adv|fair_darts|spos, dataset=cifar10|cifar100,
topology=auto|edges|none. `edges`: ROME samples 2 of the last node's 3 edges,
and `none` is no operation (docs/spaces.md says why, and what it costs). `none`:
all six edges stay, and only operations are searched, `none` among them. `auto`
is `edges` for ROME and `none` for all others.

Search: 15 cells, 16 channels, batch 64, the benchmark's recipe: 250 epochs of
GDAS or SPOS, at equal cost 50 of ROME with K=5, 50 of all mixtures. The
benchmark halves CIFAR-10 only; here CIFAR-100's training images are halved too.
No retraining: the report gives the table's accuracy, rank and regret on all its
data sets. `--config.retrain.seeds=1` adds one of the benchmark's trainings, 200
epochs.

Hardware: one accelerator. Time: not run.
Published score: test accuracy on CIFAR-10 in %, darts and darts_2nd 54.30,
gdas 93.61 +- .09, random search with shared weights (spos here) 87.66 +- 1.69
(Dong and Yang, ICLR 2020); snas 92.77 +- .83, pc_darts 93.41 +- .30 (as
reported by DrNAS, ICLR 2021); none of ROME. The best cells have 94.37 % on
CIFAR-10, 73.51 on CIFAR-100, 47.31 on ImageNet16-120; the best with `edges`
94.09, 72.57 and 46.52. This code: not run at this size;
configs/nasbench201_reduced.py and configs/every_method.py are for 2 CPU cores.
"""

from rome_jax import config as config_lib

ROME = ('rome_v2', 'rome_v1')
METHODS = (*ROME, 'gdas', 'darts', 'darts_2nd', 'pc_darts', 'snas',
           'sdarts_rs', 'sdarts_adv', 'fair_darts', 'spos')


def get_config(text=''):
  """Returns the config of one method and data set."""
  args = config_lib.arguments(
      text, method=METHODS,
      dataset=('cifar10', 'cifar100'), topology=('auto', 'edges', 'none'))
  config = config_lib.defaults()
  config.name = f'nasbench201 {args.method} {args.dataset}'
  config.space = 'nasbench201'
  config.method = args.method
  config_lib.apply_recipe(config)
  config.dataset = args.dataset

  search = config.search
  search.cells = 15
  search.k = min(5, search.k)
  search.batch_size = 64
  one_path = args.method in (*ROME, 'gdas', 'spos')
  search.epochs = 250 // search.k if one_path else 50
  # GDAS' code moves theta first.
  search.order = 'theta_first' if args.method == 'gdas' else 'alpha_first'
  if args.topology == 'edges' or (
      args.topology == 'auto' and args.method in ROME):
    config.in_degree, config.drop_none = 2, True
  if args.method == 'pc_darts':  # Its own rates are for batches of 256.
    search.lr, search.lr_end, search.alpha_lr = .025, .001, 3e-4
  search.nesterov = True
  search.weight_decay = 5e-4

  retrain = config.retrain
  retrain.seeds = 0
  retrain.cells = 15
  retrain.channels = 16
  retrain.epochs = 200
  retrain.batch_size = 256
  retrain.lr = .1
  retrain.nesterov = True
  retrain.weight_decay = 5e-4
  retrain.clip_norm = 1e6  # Never reached: the benchmark does not clip.
  retrain.drop_path = 0.
  retrain.auxiliary = False
  retrain.cutout = 0
  return config
