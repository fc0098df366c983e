"""Collapse on NAS-Bench-201: which methods, at which rates, and ROME's part.

  rome-jax compare --config=compare_collapse --workdir=runs/collapse \
      --config.data_dir=FOLDER --workers=2

Arguments, the default first: question=methods|rates|rome.
configs/nasbench201.py at its published depth of 15 cells, made small in other
ways: CIFAR-10 at 8x8 pixels and 4 channels; three seeds.

methods: 3 epochs of mixtures, at equal gradients 15 of GDAS and 3 of ROME with
  K = 5, all schedules shortened with them. ROME searches the sub-space of
  configs/nasbench201.py, without `none` and with 2 of the last node's 3 edges.
rates: 5 epochs of mixtures at the rates with which a search of 50 begins;
  `darts_plain` has DARTS' own momentum and weight decay.
rome: GDAS; ROME with all edges and `none`, which differs from GDAS by K and the
  number of updates only; ROME with K = 1; ROME. Equal gradients, rates and
  order of updates.

About 40 minutes each on 2 CPU cores. docs/reproduction.md has what came out.
"""

from rome_jax import config as config_lib

SMALL = ('image_size=8', 'log_every=130', 'checkpoint_every=390',
         'search.channels=4', 'search.gap_batches=0', 'search.lr_per=step',
         'search.tau_per=step')
SHORT, LONG = ('search.epochs=3',), ('search.epochs=15',)
CONSTANT = ('search.epochs=5', 'search.lr=.025', 'search.lr_end=.025')
EQUAL = ('search.lr=.025',)  # GDAS' rate; ROME's own is .05.
LATE = ('search.alpha_start=1',)  # PC-DARTS: 15 of 50 epochs.
# {question: {arm: (argument of configs/nasbench201.py, fields)}}
ARMS = {
    'methods': {
        'darts': ('method=darts', SHORT),
        'gdas': ('method=gdas', LONG),
        'rome_v2': ('method=rome_v2', SHORT),
        'pc_darts': ('method=pc_darts', SHORT + LATE),
        'snas': ('method=snas', SHORT),
        'sdarts_rs': ('method=sdarts_rs', SHORT),
        'fair_darts': ('method=fair_darts', SHORT)},
    'rates': {
        'darts': ('method=darts', CONSTANT),
        'darts_plain': ('method=darts', CONSTANT + (
            'search.nesterov=false', 'search.weight_decay=3e-4')),
        'pc_darts': ('method=pc_darts', CONSTANT + LATE),
        'sdarts_rs': ('method=sdarts_rs', CONSTANT)},
    'rome': {
        'gdas': ('method=gdas', LONG + ('search.order=alpha_first',)),
        'rome_all_edges': ('method=rome_v2,topology=none', SHORT + EQUAL),
        'rome_k1': ('method=rome_v2', LONG + EQUAL + ('search.k=1',)),
        'rome_v2': ('method=rome_v2', SHORT + EQUAL)}}
AGAINST = {
    'rome': (
        'ROME is not more robust than GDAS if the interval of its difference '
        "to GDAS in the table's accuracy reaches below 0."),
    '': (
        "DARTS does not collapse if its cells' mean number of operations "
        "without weights is not above a random cell's 3.6. A method does not "
        'avoid it if the interval of its difference to DARTS in the '
        "table's accuracy reaches below 0.")}


def get_comparison(text=''):
  """Returns the comparison of question=..., given after the colon."""
  question = config_lib.arguments(text, question=tuple(ARMS)).question
  arms = {label: [f'--config=nasbench201:{argument}',
                  *(f'--config.{field}' for field in (*SMALL, *fields))]
          for label, (argument, fields) in ARMS[question].items()}
  return config_lib.Comparison(
      name=f'Collapse on NAS-Bench-201, small scale: {question}', arms=arms,
      seeds=(0, 1, 2), baseline=next(iter(arms)),
      against=AGAINST.get(question, AGAINST['']))
