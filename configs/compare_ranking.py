"""Whether PA&DA's supernet ranks NAS-Bench-201's cells better than SPOS'.

  rome-jax compare --config=compare_ranking --workdir=runs/ranking \
      --config.data_dir=FOLDER

SPOS, FairNAS, PA, DA and PA&DA at equal gradients, five seeds each, by
configs/ranking_nasbench201.py; each supernet ranks the same 1,000 cells on one
batch of held-out images. Two hours on two CPU cores. docs/reproduction.md has
what came out.
"""

from rome_jax import config as config_lib

METHODS = ('spos', 'fairnas', 'pa', 'da', 'pada')


def get_comparison():
  """Returns the comparison."""
  return config_lib.Comparison(
      name='Ranking by one-shot supernets on NAS-Bench-201, small scale',
      arms={method: [f'--config=ranking_nasbench201:method={method}']
            for method in METHODS},
      seeds=(0, 1, 2, 3, 4), baseline='spos',
      rank=('--cells=1000', '--batches=1'),
      against=(
          "PA&DA does not rank better than SPOS if the interval of the "
          "difference in Kendall's tau reaches below 0."))
