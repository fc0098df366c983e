"""Whether leaves rank NAS-Bench-201's cells better than one supernet.

  rome-jax compare --config=compare_leaves --workdir=runs/leaves \
      --config.data_dir=FOLDER

PA over one supernet, few-shot leaves and GM-NAS' leaves, three seeds, at
equal training in all: 16,000 steps of one supernet, 15,466 of all parts of the
others (configs/ranking_nasbench201.py, configs/leaves_nasbench201.py). PA, and
not SPOS, because its supernet ranks well at this scale. An hour and a half on
a CPU core. docs/reproduction.md has what came out.
"""

from rome_jax import config as config_lib

LEAVES = '--config=leaves_nasbench201:split={},method=pa,epochs=22'


def get_comparison():
  """Returns the comparison."""
  return config_lib.Comparison(
      name='Leaves on NAS-Bench-201, small scale',
      arms={'one': ['--config=ranking_nasbench201:method=pa'],
            'few_shot': [LEAVES.format('few_shot')],
            'gm': [LEAVES.format('gm')]},
      seeds=(0, 1, 2), baseline='one',
      rank=('--cells=1000', '--batches=1'),
      against=(
          'Leaves do not rank better if the interval of the difference in '
          "Kendall's tau reaches below 0."))
