"""Every method once, at a scale that 2 CPU cores manage.

CIFAR-10 brought to 16x16 pixels, a supernet of 3 cells and 8 channels, 25
short epochs of 20 steps with batch 64, on RobustDARTS' S2 or NAS-Bench-201.
The rates are those of each method's paper, with theta's and alpha's schedules
shortened to 25 epochs; ROME has K=7, so it sees seven times as many paths as
the others at the same number of steps. Nothing is retrained in S2; the table
of NAS-Bench-201 says how good a cell is there.

  for method in darts darts_2nd ...; do
    python -m rome_jax.main \
      --config=configs/every_method.py:space=s2,method=$method \
      --config.data_dir=DIR --workdir=runs/s2-$method
  done

Arguments, the default first: space=s2|nasbench201, method=rome_v2|rome_v1|
gdas|darts|darts_2nd|darts_es|darts_ada|darts_2nd_es|darts_2nd_ada|pc_darts|
p_darts|snas|fair_darts|sdarts_rs|sdarts_adv|random_search|spos|fairnas|pada|pa|
da. With 25 epochs DARTS-ES and DARTS-ADA have one chance to stop, at epoch 22.

Hardware: 1 CPU core. Time: 1 to 10 minutes a run.
Published score: none at this scale; it is far too short to tell methods apart.
This code: docs/results/every_method.json.
"""

from rome_jax import config as config_lib

ONE_SHOT = ('spos', 'fairnas', 'pada', 'pa', 'da')
METHODS = ('rome_v2', 'rome_v1', 'gdas', 'darts', 'darts_2nd', 'darts_es',
           'darts_ada', 'darts_2nd_es', 'darts_2nd_ada', 'pc_darts', 'p_darts',
           'snas', 'fair_darts', 'sdarts_rs', 'sdarts_adv', 'random_search',
           *ONE_SHOT)
EPOCHS = 25
SHARE = 1_280 / 50_000  # 20 batches of 64


def get_config(text=''):
  """Returns the config of one method in one space."""
  args = config_lib.arguments(
      text, space=('s2', 'nasbench201'), method=METHODS)
  config = config_lib.defaults()
  config.name = f'every_method {args.space} {args.method}'
  config.dataset = 'cifar10'
  config.image_size = 16
  config.space = args.space
  config.method = args.method
  config_lib.apply_recipe(config)
  config.log_every = 20
  config.checkpoint_every = 100

  search = config.search
  search.cells = 3
  search.channels = 8
  search.batch_size = 64
  search.fraction_theta = search.fraction_alpha = SHARE
  # PC-DARTS: 15 of 50 epochs; P-DARTS: 10 of 25.
  search.alpha_start = round(search.alpha_start * EPOCHS / search.epochs)
  search.epochs = EPOCHS
  search.gap_batches = 4
  if args.method == 'p_darts':
    search.stage_cells = '3,6,9' if args.space == 'nasbench201' else '3,5,7'
  if args.method == 'random_search':
    search.candidates, search.epochs = 4, 5
  if args.method in ONE_SHOT:
    search.candidates, search.evolution = 50, 'random'

  retrain = config.retrain
  retrain.seeds = 0
  retrain.cells = 3
  retrain.channels = 8
  retrain.batch_size = 64
  retrain.auxiliary = False
  retrain.cutout = 0
  retrain.drop_path = 0.
  return config
