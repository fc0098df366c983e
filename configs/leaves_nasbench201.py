"""Whether leaves rank NAS-Bench-201's cells better, for one CPU core.

  python -m rome_jax.main --config=configs/leaves_nasbench201.py:split=gm \
      --config.seed=0 --config.data_dir=FOLDER --workdir=runs/gm-0
  rome-jax rank runs/gm-0 --cells=1000 --batches=1

Arguments, the default first: split=none|few_shot|gm, method=spos|pa|pada,
epochs=45|22.

On CIFAR-10 at 16x16 pixels, 3 cells of 8 channels, batch 64, with 45 or 22
epochs of training in all (703 steps, 45,000 images an epoch):

  none      one supernet for 45 (22)
  few_shot  one for 25 (12), then a leaf for each of the 5 operations of the
            first edge for 4 (2)
  gm        one for 13 (6), two for 6 (4), four for 5 (2); 2+3 operations of
            the edge of largest distance

Leaves go on with weights, optimiser and schedule, so each path from the root
is trained by one cosine from .05 to 0, of 45, 29 and 24 (22, 14 and 12) epochs.
The published recipes begin anew or train far longer in all. Every architecture
is scored by its leaf.

Hardware: one CPU core. Time: ten minutes.
Published score: Kendall's tau .48 of one supernet and .55 of few-shot's (Zhao
et al., ICML 2021, full scale).
This code: docs/reproduction.md.
"""

from rome_jax import config as config_lib

# Epochs from the root to a leaf, and of the splits.
PATHS = {
    '45': {'none': (45, ''), 'few_shot': (29, '25'), 'gm': (24, '13,19')},
    '22': {'none': (22, ''), 'few_shot': (14, '12'), 'gm': (12, '6,10')}}


def get_config(text=''):
  """Returns the config of the arguments that are given after the colon."""
  args = config_lib.arguments(
      text, split=('none', 'few_shot', 'gm'), method=('spos', 'pa', 'pada'),
      epochs=tuple(PATHS))
  split = args.split
  config = config_lib.defaults()
  config.name = ' '.join(
      ('leaves_nasbench201', args.method, split, args.epochs))
  config.dataset = 'cifar10'
  config.image_size = 16
  config.space = 'nasbench201'
  config.method = args.method
  config_lib.apply_recipe(config)
  config.log_every = 703
  config.checkpoint_every = 7030

  search = config.search
  search.cells, search.channels, search.batch_size = 3, 8, 64
  search.lr, search.lr_end, search.weight_decay = .05, 0., 2.5e-4
  search.epochs, search.split_epochs = PATHS[args.epochs][split]
  search.candidates, search.evolution = 50, 'random'
  search.split = split
  search.split_inherit, search.split_choice = 'all', 'evolution'
  search.split_sizes = '2+3' if split == 'gm' else ''

  # The table says how good a cell is.
  config.retrain.seeds = 0
  config.retrain.cells = 15
  config.retrain.channels = 16
  config.retrain.auxiliary = False
  return config
