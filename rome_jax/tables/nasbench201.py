"""NAS-Bench-201, complete: 15,625 cells on three data sets.

X. Dong and Y. Yang, NAS-Bench-201: Extending the Scope of Reproducible Neural
Architecture Search, ICLR 2020. The numbers are those of its successor
NATS-Bench (topology). docs/tables.md explains each column.
"""

import functools
from typing import Any

from rome_jax.spaces import nasbench201_forms as forms
from rome_jax.tables import table

FILE = 'nasbench201.npz'
DATASETS = ('cifar10', 'cifar100', 'imagenet16-120')


@functools.cache
def load() -> table.Table:
  """Returns the table; reads it once and verifies its checksum.

  Raises:
    UserError: the package's file is missing or damaged.
  """
  return table.unpack(table.DATA / FILE, forms.to_index, forms.to_string)


def report(cell: Any) -> dict:
  """Returns what the table says about a cell, as a JSON object.

  Args:
    cell: a genotype, or any form of `nasbench201_forms`.

  Returns:
    index, code, string; num_cells; params; and per data set: the test
    accuracies after 200 and 12 epochs, the validation accuracy after 200, the
    rank (1 is best) and regret by test accuracy after 200, the best such
    accuracy in the table, and the training time in seconds.

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
  }
