"""Methods side by side on NAS-Bench-201, judged by its table.

  rome-jax compare --config=compare_nb201 --workdir=runs/compare \
      --config.data_dir=FOLDER

Arguments, the default first: scale=small|full. Six methods that derive a cell,
three seeds each. small: configs/every_method.py, CIFAR-10 at 16x16 pixels,
3 cells of 8 channels, 500 steps, a minute a run on a CPU core; too short for
what the papers claim, it shows what the command gives. full:
configs/nasbench201.py, one accelerator (not run).
"""

from rome_jax import config as config_lib

METHODS = ('gdas', 'rome_v2', 'darts', 'pc_darts', 'snas', 'sdarts_rs')
FILES = {'small': 'every_method:space=nasbench201,method={}',
         'full': 'nasbench201:method={}'}
AGAINST = (
    'ROME is not better than GDAS if the interval of their difference in '
    'accuracy reaches below 0; DARTS does not collapse here if its cells have '
    'no more operations without weights than a random cell.')


def get_comparison(text=''):
  """Returns the comparison of scale=..., given after the colon."""
  scale = config_lib.arguments(text, scale=tuple(FILES)).scale
  return config_lib.Comparison(
      name=f'Methods on NAS-Bench-201, {scale} scale',
      arms={method: [f'--config={FILES[scale].format(method)}']
            for method in METHODS},
      seeds=(0, 1, 2), baseline='gdas', against=AGAINST)
