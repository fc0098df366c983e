"""Whether DARTS collapses on NAS-Bench-201 and single-path methods do not.

  rome-jax compare --config=compare_collapse --workdir=runs/collapse \
      --config.data_dir=FOLDER --workers=2

configs/nasbench201.py at its published depth of 15 cells and with its published
rates, made small in other ways: CIFAR-10 at 8x8 pixels, 4 channels, 3 epochs of
mixtures, at equal gradients 15 of GDAS and 3 of ROME with K = 5, all schedules
shortened with them. With 3 cells instead of 15 nothing collapses. ROME searches
the sub-space of configs/nasbench201.py, without `none` and with 2 of the last
node's 3 edges. Seven methods, three seeds: about an hour on 2 CPU cores.
docs/reproduction.md has what came out.
"""

from rome_jax import config as config_lib

METHODS = ('darts', 'gdas', 'rome_v2', 'pc_darts', 'snas', 'sdarts_rs',
           'fair_darts')
SMALL = ('image_size=8', 'log_every=130', 'checkpoint_every=390',
         'search.channels=4', 'search.gap_batches=0', 'search.lr_per=step',
         'search.tau_per=step')
EPOCHS = {'gdas': 15}


def flags(method):
  """The flags of one method's runs."""
  own = [f'search.epochs={EPOCHS.get(method, 3)}']
  if method == 'pc_darts':  # 15 of 50 epochs.
    own.append('search.alpha_start=1')
  return [f'--config=nasbench201:method={method}',
          *(f'--config.{text}' for text in (*SMALL, *own))]


def get_comparison():
  """Returns the comparison."""
  return config_lib.Comparison(
      name='Collapse on NAS-Bench-201, small scale',
      arms={method: flags(method) for method in METHODS},
      seeds=(0, 1, 2), baseline='darts',
      against=(
          "DARTS does not collapse if its cells' mean number of operations "
          "without weights is not above a random cell's 3.6. A method does not "
          'avoid it if the interval of its difference to DARTS in the '
          "table's accuracy reaches below 0."))
