"""NAS-Bench-201, complete: 15,625 cells on three data sets.

X. Dong and Y. Yang, NAS-Bench-201: Extending the Scope of Reproducible Neural
Architecture Search, ICLR 2020; the figures are those of its successor
NATS-Bench (topology). What each column is stands in docs/tables.md.
"""

import functools

from rome_jax.spaces import nasbench201_forms as forms
from rome_jax.tables import table

FILE = 'nasbench201.npz'
DATASETS = ('cifar10', 'cifar100', 'imagenet16-120')


@functools.cache
def load() -> table.Table:
  """The table; read once, its checksum verified.

  Raises:
    UserError: the package's file is missing or damaged.
  """
  return table.unpack(table.DATA / FILE, forms.to_index, forms.to_string)


def report(cell) -> dict:
  """What the table says of a cell, as a JSON object.

  Args:
    cell: a genotype, or any form of `nasbench201_forms`.

  Returns:
    index, code, string; num_cells; params; and per data set the test
    accuracies after 200 and 12 epochs, the validation accuracy after 200,
    the rank (1 is best) and the regret of the first, the best test accuracy
    of the table, and the seconds of training.

  Raises:
    UserError: it is no cell of NAS-Bench-201.
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
