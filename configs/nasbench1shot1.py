"""Methods in NAS-Bench-1Shot1: operations on nodes, edges by degree.

  python -m rome_jax.main --config=configs/nasbench1shot1.py:variant=skip \
      --config.data_dir=FOLDER

Arguments, the default first: space=1|2|3, variant=original|skip,
method=rome_v2|rome_v1|gdas|darts|darts_2nd|sdarts_rs|sdarts_adv. `skip` has a
skip connection in place of the benchmark's 1x1 convolution: the spaces in which
GDAS fails and ROME does not (ROME, Figures 3, 15 and 16).

Search: 9 cells, 16 channels, batch 96, the benchmark's recipe; 50 epochs of
K=7 or, at equal cost, 350 of GDAS (the benchmark's GDAS: 100 epochs, with
alpha's gradient clipped), 50 of mixtures. Retraining: the searched network, 108
epochs of batch 256 with NAS-Bench-101's augmentation and decay, but SGD in
place of RMSProp. For cells of `original`, look the accuracy up in NAS-Bench-101
instead (docs/nasbench1shot1.md).

Hardware: one accelerator. Time: not run.
Published score: none; the figures of ROME show cells. The best of the three
spaces have 5.45, 5.76 and 5.34 % test error in NAS-Bench-101.
This code: not run.
"""

from rome_jax import config as config_lib

METHODS = ('rome_v2', 'rome_v1', 'gdas', 'darts', 'darts_2nd', 'sdarts_rs',
           'sdarts_adv')


def get_config(text=''):
  """Returns the config of one space and method."""
  args = config_lib.arguments(
      text, space=('1', '2', '3'), variant=('original', 'skip'),
      method=METHODS)
  config = config_lib.defaults()
  config.name = f'nasbench1shot1 {args.space} {args.variant} {args.method}'
  config.space = f'nasbench1shot1_{args.space}'
  if args.variant == 'skip':
    config.space += '_skip'
  config.method = args.method
  config_lib.apply_recipe(config)
  config.dataset = 'cifar10'

  search = config.search
  search.cells = 9
  search.batch_size = 96
  if args.method in ('rome_v2', 'rome_v1', 'gdas'):
    search.epochs = 350 // search.k
  if args.method == 'gdas':
    search.tau_end = 1.  # The authors'.

  retrain = config.retrain
  retrain.cells = 9
  retrain.channels = 16
  retrain.epochs = 108
  retrain.batch_size = 256
  retrain.lr = .1
  retrain.weight_decay = 1e-4
  retrain.drop_path = 0.
  retrain.auxiliary = False
  retrain.cutout = 0
  return config
