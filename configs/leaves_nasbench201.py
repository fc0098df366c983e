"""Whether leaves rank NAS-Bench-201's cells better, for one CPU core.

  python -m rome_jax.main --config=configs/leaves_nasbench201.py:split=gm \
      --config.seed=0 --config.data_dir=FOLDER --workdir=runs/gm-0
  rome-jax rank runs/gm-0 --cells=1000 --batches=1

Arguments, the default first: split=none|few_shot|gm, method=spos|pada.

On CIFAR-10 at 16x16 pixels, 3 cells of 8 channels, batch 64, with 45
epochs of training in all (31,635 steps of 45,000 images an epoch):

  none      one supernet for 45
  few_shot  one for 25, then a leaf for each of the 5 operations of the first
            edge for 4
  gm        one for 13, two for 6, four for 5; 2+3 operations of the edge of
            largest distance

Leaves go on with weights, optimiser and schedule, so each path from the root
is trained by one cosine from .05 to 0: 45, 29 and 24 epochs. The published
recipes begin anew or train far longer in all. Every architecture is scored by
its leaf.

Hardware: one CPU core. Time: ten minutes.
Published score: Kendall's tau .48 of one supernet and .55 of few-shot's (Zhao
et al., ICML 2021, full scale).
This code: docs/measured.md.
"""

from rome_jax import config as config_lib

EPOCHS = {'none': 45, 'few_shot': 29, 'gm': 24}  # From the root to a leaf.
SPLITS = {'none': '', 'few_shot': '25', 'gm': '13,19'}


def get_config(text=''):
  """Returns the config of split=...,method=..., given after the colon."""
  args = config_lib.arguments(
      text, split=tuple(EPOCHS), method=('spos', 'pada'))
  split = args.split
  config = config_lib.defaults()
  config.name = f'leaves_nasbench201 {args.method} {split}'
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
  search.epochs = EPOCHS[split]
  search.candidates, search.evolution = 50, 'random'
  search.split, search.split_epochs = split, SPLITS[split]
  search.split_inherit, search.split_choice = 'all', 'evolution'
  search.split_sizes = '2+3' if split == 'gm' else ''

  # The table says how good a cell is.
  config.retrain.seeds = 0
  config.retrain.cells = 15
  config.retrain.channels = 16
  config.retrain.auxiliary = False
  return config
