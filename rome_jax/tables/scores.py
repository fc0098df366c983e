"""How well any scoring of networks agrees with a table.

Letters: N networks. A higher score and a higher accuracy are better; negate a
loss. Ties among the scores are broken by the order of the networks, so that
the same scores always select the same ones.
"""

import numbers
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from rome_jax import errors
from rome_jax.tables import table


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


def kendall_tau(scores, values) -> float:
  """Kendall's tau-b in [-1, 1]; NaN if all scores or all values are equal.

  tau_b = (P - Q) / sqrt((P + Q + T)(P + Q + U)) with P concordant and Q
  discordant pairs, T and U pairs that tie in one of the two only (Kendall,
  Biometrika 1945).
  """
  scores, values = _checked(scores, values)
  return float(stats.kendalltau(scores, values, variant='b').statistic)


def spearman(scores, values) -> float:
  """Spearman's rho in [-1, 1]; NaN if all scores or all values are equal."""
  scores, values = _checked(scores, values)
  if np.ptp(scores) == 0 or np.ptp(values) == 0:
    return float('nan')  # SciPy would warn.
  return float(stats.spearmanr(scores, values).statistic)


def _top(scores, k):
  """[k] places of the highest scores, the best first."""
  return np.argsort(-scores, kind='stable')[:k]


def precision_at_k(scores, values, k: int, top: int | None = None) -> float:
  """Share of the k best-scored networks that are among the `top` best.

  Args:
    scores: [N].
    values: [N] accuracies.
    k: networks that the scores select.
    top: how many count as good; None is k. Networks that tie with the last
      of them count too.
  """
  scores, values = _checked(scores, values)
  k = _checked_k(k, len(scores))
  top = k if top is None else _checked_k(top, len(scores))
  least = np.sort(values)[-top]
  return float(np.mean(values[_top(scores, k)] >= least))


def top_k_overlap(scores, values, k: int) -> float:
  """Share of the k best-scored networks that are among the k best."""
  return precision_at_k(scores, values, k)


def regret(scores, values, k: int = 1) -> float:
  """Percentage points from the best of the k best-scored to the best of all.

  With k > 1: what remains when the k best-scored are trained and the best of
  them is kept.
  """
  scores, values = _checked(scores, values)
  chosen = values[_top(scores, _checked_k(k, len(scores)))]
  return float(values.max() - chosen.max())


def evaluate(
    known: table.Table,
    scores,
    cells: Sequence | None = None,
    *,
    dataset: str = 'cifar10',
    split: str = 'test',
    epochs: int | None = None,
    top: Sequence[int] = (1, 10, 100),
) -> dict:
  """All of the above for one scoring, as a JSON object.

  Args:
    known: the table.
    scores: [N], or a mapping from cells (in any form) to scores.
    cells: the N cells; None for all of the table in its order.
    dataset, split, epochs: which accuracies of the table.
    top: the k of the figures that have one; those above N are left out.

  Returns:
    num_cells; kendall_tau and spearman, None where undefined; top_k_overlap
    and regret_at_k by k; and the best-scored cell's place: `chosen`, its
    accuracy `value`, its `rank` and `regret` in the whole table.

  Raises:
    UserError: a cell that the table does not have, or another number of
      scores.
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
  # By its text: an integer is the benchmark's index, which need not be the
  # row of a user's table.
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


def _finite(value):
  return value if np.isfinite(value) else None
