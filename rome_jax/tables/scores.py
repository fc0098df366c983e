"""Measures how well scores of networks agree with a table.

Shapes: N networks. Higher scores and accuracies are better; negate losses. The
order of the networks breaks ties among the scores, so equal scores always
select the same networks.
"""

import numbers
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from scipy import stats

from rome_jax import errors
from rome_jax.tables import table

Numbers: TypeAlias = Any  # what `np.asarray` takes: [N]


def _checked(scores, values):
  scores = np.asarray(scores, np.float64)
  values = np.asarray(values, np.float64)
  for name, array in (('scores', scores), ('values', values)):
    if array.ndim != 1 or len(array) < 2:
      raise errors.UserError(
          f'{name} has shape {list(array.shape)}; it must be a list of at '
          'least 2 numbers')
    if np.isnan(array).any():
      raise errors.UserError(
          f'{name} has {int(np.isnan(array).sum())} NaN; every network needs '
          'a number')
  if len(scores) != len(values):
    raise errors.UserError(
        f'scores has {len(scores)} numbers and values {len(values)}; they '
        'must be as many')
  return scores, values


def _checked_k(k, number):
  if not isinstance(k, numbers.Integral) or not 1 <= k <= number:
    raise errors.UserError(
        f'k={k!r} must be an integer of 1 to {number}, the number of networks')
  return int(k)


def kendall_tau(scores: Numbers, values: Numbers) -> float:
  """Returns Kendall's tau-b in [-1, 1].

  tau_b = (P - Q) / sqrt((P + Q + T)(P + Q + U)), where P and Q count
  concordant and discordant pairs, T the pairs that tie only in the scores and
  U those that tie only in the values (Kendall, Biometrika 1945). NaN if all
  scores or all values are equal.

  >>> round(kendall_tau([1, 2, 3], [10, 30, 20]), 3)
  0.333
  """
  scores, values = _checked(scores, values)
  return float(stats.kendalltau(scores, values, variant='b').statistic)


def spearman(scores: Numbers, values: Numbers) -> float:
  """Returns Spearman's rho in [-1, 1].

  NaN if all scores or all values are equal.

  >>> spearman([1, 2, 3], [10, 30, 20])
  0.5
  """
  scores, values = _checked(scores, values)
  if np.ptp(scores) == 0 or np.ptp(values) == 0:
    return float('nan')  # SciPy would warn.
  return float(stats.spearmanr(scores, values).statistic)


def _top(scores, k):
  """Returns the indices [k] of the highest scores, best first."""
  return np.argsort(-scores, kind='stable')[:k]


def precision_at_k(scores: Numbers, values: Numbers, k: int,
                   top: int | None = None) -> float:
  """Returns the share of the k best-scored networks among the `top` best.

  Args:
    scores: [N].
    values: [N] accuracies.
    k: how many networks the scores select.
    top: how many networks count as good; None means k. Networks that tie with
      the last of them count too.

  >>> precision_at_k([3, 2, 1], [10, 30, 20], k=1, top=2)
  0.0
  """
  scores, values = _checked(scores, values)
  k = _checked_k(k, len(scores))
  top = k if top is None else _checked_k(top, len(scores))
  least = np.sort(values)[-top]
  return float(np.mean(values[_top(scores, k)] >= least))


def top_k_overlap(scores: Numbers, values: Numbers, k: int) -> float:
  """Returns the share of the k best-scored networks among the k best.

  >>> top_k_overlap([3, 2, 1], [10, 30, 20], k=2)
  0.5
  """
  return precision_at_k(scores, values, k)


def regret(scores: Numbers, values: Numbers, k: int = 1) -> float:
  """Returns what choosing by score loses against the best network.

  In percentage points: the best of all minus the best of the k best-scored.
  k > 1 means that the k best-scored are trained and the best one is kept.

  >>> regret([3, 2, 1], [93., 94., 91.])
  1.0
  """
  scores, values = _checked(scores, values)
  chosen = values[_top(scores, _checked_k(k, len(scores)))]
  return float(values.max() - chosen.max())


def evaluate(
    known: table.Table,
    scores: Numbers | Mapping,
    cells: Sequence | None = None,
    *,
    dataset: str = 'cifar10',
    split: str = 'test',
    epochs: int | None = None,
    top: Sequence[int] = (1, 10, 100),
) -> dict:
  """Computes all of the above for one set of scores, as a JSON object.

  Args:
    known: the table.
    scores: [N], or a mapping from cells (in any form) to scores.
    cells: the N cells; None means the whole table, in its order.
    dataset, split, epochs: which accuracies of the table to use.
    top: values of k; those above N are left out.

  Returns:
    num_cells, where a cell that comes twice, also in two forms, counts once;
    kendall_tau and spearman, None where undefined; top_k_overlap
    and regret_at_k by k; and for the best-scored cell: its text form `chosen`,
    its accuracy `value`, its `rank` and `regret` in the whole table.

  Raises:
    UserError: the table does not have a cell, one cell has two scores, or the
      number of scores is wrong.
  """
  if isinstance(scores, Mapping):
    if cells is not None:
      raise errors.UserError('cells must be None where scores is a mapping')
    cells, scores = list(scores), list(scores.values())
  values = known.values(dataset, split, epochs)
  rows = np.arange(known.size)
  if cells is not None:
    rows = np.array([known.to_index(cell) for cell in cells], int)
  scores, values = _checked(scores, values[rows])
  rows, first = _once(known, rows, scores)
  scores, values = scores[first], values[first]
  # Use the text form: an integer is the benchmark's index, which may differ
  # from the row in a user's table.
  chosen = known.to_cell(int(rows[_top(scores, 1)[0]]))
  ks = [k for k in top if k <= len(scores)]
  return {
      'num_cells': len(scores),
      'kendall_tau': _finite(kendall_tau(scores, values)),
      'spearman': _finite(spearman(scores, values)),
      'top_k_overlap': {k: top_k_overlap(scores, values, k) for k in ks},
      'regret_at_k': {k: regret(scores, values, k) for k in ks},
      'chosen': chosen,
      'value': known.query(chosen, dataset, split, epochs),
      'rank': known.rank(chosen, dataset, split, epochs),
      'regret': known.regret(chosen, dataset, split, epochs),
  }


def _once(known, rows, scores):
  """(rows without repetitions, the first place of each), in their order."""
  first = {}
  for place, row in enumerate(rows.tolist()):
    before = first.setdefault(row, place)
    if scores[before] != scores[place]:
      raise errors.UserError(
          f'cells has {known.to_cell(row)} twice, with the scores '
          f'{scores[before]:g} and {scores[place]:g}; a cell has one score, '
          'also in two forms')
  return np.array(list(first)), np.array(list(first.values()))


def _finite(value):
  return value if np.isfinite(value) else None


def paired_difference(ours: Numbers, theirs: Numbers,
                      level: float = .95) -> dict[str, Any]:
  """The mean of paired differences and its confidence interval.

  Student's t with n - 1 degrees of freedom: exact where differences are normal,
  and no better than that for few pairs.

  Args:
    ours, theirs: [N], of the same seeds in the same order.
    level: of the interval.

  Returns:
    n, mean, low, high, level and the differences; low and high are None for a
    single pair, and the mean where all differences are the same.

  >>> found = paired_difference([3., 5., 4.], [1., 2., 3.])
  >>> found['mean'], round(found['low'], 2), round(found['high'], 2)
  (2.0, -0.48, 4.48)
  """
  differences = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
  n, mean = len(differences), float(differences.mean())
  half = None
  if n > 1:
    half = float(stats.t.ppf((1 + level) / 2, n - 1)
                 * differences.std(ddof=1) / n ** .5)
  return {'n': n, 'mean': mean, 'level': level,
          'low': None if half is None else mean - half,
          'high': None if half is None else mean + half,
          'differences': differences.tolist()}
