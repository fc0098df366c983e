"""NAS-Bench-201, complete: 15,625 cells on three data sets.

X. Dong and Y. Yang, NAS-Bench-201: Extending the Scope of Reproducible Neural
Architecture Search, ICLR 2020. The numbers are those of its successor
NATS-Bench (topology). docs/tables.md explains each column.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from rome_jax.spaces import Sizes, counting, nasbench201_counts
from rome_jax.spaces import nasbench201_forms as forms
from rome_jax.tables import table

FILE = 'nasbench201.npz'
# The benchmark's networks.
_SIZES = {
    'cifar10': Sizes(cells=15, channels=16, num_classes=10),
    'cifar100': Sizes(cells=15, channels=16, num_classes=100),
    'imagenet16-120': Sizes(
        cells=15, channels=16, num_classes=120, image_size=16)}
DATASETS = tuple(_SIZES)


@functools.cache
def load() -> table.Table:
  """Returns the table; reads it once and verifies its checksum.

  The costs `macs` and `flops` are counted here, not measured: `macs` are the
  multiply-adds of one image, as `spaces.counting` defines them; `flops` is
  the benchmark's own figure, which adds one for each bias of the classifier.

  Raises:
    UserError: the package's file is missing or damaged.

  >>> load().cost('333333', 'macs'), load().cost('333333', 'flops')
  (220119680.0, 220119690.0)
  """
  known = table.unpack(table.DATA / FILE, forms.to_index, forms.to_string)
  macs = {dataset: _macs(sizes) for dataset, sizes in _SIZES.items()}
  counted = {}
  for dataset, values in macs.items():
    flops = values + _SIZES[dataset].num_classes
    counted['macs', dataset] = table.Column(values[:, None])
    counted['flops', dataset] = table.Column(flops[:, None])
  return dataclasses.replace(known, costs={**known.costs, **counted})


def _macs(sizes):
  """[15625] uint32: multiply-adds of every cell's network."""
  skeleton = _macs_of((), sizes)
  per_op = np.array([_macs_of((((op, 0),),), sizes) - skeleton
                     for op in forms.OPS])
  return (skeleton + per_op[forms.all_ops()].sum(-1)).astype(np.uint32)


def _macs_of(nodes, sizes):
  return counting.summed(nasbench201_counts.parts(nodes, sizes)).macs


def report(cell: Any) -> dict:
  """Returns what the table says about a cell, as a JSON object.

  Args:
    cell: a genotype, or any form of `nasbench201_forms`.

  Returns:
    index, code, string; num_cells; params; and per data set: the test
    accuracies after 200 and 12 epochs, the validation accuracy after 200, the
    rank (1 is best) and regret by test accuracy after 200, the best such
    accuracy in the table, the training time in seconds, and the multiply-adds
    of one image.

  Raises:
    UserError: it is not a cell of NAS-Bench-201.

  >>> round(report('333311')['datasets']['cifar10']['best_test'], 2)
  94.37
  """
  index = forms.to_index(cell)
  known = load()
  return {
      'table': known.name,
      'index': index,
      'code': forms.to_code(index),
      'string': forms.to_string(index),
      'num_cells': known.size,
      'params': int(known.cost(index, 'params')),
      'datasets': {
          dataset: _dataset_report(known, index, dataset)
          for dataset in DATASETS},
  }


def _dataset_report(known, index, dataset):
  return {
      'test': known.query(index, dataset),
      'test_12_epochs': known.query(index, dataset, epochs=12),
      'valid': known.query(index, dataset, 'valid'),
      'rank': known.rank(index, dataset),
      'regret': known.regret(index, dataset),
      'best_test': known.best(dataset).value,
      'train_seconds': known.cost(index, 'train_time', dataset),
      'macs': int(known.cost(index, 'macs', dataset)),
  }
