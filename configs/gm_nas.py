"""Few-Shot NAS and GM-NAS: a supernet that splits into leaves.

  python -m rome_jax.main --config=configs/gm_nas.py:method=gdas,split=gm \
      --config.data_dir=FOLDER --workdir=runs/gm

Arguments, the default first: space=nasbench201|s0, split=gm|few_shot|none,
method=darts|darts_2nd|snas|gdas|rome_v2|spos|pada.

nasbench201: GM splits after epochs 15 and 30 (spos, pada: 20 and 40), 2+3
operations each, into 4 leaves that begin anew and train for 30 (50) epochs of
batch 48. s0: splits after epochs 2, 4 and 6, edges of the normal cell, into 8
leaves of 15 epochs; the better half of them stays after 30 and 100 of 600
epochs of training alone. few_shot: one leaf for each operation of the first
edge, split before any training. spos and pada search over the architectures of
all leaves. configs/gm_mobile.py is for the mobile space.

The authors' growing supernets have schedules of their own, which are not
published; here they are those of a search as long as the splits and a leaf.
Few-shot leaves train as long as those of gm.

Hardware: one accelerator. Time: not run at this size.
Published score: GM with DARTS on CIFAR-10 97.65 %, with SNAS 97.66 % (Hu et
al., ICLR 2022, best epochs). None of GM over ROME or PA&DA.
This code: docs/reproduction.md has a reduced scale.
"""

from rome_jax import config as config_lib

METHODS = ('darts', 'darts_2nd', 'snas', 'gdas', 'rome_v2', 'spos', 'pada')


def get_config(text=''):
  """Returns the config of one space, method and way to split."""
  args = config_lib.arguments(
      text, method=METHODS, space=('nasbench201', 's0'),
      split=('gm', 'few_shot', 'none'))
  config = config_lib.defaults()
  config.name = f'gm_nas {args.space} {args.method} {args.split}'
  config.space = args.space
  config.method = args.method
  config_lib.apply_recipe(config)
  config.dataset = 'cifar10'
  search = config.search
  search.split = args.split
  one_path = args.method in ('spos', 'pada')  # They derive nothing.
  if one_path:
    search.split_choice, search.evolution = 'evolution', 'random'
  {'nasbench201': nasbench201, 's0': s0}[args.space](config, args, one_path)
  if args.split != 'gm':
    search.split_epochs = '0' if args.split == 'few_shot' else ''
    search.split_sizes = ''
  if args.split == 'none':
    search.split_rungs = ''
  return config


def nasbench201(config, args, one_path):
  """The benchmark's space; its table trains the cell."""
  search, retrain = config.search, config.retrain
  search.split_epochs = '20,40' if one_path else '15,30'
  search.split_sizes = '2+3'
  search.epochs = 50 if one_path else 30
  search.cells, search.batch_size = 15, 48
  search.lr, search.lr_end, search.nesterov = .025, .001, True
  search.weight_decay = 1e-4 if one_path else 5e-4
  if one_path:
    search.candidates = 800  # As many as 200 of each leaf.
  else:
    search.split_choice = 'table'
  if args.method == 'rome_v2':
    config.in_degree, config.drop_none = 2, True
    search.k, search.split_sizes = 4, '2+2'
  if args.method == 'snas':
    search.tau_start, search.tau_end = 1., .1
  retrain.seeds, retrain.auxiliary = 0, False
  retrain.cells, retrain.channels = 15, 16


def s0(config, args, one_path):
  """DARTS' space without `none`."""
  search = config.search
  search.split_epochs, search.split_rule = '2,4,6', 'within'
  search.split_sizes = '2+5,3+4'
  search.split_soft = args.method in ('darts', 'darts_2nd', 'snas')
  search.epochs = 15
  search.lr = .05 if args.method == 'rome_v2' else .025
  if args.method == 'snas':
    search.tau_start, search.tau_end = 1., .03
  if not one_path:
    search.split_choice = 'halving'
    search.split_rungs = '30,100,600'
