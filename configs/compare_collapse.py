"""Whether DARTS collapses on NAS-Bench-201 and other methods do not.

  rome-jax compare --config=compare_collapse --workdir=runs/collapse \
      --config.data_dir=FOLDER --workers=2

Arguments, the default first: rates=falling|constant. configs/nasbench201.py at
its published depth of 15 cells, made small in other ways: CIFAR-10 at 8x8
pixels and 4 channels. falling: 3 epochs of mixtures, at equal gradients 15 of
GDAS and 3 of ROME with K = 5, all schedules shortened with them; ROME searches
the sub-space of configs/nasbench201.py, without `none` and with 2 of the last
node's 3 edges. constant: 5 epochs of mixtures at the rates with which a search
of 50 begins; `darts_plain` has DARTS' own momentum and weight decay instead of
the benchmark's. Three seeds; 40 minutes each on 2 CPU cores.
docs/reproduction.md has what came out.
"""

from rome_jax import config as config_lib

METHODS = {
    'falling': ('darts', 'gdas', 'rome_v2', 'pc_darts', 'snas', 'sdarts_rs',
                'fair_darts'),
    'constant': ('darts', 'darts_plain', 'pc_darts', 'snas', 'sdarts_rs')}
SMALL = ('image_size=8', 'log_every=130', 'checkpoint_every=390',
         'search.channels=4', 'search.gap_batches=0', 'search.lr_per=step',
         'search.tau_per=step')
EPOCHS = {'gdas': 15}
CONSTANT = ('search.epochs=5', 'search.lr=.025', 'search.lr_end=.025')


def flags(method, rates):
  """The flags of one method's runs."""
  own = [f'search.epochs={EPOCHS.get(method, 3)}']
  if rates == 'constant':
    own = [*CONSTANT]
  if method == 'pc_darts':  # 15 of 50 epochs.
    own.append('search.alpha_start=1')
  if method == 'darts_plain':
    method = 'darts'
    own += ['search.nesterov=false', 'search.weight_decay=3e-4']
  return [f'--config=nasbench201:method={method}',
          *(f'--config.{text}' for text in (*SMALL, *own))]


def get_comparison(text=''):
  """Returns the comparison of rates=..., given after the colon."""
  rates = config_lib.arguments(text, rates=tuple(METHODS)).rates
  return config_lib.Comparison(
      name=f'Collapse on NAS-Bench-201, small scale, {rates} rates',
      arms={method: flags(method, rates) for method in METHODS[rates]},
      seeds=(0, 1, 2), baseline='darts',
      against=(
          "DARTS does not collapse if its cells' mean number of operations "
          "without weights is not above a random cell's 3.6. A method does not "
          'avoid it if the interval of its difference to DARTS in the '
          "table's accuracy reaches below 0."))
