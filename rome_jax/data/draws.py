"""Weighted orders of images: which image is read when, drawn by weights.

PA&DA reads images in proportion to their share of the gradient's variance. An
order depends on (seed, epoch, weights) alone, and on integers only: the same
on every machine, so a resumed run reads what the uninterrupted one would.
"""

import numpy as np

# Of the largest weight; a sum of 2^32 of them still fits 64 bits.
_LARGEST = 2**32 - 1


def quantised(weights: np.ndarray) -> np.ndarray:
  """Weights as integers, in proportion up to 2^-32 of the largest.

  A positive weight stays positive. If all are 0 they become equal.

  Args:
    weights: [n] numbers of at least 0.

  Returns:
    [n] uint32.

  Raises:
    ValueError: there are none, or one is negative or not finite.

  >>> quantised(np.array([0., 1., 2.])).tolist()
  [0, 2147483648, 4294967295]
  >>> quantised(np.zeros(2)).tolist()
  [1, 1]
  """
  weights = np.asarray(weights, np.float64)
  if weights.ndim != 1 or not len(weights):
    raise ValueError(
        f'weights have shape {weights.shape}; they must be a list of numbers')
  bad = ~(np.isfinite(weights) & (weights >= 0))
  if bad.any():
    place = int(np.argmax(bad))
    raise ValueError(
        f'weight {place} is {weights[place]}; weights must be finite and at '
        'least 0')
  if not weights.any():
    return np.ones(len(weights), np.uint32)
  whole = np.rint(weights / weights.max() * _LARGEST)
  return np.where(weights > 0, np.maximum(whole, 1), 0).astype(np.uint32)


def order(weights: np.ndarray, number: int,
          rng: np.random.Generator) -> np.ndarray:
  """Places drawn with replacement, in proportion to their weights.

  Args:
    weights: [n] uint32, of `quantised`.
    number: of draws.
    rng: the only source of chance.

  Returns:
    [number] int64 places in range(n).

  >>> rng = np.random.default_rng(0)
  >>> order(np.array([0, 7, 0], np.uint32), 3, rng).tolist()
  [1, 1, 1]
  """
  ends = np.cumsum(weights, dtype=np.uint64)
  tickets = rng.integers(0, ends[-1], number, dtype=np.uint64)
  return np.searchsorted(ends, tickets, side='right')
